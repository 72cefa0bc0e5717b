//! `train ppo`, `train grpo`, `train sac` and `train dagger`.

use std::process::ExitCode;

use serde_json::json;
use simloop_algos::dagger::Labels;
use simloop_algos::{Learner, Sac};
use simloop_envs::FrameRequest;
use simloop_policies::ImitationModel as _;
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
use crate::labels::LabelStore;
use crate::observe::{MetricsFile, ProgressBar, Report, TensorBoard};
use crate::observer::{Observers, TrainEvent};
use crate::off_policy::{Turns, train_off_policy};
use crate::offline::End;
use crate::on_policy::{Schedule, Supply, train_on_policy};
use crate::outcome::Outcome;
use crate::rl_build::{acting_threads, grpo, judge, policy, ppo, rollouts, surroundings};
use crate::rl_config::{RlConfig, RolloutConfig};
use crate::rl_state::{self, RlState};
use crate::rollout::{Plan, RolloutOptions, RolloutState, Rollouts, SeatState};
use crate::round::{Around, Rhythm};
use crate::run::{RESOLVED_FILE, RunFolder, VIDEOS_DIR};
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
    let (gamma, supply) = match kind {
        OnPolicyKind::Ppo => (config.ppo.gamma, Supply::Decisions(config.rollout.decisions)),
        OnPolicyKind::Grpo => {
            let RolloutConfig { groups, group_size: size, .. } = config.rollout;
            (config.grpo.gamma, Supply::Groups { groups, size })
        }
    };
    let mut rollouts = rollouts(&config, &around.place, &policy, gamma)?;
    let mut algo = match kind {
        OnPolicyKind::Ppo => ppo(&config, &around.spec, policy)?,
        OnPolicyKind::Grpo => grpo(&config, &around.spec, policy)?,
    };
    let schedule = Schedule::new(config.seed, around.place.tasks.clone());
    let rhythm = config.rhythm();
    carry_out(
        &Command { algorithm: kind.name(), args, config: &config },
        algo.as_mut(),
        &mut rollouts,
        &mut around.acting,
        |_, _, _| Ok(true),
        |algo, rollouts, state, around| {
            train_on_policy(algo, rollouts, &schedule, &supply, state, &rhythm, around)
        },
    )
}

/// Runs `train sac`.
pub(super) fn off_policy(args: &RunArgs) -> Result<ExitCode, TrainerError> {
    let config = RlConfig::load(&args.config, &args.sets)?;
    let mut around = surroundings(&config, config.rollout.demos > 0)?;
    let policy = policy(&config, &around.spec)?;
    let mut rollouts = rollouts(&config, &around.place, &policy, config.sac.gamma)?;
    let mut sac = Sac::new(policy, &config.critic, config.sac.clone(), config.seed)?;
    let schedule = Schedule::new(config.seed, around.place.tasks.clone());
    let rhythm = config.rhythm();
    let turns = Turns {
        decisions: config.rollout.decisions,
        updates_per_decision: config.rollout.updates_per_decision,
        warmup: config.rollout.warmup,
    };
    let mut experts = Experts::new(&around.place)?;
    carry_out(
        &Command { algorithm: "sac", args, config: &config },
        &mut sac,
        &mut rollouts,
        &mut around.acting,
        |sac, rollouts, stop| demonstrate(sac, rollouts, &mut experts, &schedule, &config, stop),
        |sac, rollouts, state, around| {
            train_off_policy(sac, rollouts, &schedule, turns, state, &rhythm, around)
        },
    )
}

