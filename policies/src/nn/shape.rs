//! Shape checks at a module's border.

use tch::Tensor;

use crate::PolicyError;

/// Any size, in [`expect_shape`].
pub const ANY: i64 = -1;

/// Checks `value`'s shape against `expected`, where [`ANY`] fits every size.
///
/// # Errors
/// [`PolicyError::Shape`] naming `tensor` and both shapes.
pub fn expect_shape(tensor: &str, value: &Tensor, expected: &[i64]) -> Result<(), PolicyError> {
    let got = value.size();
    let fits =
        got.len() == expected.len() && got.iter().zip(expected).all(|(g, e)| *e == ANY || g == e);
    if fits {
        return Ok(());
    }
    let sizes: Vec<String> =
        expected.iter().map(|e| if *e == ANY { "*".to_owned() } else { e.to_string() }).collect();
    Err(PolicyError::Shape {
        tensor: tensor.to_owned(),
        got,
        expected: format!("[{}]", sizes.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_wrong_size_or_rank_is_named_with_both_shapes() {
        let x = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        expect_shape("x", &x, &[ANY, 3]).unwrap();
        let error = expect_shape("x", &x, &[ANY, 4]).unwrap_err().to_string();
        assert_eq!(error, "use `x` of shape [2, 3] where [*, 4] is expected");
        // A missing dimension would broadcast silently.
        assert!(expect_shape("x", &x, &[2, 3, 1]).is_err());
    }
}
