//! Demonstrations from a policy in a simulator.
//!
//! An episode's record is a function of its seed alone: episodes are dealt to workers in turn and handed on in the order of
//! their numbers, so the number of workers decides nothing but the time it takes. Row `t` is what the policy saw *before*
//! action `t`; what comes after the last action is not kept.
//!
//! With [`CollectOptions::action_noise`] the environment is disturbed and the record is not: a policy that imitates it has
//! seen what its own small errors lead to and how to repair them (DART, Laskey et al. 2017, arXiv 1703.09327).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use ndarray::{Array1, Array2};
use rand::Rng as _;
use rand_distr::{Distribution as _, StandardNormal};
use simloop_envs::{Env, EnvError, EnvId, EnvSpec, GripperConvention, Info, Observation, SeedTree};
use simloop_policies::{ActMode, ActRequest, Policy};

use super::{DemoEpisode, Frames, SourceSpec};
use crate::{Episode, TrainerError};

/// Builds a worker's environment, on the worker's thread.
pub type MakeEnv<'a> = dyn Fn() -> Result<Box<dyn Env>, EnvError> + Sync + 'a;
/// Builds a worker's policy, on the worker's thread.
pub type MakePolicy<'a> = dyn Fn() -> Result<Box<dyn Policy>, TrainerError> + Sync + 'a;

/// Attempts at an episode that meets a fault of the simulator.
const ATTEMPTS: u32 = 3;

/// How to collect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CollectOptions {
    /// Threads; they change no number.
    pub workers: usize,
    /// Execute at most so many actions of each chunk; `None` executes all.
    pub n_action_steps: Option<usize>,
    /// The largest standard deviation of normal noise on what is executed, in the units of an action; an episode draws its
    /// own between 0 and this. A gripper's command is left alone.
    pub action_noise: f32,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { workers: 1, n_action_steps: None, action_noise: 0.0 }
    }
}

/// A finished episode.
#[derive(Debug)]
pub struct Collected {
    /// Its task's name and trial.
    pub task: String,
    /// Its number within the task.
    pub trial: u32,
    /// What happened; `None` where the simulator failed three times.
    pub episode: Option<DemoEpisode>,
    /// Whether the task was solved at any step.
    pub success: bool,
}

/// Runs `episodes` and hands them to `sink` in their order, until it breaks.
///
/// # Errors
/// What no retry can mend: [`TrainerError::Env`], [`TrainerError::Policy`]; the sink's own.
pub fn collect(
    episodes: &[Episode],
    options: CollectOptions,
    make_env: &MakeEnv<'_>,
    make_policy: &MakePolicy<'_>,
    sink: &mut dyn FnMut(Collected) -> Result<ControlFlow<()>, TrainerError>,
) -> Result<(), TrainerError> {
    let workers = options.workers.clamp(1, episodes.len().max(1));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut receivers = Vec::new();
        for worker in 0..workers {
            // Two episodes may wait: a worker is never far ahead of the writer.
            let (sender, receiver) = sync_channel(2);
            let mine = episodes.iter().skip(worker).step_by(workers);
            let stop = &stop;
            scope.spawn(move || work(mine, options, make_env, make_policy, &sender, stop));
            receivers.push(receiver);
        }
        let mut result = Ok(());
        for (i, _) in episodes.iter().enumerate() {
            let Ok(next) = receivers[i % workers].recv() else {
                result = Err(TrainerError::Sink {
                    detail: "a worker ended before its episodes did".to_owned(),
                });
                break;
            };
            match next.and_then(&mut *sink) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        // Senders that wait for room are let go.
        drop(receivers);
        result
    })
}

fn work<'a>(
    episodes: impl Iterator<Item = &'a Episode>,
    options: CollectOptions,
    make_env: &MakeEnv<'_>,
    make_policy: &MakePolicy<'_>,
    sender: &SyncSender<Result<Collected, TrainerError>>,
    stop: &AtomicBool,
) {
    let mut policy = match make_policy() {
        Ok(policy) => policy,
        Err(error) => {
            // Nobody listens any more where the run was ended.
            let _ = sender.send(Err(error));
            return;
        }
    };
    let mut env: Option<Box<dyn Env>> = None;
    for episode in episodes {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let outcome = attempts(episode, options, &mut env, make_env, policy.as_mut());
        let failed = outcome.is_err();
        if sender.send(outcome).is_err() || failed {
            return;
        }
    }
}

fn attempts(
    episode: &Episode,
    options: CollectOptions,
    env: &mut Option<Box<dyn Env>>,
    make_env: &MakeEnv<'_>,
    policy: &mut dyn Policy,
) -> Result<Collected, TrainerError> {
    for attempt in 0..ATTEMPTS {
        let mut simulator = match env.take() {
            Some(simulator) => simulator,
            None => make_env()?,
        };
        match rollout(episode, options, simulator.as_mut(), policy) {
            Ok((demo, success)) => {
                *env = Some(simulator);
                return Ok(Collected {
                    task: episode.task.clone(),
                    trial: episode.trial,
                    episode: Some(demo),
                    success,
                });
            }
            Err(TrainerError::Env(error))
                if !error.is_permanent() && !matches!(error, EnvError::InvalidAction { .. }) =>
            {
                tracing::warn!(
                    task = episode.task,
                    trial = episode.trial,
                    attempt,
                    class = error.class(),
                    "an attempt met a fault"
                );
            }
            Err(error) => return Err(error),
        }
    }
    let (task, trial) = (episode.task.clone(), episode.trial);
    Ok(Collected { task, trial, episode: None, success: false })
}

