//! A query per action of the chunk reads the context: the body of the heads that predict all actions at once.
//!
//! Source: DETR's transformer as ACT uses it (arXiv 2304.13705, `detr/models/transformer.py`). Deviations: learned queries are
//! the decoder's input, where DETR feeds zeros and adds the queries in each layer; the fusion has already marked context
//! tokens with their positions; no dropout.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::HeadShape;
use crate::PolicyError;
use crate::fusion::Context;
use crate::nn::{DecoderLayer, EncoderLayer, Init, LayerNorm, Linear, Scope, TransformerConfig};

/// Settings of [`ChunkDecoder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChunkDecoderConfig {
    /// Self-attention layers over the context; 0 when the fusion has done it.
    pub n_encoder_layers: usize,
    /// Layers in which queries attend to each other and to the context. All of them are used.
    pub n_decoder_layers: usize,
    /// Their size.
    pub transformer: TransformerConfig,
}

impl Default for ChunkDecoderConfig {
    /// Ours.
    fn default() -> Self {
        Self { n_encoder_layers: 0, n_decoder_layers: 2, transformer: TransformerConfig::default() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct ChunkDecoder {
    pooled: Linear,
    tokens: Linear,
    encoder: Vec<EncoderLayer>,
    queries: Tensor,
    decoder: Vec<DecoderLayer>,
    norm: LayerNorm,
}

impl ChunkDecoder {
    /// For contexts and chunks of `shape`.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(
        scope: &Scope,
        config: &ChunkDecoderConfig,
        shape: HeadShape,
    ) -> Result<Self, PolicyError> {
        shape.validate()?;
        let transformer = &config.transformer;
        transformer.validate()?;
        if config.n_decoder_layers < 1 {
            return Err(PolicyError::Config {
                detail: "build a chunk decoder: n_decoder_layers must be at least 1".to_owned(),
            });
        }
        let w = transformer.width;
        let (encoder, decoder) = (scope.sub("encoder"), scope.sub("decoder"));
        Ok(Self {
            pooled: Linear::new(&scope.sub("pooled"), shape.pooled_width, w),
            tokens: Linear::new(&scope.sub("tokens"), shape.token_width, w),
            encoder: EncoderLayer::stack(&encoder, transformer, config.n_encoder_layers),
            // nn.Embedding's N(0, 1), as DETR's query_embed.
            queries: scope.param("queries", &[shape.chunk_size, w], Init::Normal { std: 1.0 }),
            decoder: DecoderLayer::stack(&decoder, transformer, w, config.n_decoder_layers),
            norm: LayerNorm::new(&scope.sub("norm"), w, 1e-5),
        })
    }

    /// `[B, T_p, W]`. `extra` are more tokens to read, `[B, M, W]`. Shapes are the caller's to check.
    pub fn forward(&self, context: &Context, extra: Option<&Tensor>) -> Tensor {
        let pooled = self.pooled.forward(&context.pooled).unsqueeze(1);
        let tokens = self.tokens.forward(&context.tokens);
        let parts: Vec<&Tensor> = extra.into_iter().chain([&pooled, &tokens]).collect();
        let mut memory = Tensor::cat(&parts, 1);
        for layer in &self.encoder {
            memory = layer.forward(&memory, None);
        }
        let (t, w) = (self.queries.size()[0], self.queries.size()[1]);
        let mut x = self.queries.unsqueeze(0).expand([memory.size()[0], t, w], false);
        for layer in &self.decoder {
            x = layer.forward(&x, &memory, None);
        }
        self.norm.forward(&x)
    }
}
