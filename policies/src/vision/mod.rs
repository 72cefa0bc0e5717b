//! Vision towers of published checkpoints.

pub mod siglip;

pub use siglip::{SiglipConfig, SiglipOutput, SiglipVision};
