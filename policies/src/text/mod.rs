//! Language: decoders of published checkpoints, tokenisers, encoders of instructions.

mod decoder_config;
pub mod qwen2;
mod tokenizer;

pub use decoder_config::DecoderConfig;
pub use qwen2::{Cache, Qwen2};
pub use tokenizer::Tokenizer;
