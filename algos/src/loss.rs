//! Losses and what they are averaged over: pure functions.
//!
//! Every one is held to PyTorch's number and gradient in `loss/parity.rs`. Most give a number and their own gradient (a slope
//! per tensor, of its kind and on its device), computed in f64 on the host, and neither make nor follow a graph; divergences from
//! a reference and masked sums are tensors with one. What a loss does not learn from (old log-probs, advantages, targets) gets
//! no gradient, whatever the caller passes.
//!
//! | file | what |
//! |---|---|
//! | [`ratio`] | likelihood ratios: the clipped surrogate, divergence from a reference |
//! | [`value`] | critics on returns, normalised advantages |
//! | [`soft`] | soft actor-critic: target, critics, actor, temperature |

pub mod ratio;
pub mod soft;
pub mod value;

#[cfg(test)]
mod parity;

use tch::{Device, Kind, Tensor};

use crate::AlgoError;

pub use ratio::{Clip, Surrogate, clipped_surrogate, kl_to_reference};
pub use soft::{ActorLoss, sac_actor_loss, sac_critic_loss, sac_target, temperature_loss};
pub use value::{normalized, value_loss};

/// Checks a shape.
///
/// # Errors
/// [`AlgoError::TensorShape`] if `tensor` has another one.
pub fn expect_shape(
    what: &'static str,
    tensor: &Tensor,
    expected: &[i64],
) -> Result<(), AlgoError> {
    let got = tensor.size();
    if got == expected {
        return Ok(());
    }
    Err(AlgoError::TensorShape { what, got, expected: expected.to_vec() })
}

/// Checks the number of dimensions and returns the sizes.
fn expect_dims<const R: usize>(what: &'static str, tensor: &Tensor) -> Result<[i64; R], AlgoError> {
    <[i64; R]>::try_from(tensor.size()).map_err(|got| AlgoError::TensorShape {
        what,
        got,
        expected: vec![-1; R],
    })
}

/// `Σ valid · loss` and `Σ valid`, scalars on the device: divide the first by the second for the masked mean. Taken
/// apart, so that several batches can share one mean.
///
/// Where `valid` is 0 the loss does not count, but NaN there does (0 · NaN is NaN): padding must hold numbers.
///
/// # Errors
/// [`AlgoError::TensorShape`] unless both are `[B, T_p]`.
pub fn masked_sum(loss: &Tensor, valid: &Tensor) -> Result<(Tensor, Tensor), AlgoError> {
    expect_shape("loss", loss, &valid.size())?;
    Ok(((loss * valid).sum(Kind::Float), valid.sum(Kind::Float)))
}

/// A tensor's numbers, row by row: a few hundred are dealt with here sooner than kernels start.
fn numbers(x: &Tensor) -> Vec<f64> {
    let x = x.detach().to_device(Device::Cpu).contiguous();
    let n = x.numel();
    if x.kind() == Kind::Float {
        let mut numbers = vec![0f32; n];
        x.copy_data(&mut numbers, n);
        return numbers.into_iter().map(f64::from).collect();
    }
    let mut numbers = vec![0f64; n];
    x.to_kind(Kind::Double).copy_data(&mut numbers, n);
    numbers
}

/// Numbers in the shape, of the kind and on the device of `x`.
fn like(x: &Tensor, numbers: &[f64]) -> Tensor {
    let kind = x.kind();
    let flat = if kind == Kind::Float {
        Tensor::from_slice(&numbers.iter().map(|&v| v as f32).collect::<Vec<_>>())
    } else {
        Tensor::from_slice(numbers).to_kind(kind)
    };
    flat.to_device(x.device()).reshape(x.size())
}

/// The mean of `x` where `valid` is 1, in the kind of `x`; 0 if it is 1 nowhere.
fn masked_mean(x: &Tensor, valid: &Tensor) -> Tensor {
    (x * valid).sum(x.kind()) / valid.sum(x.kind()).clamp_min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_does_not_count() {
        let loss = Tensor::from_slice2(&[[1f32, 2.0], [3.0, 100.0]]);
        let valid = Tensor::from_slice2(&[[1f32, 1.0], [1.0, 0.0]]);
        let (sum, count) = masked_sum(&loss, &valid).unwrap();
        assert_eq!((sum.double_value(&[]), count.double_value(&[])), (6.0, 3.0));
        assert_eq!(masked_mean(&loss, &valid).double_value(&[]), 2.0);
        assert_eq!(masked_mean(&loss, &valid.zeros_like()).double_value(&[]), 0.0);
        // [B] against [B, 1] would broadcast to [B, B] and train on.
        let error = masked_sum(&loss.sum_dim_intlist(1, false, Kind::Float), &valid).unwrap_err();
        assert!(error.to_string().contains("[2]"), "{error}");
    }
}
