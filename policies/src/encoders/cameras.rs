//! Images of one or more cameras over `T_o` steps: what every image network shares.

use tch::Tensor;

use super::{Encoder, Inputs};
use crate::PolicyError;
use crate::nn::{ANY, Scope, expect_shape};

/// A network for one image.
pub trait Backbone {
    /// `n`, the tokens per image.
    fn tokens(&self) -> i64;
    /// `W`.
    fn width(&self) -> i64;
    /// `[M, 3, H, W] -> [M, n, W]`; pixels in `[0, 1]`, sizes already checked.
    fn forward(&self, images: &Tensor) -> Tensor;
}

/// A camera and the size of its images when they reach the encoder (after cropping).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Camera {
    /// Its key in [`Inputs::images`].
    pub name: String,
    /// `H`.
    pub height: i64,
    /// `W`.
    pub width: i64,
}

/// Images of all cameras as tokens `[B, T_o * cameras * n, W]`, time first.
pub struct CameraEncoder {
    cameras: Vec<Camera>,
    backbones: Vec<Box<dyn Backbone>>,
    n_obs_steps: i64,
}

impl CameraEncoder {
    /// One backbone per camera, below the camera's name; or a single one for all below `shared`, if `share_weights`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] without cameras, for cameras of unequal size that share weights, or for what `build`
    /// refuses.
    pub fn new<B: Backbone + 'static>(
        scope: &Scope,
        cameras: &[Camera],
        n_obs_steps: i64,
        share_weights: bool,
        build: impl Fn(&Scope, &Camera) -> Result<B, PolicyError>,
    ) -> Result<Self, PolicyError> {
        let refuse = |detail: String| Err(PolicyError::Config { detail });
        let Some(first) = cameras.first() else {
            return refuse("build an image encoder: name at least one camera".to_owned());
        };
        if n_obs_steps < 1 {
            return refuse(format!("build an image encoder for {n_obs_steps} steps"));
        }
        let mut backbones: Vec<Box<dyn Backbone>> = Vec::new();
        if share_weights {
            let same = |c: &Camera| (c.height, c.width) == (first.height, first.width);
            if let Some(other) = cameras.iter().find(|c| !same(c)) {
                return refuse(format!(
                    "share one image encoder: `{}` is {}x{} and `{}` is {}x{}; set share_weights = false or resize",
                    first.name, first.height, first.width, other.name, other.height, other.width
                ));
            }
            backbones.push(Box::new(build(&scope.sub("shared"), first)?));
        } else {
            for (i, camera) in cameras.iter().enumerate() {
                if cameras[..i].iter().any(|c| c.name == camera.name) {
                    return refuse(format!(
                        "build an image encoder: `{}` is named twice",
                        camera.name
                    ));
                }
                backbones.push(Box::new(build(&scope.sub(&camera.name), camera)?));
            }
        }
        Ok(Self { cameras: cameras.to_vec(), backbones, n_obs_steps })
    }

    fn backbone(&self, camera: usize) -> &dyn Backbone {
        self.backbones.get(camera).unwrap_or(&self.backbones[0]).as_ref()
    }
}

impl Encoder for CameraEncoder {
    fn tokens(&self) -> i64 {
        self.n_obs_steps * self.cameras.len() as i64 * self.backbones[0].tokens()
    }

    fn width(&self) -> i64 {
        self.backbones[0].width()
    }

    fn steps(&self) -> i64 {
        self.n_obs_steps
    }

    fn encode(&self, inputs: &Inputs<'_>) -> Result<Tensor, PolicyError> {
        let t = self.n_obs_steps;
        let mut parts = Vec::new();
        for (i, camera) in self.cameras.iter().enumerate() {
            let images = inputs.images.get(&camera.name).ok_or_else(|| PolicyError::Missing {
                what: format!("images[{}]", camera.name),
                remedy: "build the environment with that camera".to_owned(),
            })?;
            let expected = [ANY, t, 3, camera.height, camera.width];
            expect_shape(&format!("images[{}]", camera.name), images, &expected)?;
            let b = images.size()[0];
            let backbone = self.backbone(i);
            let tokens = backbone.forward(&images.flatten(0, 1));
            parts.push(tokens.reshape([b, t, backbone.tokens(), backbone.width()]));
        }
        Ok(Tensor::cat(&parts, 2).flatten(1, 2))
    }
}
