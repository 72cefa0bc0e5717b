//! Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, section 4.1), for robot policies as in
//! SimpleVLA-RL (Li et al. 2025, arXiv 2509.09674) and RIPT-VLA (Tan et al. 2025, arXiv 2505.17016).
//!
//! # Details
//!
//! 1. The data are whole episodes in groups that began in the same state. An episode's advantage is its return relative
//!    to its group's, for every decision in it; there is no critic.
//! 2. The return is that of the whole episode ([`Trajectory::ret`](crate::Trajectory::ret)).
//! 3. Advantages are normalised by the group's deviation (GRPO) or against the mean of the others (leave one out, RIPT).
//! 4. Groups whose returns are all equal teach nothing and are left out (dynamic sampling: DAPO, Yu et al. 2025, arXiv
//!    2503.14476, section 3.2); how many were is a metric.
//! 5. The upper clip may be wider than the lower one (clip-higher: DAPO, section 3.1).
//! 6. Every decision weighs the same, so that a long episode is not diluted (token-level loss: DAPO, section 3.3).
//! 7. The divergence from the reference policy is the k3 estimate (GRPO, eq. 4), added to the loss.
//! 8. A number that is not finite undoes the whole update bit for bit, and the tensor is named.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;
use simloop_policies::StochasticActor;
use simloop_policies::optim::{AdamW, AdamWConfig};
use tch::Tensor;

use crate::advantage::{GroupBaseline, group_relative};
use crate::policy_gradient::{Decisions, Moved, Sums, SurrogateConfig, minibatches, step};
use crate::ppo::adam;
use crate::{AlgoError, LearnerState, Metrics, OnPolicy, Trajectory, Update};

/// How to learn by GRPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoConfig {
    /// Discount per environment step, within an episode's return: below 1, sooner is better.
    pub gamma: f32,
    /// What a return is compared with.
    pub baseline: GroupBaseline,
    /// How the policy moves.
    pub surrogate: SurrogateConfig,
    /// The actor's optimizer.
    pub actor: AdamWConfig,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            gamma: 1.0,
            baseline: GroupBaseline::Normalised,
            surrogate: SurrogateConfig {
                clip_high: Some(0.28), // DAPO, section 4.1
                epochs: 1,
                ..SurrogateConfig::default()
            },
            actor: adam(1e-4),
        }
    }
}

/// GRPO of one actor.
pub struct Grpo<A> {
    actor: A,
    reference: Option<A>,
    optim: AdamW,
    config: GrpoConfig,
    seeds: SeedTree,
    updates: u64,
}

impl<A: StochasticActor> Grpo<A> {
    /// `reference` is the policy that `surrogate.kl_coef` holds the actor to.
    ///
    /// # Errors
    /// [`AlgoError::Range`], [`AlgoError::Policy`] for numbers out of range, or a model with nothing to learn.
    pub fn new(
        actor: A,
        reference: Option<A>,
        config: GrpoConfig,
        seed: u64,
    ) -> Result<Self, AlgoError> {
        config.surrogate.validate()?;
        let optim = AdamW::new(actor.params(), config.actor.clone())?;
        let seeds = SeedTree::new(seed).child("grpo");
        Ok(Self { actor, reference, optim, config, seeds, updates: 0 })
    }

