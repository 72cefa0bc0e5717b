//! Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) on chunks of actions, with demonstrations in every batch as
//! RLPD does (Ball et al. 2023, arXiv 2302.02948).
//!
//! # Details
//!
//! 1. A decision is one action of `T_a D` numbers; its reward is discounted within the chunk, and the next value counts
//!    `γ^steps` (Q-chunking: Li, Zhou and Levine 2025, arXiv 2507.07969).
//! 2. Twin critics, the smaller one in the target and in the actor's loss; targets track by `tau`.
//! 3. The actor is a normal distribution through tanh; the temperature is tuned to the entropy
//!    `target_entropy · T_a D` (the paper: -1 per number).
//! 4. A terminated decision is followed by nothing, a truncated one by its true successor.
//! 5. `demo_fraction` of every batch are demonstrations, kept apart and never overwritten.
//! 6. `bc_coef` adds the distance of the actor's mean from the demonstrated actions to its loss (as TD3+BC, Fujimoto and
//!    Gu 2021, arXiv 2106.06860): it keeps a pretrained actor sane while the critics know nothing.
//! 7. All randomness of update `u` comes from a stream keyed by (seed, u).
//! 8. A loss or gradient that is not finite drops the update: weights, moments and targets are as before, bit for bit.

use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;
use simloop_policies::critic::{CriticConfig, QNet};
use simloop_policies::nn::{Init, Loss, Params, Tape, without_gradients};
use simloop_policies::optim::{AdamW, AdamWConfig, FlatParams, Step, accumulate_taped};
use simloop_policies::vla::VlaPolicy;
use simloop_policies::{ImitationModel as _, NoiseStream, ObsBatch};
use tch::{Kind, Tensor};

use crate::loss::{sac_actor_loss, sac_critic_loss, sac_target, temperature_loss};
use crate::policy_gradient::Sums;
use crate::ppo::adam;
use crate::replay::{Experience, Replay, TransitionBatch};
use crate::{AlgoError, Learner, LearnerState, Trajectory, Update};

/// How to learn by SAC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SacConfig {
    /// Discount per environment step.
    pub gamma: f32,
    /// How far targets follow per update.
    pub tau: f64,
    /// Decisions per batch.
    pub batch_size: usize,
    /// The share of a batch that are demonstrations, where there are any.
    pub demo_fraction: f64,
    /// Decisions kept.
    pub capacity: usize,
    /// Critics.
    pub critics: usize,
    /// The temperature to begin with.
    pub alpha: f64,
    /// Entropy to keep per number of an action, nats.
    pub target_entropy: f64,
    /// Whether the temperature is tuned.
    pub tune_alpha: bool,
    /// Weight of the distance from demonstrated actions in the actor's loss.
    pub bc_coef: f64,
    /// Updates between two of the actor.
    pub actor_every: u64,
    /// Updates in the beginning in which only the critics learn.
    pub critic_warmup: u64,
    /// The actor's optimizer.
    pub actor: AdamWConfig,
    /// The critics' optimizer.
    pub critic: AdamWConfig,
}

impl Default for SacConfig {
    fn default() -> Self {
        let plain = AdamWConfig { max_grad_norm: 0.0, eps: 1e-8, ..adam(3e-4) }; // SB3 SAC
        Self {
            gamma: 0.99,
            tau: 0.005,          // SAC, table 1
            batch_size: 256,     // as above
            demo_fraction: 0.5,  // RLPD
            capacity: 1_000_000, // SAC, table 1
            critics: 2,
            alpha: 1.0,
            target_entropy: -1.0,
            tune_alpha: true,
            bc_coef: 0.0,
            actor_every: 1,
            critic_warmup: 0,
            actor: plain.clone(),
            critic: plain,
        }
    }
}

/// SAC of one actor.
pub struct Sac {
    actor: VlaPolicy,
    critic: QNet,
    target: QNet,
    /// The target's parameters, laid out like the critic's.
    target_flat: FlatParams,
    temperature: Params,
    log_alpha: Tensor,
    actor_optim: AdamW,
    critic_optim: AdamW,
    alpha_optim: AdamW,
    replay: Replay,
    demos: Replay,
    config: SacConfig,
    seeds: SeedTree,
    updates: u64,
}

