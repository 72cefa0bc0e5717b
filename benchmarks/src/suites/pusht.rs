//! PushT as a benchmark.

use std::collections::BTreeMap;
use std::sync::Arc;

use simloop_envs::pusht::{PushtConfig, PushtEnv, PushtGoals, PushtObs, worker};
use simloop_envs::{ActionChunk, Env as _, ResetOptions};
use simloop_policies::scripted::PushtExpert;
use simloop_policies::{ExpertPolicy, Policy, RandomPolicy};
use simloop_trainers::acting::pusht_observation_of;

use super::policy::{self, Checkpoint, Foreign, Inference, Named, Shape};
use super::presented::Presented;
use super::{SuiteRun, episode, fingerprint};
use crate::BenchError;
use crate::ledger::{ProtocolLine, TaskEntry};
use crate::runner::WorkerKind;

/// What to run.
#[derive(Clone, Debug)]
pub struct PushtSuite {
    /// The environment.
    pub env: PushtConfig,
    /// Steps after which an episode is truncated.
    pub max_steps: u32,
    /// Episodes of each task.
    pub episodes: u32,
    /// The run's seed.
    pub seed: u64,
    /// `scripted`, `random`, a checkpoint folder or an address.
    pub policy: String,
    /// Execute at most so many actions of each chunk.
    pub n_action_steps: Option<usize>,
    /// Where environments live.
    pub workers: WorkerKind,
    /// Tell the policy to go to the other of two targets than the one that counts.
    pub swap_instructions: bool,
    /// How a checkpoint computes.
    pub inference: Inference,
    /// Show a checkpoint the observation type that it was trained on instead of `env.obs`.
    pub fit_observation: bool,
    /// Show a checkpoint images of the size that it was trained on instead of `env.image_size`.
    pub fit_image_size: bool,
}

impl PushtSuite {
    /// Puts the suite together.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for a policy that does not exist or does not fit; [`BenchError::Policy`] for a damaged
    /// checkpoint; [`BenchError::Env`] for settings that cannot be.
    pub fn build(mut self) -> Result<SuiteRun, BenchError> {
        let found = policy::find(&self.policy, &self.inference, self.n_action_steps)?;
        if let Named::Checkpoint(checkpoint) = &found {
            let fitting = observation_of(&checkpoint.shape);
            if self.fit_image_size
                && let Ok((_, Some(side))) = fitting
            {
                self.env.image_size = side;
            }
            if self.fit_observation {
                self.env.obs = fitting?.0;
            }
        }
        let space = PushtEnv::new(self.env.clone())?.spec().action.clone();
        let (mut label, mut min_ready, mut traits) = (self.policy.clone(), 1, BTreeMap::new());
        let policy: Box<dyn Policy> = match found {
            Named::Scripted => {
                // The middle of the arena, for a state the expert has no opinion on.
                let hold = ActionChunk::single(&[256.0, 256.0])?;
                Box::new(ExpertPolicy::new("scripted", hold, || Box::new(PushtExpert::new())))
            }
            Named::Random => Box::new(RandomPolicy::new(space, 1)),
            Named::Checkpoint(found) => {
                let Checkpoint { policy, shape, label: name, fingerprint } = *found;
                (label, traits) = (name, fingerprint);
                min_ready = shape.inference_batch;
                let env = PushtEnv::new(self.env.clone())?;
                let ours: Vec<_> = env.spec().observation.images.keys().cloned().collect();
                let named = camera_of(&shape, &ours);
                policy::check_io(&shape, named.as_ref(), env.spec())?;
                adapted(policy, named)
            }
            Named::Foreign(found) => {
                let Foreign { mut policy, label: name, fingerprint } = *found;
                (label, traits) = (name, fingerprint);
                let env = PushtEnv::new(self.env.clone())?;
                let cameras: Vec<_> = env.spec().observation.images.keys().cloned().collect();
                policy.present(&cameras, space.len())?;
                Box::new(policy)
            }
        };
        let policy = if self.swap_instructions {
            label.push_str(" (swapped instructions)");
            swapped(policy, self.env.goals)?
        } else {
            policy
        };
        let needs = policy.needs();
        self.env.privileged |= needs.privileged;
        let factory = worker::in_process(self.env.clone(), self.max_steps);
        let spec = factory(simloop_envs::EnvId(0))?.spec().clone();
        if let Some(convention) = policy.convention() {
            convention.check_matches(&spec.convention)?;
        }
        let config = self.env.clone();
        let goals = config.goals.all();
        let suite = config.goals.env_name();
        let mut protocol_lines = vec![
            line("observation", &config.obs.name(), "gym-pusht obs_type"),
            line("max_steps", &self.max_steps, "gym-pusht 0.1.8 registration: 300"),
            line("success", &"coverage > 0.95 at any step", "gym-pusht 0.1.8 PushTEnv.step"),
            line("control_hz", &spec.control_hz, "gym-pusht 0.1.8 metadata"),
            line("reset", &format!("{:?}", config.seeding), "gym-pusht 0.1.8 PushTEnv.reset"),
            line(
                "n_action_steps",
                &self.n_action_steps.map_or("all".to_owned(), |n| n.to_string()),
                "the policy",
            ),
        ];
        if config.goals == PushtGoals::Two {
            protocol_lines.push(line(
                "goals",
                &"two; the instruction names the one that counts",
                "simloop, envs/src/pusht/goals.rs",
            ));
        }
        let episodes = goals
            .iter()
            .flat_map(|goal| {
                // A lone task needs no name, and its requests stay as they always were.
                let task = (goals.len() > 1).then(|| goal.task.to_owned());
                let options = ResetOptions { task, ..ResetOptions::default() };
                (0..self.episodes)
                    .map(move |trial| episode(self.seed, suite, goal.task, trial, options.clone()))
            })
            .collect();
        let tasks = goals.iter().zip(0..).map(|(goal, id)| TaskEntry {
            key: goal.task.to_owned(),
            id,
            instruction: goal.instruction.to_owned(),
        });
        Ok(SuiteRun {
            suite: suite.to_owned(),
            seed: self.seed,
            protocol: match config.goals {
                PushtGoals::One => "gym_pusht-v1".to_owned(),
                PushtGoals::Two => "pusht_two_goals-v1".to_owned(),
            },
            protocol_lines,
            tasks: tasks.collect(),
            episodes,
            trials: (0, self.episodes),
            factory: match self.workers {
                WorkerKind::Processes => worker::in_child(config, self.max_steps)?,
                WorkerKind::Sync | WorkerKind::Threads => Arc::clone(&factory),
            },
            viewer: factory,
            video_fps: spec.control_hz,
            frames: needs.frames(),
            n_action_steps: self.n_action_steps,
            min_ready,
            fingerprint: {
                let mut lines = fingerprint(&spec);
                lines.append(&mut traits);
                lines
            },
            policy_label: label,
            policy,
        })
    }
}

