//! Multi-head attention and the layers around it (Vaswani et al. 2017, arXiv 1706.03762).
//!
//! Deviations from PyTorch's `nn.Transformer*Layer`: no dropout; separate query, key and value projections; the key has
//! no bias, because a softmax over keys does not see it (as in Whisper).

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Activation, LayerNorm, Linear, Scope};
use crate::PolicyError;

/// The size of a transformer's layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// `W`, a multiple of `heads`.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Width of the feed-forward layer.
    pub feed_forward: i64,
    /// Its non-linearity.
    pub activation: Activation,
    /// Normalise before each sub-layer (as GPT-2, ViT) rather than after it (as the paper).
    pub norm_first: bool,
}

impl Default for TransformerConfig {
    /// Ours: half of the base model's width (256 of 512), its 4× feed-forward, ViT's GELU and norm order.
    fn default() -> Self {
        Self {
            width: 256,
            heads: 4,
            feed_forward: 1024,
            activation: Activation::Gelu,
            norm_first: true,
        }
    }
}

impl TransformerConfig {
    /// Checks that sizes are positive and that `heads` divides `width`.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn validate(&self) -> Result<(), PolicyError> {
        let Self { width, heads, feed_forward, .. } = self;
        if *width < 1 || *heads < 1 || *feed_forward < 1 || width % heads != 0 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a transformer of width {width} with {heads} heads and feed_forward {feed_forward}: sizes must \
                     be positive and heads must divide width"
                ),
            });
        }
        Ok(())
    }
}

/// Multi-head attention: queries from one sequence, keys and values from another (or the same).
#[derive(Debug)]
pub struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: i64,
}

impl Attention {
    /// Queries `[B, N, width]` over a memory `[B, M, memory_width]`; `heads` must divide `width`.
    pub fn new(scope: &Scope, width: i64, memory_width: i64, heads: i64) -> Self {
        Self {
            query: Linear::new(&scope.sub("query"), width, width),
            key: Linear::without_bias(&scope.sub("key"), memory_width, width),
            value: Linear::new(&scope.sub("value"), memory_width, width),
            out: Linear::new(&scope.sub("out"), width, width),
            heads,
        }
    }

    /// `[B, N, W]`. `mask` is boolean, true = may look, and broadcasts to `[B, heads, N, M]`.
    pub fn forward(&self, x: &Tensor, memory: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let (keys, values) = self.keys_values(memory);
        self.attend(x, &keys, &values, mask)
    }

    /// The keys and values of a memory `[B, M, memory_width]`, each `[B, heads, M, W / heads]`: what a decoder caches.
    pub fn keys_values(&self, memory: &Tensor) -> (Tensor, Tensor) {
        (self.split(&self.key.forward(memory)), self.split(&self.value.forward(memory)))
    }

    /// [`Attention::forward`] over keys and values computed before.
    pub fn attend(
        &self,
        x: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let query = self.split(&self.query.forward(x));
        let y = Tensor::scaled_dot_product_attention(
            &query, keys, values, mask, 0.0, false, None, false,
        );
        self.out.forward(&y.transpose(1, 2).flatten(2, 3))
    }

    fn split(&self, x: &Tensor) -> Tensor {
        let (b, n, w) = (x.size()[0], x.size()[1], x.size()[2]);
        x.reshape([b, n, self.heads, w / self.heads]).transpose(1, 2)
    }
}

#[derive(Debug)]
struct FeedForward {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    fn new(scope: &Scope, config: &TransformerConfig) -> Self {
        Self {
            up: Linear::new(&scope.sub("up"), config.width, config.feed_forward),
            down: Linear::new(&scope.sub("down"), config.feed_forward, config.width),
            activation: config.activation,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.down.forward(&self.activation.apply(&self.up.forward(x)))
    }
}

/// `x + f(norm(x))`, or `norm(x + f(x))`.
#[derive(Debug)]
struct Residual {
    norm: LayerNorm,
    norm_first: bool,
}

impl Residual {
    fn new(scope: &Scope, config: &TransformerConfig) -> Self {
        Self { norm: LayerNorm::new(scope, config.width, 1e-5), norm_first: config.norm_first }
    }

    fn forward(&self, x: &Tensor, f: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
        if self.norm_first { x + f(&self.norm.forward(x)) } else { self.norm.forward(&(x + f(x))) }
    }
}

/// Self-attention, then feed-forward.
#[derive(Debug)]
pub struct EncoderLayer {
    attention: Attention,
    attention_norm: Residual,
    feed_forward: FeedForward,
    feed_forward_norm: Residual,
}

impl EncoderLayer {
    /// A layer of `config`, which the caller has validated.
    pub fn new(scope: &Scope, config: &TransformerConfig) -> Self {
        Self {
            attention: Attention::new(
                &scope.sub("attention"),
                config.width,
                config.width,
                config.heads,
            ),
            attention_norm: Residual::new(&scope.sub("attention_norm"), config),
            feed_forward: FeedForward::new(&scope.sub("feed_forward"), config),
            feed_forward_norm: Residual::new(&scope.sub("feed_forward_norm"), config),
        }
    }

