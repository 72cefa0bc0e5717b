//! Everything that can go wrong in an environment.

use std::path::PathBuf;

use thiserror::Error;

/// An environment's failure. Messages are fragments that fit after "failed to …".
///
/// [`class`](Self::class) is the short name that ledgers and tables use.
#[non_exhaustive]
#[derive(Clone, Debug, Error)]
pub enum EnvError {
    /// A setting is wrong; trying again cannot help.
    #[error("{detail}")]
    Config {
        /// What is wrong and what would be right.
        detail: String,
    },
    /// Something this environment needs is not installed or not found.
    #[error("find {what}: {remedy}")]
    Unavailable {
        /// The missing thing.
        what: String,
        /// The exact line or step that provides it.
        remedy: String,
    },
    /// An action has the wrong shape or holds a non-finite number.
    #[error("accept the action: {detail}")]
    InvalidAction {
        /// What is wrong with it.
        detail: String,
    },
    /// `step` was called before `reset`, or after a fault.
    #[error("step an environment that has not been reset since {since}")]
    NeedsReset {
        /// `"construction"`, `"its last fault"`, …
        since: &'static str,
    },
    /// A file of the environment is missing or broken.
    #[error("read {}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and the remedy.
        detail: String,
    },
    /// A child process could not be started.
    #[error("start `{program}`: {detail}")]
    Spawn {
        /// The program.
        program: String,
        /// The operating system's answer.
        detail: String,
    },
    /// Both ends speak, but not the same protocol or not the same version.
    #[error("agree with the worker: {detail}")]
    Handshake {
        /// Both sides' magic and versions.
        detail: String,
    },
    /// A worker did not answer in time; it was killed.
    #[error(
        "get an answer to `{op}` within {timeout_secs} s; the worker was killed{}",
        tail(stderr)
    )]
    Deadline {
        /// The operation that was asked for.
        op: String,
        /// The limit that was missed, seconds.
        timeout_secs: f64,
        /// The end of what the worker wrote to standard error.
        stderr: String,
    },
    /// A worker died.
    #[error("keep the worker alive during `{op}`: {status}{}", tail(stderr))]
    WorkerDied {
        /// The operation that was under way.
        op: String,
        /// Exit status or signal.
        status: String,
        /// The end of what the worker wrote to standard error.
        stderr: String,
    },
    /// A frame on the wire is malformed.
    #[error("decode the worker's frame: {detail}")]
    Protocol {
        /// What is malformed, with sizes.
        detail: String,
    },
    /// The simulator raised an exception or returned an impossible value.
    #[error("run the simulator: {kind}: {message}{}", tail(trace))]
    Simulator {
        /// The exception's class, or the check that failed.
        kind: String,
        /// Its message.
        message: String,
        /// Its trace, if there is one.
        trace: String,
    },
    /// A robot, or the link to it, is not in order: the trial says nothing about the policy.
    #[error("drive the robot: {kind}: {detail}")]
    Robot {
        /// The fault's short name, e.g. `outcome_unknown`.
        kind: &'static str,
        /// What was seen, and what the operator must do.
        detail: String,
    },
    /// In-process code panicked; the environment was dropped.
    #[error("run the environment: it panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// A worker thread or the whole vector has shut down.
    #[error("reach the environment's worker: {detail}")]
    Disconnected {
        /// What is known of the reason.
        detail: String,
    },
}

fn tail(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() { String::new() } else { format!("\n{text}") }
}

impl EnvError {
    /// The short, stable name of the variant, for ledgers and tables.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Config { .. } => "config",
            Self::Unavailable { .. } => "unavailable",
            Self::InvalidAction { .. } => "invalid_action",
            Self::NeedsReset { .. } => "needs_reset",
            Self::File { .. } => "file",
            Self::Spawn { .. } => "spawn",
            Self::Handshake { .. } => "handshake",
            Self::Deadline { .. } => "deadline",
            Self::WorkerDied { .. } => "worker_died",
            Self::Protocol { .. } => "protocol",
            Self::Simulator { .. } => "simulator",
            Self::Robot { kind, .. } => kind,
            Self::Panicked { .. } => "panicked",
            Self::Disconnected { .. } => "disconnected",
        }
    }

    /// Whether the same call can be expected to fail again on a fresh environment: such an error ends the run instead of
    /// being retried episode by episode.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Config { .. }
                | Self::Unavailable { .. }
                | Self::File { .. }
                | Self::Handshake { .. }
                // The person beside a robot ended the run, or another program than the robot server answers.
                | Self::Robot { kind: "quit" | "handshake", .. }
        )
    }
}
