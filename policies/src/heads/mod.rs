//! Heads: context in, action chunk out. Everything here is normalised; `vla.rs` handles units.

use tch::Tensor;

use crate::fusion::Context;
use crate::{ActMode, NoiseStream, PolicyError};

/// Context in, chunk out.
pub trait Head {
    /// The loss of each action, `[B, T_p]`, averaged over `D`; the caller masks and averages.
    ///
    /// `actions` is `[B, T_p, D]` and normalised; `valid` is `[B, T_p]`. All randomness comes from `noise`.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError>;

    /// A chunk per sample, `[B, T_p, D]`, normalised. `noise` holds one stream per row: a row's chunk must not depend on
    /// the others in its batch.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError>;
}
