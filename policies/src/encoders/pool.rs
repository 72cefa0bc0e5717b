//! From a feature map `[M, C, h, w]` to tokens `[M, n, W]`.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::PolicyError;
use crate::nn::{Activation, Init, Linear, Scope};

/// How a feature map becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Pooling {
    /// The mean over all places: one token of `C`.
    Average,
    /// The expected image position of each keypoint (Levine et al. 2016, arXiv 1504.00702), then a linear layer and ReLU:
    /// one token of `2 * keypoints`. As robomimic's `SpatialSoftmax` (temperature 1, no noise) and the head that
    /// lerobot's `DiffusionRgbEncoder` puts on it.
    SpatialSoftmax {
        /// Keypoints; 32 in robomimic and lerobot.
        #[serde(default = "default_keypoints")]
        keypoints: i64,
    },
    /// All numbers through a linear layer and ReLU: one token of `width` (Mnih et al. 2015: 512).
    Flatten {
        /// The token's width.
        #[serde(default = "default_width")]
        width: i64,
    },
    /// Every place is a token of `C`, row by row (as ACT).
    Grid,
}

fn default_keypoints() -> i64 {
    32 // robomimic SpatialSoftmax and lerobot DiffusionConfig.spatial_softmax_num_keypoints
}

fn default_width() -> i64 {
    512 // Mnih et al. 2015, Nature 518: the layer after the convolutions
}

/// The size of a feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapSize {
    pub(super) channels: i64,
    pub(super) height: i64,
    pub(super) width: i64,
}

impl MapSize {
    /// After a convolution or pooling with a square kernel.
    pub(super) fn convolve(self, channels: i64, kernel: i64, stride: i64, padding: i64) -> Self {
        let out = |size: i64| (size + 2 * padding - kernel).div_euclid(stride) + 1;
        Self { channels, height: out(self.height), width: out(self.width) }
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    kind: PoolKind,
    map: MapSize,
}

#[derive(Debug)]
enum PoolKind {
    Average,
    SpatialSoftmax { scores: Linear, out: Linear },
    Flatten(Linear),
    Grid,
}

impl Pool {
    /// For feature maps of that size.
    pub(super) fn new(scope: &Scope, config: &Pooling, map: MapSize) -> Result<Self, PolicyError> {
        let wanted = match config {
            Pooling::SpatialSoftmax { keypoints } => *keypoints,
            Pooling::Flatten { width } => *width,
            Pooling::Average | Pooling::Grid => 1,
        };
        let one_place =
            matches!(config, Pooling::SpatialSoftmax { .. }) && map.height * map.width < 2;
        if one_place || map.channels < 1 || map.height < 1 || map.width < 1 || wanted < 1 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build an image encoder with {config:?}: the feature map is {}x{}x{}; use larger images, fewer strides or \
                     a positive size",
                    map.channels, map.height, map.width
                ),
            });
        }
        let kind = match *config {
            Pooling::Average => PoolKind::Average,
            Pooling::SpatialSoftmax { keypoints } => PoolKind::SpatialSoftmax {
                // A 1x1 convolution. No bias: a softmax over places does not see it.
                scores: Linear::with_init(
                    &scope.sub("keypoints"),
                    map.channels,
                    keypoints,
                    Init::FanIn,
                    false,
                ),
                out: Linear::new(&scope.sub("out"), 2 * keypoints, 2 * keypoints),
            },
            Pooling::Flatten { width } => {
                let inputs = map.channels * map.height * map.width;
                PoolKind::Flatten(Linear::new(&scope.sub("out"), inputs, width))
            }
            Pooling::Grid => PoolKind::Grid,
        };
        Ok(Self { kind, map })
    }

    pub(super) fn tokens(&self) -> i64 {
        match self.kind {
            PoolKind::Grid => self.map.height * self.map.width,
            _ => 1,
        }
    }

    pub(super) fn width(&self) -> i64 {
        match &self.kind {
            PoolKind::Average | PoolKind::Grid => self.map.channels,
            PoolKind::SpatialSoftmax { out, .. } | PoolKind::Flatten(out) => out.weight.size()[0],
        }
    }

    /// `[M, C, h, w] -> [M, n, W]`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        debug_assert_eq!(x.size()[1..], [self.map.channels, self.map.height, self.map.width]);
        match &self.kind {
            PoolKind::Average => x.mean_dim([2i64, 3].as_slice(), false, None).unsqueeze(1),
            PoolKind::SpatialSoftmax { scores, out } => {
                let places = x.flatten(2, 3).transpose(1, 2);
                let positions = expected_positions(&scores.forward(&places), self.map);
                Activation::Relu.apply(&out.forward(&positions.flatten(1, 2))).unsqueeze(1)
            }
            PoolKind::Flatten(out) => {
                Activation::Relu.apply(&out.forward(&x.flatten(1, 3))).unsqueeze(1)
            }
            PoolKind::Grid => x.flatten(2, 3).transpose(1, 2),
        }
    }
}

