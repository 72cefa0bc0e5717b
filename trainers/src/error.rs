//! What can stop a run.

use simloop_envs::EnvError;
use simloop_policies::PolicyError;
use thiserror::Error;

use crate::data::DataError;

/// A run's failure. A single episode's fault is not one: it is in that episode's record.
#[non_exhaustive]
#[derive(Debug, Error)]
pub enum TrainerError {
    /// The environment cannot work as configured; no retry can help.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The policy cannot act.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Whoever receives the records failed.
    #[error("store an episode record: {detail}")]
    Sink {
        /// The receiver's error.
        detail: String,
    },
}
