//! What learning asks of a model, on top of acting.

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
