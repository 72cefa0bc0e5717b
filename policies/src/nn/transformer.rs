//! Transformer blocks (pre-norm, GELU), shared by fusion, heads and small encoders trained from scratch.
//!
//! Models that follow a published checkpoint (SigLIP, Qwen2) have blocks of their own, with that checkpoint's names.

use tch::{Device, Kind, Tensor};

use super::{Activation, Init, LayerNorm, Linear, Scope};
use crate::PolicyError;

/// Multi-head attention of queries `[B, N, W]` to keys and values `[B, M, W_kv]`.
#[derive(Debug)]
pub struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: i64,
}

impl Attention {
    /// `heads` must divide `width`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if it does not.
    pub fn new(scope: &Scope, width: i64, kv_width: i64, heads: i64) -> Result<Self, PolicyError> {
        if heads < 1 || width % heads != 0 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build attention: {heads} heads do not divide a width of {width}; choose a divisor"
                ),
            });
        }
        let linear =
            |name, inputs| Linear::with_init(&scope.sub(name), inputs, width, Init::Xavier, true);
        Ok(Self {
            q: linear("q_proj", width),
            k: linear("k_proj", kv_width),
            v: linear("v_proj", kv_width),
            out: linear("out_proj", width),
            heads,
        })
    }

    /// `mask`, if given, is added to the scores and broadcasts to `[B, heads, N, M]`; `causal` lets position i see 0..=i.
    pub fn forward(
        &self,
        query: &Tensor,
        memory: &Tensor,
        mask: Option<&Tensor>,
        causal: bool,
    ) -> Tensor {
        let split = |x: Tensor| x.unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let (q, k, v) = (
            split(self.q.forward(query)),
            split(self.k.forward(memory)),
            split(self.v.forward(memory)),
        );
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, None, false);
        self.out.forward(&y.transpose(1, 2).flatten(2, 3))
    }
}

/// Self-attention, optional cross-attention to a memory, and a feed-forward part of 4 × width, each behind a norm and
/// beside a residual.
#[derive(Debug)]
pub struct Block {
    norm1: LayerNorm,
    attention: Attention,
    cross: Option<(LayerNorm, Attention)>,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    causal: bool,
}

impl Block {
    /// Over `[B, N, width]`; with `memory_width` it also attends to a memory `[B, M, memory_width]`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if `heads` does not divide `width`.
    pub fn new(
        scope: &Scope,
        width: i64,
        heads: i64,
        memory_width: Option<i64>,
        causal: bool,
    ) -> Result<Self, PolicyError> {
        let cross = memory_width
            .map(|memory| {
                Ok::<_, PolicyError>((
                    LayerNorm::new(&scope.sub("norm_cross"), width, 1e-5),
                    Attention::new(&scope.sub("cross_attn"), width, memory, heads)?,
                ))
            })
            .transpose()?;
        Ok(Self {
            norm1: LayerNorm::new(&scope.sub("norm1"), width, 1e-5),
            attention: Attention::new(&scope.sub("self_attn"), width, width, heads)?,
            cross,
            norm2: LayerNorm::new(&scope.sub("norm2"), width, 1e-5),
            fc1: Linear::new(&scope.sub("fc1"), width, 4 * width),
            fc2: Linear::new(&scope.sub("fc2"), 4 * width, width),
            causal,
        })
    }

    /// `[B, N, W] -> [B, N, W]`. `memory` must be given exactly if the block was built with one.
    pub fn forward(&self, x: &Tensor, memory: Option<&Tensor>, mask: Option<&Tensor>) -> Tensor {
        let h = self.norm1.forward(x);
        let mut x = x + self.attention.forward(&h, &h, mask, self.causal);
        if let (Some((norm, attention)), Some(memory)) = (&self.cross, memory) {
            x = &x + attention.forward(&norm.forward(&x), memory, None, false);
        }
        let h = Activation::Gelu.apply(&self.fc1.forward(&self.norm2.forward(&x)));
        &x + self.fc2.forward(&h)
    }
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
    use crate::NoiseStream;
    use crate::nn::Params;

    #[test]
    fn causal_blocks_do_not_look_ahead_and_others_do() {
        for causal in [true, false] {
            let params = Params::new(Device::Cpu, 0);
            let block = Block::new(&params.root(), 8, 2, None, causal).unwrap();
            let x = NoiseStream::new(0).normal(&[1, 4, 8], Device::Cpu);
            let changed = x.copy();
            let _ = changed.narrow(1, 3, 1).fill_(5.0);
            let a = block.forward(&x, None, None).narrow(1, 0, 3);
            let b = block.forward(&changed, None, None).narrow(1, 0, 3);
            assert_eq!(a.allclose(&b, 0.0, 0.0, false), causal);
        }
    }

    #[test]
    fn cross_attention_reads_the_memory() {
        let params = Params::new(Device::Cpu, 0);
        let block = Block::new(&params.root(), 8, 2, Some(6), false).unwrap();
        let mut noise = NoiseStream::new(0);
        let x = noise.normal(&[2, 4, 8], Device::Cpu);
        let memory = noise.normal(&[2, 5, 6], Device::Cpu);
        let a = block.forward(&x, Some(&memory), None);
        let b = block.forward(&x, Some(&(&memory + 1.0)), None);
        assert_eq!(a.size(), [2, 4, 8]);
        assert!(!a.allclose(&b, 1e-3, 1e-3, false));
        assert!(Block::new(&params.root().sub("x"), 8, 3, None, false).is_err());
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
}
