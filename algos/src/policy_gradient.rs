//! What PPO and GRPO share: decisions as tensors, passes over them, and the policy's loss.

use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;
use simloop_policies::nn::Loss;
use simloop_policies::{ObsBatch, StochasticActor};
use tch::{Kind, Tensor};

use crate::loss::{Clip, clipped_surrogate, kl_to_reference, normalized};
use crate::{AlgoError, Learner, Metrics, Trajectory};

/// What one probability ratio is taken of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// The whole decision: the product over its terms.
    #[default]
    Chunk,
    /// Each term: an action of a chunk, or a denoising step.
    Token,
}

/// How the policy moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SurrogateConfig {
    /// What one ratio is taken of.
    pub ratio: Ratio,
    /// Ratios below `1 - clip` stop counting.
    pub clip: f64,
    /// Ratios above `1 + clip_high` stop counting; `clip` when left out.
    pub clip_high: Option<f64>,
    /// Weight of the entropy bonus.
    pub entropy_coef: f64,
    /// Weight of the divergence from the reference policy; 0 needs none.
    pub kl_coef: f64,
    /// Passes over the data.
    pub epochs: usize,
    /// Decisions per gradient step.
    pub minibatch: usize,
    /// Stop the passes once the divergence from the policy that acted exceeds 1.5 times this.
    pub target_kl: Option<f64>,
}

impl Default for SurrogateConfig {
    fn default() -> Self {
        Self {
            ratio: Ratio::Chunk,
            clip: 0.2, // PPO, Schulman et al. 2017, table 3
            clip_high: None,
            entropy_coef: 0.0,
            kl_coef: 0.0,
            epochs: 10,    // as above
            minibatch: 64, // as above
            target_kl: None,
        }
    }
}

impl SurrogateConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`AlgoError::Range`] naming the first one out of range.
    pub fn validate(&self) -> Result<(), AlgoError> {
        let clip_high = self.clip_high.unwrap_or(self.clip);
        for (what, got, good, range) in [
            ("clip", self.clip, self.clip > 0.0 && self.clip <= 1.0, "(0, 1]"),
            ("clip_high", clip_high, clip_high > 0.0 && clip_high.is_finite(), "(0, inf)"),
            ("entropy_coef", self.entropy_coef, self.entropy_coef.is_finite(), "the numbers"),
            ("kl_coef", self.kl_coef, self.kl_coef >= 0.0, "[0, inf)"),
            ("epochs", self.epochs as f64, self.epochs > 0, "[1, inf)"),
            ("minibatch", self.minibatch as f64, self.minibatch > 0, "[1, inf)"),
        ] {
            if !good {
                return Err(AlgoError::Range { what, got, range });
            }
        }
        Ok(())
    }
}

/// `N` decisions as tensors.
pub(crate) struct Decisions {
    /// What was seen.
    pub obs: ObsBatch,
    /// `[N, L]`.
    pub latent: Tensor,
    /// Log-probs of what a ratio is taken of, by the policy that acted: `[N, K]`, or `[N, 1]` for whole decisions.
    pub old: Tensor,
    /// 1 where a term belongs to an action that was executed, `[N, K]`.
    pub valid: Tensor,
}

