//! `train ppo`, `train grpo`, `train sac` and `train dagger`.

use std::process::ExitCode;

use serde_json::json;
use simloop_algos::Sac;
use simloop_algos::dagger::Labels;
use simloop_envs::FrameRequest;
use simloop_policies::ImitationModel;
use simloop_policies::checkpoint::save_policy;
use simloop_policies::device::TORCH_VERSION;
use simloop_policies::encoders::VisionConfig;
use simloop_policies::vla::VlaPolicy;

use super::train::{RunArgs, interrupted, program, refuse_changes, stop_on_signals, write};
use crate::acting::Acting;
use crate::build::device;
use crate::checkpoint::{Origin, hex_digest};
use crate::data::collect::spec_of_env;
use crate::expert_rollout::{Experts, chunked};
use crate::interactive::Interactive;
use crate::observe::{MetricsFile, ProgressBar, Report, TensorBoard};
use crate::observer::{Observers, TrainEvent};
use crate::off_policy::{OffPolicyOptions, train_off_policy};
use crate::offline::End;
use crate::on_policy::{OnPolicyOptions, Schedule, Supply, train_on_policy};
use crate::outcome::{self, Outcome};
use crate::rl_build::{grpo, policy, ppo, rollouts, surroundings};
use crate::rl_config::RlConfig;
use crate::rl_state::{self, RlState};
use crate::rollout::{Plan, RolloutOptions, RolloutState, Rollouts, SeatState};
use crate::run::{RESOLVED_FILE, RunFolder};
use crate::stop::StopFlag;
use crate::{EpisodeRecord, TrainerError};

/// Which on-policy algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnPolicyKind {
    Ppo,
    Grpo,
}

impl OnPolicyKind {
    fn name(self) -> &'static str {
        match self {
            Self::Ppo => "ppo",
            Self::Grpo => "grpo",
        }
    }
}

/// Runs `train ppo` or `train grpo`.
pub(super) fn on_policy(kind: OnPolicyKind, args: &RunArgs) -> Result<ExitCode, TrainerError> {
    let config = RlConfig::load(&args.config, &args.sets)?;
    // Everything that can be wrong with settings, policy and environment shows before an older run is touched.
    let mut around = surroundings(&config, false)?;
    let policy = policy(&config, &around.spec)?;
    let gamma = match kind {
        OnPolicyKind::Ppo => config.ppo.gamma,
        OnPolicyKind::Grpo => config.grpo.gamma,
    };
    let mut rollouts = rollouts(&config, &around.place, &policy, gamma)?;
    let mut algo = match kind {
        OnPolicyKind::Ppo => ppo(&config, &around.spec, policy)?,
        OnPolicyKind::Grpo => grpo(&config, &around.spec, policy)?,
    };
    let supply = match kind {
        OnPolicyKind::Ppo => Supply::Decisions(config.rollout.decisions),
        OnPolicyKind::Grpo => {
            Supply::Groups { groups: config.rollout.groups, size: config.rollout.group_size }
        }
    };

    let stop = stop_on_signals()?;
    let (run, mut state) = open(args, &config, ImitationModel::params(algo.actor()).count())?;
    if let Some((update, path)) = run.newest()?.filter(|_| args.resume) {
        let (learner, found) = rl_state::load(&path)?;
        algo.load_state(&learner)?;
        rollouts.load_state(&found.rollouts)?;
        state = found;
        tracing::info!(update, checkpoint = %path.display(), "resuming");
    } else if args.resume {
        tracing::warn!("the folder has no complete checkpoint: starting from the beginning");
    }
    let before = before(&run, &mut around.acting, &config, state.update == 0, &stop, |acting| {
        acting.records(algo.actor_mut(), "final", config.eval.final_episodes, &stop)
    })?;
    let mut observers = observers(&run);
    let options = OnPolicyOptions {
        name: config.name.clone(),
        total: config.train.updates,
        supply,
        log_every: config.train.log_every,
        evaluate_every: config.eval.every,
        episodes: config.eval.episodes,
        save_every: config.train.save_every,
        keep_last: config.train.keep_last,
        max_dropped: config.train.max_dropped,
    };
    let schedule = Schedule::new(config.seed, around.place.tasks.clone());
    let end = train_on_policy(
        algo.as_mut(),
        &mut rollouts,
        &schedule,
        Some(&mut around.acting),
        &run,
        &mut state,
        &options,
        &mut observers,
        &stop,
    )?;
    if end == End::Interrupted {
        return Ok(interrupted(kind.name(), args, state.update, &mut observers));
    }
    run.publish("final", |dir| Ok(save_policy(algo.actor(), dir)?))?;
    let after = match &before {
        Some(_) => {
            let n = config.eval.final_episodes;
            around.acting.records(algo.actor_mut(), "final", n, &stop)?
        }
        None => None,
    };
    conclude(kind.name(), args, &run, before, after, &state, &mut observers, &stop)
}

