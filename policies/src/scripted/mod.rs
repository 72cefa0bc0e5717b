//! Experts that act from the simulator's true state.
