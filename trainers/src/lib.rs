//! The loops that run policies in environments; owns threads and files.
//!
//! | module | what it owns |
//! |---|---|
//! | [`mod@evaluate`] | the evaluation loop: every episode once, faults retried, results a function of the seed alone |
//! | [`cli`] | command lines |
//! | [`data`] | demonstrations: readers, windows, loaders |
//! | [`parity`] | models against recorded numbers of their references |
//! | [`EpisodeRecord`] | what is kept of an episode |
//! | [`stop`] | Ctrl-C and SIGTERM as a flag that loops look at |

pub mod cli;
pub mod data;
mod error;
pub mod evaluate;
pub mod parity;
mod record;
pub mod stop;

pub use error::TrainerError;
pub use evaluate::{Episode, EvaluateOptions, evaluate};
pub use record::{EpisodeRecord, FaultNote, MetricRange, Status, TraceHash};