    /// `count` layers called `0`, `1`, ….
    pub fn stack(scope: &Scope, config: &TransformerConfig, count: usize) -> Vec<Self> {
        (0..count).map(|i| Self::new(&scope.sub(i), config)).collect()
    }

    /// `[B, N, W] -> [B, N, W]`; `mask` as in [`Attention::forward`].
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let x = self.attention_norm.forward(x, |x| self.attention.forward(x, x, mask));
        self.feed_forward_norm.forward(&x, |x| self.feed_forward.forward(x))
    }

    /// The next `N` positions of a causal sequence, given `cache`: the keys and values of the positions before, to which
    /// those of `x` are appended. The new positions see each other too, so feed prefixes that may, or one at a time.
    pub fn forward_cached(&self, x: &Tensor, cache: &mut Option<(Tensor, Tensor)>) -> Tensor {
        let x = self.attention_norm.forward(x, |x| {
            let (keys, values) = self.attention.keys_values(x);
            let (keys, values) = match cache.take() {
                Some((k, v)) => (Tensor::cat(&[k, keys], 2), Tensor::cat(&[v, values], 2)),
                None => (keys, values),
            };
            let y = self.attention.attend(x, &keys, &values, None);
            *cache = Some((keys, values));
            y
        });
        self.feed_forward_norm.forward(&x, |x| self.feed_forward.forward(x))
    }
}

/// Self-attention, attention over a memory, then feed-forward.
#[derive(Debug)]
pub struct DecoderLayer {
    self_attention: Attention,
    self_norm: Residual,
    cross_attention: Attention,
    cross_norm: Residual,
    feed_forward: FeedForward,
    feed_forward_norm: Residual,
}

impl DecoderLayer {
    /// A layer of `config`, which the caller has validated, over a memory of `memory_width`.
    pub fn new(scope: &Scope, config: &TransformerConfig, memory_width: i64) -> Self {
        let (w, h) = (config.width, config.heads);
        Self {
            self_attention: Attention::new(&scope.sub("self_attention"), w, w, h),
            self_norm: Residual::new(&scope.sub("self_norm"), config),
            cross_attention: Attention::new(&scope.sub("cross_attention"), w, memory_width, h),
            cross_norm: Residual::new(&scope.sub("cross_norm"), config),
            feed_forward: FeedForward::new(&scope.sub("feed_forward"), config),
            feed_forward_norm: Residual::new(&scope.sub("feed_forward_norm"), config),
        }
    }

    /// `count` layers called `0`, `1`, ….
    pub fn stack(
        scope: &Scope,
        config: &TransformerConfig,
        memory_width: i64,
        count: usize,
    ) -> Vec<Self> {
        (0..count).map(|i| Self::new(&scope.sub(i), config, memory_width)).collect()
    }

    /// `[B, N, W]` over `[B, M, memory_width]`; `mask` restricts the self-attention, see [`Attention::forward`].
    pub fn forward(&self, x: &Tensor, memory: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let x = self.self_norm.forward(x, |x| self.self_attention.forward(x, x, mask));
        let x = self.cross_norm.forward(&x, |x| self.cross_attention.forward(x, memory, None));
        self.feed_forward_norm.forward(&x, |x| self.feed_forward.forward(x))
    }
}

/// Which position may look at which in a sequence of `n`: itself and those before, and everything in the first `prefix`.
/// Boolean, `[n, n]`.
pub fn causal_mask(n: i64, prefix: i64, device: Device) -> Tensor {
    let position = Tensor::arange(n, (Kind::Int64, device));
    let (query, key) = (position.unsqueeze(1), position.unsqueeze(0));
    key.le_tensor(&query).logical_or(&key.lt(prefix))
}

