//! Samples: a window of observations and the chunk of actions that followed.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, Array3, Array5};
use simloop_envs::{ActionChunk, Observation};

use super::DataError;

/// One sample.
#[derive(Clone, Debug)]
pub struct DemoSample {
    /// `T_o` observations, oldest first; before the start of an episode the first one is repeated.
    pub obs: Vec<Observation>,
    /// `[T_p, D]`; the first row is the action taken on `obs[0]` of the window's first *step* (diffusion_policy's
    /// alignment, see `window.rs`).
    pub chunk: ActionChunk,
    /// Whether each action is real; false past the end of the episode. `[T_p]`.
    pub valid: Vec<bool>,
    /// The episode it comes from, and the step of its newest observation.
    pub episode: usize,
    /// The step of its newest observation.
    pub step: usize,
}

/// Samples by index. `get` may be called from several threads.
pub trait Dataset: Send + Sync {
    /// How many.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sample `index`.
    ///
    /// # Errors
    /// [`DataError`] naming the file and the episode.
    fn get(&self, index: usize) -> Result<DemoSample, DataError>;
}

/// `B` samples as arrays, ready to become tensors on the learner's thread.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoBatch {
    /// Camera to `[B, T_o, H, W, 3]` u8.
    pub images: BTreeMap<String, Array5<u8>>,
    /// `[B, T_o, P]`.
    pub proprio: Array3<f32>,
    /// `B` instructions.
    pub instructions: Vec<Arc<str>>,
    /// `[B, T_p, D]`.
    pub actions: Array3<f32>,
    /// `[B, T_p]`, 1 where the action is real.
    pub valid: Array2<f32>,
}
