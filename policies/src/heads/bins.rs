//! Actions as tokens: every number of the chunk is one of 256 classes.
//!
//! Source: OpenVLA (arXiv 2406.09246, `prismatic/vla/action_tokenizer.py`), after RT-2: edges `linspace(-1, 1, 256)`, `np.digitize`,
//! decoded to one of 255 centres; the class of 1.0 itself (bin 256) decodes to the last centre. Deviation: all numbers are predicted
//! in parallel from one query per action, as OpenVLA-OFT does (arXiv 2502.19645), not one after the other by a language
//! model.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};

use super::decoder::{ChunkDecoder, ChunkDecoderConfig};
use super::{Head, HeadShape};
use crate::fusion::Context;
use crate::nn::{Linear, Scope};
use crate::{ActMode, NoiseStream, PolicyError};

/// Settings of [`BinsHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BinsConfig {
    /// Classes per number, at least 2.
    pub bins: i64,
    /// Least action; lower ones are clipped.
    pub low: f64,
    /// Greatest action; higher ones are clipped.
    pub high: f64,
    /// The transformer that predicts them.
    pub decoder: ChunkDecoderConfig,
}

impl Default for BinsConfig {
    /// action_tokenizer.py: 256 bins in [-1, 1].
    fn default() -> Self {
        Self { bins: 256, low: -1.0, high: 1.0, decoder: ChunkDecoderConfig::default() }
    }
}

/// Numbers to classes and back, as OpenVLA.
#[derive(Clone, Debug)]
pub struct Bins {
    /// `[bins]` f64.
    edges: Vec<f64>,
}

impl Bins {
    /// `bins` edges from `low` to `high`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] unless `2 <= bins <= 65536` and `low < high`.
    pub fn new(bins: i64, low: f64, high: f64) -> Result<Self, PolicyError> {
        let sizes = (2..=65_536).contains(&bins);
        if !(sizes && low < high && low.is_finite() && high.is_finite()) {
            return Err(PolicyError::Config {
                detail: format!(
                    "build {bins} action bins from {low} to {high}: 2 to 65536 bins and low < high are needed"
                ),
            });
        }
        // numpy's linspace: start + i * step, and the last is `stop` itself.
        let step = (high - low) / (bins - 1) as f64;
        let mut edges: Vec<f64> = (0..bins).map(|i| low + i as f64 * step).collect();
        if let Some(last) = edges.last_mut() {
            *last = high;
        }
        Ok(Self { edges })
    }

    /// The class of each number, i64 in `0..bins`, same shape: OpenVLA's bin minus one.
    pub fn encode(&self, actions: &Tensor) -> Tensor {
        let (low, high) = (self.edges[0], self.edges[self.edges.len() - 1]);
        // Double, as np.digitize compares; `right` in torch means what it does not in numpy.
        let clipped = actions.to_kind(Kind::Double).clamp(low, high);
        clipped.bucketize(&self.edges(actions.device()), false, true) - 1
    }

    /// The centre of each class, f32, same shape.
    pub fn decode(&self, classes: &Tensor) -> Tensor {
        let edges = self.edges(classes.device());
        let n = self.edges.len() as i64;
        let centres = (edges.narrow(0, 0, n - 1) + edges.narrow(0, 1, n - 1)) / 2.0;
        let index = classes.clamp(0, n - 2);
        centres.to_kind(Kind::Float).index_select(0, &index.flatten(0, -1)).view_as(classes)
    }

    fn edges(&self, device: Device) -> Tensor {
        Tensor::from_slice(&self.edges).to_device(device)
    }
}

/// See the module.
#[derive(Debug)]
pub struct BinsHead {
    decoder: ChunkDecoder,
    out: Linear,
    bins: Bins,
    shape: HeadShape,
}

impl BinsHead {
    /// For contexts and chunks of `shape`.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(scope: &Scope, config: &BinsConfig, shape: HeadShape) -> Result<Self, PolicyError> {
        let bins = Bins::new(config.bins, config.low, config.high)?;
        let decoder = ChunkDecoder::new(&scope.sub("decoder"), &config.decoder, shape)?;
        let width = config.decoder.transformer.width;
        let out = Linear::new(&scope.sub("out"), width, shape.action_dim * config.bins);
        Ok(Self { decoder, out, bins, shape })
    }

    /// Logits of the classes, `[B, T_p, D, bins]`, with gradient.
    ///
    /// # Errors
    /// [`PolicyError::Shape`].
    pub fn logits(&self, context: &Context) -> Result<Tensor, PolicyError> {
        let b = self.shape.expect_context(context)?;
        let HeadShape { chunk_size, action_dim, .. } = self.shape;
        let logits = self.out.forward(&self.decoder.forward(context, None));
        Ok(logits.to_kind(Kind::Float).reshape([b, chunk_size, action_dim, -1]))
    }
}

