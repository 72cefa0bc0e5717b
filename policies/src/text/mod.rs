//! Language: decoders of published checkpoints, tokenisers, encoders of instructions.

mod decoder_config;
mod encoder;
pub mod qwen2;
mod tokenizer;

pub use decoder_config::DecoderConfig;
pub use encoder::{TextConfig, TextEncoder};
pub use qwen2::{Cache, Qwen2};
pub use tokenizer::Tokenizer;