    /// The trajectories of groups that teach something, with the advantage of each.
    fn judge<'a>(&self, trajectories: &'a [Trajectory]) -> Result<Judged<'a>, AlgoError> {
        let mut groups: BTreeMap<u64, Vec<&Trajectory>> = BTreeMap::new();
        for trajectory in trajectories.iter().filter(|t| !t.transitions.is_empty()) {
            groups.entry(trajectory.group).or_default().push(trajectory);
        }
        let mut judged = Judged { kept: Vec::new(), used: 0, groups: groups.len() };
        for members in groups.into_values() {
            // A group that faults left with one member has nothing to be compared with.
            if members.len() < 2 {
                continue;
            }
            let returns: Vec<f32> = members.iter().map(|t| t.ret).collect();
            if let Some(advantages) = group_relative(&returns, self.config.baseline)? {
                judged.kept.extend(members.into_iter().zip(advantages));
                judged.used += 1;
            }
        }
        Ok(judged)
    }

    fn passes(
        &mut self,
        decisions: &Decisions,
        advantage: &Tensor,
        sums: &mut Sums,
    ) -> Result<Option<String>, AlgoError> {
        let surrogate = &self.config.surrogate;
        for epoch in 0..surrogate.epochs {
            for index in
                minibatches(&self.seeds, self.updates, epoch, decisions.len(), surrogate.minibatch)
            {
                let rows = Tensor::from_slice(&index).to_device(advantage.device());
                let moved = step(
                    &self.actor,
                    self.reference.as_ref(),
                    &mut self.optim,
                    self.config.actor.learning_rate,
                    surrogate,
                    decisions,
                    &index,
                    &advantage.index_select(0, &rows),
                    sums,
                )?;
                match moved {
                    Moved::No { tensor } => return Ok(Some(tensor)),
                    Moved::Yes { approx_kl } => {
                        if surrogate.target_kl.is_some_and(|target| approx_kl > 1.5 * target) {
                            sums.add("train/kl_stop", 1.0);
                            return Ok(None);
                        }
                    }
                }
            }
        }
        Ok(None)
    }
}

impl<A: StochasticActor> OnPolicy for Grpo<A> {
    type Actor = A;

    fn actor(&self) -> &A {
        &self.actor
    }

    fn actor_mut(&mut self) -> &mut A {
        &mut self.actor
    }

    fn update(&mut self, trajectories: &[Trajectory]) -> Result<Update, AlgoError> {
        if let Some(bad) = trajectories.iter().find(|t| !t.ret.is_finite()) {
            self.updates += 1;
            return Ok(Update::Dropped { tensor: format!("the return of {}", bad.env) });
        }
        let Judged { kept, used, groups } = self.judge(trajectories)?;
        let mut metrics = Metrics::from([
            ("train/groups_used", used as f64),
            ("train/groups_filtered", (groups - used) as f64),
            ("train/lr", self.config.actor.learning_rate),
        ]);
        if kept.is_empty() {
            // Nothing to learn is no fault: every group agreed.
            self.updates += 1;
            return Ok(Update::Applied(metrics));
        }
        let (data, advantages): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
        let decisions = Decisions::stack(&self.actor, &data)?;
        if let Some(tensor) = decisions.not_finite() {
            self.updates += 1;
            return Ok(Update::Dropped { tensor: format!("`{tensor}` of the rollout") });
        }
        let spread: Vec<f32> = data
            .iter()
            .zip(&advantages)
            .flat_map(|(t, &a)| std::iter::repeat_n(a, t.transitions.len()))
            .collect();
        let advantage = Tensor::from_slice(&spread).to_device(self.actor.params().device());
        let before = self.state();
        let mut sums = Sums::default();
        if let Some(tensor) = self.passes(&decisions, &advantage, &mut sums)? {
            let updates = self.updates + 1;
            self.load_state(&before)?;
            self.updates = updates;
            return Ok(Update::Dropped { tensor });
        }
        self.updates += 1;
        metrics.extend(sums.means());
        metrics.insert("train/decisions", decisions.len() as f64);
        Ok(Update::Applied(metrics))
    }

    fn updates(&self) -> u64 {
        self.updates
    }

    fn gamma(&self) -> f32 {
        self.config.gamma
    }

    fn state(&self) -> LearnerState {
        LearnerState {
            counters: [("updates".to_owned(), self.updates)].into(),
            tensors: [
                ("actor".to_owned(), self.actor.params().snapshot()),
                ("actor_optimizer".to_owned(), self.optim.state()),
            ]
            .into(),
        }
    }

    fn load_state(&mut self, state: &LearnerState) -> Result<(), AlgoError> {
        self.actor.params().load(state.set("actor")?)?;
        self.optim.load_state(state.set("actor_optimizer")?)?;
        self.updates = state.counter("updates")?;
        Ok(())
    }
}

/// What groups say of their members.
struct Judged<'a> {
    kept: Vec<(&'a Trajectory, f32)>,
    /// Groups that teach something.
    used: usize,
    /// All groups.
    groups: usize,
}
