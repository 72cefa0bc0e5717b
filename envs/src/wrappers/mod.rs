//! The few wrappers there are; each adds its name to [`EnvSpec::wrappers`](crate::EnvSpec::wrappers).

mod fault;
mod time_limit;
mod true_state;

pub use fault::{FaultInjector, FaultKind, FaultPlan};
pub use time_limit::TimeLimit;
pub use true_state::TrueState;