impl Sac {
    /// Of `actor`, whose head must be a normal distribution.
    ///
    /// # Errors
    /// [`AlgoError::Range`], [`AlgoError::Policy`] for numbers out of range or a head that SAC cannot move.
    pub fn new(
        actor: VlaPolicy,
        critic: &CriticConfig,
        config: SacConfig,
        seed: u64,
    ) -> Result<Self, AlgoError> {
        for (what, got, good, range) in [
            ("tau", config.tau, config.tau > 0.0 && config.tau <= 1.0, "(0, 1]"),
            ("alpha", config.alpha, config.alpha > 0.0, "(0, inf)"),
            ("batch_size", config.batch_size as f64, config.batch_size > 0, "[1, inf)"),
            ("critics", config.critics as f64, config.critics > 0, "[1, inf)"),
            (
                "demo_fraction",
                config.demo_fraction,
                (0.0..=1.0).contains(&config.demo_fraction),
                "[0, 1]",
            ),
        ] {
            if !good {
                return Err(AlgoError::Range { what, got, range });
            }
        }
        let root = SeedTree::new(seed).child("sac");
        let width = actor.action_width();
        let net =
            |name: &str| QNet::new(critic, &actor, width, config.critics, root.child(name).seed());
        let (online, target) = (net("critic")?, net("critic")?);
        let temperature = Params::new(actor.device(), 0);
        let log_alpha =
            temperature.root().param("log_alpha", &[1], Init::Constant(config.alpha.ln()));
        let plain = AdamWConfig { groups: Vec::new(), ..config.actor.clone() };
        let critic_optim = AdamW::new(online.params(), config.critic.clone())?;
        Ok(Self {
            actor_optim: AdamW::new(actor.params(), config.actor.clone())?,
            target_flat: critic_optim.lay_out(target.params())?,
            critic_optim,
            alpha_optim: AdamW::new(&temperature, plain)?,
            replay: Replay::new(config.capacity, actor.cameras())?,
            demos: Replay::new(config.capacity, actor.cameras())?,
            actor,
            critic: online,
            target,
            temperature,
            log_alpha,
            config,
            seeds: root,
            updates: 0,
        })
    }

    /// Decisions to learn from: own, and demonstrated.
    pub fn experience(&self) -> (usize, usize) {
        (self.replay.len(), self.demos.len())
    }

    /// Takes in what the actor did; the latent of its decisions is the normalised chunk.
    ///
    /// # Errors
    /// [`AlgoError::Shape`] for decisions of another shape. What is not finite is left out and counted.
    pub fn observe(&mut self, trajectories: &[Trajectory]) -> Result<usize, AlgoError> {
        let executed = self.actor.executed_latent();
        let mut left_out = 0;
        for trajectory in trajectories {
            left_out += store(&mut self.replay, trajectory, self.config.gamma, |latent| {
                latent[executed.clone()].to_vec()
            })?;
        }
        Ok(left_out)
    }

    /// Takes in demonstrations; the latent of a decision is its chunk `[T_a D]` in the environment's units.
    ///
    /// # Errors
    /// As [`Sac::observe`].
    pub fn demonstrate(&mut self, trajectories: &[Trajectory]) -> Result<(), AlgoError> {
        for trajectory in trajectories {
            let windows: Vec<_> = trajectory.transitions.iter().map(|t| t.window.clone()).collect();
            let raw: Vec<f32> =
                trajectory.transitions.iter().flat_map(|t| t.latent.iter().copied()).collect();
            let (b, d) = (windows.len() as i64, self.actor.io().action.len() as i64);
            let obs = ObsBatch::stack(&windows, self.actor.cameras(), self.actor.device())?;
            let raw = Tensor::from_slice(&raw).reshape([b, -1, d]).to_device(self.actor.device());
            let limit = 1.0 - 1e-6;
            let scaled = self.actor.normalize_actions(&obs, &raw).clamp(-limit, limit);
            let scaled = scaled.to_device(tch::Device::Cpu).contiguous();
            let mut flat = vec![0f32; scaled.numel()];
            let n = flat.len();
            scaled.copy_data(&mut flat, n);
            let width = n / windows.len().max(1);
            let mut trajectory = trajectory.clone();
            for (i, transition) in trajectory.transitions.iter_mut().enumerate() {
                transition.latent = flat[i * width..(i + 1) * width].to_vec();
            }
            store(&mut self.demos, &trajectory, self.config.gamma, <[f32]>::to_vec)?;
        }
        Ok(())
    }

