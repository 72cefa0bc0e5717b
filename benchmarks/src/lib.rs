//! Protocols, ledger, statistics and reports: success rates that can be trusted.
//!
//! | module | what it owns |
//! |---|---|
//! | [`suites`] | what is run: tasks, episodes, environments and policies of a suite |
//! | [`protocol`] | versioned numbers, a source beside each |
//! | [`assets`] | LIBERO's meshes and textures from the hub |
//! | [`runner`] | running it: workers, progress, ledger, resume |
//! | [`ledger`] | each (task, trial) exactly once, on disk; every number is recomputed from it |
//! | [`stats`] | intervals, tests, sequential monitoring, planning |
//! | [`sequential`] | `--until-decided` |
//! | [`timing`] | seconds per decision |
//! | [`outcome`], [`summary`] | from ledger to numbers; what a report shows, as plain data |
//! | [`videos`], [`video`] | which episodes are filmed afterwards, and how a film is written |
//! | [`report`], [`eval_info`] | `report.html` for people, `eval_info.json` for programs |
//! | [`smoke`] | trains everything that learns for a moment, and asks whether it learned |
//! | [`operator`] | the person beside a robot: keys, live view, consent, verdicts |
//! | [`doctor`] | what is installed, what is wrong, and the line that fixes it |
//! | [`protocol`] | LIBERO's published protocols, a source beside each number |
//! | [`assets`] | LIBERO's meshes and textures from the Hugging Face hub |
//! | [`cpu`] | CPU time of this process and its children |
//! | [`cli`] | the command line of `bench` |

mod error;

pub mod assets;
pub mod cli;
pub mod doctor;
pub mod eval_info;
pub mod ledger;
pub mod operator;
pub mod outcome;
pub mod progress;
pub mod protocol;
pub mod report;
pub mod runner;
pub mod sequential;
pub mod smoke;
pub mod suites;
pub mod summary;
pub mod timing;
pub mod videos;

pub use error::BenchError;
pub use simloop_trainers::{cpu, stats, video};