/// Sine and cosine of positions at geometrically spaced frequencies, `[B] -> [B, width]`: sines first, then cosines,
/// periods up to 2π·10⁴ (diffusion_policy `SinusoidalPosEmb`).
pub fn sinusoidal(positions: &Tensor, width: i64) -> Tensor {
    let half = width / 2;
    let step = -(10_000f64.ln()) / (half - 1).max(1) as f64;
    let frequencies = (Tensor::arange(half, (Kind::Float, Device::Cpu)) * step)
        .exp()
        .to_device(positions.device());
    let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies.unsqueeze(0);
    Tensor::cat(&[angles.sin(), angles.cos()], -1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Params;
    use crate::testing::{
        assert_close, assert_golden, assert_gradient_everywhere, fill_with_waves, random, wave,
    };

    fn small(norm_first: bool) -> TransformerConfig {
        TransformerConfig {
            width: 8,
            heads: 2,
            feed_forward: 16,
            norm_first,
            ..TransformerConfig::default()
        }
    }

    #[test]
    fn one_head_equals_softmax_of_scaled_products() {
        let params = Params::new(Device::Cpu, 0);
        let attention = Attention::new(&params.root(), 4, 6, 1);
        let (x, memory) = (random(1, &[2, 3, 4]), random(2, &[2, 5, 6]));
        let scores =
            attention.query.forward(&x).matmul(&attention.key.forward(&memory).transpose(1, 2))
                / 2.0;
        let expected = attention
            .out
            .forward(&scores.softmax(-1, Kind::Float).matmul(&attention.value.forward(&memory)));
        assert_close(&attention.forward(&x, &memory, None), &expected, 1e-6);
    }

    #[test]
    fn layers_are_pytorchs_in_both_norm_orders() {
        for (norm_first, key) in
            [(true, "transformer_norm_first"), (false, "transformer_norm_last")]
        {
            let (a, b) = (Params::new(Device::Cpu, 0), Params::new(Device::Cpu, 0));
            let encoder = EncoderLayer::new(&a.root(), &small(norm_first));
            let decoder = DecoderLayer::new(&b.root(), &small(norm_first), 8);
            fill_with_waves(&a);
            fill_with_waves(&b);
            let memory = encoder.forward(&wave("memory", &[2, 5, 8], 1.0), None);
            let y = decoder.forward(&wave("x", &[2, 3, 8], 1.0), &memory, None);
            assert_golden(key, &y, 1e-5);
        }
    }

    #[test]
    fn a_masked_position_does_not_matter() {
        let params = Params::new(Device::Cpu, 0);
        let layer = EncoderLayer::new(&params.root(), &small(true));
        let mask = causal_mask(5, 2, Device::Cpu);
        let rows: Vec<Vec<bool>> = Vec::try_from(&mask).unwrap();
        assert_eq!(rows[0], [true, true, false, false, false]);
        assert_eq!(rows[3], [true, true, true, true, false]);
        let a = random(1, &[1, 5, 8]);
        let b = Tensor::cat(&[a.narrow(1, 0, 4), random(2, &[1, 1, 8])], 1);
        let (ya, yb) = (layer.forward(&a, Some(&mask)), layer.forward(&b, Some(&mask)));
        assert_close(&ya.narrow(1, 0, 4), &yb.narrow(1, 0, 4), 0.0);
        assert_ne!(ya.narrow(1, 4, 1), yb.narrow(1, 4, 1));
    }

    #[test]
    fn cached_steps_equal_one_pass_with_a_causal_mask() {
        for norm_first in [true, false] {
            let params = Params::new(Device::Cpu, 0);
            let layers = EncoderLayer::stack(&params.root(), &small(norm_first), 2);
            let x = random(1, &[2, 6, 8]);
            let mask = causal_mask(6, 3, Device::Cpu);
            let whole = layers.iter().fold(x.shallow_clone(), |x, l| l.forward(&x, Some(&mask)));
            let mut caches = vec![None, None];
            let mut parts = Vec::new();
            for (start, n) in [(0, 3), (3, 1), (4, 1), (5, 1)] {
                let mut y = x.narrow(1, start, n);
                for (layer, cache) in layers.iter().zip(&mut caches) {
                    y = layer.forward_cached(&y, cache);
                }
                parts.push(y);
            }
            assert_close(&Tensor::cat(&parts, 1), &whole, 1e-5);
        }
    }

    #[test]
    fn every_parameter_of_both_layers_learns() {
        for norm_first in [true, false] {
            let params = Params::new(Device::Cpu, 0);
            let encoder = EncoderLayer::new(&params.root().sub("e"), &small(norm_first));
            let decoder = DecoderLayer::new(&params.root().sub("d"), &small(norm_first), 8);
            let memory = encoder.forward(&random(1, &[2, 3, 8]), None);
            let y = decoder.forward(&random(2, &[2, 4, 8]), &memory, None);
            assert_eq!(y.size(), [2, 4, 8]);
            assert_gradient_everywhere(&params, &(y * random(3, &[2, 4, 8])).sum(Kind::Float));
        }
    }

    #[test]
    fn sinusoidal_is_diffusion_policys() {
        // [sin(3·1), sin(3·10⁻⁴), cos(3·1), cos(3·10⁻⁴)]: frequencies exp(-i·ln(10⁴)/(half-1)), half = 2.
        let y = sinusoidal(&Tensor::from_slice(&[3f32]), 4);
        let expected = [3f64.sin(), 3e-4f64.sin(), 3f64.cos(), 3e-4f64.cos()];
        for (i, value) in expected.iter().enumerate() {
            assert!((y.double_value(&[0, i as i64]) - value).abs() < 1e-6);
        }
    }

    #[test]
    fn heads_that_do_not_divide_the_width_are_refused() {
        let config = TransformerConfig { heads: 3, ..small(true) };
        assert!(config.validate().unwrap_err().to_string().contains("heads must divide width"));
    }
}
