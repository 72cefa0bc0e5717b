//! A small convolutional network, trained from scratch, for about 96 px on a CPU: strided 3x3 convolutions, each with group
//! normalisation and a ReLU.
//!
//! Source: the shape of Mnih et al. 2015 (Nature 518, "DQN") with small kernels. Ours: the channels, the strides, and group
//! normalisation (16 channels a group, as Diffusion Policy's ResNet). About 45 million multiplications for a 96 px image,
//! an eighth of ResNet-18.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::cameras::Backbone;
use super::pool::{MapSize, Pool, Pooling};
use crate::PolicyError;
use crate::nn::{Conv2d, GroupNorm, Scope};

/// Settings of [`Cnn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CnnConfig {
    /// Output channels of each convolution, multiples of 16.
    pub channels: Vec<i64>,
    /// Stride of each convolution.
    pub strides: Vec<i64>,
    /// How the last feature map becomes tokens.
    pub pool: Pooling,
    /// One network for all cameras.
    pub share_weights: bool,
    /// Convolutions and norms compute in bf16, channels last; what comes out is f32. On a CPU with AMX about 2.6 times as
    /// fast (batch 128, 84 px, forward and backward).
    pub bf16: bool,
}

impl Default for CnnConfig {
    /// 96 px -> 48 -> 24 -> 12 -> 12.
    fn default() -> Self {
        Self {
            channels: vec![32, 64, 128, 128],
            strides: vec![2, 2, 2, 1],
            pool: Pooling::SpatialSoftmax { keypoints: 32 },
            share_weights: false,
            bf16: false,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Cnn {
    layers: Vec<(Conv2d, GroupNorm)>,
    pool: Pool,
    bf16: bool,
}

impl Cnn {
    /// For images of `height` x `width`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for settings that do not fit each other or the image.
    pub fn new(
        scope: &Scope,
        config: &CnnConfig,
        height: i64,
        width: i64,
    ) -> Result<Self, PolicyError> {
        let CnnConfig { channels, strides, .. } = config;
        let fits = !channels.is_empty()
            && channels.len() == strides.len()
            && channels.iter().all(|c| *c > 0 && c % 16 == 0)
            && strides.iter().all(|s| *s > 0);
        if !fits {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a cnn with channels = {channels:?} and strides = {strides:?}: as many strides as channels are \
                     needed, and multiples of 16 channels"
                ),
            });
        }
        let mut map = MapSize { channels: 3, height, width };
        let mut layers = Vec::new();
        for (i, (c, s)) in channels.iter().zip(strides).enumerate() {
            let conv = Conv2d::new(&scope.sub("conv").sub(i), map.channels, *c, 3, *s, 1, false);
            let norm = GroupNorm::new(&scope.sub("norm").sub(i), c / 16, *c);
            layers.push((conv.in_bf16(config.bf16), norm.in_bf16(config.bf16)));
            map = map.convolve(*c, 3, *s, 1);
        }
        let pool = Pool::new(&scope.sub("pool"), &config.pool, map)?;
        Ok(Self { layers, pool, bf16: config.bf16 })
    }
}

impl Backbone for Cnn {
    fn tokens(&self) -> i64 {
        self.pool.tokens()
    }

    fn width(&self) -> i64 {
        self.pool.width()
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let mut x = images * 2.0 - 1.0;
        if self.bf16 {
            // Channels last in memory, which is how convolutions read bf16 fastest.
            x = x.to_kind(Kind::BFloat16).permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        }
        for (conv, norm) in &self.layers {
            x = norm.forward(&conv.forward(&x)).relu();
        }
        self.pool.forward(&x.to_kind(Kind::Float))
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::encoders::VisionConfig;
    use crate::encoders::testing::{check_finds_a_dot, check_vision};
    use crate::nn::Params;

    fn small(pool: Pooling) -> CnnConfig {
        CnnConfig { channels: vec![16, 32], strides: vec![2, 2], pool, ..CnnConfig::default() }
    }

    #[test]
    fn it_is_an_image_encoder() {
        for (pool, n, w) in [
            (Pooling::SpatialSoftmax { keypoints: 4 }, 1, 8),
            (Pooling::Flatten { width: 24 }, 1, 24),
            (Pooling::Average, 1, 32),
            (Pooling::Grid, 16, 32),
        ] {
            check_vision(&VisionConfig::Cnn(small(pool)), 16, n, w);
        }
    }

    #[test]
    fn spatial_softmax_learns_where_a_dot_is() {
        let f32 = small(Pooling::SpatialSoftmax { keypoints: 8 });
        check_finds_a_dot(&VisionConfig::Cnn(f32.clone()));
        check_finds_a_dot(&VisionConfig::Cnn(CnnConfig { bf16: true, ..f32 }));
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let params = Params::new(Device::Cpu, 0);
        let build = |config: &CnnConfig, size| {
            Cnn::new(&params.root().sub(size), config, size, size).map(|_| ()).unwrap_err()
        };
        let config = CnnConfig { channels: vec![16], ..small(Pooling::Average) };
        assert!(build(&config, 16).to_string().contains("as many strides"));
        assert!(build(&small(Pooling::Flatten { width: 0 }), 17).to_string().contains("positive"));
    }

    #[test]
    fn the_default_costs_about_45_million_multiplications() {
        let config = CnnConfig::default();
        let (mut map, mut count) = (MapSize { channels: 3, height: 96, width: 96 }, 0);
        for (c, s) in config.channels.iter().zip(&config.strides) {
            let next = map.convolve(*c, 3, *s, 1);
            count += next.channels * next.height * next.width * map.channels * 9;
            map = next;
        }
        assert_eq!((map.channels, map.height, map.width), (128, 12, 12));
        assert!((44_000_000..46_000_000).contains(&count), "{count}");
    }
}