/// Runs one episode to its end: the demonstration, and whether the task was solved at any step.
fn rollout(
    episode: &Episode,
    options: CollectOptions,
    env: &mut dyn Env,
    policy: &mut dyn Policy,
) -> Result<(DemoEpisode, bool), TrainerError> {
    let id = EnvId(0);
    let n_obs_steps = policy.needs().n_obs_steps.max(1);
    policy.reset(&[id]);
    let (obs, mut info): (Observation, Info) =
        env.reset(episode.request.seed, &episode.request.options)?;
    let mut recent = vec![obs];
    let mut disturbance = Disturbance::new(options.action_noise, env, &episode.noise);
    let mut rows = Rows::default();
    let mut success = false;
    for decision in 0u64.. {
        let skip = recent.len().saturating_sub(n_obs_steps);
        let Some(obs) = recent.last() else { break };
        let request = ActRequest {
            env: id,
            obs,
            recent: &recent[skip..],
            info: &info,
            noise_seed: episode.noise.index(decision).seed(),
        };
        let decided = policy.act(&[request], ActMode::Deterministic)?;
        let Some(chunk) = decided.into_iter().next().map(|d| d.chunk) else {
            return Err(TrainerError::Sink { detail: "the policy gave no action".to_owned() });
        };
        let chunk = options.n_action_steps.map_or_else(|| chunk.clone(), |n| chunk.truncated(n));
        let mut seen = recent.pop();
        recent.clear();
        for action in chunk.actions() {
            let Some(before) = seen.take() else { break };
            let executed = disturbance.apply(action.to_owned());
            let step = env.step(executed.view(), true)?;
            rows.push(&before, action.iter());
            success |= step.info.success == Some(true);
            if step.done() {
                return Ok((rows.finish(), success));
            }
            info = step.info;
            recent.push(step.obs.clone());
            seen = Some(step.obs);
        }
    }
    Ok((rows.finish(), success))
}

/// What is added to an episode's actions on their way to the environment.
struct Disturbance {
    std: f32,
    /// Lowest and highest value of every number that is disturbed.
    bounds: Vec<(f32, f32)>,
    rng: rand_chacha::ChaCha8Rng,
}

impl Disturbance {
    fn new(largest: f32, env: &dyn Env, noise: &SeedTree) -> Self {
        let spec = env.spec();
        let gripper = usize::from(spec.convention.gripper != GripperConvention::None);
        let arm = spec.action.len() - gripper.min(spec.action.len());
        let bounds = spec.action.low.iter().copied().zip(spec.action.high.iter().copied());
        let mut rng = noise.child("disturbance").rng();
        Self { std: largest * rng.random::<f32>(), bounds: bounds.take(arm).collect(), rng }
    }

    fn apply(&mut self, mut action: Array1<f32>) -> Array1<f32> {
        if self.std > 0.0 {
            for (v, &(low, high)) in action.iter_mut().zip(&self.bounds) {
                let z: f32 = StandardNormal.sample(&mut self.rng);
                *v = (*v + self.std * z).max(low).min(high);
            }
        }
        action
    }
}

#[derive(Default)]
struct Rows {
    len: usize,
    instruction: Option<Arc<str>>,
    proprio: Vec<f32>,
    actions: Vec<f32>,
    images: BTreeMap<String, Vec<simloop_envs::Frame>>,
}

impl Rows {
    fn push<'a>(&mut self, obs: &Observation, action: impl Iterator<Item = &'a f32>) {
        self.len += 1;
        self.instruction.get_or_insert_with(|| Arc::clone(&obs.instruction));
        self.proprio.extend(obs.proprio.iter());
        self.actions.extend(action);
        for (camera, frame) in &obs.images {
            self.images.entry(camera.clone()).or_default().push(frame.clone());
        }
    }

    fn finish(self) -> DemoEpisode {
        let len = self.len;
        let matrix = |values: Vec<f32>| {
            let width = values.len().checked_div(len).unwrap_or(0);
            // Every step of an environment has the same widths; where one had not, the writer refuses the episode.
            Array2::from_shape_vec((len, width), values).unwrap_or_default()
        };
        DemoEpisode {
            instruction: self.instruction.unwrap_or_else(|| Arc::from("")),
            proprio: matrix(self.proprio),
            actions: matrix(self.actions),
            images: self.images.into_iter().map(|(c, f)| (c, Frames::Raw(f))).collect(),
        }
    }
}

/// What a data set collected in `env` holds.
pub fn spec_of(env: &dyn Env) -> SourceSpec {
    spec_of_env(env.spec())
}

