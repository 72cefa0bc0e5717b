//! Flow matching (rectified flow): Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003. As a policy
//! head: π₀, Black et al. 2024, arXiv 2410.24164.
//!
//! # Details
//! 1. `x_t = (1 - t) z + t a` with `z ~ N(0, 1)`: t = 0 is noise, t = 1 the chunk (π₀'s direction; SmolVLA's is reversed).
//! 2. The network predicts the velocity `a - z`; the loss is its squared error.
//! 3. t is drawn from `1 - u^shape`, u uniform: `shape = 1` is uniform, a larger one dwells near the noise.
//! 4. Sampling: `steps` Euler steps from t = 0.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::denoiser::{Denoiser, DenoiserConfig};
use super::{Head, HeadShape};
use crate::fusion::Context;
use crate::nn::Scope;
use crate::{ActMode, NoiseStream, PolicyError, normal_rows};

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
        Ok(Self { net, config: config.clone(), shape })
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
        let mut x = normal_rows(noise, &[self.shape.chunk_size, self.shape.action_dim], device);
        for k in 0..self.config.steps {
            let t = k as f64 / self.config.steps as f64;
            let level = Tensor::full([x.size()[0]], t * 100.0, (Kind::Float, device));
            x = &x + self.net.forward(&x, &level, context)? / self.config.steps as f64;
        }
        Ok(x)
    }
}