impl Decisions {
    /// Of all trajectories, in order.
    pub(crate) fn stack<A: StochasticActor>(
        actor: &A,
        trajectories: &[&Trajectory],
        ratio: Ratio,
    ) -> Result<Self, AlgoError> {
        let device = actor.params().device();
        let terms = actor.terms();
        let all = || trajectories.iter().flat_map(|t| &t.transitions);
        let n = all().count();
        let windows: Vec<_> = all().map(|t| t.window.clone()).collect();
        let flat = |of: &dyn Fn(&crate::Transition) -> &[f32]| {
            let values: Vec<f32> = all().flat_map(|t| of(t).iter().copied()).collect();
            Tensor::from_slice(&values).reshape([n as i64, -1]).to_device(device)
        };
        let valid: Vec<f32> = all()
            .flat_map(|t| {
                let steps = t.steps as usize;
                terms.iter().map(move |row| f32::from(u8::from(row.is_none_or(|r| r < steps))))
            })
            .collect();
        let valid = Tensor::from_slice(&valid).reshape([n as i64, -1]).to_device(device);
        let log_prob = flat(&|t| &t.log_prob);
        Ok(Self {
            obs: ObsBatch::stack(&windows, actor.cameras(), device)?,
            latent: flat(&|t| &t.latent),
            old: match ratio {
                Ratio::Token => log_prob,
                Ratio::Chunk => whole(&log_prob, &valid),
            },
            valid,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.obs.len()
    }

    /// Which input is not finite, if any.
    pub(crate) fn not_finite(&self) -> Option<&'static str> {
        let bad = |t: &Tensor| t.isfinite().all().int64_value(&[]) == 0;
        [("proprio", &self.obs.proprio), ("latent", &self.latent), ("log_prob", &self.old)]
            .into_iter()
            .find_map(|(name, tensor)| bad(tensor).then_some(name))
    }
}

/// The log-prob of each whole decision, `[N, 1]`: the sum over its executed terms.
fn whole(log_prob: &Tensor, valid: &Tensor) -> Tensor {
    (log_prob * valid).sum_dim_intlist(1, true, Kind::Float)
}

/// One pass over all decisions in an order of its own. Everything is put into that order at once and cut into views, but for
/// images, which are picked per minibatch: a second copy of them would cost memory.
pub(crate) struct Pass<'a> {
    all: &'a Decisions,
    order: Vec<i64>,
    rows: Tensor,
    size: usize,
    proprio: Vec<Tensor>,
    latent: Vec<Tensor>,
    old: Vec<Tensor>,
    valid: Vec<Tensor>,
}

impl<'a> Pass<'a> {
    /// Pass `epoch` of update `update`, in minibatches of `size`.
    pub(crate) fn new(
        all: &'a Decisions,
        seeds: &SeedTree,
        update: u64,
        epoch: usize,
        size: usize,
    ) -> Self {
        let mut order: Vec<i64> = (0..all.len() as i64).collect();
        order.shuffle(&mut seeds.index(update).index(epoch as u64).rng());
        let rows = Tensor::from_slice(&order).to_device(all.latent.device());
        let cut = |t: &Tensor| t.index_select(0, &rows).split(size as i64, 0);
        Self {
            all,
            size,
            proprio: cut(&all.obs.proprio),
            latent: cut(&all.latent),
            old: cut(&all.old),
            valid: cut(&all.valid),
            rows,
            order,
        }
    }

    /// Minibatches.
    pub(crate) fn len(&self) -> usize {
        self.latent.len()
    }

    /// A number per decision, `[N]`, cut alike.
    pub(crate) fn cut(&self, column: &Tensor) -> Vec<Tensor> {
        column.index_select(0, &self.rows).split(self.size as i64, 0)
    }

    /// The same, normalised within each minibatch.
    pub(crate) fn cut_normalized(&self, column: &Tensor) -> Vec<Tensor> {
        let column = column.index_select(0, &self.rows);
        let size = self.size as i64;
        let full = self.order.len() as i64 / size * size;
        let head = normalized(&column.narrow(0, 0, full).reshape([-1, size])).flatten(0, 1);
        let tail = normalized(&column.narrow(0, full, column.size()[0] - full));
        Tensor::cat(&[head, tail], 0).split(size, 0)
    }

    /// Minibatch `i`.
    pub(crate) fn minibatch(&self, i: usize) -> Decisions {
        let start = i * self.size;
        let order = &self.order[start..(start + self.size).min(self.order.len())];
        let obs = &self.all.obs;
        let pick =
            |t: &Tensor| t.index_select(0, &self.rows.narrow(0, start as i64, order.len() as i64));
        let instructions = order.iter().map(|&row| obs.instructions[row as usize].clone());
        Decisions {
            obs: ObsBatch {
                images: obs.images.iter().map(|(name, t)| (name.clone(), pick(t))).collect(),
                proprio: self.proprio[i].shallow_clone(),
                instructions: instructions.collect(),
            },
            latent: self.latent[i].shallow_clone(),
            old: self.old[i].shallow_clone(),
            valid: self.valid[i].shallow_clone(),
        }
    }
}

