//! What to learn from: trajectories, returns and advantages.
//!
//! No environment is stepped here, no thread started, no clock read.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Trajectory`], [`Transition`] | an episode as learners see it, one transition per decision |
//! | [`bc`] | behaviour cloning |
//! | [`ActionError`] | distance between predicted and demonstrated chunks |
//! | [`loss`] | masked means; clipped surrogate, value, divergence, soft actor-critic, as pure functions |
//! | [`advantage`] | generalised and group-relative advantage estimation, as pure functions |

mod action_error;
mod error;
mod trajectory;

pub mod advantage;
pub mod bc;
pub mod loss;

pub use action_error::ActionError;
pub use bc::{Bc, BcConfig};
pub use error::AlgoError;
pub use trajectory::{Trajectory, Transition};
