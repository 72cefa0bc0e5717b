//! Qwen2 (arXiv 2407.10671) and Llama (arXiv 2302.13971): decoders with rotary positions, grouped queries and gated
//! feed-forward parts. One code for both: they differ in biases, which `config.json` tells.
//!
//! Names and order of operations follow transformers 5 (`modeling_qwen2.py`, `modeling_llama.py`).
//!
//! # Details
//! 1. Positions are 0, 1, … from the left edge, padding included, as in transformers' plain forward pass; generation
//!    counts real tokens alone, as its `generate` does.
//! 2. The embedding row of the padding token gets no gradient as an input; tied to the output layer it still gets the
//!    output's.
//! 3. Rows whose keys are all hidden (left padding) come out as zeros of attention, not as NaN: libtorch's fused
//!    attention does that.
//! 4. The loss predicts each next token and skips those that `labels` marks with [`IGNORE`].

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use tch::{Device, Kind, Reduction, Tensor};

use super::DecoderConfig;
use crate::nn::attention::{mask, positions, repeat_heads};
use crate::nn::lora::LoraConfig;
use crate::nn::rope::{Angles, Rope};
use crate::nn::{Activation, Embedding, Init, Linear, Params, RmsNorm, Scope, checkpoint};
use crate::{PolicyError, hf};

/// A label that does not count (PyTorch's `ignore_index`).
pub const IGNORE: i64 = -100;

#[derive(Debug)]
struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    head_dim: i64,
    groups: i64,
}

/// What all layers share in one pass.
struct Pass {
    angles: Angles,
    mask: Option<Tensor>,
    causal: bool,
}

