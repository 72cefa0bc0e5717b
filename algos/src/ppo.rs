//! Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347).
//!
//! # Details
//!
//! 1. The data are trajectories cut anywhere. Advantages are GAE's over chunked decisions ([`crate::advantage::gae`]): a
//!    terminated decision is followed by nothing, a truncated or cut one by the critic's value of its true successor.
//! 2. Values are computed here, after the rollout, all at once: one forward pass instead of one per decision, and equal
//!    numbers however the rollout was batched.
//! 3. The value target is advantage + value with the values of before the update; advantages are scaled to mean 0 and
//!    deviation 1 per minibatch (SB3, CleanRL).
//! 4. The ratio is that of the whole decision or of each of its terms ([`Ratio`]); terms of actions that were never executed,
//!    because the episode ended inside the chunk, do not count.
//! 5. Actor and critic are separate networks with an optimizer and a gradient norm each.
//! 6. The passes stop once the divergence from the policy that acted, estimated as in SB3, exceeds 1.5 `target_kl`.
//! 7. For the first `critic_warmup` updates only the critic learns: a critic that knows nothing would first undo a
//!    pretrained policy.
//! 8. A number that is not finite, in the data, a loss or a gradient, undoes the whole update bit for bit, and the tensor
//!    is named.

use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;
use simloop_policies::critic::{ValueNet, values};
use simloop_policies::nn::{Loss, Tape};
use simloop_policies::optim::{AdamW, AdamWConfig, Schedule, Step, accumulate_taped};
use simloop_policies::{ObsBatch, StochasticActor};
use tch::Tensor;

use crate::advantage::{GaeInput, gae};
use crate::loss::value_loss;
use crate::policy_gradient::{Decisions, Pass, Sums, SurrogateConfig, all_or_nothing, policy_loss};
use crate::{AlgoError, Learner, LearnerState, OnPolicy, Trajectory, Update};

#[cfg(doc)]
use crate::policy_gradient::Ratio;

/// Rows of one forward pass of the critic over a rollout.
const VALUE_ROWS: usize = 4096;

/// How to learn by PPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PpoConfig {
    /// Discount per environment step.
    pub gamma: f32,
    /// GAE's λ, per decision.
    pub gae_lambda: f32,
    /// How the policy moves.
    pub surrogate: SurrogateConfig,
    /// Values may move this far from the old ones before they stop counting; none does not clip.
    pub clip_value: Option<f64>,
    /// Updates in the beginning in which only the critic learns.
    pub critic_warmup: u64,
    /// The actor's optimizer.
    pub actor: AdamWConfig,
    /// The critic's optimizer.
    pub critic: AdamWConfig,
}

/// Adam as SB3 sets it for PPO: no decay, constant rate, gradients clipped at 0.5.
pub fn adam(learning_rate: f64) -> AdamWConfig {
    AdamWConfig {
        learning_rate,
        betas: [0.9, 0.999],
        eps: 1e-5, // SB3 ActorCriticPolicy
        weight_decay: 0.0,
        max_grad_norm: 0.5, // SB3 PPO
        schedule: Schedule::Constant { warmup: 0 },
        groups: Vec::new(),
    }
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            gamma: 0.99,
            gae_lambda: 0.95,
            surrogate: SurrogateConfig::default(),
            clip_value: None,
            critic_warmup: 0,
            actor: adam(3e-4),
            critic: adam(3e-4),
        }
    }
}

/// PPO of one actor.
pub struct Ppo<A> {
    actor: A,
    reference: Option<A>,
    critic: ValueNet,
    actor_optim: AdamW,
    critic_optim: AdamW,
    config: PpoConfig,
    seeds: SeedTree,
    updates: u64,
}

