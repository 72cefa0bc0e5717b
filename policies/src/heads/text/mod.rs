//! Integers as text: a chunk is a line of integers, said digit by digit (VLA-0, arXiv 2510.13054).
//!
//! # Details
//! 1. Each number is mapped to `0..=1000` and rounded; `T_p · D` integers are joined by single spaces ([`Codec::text`]).
//! 2. A causal transformer says digits, spaces and the end, with the context's tokens as its prefix; the loss is the
//!    cross-entropy of the true characters ([`TextHead`]'s `loss`).
//! 3. Masked-action augmentation: with probability 0.1 nothing is hidden, otherwise a share p ~ U(0, 0.4) of the characters is
//!    replaced by "?" in the input and not scored ([`TextConfig::mask_max_share`]).
//! 4. Acting, only characters that lead to a whole chunk may be said ([`Constraint`]); then the text is read
//!    ([`Codec::parse`]).
//!
//! Deviations: a small transformer of our own over characters, where VLA-0 trains a vision-language model (whose tokeniser also has one
//! token per digit); the reported loss is averaged over the characters of each action and then over actions, VLA-0's over
//! all characters of a batch; the reference only restricts the alphabet ([`Constraint::Characters`]), our default
//! enforces the number of integers and their range too.

mod codec;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};

use super::{Head, HeadShape};
use crate::fusion::Context;
use crate::nn::transformer::causal_mask;
use crate::nn::{Embedding, EncoderLayer, Init, LayerNorm, Linear, Scope, TransformerConfig};
use crate::{ActMode, NoiseStream, PolicyError};

pub use codec::Codec;
use codec::{BEGIN, END, Grammar, HIDDEN, SPOKEN, VOCABULARY};

/// What may be said while acting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Exactly `T_p · D` integers in range.
    #[default]
    Grammar,
    /// Digits, spaces and the end in any order, as VLA-0; broken text is read by its rules.
    Characters,
}

/// Settings of [`TextHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextConfig {
    /// Greatest integer.
    pub max_value: i64,
    /// Least action; lower ones are clipped.
    pub low: f64,
    /// Greatest action; higher ones are clipped.
    pub high: f64,
    /// Probability that nothing is hidden in a sample.
    pub unmasked_probability: f64,
    /// Greatest share of hidden characters.
    pub mask_max_share: f64,
    /// What may be said.
    pub constraint: Constraint,
    /// Layers.
    pub depth: usize,
    /// Their size.
    pub transformer: TransformerConfig,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            max_value: 1000, // VLA-0
            low: -1.0,
            high: 1.0,
            unmasked_probability: 0.1, // VLA-0
            mask_max_share: 0.4,       // VLA-0, action_mask_aug_per
            constraint: Constraint::Grammar,
            depth: 4, // ours
            transformer: TransformerConfig::default(),
        }
    }
}

impl TextConfig {
    fn validate(&self) -> Result<(), PolicyError> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        if self.depth < 1 || !share(self.unmasked_probability) || !share(self.mask_max_share) {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a text head with depth = {}, unmasked_probability = {}, mask_max_share = {}: at least one layer and \
                     shares in [0, 1] are needed",
                    self.depth, self.unmasked_probability, self.mask_max_share
                ),
            });
        }
        self.transformer.validate()
    }
}

/// See the module.
#[derive(Debug)]
pub struct TextHead {
    pooled: Linear,
    tokens: Linear,
    characters: Embedding,
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    out: Linear,
    codec: Codec,
    config: TextConfig,
    shape: HeadShape,
}

/// The characters of a batch, each `B · L` long, row by row.
struct Characters {
    len: usize,
    /// What the model reads: the character before, perhaps hidden.
    inputs: Vec<i64>,
    /// What it should say; -100 where that is not scored.
    labels: Vec<i64>,
    /// Which action of the chunk the label belongs to.
    actions: Vec<i64>,
}

const NOT_SCORED: i64 = -100;

