//! Randomness of a model: one stream per seed, never libtorch's global generator.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};
use simloop_envs::SeedTree;
use tch::{Device, Tensor};

/// A stream of noise. Two streams of one seed give the same numbers; nothing else moves them.
#[derive(Clone, Debug)]
pub struct NoiseStream(ChaCha8Rng);

impl NoiseStream {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(SeedTree::new(seed).child("noise").rng())
    }

    /// Standard normal numbers, f32, of this shape.
    pub fn normal(&mut self, shape: &[i64], device: Device) -> Tensor {
        let values: Vec<f32> =
            (0..count(shape)).map(|_| StandardNormal.sample(&mut self.0)).collect();
        Tensor::from_slice(&values).reshape(shape).to_device(device)
    }

    /// Uniform numbers in `[0, 1)`, f32, of this shape.
    pub fn uniform(&mut self, shape: &[i64], device: Device) -> Tensor {
        let values: Vec<f32> = (0..count(shape)).map(|_| self.0.random::<f32>()).collect();
        Tensor::from_slice(&values).reshape(shape).to_device(device)
    }

    /// An integer in `[0, high)`.
    pub fn integer(&mut self, high: i64) -> i64 {
        self.0.random_range(0..high)
    }

    /// Integers in `[0, high)`, i64, of this shape.
    pub fn integers(&mut self, high: i64, shape: &[i64], device: Device) -> Tensor {
        let values: Vec<i64> = (0..count(shape)).map(|_| self.integer(high)).collect();
        Tensor::from_slice(&values).reshape(shape).to_device(device)
    }
}

fn count(shape: &[i64]) -> usize {
    shape.iter().product::<i64>() as usize
}

/// Standard normal noise `[B, ..shape]` with one stream per row, so that a row does not depend on its batch.
pub fn normal_rows(streams: &mut [NoiseStream], shape: &[i64], device: Device) -> Tensor {
    let row = count(shape);
    let mut values = Vec::with_capacity(streams.len() * row);
    for stream in streams.iter_mut() {
        values.extend((0..row).map(|_| -> f32 { StandardNormal.sample(&mut stream.0) }));
    }
    let shape: Vec<i64> = [streams.len() as i64].iter().chain(shape).copied().collect();
    Tensor::from_slice(&values).reshape(shape).to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_noise_does_not_depend_on_its_batch() {
        let mut alone = [NoiseStream::new(7)];
        let mut batch = [NoiseStream::new(3), NoiseStream::new(7)];
        let a = normal_rows(&mut alone, &[4, 2], Device::Cpu);
        let b = normal_rows(&mut batch, &[4, 2], Device::Cpu);
        assert_eq!(a.get(0), b.get(1));
        assert_ne!(b.get(0), b.get(1));
    }

    #[test]
    fn normal_noise_has_mean_zero_and_deviation_one() {
        let z = NoiseStream::new(0).normal(&[100_000], Device::Cpu);
        assert!(z.mean(None).double_value(&[]).abs() < 0.02);
        assert!((z.std(true).double_value(&[]) - 1.0).abs() < 0.02);
        let u = NoiseStream::new(0).integers(10, &[10_000], Device::Cpu);
        assert_eq!((u.min().int64_value(&[]), u.max().int64_value(&[])), (0, 9));
    }
}
