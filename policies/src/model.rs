//! What learning asks of a model, on top of acting.

use simloop_envs::{ActionChunk, Observation};
use tch::Tensor;

use crate::nn::Params;
use crate::{ActMode, ImitationBatch, NoiseStream, ObsBatch, Policy, PolicyError};

/// A policy that can be taught by demonstrations.
pub trait ImitationModel: Policy {
    /// The loss of each action of the batch, `[B, T_p]`, not masked: callers multiply by
    /// [`ImitationBatch::valid`] and average. All randomness comes from `noise`.
    ///
    /// # Errors
    /// [`PolicyError`] for a batch that does not fit the model.
    fn imitation_loss(
        &self,
        batch: &ImitationBatch,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError>;

    /// A chunk for each of `B` windows, `[B, T_p, D]`, raw units. `noise` holds one stream per row.
    ///
    /// # Errors
    /// [`PolicyError`] for a batch that does not fit the model.
    fn predict(
        &self,
        obs: &ObsBatch,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError>;

    /// Its parameters.
    fn params(&self) -> &Params;
}

/// One decision as an on-policy learner keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What to execute, `[T_a, D]`, raw units.
    pub chunk: ActionChunk,
    /// What was drawn, `[L]`, in the head's own terms: enough to compute the density of the decision again.
    pub latent: Vec<f32>,
    /// Log-density of each of its `K` terms, nats. Terms are actions of a chunk for a normal distribution, and denoising
    /// steps for a flow.
    pub log_prob: Vec<f32>,
}

/// The density of decisions that were made, with gradient.
#[derive(Debug)]
pub struct Density {
    /// Of each term, nats, `[B, K]`.
    pub log_prob: Tensor,
    /// Entropy of each term, nats, `[B, K]`.
    pub entropy: Tensor,
}

/// A policy whose decisions have a density: what policy gradients need.
pub trait StochasticActor: Policy {
    /// Decides for each window of `T_o` observations, oldest first; row `i` draws from `seeds[i]` alone, and does not
    /// depend on the other rows.
    ///
    /// # Errors
    /// [`PolicyError`] for windows that do not fit the model, or a chunk that is not finite.
    fn decide(
        &self,
        windows: &[Vec<Observation>],
        seeds: &[u64],
        mode: ActMode,
    ) -> Result<Vec<Decision>, PolicyError>;

    /// The density of decisions `latent`, `[B, L]`, on `obs`.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn density(&self, obs: &ObsBatch, latent: &Tensor) -> Result<Density, PolicyError>;

    /// Which of the `T_a` executed actions each of the `K` terms belongs to; `None` for a term that all of them share.
    /// A term outside of the executed actions is `Some` of a number from `T_a` on.
    fn terms(&self) -> Vec<Option<usize>>;

    /// The cameras it looks through.
    fn cameras(&self) -> &[String];

    /// Its parameters.
    fn params(&self) -> &Params;
}