/// Opens the run's folder and writes down its settings.
pub(super) fn open(
    args: &RunArgs,
    config: &RlConfig,
    parameters: (usize, usize),
) -> Result<(RunFolder, RlState), TrainerError> {
    let resolved = config.to_toml()?;
    let origin = Origin {
        config_sha256: hex_digest(resolved.as_bytes()),
        program: program(),
        torch: TORCH_VERSION.to_owned(),
    };
    let run = RunFolder::open(&args.root(&config.name), args.existing(), origin)?;
    if args.resume {
        refuse_changes(&run, |earlier| config.differences(earlier))?;
    }
    write(&run.root().join(RESOLVED_FILE), &resolved)?;
    let about = json!({
        "name": config.name,
        "program": program(),
        "torch": TORCH_VERSION,
        "threads": tch::get_num_threads(),
        "parameters": parameters.0,
        "trainable_parameters": parameters.1,
        "updates": config.train.updates,
    });
    write(&run.root().join("run.json"), &format!("{about:#}\n"))?;
    Ok((run, RlState::default()))
}

/// Who watches.
pub(super) fn observers(run: &RunFolder) -> Observers {
    let mut observers = Observers::default();
    observers.push(ProgressBar::default());
    observers.push(Report::new(run.root()));
    observers.push(MetricsFile::new(run.root()));
    observers.push(TensorBoard::new(&run.root().join("tb")));
    observers
}

const BEFORE_FILE: &str = "before.json";

/// How well the policy did before the first update; remembered by the run's folder.
pub(super) fn before(
    run: &RunFolder,
    acting: &mut Acting,
    config: &RlConfig,
    fresh: bool,
    stop: &StopFlag,
    records: impl FnOnce(&mut Acting) -> Result<Option<Vec<EpisodeRecord>>, TrainerError>,
) -> Result<Option<Vec<EpisodeRecord>>, TrainerError> {
    let path = run.root().join(BEFORE_FILE);
    if config.eval.final_episodes == 0 {
        return Ok(None);
    }
    if !fresh {
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
        return serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| TrainerError::checkpoint(&path, e.to_string()));
    }
    if stop.is_set() {
        return Ok(None);
    }
    tracing::info!("{} episodes before the first update", config.eval.final_episodes);
    let records = records(acting)?;
    if let Some(records) = &records {
        let text = serde_json::to_string(records)
            .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
        write(&path, &text)?;
    }
    Ok(records)
}

