//! Many environments behind `send` and `recv` (after `EnvPool`, Weng et al. 2022).
//!
//! | form | where envs live | for |
//! |---|---|---|
//! | [`SyncVecEnv`] | the caller's thread | debugging, tiny jobs |
//! | [`ThreadedVecEnv`] | worker threads, several envs each | fast in-process simulators |
//! | [`ThreadedVecEnv`] over [`bridge`](crate::bridge) envs | child processes, one thread each to wait on them | LIBERO, anything that can crash |
//!
//! A fault of one environment is that environment's reply; the others go on, and the faulty one is built anew at its next
//! reset.

mod slot;
mod sync;
mod threaded;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use sync::SyncVecEnv;
pub use threaded::ThreadedVecEnv;

use crate::{
    ActionChunk, ChunkStep, Env, EnvError, EnvSpec, Frame, FrameRequest, Info, Observation,
    ResetRequest,
};

/// An environment's place in a [`VecEnv`], `0..num_envs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EnvId(pub usize);

impl fmt::Display for EnvId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "env {}", self.0)
    }
}

/// Builds the environment of one place. Called on the thread where the environment will live (GL contexts do not move).
pub type EnvFactory = Arc<dyn Fn(EnvId) -> Result<Box<dyn Env>, EnvError> + Send + Sync>;

/// One answer per environment; one env's fault leaves the others usable.
pub type PerEnv<T> = Vec<(EnvId, Result<T, EnvError>)>;

/// What one environment is asked to do.
#[derive(Clone, Debug)]
pub enum Request {
    /// Begin an episode.
    Reset(ResetRequest),
    /// Execute a chunk.
    Step(ActionChunk, FrameRequest),
    /// Draw a frame for people.
    Render,
    /// Give the environment up; the next reset builds a fresh one (recycling).
    Recycle,
}

/// What one environment answers.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To [`Request::Reset`].
    Reset {
        /// The first observation.
        obs: Observation,
        /// What else is known of it.
        info: Info,
        /// Resident memory of the environment's own process after the reset, bytes.
        memory_bytes: Option<u64>,
    },
    /// To [`Request::Step`].
    Step(ChunkStep),
    /// To [`Request::Render`].
    Frame(Option<Frame>),
    /// To [`Request::Recycle`].
    Recycled,
}

/// Many environments of one kind.
pub trait VecEnv {
    /// N.
    fn num_envs(&self) -> usize;

    /// What each of them is, as soon as one has been built.
    ///
    /// # Errors
    /// The factory's error if none can be built.
    fn spec(&mut self) -> Result<EnvSpec, EnvError>;

    /// Hands out work; each environment may have one request under way. Blocks only when queues are full.
    ///
    /// # Errors
    /// [`EnvError::Config`] for an unknown env or one whose last reply has not been received;
    /// [`EnvError::Disconnected`] if the workers are gone.
    fn send(&mut self, requests: Vec<(EnvId, Request)>) -> Result<(), EnvError>;

    /// Waits until at least `min_ready` replies are there (at most as many as are under way) and returns all that are,
    /// sorted by [`EnvId`].
    fn recv(&mut self, min_ready: usize) -> PerEnv<Reply>;

    /// How many requests are under way.
    fn in_flight(&self) -> usize;
}

fn busy(id: EnvId) -> EnvError {
    EnvError::Config { detail: format!("{id} has a request under way; receive its reply first") }
}

fn unknown(id: EnvId) -> EnvError {
    EnvError::Config { detail: format!("{id} does not exist") }
}