    /// The batch of update `self.updates`, and how many of its first rows are demonstrations.
    fn batch(&self) -> Result<(TransitionBatch, i64), AlgoError> {
        let node = self.seeds.child("batch").index(self.updates);
        let (n, device) = (self.config.batch_size, self.actor.device());
        if self.demos.is_empty() {
            return Ok((self.replay.sample(n, &node, device)?, 0));
        }
        if self.replay.is_empty() {
            return Ok((self.demos.sample(n, &node, device)?, n as i64));
        }
        let shown = ((n as f64 * self.config.demo_fraction) as usize).min(n);
        if shown == 0 {
            return Ok((self.replay.sample(n, &node, device)?, 0));
        }
        let demos = self.demos.sample(shown, &node.child("demos"), device)?;
        if shown == n {
            return Ok((demos, n as i64));
        }
        let own = self.replay.sample(n - shown, &node, device)?;
        Ok((join(&demos, &own), shown as i64))
    }

    /// One update.
    ///
    /// # Errors
    /// [`AlgoError::Shape`] without experience; what is not finite is no error but [`Update::Dropped`].
    pub fn update(&mut self) -> Result<Update, AlgoError> {
        let (batch, shown) = self.batch()?;
        let mut noise = NoiseStream::new(self.seeds.child("noise").index(self.updates).seed());
        let alpha = self.log_alpha.exp().double_value(&[0]);
        let mut sums = Sums::default();
        self.updates += 1;

        let target = without_gradients(|| {
            let (action, log_prob) = self.actor.draw(&batch.next, &mut noise)?;
            let next = self.target.q_values(&batch.next, &action)?;
            sac_target(&batch.reward, &batch.discount, &next, &log_prob, alpha)
        })?;
        let tape = Tape::record(&[self.critic.params()]);
        let q = self.critic.q_values(&batch.obs, &batch.action)?;
        let (value, slope) = sac_critic_loss(&q, &target)?;
        if !value.is_finite() {
            return Ok(Update::Dropped { tensor: "the critics' loss".to_owned() });
        }
        let mean_q = q.detach().mean(Kind::Float).double_value(&[]);
        accumulate_taped(tape, &mut [(&mut self.critic_optim, &[Loss::Slopes(vec![(q, slope)])])])?;

        // Every gradient is taken before anything moves, so that a broken one drops the whole update.
        let moves = self.updates > self.config.critic_warmup
            && self.updates.is_multiple_of(self.config.actor_every.max(1));
        let mut log_prob = None;
        if moves {
            let tape = Tape::record(&[self.actor.params(), self.critic.params()]);
            let (action, density) = self.actor.draw(&batch.obs, &mut noise)?;
            let worth = self.critic.q_values(&batch.obs, &action)?;
            let actor = sac_actor_loss(&worth, &density, alpha)?;
            let mut number = actor.loss;
            let slopes = vec![(worth, actor.of_q), (density.shallow_clone(), actor.of_log_prob)];
            let mut losses = vec![Loss::Slopes(slopes)];
            if self.config.bc_coef > 0.0 && shown > 0 {
                let seen = batch.obs.narrow(0, shown as usize);
                let away = self.actor.mode(&seen)? - batch.action.narrow(0, 0, shown);
                let bc = away.square().sum_dim_intlist(-1, false, Kind::Float).mean(Kind::Float);
                let bc_loss = bc.double_value(&[]);
                sums.add("train/bc_loss", bc_loss);
                number += bc_loss * self.config.bc_coef;
                losses.push(Loss::Scalar(bc * self.config.bc_coef));
            }
            if !number.is_finite() {
                self.critic_optim.discard();
                return Ok(Update::Dropped { tensor: "the actor's loss".to_owned() });
            }
            accumulate_taped(tape, &mut [(&mut self.actor_optim, &losses)])?;
            sums.add("train/policy_loss", number);
            log_prob = Some(density.detach());
        }
        if let Some(tensor) = self.critic_optim.broken().or_else(|| self.actor_optim.broken()) {
            self.critic_optim.discard();
            self.actor_optim.discard();
            return Ok(Update::Dropped { tensor });
        }
        if let Step::Applied { grad_norm } =
            self.critic_optim.step(self.config.critic.learning_rate)
        {
            sums.add("train/critic_grad_norm", grad_norm);
        }
        if let Some(log_prob) = log_prob {
            if let Step::Applied { grad_norm } =
                self.actor_optim.step(self.config.actor.learning_rate)
            {
                sums.add("train/grad_norm", grad_norm);
            }
            if self.config.tune_alpha {
                let entropy = self.config.target_entropy * self.actor.action_width() as f64;
                let (_, slope) = temperature_loss(&self.log_alpha, &log_prob, entropy)?;
                let loss = Loss::Slopes(vec![(self.log_alpha.shallow_clone(), slope)]);
                accumulate_taped(Tape::record(&[]), &mut [(&mut self.alpha_optim, &[loss])])?;
                self.alpha_optim.step(self.config.actor.learning_rate);
            }
            sums.add("train/entropy", -log_prob.mean(Kind::Float).double_value(&[]));
        }
        tch::no_grad(|| {
            let online = self.critic_optim.flat().values();
            let _ = self.target_flat.values().shallow_clone().lerp_(online, self.config.tau);
        });
        sums.add("train/value_loss", value);
        sums.add("train/q", mean_q);
        sums.add("train/alpha", alpha);
        Ok(Update::Applied(sums.means()))
    }
}

