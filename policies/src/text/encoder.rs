//! Instructions to tokens for a policy: a small transformer trained with it, or a published decoder that looks both ways.
//!
//! Every row is computed in a fixed shape, so that it does not depend on the rest of its batch. Positions that pad a short
//! instruction come out as zeros.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{DecoderConfig, Qwen2, Tokenizer};
use crate::PolicyError;
use crate::encoders::{Encoder, Inputs};
use crate::nn::lora::{LoraConfig, is_adapter};
use crate::nn::{Embedding, EncoderLayer, Init, LayerNorm, Scope, TransformerConfig};

/// Tokens of an instruction in LIBERO and Bridge are below 30; SmolVLA cuts at 48.
const DEFAULT_LENGTH: i64 = 32;

fn default_length() -> i64 {
    DEFAULT_LENGTH
}

fn two() -> usize {
    2
}

/// How instructions become tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TextConfig {
    /// Not read.
    #[default]
    None,
    /// A transformer trained from scratch over the policy's own vocabulary ([`Tokenizer::train`]).
    Small {
        /// `L`: instructions are cut or padded to this many tokens.
        #[serde(default = "default_length")]
        length: i64,
        /// Its layers' size.
        #[serde(default)]
        transformer: TransformerConfig,
        /// How many layers; 0 is a bag of words.
        #[serde(default = "two")]
        layers: usize,
        /// One token, the mean of all real ones, instead of `L`.
        #[serde(default)]
        pool: bool,
    },
    /// A Qwen2 or Llama decoder without its causal mask; begin it with [`TextEncoder::load_pretrained`].
    Qwen2 {
        /// `L`.
        #[serde(default = "default_length")]
        length: i64,
        /// The decoder's size.
        decoder: Box<DecoderConfig>,
        /// Adapters that learn; without them the decoder stays as it is.
        #[serde(default)]
        lora: Option<LoraConfig>,
        /// One token instead of `L`.
        #[serde(default)]
        pool: bool,
    },
}

impl TextConfig {
    /// Builds it below `scope`; `None` for [`TextConfig::None`]. What does not learn is frozen here.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for sizes out of range, and for a tokeniser that is missing or larger than the decoder's
    /// vocabulary.
    pub fn build(
        &self,
        scope: &Scope,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Option<TextEncoder>, PolicyError> {
        let fail =
            |detail: String| Err(PolicyError::Config { detail: format!("text encoder: {detail}") });
        let (length, pool) = match self {
            Self::None => return Ok(None),
            Self::Small { length, pool, .. } | Self::Qwen2 { length, pool, .. } => (*length, *pool),
        };
        if !(1..=4096).contains(&length) {
            return fail(format!("length = {length} is not within 1 and 4096"));
        }
        let Some(tokenizer) = tokenizer else {
            return fail("it needs a tokeniser".to_owned());
        };
        let net = match self {
            Self::None => return Ok(None),
            Self::Small { transformer, layers, .. } => {
                transformer.validate()?;
                if *layers > 64 {
                    return fail(format!("layers = {layers} is above 64"));
                }
                let width = transformer.width;
                Net::Small {
                    embedding: Embedding::new(
                        &scope.sub("tokens"),
                        tokenizer.vocab_size(),
                        width,
                        Some(tokenizer.pad()),
                    ),
                    positions: scope.sub("positions").param(
                        "weight",
                        &[length, width],
                        Init::Normal { std: 0.02 },
                    ),
                    layers: EncoderLayer::stack(&scope.sub("layers"), transformer, *layers),
                    norm: LayerNorm::new(&scope.sub("norm"), width, 1e-5),
                    width,
                }
            }
            Self::Qwen2 { decoder, lora, .. } => {
                if tokenizer.vocab_size() > decoder.vocab_size {
                    return fail(format!(
                        "the tokeniser has {} tokens, the decoder {}",
                        tokenizer.vocab_size(),
                        decoder.vocab_size
                    ));
                }
                let params = scope.params();
                let before = params.lora();
                params.set_lora(lora.clone())?;
                let model = Qwen2::new(&scope.sub("decoder"), decoder.as_ref().clone());
                params.set_lora(before)?;
                let model = model?;
                params.set_trainable_below(&scope.name("decoder"), is_adapter);
                Net::Qwen2(Box::new(model))
            }
        };
        Ok(Some(TextEncoder {
            net,
            tokenizer: Rc::new(tokenizer.clone()),
            length,
            pool,
            scope: scope.clone(),
        }))
    }
}

#[derive(Debug)]
enum Net {
    Small {
        embedding: Embedding,
        positions: Tensor,
        layers: Vec<EncoderLayer>,
        norm: LayerNorm,
        width: i64,
    },
    Qwen2(Box<Qwen2>),
}

/// The encoder.
pub struct TextEncoder {
    net: Net,
    tokenizer: Rc<Tokenizer>,
    length: i64,
    pool: bool,
    scope: Scope,
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextEncoder")
            .field("net", &self.net)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl TextEncoder {
    /// Its tokeniser, to be saved with the policy.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Begins a decoder with a checkpoint's tensors ([`crate::hf::read_weights`]), whatever stands before their names.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for an encoder that is no decoder, and for a tensor that is missing or of another shape.
    pub fn load_pretrained(&self, weights: &BTreeMap<String, Tensor>) -> Result<(), PolicyError> {
        let Net::Qwen2(model) = &self.net else {
            return Err(PolicyError::Config {
                detail: "text encoder: only a decoder begins from a checkpoint".to_owned(),
            });
        };
        let plain = Qwen2::from_weights(model.config().clone(), weights, tch::Device::Cpu, None)?;
        let _guard = tch::no_grad_guard();
        let decoder = self.scope.sub("decoder");
        for (name, value) in plain.params().all() {
            if let Some(mut tensor) = self.scope.params().get(&decoder.name(&name)) {
                tensor.copy_(&value);
            }
        }
        Ok(())
    }

    /// `[B, L, W]`, zeros where `valid [B, L]` is 0.
    fn hidden(&self, ids: &Tensor, valid: &Tensor) -> Result<Tensor, PolicyError> {
        let hidden = match &self.net {
            Net::Small { embedding, positions, layers, norm, .. } => {
                let mask = crate::nn::attention::mask(valid, self.length, false);
                let x = embedding.forward(ids) + positions;
                norm.forward(&layers.iter().fold(x, |x, layer| layer.forward(&x, Some(&mask))))
            }
            Net::Qwen2(model) => model.hidden(ids, Some(valid), false)?,
        };
        Ok(hidden * valid.unsqueeze(-1))
    }
}

impl Encoder for TextEncoder {
    fn tokens(&self) -> i64 {
        if self.pool { 1 } else { self.length }
    }

