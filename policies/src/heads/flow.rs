//! Flow matching (rectified flow): Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003. As a policy
//! head: π₀, Black et al. 2024, arXiv 2410.24164.
//!
//! # Details
//! 1. `x_t = (1 - t) z + t a` with `z ~ N(0, 1)`: t = 0 is noise, t = 1 the chunk (π₀'s direction; SmolVLA's is reversed).
//! 2. The network predicts the velocity `a - z`; the loss is its squared error.
//! 3. t is drawn from `1 - u^shape`, u uniform: `shape = 1` is uniform, a larger one dwells near the noise.
//! 4. Sampling: `steps` Euler steps from t = 0.
//! 5. Exploring ([`StochasticHead`]): normal noise in every Euler step makes the path a Markov chain with a density, one term
//!    per step, after ReinFlow (Zhang et al. 2025, arXiv 2505.22094, eq. 5); the deviation is
//!    `explore_std · sqrt(1 - k / steps)` for step k instead of a learned network: it falls towards the chunk as the
//!    SDE of Flow-GRPO does (Liu et al. 2025, arXiv 2505.05470, eq. 9), so that the executed actions are little disturbed.
//!    The first point of the path is drawn as for sampling and its density, which has no parameter, left out.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::denoiser::{Denoiser, DenoiserConfig};
use super::gaussian::Gaussian;
use super::{Drawn, Head, HeadShape, StochasticHead};
use crate::fusion::Context;
use crate::nn::{Scope, expect_shape};
use crate::{ActMode, Density, NoiseStream, PolicyError, normal_rows};

/// Deviation of the exploration noise in the first denoising step, normalised units, until a learner sets another.
const EXPLORE_STD: f64 = 0.1; // DPPO (arXiv 2409.00588), its least exploration deviation

/// Settings of a [`FlowHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// The network.
    pub denoiser: DenoiserConfig,
    /// Euler steps when acting.
    pub steps: i64,
    /// How times are drawn when learning: `t = 1 - u^time_shape`.
    pub time_shape: f64,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            denoiser: DenoiserConfig::default(),
            steps: 10, // π₀, appendix B
            time_shape: 1.0,
        }
    }
}

/// A flow-matching head.
pub struct FlowHead {
    net: Box<dyn Denoiser>,
    config: FlowConfig,
    shape: HeadShape,
    explore_std: f64,
}

impl FlowHead {
    /// Builds it below `scope`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for numbers out of range.
    pub fn new(scope: &Scope, config: &FlowConfig, shape: HeadShape) -> Result<Self, PolicyError> {
        if config.steps < 1 || !config.time_shape.is_finite() || config.time_shape <= 0.0 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a flow head with steps = {}, time_shape = {}: both must be positive",
                    config.steps, config.time_shape
                ),
            });
        }
        let net = config.denoiser.build(&scope.sub("net"), shape)?;
        Ok(Self { net, config: config.clone(), shape, explore_std: EXPLORE_STD })
    }

    /// The chunk that the noise `x`, `[B, T_p, D]`, becomes.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    pub(crate) fn integrate(
        &self,
        context: &Context,
        mut x: Tensor,
    ) -> Result<Tensor, PolicyError> {
        let device = x.device();
        for k in 0..self.config.steps {
            let t = k as f64 / self.config.steps as f64;
            let level = Tensor::full([x.size()[0]], t * 100.0, (Kind::Float, device));
            x = &x + self.net.forward(&x, &level, context)? / self.config.steps as f64;
        }
        Ok(x)
    }

    /// Logarithm of the deviation of each step's exploration noise.
    fn log_stds(&self) -> Vec<f32> {
        let steps = self.config.steps as f64;
        (0..self.config.steps)
            .map(|k| (self.explore_std * (1.0 - k as f64 / steps).sqrt()).ln() as f32)
            .collect()
    }
}

