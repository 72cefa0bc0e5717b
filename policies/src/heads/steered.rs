//! A trained flow, steered by its noise: DSRL (Wagenmaker et al. 2025, arXiv 2506.15799).
//!
//! A flow maps a noise to a chunk, and a good chunk is often one of those that it can make. So the flow stays as
//! behaviour cloning left it, and what learns is from which noise it starts: a normal distribution that depends on what is
//! seen, and that begins as the standard normal one, so that nothing changes until something is learned. What is explored
//! are chunks that the demonstrations hold, and no gradient runs through the denoising steps.
//!
//! # Details
//! 1. The paper learns the noise off-policy by SAC; here any learner of a [`StochasticHead`] does, PPO and GRPO among them.
//! 2. Acting draws the noise from the learned distribution, also when it is judged: a flow has no mean to act by.
//! 3. Imitation trains the flow alone.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::flow::{FlowConfig, FlowHead};
use super::gaussian::{Gaussian, GaussianConfig, GaussianHead, StdBound};
use super::{Drawn, Head, HeadShape, StochasticHead};
use crate::fusion::Context;
use crate::nn::{Activation, Scope, expect_shape};
use crate::{ActMode, Density, NoiseStream, PolicyError};

/// Settings of a [`SteeredHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SteeredConfig {
    /// The flow, as it was trained.
    pub flow: FlowConfig,
    /// Widths of the hidden layers of what chooses the noise.
    pub hidden: Vec<i64>,
    /// Between them.
    pub activation: Activation,
}

impl Default for SteeredConfig {
    fn default() -> Self {
        Self { flow: FlowConfig::default(), hidden: vec![256, 256], activation: Activation::Silu }
    }
}

/// See the module.
pub struct SteeredHead {
    flow: FlowHead,
    noise: GaussianHead,
    shape: HeadShape,
}

/// Where the parameters of the noise lie below the head's place.
pub(crate) const NOISE: &str = "noise";

impl SteeredHead {
    /// Builds it below `scope`; the flow's parameters have the names that they have in a [`FlowHead`] there.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for numbers out of range.
    pub fn new(
        scope: &Scope,
        config: &SteeredConfig,
        shape: HeadShape,
    ) -> Result<Self, PolicyError> {
        let flow = FlowHead::new(scope, &config.flow, shape)?;
        let gaussian = GaussianConfig {
            hidden: config.hidden.clone(),
            activation: config.activation,
            bound: StdBound::Tanh,
            min_log_std: -3.0,
            max_log_std: 0.5, // noise far outside of what the flow was trained on means nothing to it
            state_dependent_std: false,
            init_std: 1.0,
            squash: false,
            bf16: false,
        };
        let place = scope.sub(NOISE);
        let noise = GaussianHead::new(&place, &gaussian, shape)?;
        let _guard = tch::no_grad_guard();
        for part in ["mean.weight", "mean.bias"] {
            if let Some(tensor) = scope.params().get(&place.name(part)) {
                let _ = tensor.shallow_clone().zero_();
            }
        }
        Ok(Self { flow, noise, shape })
    }

    fn flat(&self, x: &Tensor) -> Tensor {
        x.view([-1, self.shape.chunk_size * self.shape.action_dim])
    }
}

/// Sums over the numbers of each row of a chunk.
fn rows(each: &Tensor) -> Tensor {
    each.sum_dim_intlist(-1, false, Kind::Float)
}

impl Head for SteeredHead {
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        self.flow.loss(context, actions, valid, noise)
    }

    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        Ok(self.explore(context, noise, mode)?.chunk)
    }

    fn stochastic(&self) -> Option<&dyn StochasticHead> {
        Some(self)
    }

    fn set_explore_std(&mut self, std: f64) {
        self.noise.set_explore_std(std);
    }
}

impl StochasticHead for SteeredHead {
    /// The latent is the noise, `[T_p D]`; a term is one row of it, which all actions share.
    fn explore(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        _mode: ActMode,
    ) -> Result<Drawn, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.shape.expect_streams(context, noise)?;
        let start: Gaussian = self.noise.distribution(context)?;
        let x = start.sample(noise);
        let log_prob = rows(&start.log_prob(&x));
        Ok(Drawn { latent: self.flat(&x), chunk: self.flow.integrate(context, x)?, log_prob })
    }

    fn density(&self, context: &Context, latent: &Tensor) -> Result<Density, PolicyError> {
        let (t, d) = (self.shape.chunk_size, self.shape.action_dim);
        expect_shape("latent", latent, &[context.pooled.size()[0], t * d])?;
        let start = self.noise.distribution(context)?;
        let x = latent.view([-1, t, d]);
        Ok(Density { log_prob: rows(&start.log_prob(&x)), entropy: rows(&start.entropy()) })
    }

    fn term_rows(&self) -> Vec<Option<usize>> {
        vec![None; self.shape.chunk_size as usize]
    }
}