/// Softmax over places of `[M, h * w, K]` scores, then the mean `(x, y)` in `[-1, 1]` of each keypoint: `[M, K, 2]`.
fn expected_positions(scores: &Tensor, map: MapSize) -> Tensor {
    let options = (scores.kind(), scores.device());
    let axis = |n: i64| match n {
        1 => Tensor::zeros([1], options),
        n => Tensor::linspace(-1.0, 1.0, n, options),
    };
    let (h, w) = (map.height, map.width);
    let x = axis(w).unsqueeze(0).expand([h, w], false).flatten(0, 1);
    let y = axis(h).unsqueeze(1).expand([h, w], false).flatten(0, 1);
    let weights = scores.softmax(1, Kind::Float).to_kind(scores.kind());
    weights.transpose(1, 2).matmul(&Tensor::stack(&[x, y], 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Params;
    use crate::testing::{assert_golden, fill_with_waves, wave};

    #[test]
    fn a_sharp_peak_is_found_at_its_place() {
        let map = MapSize { channels: 1, height: 3, width: 5 };
        // Row 2, column 1 of 3 x 5: x = -1 + 2 * 1/4 = -0.5, y = 1.
        let scores = Tensor::zeros([1, 15, 1], (Kind::Float, tch::Device::Cpu));
        let _ = scores.get(0).get(11).fill_(100.0);
        let found = Vec::<f32>::try_from(expected_positions(&scores, map).flatten(0, 2)).unwrap();
        assert!((found[0] + 0.5).abs() < 1e-6 && (found[1] - 1.0).abs() < 1e-6, "{found:?}");
        // A uniform map has its mean in the middle.
        let flat = expected_positions(&scores.zeros_like(), map);
        assert!(flat.abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn spatial_softmax_is_pytorchs() {
        let params = Params::new(tch::Device::Cpu, 0);
        let map = MapSize { channels: 6, height: 3, width: 5 };
        let config = Pooling::SpatialSoftmax { keypoints: 4 };
        let pool = Pool::new(&params.root(), &config, map).unwrap();
        fill_with_waves(&params);
        let y = pool.forward(&wave("maps", &[2, 6, 3, 5], 3.0)).squeeze_dim(1);
        assert_golden("spatial_softmax", &y, 1e-5);
    }

    #[test]
    fn convolutions_shrink_maps_as_pytorch_says() {
        let map = MapSize { channels: 3, height: 96, width: 84 };
        let map = map.convolve(64, 7, 2, 3);
        assert_eq!(map, MapSize { channels: 64, height: 48, width: 42 });
        assert_eq!(map.convolve(64, 3, 2, 1), MapSize { channels: 64, height: 24, width: 21 });
        let tiny = MapSize { channels: 3, height: 4, width: 4 };
        assert!(tiny.convolve(8, 8, 4, 0).height < 1);
    }
}