impl TextHead {
    /// For contexts and chunks of `shape`.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(scope: &Scope, config: &TextConfig, shape: HeadShape) -> Result<Self, PolicyError> {
        shape.validate()?;
        config.validate()?;
        let codec = Codec {
            max_value: config.max_value,
            low: config.low,
            high: config.high,
            chunk_size: shape.chunk_size as usize,
            action_dim: shape.action_dim as usize,
        };
        codec.validate()?;
        let w = config.transformer.width;
        let small = Init::Normal { std: 0.02 };
        Ok(Self {
            pooled: Linear::new(&scope.sub("pooled"), shape.pooled_width, w),
            tokens: Linear::new(&scope.sub("tokens"), shape.token_width, w),
            characters: Embedding::new(&scope.sub("characters"), VOCABULARY, w, None),
            positions: scope.param("positions", &[codec.max_len() as i64, w], small),
            layers: EncoderLayer::stack(&scope.sub("layers"), &config.transformer, config.depth),
            norm: LayerNorm::new(&scope.sub("norm"), w, 1e-5),
            out: Linear::new(&scope.sub("out"), w, SPOKEN),
            codec,
            config: config.clone(),
            shape,
        })
    }

    /// The text format.
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// `[B, 1 + N, W]`.
    fn prefix(&self, context: &Context) -> Tensor {
        let pooled = self.pooled.forward(&context.pooled).unsqueeze(1);
        Tensor::cat(&[pooled, self.tokens.forward(&context.tokens)], 1)
    }

    fn characters(&self, actions: &Tensor, noise: &mut NoiseStream) -> Characters {
        let (b, n) = (actions.size()[0], self.codec.count() as i64);
        let flat = actions.detach().to_device(Device::Cpu).to_kind(Kind::Float).reshape([b, n]);
        let mut numbers = vec![0f32; (b * n) as usize];
        flat.contiguous().copy_data(&mut numbers, (b * n) as usize);
        let rows: Vec<Vec<i64>> = numbers
            .chunks_exact(n as usize)
            .map(|chunk| Codec::ids(&self.codec.text(chunk)))
            .collect();
        let len = rows.iter().map(Vec::len).max().unwrap_or(1);
        let mut out = Characters {
            len,
            inputs: Vec::with_capacity(rows.len() * len),
            labels: Vec::with_capacity(rows.len() * len),
            actions: Vec::with_capacity(rows.len() * len),
        };
        for ids in rows {
            let hidden = self.hidden(ids.len() - 1, noise);
            let mut integer = 0;
            let mut before = BEGIN;
            for i in 0..len {
                let id = ids.get(i).copied();
                let hide = hidden.get(i).copied().unwrap_or(false);
                out.inputs.push(before);
                out.labels.push(if hide { NOT_SCORED } else { id.unwrap_or(NOT_SCORED) });
                out.actions.push(integer / self.shape.action_dim);
                if id == Some(codec::SPACE) {
                    integer += 1;
                }
                before = if hide { HIDDEN } else { id.unwrap_or(END) };
            }
        }
        out
    }

    /// Which of `len` characters are hidden from the model.
    fn hidden(&self, len: usize, noise: &mut NoiseStream) -> Vec<bool> {
        let draw = |noise: &mut NoiseStream, n: usize| {
            let mut values = vec![0f32; n];
            noise.uniform(&[n as i64], Device::Cpu).copy_data(&mut values, n);
            values
        };
        let coin = draw(noise, 2);
        let keys = draw(noise, len);
        let mut hidden = vec![false; len];
        if f64::from(coin[0]) >= self.config.unmasked_probability {
            let share = f64::from(coin[1]) * self.config.mask_max_share;
            let count = (len as f64 * share) as usize;
            let mut order: Vec<usize> = (0..len).collect();
            order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
            for i in &order[..count] {
                hidden[*i] = true;
            }
        }
        hidden
    }

    /// Logits of the next character at each of `L` positions, `[B, L, 12]`; `inputs` is `[B, L]`.
    fn logits(&self, context: &Context, inputs: &Tensor) -> Tensor {
        let prefix = self.prefix(context);
        let (n, len) = (prefix.size()[1], inputs.size()[1]);
        let text = self.characters.forward(inputs) + self.positions.narrow(0, 0, len);
        let mask = causal_mask(n + len, n, inputs.device());
        let mut x = Tensor::cat(&[prefix, text], 1);
        for layer in &self.layers {
            x = layer.forward(&x, Some(&mask));
        }
        self.say(&x.narrow(1, n, len))
    }

    fn say(&self, x: &Tensor) -> Tensor {
        self.out.forward(&self.norm.forward(x)).to_kind(Kind::Float)
    }

    /// The text of each row, one character at a time with cached keys and values.
    fn speak(&self, context: &Context, noise: &mut [NoiseStream], mode: ActMode) -> Vec<String> {
        let b = noise.len();
        let device = context.pooled.device();
        let mut caches: Vec<Option<(Tensor, Tensor)>> = self.layers.iter().map(|_| None).collect();
        let mut pass = |x: Tensor| {
            let layers = self.layers.iter().zip(&mut caches);
            layers.fold(x, |x, (layer, cache)| layer.forward_cached(&x, cache))
        };
        let _ = pass(self.prefix(context));
        let mut grammars = vec![Grammar::default(); b];
        let mut said: Vec<Vec<i64>> = vec![Vec::new(); b];
        let mut last = vec![BEGIN; b];
        for position in 0..self.codec.max_len() as i64 {
            let ids = Tensor::from_slice(&last).to_device(device).unsqueeze(1);
            let x = self.characters.forward(&ids) + self.positions.get(position);
            let logits = self.say(&pass(x)).to_device(Device::Cpu).contiguous();
            let mut scores = vec![0f32; b * SPOKEN as usize];
            logits.copy_data(&mut scores, b * SPOKEN as usize);
            for (row, scores) in scores.chunks_exact_mut(SPOKEN as usize).enumerate() {
                let grammar = &mut grammars[row];
                if grammar.ended() {
                    continue;
                }
                if mode == ActMode::Stochastic {
                    // The Gumbel-max trick: the greatest of these is a sample.
                    let mut u = [0f32; SPOKEN as usize];
                    noise[row].uniform(&[SPOKEN], Device::Cpu).copy_data(&mut u, SPOKEN as usize);
                    for (score, u) in scores.iter_mut().zip(u) {
                        *score -= (-u.max(f32::MIN_POSITIVE).ln()).ln();
                    }
                }
                let allowed = match self.config.constraint {
                    Constraint::Grammar => grammar.allowed(&self.codec),
                    Constraint::Characters => [true; SPOKEN as usize],
                };
                let id = best(scores, &allowed);
                grammar.advance(id);
                said[row].push(id);
                last[row] = id;
            }
            if grammars.iter().all(Grammar::ended) {
                break;
            }
        }
        said.iter().map(|ids| Codec::words(ids)).collect()
    }
}

