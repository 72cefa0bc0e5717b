//! What can stop a run.

use std::path::{Path, PathBuf};

use simloop_algos::AlgoError;
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
    /// The policy cannot act or be built.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The algorithm cannot learn from what it was given.
    #[error(transparent)]
    Algo(#[from] AlgoError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Whoever receives the records failed.
    #[error("store an episode record: {detail}")]
    Sink {
        /// The receiver's error.
        detail: String,
    },
    /// A setting is wrong, or does not fit what is there.
    #[error("{detail}")]
    Config {
        /// What is wrong, and the remedy.
        detail: String,
    },
    /// The operating system refused.
    #[error("{action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A checkpoint cannot be written, or is damaged.
    #[error("use the checkpoint `{}`: {detail}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Learning broke down.
    #[error("go on training: {detail}")]
    Diverged {
        /// What was not finite, and how often.
        detail: String,
    },
}

impl TrainerError {
    /// A wrong setting.
    pub fn config(detail: impl Into<String>) -> Self {
        Self::Config { detail: detail.into() }
    }

    /// A checkpoint that cannot be used.
    pub fn checkpoint(path: &Path, detail: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_owned(), detail: detail.into() }
    }

    /// `dropped` updates in a row were dropped, the last one because of `tensor`; `suspect` is what to look at.
    pub fn diverged(dropped: u32, tensor: &str, suspect: &str) -> Self {
        Self::Diverged {
            detail: format!(
                "{dropped} updates in a row had to be dropped, the last one because {tensor} is not finite; lower the \
                 learning rate or look at the {suspect}"
            ),
        }
    }

    /// For `map_err` on file operations.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// 2 for what could not begin as asked, 1 for what began and failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Policy(PolicyError::NonFinite { .. })
            | Self::Sink { .. }
            | Self::Io { .. }
            | Self::Checkpoint { .. }
            | Self::Diverged { .. } => 1,
            Self::Config { .. }
            | Self::Data(_)
            | Self::Env(_)
            | Self::Policy(_)
            | Self::Algo(_) => 2,
        }
    }
}