/// Lets the expert fill the learner's memory; false if it was interrupted.
fn demonstrate(
    sac: &mut Sac,
    rollouts: &mut Rollouts,
    experts: &mut Experts,
    schedule: &Schedule,
    config: &RlConfig,
    stop: &StopFlag,
) -> Result<bool, TrainerError> {
    if config.rollout.demos == 0 {
        return Ok(true);
    }
    let jobs = schedule.groups(u64::MAX, config.rollout.demos as usize, 1);
    let demos = rollouts.collect(experts, Plan::Episodes(jobs), stop)?;
    if demos.stopped {
        return Ok(false);
    }
    let solved = demos.episodes.iter().filter(|e| e.success).count();
    tracing::info!("{} demonstrations, {solved} of them solve the task", demos.episodes.len());
    for trajectory in &demos.trajectories {
        let n = sac.actor().n_action_steps();
        sac.demonstrate(&chunked(trajectory, n, config.sac.gamma))?;
    }
    // The demonstrations' environments begin anew: rollouts are those of a run without any.
    let seats = vec![SeatState::default(); config.rollout.envs];
    rollouts.load_state(&RolloutState { seats })?;
    Ok(true)
}

/// What was asked for.
struct Command<'a> {
    algorithm: &'a str,
    args: &'a RunArgs,
    config: &'a RlConfig,
}

/// A run from opening its folder to its last words. `begin` prepares a run that does not resume and says whether it was
/// left to finish; `train` is the loop.
fn carry_out<L: Learner<Actor = VlaPolicy> + ?Sized>(
    command: &Command<'_>,
    learner: &mut L,
    rollouts: &mut Rollouts,
    acting: &mut Acting,
    begin: impl FnOnce(&mut L, &mut Rollouts, &StopFlag) -> Result<bool, TrainerError>,
    train: impl FnOnce(
        &mut L,
        &mut Rollouts,
        &mut RlState,
        &mut Around<'_>,
    ) -> Result<End, TrainerError>,
) -> Result<ExitCode, TrainerError> {
    let Command { algorithm, args, config } = *command;
    let n = config.eval.final_episodes;
    let stop = stop_on_signals()?;
    let (run, mut state) = open(args, config)?;
    describe(&run, config, config.train.updates, learner.actor().params().count())?;
    let mut observers = observers(&run);
    if let Some((update, path)) = run.newest()?.filter(|_| args.resume) {
        let (found, at) = rl_state::load(&path)?;
        learner.load_state(&found)?;
        rollouts.load_state(&at.rollouts)?;
        state = at;
        tracing::info!(update, checkpoint = %path.display(), "resuming");
    } else {
        if args.resume {
            tracing::warn!("the folder has no complete checkpoint: starting from the beginning");
        }
        if !begin(learner, rollouts, &stop)? {
            return Ok(interrupted(algorithm, args, 0, &mut observers));
        }
    }
    acting.film_into(&run.root().join(VIDEOS_DIR));
    let before = before(&run, acting, config, state.update == 0, &stop, |acting| {
        acting.records(learner.actor_mut(), "final", n, &stop)
    })?;
    let mut around = Around {
        acting: Some(&mut *acting),
        judge: judge(config, &run.root().join(VIDEOS_DIR), learner.actor().device(), &stop)?,
        run: &run,
        observers: &mut observers,
        stop: &stop,
    };
    if train(learner, rollouts, &mut state, &mut around)? == End::Interrupted {
        return Ok(interrupted(algorithm, args, state.update, &mut observers));
    }
    run.publish("final", |dir| Ok(save_policy(learner.actor(), dir)?))?;
    let after = match &before {
        Some(_) => acting.records(learner.actor_mut(), "final", n, &stop)?,
        None => None,
    };
    conclude(algorithm, args, &run, before, after, &state, &mut observers, &stop)
}

/// Opens the run's folder and writes down its settings.
fn open(args: &RunArgs, config: &RlConfig) -> Result<(RunFolder, RlState), TrainerError> {
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
    Ok((run, RlState::default()))
}

/// Writes `run.json`: what runs here, how large it is (all parameters and those that learn) and for how long it goes on.
fn describe(
    run: &RunFolder,
    config: &RlConfig,
    updates: u64,
    (parameters, trainable): (usize, usize),
) -> Result<(), TrainerError> {
    let about = json!({
        "name": config.name,
        "program": program(),
        "torch": TORCH_VERSION,
        "threads": tch::get_num_threads(),
        "parameters": parameters,
        "trainable_parameters": trainable,
        "updates": updates,
    });
    write(&run.root().join("run.json"), &format!("{about:#}\n"))
}

