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
use simloop_policies::nn::Tape;
use simloop_policies::optim::{AdamW, AdamWConfig, Step, accumulate_taped};
use tch::Tensor;

use crate::advantage::{GroupBaseline, group_relative};
use crate::policy_gradient::{Decisions, Pass, Sums, SurrogateConfig, all_or_nothing, policy_loss};
use crate::ppo::adam;
use crate::{AlgoError, Learner, LearnerState, Metrics, OnPolicy, Trajectory, Update};

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

    /// All passes of update `update`; the tensor's name if something was not finite.
    fn passes(
        &mut self,
        update: u64,
        decisions: &Decisions,
        advantage: &Tensor,
        sums: &mut Sums,
    ) -> Result<Option<String>, AlgoError> {
        let surrogate = &self.config.surrogate;
        for epoch in 0..surrogate.epochs {
            let pass = Pass::new(decisions, &self.seeds, update, epoch, surrogate.minibatch);
            for (i, advantage) in pass.cut(advantage).iter().enumerate() {
                let reference = self.reference.as_ref();
                let minibatch = pass.minibatch(i);
                let tape = Tape::record(&[self.actor.params()]);
                let policy =
                    policy_loss(&self.actor, reference, surrogate, &minibatch, advantage, sums)?;
                let policy = match policy {
                    Ok(policy) => policy,
                    Err(tensor) => return Ok(Some(tensor)),
                };
                accumulate_taped(tape, &mut [(&mut self.optim, &policy.losses)])?;
                match self.optim.step(self.config.actor.learning_rate) {
                    Step::Dropped { tensor } => return Ok(Some(tensor)),
                    Step::Applied { grad_norm } => sums.add("train/grad_norm", grad_norm),
                }
                if surrogate.target_kl.is_some_and(|target| policy.approx_kl > 1.5 * target) {
                    sums.add("train/kl_stop", 1.0);
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }
}

impl<A: StochasticActor> Learner for Grpo<A> {
    type Actor = A;

    fn actor(&self) -> &A {
        &self.actor
    }

    fn actor_mut(&mut self) -> &mut A {
        &mut self.actor
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

impl<A: StochasticActor> OnPolicy for Grpo<A> {
    fn update(&mut self, trajectories: &[Trajectory]) -> Result<Update, AlgoError> {
        let update = self.updates;
        self.updates += 1;
        if let Some(bad) = trajectories.iter().find(|t| !t.ret.is_finite()) {
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
            return Ok(Update::Applied(metrics));
        }
        let (data, advantages): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
        let decisions = Decisions::stack(&self.actor, &data, self.config.surrogate.ratio)?;
        if let Some(tensor) = decisions.not_finite() {
            return Ok(Update::Dropped { tensor: format!("`{tensor}` of the rollout") });
        }
        let spread: Vec<f32> = data
            .iter()
            .zip(&advantages)
            .flat_map(|(t, &a)| std::iter::repeat_n(a, t.transitions.len()))
            .collect();
        let advantage = Tensor::from_slice(&spread).to_device(self.actor.params().device());
        let passes =
            |grpo: &mut Self, sums: &mut Sums| grpo.passes(update, &decisions, &advantage, sums);
        match all_or_nothing(self, passes)? {
            Ok(means) => metrics.extend(means),
            Err(tensor) => return Ok(Update::Dropped { tensor }),
        }
        metrics.insert("train/decisions", decisions.len() as f64);
        Ok(Update::Applied(metrics))
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