/// What a data set collected in an environment with this `spec` holds.
pub fn spec_of_env(spec: &EnvSpec) -> SourceSpec {
    let absolute = matches!(
        spec.convention.control,
        simloop_envs::ControlMode::AbsolutePosition | simloop_envs::ControlMode::JointPosition
    );
    let width = spec.action.len();
    let gripper = spec.convention.gripper != simloop_envs::GripperConvention::None;
    SourceSpec {
        format: "collected".to_owned(),
        location: spec.id.clone(),
        cameras: spec.observation.images.clone(),
        proprio: spec.observation.proprio.names.clone(),
        action: spec.action.names.clone(),
        absolute_action: (0..width).map(|i| absolute || (gripper && i + 1 == width)).collect(),
        convention: Some(spec.convention.clone()),
        control_hz: Some(spec.control_hz),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_envs::pusht::{PushtConfig, PushtEnv, PushtObs};
    use simloop_envs::seeding::episode_seed;
    use simloop_envs::wrappers::TimeLimit;
    use simloop_envs::{ActionChunk, ResetOptions, ResetRequest};
    use simloop_policies::ExpertPolicy;
    use simloop_policies::scripted::PushtExpert;

    fn episodes(n: u32) -> Vec<Episode> {
        (0..n)
            .map(|trial| {
                let node = episode_seed(3, "pusht", "pusht", trial);
                let options = ResetOptions::default();
                Episode {
                    task: "pusht".to_owned(),
                    trial,
                    request: ResetRequest { seed: Some(node.seed()), options },
                    noise: node.child("noise"),
                }
            })
            .collect()
    }

    fn run(workers: usize, obs: PushtObs) -> Vec<Collected> {
        run_with(CollectOptions { workers, ..CollectOptions::default() }, obs)
    }

    fn run_with(options: CollectOptions, obs: PushtObs) -> Vec<Collected> {
        let make_env = move || -> Result<Box<dyn Env>, EnvError> {
            let config = PushtConfig { obs, privileged: true, ..PushtConfig::default() };
            Ok(Box::new(TimeLimit::new(PushtEnv::new(config)?, 300)?))
        };
        let make_policy = || -> Result<Box<dyn Policy>, TrainerError> {
            let hold = ActionChunk::single(&[256.0, 256.0])?;
            Ok(Box::new(ExpertPolicy::new("scripted", hold, || Box::new(PushtExpert::new()))))
        };
        let mut all = Vec::new();
        collect(&episodes(5), options, &make_env, &make_policy, &mut |collected| {
            all.push(collected);
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        all
    }

    #[test]
    fn the_number_of_workers_changes_no_number() {
        let (one, three) = (run(1, PushtObs::State), run(3, PushtObs::State));
        assert_eq!(one.len(), 5);
        for (a, b) in one.iter().zip(&three) {
            let (a, b) = (a.episode.as_ref().unwrap(), b.episode.as_ref().unwrap());
            assert_eq!((&a.proprio, &a.actions), (&b.proprio, &b.actions));
        }
        assert!(one.iter().all(|c| c.success), "the expert solves PushT");
    }

    #[test]
    fn a_row_is_what_was_seen_before_its_action() {
        let collected = &run(1, PushtObs::PixelsAgentPos)[0];
        let demo = collected.episode.as_ref().unwrap();
        let config = PushtConfig {
            obs: PushtObs::PixelsAgentPos,
            privileged: true,
            ..PushtConfig::default()
        };
        let mut env = PushtEnv::new(config).unwrap();
        let request = &episodes(1)[0].request;
        let (mut obs, _) = env.reset(request.seed, &request.options).unwrap();
        for t in 0..demo.len() {
            assert_eq!(demo.proprio.row(t), obs.proprio.view(), "step {t}");
            assert_eq!(demo.images["pixels"].get(t).unwrap(), obs.images["pixels"]);
            obs = env.step(demo.actions.row(t), true).unwrap().obs;
        }
        // The action of the row before is another pairing.
        assert_ne!(demo.proprio.row(1), demo.proprio.row(0));
    }

    #[test]
    fn a_disturbed_environment_is_answered_by_an_undisturbed_expert() {
        let options = CollectOptions { action_noise: 20.0, ..CollectOptions::default() };
        let disturbed = run_with(options, PushtObs::State);
        let two = run_with(CollectOptions { workers: 2, ..options }, PushtObs::State);
        let calm = run(1, PushtObs::State);
        let demo = |c: &Collected| c.episode.clone().unwrap();
        for ((one, two), calm) in disturbed.iter().zip(&two).zip(&calm) {
            assert!(one.success, "the expert repairs what the noise does");
            let (one, two, calm) = (demo(one), demo(two), demo(calm));
            assert_eq!((&one.proprio, &one.actions), (&two.proprio, &two.actions));
            // The first state is the same and so is its answer; what was executed was another action.
            assert_eq!(one.proprio.row(0), calm.proprio.row(0));
            assert_eq!(one.actions.row(0), calm.actions.row(0));
            assert_ne!(one.proprio.row(1), calm.proprio.row(1));
        }
    }
}
