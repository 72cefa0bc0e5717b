//! Language: decoders of published checkpoints, tokenisers, encoders of instructions.

mod decoder_config;
pub mod qwen2;

pub use decoder_config::DecoderConfig;
pub use qwen2::{Cache, Qwen2};
