//! A vision transformer, trained from scratch (Dosovitskiy et al. 2021, arXiv 2010.11929).
//!
//! Source: timm's `vision_transformer.py`: patch embedding, learned positions, pre-norm blocks, a last norm. Deviations: no
//! class token (`pool` gives all patches or their mean), no dropout, no stochastic depth.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::cameras::Backbone;
use crate::PolicyError;
use crate::nn::{Activation, Conv2d, EncoderLayer, Init, LayerNorm, Scope, TransformerConfig};

/// What leaves the transformer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitPooling {
    /// One token: the mean over patches.
    #[default]
    Mean,
    /// A token per patch.
    Patches,
}

/// Settings of [`Vit`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VitConfig {
    /// Side of a patch, px; divides the image's sides.
    pub patch_size: i64,
    /// `W`.
    pub width: i64,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; divides `width`.
    pub heads: i64,
    /// Width of the feed-forward layer over `width`.
    pub mlp_ratio: i64,
    /// What leaves it.
    pub pool: VitPooling,
    /// One network for all cameras.
    pub share_weights: bool,
}

impl Default for VitConfig {
    /// DeiT-Ti (arXiv 2012.12877, table 1: width 192, 3 heads) at half its depth; patches of 12 divide 84 and 96 px (ours).
    fn default() -> Self {
        Self {
            patch_size: 12,
            width: 192,
            depth: 6,
            heads: 3,
            mlp_ratio: 4,
            pool: VitPooling::Mean,
            share_weights: false,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Vit {
    patches: Conv2d,
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    pool: VitPooling,
}

impl Vit {
    /// For images of `height` x `width`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] unless patches divide the image and heads the width.
    pub fn new(
        scope: &Scope,
        config: &VitConfig,
        height: i64,
        width: i64,
    ) -> Result<Self, PolicyError> {
        let p = config.patch_size;
        if p < 1 || height < 1 || width < 1 || height % p != 0 || width % p != 0 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a vit with patch_size = {p} for images of {height}x{width}: patches must divide both sides"
                ),
            });
        }
        let layer = TransformerConfig {
            width: config.width,
            heads: config.heads,
            feed_forward: config.width * config.mlp_ratio,
            activation: Activation::Gelu,
            norm_first: true,
        };
        layer.validate()?;
        let count = (height / p) * (width / p);
        Ok(Self {
            patches: Conv2d::new(&scope.sub("patches"), 3, config.width, p, p, 0, true),
            positions: scope.param("positions", &[count, config.width], Init::Normal { std: 0.02 }),
            layers: EncoderLayer::stack(&scope.sub("layers"), &layer, config.depth),
            norm: LayerNorm::new(&scope.sub("norm"), config.width, 1e-6),
            pool: config.pool,
        })
    }
}

impl Backbone for Vit {
    fn tokens(&self) -> i64 {
        match self.pool {
            VitPooling::Mean => 1,
            VitPooling::Patches => self.positions.size()[0],
        }
    }

    fn width(&self) -> i64 {
        self.positions.size()[1]
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let x = self.patches.forward(&(images * 2.0 - 1.0));
        let mut x = x.flatten(2, 3).transpose(1, 2) + &self.positions;
        for layer in &self.layers {
            x = layer.forward(&x, None);
        }
        let x = self.norm.forward(&x);
        match self.pool {
            VitPooling::Mean => x.mean_dim([1i64].as_slice(), true, None),
            VitPooling::Patches => x,
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::encoders::VisionConfig;
    use crate::encoders::testing::{check_finds_a_dot, check_vision};
    use crate::nn::Params;

    fn small(pool: VitPooling) -> VitConfig {
        VitConfig { patch_size: 4, width: 16, depth: 2, heads: 2, pool, ..VitConfig::default() }
    }

    #[test]
    fn it_is_an_image_encoder() {
        check_vision(&VisionConfig::Vit(small(VitPooling::Mean)), 16, 1, 16);
        check_vision(&VisionConfig::Vit(small(VitPooling::Patches)), 16, 16, 16);
    }

    #[test]
    fn it_learns_where_a_dot_is() {
        check_finds_a_dot(&VisionConfig::Vit(small(VitPooling::Mean)));
    }

    #[test]
    fn patches_that_do_not_divide_the_image_are_refused() {
        let params = Params::new(Device::Cpu, 0);
        let error = Vit::new(&params.root(), &small(VitPooling::Mean), 16, 18).unwrap_err();
        assert!(error.to_string().contains("divide both sides"), "{error}");
    }
}
