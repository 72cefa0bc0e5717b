//! Protocols, ledger, statistics and reports: success rates that can be trusted.
//!
//! | module | what it owns |
//! |---|---|
//! | [`suites`] | what is run: tasks, episodes, environments and policies of a suite |
//! | [`ledger`] | each (task, trial) exactly once, on disk; every number is recomputed from it |
//! | [`stats`] | intervals, tests, sequential monitoring, planning |
//! | [`summary`] | what a report shows, as plain data |
//! | [`report`], [`eval_info`] | `report.html` for people, `eval_info.json` for programs |
//! | [`video`] | MP4 or GIF of an episode, thumbnails |
//! | [`cpu`] | CPU time of this process and its children |

mod error;

pub mod cpu;
pub mod eval_info;
pub mod ledger;
pub mod report;
pub mod stats;
pub mod suites;
pub mod summary;
pub mod video;

pub use error::BenchError;
