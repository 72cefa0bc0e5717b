//! Cross-attention: a few query tokens read all others.
//!
//! Source: the decoder of Vaswani et al. 2017 as a resampler, like Q-Former (BLIP-2, arXiv 2301.12597: learned queries
//! with self-attention, cross-attention and feed-forward in each layer). Deviation: the queries may be a modality's own
//! tokens (the state asks the images and the instruction), and all weights begin at random.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::project::Projection;
use super::{Context, Fusion, Modality};
use crate::PolicyError;
use crate::nn::{DecoderLayer, Init, LayerNorm, Scope, TransformerConfig};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Queries {
    /// Learned tokens; they read all modalities.
    Learned {
        /// How many.
        count: i64,
    },
    /// The tokens of the last modality (in a VLA, the state); they read the others.
    LastModality,
}

/// Settings of [`CrossAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrossAttentionConfig {
    /// Who asks.
    pub queries: Queries,
    /// Layers.
    pub depth: usize,
    /// Their size.
    pub transformer: TransformerConfig,
}

impl Default for CrossAttentionConfig {
    fn default() -> Self {
        Self {
            queries: Queries::Learned { count: 32 }, // BLIP-2, 32 queries
            depth: 2,                                // ours
            transformer: TransformerConfig::default(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct CrossAttention {
    projection: Projection,
    /// `[Q, W]`; `None` if the last modality asks.
    queries: Option<Tensor>,
    memory_norm: LayerNorm,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    width: i64,
}

impl CrossAttention {
    /// For these modalities.
    ///
    /// # Errors
    /// [`PolicyError::Config`], also if the last modality asks and is the only one.
    pub fn new(
        scope: &Scope,
        config: &CrossAttentionConfig,
        modalities: &[Modality],
    ) -> Result<Self, PolicyError> {
        config.transformer.validate()?;
        let refuse = |why: &str| {
            Err(PolicyError::Config { detail: format!("build a cross-attention fusion: {why}") })
        };
        if config.depth < 1 {
            return refuse("depth must be at least 1");
        }
        let width = config.transformer.width;
        let queries = match config.queries {
            Queries::Learned { count } if count < 1 => {
                return refuse("queries.count must be at least 1");
            }
            Queries::Learned { count } => {
                Some(scope.param("queries", &[count, width], Init::Normal { std: 0.02 }))
            }
            Queries::LastModality if modalities.len() < 2 => {
                return refuse("the last modality has no other to ask; use learned queries");
            }
            Queries::LastModality => None,
        };
        let layers = &scope.sub("layers");
        Ok(Self {
            projection: Projection::new(&scope.sub("projection"), modalities, width)?,
            queries,
            memory_norm: LayerNorm::new(&scope.sub("memory_norm"), width, 1e-5),
            layers: DecoderLayer::stack(layers, &config.transformer, width, config.depth),
            norm: LayerNorm::new(&scope.sub("norm"), width, 1e-5),
            width,
        })
    }
}

impl Fusion for CrossAttention {
    fn pooled_width(&self) -> i64 {
        self.width
    }

    fn token_width(&self) -> i64 {
        self.width
    }

    /// The pooled vector is the mean over query tokens.
    fn fuse(&self, modalities: &[Tensor]) -> Result<Context, PolicyError> {
        let mut parts = self.projection.forward(modalities)?;
        let mut x = match &self.queries {
            Some(queries) => {
                let (b, q) = (parts[0].size()[0], queries.size()[0]);
                queries.unsqueeze(0).expand([b, q, self.width], false)
            }
            // `new` has checked that another modality is left.
            None => parts.remove(parts.len() - 1),
        };
        let memory = self.memory_norm.forward(&Tensor::cat(&parts, 1));
        for layer in &self.layers {
            x = layer.forward(&x, &memory, None);
        }
        let tokens = self.norm.forward(&x);
        Ok(Context { pooled: tokens.mean_dim([1i64].as_slice(), false, None), tokens })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::fusion::FusionConfig;
    use crate::fusion::testing::{
        check_fusion, check_learns_from_two_modalities, modalities, small,
    };
    use crate::nn::Params;

    fn config(queries: Queries) -> CrossAttentionConfig {
        CrossAttentionConfig { queries, depth: 2, transformer: small() }
    }

    #[test]
    fn it_is_a_fusion() {
        let learned = config(Queries::Learned { count: 3 });
        check_fusion(&FusionConfig::CrossAttention(learned), 3);
        check_fusion(&FusionConfig::CrossAttention(config(Queries::LastModality)), 1);
    }

    #[test]
    fn it_learns_what_needs_two_modalities() {
        let learned = config(Queries::Learned { count: 3 });
        check_learns_from_two_modalities(&FusionConfig::CrossAttention(learned));
    }

    #[test]
    fn a_single_modality_cannot_ask_itself() {
        let params = Params::new(Device::Cpu, 0);
        let config = config(Queries::LastModality);
        let error = CrossAttention::new(&params.root(), &config, &modalities()[..1])
            .unwrap_err()
            .to_string();
        assert!(error.contains("learned queries"), "{error}");
    }
}
