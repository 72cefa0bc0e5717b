//! Diffusion over action chunks: Chi et al. 2023, arXiv 2303.04137 (Diffusion Policy); Ho et al. 2020 (DDPM); Song et al.
//! 2021 (DDIM). Schedules and steps are in [`crate::nn::noise_schedule`].
//!
//! # Details
//! 1. `squaredcos_cap_v2` over `schedule.train_steps`; a step per sample is drawn uniformly.
//! 2. The network predicts the noise (`epsilon`, diffusion_policy's) or the chunk (`sample`); the loss is its squared error.
//! 3. Acting: DDIM over `sampling_steps` evenly spaced steps, η = 0; or all DDPM steps with fresh noise (`ddpm = true`).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::denoiser::{Denoiser, DenoiserConfig};
use super::{Head, HeadShape};
use crate::fusion::Context;
use crate::nn::Scope;
use crate::nn::noise_schedule::{NoiseSchedule, NoiseScheduleConfig};
use crate::{ActMode, NoiseStream, PolicyError, normal_rows};

/// Settings of a [`DiffusionHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionConfig {
    /// The network.
    pub denoiser: DenoiserConfig,
    /// Noise levels, what is predicted, clipping.
    pub schedule: NoiseScheduleConfig,
    /// Denoising steps when acting by DDIM.
    pub sampling_steps: i64,
    /// Act by all steps of DDPM instead.
    pub ddpm: bool,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            denoiser: DenoiserConfig::default(),
            schedule: NoiseScheduleConfig::default(),
            sampling_steps: 10, // diffusion_policy's real-robot configs; LeRobot's `num_inference_steps` for PushT is 100
            ddpm: false,
        }
    }
}

/// A diffusion head.
pub struct DiffusionHead {
    net: Box<dyn Denoiser>,
    schedule: NoiseSchedule,
    steps: i64,
    ddpm: bool,
    shape: HeadShape,
}

impl DiffusionHead {
    /// Builds it below `scope`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for numbers out of range.
    pub fn new(
        scope: &Scope,
        config: &DiffusionConfig,
        shape: HeadShape,
    ) -> Result<Self, PolicyError> {
        let schedule = NoiseSchedule::new(config.schedule.clone(), scope.device())?;
        let steps = if config.ddpm { config.schedule.train_steps } else { config.sampling_steps };
        schedule.sampling_steps(steps)?;
        let net = config.denoiser.build(&scope.sub("net"), shape)?;
        Ok(Self { net, schedule, steps, ddpm: config.ddpm, shape })
    }
}

impl Head for DiffusionHead {
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let b = self.shape.expect_batch(context, actions, valid)?;
        let device = actions.device();
        let steps = noise.integers(self.schedule.config().train_steps, &[b], device);
        let z = noise.normal(&actions.size(), device);
        let x = self.schedule.add_noise(actions, &z, &steps);
        let output = self.net.forward(&x, &steps.to_kind(Kind::Float), context)?;
        let error = output - self.schedule.target(actions, &z);
        Ok(error.square().mean_dim(-1, false, Kind::Float))
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
        let shape = [self.shape.chunk_size, self.shape.action_dim];
        let first = normal_rows(noise, &shape, device);
        let network =
            |x: &Tensor, steps: &Tensor| self.net.forward(x, &steps.to_kind(Kind::Float), context);
        if self.ddpm {
            let fresh = || normal_rows(noise, &shape, device);
            self.schedule.ddpm(&first, self.steps, fresh, network)
        } else {
            self.schedule.ddim(&first, self.steps, network)
        }
    }
}
