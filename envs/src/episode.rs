//! How an episode ends, as a type.

use serde::{Deserialize, Serialize};

/// Why an episode stopped.
///
/// The distinction decides learning and counting: a terminated step never bootstraps, a truncated or cut one does; a
/// fault is neither trained on nor counted as a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EpisodeEnd {
    /// The task itself ended (success, or a state from which nothing follows).
    Terminated,
    /// A limit outside the task ended it (time limit).
    Truncated,
    /// The caller's budget ran out in the middle.
    Cut,
    /// The simulator failed; `detail` is the error's text.
    Fault {
        /// The error, as text.
        detail: String,
    },
}