/// Before and after, and the last words.
#[expect(clippy::too_many_arguments, reason = "the parts of a run, each used as it is")]
pub(super) fn conclude(
    algorithm: &str,
    args: &RunArgs,
    run: &RunFolder,
    before: Option<Vec<EpisodeRecord>>,
    after: Option<Vec<EpisodeRecord>>,
    state: &RlState,
    observers: &mut Observers,
    stop: &StopFlag,
) -> Result<ExitCode, TrainerError> {
    if stop.is_set() {
        return Ok(interrupted(algorithm, args, state.update, observers));
    }
    if let (Some(before), Some(after)) = (before, after) {
        let outcome = Outcome::new(&before, &after, state.env_steps, state.cpu_secs)?;
        let text = serde_json::to_string_pretty(&outcome)
            .map_err(|e| TrainerError::config(e.to_string()))?;
        write(&run.root().join("evaluation.json"), &text)?;
        tracing::info!("{}", outcome.line());
        observers.notify(&TrainEvent::Compared { update: state.update, outcome: &outcome });
    }
    let why = "all updates are done";
    observers.notify(&TrainEvent::Finished { update: state.update, why });
    Ok(ExitCode::SUCCESS)
}

/// Runs `train sac`.
pub(super) fn off_policy(args: &RunArgs) -> Result<ExitCode, TrainerError> {
    let config = RlConfig::load(&args.config, &args.sets)?;
    let mut around = surroundings(&config, config.rollout.demos > 0)?;
    let policy = policy(&config, &around.spec)?;
    let mut rollouts = rollouts(&config, &around.place, &policy, config.sac.gamma)?;
    let n_action_steps = policy.n_action_steps();
    let mut sac = Sac::new(policy, &config.critic, config.sac.clone(), config.seed)?;
    let stop = stop_on_signals()?;
    let (run, mut state) = open(args, &config, ImitationModel::params(sac.actor()).count())?;
    let schedule = Schedule::new(config.seed, around.place.tasks.clone());
    if let Some((update, path)) = run.newest()?.filter(|_| args.resume) {
        let (learner, found) = rl_state::load(&path)?;
        sac.load_state(&learner)?;
        rollouts.load_state(&found.rollouts)?;
        state = found;
        tracing::info!(update, checkpoint = %path.display(), "resuming");
    } else if config.rollout.demos > 0 {
        let mut experts = Experts::new(&around.place)?;
        let jobs = schedule.groups(u64::MAX, config.rollout.demos as usize, 1);
        let demos = rollouts.collect(&mut experts, Plan::Episodes(jobs), &stop)?;
        let solved = demos.episodes.iter().filter(|e| e.success).count();
        tracing::info!("{} demonstrations, {solved} of them solve the task", demos.episodes.len());
        for trajectory in &demos.trajectories {
            sac.demonstrate(&chunked(trajectory, n_action_steps, config.sac.gamma))?;
        }
        // The demonstrations' environments begin anew: rollouts are those of a run without any.
        rollouts
            .load_state(&RolloutState { seats: vec![SeatState::default(); config.rollout.envs] })?;
    }
    let before = before(&run, &mut around.acting, &config, state.update == 0, &stop, |acting| {
        acting.records(sac.actor_mut(), "final", config.eval.final_episodes, &stop)
    })?;
    let mut observers = observers(&run);
    let options = OffPolicyOptions {
        name: config.name.clone(),
        total: config.train.updates,
        decisions: config.rollout.decisions,
        updates_per_decision: config.rollout.updates_per_decision,
        warmup: config.rollout.warmup,
        log_every: config.train.log_every,
        evaluate_every: config.eval.every,
        episodes: config.eval.episodes,
        save_every: config.train.save_every,
        keep_last: config.train.keep_last,
        max_dropped: config.train.max_dropped,
    };
    let end = train_off_policy(
        &mut sac,
        &mut rollouts,
        &schedule,
        Some(&mut around.acting),
        &run,
        &mut state,
        &options,
        &mut observers,
        &stop,
    )?;
    if end == End::Interrupted {
        return Ok(interrupted("sac", args, state.update, &mut observers));
    }
    run.publish("final", |dir| Ok(save_policy(sac.actor(), dir)?))?;
    let after = match &before {
        Some(_) => {
            let n = config.eval.final_episodes;
            around.acting.records(sac.actor_mut(), "final", n, &stop)?
        }
        None => None,
    };
    conclude("sac", args, &run, before, after, &state, &mut observers, &stop)
}

