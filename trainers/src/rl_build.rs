//! From settings to the parts of a run that learns by acting.

use std::path::Path;

use simloop_algos::{Grpo, OnPolicy, Ppo};
use simloop_envs::{EnvSpec, SeedTree};
use simloop_policies::Policy as _;
use simloop_policies::checkpoint::load_policy;
use simloop_policies::critic::ValueNet;
use simloop_policies::heads::HeadConfig;
use simloop_policies::normalize::Stats;
use simloop_policies::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};

use crate::TrainerError;
use crate::acting::Acting;
use crate::build::device;
use crate::judge::Judge;
use crate::place::{Place, PlaceConfig};
use crate::rl_config::RlConfig;
use crate::rollout::{RolloutOptions, Rollouts};
use crate::stop::StopFlag;

/// Where a run acts, to learn and to be judged.
pub struct Surroundings {
    /// The place.
    pub place: Place,
    /// What its environments are.
    pub spec: EnvSpec,
    /// To be judged.
    pub acting: Acting,
}

fn judges_aside(config: &RlConfig) -> bool {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let simple = matches!(config.env, PlaceConfig::Pusht { .. });
    config.eval.every > 0 && config.eval.background.unwrap_or(simple && cores > 1)
}

/// libtorch's threads while a policy acts at `place`: one beside environments in processes of their own. An operation on
/// several threads waits for the slowest, which waits for its core as long as a simulator has it: beside two LIBERO processes on
/// two cores a decision of a ResNet-18 took 216 ms on two threads and 67 ms on one. `None` leaves them as they are: a judge on
/// a thread of its own computes with them, too.
pub fn acting_threads(config: &RlConfig, place: &Place) -> Option<i32> {
    (place.processes && !judges_aside(config)).then_some(1)
}

/// What judges on a thread of its own, where the settings and the machine want it.
///
/// # Errors
/// As [`Judge::start`].
pub fn judge(
    config: &RlConfig,
    films: &Path,
    device: tch::Device,
    stop: &StopFlag,
) -> Result<Option<Judge>, TrainerError> {
    if !judges_aside(config) {
        return Ok(None);
    }
    let place = Place::new(&config.env, false)?;
    Judge::start(&place, &config.eval.acting(), films, device, stop.clone()).map(Some)
}

/// Opens the place of `config`; with `privileged` its rollouts know the true state.
///
/// # Errors
/// [`TrainerError::Env`] for an environment that cannot be built.
pub fn surroundings(config: &RlConfig, privileged: bool) -> Result<Surroundings, TrainerError> {
    if config.threads > 0 {
        tch::set_num_threads(config.threads);
    }
    let place = Place::new(&config.env, privileged || config.reward.needs_privileged())?;
    let judged = Place::new(&config.env, false)?;
    let spec = judged.vec(1, 0)?.spec()?;
    let acting = Acting::at(&judged, &config.eval.acting())?
        .with_torch_threads(acting_threads(config, &judged));
    Ok(Surroundings { place, spec, acting })
}

/// The policy to begin with: from its folder, or new.
///
/// # Errors
/// [`TrainerError::Policy`] for a damaged folder; [`TrainerError::Config`], [`TrainerError::Env`] for a policy that does
/// not fit the environment.
pub fn policy(config: &RlConfig, spec: &EnvSpec) -> Result<VlaPolicy, TrainerError> {
    let device = device(config.device)?;
    let mut policy = match (&config.policy.init, &config.policy.model) {
        (Some(folder), _) => load_policy(folder, device)?,
        (None, Some(model)) => {
            let seed = SeedTree::new(config.seed).child("weights").seed();
            VlaPolicy::new(model.clone(), io_of(spec), normalizers(model, spec)?, device, seed)?
        }
        (None, None) => return Err(TrainerError::config("say who acts: `policy.init`")),
    };
    if let Some(hidden) = &config.policy.steer {
        let seed = SeedTree::new(config.seed).child("steer").seed();
        policy = policy.steered(hidden, seed)?;
    } else if matches!(policy.config().head, HeadConfig::Steered(_)) {
        policy.freeze_flow();
    }
    if let Some(n) = config.policy.n_action_steps {
        policy.set_n_action_steps(n)?;
    }
    if let Some(rows) = config.policy.inference_batch {
        policy.set_inference_batch(rows);
    }
    if let Some(std) = config.policy.explore_std {
        policy.set_explore_std(std);
    }
    if let Some(convention) = policy.convention() {
        convention.check_matches(&spec.convention)?;
    }
    let (sees, shows) = (&policy.io().proprio, &spec.observation.proprio.names);
    if sees != shows {
        return Err(TrainerError::config(format!(
            "act in `{}`: its proprio is [{}], the policy was made for [{}]; choose another `env.obs`",
            spec.id,
            shows.join(", "),
            sees.join(", ")
        )));
    }
    if let Some(camera) =
        policy.cameras().iter().find(|c| !spec.observation.images.contains_key(*c))
    {
        return Err(TrainerError::config(format!(
            "act in `{}`: the policy looks through `{camera}`, which is not there; choose another `env.obs`",
            spec.id
        )));
    }
    Ok(policy)
}

