//! What to learn from: trajectories, returns and advantages.
//!
//! No environment is stepped here, no thread started, no clock read.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Trajectory`], [`Transition`] | an episode as learners see it, one transition per decision |
//! | [`advantage`] | generalised and group-relative advantage estimation, as pure functions |

mod error;
mod trajectory;

pub mod advantage;

pub use error::AlgoError;
pub use trajectory::{Trajectory, Transition};