    fn width(&self) -> i64 {
        match &self.net {
            Net::Small { width, .. } => *width,
            Net::Qwen2(model) => model.config().hidden_size,
        }
    }

    fn encode(&self, inputs: &Inputs<'_>) -> Result<Tensor, PolicyError> {
        // An instruction that occurs twice is computed once: batches of demonstrations hold few.
        let mut places: BTreeMap<&Arc<str>, i64> = BTreeMap::new();
        let mut distinct: Vec<&str> = Vec::new();
        let index: Vec<i64> = inputs
            .instructions
            .iter()
            .map(|text| {
                *places.entry(text).or_insert_with(|| {
                    distinct.push(text);
                    distinct.len() as i64 - 1
                })
            })
            .collect();
        let device = self.scope.device();
        let (ids, valid) = self.tokenizer.batch(&distinct, self.length as usize, device)?;
        let hidden = if crate::nn::checkpoint::records() {
            self.hidden(&ids, &valid)?
        } else {
            // Acting: row by row, because kernels round by the size of their batch, and a row must not depend on it.
            let rows: Vec<Tensor> = (0..distinct.len() as i64)
                .map(|i| self.hidden(&ids.narrow(0, i, 1), &valid.narrow(0, i, 1)))
                .collect::<Result<_, _>>()?;
            Tensor::cat(&rows, 0)
        };
        let hidden = if self.pool {
            let count =
                valid.sum_dim_intlist([1i64].as_slice(), true, tch::Kind::Float).clamp_min(1.0);
            hidden.sum_dim_intlist([1i64].as_slice(), true, tch::Kind::Float) / count.unsqueeze(-1)
        } else {
            hidden
        };
        Ok(hidden.index_select(0, &Tensor::from_slice(&index).to_device(device)))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::nn::Params;
    use crate::nn::lora::Targets;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train(["push the block left", "push the block right", "push the bowl"], 280)
            .unwrap()
    }

    fn small(pool: bool) -> TextConfig {
        let transformer =
            TransformerConfig { width: 8, heads: 2, feed_forward: 16, ..Default::default() };
        TextConfig::Small { length: 6, transformer, layers: 1, pool }
    }

    fn qwen(lora: Option<LoraConfig>) -> TextConfig {
        let json = serde_json::json!({
            "model_type": "qwen2", "vocab_size": 300, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": true,
            "qkv_bias": true, "output_bias": false, "mlp_bias": false, "pad_token_id": 0, "eos_token_ids": [],
        });
        TextConfig::Qwen2 {
            length: 6,
            decoder: serde_json::from_value(json).unwrap(),
            lora,
            pool: false,
        }
    }

