//! Which head, and its settings.

use serde::{Deserialize, Serialize};

use super::act::{ActConfig, ActHead};
use super::bins::{BinsConfig, BinsHead};
use super::diffusion::{DiffusionConfig, DiffusionHead};
use super::flow::{FlowConfig, FlowHead};
use super::gaussian::{GaussianConfig, GaussianHead};
use super::mlp::{MlpConfig, MlpHead};
use super::steered::{SteeredConfig, SteeredHead};
use super::text::{TextConfig, TextHead};
use super::{Head, HeadShape};
use crate::PolicyError;
use crate::nn::Scope;

/// A head by name: `kind = "mlp"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HeadConfig {
    /// [`MlpHead`].
    Mlp(MlpConfig),
    /// [`GaussianHead`].
    Gaussian(GaussianConfig),
    /// [`ActHead`].
    Act(ActConfig),
    /// [`BinsHead`].
    Bins(BinsConfig),
    /// [`TextHead`].
    Text(TextConfig),
    /// [`DiffusionHead`].
    Diffusion(DiffusionConfig),
    /// [`FlowHead`].
    Flow(FlowConfig),
    /// [`SteeredHead`].
    Steered(SteeredConfig),
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self::Mlp(MlpConfig::default())
    }
}

impl HeadConfig {
    /// Builds it below `scope`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for settings or sizes that do not fit.
    pub fn build(&self, scope: &Scope, shape: HeadShape) -> Result<Box<dyn Head>, PolicyError> {
        Ok(match self {
            Self::Mlp(config) => Box::new(MlpHead::new(scope, config, shape)?),
            Self::Gaussian(config) => Box::new(GaussianHead::new(scope, config, shape)?),
            Self::Act(config) => Box::new(ActHead::new(scope, config, shape)?),
            Self::Bins(config) => Box::new(BinsHead::new(scope, config, shape)?),
            Self::Text(config) => Box::new(TextHead::new(scope, config, shape)?),
            Self::Diffusion(config) => Box::new(DiffusionHead::new(scope, config, shape)?),
            Self::Flow(config) => Box::new(FlowHead::new(scope, config, shape)?),
            Self::Steered(config) => Box::new(SteeredHead::new(scope, config, shape)?),
        })
    }
}
