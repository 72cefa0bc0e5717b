//! What attention in published checkpoints needs beyond [`transformer`](super::transformer): masks from padding, groups
//! of query heads, and PyTorch's packed layer.

use tch::{Device, Kind, Tensor};

use super::{Init, Linear, Scope};
use crate::PolicyError;

/// Which keys a query may see, `[B, 1, N, M]` bool: those that `valid [B, M]` (nonzero = real) allows and, if `causal`,
/// those that are not after it; the `N` queries are the last of the `M` positions.
pub fn mask(valid: &Tensor, queries: i64, causal: bool) -> Tensor {
    let size = valid.size();
    let (b, keys) = (size[0], size[1]);
    let seen = valid.ne(0).reshape([b, 1, 1, keys]);
    if causal {
        let ones = Tensor::ones([queries, keys], (Kind::Bool, valid.device()));
        seen.logical_and(&ones.tril(keys - queries))
    } else {
        seen.expand([b, 1, queries, keys], false)
    }
}

/// Repeats key or value heads so that each query head has one: `[B, G, N, W] -> [B, G · times, N, W]`.
pub fn repeat_heads(x: &Tensor, times: i64) -> Tensor {
    if times == 1 {
        return x.shallow_clone();
    }
    let size = x.size();
    let (b, groups, n, width) = (size[0], size[1], size[2], size[3]);
    x.unsqueeze(2).expand([b, groups, times, n, width], false).reshape([
        b,
        groups * times,
        n,
        width,
    ])
}

/// Multi-head self-attention with biases everywhere, in the names of CLIP and SigLIP (`q_proj`, `k_proj`, `v_proj`,
/// `out_proj`).
#[derive(Debug)]
pub struct ProjectedAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: i64,
}

impl ProjectedAttention {
    /// `heads` must divide `width`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if it does not.
    pub fn new(scope: &Scope, width: i64, heads: i64) -> Result<Self, PolicyError> {
        divide(width, heads)?;
        let linear = |name| Linear::with_init(&scope.sub(name), width, width, Init::Xavier, true);
        Ok(Self {
            q: linear("q_proj"),
            k: linear("k_proj"),
            v: linear("v_proj"),
            out: linear("out_proj"),
            heads,
        })
    }

    /// `[B, N, W] -> [B, N, W]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let split = |x: Tensor| x.unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let (q, k, v) =
            (split(self.q.forward(x)), split(self.k.forward(x)), split(self.v.forward(x)));
        let mask = None::<&Tensor>;
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, false, None, false);
        self.out.forward(&y.transpose(1, 2).flatten(2, 3))
    }
}

fn divide(width: i64, heads: i64) -> Result<(), PolicyError> {
    if heads >= 1 && width % heads == 0 {
        return Ok(());
    }
    Err(PolicyError::Config {
        detail: format!("build attention: {heads} heads do not divide a width of {width}"),
    })
}

/// Multi-head attention with the parameters of PyTorch's `nn.MultiheadAttention`: one matrix for queries, keys and
/// values.
#[derive(Debug)]
pub struct PackedAttention {
    weight: Tensor,
    bias: Tensor,
    out: Linear,
    heads: i64,
}

impl PackedAttention {
    /// `heads` must divide `width`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if it does not.
    pub fn new(scope: &Scope, width: i64, heads: i64) -> Result<Self, PolicyError> {
        divide(width, heads)?;
        Ok(Self {
            weight: scope.param("in_proj_weight", &[3 * width, width], Init::Xavier),
            bias: scope.param("in_proj_bias", &[3 * width], Init::Zeros),
            out: Linear::new(&scope.sub("out_proj"), width, width),
            heads,
        })
    }

    /// `query [B, N, W]`, `memory [B, M, W] -> [B, N, W]`, in the order of PyTorch's path that returns weights.
    pub fn forward(&self, query: &Tensor, memory: &Tensor) -> Tensor {
        let (query, memory) = (query.to_kind(Kind::Float), memory.to_kind(Kind::Float));
        let width = self.weight.size()[1];
        let part = |x: &Tensor, from: i64, parts: i64| {
            let (from, count) = (from * width, parts * width);
            x.linear(&self.weight.narrow(0, from, count), Some(self.bias.narrow(0, from, count)))
        };
        let split = |x: &Tensor| x.unflatten(-1, [self.heads, -1]).transpose(1, 2);
        let q = split(&part(&query, 0, 1));
        let kv = part(&memory, 1, 2).chunk(2, -1);
        let (k, v) = (split(&kv[0]), split(&kv[1]));
        let scale = (1.0 / (width / self.heads) as f64).sqrt();
        let weights = (q * scale).matmul(&k.transpose(-2, -1)).softmax(-1, Kind::Float);
        self.out.forward(&weights.matmul(&v).transpose(1, 2).flatten(2, 3))
    }
}

/// `[1, N]` i64: 0, 1, …, after `past` positions.
pub fn positions(n: i64, past: i64, device: Device) -> Tensor {
    Tensor::arange_start(past, past + n, (Kind::Int64, device)).unsqueeze(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoiseStream;
    use crate::nn::Params;

    #[test]
    fn masks_hide_padding_and_the_future() {
        let valid = Tensor::from_slice(&[0i64, 1, 1]).unsqueeze(0);
        let rows = |m: &Tensor| Vec::<bool>::try_from(m.flatten(0, -1)).unwrap();
        assert_eq!(
            rows(&mask(&valid, 3, true)),
            [false, false, false, false, true, false, false, true, true]
        );
        assert_eq!(rows(&mask(&valid, 1, true)), [false, true, true]);
        assert_eq!(rows(&mask(&valid, 1, false)), [false, true, true]);
    }

    #[test]
    fn packed_attention_equals_the_fused_kernel() {
        let params = Params::new(Device::Cpu, 0);
        let attention = PackedAttention::new(&params.root(), 8, 2).unwrap();
        let mut noise = NoiseStream::new(0);
        let q = noise.normal(&[2, 3, 8], Device::Cpu);
        let m = noise.normal(&[2, 5, 8], Device::Cpu);
        let y = attention.forward(&q, &m);
        let w = params.get("in_proj_weight").unwrap();
        let head = |x: &Tensor, i: i64| {
            x.matmul(&w.narrow(0, i * 8, 8).tr()).unflatten(-1, [2, 4]).transpose(1, 2)
        };
        let (hq, hk, hv) = (head(&q, 0), head(&m, 1), head(&m, 2));
        let fused = Tensor::scaled_dot_product_attention(
            &hq,
            &hk,
            &hv,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        );
        let fused = attention.out.forward(&fused.transpose(1, 2).flatten(2, 3));
        assert!(y.allclose(&fused, 1e-5, 1e-6, false));
        assert!(PackedAttention::new(&params.root().sub("x"), 8, 3).is_err());
    }

    #[test]
    fn repeated_heads_stay_beside_their_origin() {
        let x = Tensor::arange(2, (Kind::Float, Device::Cpu)).reshape([1, 2, 1, 1]);
        let y: Vec<f32> = Vec::try_from(repeat_heads(&x, 2).flatten(0, -1)).unwrap();
        assert_eq!(y, [0.0, 0.0, 1.0, 1.0]);
    }
}
