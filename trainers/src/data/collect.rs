//! Demonstrations from a policy in a simulator.
//!
//! An episode's record is a function of its seed alone: episodes are dealt to workers in turn and handed on in the order of
//! their numbers, so the number of workers decides nothing but the time it takes. Row `t` is what the policy saw *before*
//! action `t`; what comes after the last action is not kept.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use ndarray::Array2;
use simloop_envs::{Env, EnvError, EnvId, EnvSpec, Info, Observation};
use simloop_policies::{ActMode, ActRequest, Policy};

use super::{DemoEpisode, Frames, SourceSpec};
use crate::{Episode, TrainerError};

/// Builds a worker's environment, on the worker's thread.
pub type MakeEnv<'a> = dyn Fn() -> Result<Box<dyn Env>, EnvError> + Sync + 'a;
/// Builds a worker's policy, on the worker's thread.
pub type MakePolicy<'a> = dyn Fn() -> Result<Box<dyn Policy>, TrainerError> + Sync + 'a;

/// Attempts at an episode that meets a fault of the simulator.
const ATTEMPTS: u32 = 3;

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
    workers: usize,
    n_action_steps: Option<usize>,
    make_env: &MakeEnv<'_>,
    make_policy: &MakePolicy<'_>,
    sink: &mut dyn FnMut(Collected) -> Result<ControlFlow<()>, TrainerError>,
) -> Result<(), TrainerError> {
    let workers = workers.clamp(1, episodes.len().max(1));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut receivers = Vec::new();
        for worker in 0..workers {
            // Two episodes may wait: a worker is never far ahead of the writer.
            let (sender, receiver) = sync_channel(2);
            let mine = episodes.iter().skip(worker).step_by(workers);
            let stop = &stop;
            scope.spawn(move || work(mine, n_action_steps, make_env, make_policy, &sender, stop));
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
    n_action_steps: Option<usize>,
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
        let outcome = attempts(episode, n_action_steps, &mut env, make_env, policy.as_mut());
        let failed = outcome.is_err();
        if sender.send(outcome).is_err() || failed {
            return;
        }
    }
}

fn attempts(
    episode: &Episode,
    n_action_steps: Option<usize>,
    env: &mut Option<Box<dyn Env>>,
    make_env: &MakeEnv<'_>,
    policy: &mut dyn Policy,
) -> Result<Collected, TrainerError> {
    for attempt in 0..ATTEMPTS {
        let mut simulator = match env.take() {
            Some(simulator) => simulator,
            None => make_env()?,
        };
        match rollout(episode, n_action_steps, simulator.as_mut(), policy) {
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
    n_action_steps: Option<usize>,
    env: &mut dyn Env,
    policy: &mut dyn Policy,
) -> Result<(DemoEpisode, bool), TrainerError> {
    let id = EnvId(0);
    let n_obs_steps = policy.needs().n_obs_steps.max(1);
    policy.reset(&[id]);
    let (obs, mut info): (Observation, Info) =
        env.reset(episode.request.seed, &episode.request.options)?;
    let mut recent = vec![obs];
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
        let chunk = n_action_steps.map_or_else(|| chunk.clone(), |n| chunk.truncated(n));
        let mut seen = recent.pop();
        recent.clear();
        for action in chunk.actions() {
            let Some(before) = seen.take() else { break };
            let step = env.step(action, true)?;
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
        let make_env = move || -> Result<Box<dyn Env>, EnvError> {
            let config = PushtConfig { obs, privileged: true, ..PushtConfig::default() };
            Ok(Box::new(TimeLimit::new(PushtEnv::new(config)?, 300)?))
        };
        let make_policy = || -> Result<Box<dyn Policy>, TrainerError> {
            let hold = ActionChunk::single(&[256.0, 256.0])?;
            Ok(Box::new(ExpertPolicy::new("scripted", hold, || Box::new(PushtExpert::new()))))
        };
        let mut all = Vec::new();
        collect(&episodes(5), workers, None, &make_env, &make_policy, &mut |collected| {
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
}
