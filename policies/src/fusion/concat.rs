//! Concatenation and self-attention: the tokens of all modalities and a readout token in one sequence.
//!
//! Source: Octo (arXiv 2405.12213), whose transformer sees all modalities' tokens and whose head sees a readout token; ViT's
//! class token is the same idea. Deviation: every token sees every other (Octo masks by time step).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::project::{Projection, with_readout};
use super::{Context, Fusion, Modality};
use crate::PolicyError;
use crate::nn::{EncoderLayer, Init, LayerNorm, Scope, TransformerConfig};

/// Settings of [`Concat`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConcatConfig {
    /// Self-attention layers; 0 only projects, and the pooled vector then is the mean over tokens.
    pub depth: usize,
    /// Their size.
    pub transformer: TransformerConfig,
}

impl Default for ConcatConfig {
    /// Ours.
    fn default() -> Self {
        Self { depth: 4, transformer: TransformerConfig::default() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Concat {
    projection: Projection,
    readout: Option<Tensor>,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    width: i64,
}

impl Concat {
    /// For these modalities.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(
        scope: &Scope,
        config: &ConcatConfig,
        modalities: &[Modality],
    ) -> Result<Self, PolicyError> {
        let transformer = &config.transformer;
        transformer.validate()?;
        let width = transformer.width;
        let readout = (config.depth > 0)
            .then(|| scope.param("readout", &[width], Init::Normal { std: 0.02 }));
        Ok(Self {
            projection: Projection::new(&scope.sub("projection"), modalities, width)?,
            readout,
            layers: EncoderLayer::stack(&scope.sub("layers"), transformer, config.depth),
            norm: LayerNorm::new(&scope.sub("norm"), width, 1e-5),
            width,
        })
    }
}

impl Fusion for Concat {
    fn pooled_width(&self) -> i64 {
        self.width
    }

    fn token_width(&self) -> i64 {
        self.width
    }

    fn fuse(&self, modalities: &[Tensor]) -> Result<Context, PolicyError> {
        let tokens = Tensor::cat(&self.projection.forward(modalities)?, 1);
        let Some(readout) = &self.readout else {
            let tokens = self.norm.forward(&tokens);
            return Ok(Context { pooled: tokens.mean_dim([1i64].as_slice(), false, None), tokens });
        };
        let mut x = with_readout(readout, &tokens);
        for layer in &self.layers {
            x = layer.forward(&x, None);
        }
        let x = self.norm.forward(&x);
        Ok(Context { pooled: x.select(1, 0), tokens: x.narrow(1, 1, x.size()[1] - 1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fusion::FusionConfig;
    use crate::fusion::testing::{check_fusion, check_learns_from_two_modalities, small};

    fn config(depth: usize) -> FusionConfig {
        FusionConfig::Concat(ConcatConfig { depth, transformer: small() })
    }

    #[test]
    fn it_is_a_fusion() {
        check_fusion(&config(2), 8 + 4 + 1);
        check_fusion(&config(0), 8 + 4 + 1);
    }

    #[test]
    fn it_learns_what_needs_two_modalities() {
        check_learns_from_two_modalities(&config(2));
    }
}