    fn encode(encoder: &TextEncoder, texts: &[&str]) -> Tensor {
        let images = BTreeMap::new();
        let proprio = Tensor::zeros([texts.len() as i64, 1, 0], (Kind::Float, Device::Cpu));
        let instructions: Vec<Arc<str>> = texts.iter().map(|&t| Arc::from(t)).collect();
        encoder
            .encode(&Inputs { images: &images, proprio: &proprio, instructions: &instructions })
            .unwrap()
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch_and_differs_by_instruction() {
        for config in [small(false), small(true), qwen(None)] {
            let params = Params::new(Device::Cpu, 0);
            let encoder =
                config.build(&params.root().sub("text"), Some(&tokenizer())).unwrap().unwrap();
            let _guard = tch::no_grad_guard();
            let batch =
                encode(&encoder, &["push the bowl", "push the block left", "push the bowl", ""]);
            assert_eq!(batch.size(), [4, encoder.tokens(), encoder.width()]);
            let alone = encode(&encoder, &["push the block left"]);
            assert!(batch.get(1).equal(&alone.get(0)));
            assert!(batch.get(0).equal(&batch.get(2)));
            assert!(!batch.get(0).allclose(&batch.get(1), 1e-3, 1e-3, false));
            assert_eq!(batch.get(3).abs().max().double_value(&[]), 0.0);
            assert_eq!(batch.isnan().any().int64_value(&[]), 0);
        }
    }

    #[test]
    fn learning_and_acting_see_the_same() {
        let params = Params::new(Device::Cpu, 0);
        let encoder = small(false).build(&params.root(), Some(&tokenizer())).unwrap().unwrap();
        let texts = ["push the bowl", "push the block left"];
        let learning = encode(&encoder, &texts);
        learning.square().sum(Kind::Float).backward();
        assert!(params.get("tokens.weight").unwrap().grad().defined());
        let _guard = tch::no_grad_guard();
        assert!(learning.allclose(&encode(&encoder, &texts), 1e-5, 1e-6, false));
    }

    #[test]
    fn a_decoder_learns_in_its_adapters_alone_or_not_at_all() {
        for lora in [None, Some(LoraConfig::new(2, 4.0, Targets::AllLinear))] {
            let params = Params::new(Device::Cpu, 0);
            let other = crate::nn::Linear::new(&params.root().sub("other"), 2, 2);
            let encoder = qwen(lora.clone())
                .build(&params.root().sub("text"), Some(&tokenizer()))
                .unwrap()
                .unwrap();
            let learns: Vec<String> = params.trainable().into_iter().map(|(n, _)| n).collect();
            assert!(other.weight.requires_grad());
            assert_eq!(
                learns.iter().filter(|n| is_adapter(n)).count(),
                if lora.is_some() { 2 * 7 * 2 } else { 0 }
            );
            assert!(learns.iter().all(|n| is_adapter(n) || n.starts_with("other.")));
            assert!(params.lora().is_none());
            // Plain weights, as a checkpoint holds them.
            let donor = Params::new(Device::Cpu, 1);
            let TextConfig::Qwen2 { decoder, .. } = qwen(None) else { unreachable!() };
            Qwen2::new(&donor.root(), *decoder).unwrap();
            let before = encode(&encoder, &["push the bowl"]);
            encoder.load_pretrained(&donor.snapshot()).unwrap();
            assert!(!before.allclose(&encode(&encoder, &["push the bowl"]), 1e-3, 1e-3, false));
            let merged = params.merged();
            assert!(
                merged["text.decoder.model.norm.weight"]
                    .equal(&donor.get("model.norm.weight").unwrap())
            );
        }
    }

    #[test]
    fn a_missing_or_too_large_tokenizer_is_named() {
        let params = Params::new(Device::Cpu, 0);
        let error = small(false).build(&params.root(), None).unwrap_err().to_string();
        assert!(error.contains("tokeniser"), "{error}");
        let TextConfig::Qwen2 { mut decoder, .. } = qwen(None) else { unreachable!() };
        decoder.vocab_size = 100;
        let config = TextConfig::Qwen2 { length: 4, decoder, lora: None, pool: false };
        let error = config.build(&params.root(), Some(&tokenizer())).unwrap_err().to_string();
        assert!(error.contains("decoder 100"), "{error}");
        assert!(TextConfig::None.build(&params.root(), None).unwrap().is_none());
    }
}
