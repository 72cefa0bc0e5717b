//! Fusion: the tokens of all modalities in, one context out.
//!
//! | module | how |
//! |---|---|
//! | [`flat`] | flatten and concatenate |
//! | [`mod@concat`] | one sequence, self-attention, a readout token |
//! | [`cross_attention`] | query tokens read all others |
//! | [`perceiver`] | learned latents read and think, several times |
//! | [`hierarchical`] | within a time step, then across time |
//! | [`gated`] | one vector per modality, weighed by gates |

pub mod concat;
pub mod config;
pub mod cross_attention;
pub mod flat;
pub mod gated;
pub mod hierarchical;
pub mod perceiver;
mod project;
#[cfg(test)]
pub(crate) mod testing;

use tch::Tensor;

use crate::PolicyError;
use crate::encoders::Encoder;
use crate::nn::{ANY, expect_shape};

pub use config::FusionConfig;

/// The shape of one modality's tokens, `[B, tokens, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modality {
    /// `N`.
    pub tokens: i64,
    /// `W`.
    pub width: i64,
    /// See [`Encoder::steps`].
    pub steps: i64,
}

impl Modality {
    /// What an encoder gives.
    pub fn of(encoder: &dyn Encoder) -> Self {
        Self { tokens: encoder.tokens(), width: encoder.width(), steps: encoder.steps() }
    }
}

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

/// Checks that there is one `[B, N_i, W_i]` per modality, all of one `B`.
fn expect_modalities(expected: &[Modality], got: &[Tensor]) -> Result<(), PolicyError> {
    if expected.len() != got.len() || got.is_empty() {
        return Err(PolicyError::Config {
            detail: format!(
                "fuse {} modalities: the model was built for {}",
                got.len(),
                expected.len()
            ),
        });
    }
    let batch = got[0].size().first().copied().unwrap_or(ANY);
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        expect_shape(&format!("modality {i}"), g, &[batch, e.tokens, e.width])?;
    }
    Ok(())
}

/// Refuses an empty list and sizes below one.
fn expect_some(modalities: &[Modality]) -> Result<(), PolicyError> {
    if modalities.is_empty() || modalities.iter().any(|m| m.tokens < 1 || m.width < 1) {
        return Err(PolicyError::Config {
            detail: format!(
                "build a fusion of {modalities:?}: at least one modality, each with tokens, is needed"
            ),
        });
    }
    Ok(())
}
