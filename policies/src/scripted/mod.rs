//! Experts that act from the simulator's true state.

pub mod libero;
mod pusht;
mod widowx;

pub use libero::LiberoExpert;
pub use pusht::PushtExpert;
pub use widowx::WidowXExpert;
