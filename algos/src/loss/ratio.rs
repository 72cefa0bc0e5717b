//! Losses on the ratio of two policies' likelihoods: PPO's clipped surrogate and the divergence from a reference.
//!
//! Sources: PPO (arXiv 1707.06347), Stable-Baselines3 `ppo/ppo.py` for what is reported, GRPO (arXiv 2402.03300) and Schulman's
//! note "Approximating KL Divergence" (2020) for the estimator k3, DAPO (arXiv 2503.14476) for two-sided clipping.
//! `N` decisions; `K` ratios per decision: 1 for a chunk, or one per action or token.

use tch::Tensor;

use super::{expect_dims, expect_shape, like, masked_mean, numbers};
use crate::AlgoError;

/// How far a ratio may move: `[1 - low, 1 + high]`. PPO has both equal; a greater `high` is DAPO's clip-higher
/// (Yu et al. 2025, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Below one.
    pub low: f64,
    /// Above one.
    pub high: f64,
}

/// What [`clipped_surrogate`] returns.
#[derive(Debug)]
pub struct Surrogate {
    /// To be minimised.
    pub loss: f64,
    /// Its gradient for the new log-probs, `[N, K]`.
    pub slope: Tensor,
    /// The part of the ratios that lie outside the clip's range.
    pub clip_fraction: f64,
    /// KL(old || new) by k3, `mean((r - 1) - ln r)`, nats (Stable-Baselines3's `approx_kl`). The actions are drawn from
    /// the old policy and `r = new / old`.
    pub approx_kl: f64,
}

/// PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated: `-mean(min(r A, clip(r) A))` over the ratios that are
/// valid, `r = exp(new - old)`.
///
/// All inputs are `[N, K]`: log-probs, advantages, and 1 or 0, or none where all count. What stands in padding does not matter
/// as long as it is finite.
///
/// # Errors
/// [`AlgoError::TensorShape`] unless every input has the shape of `new`.
pub fn clipped_surrogate(
    new: &Tensor,
    old: &Tensor,
    advantage: &Tensor,
    valid: Option<&Tensor>,
    clip: Clip,
) -> Result<Surrogate, AlgoError> {
    let shape: [i64; 2] = expect_dims("new log-probs", new)?;
    expect_shape("old log-probs", old, &shape)?;
    expect_shape("advantage", advantage, &shape)?;
    if let Some(valid) = valid {
        expect_shape("valid", valid, &shape)?;
    }
    let valid = valid.map(numbers);
    let counts = |i: usize| valid.as_ref().is_none_or(|valid| valid[i] != 0.0);
    let rows = numbers(new).into_iter().zip(numbers(old)).zip(numbers(advantage));
    let count = (0..new.numel()).filter(|&i| counts(i)).count().max(1) as f64;
    let (least, most) = (1.0 - clip.low, 1.0 + clip.high);
    let (mut loss, mut outside, mut k3) = (0.0, 0.0, 0.0);
    let mut slope = vec![0.0; new.numel()];
    for (i, ((new, old), advantage)) in rows.enumerate().filter(|(i, _)| counts(*i)) {
        let log_ratio = new - old;
        let ratio = log_ratio.exp();
        let (free, clipped) = (ratio * advantage, ratio.clamp(least, most) * advantage);
        // The clipped gain counts where it is less, and has no slope there.
        loss -= if clipped < free { clipped } else { free };
        slope[i] = if clipped < free { 0.0 } else { -free / count };
        outside += f64::from(u8::from(ratio < least || ratio > most));
        k3 += ratio - 1.0 - log_ratio;
    }
    Ok(Surrogate {
        loss: loss / count,
        slope: like(new, &slope),
        clip_fraction: outside / count,
        approx_kl: k3 / count,
    })
}

