//! Perceiver: an array of learned latents reads the tokens and thinks about them, several times (Jaegle et al. 2021,
//! arXiv 2103.03206; reference `deepmind-research/perceiver/perceiver.py`).
//!
//! Each block is one cross-attention from the latents to all tokens and `self_depth` layers of self-attention among the latents;
//! all blocks share one set of weights. The pooled vector is the mean over latents, as the paper's classifier.
//!
//! Deviations: learned positions instead of Fourier features; all blocks share weights (the paper keeps the first
//! cross-attention apart on ImageNet).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::project::Projection;
use super::{Context, Fusion, Modality};
use crate::PolicyError;
use crate::nn::{Attention, EncoderLayer, Init, LayerNorm, Linear, Scope, TransformerConfig};

/// Settings of [`Perceiver`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerceiverConfig {
    /// Latents; their cost does not grow with the number of tokens squared.
    pub latents: i64,
    /// How often they read; the same weights each time.
    pub blocks: usize,
    /// Self-attention layers per block.
    pub self_depth: usize,
    /// The layers' size. Always pre-norm, as the paper.
    pub transformer: TransformerConfig,
}

impl Default for PerceiverConfig {
    /// Ours: an eighth of the paper's 512 latents and a quarter of its 8 blocks of 6.
    fn default() -> Self {
        Self { latents: 64, blocks: 2, self_depth: 2, transformer: TransformerConfig::default() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Perceiver {
    projection: Projection,
    latents: Tensor,
    memory_norm: LayerNorm,
    query_norm: LayerNorm,
    cross: Attention,
    feed_forward_norm: LayerNorm,
    up: Linear,
    down: Linear,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    config: PerceiverConfig,
}

impl Perceiver {
    /// For these modalities.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(
        scope: &Scope,
        config: &PerceiverConfig,
        modalities: &[Modality],
    ) -> Result<Self, PolicyError> {
        let transformer = &config.transformer;
        transformer.validate()?;
        if config.latents < 1 || config.blocks < 1 || !transformer.norm_first {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a perceiver with latents = {}, blocks = {}, norm_first = {}: at least one latent and block are \
                     needed, and norm_first",
                    config.latents, config.blocks, transformer.norm_first
                ),
            });
        }
        let width = transformer.width;
        let norm = |name: &str| LayerNorm::new(&scope.sub(name), width, 1e-5);
        Ok(Self {
            projection: Projection::new(&scope.sub("projection"), modalities, width)?,
            // perceiver.py: truncated normal of 0.02.
            latents: scope.param("latents", &[config.latents, width], Init::Normal { std: 0.02 }),
            memory_norm: norm("memory_norm"),
            query_norm: norm("query_norm"),
            cross: Attention::new(&scope.sub("cross"), width, width, transformer.heads),
            feed_forward_norm: norm("feed_forward_norm"),
            up: Linear::new(&scope.sub("up"), width, transformer.feed_forward),
            down: Linear::new(&scope.sub("down"), transformer.feed_forward, width),
            layers: EncoderLayer::stack(&scope.sub("layers"), transformer, config.self_depth),
            norm: norm("norm"),
            config: config.clone(),
        })
    }
}

impl Fusion for Perceiver {
    fn pooled_width(&self) -> i64 {
        self.config.transformer.width
    }

    fn token_width(&self) -> i64 {
        self.config.transformer.width
    }

    fn fuse(&self, modalities: &[Tensor]) -> Result<Context, PolicyError> {
        let parts = self.projection.forward(modalities)?;
        let memory = self.memory_norm.forward(&Tensor::cat(&parts, 1));
        let (keys, values) = self.cross.keys_values(&memory);
        let (b, w) = (memory.size()[0], memory.size()[2]);
        let mut x = self.latents.unsqueeze(0).expand([b, self.config.latents, w], false);
        for _ in 0..self.config.blocks {
            x = &x + self.cross.attend(&self.query_norm.forward(&x), &keys, &values, None);
            let hidden = self.up.forward(&self.feed_forward_norm.forward(&x));
            let thought = self.down.forward(&self.config.transformer.activation.apply(&hidden));
            x = thought + x;
            for layer in &self.layers {
                x = layer.forward(&x, None);
            }
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

    fn config(blocks: usize) -> PerceiverConfig {
        PerceiverConfig { latents: 3, blocks, self_depth: 1, transformer: small() }
    }

    #[test]
    fn it_is_a_fusion() {
        check_fusion(&FusionConfig::Perceiver(config(2)), 3);
    }

    #[test]
    fn it_learns_what_needs_two_modalities() {
        check_learns_from_two_modalities(&FusionConfig::Perceiver(config(2)));
    }

    #[test]
    fn more_blocks_read_again_with_the_same_weights() {
        let build = |blocks| {
            let params = Params::new(Device::Cpu, 0);
            let fusion = Perceiver::new(&params.root(), &config(blocks), &modalities()).unwrap();
            (params.count(), fusion)
        };
        let ((once, a), (twice, b)) = (build(1), build(2));
        assert_eq!(once, twice);
        let inputs = crate::fusion::testing::inputs(2);
        assert_ne!(a.fuse(&inputs).unwrap().pooled, b.fuse(&inputs).unwrap().pooled);
    }
}
