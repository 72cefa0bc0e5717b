//! What networks are made of.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Params`], [`Scope`], [`Init`] | named parameters with initial values of their own |
//! | [`transformer`] | attention and pre-norm blocks for parts trained from scratch |
//! | [`layers`] | linear, convolutions, norms, embedding |

pub mod layers;
mod params;
pub mod transformer;

pub use layers::{
    Activation, Conv1d, Conv2d, ConvTranspose1d, Embedding, GroupNorm, LayerNorm, Linear, Mlp,
};
pub use params::{Init, Params, Scope};
