//! The safety gate in front of every command: fail closed.
//!
//! | module | what it owns |
//! |---|---|
//! | `limits` | [`Limits`] and the [`Workspace`], which has no default |
//! | `gate` | [`Gate`]: what a command may be now, and why it was changed or refused |
//! | `envelope` | one axis' admissible displacement: step, speed, acceleration, room to brake |
//! | `watchdog` | [`Watchdog`]: holds when policy or link stall |
//! | `gated` | [`GatedArm`]: the only way to an arm |
//!
//! # What holding means
//!
//! `widowx_env_service` has no stop, no heartbeat and no watchdog: a robot that is told nothing goes to its last goal and
//! stays. Holding is therefore to send nothing. The last goal is at most one step away from the one before (5 cm, 0.25 rad),
//! plus what the arm lags behind.

mod envelope;
mod gate;
mod gated;
mod limits;
mod watchdog;

pub use gate::{Change, Event, Gate, GateState, Refusal, Verdict};
pub use gated::{GatedArm, Stepped};
pub use limits::{Limits, Workspace};
pub use watchdog::Watchdog;
