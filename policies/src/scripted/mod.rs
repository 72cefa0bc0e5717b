//! Experts that act from the simulator's true state.

pub mod libero;

pub use libero::LiberoExpert;
