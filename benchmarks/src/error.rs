//! What can go wrong in a benchmark.

use std::path::{Path, PathBuf};

use simloop_envs::EnvError;
use simloop_policies::PolicyError;
use simloop_trainers::TrainerError;
use thiserror::Error;

use crate::stats::StatsError;

/// A benchmark's failure.
#[non_exhaustive]
#[derive(Debug, Error)]
pub enum BenchError {
    /// The request cannot be carried out as asked: exit code 2.
    #[error("{detail}")]
    Usage {
        /// What is wrong and what would be right.
        detail: String,
    },
    /// A result folder cannot be read or written.
    #[error("use {}: {detail}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong and the remedy.
        detail: String,
    },
    /// The environment cannot be used.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A statistic was asked with numbers that cannot be.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The run stopped.
    #[error(transparent)]
    Run(#[from] TrainerError),
}

impl BenchError {
    /// A wrong request.
    pub fn usage(detail: impl Into<String>) -> Self {
        Self::Usage { detail: detail.into() }
    }

    /// A folder that cannot be used, and why.
    pub fn folder(path: &Path, detail: impl Into<String>) -> Self {
        Self::Folder { path: path.to_owned(), detail: detail.into() }
    }

    /// An operating-system error on a path.
    pub fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Folder { path: path.to_owned(), detail: error.to_string() }
    }

    /// The exit code: 2 where the run could not be carried out as asked, 1 where it ran and failed.
    pub fn exit_code(&self) -> u8 {
        let permanent = |e: &EnvError| e.is_permanent() || matches!(e, EnvError::Spawn { .. });
        let as_asked = match self {
            Self::Usage { .. } | Self::Folder { .. } | Self::Policy(_) | Self::Stats(_) => false,
            Self::Env(error) | Self::Run(TrainerError::Env(error)) => !permanent(error),
            Self::Run(TrainerError::Policy(error)) => {
                !matches!(error, PolicyError::UnsupportedTask { .. } | PolicyError::Config { .. })
            }
            Self::Run(_) => true,
        };
        if as_asked { 1 } else { 2 }
    }
}
