//! Learning rules for parameters: AdamW whose whole state can be saved, schedules, moving averages.
//!
//! tch saves no optimizer state, so that a resumed run would start cold; this one resumes bit for bit.
//!
//! | module | what it owns |
//! |---|---|
//! | [`FlatParams`], [`Slot`] | every parameter that learns, in one buffer |
//! | [`AdamW`], [`AdamWConfig`], [`ParamGroup`] | the update, gradient clipping, accumulation |
//! | [`Schedule`] | the learning rate over a run |
//! | [`Ema`], [`EmaConfig`] | a moving average of the parameters |

mod adamw;
mod ema;
mod flat;
mod fused;
mod schedule;

pub use adamw::{AdamW, AdamWConfig, ParamGroup, Step, accumulate_taped, matches};
pub use ema::{Ema, EmaConfig};
pub use flat::{FlatParams, Slot};
pub use schedule::Schedule;
