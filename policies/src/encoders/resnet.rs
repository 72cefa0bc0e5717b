//! ResNet-18 with group normalisation, trained from scratch (He et al. 2016, arXiv 1512.03385; Wu & He 2018,
//! arXiv 1803.08494).
//!
//! Source: Diffusion Policy (arXiv 2303.04137), `vision/model_getter.py` and `multi_image_obs_encoder.py`, which replaces
//! every batch normalisation of torchvision's `resnet18` by a group normalisation of `C / 16` groups. Parameter names and
//! initial values are torchvision's (`bn1` stays `bn1`).
//!
//! Deviations: pixels are scaled to `[-1, 1]` and not by ImageNet's statistics; `base_width` may be less than 64; random
//! crops belong to the image augmentation.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::cameras::Backbone;
use super::pool::{MapSize, Pool, Pooling};
use crate::PolicyError;
use crate::nn::{Conv2d, GroupNorm, Scope};

/// Settings of [`ResNet18`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResNetConfig {
    /// Channels of the first stage, a multiple of 16; each later stage doubles them.
    pub base_width: i64,
    /// How the last feature map becomes tokens.
    pub pool: Pooling,
    /// One network for all cameras.
    pub share_weights: bool,
}

impl Default for ResNetConfig {
    fn default() -> Self {
        Self {
            base_width: 64,         // torchvision resnet18
            pool: Pooling::Average, // diffusion_policy model_getter.py: fc = Identity
            share_weights: false,   // diffusion_policy train_diffusion_unet_image_workspace.yaml
        }
    }
}

#[derive(Debug)]
struct BasicBlock {
    conv1: Conv2d,
    bn1: GroupNorm,
    conv2: Conv2d,
    bn2: GroupNorm,
    downsample: Option<(Conv2d, GroupNorm)>,
}

impl BasicBlock {
    fn new(scope: &Scope, inputs: i64, outputs: i64, stride: i64) -> Self {
        let norm = |name: &str| GroupNorm::new(&scope.sub(name), outputs / 16, outputs);
        let conv = |name: &str, inputs, kernel, stride, padding| {
            Conv2d::he_fan_out(&scope.sub(name), inputs, outputs, kernel, stride, padding)
        };
        let downsample = (stride != 1 || inputs != outputs)
            .then(|| (conv("downsample.0", inputs, 1, stride, 0), norm("downsample.1")));
        Self {
            conv1: conv("conv1", inputs, 3, stride, 1),
            bn1: norm("bn1"),
            conv2: conv("conv2", outputs, 3, 1, 1),
            bn2: norm("bn2"),
            downsample,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.bn1.forward(&self.conv1.forward(x)).relu();
        let y = self.bn2.forward(&self.conv2.forward(&y));
        let skip = match &self.downsample {
            Some((conv, norm)) => norm.forward(&conv.forward(x)),
            None => x.shallow_clone(),
        };
        (y + skip).relu()
    }
}

/// See the module.
#[derive(Debug)]
pub struct ResNet18 {
    conv1: Conv2d,
    bn1: GroupNorm,
    blocks: Vec<BasicBlock>,
    pool: Pool,
}

impl ResNet18 {
    /// For images of `height` x `width`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a `base_width` that is no multiple of 16, or images that are too small.
    pub fn new(
        scope: &Scope,
        config: &ResNetConfig,
        height: i64,
        width: i64,
    ) -> Result<Self, PolicyError> {
        let base = config.base_width;
        if base < 16 || base % 16 != 0 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a resnet18 with base_width = {base}: a multiple of 16 is needed"
                ),
            });
        }
        let mut map = MapSize { channels: 3, height, width };
        let conv1 = Conv2d::he_fan_out(&scope.sub("conv1"), 3, base, 7, 2, 3);
        let bn1 = GroupNorm::new(&scope.sub("bn1"), base / 16, base);
        map = map.convolve(base, 7, 2, 3).convolve(base, 3, 2, 1);
        let mut blocks = Vec::new();
        for stage in 0..4 {
            let channels = base << stage;
            for block in 0..2 {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let scope = scope.sub(format!("layer{}", stage + 1)).sub(block);
                blocks.push(BasicBlock::new(&scope, map.channels, channels, stride));
                map = map.convolve(channels, 3, stride, 1);
            }
        }
        let pool = Pool::new(&scope.sub("pool"), &config.pool, map)?;
        Ok(Self { conv1, bn1, blocks, pool })
    }
}

impl Backbone for ResNet18 {
    fn tokens(&self) -> i64 {
        self.pool.tokens()
    }

    fn width(&self) -> i64 {
        self.pool.width()
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let x = images * 2.0 - 1.0;
        let x = self.bn1.forward(&self.conv1.forward(&x)).relu();
        let mut x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        for block in &self.blocks {
            x = block.forward(&x);
        }
        self.pool.forward(&x)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::encoders::VisionConfig;
    use crate::encoders::testing::check_vision;
    use crate::nn::Params;
    use crate::testing::{assert_golden, fill_with_waves, wave};

    #[test]
    fn it_is_an_image_encoder() {
        for (pool, w) in [(Pooling::Average, 128), (Pooling::SpatialSoftmax { keypoints: 4 }, 8)] {
            let config = ResNetConfig { base_width: 16, pool, share_weights: false };
            check_vision(&VisionConfig::Resnet18(config), 64, 1, w);
        }
    }

    #[test]
    fn an_image_too_small_for_keypoints_is_refused() {
        // 16 px shrink to one place: every keypoint would be in the middle, whatever is seen.
        let params = Params::new(Device::Cpu, 0);
        let pool = Pooling::SpatialSoftmax { keypoints: 4 };
        let config = ResNetConfig { base_width: 16, pool, share_weights: false };
        let error = ResNet18::new(&params.root(), &config, 16, 16).unwrap_err().to_string();
        assert!(error.contains("use larger images"), "{error}");
    }

    #[test]
    fn it_computes_what_torchvisions_resnet_with_group_norm_does() {
        let params = Params::new(Device::Cpu, 0);
        let net = ResNet18::new(&params.root(), &ResNetConfig::default(), 84, 96).unwrap();
        fill_with_waves(&params);
        let y = net.forward(&(wave("images", &[2, 3, 84, 96], 0.5) + 0.5)).squeeze_dim(1);
        assert_golden("resnet18", &y, 1e-5);
    }

    #[test]
    fn it_has_torchvisions_parameters() {
        let params = Params::new(Device::Cpu, 0);
        let net = ResNet18::new(&params.root(), &ResNetConfig::default(), 96, 96).unwrap();
        // torchvision resnet18 without fc: 11,689,512 - 513,000 (norms count the same for batch and group).
        assert_eq!(params.count().0, 11_176_512);
        assert_eq!(params.names().len(), 60);
        for name in ["conv1.weight", "layer2.0.downsample.1.bias", "layer4.1.bn2.weight"] {
            assert!(params.get(name).is_some(), "{name}");
        }
        assert_eq!((net.tokens(), net.width()), (1, 512));
        let std = params.get("layer4.1.conv2.weight").unwrap().std(true).double_value(&[]);
        // kaiming_normal_, fan_out, relu: sqrt(2 / (512 * 9)).
        assert!((std - 0.020_833).abs() < 1e-4, "{std}");
    }
}
