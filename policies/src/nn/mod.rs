//! What networks are made of.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Params`], [`Scope`], [`Init`] | named parameters with initial values of their own |
//! | [`attention`], [`rope`] | what published transformers share |
//! | [`checkpoint`] | blocks computed again in the backward pass |
//! | [`layers`] | linear, convolutions, norms, embedding |
//! | [`lora`] | low-rank adapters in peft's names |
//! | [`Mlp`], [`Tape`] | linear layers in a row; gradients of whole networks at once |
//! | [`noise_schedule`] | DDPM, DDIM, flow-matching paths |
//! | [`transformer`] | attention and the layers around it |
//! | [`unet1d`] | Diffusion Policy's U-Net over a chunk |
//! | [`expect_shape`] | the check at a module's border |

pub mod attention;
pub mod checkpoint;
mod dense;
pub mod layers;
pub mod lora;
mod mlp;
pub mod noise_schedule;
mod params;
pub mod rope;
mod runtime;
mod shape;
pub(crate) mod tape;
pub mod transformer;
pub mod unet1d;

pub use layers::{
    Activation, Conv1d, Conv2d, ConvTranspose1d, Embedding, GroupNorm, LayerNorm, Linear, RmsNorm,
};
pub use mlp::{Mlp, MlpOptions};
pub use noise_schedule::{NoiseSchedule, NoiseScheduleConfig, Prediction};
pub use params::{Init, Params, Scope};
pub use shape::{ANY, expect_shape};
pub use tape::{Loss, Tape, without_gradients};
pub use transformer::{Attention, DecoderLayer, EncoderLayer, TransformerConfig};
pub use unet1d::{Unet1d, Unet1dConfig};
