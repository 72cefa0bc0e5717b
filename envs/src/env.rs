//! The contract that every simulator meets.

use std::collections::BTreeMap;

use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};

use crate::{
    ActionChunk, ActionConvention, BoxSpace, EnvError, Frame, Info, Observation, ObservationSpace,
};

/// What an environment is: everything that a policy, a report or a fingerprint needs to know of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvSpec {
    /// Name and version, e.g. `pusht/state-v1`.
    pub id: String,
    /// What it shows.
    pub observation: ObservationSpace,
    /// `[D]`: names, units in the names, ranges.
    pub action: BoxSpace,
    /// What the numbers of an action mean.
    pub convention: ActionConvention,
    /// Actions per simulated second.
    pub control_hz: f64,
    /// Steps after which a time limit truncates; `None` without one.
    pub max_episode_steps: Option<u32>,
    /// Wrappers round the simulator, innermost first.
    pub wrappers: Vec<String>,
    /// Versions of everything that decides a result: engine, simulator packages, renderer.
    pub versions: BTreeMap<String, String>,
}

/// Which initial state to start from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResetOptions {
    /// A task's name, for environments that hold several (`libero_spatial/3`). `None` keeps the present one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The index of a stored initial state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_state: Option<u32>,
    /// An explicit initial state in the simulator's own layout (Gymnasium's `reset_to_state`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Vec<f64>>,
}

/// How to begin an episode: replaying the same request gives the same episode, bit for bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    /// `Some` reseeds the environment's generator, `None` continues it (Gymnasium's contract).
    pub seed: Option<u64>,
    /// Where to start.
    #[serde(default)]
    pub options: ResetOptions,
}

/// Which observations of a chunk carry images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameRequest {
    /// None: nobody looks.
    None,
    /// The last one of the chunk, where the policy looks again.
    #[default]
    Last,
    /// The last `n` of the chunk, for a policy that sees `n` observations at once. Zero is [`None`](Self::None), and
    /// what is more than the chunk has is [`Every`](Self::Every).
    LastN(usize),
    /// Every one, e.g. for a video or a dataset.
    Every,
}

impl FrameRequest {
    /// Whether the step at `index` of `len` carries images.
    pub fn wants(self, index: usize, len: usize) -> bool {
        match self {
            Self::None => false,
            Self::Last => index + 1 == len,
            Self::LastN(n) => index.saturating_add(n) >= len,
            Self::Every => true,
        }
    }
}

/// The outcome of one action.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The true successor of the action, also when the episode ends with it: a truncated step bootstraps from it.
    pub obs: Observation,
    /// The reward of this step.
    pub reward: f32,
    /// The task ended: nothing follows, no bootstrap.
    pub terminated: bool,
    /// A limit outside the task ended the episode.
    pub truncated: bool,
    /// What else is known.
    pub info: Info,
}

impl Step {
    /// Whether the episode ends with this step, for whichever reason.
    pub fn done(&self) -> bool {
        self.terminated || self.truncated
    }
}

/// The outcome of a chunk: one [`Step`] per action that was executed. Fewer than `T_a` if the episode ended inside.
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkStep {
    /// At least one step; only the last can be [`done`](Step::done).
    pub steps: Vec<Step>,
}

impl ChunkStep {
    /// The last step executed.
    ///
    /// # Panics
    /// If `steps` is empty, which no environment returns.
    pub fn last(&self) -> &Step {
        self.steps.last().expect("a chunk executes at least one step")
    }
}

/// One environment (Gymnasium 1.x semantics: `terminated` and `truncated` apart, no automatic reset).
pub trait Env: Send {
    /// What this environment is.
    fn spec(&self) -> &EnvSpec;

    /// Begins an episode and returns its first observation, always with images if the environment has cameras.
    ///
    /// # Errors
    /// [`EnvError::Config`] for a task or state that does not exist; any fault of the simulator.
    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError>;

    /// Executes one action `[D]`. With `frames = false` the observation's `images` stay empty and nothing is rendered;
    /// everything else is bit for bit the same.
    ///
    /// # Errors
    /// [`EnvError::InvalidAction`], [`EnvError::NeedsReset`], or any fault of the simulator.
    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError>;

    /// Executes a chunk open loop and stops at the end of the episode.
    ///
    /// An episode that terminates before the chunk's last action, which nobody can foresee, may return its final step
    /// without images under [`FrameRequest::Last`] and [`FrameRequest::LastN`].
    ///
    /// # Errors
    /// As [`step`](Self::step).
    fn step_chunk(
        &mut self,
        chunk: &ActionChunk,
        frames: FrameRequest,
    ) -> Result<ChunkStep, EnvError> {
        let mut steps = Vec::with_capacity(chunk.len());
        for (i, action) in chunk.actions().enumerate() {
            let step = self.step(action, frames.wants(i, chunk.len()))?;
            let done = step.done();
            steps.push(step);
            if done {
                break;
            }
        }
        Ok(ChunkStep { steps })
    }

    /// A frame for people (videos), any size; `None` where there is nothing to see.
    ///
    /// # Errors
    /// Any fault of the simulator.
    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        Ok(None)
    }

    /// Resident memory of the process that holds this environment, bytes; `None` when it lives in this process.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }
}

impl<E: Env + ?Sized> Env for Box<E> {
    fn spec(&self) -> &EnvSpec {
        (**self).spec()
    }
    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        (**self).reset(seed, options)
    }
    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        (**self).step(action, frames)
    }
    fn step_chunk(
        &mut self,
        chunk: &ActionChunk,
        frames: FrameRequest,
    ) -> Result<ChunkStep, EnvError> {
        (**self).step_chunk(chunk, frames)
    }
    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        (**self).render()
    }
    fn memory_bytes(&self) -> Option<u64> {
        (**self).memory_bytes()
    }
}
