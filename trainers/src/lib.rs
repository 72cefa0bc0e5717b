//! The loops that run policies in environments; owns threads and files.
//!
//! | module | what it owns |
//! |---|---|
//! | [`mod@evaluate`] | the evaluation loop: every episode once, faults retried, results a function of the seed alone |
//! | [`data`] | demonstrations: readers, windows, loaders |
//! | [`EpisodeRecord`] | what is kept of an episode |
//! | [`stop`] | Ctrl-C and SIGTERM as a flag that loops look at |

pub mod data;
mod error;
pub mod evaluate;
mod record;
pub mod stop;

pub use error::TrainerError;
pub use evaluate::{Episode, EvaluateOptions, evaluate};
pub use record::{EpisodeRecord, FaultNote, MetricRange, Status, TraceHash};