/// KL(new || reference) by k3 (Schulman 2020; GRPO, Shao et al. 2024, eq. 4): the mean of
/// `exp(reference - new) - (reference - new) - 1` over what is valid; scalar, nats, with gradient to `new`. Never negative; as
/// an estimate unbiased while the actions come from `new`.
///
/// # Errors
/// [`AlgoError::TensorShape`] unless every input is `[N, K]`.
pub fn kl_to_reference(
    new: &Tensor,
    reference: &Tensor,
    valid: &Tensor,
) -> Result<Tensor, AlgoError> {
    let shape: [i64; 2] = expect_dims("new log-probs", new)?;
    expect_shape("reference log-probs", reference, &shape)?;
    expect_shape("valid", valid, &shape)?;
    let log_ratio = (reference.detach() - new) * valid;
    Ok(masked_mean(&(log_ratio.exp() - &log_ratio - 1.0), valid))
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.2 };

    fn column(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).unsqueeze(1)
    }

    #[test]
    fn a_ratio_out_of_range_in_the_advantages_direction_gets_no_gradient() {
        // Ratios 1.5, 1.5, 0.5, 0.5 with advantages 1, -1, 1, -1: the first and the last are clipped.
        let ratio = [1.5f32, 1.5, 0.5, 0.5];
        let new = column(&ratio.map(f32::ln));
        let advantage = column(&[1.0, -1.0, 1.0, -1.0]);
        let result = clipped_surrogate(&new, &new.zeros_like(), &advantage, None, CLIP).unwrap();
        // -(1.2 - 1.5 + 0.5 - 0.8) / 4.
        assert!((result.loss - 0.15).abs() < 1e-6);
        let all = new.ones_like();
        let masked =
            clipped_surrogate(&new, &new.zeros_like(), &advantage, Some(&all), CLIP).unwrap();
        assert_eq!(masked.loss, result.loss);
        assert_eq!(masked.approx_kl, result.approx_kl);
        assert_eq!(result.clip_fraction, 1.0);
        let k3 = (2.0 * (0.5 - 1.5f64.ln()) + 2.0 * (-0.5 - 0.5f64.ln())) / 4.0;
        assert!((result.approx_kl - k3).abs() < 1e-6);
        let grad = Vec::<f32>::try_from(result.slope.flatten(0, -1)).unwrap();
        assert_eq!((grad[0], grad[3]), (0.0, 0.0));
        assert!((grad[1] - 1.5 / 4.0).abs() < 1e-6 && (grad[2] + 0.5 / 4.0).abs() < 1e-6);
    }

    #[test]
    fn what_stands_in_padding_does_not_matter() {
        let valid = Tensor::from_slice2(&[[1f32, 0.0], [1.0, 0.0]]);
        let run = |padding: f32| {
            let new = Tensor::from_slice2(&[[-1f32, padding], [-2.0, padding]]);
            let new = new.set_requires_grad(true);
            let old = Tensor::from_slice2(&[[-1.1f32, 0.0], [-1.9, 0.0]]);
            let advantage = Tensor::from_slice2(&[[1f32, 5.0], [-1.0, 5.0]]);
            let result = clipped_surrogate(&new, &old, &advantage, Some(&valid), CLIP).unwrap();
            let kl = kl_to_reference(&new, &old, &valid).unwrap();
            kl.backward();
            for grad in [new.grad(), result.slope] {
                assert_eq!(grad.narrow(1, 1, 1).abs().sum(Kind::Float).double_value(&[]), 0.0);
            }
            (result.loss, result.clip_fraction, result.approx_kl, kl.double_value(&[]))
        };
        assert_eq!(run(0.0), run(1e4)); // e^10000 overflows
        assert_eq!(run(0.0), run(-1e4));
    }

    #[test]
    fn equal_policies_are_at_distance_zero_and_shapes_are_checked() {
        let a = column(&[-1.0, -2.0]);
        let ones = a.ones_like();
        assert_eq!(kl_to_reference(&a, &a, &ones).unwrap().double_value(&[]), 0.0);
        let flat = a.squeeze_dim(1);
        for [new, old, advantage, valid] in [
            [&flat, &a, &a, &ones],
            [&a, &flat, &a, &ones],
            [&a, &a, &flat, &ones],
            [&a, &a, &a, &flat],
        ] {
            assert!(clipped_surrogate(new, old, advantage, Some(valid), CLIP).is_err());
        }
        assert!(kl_to_reference(&a, &flat, &ones).is_err());
        assert!(kl_to_reference(&a, &a, &flat).is_err());
    }
}
