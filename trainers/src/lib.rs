//! The loops that run policies in environments; owns threads and files.
//!
//! | module | what it owns |
//! |---|---|
//! | [`mod@evaluate`] | the evaluation loop: every episode once, faults retried, results a function of the seed alone |
//! | [`data`] | demonstrations: readers, windows, loaders |
//! | [`offline`] | the loop of behaviour cloning |
//! | [`validate`], [`acting`] | how good a model is on held-out episodes, and when it acts |
//! | [`checkpoint`], [`run`] | folders that are whole or not there; a run's folder |
//! | [`observer`], [`observe`] | who watches: bar, metrics file, TensorBoard, report |
//! | [`parity`] | models against recorded numbers of their references |
//! | [`config`], [`build`], [`cli`] | settings, the parts made from them, the program `train` |
//! | [`EpisodeRecord`] | what is kept of an episode |
//! | [`stop`] | Ctrl-C and SIGTERM as a flag that loops look at |

mod error;
mod record;

pub mod acting;
pub mod build;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod evaluate;
pub mod observe;
pub mod observer;
pub mod offline;
pub mod parity;
pub mod run;
pub mod stop;
pub mod tensors;
pub mod validate;

pub use error::TrainerError;
pub use evaluate::{Episode, EvaluateOptions, evaluate};
pub use record::{EpisodeRecord, FaultNote, MetricRange, Status, TraceHash};
