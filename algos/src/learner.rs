//! What every algorithm says of itself and keeps for later.

use std::collections::BTreeMap;

use simloop_policies::{PolicyError, StochasticActor};
use tch::Tensor;

use crate::{AlgoError, Trajectory};

/// What an update says of itself: names from the table in `trainers/README.md`.
pub type Metrics = BTreeMap<&'static str, f64>;

/// What came of an update.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The weights moved.
    Applied(Metrics),
    /// Something was not finite: weights, moments and averages are as before, bit for bit.
    Dropped {
        /// What was not finite.
        tensor: String,
    },
}

/// Everything that a later process needs to go on: counters, and named sets of named tensors (one file each).
#[derive(Debug, Default)]
pub struct LearnerState {
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Sets of tensors by name.
    pub tensors: BTreeMap<String, BTreeMap<String, Tensor>>,
}

impl LearnerState {
    /// The counter `name`.
    ///
    /// # Errors
    /// [`AlgoError::Policy`] if it is missing.
    pub fn counter(&self, name: &str) -> Result<u64, AlgoError> {
        self.counters.get(name).copied().ok_or_else(|| missing(name))
    }

    /// The set `name`.
    ///
    /// # Errors
    /// [`AlgoError::Policy`] if it is missing.
    pub fn set(&self, name: &str) -> Result<&BTreeMap<String, Tensor>, AlgoError> {
        self.tensors.get(name).ok_or_else(|| missing(name))
    }
}

/// What every loop that acts asks of an algorithm.
pub trait Learner {
    /// Who acts.
    type Actor;

    /// Who acts.
    fn actor(&self) -> &Self::Actor;

    /// Who acts, e.g. to be evaluated.
    fn actor_mut(&mut self) -> &mut Self::Actor;

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

/// Learns from trajectories that its actor has just made.
pub trait OnPolicy: Learner<Actor: StochasticActor> {
    /// One update. Trajectories without a decision are left out.
    ///
    /// # Errors
    /// [`AlgoError`] for data that do not fit; what is not finite is no error but [`Update::Dropped`].
    fn update(&mut self, trajectories: &[Trajectory]) -> Result<Update, AlgoError>;
}

fn missing(name: &str) -> AlgoError {
    AlgoError::Policy(PolicyError::Config {
        detail: format!("load training state: `{name}` is missing"),
    })
}
