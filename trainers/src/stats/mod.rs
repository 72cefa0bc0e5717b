//! Statistics of success rates: intervals, comparisons, anytime-valid monitoring, planning and aggregate scores.
//!
//! Everything is a pure function of counts, outcomes and explicit seeds. Counts enter through [`Rate`],
//! [`PairedTable`] and [`Alpha`], which check them once, so that the formulas behind cannot fail.
//!
//! | module | what it answers |
//! |---|---|
//! | [`proportion`] | how well is one success rate known: Wilson, Clopper-Pearson, Beta posterior, exact coverage |
//! | [`two_sample`] | do two independent rates differ: Newcombe, Fisher, Barnard, Boschloo, P(better) |
//! | [`paired`] | do two policies differ on the same episodes: `McNemar`, mid-p, Bonett-Price, e-value |
//! | [`confidence_sequence`] | intervals that stay valid however often one looks |
//! | [`e_process`] | tests that may stop at any time: paired, two-stream (SAVI), Wald's SPRT |
//! | [`monitor`] | `--until-decided`: one outcome in, continue or a verdict out |
//! | [`compare`] | `bench compare`: differences, per-task table and the verdict in words |
//! | [`planner`] | `bench plan`: episodes needed, unpaired and paired |
//! | [`bootstrap`] | IQM, macro means, profiles, stratified bootstrap |
//! | [`multiplicity`] | Holm, Hommel, Benjamini-Hochberg, compact letters |
//! | [`rank`] | MMRV, Pearson, Spearman, pass@k |
//!
//! All intervals are two-sided at `1 - alpha`. Rates, differences and half-widths are fractions in `[0, 1]`
//! (`[-1, 1]` for differences); only text speaks percent and percentage points.

pub mod bootstrap;
pub mod compare;
pub mod confidence_sequence;
pub mod e_process;
pub mod monitor;
pub mod multiplicity;
pub mod paired;
pub mod planner;
pub mod proportion;
pub mod rank;
pub mod special;
pub mod two_sample;
mod types;

pub use compare::{PairedComparison, TaskRow, TaskTable, UnpairedComparison, Verdict};
pub use monitor::{Decision, Goal, Status, UntilDecided};
pub use paired::PairedTable;
pub use planner::{Plan, PlanRequest};
pub use proportion::{BetaPosterior, Method};
pub use types::{Alpha, Alternative, Interval, Outcomes, Rate, StatsError};
