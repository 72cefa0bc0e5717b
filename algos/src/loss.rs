//! Losses and what they are averaged over: pure functions, tensors in, tensors out.

use tch::{Kind, Tensor};

use crate::AlgoError;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_does_not_count() {
        let loss = Tensor::from_slice2(&[[1f32, 2.0], [3.0, 100.0]]);
        let valid = Tensor::from_slice2(&[[1f32, 1.0], [1.0, 0.0]]);
        let (sum, count) = masked_sum(&loss, &valid).unwrap();
        assert_eq!((sum.double_value(&[]), count.double_value(&[])), (6.0, 3.0));
        // [B] against [B, 1] would broadcast to [B, B] and train on.
        let error = masked_sum(&loss.sum_dim_intlist(1, false, Kind::Float), &valid).unwrap_err();
        assert!(error.to_string().contains("[2]"), "{error}");
    }
}
