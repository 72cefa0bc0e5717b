//! The observers of a run.
//!
//! | module | what it writes |
//! |---|---|
//! | [`ProgressBar`] | a bar on a terminal, plain lines elsewhere |
//! | [`MetricsFile`] | `metrics.jsonl`, `predictions.jsonl` |
//! | [`TensorBoard`] | `tb/events.out.tfevents.*`: scalars and trajectory images |
//! | [`Report`] | `report.html`: curves and trajectories in one file |

mod bar;
mod jsonl;
mod plot;
mod report;
mod tensorboard;

pub use bar::ProgressBar;
pub use jsonl::MetricsFile;
pub use report::Report;
pub use tensorboard::TensorBoard;
