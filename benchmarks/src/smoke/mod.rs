//! `bench smoke`: does everything that learns still learn? Demonstrations, cloning, PPO, SAC, GRPO, DAgger, evaluation and
//! resuming, end to end through the programs themselves, on PushT with short episodes, within a minute on two cores.
//!
//! # Details
//! 1. The programs `data` and `train` are run as a user runs them, from the folder that holds `bench`, with the settings in
//!    `benchmarks/smoke/`. Two of them run at a time, one thread each ([`plan`]).
//! 2. Every algorithm is judged by its policy before and after, deterministic, on common seeds that nothing learned from
//!    ([`judge`]): success where it is not too rare, the largest coverage of an episode elsewhere, said in [`plan::STAGES`]
//!    and not chosen by the result. An exact paired test must give p < 0.05 in the right direction.
//! 3. Everything is a function of the seeds in the settings: a pass or a failure repeats.
//! 4. Resuming is judged by bytes: a PPO run that was stopped half-way must end in the weights of one that was not.

pub mod judge;
pub mod plan;
pub mod run;

pub use judge::{Change, Measure};
pub use run::{SmokeOptions, SmokeReport, smoke};
