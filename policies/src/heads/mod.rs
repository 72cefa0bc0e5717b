//! Heads: context in, action chunk out. Everything here is normalised; `vla.rs` handles units.
//!
//! | module | what |
//! |---|---|
//! | [`mlp`] | regression: MSE, smooth L1, L1 |
//! | [`gaussian`] | a normal distribution with bounded deviation |
//! | [`act`] | ACT: transformer chunks with a CVAE |
//! | [`bins`] | every number one of 256 classes |
//! | [`text`] | integers as text, as VLA-0 |
//! | [`diffusion`], [`flow`] | denoising and flow matching |
//! | [`steered`] | a flow whose noise is chosen |
//! | [`denoiser`] | their networks: MLP, U-Net, transformer |
//! | [`decoder`] | a query per action reads the context: the body of `act` and `bins` |

pub mod act;
pub mod bins;
pub mod config;
pub mod decoder;
pub mod denoiser;
pub mod diffusion;
pub mod flow;
pub mod gaussian;
pub mod mlp;
mod normal;
pub mod steered;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;

use tch::Tensor;

use crate::fusion::{Context, Fusion};
use crate::nn::{ANY, expect_shape};
use crate::{ActMode, Density, NoiseStream, PolicyError};

pub use config::HeadConfig;

/// The sizes that a head is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// `C`, the width of [`Context::pooled`].
    pub pooled_width: i64,
    /// `W`, the width of [`Context::tokens`].
    pub token_width: i64,
    /// `T_p`.
    pub chunk_size: i64,
    /// `D`.
    pub action_dim: i64,
}

impl HeadShape {
    /// On top of a fusion.
    pub fn of(fusion: &dyn Fusion, chunk_size: i64, action_dim: i64) -> Self {
        Self {
            pooled_width: fusion.pooled_width(),
            token_width: fusion.token_width(),
            chunk_size,
            action_dim,
        }
    }

    /// Refuses sizes below one.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn validate(&self) -> Result<(), PolicyError> {
        let Self { pooled_width, token_width, chunk_size, action_dim } = *self;
        if pooled_width < 1 || token_width < 1 || chunk_size < 1 || action_dim < 1 {
            return Err(PolicyError::Config {
                detail: format!("build a head of {self:?}: every size must be at least 1"),
            });
        }
        Ok(())
    }

    /// Checks a context's shapes and returns `B`.
    ///
    /// # Errors
    /// [`PolicyError::Shape`].
    pub fn expect_context(&self, context: &Context) -> Result<i64, PolicyError> {
        expect_shape("pooled context", &context.pooled, &[ANY, self.pooled_width])?;
        let b = context.pooled.size()[0];
        expect_shape("context tokens", &context.tokens, &[b, ANY, self.token_width])?;
        Ok(b)
    }

    /// Checks the inputs of [`Head::loss`] and returns `B`.
    ///
    /// # Errors
    /// [`PolicyError::Shape`].
    pub fn expect_batch(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
    ) -> Result<i64, PolicyError> {
        let b = self.expect_context(context)?;
        expect_shape("actions", actions, &[b, self.chunk_size, self.action_dim])?;
        expect_shape("valid", valid, &[b, self.chunk_size])?;
        Ok(b)
    }

    /// Checks the inputs of [`Head::sample`] and returns `B`.
    ///
    /// # Errors
    /// [`PolicyError::Shape`]; [`PolicyError::Config`] unless there is one stream of noise per row.
    pub fn expect_streams(
        &self,
        context: &Context,
        noise: &[NoiseStream],
    ) -> Result<i64, PolicyError> {
        let b = self.expect_context(context)?;
        if noise.len() as i64 != b {
            return Err(PolicyError::Config {
                detail: format!("sample {b} chunks: {} streams of noise were given", noise.len()),
            });
        }
        Ok(b)
    }
}

/// Context in, chunk out.
pub trait Head {
    /// The loss of each action, `[B, T_p]`, averaged over `D`; the caller masks and averages.
    ///
    /// `actions` is `[B, T_p, D]` and normalised; `valid` is `[B, T_p]`. All randomness comes from `noise`.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError>;

    /// A chunk per sample, `[B, T_p, D]`, normalised, without gradient. `noise` holds one stream per row: a row's chunk
    /// must not depend on the others in its batch.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError>;

    /// The head as a distribution, where its chunks have a density.
    fn stochastic(&self) -> Option<&dyn StochasticHead> {
        None
    }

    /// How much a head explores; see
    /// [`VlaPolicy::set_explore_std`](crate::vla::VlaPolicy::set_explore_std).
    fn set_explore_std(&mut self, _std: f64) {}
}

/// What was drawn, without gradient.
#[derive(Debug)]
pub struct Drawn {
    /// `[B, T_p, D]`, normalised.
    pub chunk: Tensor,
    /// What the density is computed from again, `[B, L]`.
    pub latent: Tensor,
    /// Log-density of each term, nats, `[B, K]`.
    pub log_prob: Tensor,
}

/// A head whose chunks have a density, as a product of `K` terms.
pub trait StochasticHead {
    /// A chunk per row; `noise` holds one stream per row. With [`ActMode::Deterministic`] the chunk is the one that
    /// [`Head::sample`] gives.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn explore(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Drawn, PolicyError>;

    /// The density of what was drawn before, with gradient.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn density(&self, context: &Context, latent: &Tensor) -> Result<Density, PolicyError>;

    /// The row of the chunk that each term belongs to; `None` for a term of all rows.
    fn term_rows(&self) -> Vec<Option<usize>>;

    /// The head as independent normal distributions, if it is that: they can be differentiated through their samples.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit; [`PolicyError::Config`] for another head.
    fn gaussian(&self, _context: &Context) -> Result<gaussian::Gaussian, PolicyError> {
        Err(PolicyError::Config {
            detail: "differentiate through a sample: only the `gaussian` head can".to_owned(),
        })
    }
}