/// Who watches.
fn observers(run: &RunFolder) -> Observers {
    let mut observers = Observers::default();
    observers.push(ProgressBar::default());
    observers.push(Report::new(run.root()));
    observers.push(MetricsFile::new(run.root()));
    observers.push(TensorBoard::new(&run.root().join("tb")));
    observers
}

const BEFORE_FILE: &str = "before.json";

/// How well the policy did before it was improved, judged if it is `fresh`; remembered by the run's folder.
fn before(
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
    if !fresh || path.exists() {
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
fn conclude(
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
        clip: None,
    };
    let vec = around.place.vec(config.rollout.envs, config.rollout.workers)?;
    let mut rollouts =
        Rollouts::new(vec, options).with_torch_threads(acting_threads(&config, &around.place));
    let schedule = Schedule::new(config.seed, around.place.tasks.clone());
    let mut spec = spec_of_env(&around.spec);
    if !looks {
        spec.cameras.clear();
    }
    let loops = Interactive {
        labels: LabelStore {
            config: &config.dagger,
            spec,
            schedule: &schedule,
            seed: config.seed,
            cloned: begins.is_some(),
        },
        // Its updates are rounds, each of them worth a line and a checkpoint.
        rhythm: Rhythm {
            total: u64::from(config.dagger.iterations),
            log_every: 1,
            save_every: 1,
            ..config.rhythm()
        },
        model: config.policy.model.clone(),
        device: device(config.device)?,
    };
    let from_nothing = begins.is_none();
    let mut learner = begins.map(|policy| loops.learner(policy)).transpose()?;
    let mut experts = Experts::new(&around.place)?;
    let stop = stop_on_signals()?;
    let (run, mut state) = open(args, &config)?;
    if let Some((update, path)) = run.newest()?.filter(|_| args.resume) {
        state = loops.load(&path, &mut learner)?;
        tracing::info!(update, checkpoint = %path.display(), "resuming");
    }
    let (mut observers, videos) = (observers(&run), run.root().join(VIDEOS_DIR));
    around.acting.film_into(&videos);
    let mut acting = around.acting;
    let mut around = Around {
        acting: Some(&mut acting),
        judge: judge(&config, &videos, loops.device, &stop)?,
        run: &run,
        observers: &mut observers,
        stop: &stop,
    };
    around.started(&mut state, &loops.rhythm)?;
    // What began from nothing is compared with the clone of the expert that it is after the first round.
    let first = u64::from(from_nothing);
    let mut end = End::Complete;
    let mut train = |until, learner: &mut _, state: &mut _, around: &mut _| {
        loops.train(until, learner, &mut rollouts, &mut experts, state, around)
    };
    if state.update < first {
        end = train(first, &mut learner, &mut state, &mut around)?;
    }
    let n = config.eval.final_episodes;
    let mut before = None;
    if let (Some(bc), Some(acting)) = (&mut learner, around.acting.as_deref_mut()) {
        describe(&run, &config, loops.rhythm.total, bc.model().params().count())?;
        let fresh = state.update == first;
        before = self::before(&run, acting, &config, fresh, &stop, |acting| {
            bc.averaged(|policy| acting.records(policy, "final", n, &stop))
        })?;
    }
    if end != End::Interrupted {
        end = train(loops.rhythm.total, &mut learner, &mut state, &mut around)?;
    }
    let (End::Complete | End::Patience, Some(bc)) = (end, learner.as_mut()) else {
        return Ok(interrupted("dagger", args, state.update, &mut observers));
    };
    let after = bc.averaged(|policy| {
        run.publish("final", |dir| Ok(save_policy(policy, dir)?))?;
        if n == 0 { Ok(None) } else { acting.records(policy, "final", n, &stop) }
    })?;
    conclude("dagger", args, &run, before, after, &state, &mut observers, &stop)
}
