//! Experts that act from the simulator's true state.

pub mod libero;
mod pusht;

pub use libero::LiberoExpert;
pub use pusht::PushtExpert;
