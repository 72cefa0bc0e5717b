//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face's Llama code.

use tch::{Device, Kind, Tensor};

/// Frequencies of one model.
#[derive(Debug)]
pub struct Rope {
    /// `[head_dim / 2]` f32.
    inverse_frequencies: Tensor,
}

/// Cosines and sines of some positions, `[B or 1, 1, N, head_dim]`.
#[derive(Debug)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// For heads of width `head_dim` (even) and the base `theta`.
    pub fn new(head_dim: i64, theta: f64, device: Device) -> Self {
        let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Int64, Device::Cpu))
            .to_kind(Kind::Float)
            / head_dim as f64;
        let inverse = Tensor::pow_scalar(theta, &exponents).reciprocal();
        Self { inverse_frequencies: inverse.to_device(device) }
    }

    /// Of `positions [B or 1, N]` i64.
    pub fn angles(&self, positions: &Tensor) -> Angles {
        let _guard = tch::no_grad_guard();
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.inverse_frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        Angles { cos: angles.cos(), sin: angles.sin() }
    }
}

impl Angles {
    /// Turns `x [B, heads, N, head_dim]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let turned = Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1);
        x * &self.cos + turned * &self.sin
    }

    /// Shares the tensors.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoiseStream;

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let rope = Rope::new(8, 10_000.0, Device::Cpu);
        let mut noise = NoiseStream::new(0);
        let (q, k) =
            (noise.normal(&[1, 1, 1, 8], Device::Cpu), noise.normal(&[1, 1, 1, 8], Device::Cpu));
        let score = |i: i64, j: i64| {
            let q = rope.angles(&Tensor::from_slice(&[i]).unsqueeze(0)).apply(&q);
            let k = rope.angles(&Tensor::from_slice(&[j]).unsqueeze(0)).apply(&k);
            (q * k).sum(Kind::Float).double_value(&[])
        };
        assert!((score(5, 3) - score(105, 103)).abs() < 1e-4);
        assert!((score(5, 3) - score(5, 4)).abs() > 1e-3);
    }

    #[test]
    fn position_one_turns_the_first_pair_by_one_radian() {
        // Pairs are (0, 2) and (1, 3): head_dim 4, θ = 100, frequencies 1 and 1/10.
        let rope = Rope::new(4, 100.0, Device::Cpu);
        let x = Tensor::from_slice(&[1f32, 0.0, 0.0, 2.0]).reshape([1, 1, 1, 4]);
        let y = rope.angles(&Tensor::from_slice(&[1i64]).unsqueeze(0)).apply(&x).flatten(0, -1);
        let expected = [1f64.cos(), -2.0 * 0.1f64.sin(), 1f64.sin(), 2.0 * 0.1f64.cos()];
        for (i, value) in expected.iter().enumerate() {
            assert!((y.double_value(&[i as i64]) - value).abs() < 1e-6);
        }
    }
}
