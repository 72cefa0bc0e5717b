//! What the on-policy loop asks of an algorithm.

use simloop_policies::StochasticActor;

use crate::{AlgoError, LearnerState, Trajectory, Update};

/// Learns from trajectories that its actor has just made.
pub trait OnPolicy {
    /// Who acts.
    type Actor: StochasticActor;

    /// Who acts.
    fn actor(&self) -> &Self::Actor;

    /// Who acts, e.g. to be evaluated.
    fn actor_mut(&mut self) -> &mut Self::Actor;

    /// One update. Trajectories without a decision are left out.
    ///
    /// # Errors
    /// [`AlgoError`] for data that do not fit; what is not finite is no error but [`Update::Dropped`].
    fn update(&mut self, trajectories: &[Trajectory]) -> Result<Update, AlgoError>;

    /// Updates tried so far.
    fn updates(&self) -> u64;

    /// The discount per environment step that rewards within a chunk and an episode's return are to have.
    fn gamma(&self) -> f32;

    /// What a later process needs to go on.
    fn state(&self) -> LearnerState;

    /// Goes on from a state.
    ///
    /// # Errors
    /// [`AlgoError`] naming what is missing or has another shape.
    fn load_state(&mut self, state: &LearnerState) -> Result<(), AlgoError>;
}