/// The allowed id of the greatest score, the lowest among equals.
fn best(scores: &[f32], allowed: &[bool]) -> i64 {
    let mut best: Option<(usize, f32)> = None;
    for (i, score) in scores.iter().enumerate().filter(|(i, _)| allowed[*i]) {
        if best.is_none_or(|(_, s)| *score > s) {
            best = Some((i, *score));
        }
    }
    best.map_or(END, |(i, _)| i as i64)
}

impl Head for TextHead {
    /// Cross-entropy, nats per scored character, averaged over each action's characters (its following space or end
    /// included); 0 for an action of which every character is hidden.
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let b = self.shape.expect_batch(context, actions, valid)?;
        let device = actions.device();
        let characters = self.characters(actions, noise);
        let tensor = |values: &[i64]| {
            Tensor::from_slice(values).reshape([b, characters.len as i64]).to_device(device)
        };
        let labels = tensor(&characters.labels);
        let logits = self.logits(context, &tensor(&characters.inputs)).flatten(0, 1);
        let loss = logits.cross_entropy_loss::<Tensor>(
            &labels.flatten(0, 1),
            None,
            Reduction::None,
            NOT_SCORED,
            0.0,
        );
        let loss = loss.view_as(&labels);
        let scored = labels.not_equal(NOT_SCORED).to_kind(Kind::Float);
        let (index, zeros) = (tensor(&characters.actions), valid.to_kind(Kind::Float).zeros_like());
        let sums = zeros.scatter_add(1, &index, &loss);
        let counts = zeros.scatter_add(1, &index, &scored);
        Ok(sums / counts.clamp_min(1.0))
    }

    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        let b = self.shape.expect_streams(context, noise)?;
        let texts = self.speak(context, noise, mode);
        let numbers: Vec<f32> = texts.iter().flat_map(|text| self.codec.parse(text)).collect();
        let chunk = [b, self.shape.chunk_size, self.shape.action_dim];
        Ok(Tensor::from_slice(&numbers).reshape(chunk).to_device(context.pooled.device()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::HeadConfig;
    use crate::heads::testing::{check_head, check_learns_a_linear_policy, context, shape};
    use crate::nn::Params;
    use crate::testing::{assert_close, random};

    fn config() -> TextConfig {
        TextConfig {
            max_value: 20,
            depth: 2,
            transformer: TransformerConfig {
                width: 32,
                heads: 2,
                feed_forward: 64,
                ..TransformerConfig::default()
            },
            ..TextConfig::default()
        }
    }

    fn head(config: &TextConfig) -> TextHead {
        TextHead::new(&Params::new(Device::Cpu, 0).root(), config, shape()).unwrap()
    }

    #[test]
    fn it_is_a_head() {
        check_head(&HeadConfig::Text(config()));
        let constraint = Constraint::Characters;
        check_head(&HeadConfig::Text(TextConfig { constraint, max_value: 1000, ..config() }));
    }

    #[test]
    fn it_learns_a_linear_policy() {
        // One digit a number: a step is 2/9, rounding alone is off by 0.056 on average.
        let config = TextConfig { max_value: 9, ..config() };
        check_learns_a_linear_policy(&HeadConfig::Text(config), 200, 3e-3, 0.12);
    }

    /// `"0 20 10 5 …"`: what is read, said and scored, character by character.
    #[test]
    fn every_character_is_predicted_from_those_before() {
        const S: i64 = codec::SPACE;
        let head = head(&TextConfig { unmasked_probability: 1.0, ..config() });
        let actions =
            Tensor::from_slice(&[-1f32, 1., 0., -0.5, -1., -1., -1., 1.]).reshape([1, 4, 2]);
        let c = head.characters(&actions, &mut NoiseStream::new(0));
        let said = [0, S, 2, 0, S, 1, 0, S, 5, S, 0, S, 0, S, 0, S, 2, 0, END];
        assert_eq!(c.labels, said);
        assert_eq!(c.inputs[0], BEGIN);
        assert_eq!(c.inputs[1..], said[..said.len() - 1]);
        assert_eq!(c.actions, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn hidden_characters_are_neither_read_nor_scored() {
        let head = head(&TextConfig { max_value: 1000, ..config() });
        let actions = random(1, &[200, 4, 2]).clamp(-1.0, 1.0);
        let plain =
            self::head(&TextConfig { max_value: 1000, unmasked_probability: 1.0, ..config() });
        let truth = plain.characters(&actions, &mut NoiseStream::new(0));
        let c = head.characters(&actions, &mut NoiseStream::new(0));
        let (mut untouched, mut share) = (0, 0.0);
        for row in 0..200 {
            let range = row * c.len..(row + 1) * c.len;
            let text = truth.labels[range.clone()].iter().filter(|l| **l != NOT_SCORED).count() - 1;
            let mut hidden = 0;
            for i in range.clone().take(c.len - 1) {
                assert_eq!(
                    c.inputs[i + 1] == HIDDEN,
                    c.labels[i] == NOT_SCORED && truth.labels[i] != NOT_SCORED
                );
                hidden += usize::from(c.inputs[i + 1] == HIDDEN);
                assert!(c.inputs[i + 1] == HIDDEN || c.inputs[i + 1] == truth.inputs[i + 1]);
            }
            // The end is never hidden.
            assert_eq!(c.labels[range.start + text], END);
            assert!(hidden as f64 <= 0.4 * text as f64);
            untouched += usize::from(hidden == 0);
            share += hidden as f64 / text as f64 / 200.0;
        }
        // A tenth is left alone, and of p ~ U(0, 0.4) those below 1/len add none: about 0.1 + 0.9 * 0.08.
        assert!((10..60).contains(&untouched), "{untouched} of 200 untouched");
        // 0.9 * 0.2 less rounding down.
        assert!((0.13..0.19).contains(&share), "{share} hidden");
    }

    #[test]
    fn speaking_follows_the_logits_of_one_pass() {
        let head = head(&config());
        let context = context(3);
        let mut streams: Vec<NoiseStream> = (0..3).map(NoiseStream::new).collect();
        let texts = head.speak(&context, &mut streams, ActMode::Deterministic);
        for (row, text) in texts.iter().enumerate() {
            let ids = Codec::ids(text);
            let inputs: Vec<i64> =
                [BEGIN].into_iter().chain(ids[..ids.len() - 1].iter().copied()).collect();
            let one = Context {
                pooled: context.pooled.narrow(0, row as i64, 1),
                tokens: context.tokens.narrow(0, row as i64, 1),
            };
            let logits = head.logits(&one, &Tensor::from_slice(&inputs).unsqueeze(0));
            let mut grammar = Grammar::default();
            for (i, id) in ids.iter().enumerate() {
                let scores = Vec::<f32>::try_from(logits.get(0).get(i as i64)).unwrap();
                assert_eq!(best(&scores, &grammar.allowed(&head.codec)), *id, "{text} at {i}");
                grammar.advance(*id);
            }
        }
    }

    #[test]
    fn an_actions_loss_is_the_mean_over_its_own_characters() {
        let head = head(&TextConfig { unmasked_probability: 1.0, ..config() });
        let (context, actions) = (context(1), random(2, &[1, 4, 2]).clamp(-1.0, 1.0));
        let valid = Tensor::ones([1, 4], (Kind::Float, Device::Cpu));
        let loss = head.loss(&context, &actions, &valid, &mut NoiseStream::new(0)).unwrap();
        let c = head.characters(&actions, &mut NoiseStream::new(0));
        let log_p = head
            .logits(&context, &Tensor::from_slice(&c.inputs).unsqueeze(0))
            .log_softmax(-1, Kind::Float);
        let mut expected = [0f64; 4];
        let mut counts = [0f64; 4];
        for (i, (label, action)) in c.labels.iter().zip(&c.actions).enumerate() {
            expected[*action as usize] -= log_p.double_value(&[0, i as i64, *label]);
            counts[*action as usize] += 1.0;
        }
        let expected: Vec<f64> = expected.iter().zip(counts).map(|(e, c)| e / c).collect();
        assert_close(&loss, &Tensor::from_slice(&expected).unsqueeze(0), 1e-5);
    }
}
