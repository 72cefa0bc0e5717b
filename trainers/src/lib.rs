//! The loops that run policies in environments; owns threads and files.
//!
//! | module | what it owns |
//! |---|---|
//! | [`mod@evaluate`] | the evaluation loop: every episode once, faults retried, results a function of the seed alone |
//! | [`data`] | demonstrations: readers, windows, loaders |
//! | [`offline`], [`on_policy`], [`off_policy`], [`interactive`] | the loops: behaviour cloning; PPO and GRPO; SAC; DAgger |
//! | [`round`] | what those that act do after every round |
//! | [`rollout`], [`place`] | many environments and one policy that decides in batches; where to act |
//! | [`expert_rollout`], [`labels`] | rollouts in which an expert takes part; what it said |
//! | [`outcome`], [`stats`] | before and after, on common seeds; statistics of success rates |
//! | [`rl_config`], [`rl_build`], [`rl_state`] | settings of a run that learns by acting; its parts; what it keeps to go on |
//! | [`validate`], [`acting`], [`judge`] | how good a model is on held-out episodes, and when it acts; while it goes on learning |
//! | [`checkpoint`], [`run`] | folders that are whole or not there; a run's folder |
//! | [`observer`], [`observe`] | who watches: bar, metrics file, TensorBoard, report |
//! | [`video`] | how a film of an episode is written |
//! | [`parity`] | models against recorded numbers of their references |
//! | [`config`], [`build`], [`cli`] | settings, the parts made from them, the program `train` |
//! | `serve` | a policy over the network: openpi's websocket form, OpenVLA's REST form (feature `serve`) |
//! | [`EpisodeRecord`] | what is kept of an episode |
//! | [`cpu`] | CPU time of this process and its children |
//! | [`stop`] | Ctrl-C and SIGTERM as a flag that loops look at |

mod error;
mod heartbeat;
mod record;

pub mod acting;
pub mod build;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod cpu;
pub mod data;
pub mod evaluate;
pub mod expert_rollout;
pub mod interactive;
pub mod judge;
pub mod labels;
pub mod observe;
pub mod observer;
pub mod off_policy;
pub mod offline;
pub mod on_policy;
pub mod outcome;
pub mod parity;
pub mod place;
pub mod rl_build;
pub mod rl_config;
pub mod rl_state;
pub mod rollout;
pub mod round;
pub mod run;
#[cfg(feature = "serve")]
pub mod serve;
pub mod stats;
pub mod stop;
pub mod tensors;
pub mod validate;
pub mod video;

pub use error::TrainerError;
pub use evaluate::{Episode, EvaluateOptions, evaluate};
pub use record::{EpisodeRecord, FaultNote, MetricRange, Status, TraceHash};
