//! Behaviour cloning: make the demonstrated actions likely (Pomerleau 1989; for chunks of actions and diffusion heads
//! Chi et al. 2023, arXiv:2303.04137, whose training loop `train_diffusion_unet_lowdim_workspace.py` this follows).
//!
//! # Details
//!
//! 1. The loss is the mean over all actions of all micro-batches of an update that are not padding
//!    ([`BcConfig::mask_padding`]), so `k` micro-batches of `B` give the gradient of one batch of `k B`.
//! 2. All noise (diffusion steps, latents, dropout) comes from a stream keyed by (run seed, update, micro-batch), see
//!    [`Bc::noise`]: the counter of updates is the whole state of the generator.
//! 3. The learning rate of update `u` is the schedule's at `u`, dropped updates included.
//! 4. An update whose loss or gradient is not finite is dropped, weights and moments unchanged, the tensor named
//!    ([`Update::Dropped`]). The loss is looked at before the gradient, the batch before the loss is blamed.
//! 5. The moving average takes in the weights after every applied update; it is what is evaluated and published
//!    ([`Bc::averaged`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;
use simloop_policies::optim::{AdamW, AdamWConfig, Ema, EmaConfig, Step};
use simloop_policies::{ImitationBatch, ImitationModel, NoiseStream};
use tch::{Kind, Tensor};

use crate::AlgoError;
use crate::loss::masked_sum;

/// How to clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BcConfig {
    /// The optimizer.
    pub optim: AdamWConfig,
    /// The moving average; none evaluates and publishes the raw weights.
    pub ema: Option<EmaConfig>,
    /// Whether actions past the end of an episode are left out of the loss. diffusion_policy repeats the last action
    /// there and learns it, which suits absolute actions: "stay".
    pub mask_padding: bool,
    /// The length of the schedule, updates.
    pub total_updates: u64,
}

impl Default for BcConfig {
    fn default() -> Self {
        Self {
            optim: AdamWConfig::default(),
            ema: Some(EmaConfig::default()),
            mask_padding: true,
            total_updates: 0,
        }
    }
}

pub use crate::learner::{Metrics, Update};

/// Everything that a later process needs to go on, as named sets of named tensors.
#[derive(Debug)]
pub struct BcState {
    /// Updates tried: the generator's counter and the schedule's place.
    pub updates: u64,
    /// The raw weights.
    pub weights: BTreeMap<String, Tensor>,
    /// Moments and their counter.
    pub optimizer: BTreeMap<String, Tensor>,
    /// The moving average.
    pub ema: Option<BTreeMap<String, Tensor>>,
}

/// Behaviour cloning of one model.
#[derive(Debug)]
pub struct Bc<M> {
    model: M,
    config: BcConfig,
    optimizer: AdamW,
    ema: Option<Ema>,
    seeds: SeedTree,
    updates: u64,
}

impl<M: ImitationModel> Bc<M> {
    /// Of `model`, all noise from `seed`.
    ///
    /// # Errors
    /// [`AlgoError::Policy`] for numbers out of range or a model with nothing to learn.
    pub fn new(model: M, config: BcConfig, seed: u64) -> Result<Self, AlgoError> {
        let optimizer = AdamW::new(model.params(), config.optim.clone())?;
        let ema = config.ema.map(|rule| Ema::new(optimizer.flat(), rule)).transpose()?;
        let seeds = SeedTree::new(seed).child("bc");
        Ok(Self { model, config, optimizer, ema, seeds, updates: 0 })
    }