/// Runs `train dagger`.
pub(super) fn interactive(args: &RunArgs) -> Result<ExitCode, TrainerError> {
    let config = RlConfig::load(&args.config, &args.sets)?;
    let mut around = surroundings(&config, true)?;
    let begins = match &config.policy.init {
        Some(_) => Some(policy(&config, &around.spec)?),
        None => None,
    };
    let model = config.policy.model.as_ref().or(begins.as_ref().map(VlaPolicy::config));
    let Some(model) = model.cloned() else {
        return Err(TrainerError::config("say who learns: `policy.init` or `[policy.model]`"));
    };
    if config.dagger.labels == Labels::Visited
        && (model.chunk_size != 1 || model.execution.n_action_steps() != 1)
    {
        return Err(TrainerError::config(
            "label every visited state: a chunk of several actions has no label there; set `policy.model.chunk_size = 1` \
             and one action per decision, or `dagger.labels = \"takeover\"`",
        ));
    }
    let looks = !matches!(model.vision, VisionConfig::None);
    let options = RolloutOptions {
        n_obs_steps: model.n_obs_steps,
        frames: if looks { FrameRequest::LastN(model.n_obs_steps) } else { FrameRequest::None },
        gamma: 1.0,
        reward: config.reward.clone(),
        max_attempts: config.rollout.max_attempts,
    };
    let vec = around.place.vec(config.rollout.envs, config.rollout.workers)?;
    let mut rollouts = Rollouts::new(vec, options);
    let schedule = Schedule::new(config.seed, around.place.tasks.clone());
    let mut spec = spec_of_env(&around.spec);
    if !looks {
        spec.cameras.clear();
    }
    let loops = Interactive {
        config: &config.dagger,
        name: &config.name,
        seed: config.seed,
        place: &around.place,
        spec,
        schedule: &schedule,
        episodes: if config.eval.every > 0 { config.eval.episodes } else { 0 },
        keep_last: config.train.keep_last,
        max_dropped: config.train.max_dropped,
        model: config.policy.model.clone(),
        device: device(config.device)?,
    };
    let mut learner = begins.map(|policy| loops.learner(policy)).transpose()?;
    let stop = stop_on_signals()?;
    let count = learner.as_ref().map_or((0, 0), |bc| bc.model().params().count());
    let (run, mut state) = open(args, &config, count)?;
    if let Some((update, path)) = run.newest()?.filter(|_| args.resume) {
        state = loops.load(&path, &mut learner)?;
        tracing::info!(update, checkpoint = %path.display(), "resuming");
    }
    let n = config.eval.final_episodes;
    let fresh = state.update == 0;
    let mut before = None;
    if learner.is_some() {
        before = self::before(&run, &mut around.acting, &config, fresh, &stop, |acting| {
            learner.as_mut().map_or(Ok(None), |bc| {
                bc.averaged(|policy| acting.records(policy, "final", n, &stop))
            })
        })?;
    }
    let mut observers = observers(&run);
    let end = loops.train(
        &mut learner,
        &mut rollouts,
        Some(&mut around.acting),
        &run,
        &mut state,
        &mut observers,
        &stop,
    )?;
    let (End::Complete | End::Patience, Some(bc)) = (end, learner.as_mut()) else {
        return Ok(interrupted("dagger", args, state.update, &mut observers));
    };
    let after = bc.averaged(|policy| {
        run.publish("final", |dir| Ok(save_policy(policy, dir)?))?;
        if n == 0 { Ok(None) } else { around.acting.records(policy, "final", n, &stop) }
    })?;
    if let (None, Some(after)) = (&before, &after) {
        let all = outcome::success(&after.iter().collect::<Vec<_>>())?;
        let text =
            serde_json::to_string_pretty(&all).map_err(|e| TrainerError::config(e.to_string()))?;
        write(&run.root().join("evaluation.json"), &text)?;
        tracing::info!("final: {}/{} solved", all.successes, all.episodes);
    }
    conclude("dagger", args, &run, before, after, &state, &mut observers, &stop)
}
