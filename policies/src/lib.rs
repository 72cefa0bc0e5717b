//! Observation in, action chunk out.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Policy`], [`ActRequest`], [`PolicyStep`] | acting, batched over environments |
//! | [`Expert`], [`ExpertPolicy`] | labelling any state from the simulator's true state |
//! | [`RandomPolicy`] | the floor of every benchmark |
//! | [`scripted`] | experts for PushT and LIBERO |
//! | [`device`] | libtorch: its version, and CUDA when the machine has it |
//!
//! The shape legend is in `simloop_envs`.

mod error;
mod expert;
mod policy;
mod random;

pub mod device;
pub mod scripted;

pub use error::PolicyError;
pub use expert::{Expert, ExpertPolicy};
pub use policy::{ActMode, ActRequest, ActStats, Needs, Policy, PolicyStep};
pub use random::RandomPolicy;
