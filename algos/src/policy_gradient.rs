//! What PPO and GRPO share: decisions as tensors, and the step of the policy along the clipped surrogate.

use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;
use simloop_policies::optim::{AdamW, Step};
use simloop_policies::{ObsBatch, StochasticActor};
use tch::{Kind, Tensor};

use crate::loss::{Clip, clipped_surrogate, kl_to_reference};
use crate::{AlgoError, Metrics, Trajectory};

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
    /// `[N, K]`.
    pub log_prob: Tensor,
    /// 1 where a term belongs to an action that was executed, `[N, K]`.
    pub valid: Tensor,
}

impl Decisions {
    /// Of all trajectories, in order.
    pub(crate) fn stack<A: StochasticActor>(
        actor: &A,
        trajectories: &[&Trajectory],
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
        Ok(Self {
            obs: ObsBatch::stack(&windows, actor.cameras(), device)?,
            latent: flat(&|t| &t.latent),
            log_prob: flat(&|t| &t.log_prob),
            valid: Tensor::from_slice(&valid).reshape([n as i64, -1]).to_device(device),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.obs.len()
    }

    /// Which input is not finite, if any.
    pub(crate) fn not_finite(&self) -> Option<&'static str> {
        let bad = |t: &Tensor| t.isfinite().all().int64_value(&[]) == 0;
        [("proprio", &self.obs.proprio), ("latent", &self.latent), ("log_prob", &self.log_prob)]
            .into_iter()
            .find_map(|(name, tensor)| bad(tensor).then_some(name))
    }
}

/// A gradient step's outcome.
pub(crate) enum Moved {
    /// With the divergence from the policy that acted.
    Yes {
        approx_kl: f64,
    },
    No {
        tensor: String,
    },
}

/// Moves `actor` one step along the surrogate on the decisions `index`; `advantage` is `[n]`, already chosen and scaled.
#[expect(clippy::too_many_arguments, reason = "the parts of a step, each used as it is")]
#[expect(clippy::assign_op_pattern, reason = "tch would add in place, into a tensor of the graph")]
pub(crate) fn step<A: StochasticActor>(
    actor: &A,
    reference: Option<&A>,
    optim: &mut AdamW,
    lr: f64,
    config: &SurrogateConfig,
    decisions: &Decisions,
    index: &[i64],
    advantage: &Tensor,
    sums: &mut Sums,
) -> Result<Moved, AlgoError> {
    let device = advantage.device();
    let rows = Tensor::from_slice(index).to_device(device);
    let pick = |t: &Tensor| t.index_select(0, &rows);
    let obs = decisions.obs.select(index);
    let (latent, valid) = (pick(&decisions.latent), pick(&decisions.valid));
    let density = actor.density(&obs, &latent)?;
    let old = pick(&decisions.log_prob);
    let (new, old, mask) = match config.ratio {
        Ratio::Token => (density.log_prob.shallow_clone(), old, valid.shallow_clone()),
        Ratio::Chunk => {
            let sum = |t: &Tensor| (t * &valid).sum_dim_intlist(1, true, Kind::Float);
            let (new, old) = (sum(&density.log_prob), sum(&old));
            let ones = new.ones_like();
            (new, old, ones)
        }
    };
    let spread = advantage.unsqueeze(1).expand_as(&new);
    let clip = Clip { low: config.clip, high: config.clip_high.unwrap_or(config.clip) };
    let surrogate = clipped_surrogate(&new, &old, &spread, &mask, clip)?;
    let mut loss = surrogate.loss.shallow_clone();
    if config.entropy_coef != 0.0 || sums.want_entropy() {
        let entropy = (&density.entropy * &valid).sum(Kind::Float) / index.len() as f64;
        sums.add("train/entropy", entropy.double_value(&[]));
        loss = loss - entropy * config.entropy_coef;
    }
    if config.kl_coef > 0.0
        && let Some(reference) = reference
    {
        let before = tch::no_grad(|| reference.density(&obs, &latent))?.log_prob;
        let kl = kl_to_reference(&density.log_prob, &before, &valid)?;
        sums.add("train/kl_reference", kl.double_value(&[]));
        loss = loss + kl * config.kl_coef;
    }
    let value = loss.double_value(&[]);
    if !value.is_finite() {
        optim.discard();
        return Ok(Moved::No { tensor: "the policy's loss".to_owned() });
    }
    optim.accumulate(&loss)?;
    match optim.step(lr) {
        Step::Applied { grad_norm } => {
            sums.add("train/policy_loss", value);
            sums.add("train/grad_norm", grad_norm);
            sums.add("train/clip_fraction", surrogate.clip_fraction);
            sums.add("train/approx_kl", surrogate.approx_kl);
            Ok(Moved::Yes { approx_kl: surrogate.approx_kl })
        }
        Step::Dropped { tensor } => Ok(Moved::No { tensor }),
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

/// The decisions `0..n` in the order of pass `epoch` of update `update`, cut into minibatches.
pub(crate) fn minibatches(
    seeds: &SeedTree,
    update: u64,
    epoch: usize,
    n: usize,
    size: usize,
) -> Vec<Vec<i64>> {
    let mut order: Vec<i64> = (0..n as i64).collect();
    order.shuffle(&mut seeds.index(update).index(epoch as u64).rng());
    order.chunks(size).map(<[i64]>::to_vec).collect()
}