/// What the policy is to go down, and how far it has gone.
pub(crate) struct PolicyLoss {
    /// Its terms.
    pub losses: Vec<Loss>,
    /// Divergence from the policy that acted.
    pub approx_kl: f64,
}

/// The loss of `actor` on `decisions`; `advantage` is `[n]`, already chosen and scaled. The inner error names what is not finite.
pub(crate) fn policy_loss<A: StochasticActor>(
    actor: &A,
    reference: Option<&A>,
    config: &SurrogateConfig,
    decisions: &Decisions,
    advantage: &Tensor,
    sums: &mut Sums,
) -> Result<Result<PolicyLoss, String>, AlgoError> {
    let Decisions { obs, latent, old, valid } = decisions;
    let density = actor.density(obs, latent)?;
    let (new, mask) = match config.ratio {
        Ratio::Token => (density.log_prob.shallow_clone(), Some(valid)),
        Ratio::Chunk => (whole(&density.log_prob, valid), None),
    };
    let spread = advantage.unsqueeze(1).expand_as(&new);
    let clip = Clip { low: config.clip, high: config.clip_high.unwrap_or(config.clip) };
    let surrogate = clipped_surrogate(&new, old, &spread, mask, clip)?;
    let mut value = surrogate.loss;
    let mut losses = vec![Loss::Slopes(vec![(new, surrogate.slope)])];
    if config.entropy_coef != 0.0 || sums.want_entropy() {
        let entropy = (&density.entropy * valid).sum(Kind::Float) / decisions.len() as f64;
        let nats = entropy.double_value(&[]);
        sums.add("train/entropy", nats);
        if config.entropy_coef != 0.0 {
            value -= nats * config.entropy_coef;
            losses.push(Loss::Scalar(entropy * -config.entropy_coef));
        }
    }
    if config.kl_coef > 0.0
        && let Some(reference) = reference
    {
        let before = tch::no_grad(|| reference.density(obs, latent))?.log_prob;
        let kl = kl_to_reference(&density.log_prob, &before, valid)?;
        let nats = kl.double_value(&[]);
        sums.add("train/kl_reference", nats);
        value += nats * config.kl_coef;
        losses.push(Loss::Scalar(kl * config.kl_coef));
    }
    if !value.is_finite() {
        return Ok(Err("the policy's loss".to_owned()));
    }
    sums.add("train/policy_loss", value);
    sums.add("train/clip_fraction", surrogate.clip_fraction);
    sums.add("train/approx_kl", surrogate.approx_kl);
    Ok(Ok(PolicyLoss { losses, approx_kl: surrogate.approx_kl }))
}

/// Runs `passes` on `learner`; if it names a tensor that is not finite, everything is as before, bit for bit, and the name is
/// the inner error.
pub(crate) fn all_or_nothing<L: Learner>(
    learner: &mut L,
    passes: impl FnOnce(&mut L, &mut Sums) -> Result<Option<String>, AlgoError>,
) -> Result<Result<Metrics, String>, AlgoError> {
    let before = learner.state();
    let mut sums = Sums::default();
    match passes(learner, &mut sums)? {
        Some(tensor) => {
            learner.load_state(&before)?;
            Ok(Err(tensor))
        }
        None => Ok(Ok(sums.means())),
    }
}

/// Means of numbers by name.
#[derive(Default)]
pub(crate) struct Sums(std::collections::BTreeMap<&'static str, (f64, f64)>);

impl Sums {
    pub(crate) fn add(&mut self, name: &'static str, value: f64) {
        let (sum, count) = self.0.entry(name).or_default();
        *sum += value;
        *count += 1.0;
    }

    /// Entropy is looked at once per update, whatever it weighs.
    fn want_entropy(&self) -> bool {
        !self.0.contains_key("train/entropy")
    }

    pub(crate) fn means(&self) -> Metrics {
        self.0.iter().map(|(name, (sum, count))| (*name, sum / count)).collect()
    }
}
