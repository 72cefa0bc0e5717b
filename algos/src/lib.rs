//! What to learn from: trajectories, returns and advantages.
//!
//! No environment is stepped here, no thread started, no clock read.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Trajectory`], [`Transition`] | an episode as learners see it, one transition per decision |
//! | [`bc`] | behaviour cloning |
//! | [`ppo`], [`grpo`] | policy gradients from rollouts; [`policy_gradient`] is what they share |
//! | [`sac`], [`replay`] | off-policy learning from chunks, and what it remembers |
//! | [`dagger`] | who acts and what is labelled when an expert teaches the learner's states |
//! | [`Learner`], [`OnPolicy`], [`LearnerState`] | what the loops ask of them; what every learner keeps for later |
//! | [`ActionError`] | distance between predicted and demonstrated chunks |
//! | [`loss`] | masked means; clipped surrogate, value, divergence, soft actor-critic, as pure functions |
//! | [`advantage`] | generalised and group-relative advantage estimation, as pure functions |

mod action_error;
mod error;
mod learner;
mod trajectory;

pub mod advantage;
pub mod bc;
pub mod dagger;
pub mod grpo;
pub mod loss;
pub mod policy_gradient;
pub mod ppo;
pub mod replay;
pub mod sac;

pub use action_error::ActionError;
pub use bc::{Bc, BcConfig};
pub use error::AlgoError;
pub use grpo::{Grpo, GrpoConfig};
pub use learner::{Learner, LearnerState, Metrics, OnPolicy, Update};
pub use ppo::{Ppo, PpoConfig};
pub use sac::{Sac, SacConfig};
pub use trajectory::{Trajectory, Transition};
