//! What can be wrong with data.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// A failure to read or write data. Messages name the file, the episode where known, and the remedy.
#[non_exhaustive]
#[derive(Debug, Error)]
pub enum DataError {
    /// The operating system refused.
    #[error("{action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `open`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is damaged or not what it claims to be.
    #[error("read `{}`{}: {detail}", path.display(), episode.map_or(String::new(), |e| format!(", episode {e}")))]
    Broken {
        /// The file.
        path: PathBuf,
        /// The episode, where it is known.
        episode: Option<usize>,
        /// What is wrong, and the remedy.
        detail: String,
    },
    /// The data is fine but this program cannot read it, or a setting does not fit it.
    #[error("{detail}")]
    Unsupported {
        /// What is not supported, and the remedy.
        detail: String,
    },
}

impl DataError {
    /// A damaged file.
    pub fn broken(path: &Path, detail: impl Into<String>) -> Self {
        Self::Broken { path: path.to_owned(), episode: None, detail: detail.into() }
    }

    /// A damaged episode of a file.
    pub fn episode(path: &Path, episode: usize, detail: impl Into<String>) -> Self {
        Self::Broken { path: path.to_owned(), episode: Some(episode), detail: detail.into() }
    }

    /// Something that is not supported.
    pub fn unsupported(detail: impl Into<String>) -> Self {
        Self::Unsupported { detail: detail.into() }
    }

    /// For `map_err` on file operations.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