impl<A: StochasticActor> Ppo<A> {
    /// `reference` is the policy that `surrogate.kl_coef` holds the actor to.
    ///
    /// # Errors
    /// [`AlgoError::Range`], [`AlgoError::Policy`] for numbers out of range, or a model with nothing to learn.
    pub fn new(
        actor: A,
        reference: Option<A>,
        critic: ValueNet,
        config: PpoConfig,
        seed: u64,
    ) -> Result<Self, AlgoError> {
        config.surrogate.validate()?;
        let actor_optim = AdamW::new(actor.params(), config.actor.clone())?;
        let critic_optim = AdamW::new(critic.params(), config.critic.clone())?;
        let seeds = SeedTree::new(seed).child("ppo");
        Ok(Self { actor, reference, critic, actor_optim, critic_optim, config, seeds, updates: 0 })
    }

    /// Values, advantages and targets of `trajectories`, all `[N]`.
    fn judge(&self, obs: &ObsBatch, trajectories: &[&Trajectory]) -> Result<Judged, AlgoError> {
        let value = values(&self.critic, obs, VALUE_ROWS)?;
        // Nothing follows a terminated decision; its last window stands in, because the true successor may lack images.
        let after = trajectories.iter().map(|t| match t.transitions.last() {
            Some(last) if t.terminated() => last.window.clone(),
            _ => t.after.clone(),
        });
        let after: Vec<_> = after.collect();
        let after = ObsBatch::stack(&after, self.actor.cameras(), self.actor.params().device())?;
        let after = values(&self.critic, &after, VALUE_ROWS)?;
        let mut advantage = Vec::with_capacity(value.len());
        let mut start = 0;
        for (trajectory, after) in trajectories.iter().zip(after) {
            let n = trajectory.transitions.len();
            let own = &value[start..start + n];
            let next: Vec<f32> = own[1..].iter().copied().chain([after]).collect();
            let rewards: Vec<f32> = trajectory.transitions.iter().map(|t| t.reward).collect();
            let steps: Vec<u32> = trajectory.transitions.iter().map(|t| t.steps).collect();
            let last = |yes: bool| (0..n).map(|i| yes && i + 1 == n).collect::<Vec<bool>>();
            advantage.extend(gae(
                &GaeInput {
                    rewards: &rewards,
                    values: own,
                    next_values: &next,
                    terminated: &last(trajectory.terminated()),
                    ended: &last(true),
                    steps: &steps,
                },
                self.config.gamma,
                self.config.gae_lambda,
            )?);
            start += n;
        }
        let target: Vec<f32> = value.iter().zip(&advantage).map(|(v, a)| v + a).collect();
        Ok(Judged { value, advantage, target })
    }

    /// All passes over the data; the tensor's name if something was not finite.
    fn passes(
        &mut self,
        update: u64,
        decisions: &Decisions,
        judged: &Judged,
        sums: &mut Sums,
    ) -> Result<Option<String>, AlgoError> {
        let device = self.actor.params().device();
        let tensor = |values: &[f32]| Tensor::from_slice(values).to_device(device);
        let advantage = tensor(&judged.advantage);
        let (value, target) = (tensor(&judged.value), tensor(&judged.target));
        let surrogate = &self.config.surrogate;
        let mut moving = update >= self.config.critic_warmup;
        let (lr_actor, lr_critic) =
            (self.config.actor.learning_rate, self.config.critic.learning_rate);
        for epoch in 0..surrogate.epochs {
            let pass = Pass::new(decisions, &self.seeds, update, epoch, surrogate.minibatch);
            let advantages = pass.cut_normalized(&advantage);
            let (values, targets) = (pass.cut(&value), pass.cut(&target));
            for i in 0..pass.len() {
                let minibatch = pass.minibatch(i);
                let tape = Tape::record(&[self.actor.params(), self.critic.params()]);
                let seen = self.critic.value(&minibatch.obs)?;
                let (number, slope) =
                    value_loss(&seen, &values[i], &targets[i], self.config.clip_value)?;
                let critic = [Loss::Slopes(vec![(seen, slope)])];
                if !number.is_finite() {
                    return Ok(Some("the critic's loss".to_owned()));
                }
                if moving {
                    let policy = policy_loss(
                        &self.actor,
                        self.reference.as_ref(),
                        surrogate,
                        &minibatch,
                        &advantages[i],
                        sums,
                    )?;
                    let policy = match policy {
                        Ok(policy) => policy,
                        Err(tensor) => return Ok(Some(tensor)),
                    };
                    let (actor, optim) = (&mut self.actor_optim, &mut self.critic_optim);
                    let pairs = &mut [(actor, &*policy.losses), (optim, &critic)];
                    accumulate_taped(tape, pairs)?;
                    match self.actor_optim.step(lr_actor) {
                        Step::Dropped { tensor } => return Ok(Some(tensor)),
                        Step::Applied { grad_norm } => sums.add("train/grad_norm", grad_norm),
                    }
                    if surrogate.target_kl.is_some_and(|target| policy.approx_kl > 1.5 * target) {
                        // The critic may still learn from what is left.
                        moving = false;
                        sums.add("train/kl_stop", 1.0);
                    }
                } else {
                    accumulate_taped(tape, &mut [(&mut self.critic_optim, &critic)])?;
                }
                match self.critic_optim.step(lr_critic) {
                    Step::Dropped { tensor } => return Ok(Some(format!("the critic: {tensor}"))),
                    Step::Applied { .. } => sums.add("train/value_loss", number),
                }
            }
        }
        Ok(None)
    }
}

