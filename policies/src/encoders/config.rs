//! Which image encoder, and its settings.

use serde::{Deserialize, Serialize};

use super::Encoder;
use super::cameras::{Camera, CameraEncoder};
use super::cnn::{Cnn, CnnConfig};
use super::resnet::{ResNet18, ResNetConfig};
use super::siglip::{Siglip, SiglipEncoderConfig};
use super::vit::{Vit, VitConfig};
use crate::PolicyError;
use crate::nn::Scope;

/// An image encoder by name: `kind = "resnet18"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VisionConfig {
    /// The policy does not look.
    #[default]
    None,
    /// [`Cnn`].
    Cnn(CnnConfig),
    /// [`ResNet18`].
    Resnet18(ResNetConfig),
    /// [`Vit`].
    Vit(VitConfig),
    /// [`Siglip`].
    Siglip(SiglipEncoderConfig),
}

impl VisionConfig {
    /// Builds it below `scope`; `None` for a policy that does not look.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for settings or sizes that do not fit.
    pub fn build(
        &self,
        scope: &Scope,
        cameras: &[Camera],
        n_obs_steps: i64,
    ) -> Result<Option<Box<dyn Encoder>>, PolicyError> {
        let encoder = match self {
            Self::None => return Ok(None),
            Self::Cnn(c) => {
                CameraEncoder::new(scope, cameras, n_obs_steps, c.share_weights, |s, i| {
                    Cnn::new(s, c, i.height, i.width)
                })
            }
            Self::Resnet18(c) => {
                CameraEncoder::new(scope, cameras, n_obs_steps, c.share_weights, |s, i| {
                    ResNet18::new(s, c, i.height, i.width)
                })
            }
            Self::Vit(c) => {
                CameraEncoder::new(scope, cameras, n_obs_steps, c.share_weights, |s, i| {
                    Vit::new(s, c, i.height, i.width)
                })
            }
            Self::Siglip(c) => {
                CameraEncoder::new(scope, cameras, n_obs_steps, c.share_weights, |s, _| {
                    Siglip::new(s, c)
                })
            }
        };
        Ok(Some(Box::new(encoder?)))
    }
}