/// The observation type that shows a policy what it was trained on, and the side of its image.
///
/// # Errors
/// [`BenchError::Usage`] where PushT has none.
pub fn observation_of(policy: &Shape) -> Result<(PushtObs, Option<u32>), BenchError> {
    pusht_observation_of(&policy.io, &policy.cameras).map_err(|e| BenchError::usage(e.to_string()))
}

/// A camera that the environment and the policy call by different names: `(the environment's, the policy's)`. With one
/// camera on both sides there is no doubt which is meant.
pub fn camera_of(policy: &Shape, ours: &[String]) -> Option<(String, String)> {
    match (ours, &policy.cameras[..]) {
        ([ours], [theirs]) if ours != theirs => Some((ours.clone(), theirs.clone())),
        _ => None,
    }
}

/// A checkpoint behind the environment's name for its camera.
pub fn adapted(policy: Box<dyn Policy>, camera: Option<(String, String)>) -> Box<dyn Policy> {
    match camera {
        Some((ours, theirs)) => Box::new(Presented::renamed(policy, ours, theirs)),
        None => policy,
    }
}

/// The policy, told of every target that it is the other one.
fn swapped(policy: Box<dyn Policy>, goals: PushtGoals) -> Result<Box<dyn Policy>, BenchError> {
    let [a, b] = goals.all() else {
        return Err(BenchError::usage(
            "swap instructions: there is one target and one instruction; add --two-goals",
        ));
    };
    let words = [(a, b), (b, a)]
        .map(|(counts, told)| (counts.instruction.to_owned(), Arc::from(told.instruction)));
    Ok(Box::new(Presented::reworded(policy, words.into())))
}

fn line(name: &str, value: &dyn ToString, source: &str) -> ProtocolLine {
    ProtocolLine { name: name.to_owned(), value: value.to_string(), source: source.to_owned() }
}
