//! Modalities of different widths to tokens of one width, each marked with where it comes from.

use tch::Tensor;

use super::{Modality, expect_modalities, expect_some};
use crate::PolicyError;
use crate::nn::{Init, Linear, Scope};

/// A linear layer per modality, plus a learned vector per modality and one per token (attention sees no order).
#[derive(Debug)]
pub(super) struct Projection {
    modalities: Vec<Modality>,
    layers: Vec<Linear>,
    modality: Tensor,
    positions: Vec<Tensor>,
}

impl Projection {
    /// To `width`.
    pub(super) fn new(
        scope: &Scope,
        modalities: &[Modality],
        width: i64,
    ) -> Result<Self, PolicyError> {
        expect_some(modalities)?;
        let small = Init::Normal { std: 0.02 };
        let layers = modalities.iter().enumerate();
        let positions = modalities.iter().enumerate();
        Ok(Self {
            modalities: modalities.to_vec(),
            layers: layers.map(|(i, m)| Linear::new(&scope.sub(i), m.width, width)).collect(),
            modality: scope.param("modality", &[modalities.len() as i64, width], small),
            positions: positions
                .map(|(i, m)| scope.sub(i).param("positions", &[m.tokens, width], small))
                .collect(),
        })
    }

    /// `[B, N_i, W_i]` each to `[B, N_i, W]`.
    pub(super) fn forward(&self, modalities: &[Tensor]) -> Result<Vec<Tensor>, PolicyError> {
        expect_modalities(&self.modalities, modalities)?;
        let parts = modalities.iter().zip(&self.layers).zip(&self.positions).enumerate();
        Ok(parts
            .map(|(i, ((x, layer), positions))| {
                layer.forward(x) + positions + self.modality.get(i as i64)
            })
            .collect())
    }
}

/// A learned vector in front of each row's tokens, `[B, N, W] -> [B, 1 + N, W]`: what reads the tokens out.
pub(super) fn with_readout(readout: &Tensor, tokens: &Tensor) -> Tensor {
    let (b, w) = (tokens.size()[0], tokens.size()[2]);
    Tensor::cat(&[&readout.reshape([1, 1, w]).expand([b, 1, w], false), tokens], 1)
}
