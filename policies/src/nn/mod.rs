//! What networks are made of.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Params`], [`Scope`], [`Init`] | named parameters with initial values of their own |
//! | [`layers`] | linear, convolutions, norms, embedding |
//! | [`noise_schedule`] | DDPM, DDIM, flow-matching paths |
//! | [`unet1d`] | Diffusion Policy's U-Net over a chunk |
//! | [`transformer`] | attention and the layers around it |
//! | [`expect_shape`] | the check at a module's border |

pub mod layers;
pub mod noise_schedule;
mod params;
mod shape;
pub mod transformer;
pub mod unet1d;

pub use layers::{
    Activation, Conv1d, Conv2d, ConvTranspose1d, Embedding, GroupNorm, LayerNorm, Linear, Mlp,
};
pub use noise_schedule::{NoiseSchedule, NoiseScheduleConfig, Prediction};
pub use params::{Init, Params, Scope};
pub use shape::{ANY, expect_shape};
pub use transformer::{Attention, DecoderLayer, EncoderLayer, TransformerConfig};
pub use unet1d::{Unet1d, Unet1dConfig};