impl<A: StochasticActor> Learner for Ppo<A> {
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
                ("actor_optimizer".to_owned(), self.actor_optim.state()),
                ("critic".to_owned(), self.critic.params().snapshot()),
                ("critic_optimizer".to_owned(), self.critic_optim.state()),
            ]
            .into(),
        }
    }

    fn load_state(&mut self, state: &LearnerState) -> Result<(), AlgoError> {
        self.actor.params().load(state.set("actor")?)?;
        self.actor_optim.load_state(state.set("actor_optimizer")?)?;
        self.critic.params().load(state.set("critic")?)?;
        self.critic_optim.load_state(state.set("critic_optimizer")?)?;
        self.updates = state.counter("updates")?;
        Ok(())
    }
}

impl<A: StochasticActor> OnPolicy for Ppo<A> {
    fn update(&mut self, trajectories: &[Trajectory]) -> Result<Update, AlgoError> {
        let data: Vec<_> = trajectories.iter().filter(|t| !t.transitions.is_empty()).collect();
        if data.is_empty() {
            return Err(AlgoError::Shape { what: "trajectories", got: 0, expected: 1 });
        }
        let update = self.updates;
        self.updates += 1;
        let decisions = Decisions::stack(&self.actor, &data, self.config.surrogate.ratio)?;
        let judged = self.judge(&decisions.obs, &data)?;
        let rewards: Vec<f32> =
            data.iter().flat_map(|t| &t.transitions).map(|t| t.reward).collect();
        let numbers =
            [("rewards", &rewards), ("values", &judged.value), ("advantages", &judged.advantage)];
        let broken = decisions.not_finite().or_else(|| {
            let bad = numbers.iter().find(|(_, v)| v.iter().any(|x| !x.is_finite()));
            bad.map(|(name, _)| *name)
        });
        let outcome = match broken {
            Some(name) => Err(format!("`{name}` of the rollout")),
            None => {
                all_or_nothing(self, |ppo, sums| ppo.passes(update, &decisions, &judged, sums))?
            }
        };
        let mut metrics = match outcome {
            Ok(metrics) => metrics,
            Err(tensor) => return Ok(Update::Dropped { tensor }),
        };
        metrics.insert("train/lr", self.config.actor.learning_rate);
        metrics.insert("train/decisions", decisions.len() as f64);
        metrics.insert("train/explained_variance", judged.explained_variance());
        Ok(Update::Applied(metrics))
    }
}

/// What the critic and GAE say of a rollout, `[N]` each.
struct Judged {
    value: Vec<f32>,
    advantage: Vec<f32>,
    target: Vec<f32>,
}

impl Judged {
    /// `1 - Var(target - value) / Var(target)`: 1 for a critic that foresees everything.
    fn explained_variance(&self) -> f64 {
        let variance = |values: &[f32]| {
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n
        };
        let all = variance(&self.target);
        if all > 0.0 { 1.0 - variance(&self.advantage) / all } else { 0.0 }
    }
}
