//! Encoders: one modality in, tokens out.
//!
//! | module | what |
//! |---|---|
//! | [`cameras`] | images of several cameras over time, by one network or one each |
//! | [`cnn`] | a small convolutional network |
//! | [`resnet`] | ResNet-18 with group normalisation |
//! | [`vit`] | a vision transformer |
//! | [`siglip`] | SigLIP's tower, from scratch or published |
//! | [`pool`] | feature maps to tokens |

pub mod cameras;
pub mod cnn;
pub mod config;
pub mod pool;
pub mod resnet;
pub mod siglip;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
pub mod vit;

use std::sync::Arc;

use tch::Tensor;

use crate::PolicyError;

pub use cameras::{Camera, CameraEncoder};
pub use config::VisionConfig;
pub use state::StateConfig;

/// Normalised inputs of one forward pass.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Camera to `[B, T_o, 3, H, W]` f32 in `[0, 1]`.
    pub images: &'a std::collections::BTreeMap<String, Tensor>,
    /// `[B, T_o, P]` f32, normalised.
    pub proprio: &'a Tensor,
    /// `B` instructions.
    pub instructions: &'a [Arc<str>],
}

/// One modality in, tokens `[B, N, W]` out. `N` and `W` are fixed when it is built.
pub trait Encoder {
    /// `N`.
    fn tokens(&self) -> i64;
    /// `W`.
    fn width(&self) -> i64;
    /// In how many time steps the tokens are, time first: token `t * N / steps + i` belongs to step `t`. 1 if they are
    /// not in time (an instruction, or all steps in one token).
    fn steps(&self) -> i64 {
        1
    }
    /// `[B, N, W]`.
    ///
    /// # Errors
    /// [`PolicyError::Missing`] for an input that is not there.
    fn encode(&self, inputs: &Inputs<'_>) -> Result<Tensor, PolicyError>;
}