/// A class per row of `[B, .., K]` logits by the Gumbel-max trick, each row of the batch from its own stream: `[B, ..]`.
pub(super) fn sample_classes(logits: &Tensor, noise: &mut [NoiseStream]) -> Tensor {
    let shape = &logits.size()[1..];
    let rows: Vec<Tensor> = noise.iter_mut().map(|s| s.uniform(shape, Device::Cpu)).collect();
    let uniform = Tensor::stack(&rows, 0).to_device(logits.device());
    (logits - (-uniform.log()).log()).argmax(-1, false)
}

impl Head for BinsHead {
    /// Cross-entropy, nats, averaged over `D`.
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        _noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        self.shape.expect_batch(context, actions, valid)?;
        let logits = self.logits(context)?.flatten(0, 2);
        let target = self.bins.encode(actions);
        let flat = target.flatten(0, 2);
        let loss = logits.cross_entropy_loss::<Tensor>(&flat, None, Reduction::None, -100, 0.0);
        Ok(loss.view_as(&target).mean_dim(-1, false, None))
    }

    /// The centre of the most likely class, or of a sampled one.
    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.shape.expect_streams(context, noise)?;
        let logits = self.logits(context)?;
        let classes = match mode {
            ActMode::Deterministic => logits.argmax(-1, false),
            ActMode::Stochastic => sample_classes(&logits, noise),
        };
        Ok(self.bins.decode(&classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::HeadConfig;
    use crate::heads::testing::{check_head, check_learns_a_linear_policy};
    use crate::nn::TransformerConfig;

    fn config(bins: i64) -> BinsConfig {
        BinsConfig {
            bins,
            decoder: ChunkDecoderConfig {
                transformer: TransformerConfig {
                    width: 32,
                    heads: 2,
                    feed_forward: 64,
                    ..TransformerConfig::default()
                },
                ..ChunkDecoderConfig::default()
            },
            ..BinsConfig::default()
        }
    }

    #[test]
    fn it_is_a_head() {
        check_head(&HeadConfig::Bins(config(256)));
    }

    #[test]
    fn it_learns_a_linear_policy() {
        check_learns_a_linear_policy(&HeadConfig::Bins(config(32)), 200, 5e-3, 0.1);
    }

    #[test]
    fn classes_and_centres_are_openvlas() {
        let bins = Bins::new(256, -1.0, 1.0).unwrap();
        // numpy: np.digitize(x, np.linspace(-1, 1, 256)) - 1 for the f32 values below, and
        // bin_centers[np.clip(bin - 1, 0, 254)].
        let x =
            [-2.0f32, -1.0, -0.999, -0.5, -0.003_921_569, 0.0, 0.003_921_569, 0.5, 0.999, 1.0, 7.0];
        let classes = Vec::<i64>::try_from(bins.encode(&Tensor::from_slice(&x))).unwrap();
        assert_eq!(classes, NUMPY_CLASSES);
        let back = bins.decode(&Tensor::from_slice(&classes));
        let back = Vec::<f32>::try_from(back).unwrap();
        for ((x, y), expected) in x.iter().zip(&back).zip(NUMPY_CENTRES) {
            assert!((f64::from(*y) - expected).abs() < 1e-7, "{x} -> {y}, numpy {expected}");
            assert!((x.clamp(-1.0, 1.0) - y).abs() <= 1.0 / 255.0 + 1e-6);
        }
    }

    const NUMPY_CLASSES: [i64; 11] = [0, 0, 0, 63, 126, 127, 128, 191, 254, 255, 255];
    const NUMPY_CENTRES: [f64; 11] = [
        -0.996_078_431_372_549,
        -0.996_078_431_372_549,
        -0.996_078_431_372_549,
        -0.501_960_784_313_725_5,
        -0.007_843_137_254_901_933,
        0.0,
        0.007_843_137_254_901_933,
        0.501_960_784_313_725_5,
        0.996_078_431_372_549,
        0.996_078_431_372_549,
        0.996_078_431_372_549,
    ];

    #[test]
    fn samples_follow_the_distribution() {
        let p = [0.1f32, 0.2, 0.7];
        let logits = Tensor::from_slice(&p).log().reshape([1, 3]).repeat([4000, 1]);
        let mut streams: Vec<NoiseStream> = (0..4000).map(NoiseStream::new).collect();
        let classes = sample_classes(&logits, &mut streams);
        for (class, p) in p.iter().enumerate() {
            let share = classes.eq(class as i64).to_kind(Kind::Float).mean(None);
            assert!((share.double_value(&[]) - f64::from(*p)).abs() < 0.025, "{class} {share:?}");
        }
    }

    #[test]
    fn an_empty_range_is_refused() {
        assert!(Bins::new(256, 1.0, 1.0).is_err());
        assert!(Bins::new(1, -1.0, 1.0).is_err());
        assert!(Bins::new(256, f64::NAN, 1.0).is_err());
    }
}