    /// One update by the mean loss over `micro_batches`.
    ///
    /// # Errors
    /// [`AlgoError::Policy`] for batches that do not fit the model; [`AlgoError::TensorShape`] for a loss that is not
    /// `[B, T_p]`; [`AlgoError::Shape`] for no batch.
    pub fn update(&mut self, micro_batches: &[ImitationBatch]) -> Result<Update, AlgoError> {
        let update = self.updates;
        let weights: Vec<Tensor> = micro_batches.iter().map(|b| self.weight(b)).collect();
        let Some(count) = total(weights.iter().map(|w| w.sum(Kind::Float))) else {
            return Err(AlgoError::Shape { what: "micro_batches", got: 0, expected: 1 });
        };
        let count = count.clamp_min(1.0);

        self.optimizer.discard();
        let mut loss: Option<Tensor> = None;
        for (i, (batch, weight)) in micro_batches.iter().zip(&weights).enumerate() {
            let mut noise = self.noise(update, i as u64);
            let each = self.model.imitation_loss(batch, &mut noise)?;
            let part = masked_sum(&each, weight)?.0 / &count;
            self.optimizer.accumulate(&part)?;
            let part = part.detach();
            loss = Some(loss.map_or_else(|| part.shallow_clone(), |sum| sum + &part));
        }
        self.updates += 1;

        let loss = loss.map_or(f64::NAN, |l| l.double_value(&[]));
        if !loss.is_finite() {
            self.optimizer.discard();
            return Ok(Update::Dropped { tensor: blame(micro_batches) });
        }
        let lr = self.learning_rate(update);
        let grad_norm = match self.optimizer.step(lr) {
            Step::Applied { grad_norm } => grad_norm,
            Step::Dropped { tensor } => return Ok(Update::Dropped { tensor }),
        };
        let mut metrics = Metrics::from([
            ("train/loss", loss),
            ("train/lr", lr),
            ("train/grad_norm", grad_norm),
            ("train/samples", micro_batches.iter().map(|b| b.obs.len()).sum::<usize>() as f64),
        ]);
        if let Some(ema) = &mut self.ema {
            metrics.insert("train/ema_decay", ema.update());
        }
        Ok(Update::Applied(metrics))
    }

    /// The noise of one micro-batch of one update.
    pub fn noise(&self, update: u64, micro_batch: u64) -> NoiseStream {
        NoiseStream::new(self.seeds.index(update).index(micro_batch).seed())
    }

    /// The learning rate of update `update`.
    pub fn learning_rate(&self, update: u64) -> f64 {
        let AdamWConfig { learning_rate, schedule, .. } = &self.config.optim;
        learning_rate * schedule.factor(update, self.config.total_updates)
    }

    /// How much each action of `batch` counts, `[B, T_p]`.
    fn weight(&self, batch: &ImitationBatch) -> Tensor {
        if self.config.mask_padding { batch.valid.shallow_clone() } else { batch.valid.ones_like() }
    }

    /// Updates tried so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The model with its raw weights.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Runs `f` on the model as it is to be judged: with the averaged weights, if an average is kept. The raw weights
    /// are back afterwards, bit for bit.
    pub fn averaged<T>(&mut self, f: impl FnOnce(&mut M) -> T) -> T {
        if let Some(ema) = &mut self.ema {
            ema.swap();
        }
        let result = f(&mut self.model);
        if let Some(ema) = &mut self.ema {
            ema.swap();
        }
        result
    }

    /// What a later process needs to go on.
    pub fn state(&self) -> BcState {
        BcState {
            updates: self.updates,
            weights: self.model.params().snapshot(),
            optimizer: self.optimizer.state(),
            ema: self.ema.as_ref().map(Ema::state),
        }
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// [`AlgoError::Policy`] naming the tensor that is missing or has another shape.
    pub fn load_state(&mut self, state: &BcState) -> Result<(), AlgoError> {
        self.model.params().load(&state.weights)?;
        self.optimizer.load_state(&state.optimizer)?;
        if let Some(ema) = &mut self.ema {
            ema.load_state(state.ema.as_ref().unwrap_or(&BTreeMap::new()))?;
        }
        self.updates = state.updates;
        Ok(())
    }
}

/// The sum of scalars; `None` for none.
fn total(scalars: impl Iterator<Item = Tensor>) -> Option<Tensor> {
    scalars.reduce(|a, b| a + b)
}

/// Which part of the batches is not finite; the loss itself if all are.
fn blame(batches: &[ImitationBatch]) -> String {
    let bad = |t: &Tensor| t.isfinite().all().int64_value(&[]) == 0;
    for batch in batches {
        for (name, tensor) in
            [("proprio", &batch.obs.proprio), ("actions", &batch.actions), ("valid", &batch.valid)]
        {
            if bad(tensor) {
                return format!("`{name}` of the batch");
            }
        }
    }
    "the loss".to_owned()
}

#[cfg(test)]
pub(crate) mod tests;
