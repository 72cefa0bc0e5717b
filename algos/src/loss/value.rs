//! What on-policy critics learn from, and how advantages are scaled.
//!
//! Sources: the value loss of CleanRL `ppo_continuous_action.py` (PPO2's), the normalisation of Stable-Baselines3 `ppo/ppo.py`.

use tch::Tensor;

use super::{expect_dims, expect_shape, like, numbers};
use crate::AlgoError;

/// `0.5 mean((v - target)^2)` and its gradient for `value`; all inputs `[N]`.
///
/// With `clip` the value counts as moved by at most `clip` from `old_value`, and the greater of the clipped and the
/// unclipped error of each row is taken (PPO2; CleanRL `clip_vloss`). Stable-Baselines3's `clip_range_vf` differs: it takes
/// the clipped one alone and does not halve.
///
/// # Errors
/// [`AlgoError::TensorShape`] unless every input has the shape of `value`.
pub fn value_loss(
    value: &Tensor,
    old_value: &Tensor,
    target: &Tensor,
    clip: Option<f64>,
) -> Result<(f64, Tensor), AlgoError> {
    let [n]: [i64; 1] = expect_dims("value", value)?;
    expect_shape("old value", old_value, &[n])?;
    expect_shape("value target", target, &[n])?;
    let share = 1.0 / n.max(1) as f64;
    let mut loss = 0.0;
    let rows = numbers(value).into_iter().zip(numbers(old_value)).zip(numbers(target));
    let slope: Vec<f64> = rows
        .map(|((value, old), target)| {
            let mut error = value - target;
            let mut moves = true;
            if let Some(clip) = clip {
                let moved = (value - old).clamp(-clip, clip) + old - target;
                if moved.abs() > error.abs() {
                    error = moved;
                    moves = (value - old).abs() <= clip;
                }
            }
            loss += error * error * 0.5 * share;
            if moves { error * share } else { 0.0 }
        })
        .collect();
    Ok((loss, like(value, &slope)))
}

/// `(a - mean) / (std + 1e-8)` over the last dimension, `[.., N]`, unbiased deviation (Stable-Baselines3 `ppo/ppo.py`). A single
/// number has no deviation and is returned as it is, as there.
pub fn normalized(advantage: &Tensor) -> Tensor {
    let _guard = tch::no_grad_guard();
    if advantage.size().last().is_none_or(|&n| n < 2) {
        return advantage.copy();
    }
    let last = [-1i64].as_slice();
    let mean = advantage.mean_dim(last, true, advantage.kind());
    (advantage - mean) / (advantage.std_dim(last, true, true) + 1e-8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clipped_value_cannot_gain_by_jumping() {
        // Old 0, new 1, target 2, clip 0.2: the unclipped error is 1, the clipped 1.8² = 3.24, which counts; it has no slope.
        let value = Tensor::from_slice(&[1f64]);
        let (old, target) = (Tensor::from_slice(&[0f64]), Tensor::from_slice(&[2f64]));
        let (loss, slope) = value_loss(&value, &old, &target, Some(0.2)).unwrap();
        assert!((loss - 1.62).abs() < 1e-12);
        assert_eq!(slope.double_value(&[0]), 0.0);
        let (plain, slope) = value_loss(&value, &old, &target, None).unwrap();
        assert_eq!((plain, slope.double_value(&[0])), (0.5, -1.0));
        let column = value.unsqueeze(1);
        assert!(value_loss(&column, &old, &target, None).is_err());
        assert!(value_loss(&value, &old, &column, None).is_err());
        assert!(value_loss(&value, &column, &target, None).is_err());
    }

    #[test]
    fn normalised_advantages_have_mean_zero_and_deviation_one() {
        let a = normalized(&Tensor::from_slice(&[1f64, 2.0, 3.0, 6.0]));
        assert!(a.mean(None).double_value(&[]).abs() < 1e-12);
        assert!((a.std(true).double_value(&[]) - 1.0).abs() < 1e-7);
        let equal = normalized(&Tensor::from_slice(&[3f32, 3.0]));
        assert_eq!(Vec::<f32>::try_from(equal).unwrap(), [0.0, 0.0]);
        let rows = normalized(&Tensor::from_slice2(&[[1f32, 3.0], [5.0, 5.0]]));
        let half = 0.5f32.sqrt();
        let rows = Vec::<f32>::try_from(rows.flatten(0, -1)).unwrap();
        for (got, expected) in rows.iter().zip([-half, half, 0.0, 0.0]) {
            assert!((got - expected).abs() < 1e-6, "{rows:?}");
        }
        let single = normalized(&Tensor::from_slice(&[3f32]));
        assert_eq!(Vec::<f32>::try_from(single).unwrap(), [3.0]);
    }
}
