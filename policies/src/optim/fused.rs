//! AdamW's arithmetic in one pass over memory, for parameters on a CPU.
//!
//! As tensor operations an update reads and writes every buffer a dozen times; this reads and writes each once (measured by
//! `cargo bench -p simloop-policies --bench optimizer`). Elements do not depend on each other and no product is fused with a sum, so
//! the result is the same for every instruction set.

use tch::Tensor;

use crate::raw::{floats, floats_mut, widest};

/// The numbers of one update, for one group of parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coefficients {
    /// Factor of the gradient: clipping.
    pub(super) clip: f32,
    /// Factor of the parameter: `1 - lr λ`.
    pub(super) keep: f32,
    /// `1 - β₁`.
    pub(super) rate1: f32,
    /// `β₂`.
    pub(super) beta2: f32,
    /// `1 - β₂`.
    pub(super) rate2: f32,
    /// `√(1 - β₂ᵗ)`.
    pub(super) correction2: f32,
    /// Added to the denominator.
    pub(super) eps: f32,
    /// `-lr / (1 - β₁ᵗ)`.
    pub(super) step: f32,
}

/// Updates `values`, `exp_avg` and `exp_avg_sq` by `grads`; all contiguous f32 on the CPU, of one length, parts of buffers
/// of their own.
pub(super) fn update(
    values: &mut Tensor,
    grads: &Tensor,
    exp_avg: &mut Tensor,
    exp_avg_sq: &mut Tensor,
    c: Coefficients,
) {
    let n = values.numel();
    let (p, m, v) = (floats_mut(values), floats_mut(exp_avg), floats_mut(exp_avg_sq));
    let g = floats(grads);
    assert!(
        [g.len(), m.len(), v.len()].iter().all(|&len| len == n),
        "the optimizer's buffers are of one length"
    );
    if n == 0 {
        return;
    }
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).min(n / PER_THREAD);
    spread(p, g, m, v, c, threads.max(1));
}

/// In `threads` pieces, one per thread: elements do not depend on each other, so the number decides nothing.
fn spread(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: Coefficients, threads: usize) {
    if threads == 1 {
        return run(p, g, m, v, c);
    }
    let size = p.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let pieces =
            p.chunks_mut(size).zip(g.chunks(size)).zip(m.chunks_mut(size)).zip(v.chunks_mut(size));
        for (i, (((p, g), m), v)) in pieces.enumerate() {
            // The last piece is for this thread.
            if i + 1 == threads {
                run(p, g, m, v, c);
            } else {
                scope.spawn(move || run(p, g, m, v, c));
            }
        }
    });
}

/// Numbers that are worth a thread of their own: a quarter of a millisecond.
const PER_THREAD: usize = 1 << 19;

/// `Σ x²` of a contiguous f32 tensor on the CPU, in f64; the same bits on every processor.
pub(super) fn sum_of_squares(x: &Tensor) -> f64 {
    let x = floats(x);
    let mut sum = 0.0;
    add_squares(&mut sum, x);
    sum
}

widest! {
    fn add_squares(sum: &mut f64, x: &[f32]) {
        // Eight sums side by side, so that the compiler may use wide registers in the order written here.
        let mut lanes = [0f64; 8];
        let chunks = x.chunks_exact(8);
        let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        for chunk in chunks {
            for (lane, &v) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(v) * f64::from(v);
            }
        }
        *sum = lanes.iter().sum::<f64>() + rest;
    }
}

/// Zero for what is too small for a normal number (detail 6 of `adamw.rs`).
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled into each instruction set's copy")]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}

widest! {
    /// The arithmetic, in the order of PyTorch's kernels.
    fn run(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: Coefficients) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = *g * c.clip;
            *m = flushed(*m + c.rate1 * (g - *m));
            *v = flushed(*v * c.beta2 + c.rate2 * g * g);
            let denominator = v.sqrt() / c.correction2 + c.eps;
            *p = *p * c.keep + c.step * *m / denominator;
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_number_of_threads_changes_no_bit_and_leaves_no_number_out() {
        let numbers = |seed: u64| {
            let x = crate::NoiseStream::new(seed).normal(&[1003], Device::Cpu);
            Vec::<f32>::try_from(x).unwrap()
        };
        let c = Coefficients {
            clip: 0.5,
            keep: 0.999,
            rate1: 0.1,
            beta2: 0.99,
            rate2: 0.01,
            correction2: 0.1,
            eps: 1e-8,
            step: -1e-3,
        };
        let run = |threads: usize| {
            let (mut p, g, mut m) = (numbers(0), numbers(1), numbers(2));
            let mut v = vec![1.0; 1003];
            spread(&mut p, &g, &mut m, &mut v, c, threads);
            (p, m, v)
        };
        let one = run(1);
        assert!(one.0.iter().zip(numbers(0)).all(|(after, before)| *after != before));
        for threads in [2, 3, 7] {
            assert!(run(threads) == one, "{threads} threads");
        }
    }

    #[test]
    fn moments_that_fade_become_zero_and_the_parameter_does_not_notice() {
        let least = f32::MIN_POSITIVE;
        let c = Coefficients {
            clip: 1.0,
            keep: 1.0,
            rate1: 0.1,
            beta2: 0.999,
            rate2: 0.001,
            correction2: 1.0,
            eps: 1e-8,
            step: -1e-3,
        };
        let (mut p, mut m, mut v) = ([0.5, 0.5], [least, -2.0 * least], [least, 2.0 * least]);
        run(&mut p, &[0.0; 2], &mut m, &mut v, c);
        assert_eq!((p, m[0], v[0]), ([0.5; 2], 0.0, 0.0));
        assert!(m[1] < 0.0 && v[1] > 0.0);
    }

    #[test]
    fn the_sum_of_squares_takes_every_number() {
        for n in [0, 1, 7, 8, 9, 1003] {
            let x = Tensor::arange(n, (Kind::Float, Device::Cpu));
            let expected = (0..n).map(|i| (i * i) as f64).sum::<f64>();
            assert_eq!(sum_of_squares(&x), expected, "{n}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let numbers = |seed: u64| {
            let x = crate::NoiseStream::new(seed).normal(&[1003], Device::Cpu);
            Vec::<f32>::try_from(x).unwrap()
        };
        let squares: Vec<f32> = numbers(3).iter().map(|x| x * x).collect();
        let c = Coefficients {
            clip: 0.37,
            keep: 0.999,
            rate1: 0.1,
            beta2: 0.999,
            rate2: 0.001,
            correction2: 0.031_6,
            eps: 1e-8,
            step: -1.3e-3,
        };
        let g = numbers(1);
        let (mut p, mut m, mut v) = (numbers(0), numbers(2), squares.clone());
        run(&mut p, &g, &mut m, &mut v, c);
        let (mut p2, mut m2, mut v2) = (numbers(0), numbers(2), squares);
        for i in 0..p2.len() {
            // One at a time: nothing to vectorise.
            let at = i..=i;
            run(
                &mut p2[at.clone()],
                std::hint::black_box(&g[at.clone()]),
                &mut m2[at.clone()],
                &mut v2[at],
                c,
            );
        }
        assert_eq!((p, m, v), (p2, m2, v2));
    }
}
