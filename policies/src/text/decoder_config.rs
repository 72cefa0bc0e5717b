//! `config.json` of Qwen2 and Llama decoders, as transformers 4 and 5 write it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{PolicyError, hf};

/// The fields that the decoder depends on, after defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// `qwen2` or `llama`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// `W`.
    pub hidden_size: i64,
    /// Width inside the feed-forward part.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads.
    pub num_key_value_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// Name of the activation.
    pub hidden_act: String,
    /// Of every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether attention's output has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward part has biases.
    pub mlp_bias: bool,
    /// Row of the embedding that gets no gradient.
    pub pad_token_id: Option<i64>,
    /// Tokens that end generation.
    pub eos_token_ids: Vec<i64>,
}

/// As written; every field may be absent, because transformers 4 leaves defaults out.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: Option<i64>,
    hidden_size: Option<i64>,
    intermediate_size: Option<i64>,
    num_hidden_layers: Option<i64>,
    num_attention_heads: Option<i64>,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    pad_token_id: Option<i64>,
    eos_token_id: Option<OneOrMany>,
    text_config: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    /// `type` in old files.
    #[serde(alias = "type")]
    rope_type: Option<String>,
    partial_rotary_factor: Option<f64>,
}

/// A token or a list of them.
struct OneOrMany(Vec<i64>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong =
            || serde::de::Error::custom("eos_token_id is neither a token nor a list of tokens");
        let tokens = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Null => Some(Vec::new()),
            serde_json::Value::Array(items) => {
                items.iter().map(serde_json::Value::as_i64).collect()
            }
            other => other.as_i64().map(|token| vec![token]),
        };
        tokens.map(Self).ok_or_else(wrong)
    }
}

