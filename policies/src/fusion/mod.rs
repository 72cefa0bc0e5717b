//! Fusion: the tokens of all modalities in, one context out.

use tch::Tensor;

use crate::PolicyError;

/// What a head is conditioned on.
#[derive(Debug)]
pub struct Context {
    /// One vector per sample, `[B, C]`.
    pub pooled: Tensor,
    /// All tokens, `[B, N, W]`, for heads that attend.
    pub tokens: Tensor,
}

/// The tokens of all modalities in, one [`Context`] out.
pub trait Fusion {
    /// `C`, the width of [`Context::pooled`].
    fn pooled_width(&self) -> i64;
    /// `W`, the width of [`Context::tokens`].
    fn token_width(&self) -> i64;
    /// Fuses one `[B, N_i, W_i]` per modality, in the order in which the modalities were given at construction.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn fuse(&self, modalities: &[Tensor]) -> Result<Context, PolicyError>;
}