impl Head for FlowHead {
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let b = self.shape.expect_batch(context, actions, valid)?;
        let device = actions.device();
        let z = noise.normal(&actions.size(), device);
        let t = 1f64 - noise.uniform(&[b], device).pow_tensor_scalar(self.config.time_shape);
        let velocity = actions - &z;
        let x = z + t.view([b, 1, 1]) * &velocity;
        let predicted = self.net.forward(&x, &(t * 100.0), context)?;
        Ok((predicted - velocity).square().mean_dim(-1, false, Kind::Float))
    }

    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        _mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.shape.expect_streams(context, noise)?;
        let device = context.pooled.device();
        let x = normal_rows(noise, &[self.shape.chunk_size, self.shape.action_dim], device);
        self.integrate(context, x)
    }

    fn stochastic(&self) -> Option<&dyn StochasticHead> {
        Some(self)
    }

    fn set_explore_std(&mut self, std: f64) {
        self.explore_std = std;
    }
}

impl StochasticHead for FlowHead {
    /// The latent is the whole path, `steps + 1` points of `T_p D` numbers; a term is one denoising step.
    fn explore(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Drawn, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.shape.expect_streams(context, noise)?;
        let device = context.pooled.device();
        let size = [self.shape.chunk_size, self.shape.action_dim];
        let steps = self.config.steps;
        let mut x = normal_rows(noise, &size, device);
        let mut path = vec![x.flatten(1, 2)];
        let mut log_probs = Vec::new();
        for (k, log_std) in self.log_stds().into_iter().enumerate() {
            let t = k as f64 / steps as f64;
            let level = Tensor::full([x.size()[0]], t * 100.0, (Kind::Float, device));
            let mean = &x + self.net.forward(&x, &level, context)? / steps as f64;
            let log_std = Tensor::full_like(&mean, f64::from(log_std));
            let step = Gaussian { mean, log_std, squash: false };
            x = match mode {
                ActMode::Deterministic => step.mean.shallow_clone(),
                ActMode::Stochastic => step.sample(noise),
            };
            log_probs.push(step.log_prob(&x).sum_dim_intlist(
                [1i64, 2].as_slice(),
                false,
                Kind::Float,
            ));
            path.push(x.flatten(1, 2));
        }
        Ok(Drawn {
            chunk: x,
            latent: Tensor::cat(&path, 1),
            log_prob: Tensor::stack(&log_probs, 1),
        })
    }

    fn density(&self, context: &Context, latent: &Tensor) -> Result<Density, PolicyError> {
        let (t, d, steps) = (self.shape.chunk_size, self.shape.action_dim, self.config.steps);
        let b = context.pooled.size()[0];
        expect_shape("latent", latent, &[b, (steps + 1) * t * d])?;
        let device = latent.device();
        // All steps of all rows in one pass, step after step: [steps, B, T_p, D].
        let path = latent.view([b, steps + 1, t, d]).transpose(0, 1);
        let (from, to) = (path.narrow(0, 0, steps), path.narrow(0, 1, steps));
        let level = Tensor::arange(steps, (Kind::Float, device)) * (100.0 / steps as f64);
        let level = level.repeat_interleave_self_int(b, 0, steps * b);
        let repeated = Context {
            pooled: context.pooled.repeat([steps, 1]),
            tokens: context.tokens.repeat([steps, 1, 1]),
        };
        let x = from.contiguous().view([steps * b, t, d]);
        let velocity = self.net.forward(&x, &level, &repeated)?.view([steps, b, t, d]);
        let mean = from + velocity / steps as f64;
        let log_std = Tensor::from_slice(&self.log_stds()).to_device(device).view([steps, 1, 1, 1]);
        let step = Gaussian { log_std: log_std.expand_as(&mean), mean, squash: false };
        let sum = |each: &Tensor| {
            each.sum_dim_intlist([2i64, 3].as_slice(), false, Kind::Float)
                .transpose(0, 1)
                .contiguous()
        };
        Ok(Density { log_prob: sum(&step.log_prob(&to)), entropy: sum(&step.entropy()) })
    }

    fn term_rows(&self) -> Vec<Option<usize>> {
        vec![None; self.config.steps as usize]
    }
}