impl DecoderConfig {
    /// Reads `config.json`, of the decoder alone or of a model around it (`text_config`).
    ///
    /// # Errors
    /// [`PolicyError::File`] for a file that is not there or does not parse, for an architecture or an option that we do
    /// not have (sliding windows, scaled rotary embeddings), and for fields that do not fit together.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let json: serde_json::Value = hf::read_json(path)?;
        Self::from_json(json).map_err(|detail| PolicyError::File { path: path.to_owned(), detail })
    }

    fn from_json(json: serde_json::Value) -> Result<Self, String> {
        let mut raw: Raw = serde_json::from_value(json).map_err(|e| e.to_string())?;
        if let Some(text) = raw.text_config.take() {
            let tied = raw.tie_word_embeddings;
            raw = serde_json::from_value(text).map_err(|e| format!("text_config: {e}"))?;
            raw.tie_word_embeddings = raw.tie_word_embeddings.or(tied);
        }
        let model_type = raw.model_type.unwrap_or_else(|| "qwen2".to_owned());
        // transformers `Qwen2Config` and `LlamaConfig`.
        let (vocab, hidden, intermediate, layers, heads) = match model_type.as_str() {
            "qwen2" => (151_936, 4096, 22_016, 32, 32),
            "llama" => (32_000, 4096, 11_008, 32, 32),
            other => {
                return Err(format!(
                    "model_type = \"{other}\" is not a decoder that we have (qwen2, llama)"
                ));
            }
        };
        let qwen = model_type == "qwen2";
        if raw.use_sliding_window == Some(true)
            || raw.layer_types.iter().flatten().any(|kind| kind != "full_attention")
        {
            return Err("sliding-window attention is not supported".to_owned());
        }
        let mut rope_theta = raw.rope_theta;
        for rope in [raw.rope_scaling, raw.rope_parameters].into_iter().flatten() {
            if let Some(kind) = rope.rope_type.filter(|kind| kind != "default") {
                return Err(format!(
                    "rotary embeddings of type \"{kind}\" are not supported, only \"default\""
                ));
            }
            if rope.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
                return Err("partial_rotary_factor is not supported".to_owned());
            }
            rope_theta = rope.rope_theta.or(rope_theta);
        }
        let hidden_size = raw.hidden_size.unwrap_or(hidden);
        let num_attention_heads = raw.num_attention_heads.unwrap_or(heads);
        let attention_bias = raw.attention_bias.unwrap_or(false);
        let config = Self {
            vocab_size: raw.vocab_size.unwrap_or(vocab),
            hidden_size,
            intermediate_size: raw.intermediate_size.unwrap_or(intermediate),
            num_hidden_layers: raw.num_hidden_layers.unwrap_or(layers),
            num_attention_heads,
            // Qwen2's class default is a number, Llama's is "as many as query heads".
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(if qwen {
                32
            } else {
                num_attention_heads
            }),
            head_dim: raw.head_dim.unwrap_or(hidden_size / num_attention_heads.max(1)),
            hidden_act: raw.hidden_act.unwrap_or_else(|| "silu".to_owned()),
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope_theta.unwrap_or(10_000.0),
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: qwen || attention_bias,
            output_bias: !qwen && attention_bias,
            mlp_bias: !qwen && raw.mlp_bias.unwrap_or(false),
            pad_token_id: raw.pad_token_id,
            eos_token_ids: raw.eos_token_id.map_or_else(Vec::new, |eos| eos.0),
            model_type,
        };
        config.validate().map_err(|e| e.to_string())?;
        Ok(config)
    }

    /// Checks what belongs together.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), PolicyError> {
        hf::size("vocab_size", self.vocab_size, 1 << 24)?;
        hf::size("hidden_size", self.hidden_size, 1 << 16)?;
        hf::size("intermediate_size", self.intermediate_size, 1 << 18)?;
        hf::size("num_hidden_layers", self.num_hidden_layers, 1024)?;
        hf::size("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        hf::size("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads)?;
        hf::size("head_dim", self.head_dim, 1 << 14)?;
        let fail = |detail: String| Err(PolicyError::Config { detail });
        if self.num_attention_heads % self.num_key_value_heads != 0 {
            return fail(format!(
                "num_key_value_heads = {} does not divide num_attention_heads = {}",
                self.num_key_value_heads, self.num_attention_heads
            ));
        }
        if self.head_dim % 2 != 0 {
            return fail(format!("head_dim = {} is odd", self.head_dim));
        }
        if self.pad_token_id.is_some_and(|id| id < 0 || id >= self.vocab_size) {
            return fail(format!(
                "pad_token_id = {:?} is outside the vocabulary",
                self.pad_token_id
            ));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return fail(format!("rope_theta = {} is not positive", self.rope_theta));
        }
        hf::activation(&self.hidden_act).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DecoderConfig, String> {
        DecoderConfig::from_json(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn both_layouts_give_the_same_rope() {
        let four = read(r#"{"model_type":"qwen2","rope_theta":1e6,"rope_scaling":null}"#).unwrap();
        let five = read(
            r#"{"model_type":"qwen2","rope_parameters":{"rope_theta":1e6,"rope_type":"default"}}"#,
        )
        .unwrap();
        assert_eq!(four, five);
        assert_eq!(four.rope_theta, 1e6);
        assert_eq!((four.hidden_size, four.num_key_value_heads, four.head_dim), (4096, 32, 128));
        let nested = read(r#"{"model_type":"x","tie_word_embeddings":true,"text_config":{"model_type":"llama","hidden_size":64,"num_attention_heads":4}}"#).unwrap();
        assert_eq!((nested.num_key_value_heads, nested.head_dim, nested.qkv_bias), (4, 16, false));
        assert!(nested.tie_word_embeddings);
        assert_eq!(read(r#"{"eos_token_id":[3,5]}"#).unwrap().eos_token_ids, [3, 5]);
    }

    #[test]
    fn options_that_we_lack_are_named() {
        for (text, word) in [
            (r#"{"use_sliding_window":true}"#, "sliding"),
            (r#"{"layer_types":["full_attention","sliding_attention"]}"#, "sliding"),
            (r#"{"rope_scaling":{"type":"yarn","factor":4.0}}"#, "yarn"),
            (r#"{"rope_parameters":{"rope_type":"llama3"}}"#, "llama3"),
            (r#"{"model_type":"mamba"}"#, "mamba"),
            (r#"{"hidden_act":"laplace"}"#, "laplace"),
            (r#"{"num_attention_heads":4,"num_key_value_heads":3}"#, "num_key_value_heads"),
            (r#"{"num_attention_heads":0}"#, "num_attention_heads"),
            (r#"{"num_hidden_layers":1000000000000}"#, "num_hidden_layers"),
            (r#"{"vocab_size":10,"pad_token_id":10}"#, "pad_token_id"),
            (r#"{"eos_token_id":"end"}"#, "eos_token_id"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
