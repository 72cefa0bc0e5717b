//! Encoders: one modality in, tokens out.

use std::sync::Arc;

use tch::Tensor;

use crate::PolicyError;

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
    /// `[B, N, W]`.
    ///
    /// # Errors
    /// [`PolicyError::Missing`] for an input that is not there.
    fn encode(&self, inputs: &Inputs<'_>) -> Result<Tensor, PolicyError>;
}