impl Learner for Sac {
    type Actor = VlaPolicy;

    fn actor(&self) -> &VlaPolicy {
        &self.actor
    }

    fn actor_mut(&mut self) -> &mut VlaPolicy {
        &mut self.actor
    }

    fn updates(&self) -> u64 {
        self.updates
    }

    fn gamma(&self) -> f32 {
        self.config.gamma
    }

    /// Experience included.
    fn state(&self) -> LearnerState {
        LearnerState {
            counters: [("updates".to_owned(), self.updates)].into(),
            tensors: [
                ("actor".to_owned(), self.actor.params().snapshot()),
                ("actor_optimizer".to_owned(), self.actor_optim.state()),
                ("critic".to_owned(), self.critic.params().snapshot()),
                ("critic_optimizer".to_owned(), self.critic_optim.state()),
                ("target".to_owned(), self.target.params().snapshot()),
                ("temperature".to_owned(), self.temperature.snapshot()),
                ("temperature_optimizer".to_owned(), self.alpha_optim.state()),
                ("replay".to_owned(), self.replay.state()),
                ("demonstrations".to_owned(), self.demos.state()),
            ]
            .into(),
        }
    }

    fn load_state(&mut self, state: &LearnerState) -> Result<(), AlgoError> {
        self.actor.params().load(state.set("actor")?)?;
        self.actor_optim.load_state(state.set("actor_optimizer")?)?;
        self.critic.params().load(state.set("critic")?)?;
        self.critic_optim.load_state(state.set("critic_optimizer")?)?;
        self.target.params().load(state.set("target")?)?;
        self.temperature.load(state.set("temperature")?)?;
        self.alpha_optim.load_state(state.set("temperature_optimizer")?)?;
        self.replay.load_state(state.set("replay")?)?;
        self.demos.load_state(state.set("demonstrations")?)?;
        self.updates = state.counter("updates")?;
        Ok(())
    }
}

/// Stores a trajectory's decisions; returns how many were left out because they are not finite.
fn store(
    replay: &mut Replay,
    trajectory: &Trajectory,
    gamma: f32,
    action: impl Fn(&[f32]) -> Vec<f32>,
) -> Result<usize, AlgoError> {
    let n = trajectory.transitions.len();
    let mut left_out = 0;
    for (i, transition) in trajectory.transitions.iter().enumerate() {
        let last = i + 1 == n;
        let next = if last { &trajectory.after } else { &trajectory.transitions[i + 1].window };
        let over = last && trajectory.terminated();
        let outcome = replay.push(&Experience {
            window: &transition.window,
            action: &action(&transition.latent),
            reward: transition.reward,
            discount: if over { 0.0 } else { gamma.powi(transition.steps as i32) },
            next,
        });
        match outcome {
            Err(AlgoError::NotFinite { .. }) => left_out += 1,
            other => other?,
        }
    }
    Ok(left_out)
}

/// The rows of `a`, then those of `b`.
fn join(a: &TransitionBatch, b: &TransitionBatch) -> TransitionBatch {
    let cat = |x: &Tensor, y: &Tensor| Tensor::cat(&[x, y], 0);
    let obs = |x: &ObsBatch, y: &ObsBatch| ObsBatch {
        images: x.images.iter().map(|(n, t)| (n.clone(), cat(t, &y.images[n]))).collect(),
        proprio: cat(&x.proprio, &y.proprio),
        instructions: x.instructions.iter().chain(&y.instructions).cloned().collect(),
    };
    TransitionBatch {
        obs: obs(&a.obs, &b.obs),
        action: cat(&a.action, &b.action),
        reward: cat(&a.reward, &b.reward),
        discount: cat(&a.discount, &b.discount),
        next: obs(&a.next, &b.next),
    }
}