fn io_of(spec: &EnvSpec) -> PolicyIo {
    PolicyIo {
        cameras: spec.observation.images.clone(),
        proprio: spec.observation.proprio.names.clone(),
        action: spec.action.names.clone(),
        convention: Some(spec.convention.clone()),
        control_hz: Some(spec.control_hz),
    }
}

/// Normalisers for a policy without demonstrations: bounds from the settings or from the environment.
fn normalizers(model: &VlaConfig, spec: &EnvSpec) -> Result<Normalizers, TrainerError> {
    use simloop_policies::normalize::NormMode;
    for (what, mode) in [("proprio", model.proprio_norm), ("action", model.action_norm)] {
        let used = what == "proprio" || model.relative.is_none();
        if used && !matches!(mode, NormMode::Bounds | NormMode::Identity) {
            return Err(TrainerError::config(format!(
                "scale {what} by statistics of demonstrations: there are none; set `policy.model.{what}_norm` to `bounds` \
                 or `identity`"
            )));
        }
    }
    let blank = |d: usize| {
        let zeros = vec![0.0; d];
        Stats {
            mean: zeros.clone(),
            std: zeros.clone(),
            min: zeros.clone(),
            max: zeros.clone(),
            q01: zeros.clone(),
            q99: zeros,
            count: 0,
        }
    };
    let mut model = model.clone();
    if model.relative.is_some() {
        model.action_norm = NormMode::Identity;
    } else if model.action_bounds.is_none() && model.action_norm == NormMode::Bounds {
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        let (low, high) = (&spec.action.low, &spec.action.high);
        if finite(low) && finite(high) && !low.is_empty() {
            model.action_bounds = Some((f64::from(low[0]), f64::from(high[0])));
        }
    }
    Ok(Normalizers::fit(&model, blank(spec.observation.proprio.len()), blank(spec.action.len()))?)
}

/// Environments to learn in.
///
/// # Errors
/// [`TrainerError::Env`] if they cannot be made.
pub fn rollouts(
    config: &RlConfig,
    place: &Place,
    policy: &VlaPolicy,
    gamma: f32,
) -> Result<Rollouts, TrainerError> {
    let needs = policy.needs();
    let mut vec = place.vec(config.rollout.envs, config.rollout.workers)?;
    let clip = if config.rollout.clip_actions { Some(vec.spec()?.action) } else { None };
    let options = RolloutOptions {
        n_obs_steps: needs.n_obs_steps,
        frames: needs.frames(),
        gamma,
        reward: config.reward.clone(),
        max_attempts: config.rollout.max_attempts,
        clip,
    };
    Ok(Rollouts::new(vec, options).with_torch_threads(acting_threads(config, place)))
}

/// PPO of `policy`.
///
/// # Errors
/// [`TrainerError::Algo`] for numbers out of range or a head without a density.
pub fn ppo(
    config: &RlConfig,
    spec: &EnvSpec,
    policy: VlaPolicy,
) -> Result<Box<dyn OnPolicy<Actor = VlaPolicy>>, TrainerError> {
    policy.stochastic_head()?;
    let seed = SeedTree::new(config.seed).child("critic").seed();
    let critic = ValueNet::new(&config.critic, &policy, seed)?;
    let reference = reference(config, spec, config.ppo.surrogate.kl_coef)?;
    Ok(Box::new(Ppo::new(policy, reference, critic, config.ppo.clone(), config.seed)?))
}

/// GRPO of `policy`.
///
/// # Errors
/// [`TrainerError::Algo`] for numbers out of range or a head without a density.
pub fn grpo(
    config: &RlConfig,
    spec: &EnvSpec,
    policy: VlaPolicy,
) -> Result<Box<dyn OnPolicy<Actor = VlaPolicy>>, TrainerError> {
    policy.stochastic_head()?;
    let reference = reference(config, spec, config.grpo.surrogate.kl_coef)?;
    Ok(Box::new(Grpo::new(policy, reference, config.grpo.clone(), config.seed)?))
}

/// The policy as it begins, where the actor is held to it.
fn reference(
    config: &RlConfig,
    spec: &EnvSpec,
    kl_coef: f64,
) -> Result<Option<VlaPolicy>, TrainerError> {
    if kl_coef > 0.0 { policy(config, spec).map(Some) } else { Ok(None) }
}