impl SelfAttention {
    fn new(scope: &Scope, config: &DecoderConfig) -> Self {
        let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
        let (width, head) = (config.hidden_size, config.head_dim);
        let linear = |name, inputs, outputs, bias| {
            Linear::with_init(&scope.sub(name), inputs, outputs, Init::Normal { std: 0.02 }, bias)
        };
        Self {
            q: linear("q_proj", width, heads * head, config.qkv_bias),
            k: linear("k_proj", width, kv * head, config.qkv_bias),
            v: linear("v_proj", width, kv * head, config.qkv_bias),
            out: linear("o_proj", heads * head, width, config.output_bias),
            head_dim: head,
            groups: heads / kv,
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut Option<(Tensor, Tensor)>>,
    ) -> Tensor {
        let split = |x: Tensor| x.unflatten(-1, [-1, self.head_dim]).transpose(1, 2);
        let q = split(self.q.forward(x));
        let k = split(self.k.forward(x));
        let mut v = split(self.v.forward(x));
        let kind = v.kind();
        let q = pass.angles.apply(&q).to_kind(kind);
        let mut k = pass.angles.apply(&k).to_kind(kind);
        if let Some(cache) = cache {
            if let Some((old_k, old_v)) = cache.take() {
                k = Tensor::cat(&[old_k, k], 2);
                v = Tensor::cat(&[old_v, v], 2);
            }
            *cache = Some((k.shallow_clone(), v.shallow_clone()));
        }
        let (k, v) = (repeat_heads(&k, self.groups), repeat_heads(&v, self.groups));
        let y = Tensor::scaled_dot_product_attention(
            &q,
            &k,
            &v,
            pass.mask.as_ref(),
            0.0,
            pass.causal,
            None,
            false,
        );
        self.out.forward(&y.transpose(1, 2).flatten(2, 3))
    }
}

#[derive(Debug)]
struct Layer {
    norm1: RmsNorm,
    attention: SelfAttention,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Layer {
    fn new(scope: &Scope, config: &DecoderConfig) -> Result<Self, PolicyError> {
        let (width, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        let mlp = scope.sub("mlp");
        let linear = |name, inputs, outputs| {
            Linear::with_init(
                &mlp.sub(name),
                inputs,
                outputs,
                Init::Normal { std: 0.02 },
                config.mlp_bias,
            )
        };
        Ok(Self {
            norm1: RmsNorm::new(&scope.sub("input_layernorm"), width, eps),
            attention: SelfAttention::new(&scope.sub("self_attn"), config),
            norm2: RmsNorm::new(&scope.sub("post_attention_layernorm"), width, eps),
            gate: linear("gate_proj", width, inner),
            up: linear("up_proj", width, inner),
            down: linear("down_proj", inner, width),
            activation: hf::activation(&config.hidden_act)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut Option<(Tensor, Tensor)>>,
    ) -> Tensor {
        let x = x + self.attention.forward(&self.norm1.forward(x), pass, cache);
        let h = self.norm2.forward(&x);
        let h = self.activation.apply(&self.gate.forward(&h)) * self.up.forward(&h);
        &x + self.down.forward(&h)
    }
}

/// Whether a mask hides anything; unmasked attention has faster kernels.
fn has_padding(valid: &Tensor) -> bool {
    valid.ne(0).all().int64_value(&[]) == 0
}

/// Keys and values of the tokens seen so far, per layer.
#[derive(Debug, Default)]
pub struct Cache(Vec<Option<(Tensor, Tensor)>>);

impl Cache {
    /// Tokens seen so far.
    pub fn len(&self) -> i64 {
        self.0.first().and_then(Option::as_ref).map_or(0, |(k, _)| k.size()[2])
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The decoder.
#[derive(Debug)]
pub struct Qwen2 {
    config: DecoderConfig,
    embedding: Embedding,
    layers: Rc<[Layer]>,
    norm: RmsNorm,
    /// None if tied to the embedding.
    head: Option<Linear>,
    rope: Rope,
    params: Params,
}

impl Qwen2 {
    /// New parameters in `scope`, `model.…` and `lm_head.…` (the latter unless tied).
    ///
    /// # Errors
    /// [`PolicyError::Config`] from [`DecoderConfig::validate`].
    pub fn new(scope: &Scope, config: DecoderConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let model = scope.sub("model");
        let embedding = Embedding::new(
            &model.sub("embed_tokens"),
            config.vocab_size,
            config.hidden_size,
            config.pad_token_id,
        );
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::new(&model.sub("layers").sub(i), &config))
            .collect::<Result<_, _>>()?;
        let norm = RmsNorm::new(&model.sub("norm"), config.hidden_size, config.rms_norm_eps);
        let head = (!config.tie_word_embeddings).then(|| {
            let init = Init::Normal { std: 0.02 };
            Linear::with_init(
                &scope.sub("lm_head"),
                config.hidden_size,
                config.vocab_size,
                init,
                false,
            )
        });
        let rope = Rope::new(config.head_dim, config.rope_theta, scope.device());
        Ok(Self { embedding, layers, norm, head, rope, params: scope.params().clone(), config })
    }

    /// Reads `config.json` and the weights of `folder`.
    ///
    /// # Errors
    /// [`PolicyError::File`], [`PolicyError::Refused`] or [`PolicyError::Config`] naming the file, field or tensor.
    pub fn load(
        folder: &Path,
        device: Device,
        lora: Option<LoraConfig>,
    ) -> Result<Self, PolicyError> {
        let config = DecoderConfig::read(&folder.join("config.json"))?;
        Self::from_weights(config, &hf::read_weights(folder)?, device, lora)
    }

    /// A decoder with these weights, whatever stands before their names; adapters begin as new ones.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the first tensor that is missing, left over, or of another shape.
    pub fn from_weights(
        config: DecoderConfig,
        weights: &BTreeMap<String, Tensor>,
        device: Device,
        lora: Option<LoraConfig>,
    ) -> Result<Self, PolicyError> {
        let (_, below) = hf::below_marker(weights, "embed_tokens.weight")?;
        let mut given: BTreeMap<String, Tensor> = below
            .into_iter()
            // Old checkpoints hold the frequencies; the head of an unprefixed one stands among the layers.
            .filter(|(name, _)| !name.ends_with("rotary_emb.inv_freq") && name != "lm_head.weight")
            .map(|(name, tensor)| (format!("model.{name}"), tensor))
            .collect();
        if !config.tie_word_embeddings
            && let Ok((prefix, _)) = hf::below_marker(weights, "lm_head.weight")
        {
            let head = &weights[&format!("{prefix}lm_head.weight")];
            given.insert("lm_head.weight".to_owned(), head.shallow_clone());
        }
        let params = Params::from_values(device, 0, given);
        params.set_lora(lora)?;
        let model = Self::new(&params.root(), config)?;
        params.complete()?;
        Ok(model)
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Its parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Hidden states after the last norm, `[B, N, W]`. `ids [B, N]` i64 below the vocabulary's size; `valid [B, N]`
    /// nonzero where a token is real, none if all are; without `causal` every token sees every real one (an encoder).
    ///
    /// # Errors
    /// [`PolicyError::Config`] for shapes that do not fit or a token outside the vocabulary.
    pub fn hidden(
        &self,
        ids: &Tensor,
        valid: Option<&Tensor>,
        causal: bool,
    ) -> Result<Tensor, PolicyError> {
        self.check(ids, valid)?;
        let n = ids.size()[1];
        let mask = valid.filter(|v| has_padding(v)).map(|v| mask(v, n, causal));
        let pass = Pass {
            angles: self.rope.angles(&positions(n, 0, ids.device())),
            causal: causal && mask.is_none(),
            mask,
        };
        let x = self.embedding.forward(ids);
        let x = checkpoint::run(&self.params, &self.layers, x, move |layer, x| {
            layer.forward(x, &pass, None)
        });
        Ok(self.norm.forward(&x))
    }

    /// `[.., W] -> [.., vocabulary]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        match &self.head {
            Some(head) => head.forward(hidden).to_kind(Kind::Float),
            None => match self.params.runtime().compute.get() {
                Some(kind) => hidden
                    .to_kind(kind)
                    .linear(&self.embedding.weight.to_kind(kind), None::<&Tensor>)
                    .to_kind(Kind::Float),
                None => hidden.linear(&self.embedding.weight, None::<&Tensor>),
            },
        }
    }

    /// Mean cross-entropy of each next token; `logits [B, N, V]`, `labels [B, N]` with [`IGNORE`] where none counts.
    pub fn loss(logits: &Tensor, labels: &Tensor) -> Tensor {
        let n = labels.size()[1];
        let vocabulary = logits.size()[2];
        // The last position has no next token. Padding the labels instead of cutting the logits, as transformers does,
        // keeps the logits in one piece.
        let ignored = Tensor::full([labels.size()[0], 1], IGNORE, (Kind::Int64, labels.device()));
        let next = Tensor::cat(&[labels.narrow(1, 1, n - 1), ignored], 1);
        logits.reshape([-1, vocabulary]).cross_entropy_loss(
            &next.reshape([-1]),
            None::<&Tensor>,
            Reduction::Mean,
            IGNORE,
            0.0,
        )
    }

    /// Logits of the next token, `[B, V]`, after `ids [B, N]` behind what `cache` has seen; `valid [B, seen + N]` covers
    /// both. Positions count real tokens.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for shapes that do not fit or a token outside the vocabulary.
    pub fn next_logits(
        &self,
        ids: &Tensor,
        valid: &Tensor,
        cache: &mut Cache,
    ) -> Result<Tensor, PolicyError> {
        self.check(ids, None)?;
        let (n, past) = (ids.size()[1], cache.len());
        if valid.size() != [ids.size()[0], past + n] {
            return Err(PolicyError::Config {
                detail: format!(
                    "decoder: the mask {:?} does not cover {past} + {n} tokens",
                    valid.size()
                ),
            });
        }
        let padded = has_padding(valid);
        let real = valid.ne(0).to_kind(Kind::Int64);
        let places = (real.cumsum(1, Kind::Int64) - 1).clamp_min(0).narrow(1, past, n);
        // The fused kernel's own causal mask counts from the first key, so it serves only without a past.
        let pass = Pass {
            angles: self.rope.angles(&places),
            mask: (padded || (n > 1 && past > 0)).then(|| mask(valid, n, true)),
            causal: !padded && n > 1 && past == 0,
        };
        cache.0.resize_with(self.layers.len(), || None);
        let mut x = self.embedding.forward(ids);
        for (layer, cache) in self.layers.iter().zip(&mut cache.0) {
            x = layer.forward(&x, &pass, Some(cache));
        }
        Ok(self.logits(&self.norm.forward(&x.narrow(1, n - 1, 1))).squeeze_dim(1))
    }

    /// Appends up to `new` most likely tokens to `ids [B, N]` (`valid` as above); a row that has ended is filled with the
    /// padding token (or its end token). `allow(logits [B, V], step)` may hide tokens.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for shapes that do not fit or a token outside the vocabulary.
    pub fn greedy(
        &self,
        ids: &Tensor,
        valid: Option<&Tensor>,
        new: i64,
        mut allow: impl FnMut(Tensor, i64) -> Tensor,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.check(ids, valid)?;
        let (b, device) = (ids.size()[0], ids.device());
        let mut valid = valid.map_or_else(|| ids.ones_like(), |v| v.to_kind(Kind::Int64));
        let ends = &self.config.eos_token_ids;
        let filler = self.config.pad_token_id.or_else(|| ends.first().copied()).unwrap_or(0);
        let mut ended = Tensor::zeros([b, 1], (Kind::Bool, device));
        let (mut all, mut input, mut cache) =
            (ids.shallow_clone(), ids.shallow_clone(), Cache::default());
        for step in 0..new {
            let logits = allow(self.next_logits(&input, &valid, &mut cache)?, step);
            let chosen = logits.argmax(-1, true);
            input = chosen.where_self(&ended.logical_not(), &Tensor::full_like(&chosen, filler));
            all = Tensor::cat(&[&all, &input], 1);
            valid = Tensor::cat(&[&valid, &Tensor::ones([b, 1], (Kind::Int64, device))], 1);
            for &end in ends {
                ended = ended.logical_or(&input.eq(end));
            }
            if !ends.is_empty() && ended.all().int64_value(&[]) != 0 {
                break;
            }
        }
        Ok(all)
    }

    fn check(&self, ids: &Tensor, valid: Option<&Tensor>) -> Result<(), PolicyError> {
        let size = ids.size();
        let fail =
            |detail: String| Err(PolicyError::Config { detail: format!("decoder: {detail}") });
        if size.len() != 2 || size.contains(&0) || ids.kind() != Kind::Int64 {
            return fail(format!("tokens {size:?} {:?} are not [B, N] i64", ids.kind()));
        }
        if let Some(valid) = valid.filter(|v| v.size() != size) {
            return fail(format!("the mask {:?} does not fit tokens {size:?}", valid.size()));
        }
        let (low, high) = (ids.min().int64_value(&[]), ids.max().int64_value(&[]));
        if low < 0 || high >= self.config.vocab_size {
            return fail(format!(
                "token {} is outside a vocabulary of {}",
                if low < 0 { low } else { high },
                self.config.vocab_size
            ));
        }
        Ok(())
    }
}
