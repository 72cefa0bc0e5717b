//! Chunk regression: an MLP from the pooled context to all `T_p · D` numbers.
//!
//! Source: behaviour cloning with action chunks; L1 as in ACT (arXiv 2304.13705) and OpenVLA-OFT (arXiv 2502.19645,
//! `prismatic/models/action_heads.py`). Deviation from OFT: a plain MLP on one vector, where OFT has residual blocks on
//! the hidden states of each action.

use serde::{Deserialize, Serialize};
use tch::{Reduction, Tensor};

use super::{Head, HeadShape};
use crate::fusion::Context;
use crate::nn::{Activation, Mlp, Scope};
use crate::{ActMode, NoiseStream, PolicyError};

/// The distance between a predicted and a true number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegressionLoss {
    /// Squared.
    Mse,
    /// Squared over 2 below a distance of 1, absolute minus 1/2 above (PyTorch's `SmoothL1Loss`, beta 1).
    SmoothL1,
    /// Absolute.
    #[default]
    L1,
}

impl RegressionLoss {
    /// Element by element, same shape.
    pub fn apply(self, predicted: &Tensor, target: &Tensor) -> Tensor {
        match self {
            Self::Mse => predicted.mse_loss(target, Reduction::None),
            Self::SmoothL1 => predicted.smooth_l1_loss(target, Reduction::None, 1.0),
            Self::L1 => predicted.l1_loss(target, Reduction::None),
        }
    }
}

/// Settings of [`MlpHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpConfig {
    /// Widths of the hidden layers.
    pub hidden: Vec<i64>,
    /// Between layers.
    pub activation: Activation,
    /// What is minimised.
    pub loss: RegressionLoss,
}

impl Default for MlpConfig {
    /// Ours, but for L1 (ACT, OpenVLA-OFT).
    fn default() -> Self {
        Self { hidden: vec![512, 512], activation: Activation::Relu, loss: RegressionLoss::L1 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct MlpHead {
    mlp: Mlp,
    loss: RegressionLoss,
    shape: HeadShape,
}

impl MlpHead {
    /// For contexts and chunks of `shape`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for sizes below one.
    pub fn new(scope: &Scope, config: &MlpConfig, shape: HeadShape) -> Result<Self, PolicyError> {
        let sizes = layer_sizes(&config.hidden, shape, 1)?;
        let mlp = Mlp::new(&scope.sub("mlp"), &sizes, config.activation);
        Ok(Self { mlp, loss: config.loss, shape })
    }

    /// `[B, T_p, D]`, with gradient.
    ///
    /// # Errors
    /// [`PolicyError::Shape`].
    pub fn predict(&self, context: &Context) -> Result<Tensor, PolicyError> {
        let b = self.shape.expect_context(context)?;
        let flat = self.mlp.forward(&context.pooled);
        Ok(flat.reshape([b, self.shape.chunk_size, self.shape.action_dim]))
    }
}

/// From the pooled context through `hidden` to `per_number` outputs for each number of the chunk.
pub(super) fn layer_sizes(
    hidden: &[i64],
    shape: HeadShape,
    per_number: i64,
) -> Result<Vec<i64>, PolicyError> {
    shape.validate()?;
    if hidden.iter().any(|h| *h < 1) {
        return Err(PolicyError::Config {
            detail: format!("build a head with hidden = {hidden:?}: widths must be at least 1"),
        });
    }
    let mut sizes = vec![shape.pooled_width];
    sizes.extend(hidden);
    sizes.push(shape.chunk_size * shape.action_dim * per_number);
    Ok(sizes)
}

impl Head for MlpHead {
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        _noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        self.shape.expect_batch(context, actions, valid)?;
        let loss = self.loss.apply(&self.predict(context)?, actions);
        Ok(loss.mean_dim(-1, false, None))
    }

    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        _mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.shape.expect_streams(context, noise)?;
        self.predict(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::HeadConfig;
    use crate::heads::testing::{check_head, check_learns_a_linear_policy};

    fn config(loss: RegressionLoss) -> MlpConfig {
        MlpConfig { hidden: vec![32], loss, ..MlpConfig::default() }
    }

    #[test]
    fn it_is_a_head() {
        check_head(&HeadConfig::Mlp(config(RegressionLoss::L1)));
    }

    #[test]
    fn every_loss_learns_a_linear_policy() {
        for loss in [RegressionLoss::Mse, RegressionLoss::SmoothL1, RegressionLoss::L1] {
            check_learns_a_linear_policy(&HeadConfig::Mlp(config(loss)), 300, 1e-2, 0.05);
        }
    }

    #[test]
    fn losses_are_the_textbook_values() {
        let predicted = Tensor::from_slice(&[0.5f32, 3.0]);
        let target = Tensor::from_slice(&[0.0f32, 0.0]);
        let values =
            |loss: RegressionLoss| Vec::<f32>::try_from(loss.apply(&predicted, &target)).unwrap();
        assert_eq!(values(RegressionLoss::Mse), [0.25, 9.0]);
        assert_eq!(values(RegressionLoss::L1), [0.5, 3.0]);
        assert_eq!(values(RegressionLoss::SmoothL1), [0.125, 2.5]);
    }
}
