//! Flat fusion: all tokens of all modalities in one vector, in order. What Diffusion Policy does with its global
//! condition (arXiv 2303.04137, `diffusion_unet_image_policy.py`). No parameters.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Context, Fusion, Modality, expect_modalities, expect_some};
use crate::PolicyError;

/// Settings of [`Flat`]: none, and an unknown one is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlatConfig {}

/// Flattens and concatenates; `tokens` is the pooled vector as a single token.
#[derive(Debug)]
pub struct Flat {
    modalities: Vec<Modality>,
}

impl Flat {
    /// For these modalities.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if there are none.
    pub fn new(modalities: &[Modality]) -> Result<Self, PolicyError> {
        expect_some(modalities)?;
        Ok(Self { modalities: modalities.to_vec() })
    }
}

impl Fusion for Flat {
    fn pooled_width(&self) -> i64 {
        self.modalities.iter().map(|m| m.tokens * m.width).sum()
    }

    fn token_width(&self) -> i64 {
        self.pooled_width()
    }

    fn fuse(&self, modalities: &[Tensor]) -> Result<Context, PolicyError> {
        expect_modalities(&self.modalities, modalities)?;
        let flat: Vec<Tensor> = modalities.iter().map(|m| m.flatten(1, -1)).collect();
        let pooled = match flat.as_slice() {
            [one] => one.shallow_clone(),
            several => Tensor::cat(several, 1),
        };
        Ok(Context { tokens: pooled.unsqueeze(1), pooled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_fusion() {
        let config = crate::fusion::FusionConfig::default();
        crate::fusion::testing::check_fusion(&config, 1);
    }

    #[test]
    fn every_number_lands_in_its_place() {
        let modality = |tokens, width| Modality { tokens, width, steps: 1 };
        let flat = Flat::new(&[modality(2, 2), modality(1, 3)]).unwrap();
        assert_eq!((flat.pooled_width(), flat.token_width()), (7, 7));
        let a = Tensor::from_slice(&[0f32, 1., 2., 3., 10., 11., 12., 13.]).reshape([2, 2, 2]);
        let b = Tensor::from_slice(&[4f32, 5., 6., 14., 15., 16.]).reshape([2, 1, 3]);
        let context = flat.fuse(&[a.shallow_clone(), b]).unwrap();
        let rows: Vec<Vec<f32>> = Vec::try_from(&context.pooled).unwrap();
        assert_eq!(rows[0], [0., 1., 2., 3., 4., 5., 6.]);
        assert_eq!(rows[1], [10., 11., 12., 13., 14., 15., 16.]);
        assert_eq!(context.tokens.size(), [2, 1, 7]);
        assert!(flat.fuse(&[a]).is_err());
    }
}
