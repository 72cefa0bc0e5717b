//! Chunk execution: which actions of the predicted chunks a policy performs.
//!
//! | kind | performs | source |
//! |---|---|---|
//! | `receding` | the first `n_action_steps` of a chunk, then predicts again | Diffusion Policy, arXiv 2303.04137 |
//! | `act_ensemble` | one action: the mean of all chunks' actions for now, weighted `exp(-decay · i)`, `i = 0` the **oldest** | ACT, arXiv 2304.13705, `imitate_episodes.py` |
//! | `vla0_ensemble` | one action: the mean over the last `n_chunks`, the newest weighing most | VLA-0, arXiv 2510.13054 |

use std::collections::{BTreeMap, VecDeque};

use ndarray::{Array1, Array2, ArrayView2, s};
use serde::{Deserialize, Serialize};
use simloop_envs::EnvId;

use crate::PolicyError;

/// Settings of receding-horizon execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Receding {
    /// `T_a`, at most the chunk's length.
    pub n_action_steps: usize,
}

impl Default for Receding {
    fn default() -> Self {
        Self { n_action_steps: 8 } // diffusion_policy, PushT configs
    }
}

/// Settings of ACT's temporal ensemble.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActEnsemble {
    /// `k` in `exp(-k · i)`; 0 weighs all chunks alike, a greater one prefers old chunks.
    pub decay: f64,
}

impl Default for ActEnsemble {
    fn default() -> Self {
        Self { decay: 0.01 } // act imitate_episodes.py
    }
}

/// What an older chunk weighs in VLA-0's ensemble; the newest weighs 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OldWeights {
    /// `old_weight`, whatever its age (version 1).
    #[default]
    Constant,
    /// `old_weight ^ age`, where the newest has age 0 (version 2).
    Power,
}

/// Settings of VLA-0's ensemble.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vla0Ensemble {
    /// How many chunks count, the newest included.
    pub n_chunks: usize,
    /// Weight of an old chunk, in `(0, 1]`.
    pub old_weight: f64,
    /// How it depends on age.
    pub weights: OldWeights,
}

impl Default for Vla0Ensemble {
    /// `--action_horizon 1 --ensemble_prediction 8`.
    fn default() -> Self {
        Self { n_chunks: 8, old_weight: 0.5, weights: OldWeights::Constant }
    }
}

/// Which actions of the predicted chunks are performed: `kind = "receding"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChunkExecution {
    /// The first actions of each chunk.
    Receding(Receding),
    /// One action, ACT's weights.
    ActEnsemble(ActEnsemble),
    /// One action, VLA-0's weights.
    Vla0Ensemble(Vla0Ensemble),
}

impl Default for ChunkExecution {
    fn default() -> Self {
        Self::Receding(Receding::default())
    }
}

impl ChunkExecution {
    /// Checks the settings against `chunk_size`, `T_p`.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn validate(&self, chunk_size: usize) -> Result<(), PolicyError> {
        let fault = match self {
            Self::Receding(Receding { n_action_steps: n }) if !(1..=chunk_size).contains(n) => {
                format!("n_action_steps = {n} must be in 1..={chunk_size}, the chunk's length")
            }
            Self::ActEnsemble(ActEnsemble { decay }) if !decay.is_finite() => {
                format!("decay = {decay} must be finite")
            }
            Self::Vla0Ensemble(Vla0Ensemble { n_chunks: 0, .. }) => {
                "n_chunks must be at least 1".to_owned()
            }
            Self::Vla0Ensemble(Vla0Ensemble { old_weight: w, .. }) if !(*w > 0.0 && *w <= 1.0) => {
                format!("old_weight = {w} must be above 0 and at most 1")
            }
            _ => return Ok(()),
        };
        Err(PolicyError::Config { detail: format!("execute chunks: {fault}") })
    }

    /// `T_a`, the actions between two predictions.
    pub fn n_action_steps(&self) -> usize {
        match self {
            Self::Receding(receding) => receding.n_action_steps,
            Self::ActEnsemble(_) | Self::Vla0Ensemble(_) => 1,
        }
    }
}

/// Performs chunks for many environments.
#[derive(Clone, Debug)]
pub struct ChunkExecutor {
    execution: ChunkExecution,
    ensemble: Ensemble,
}

impl ChunkExecutor {
    /// For chunks of `chunk_size` actions.
    ///
    /// # Errors
    /// See [`ChunkExecution::validate`].
    pub fn new(execution: ChunkExecution, chunk_size: usize) -> Result<Self, PolicyError> {
        execution.validate(chunk_size)?;
        let ensemble = Ensemble::new(execution.clone());
        Ok(Self { execution, ensemble })
    }

    /// What to do in `env` given its newest chunk, `[T_p, D]`: `[T_a, D]`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a chunk shorter than `T_a` or as [`Ensemble::push_and_act`].
    pub fn execute(
        &mut self,
        env: EnvId,
        chunk: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, PolicyError> {
        let n = self.execution.n_action_steps();
        match self.execution {
            ChunkExecution::Receding(_) if chunk.nrows() < n => Err(PolicyError::Config {
                detail: format!("execute {n} actions of a chunk of {}", chunk.nrows()),
            }),
            ChunkExecution::Receding(_) => Ok(chunk.slice(s![..n, ..]).to_owned()),
            _ => {
                let action = self.ensemble.push_and_act(env, chunk)?;
                Ok(action.insert_axis(ndarray::Axis(0)))
            }
        }
    }

    /// New episodes begin there: forget their chunks.
    pub fn reset(&mut self, envs: &[EnvId]) {
        self.ensemble.reset(envs);
    }
}

/// The chunks of each environment that still have an action for now. One action passes between two pushes.
#[derive(Clone, Debug)]
pub struct Ensemble {
    rule: ChunkExecution,
    /// Oldest first.
    chunks: BTreeMap<EnvId, VecDeque<Array2<f32>>>,
}

impl Ensemble {
    /// With the weights of `rule`; under `Receding` only the newest chunk counts.
    pub fn new(rule: ChunkExecution) -> Self {
        Self { rule, chunks: BTreeMap::new() }
    }

    /// Adds `env`'s newest chunk, `[T_p, D]`, and answers with the action for now, `[D]`: the weighted mean over all
    /// kept chunks of each one's action for this moment.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for an empty chunk or one of another width than the ones before.
    pub fn push_and_act(
        &mut self,
        env: EnvId,
        chunk: ArrayView2<'_, f32>,
    ) -> Result<Array1<f32>, PolicyError> {
        let chunks = self.chunks.entry(env).or_default();
        let width = chunks.back().map_or(chunk.ncols(), Array2::ncols);
        if chunk.nrows() == 0 || chunk.ncols() != width {
            return Err(PolicyError::Config {
                detail: format!(
                    "ensemble a chunk of shape {:?}: at least one action of {width} numbers is needed",
                    chunk.dim()
                ),
            });
        }
        chunks.push_back(chunk.to_owned());
        let limit = match &self.rule {
            ChunkExecution::Receding(_) => 1,
            ChunkExecution::ActEnsemble(_) => usize::MAX,
            ChunkExecution::Vla0Ensemble(v) => v.n_chunks,
        };
        while chunks.len() > limit {
            chunks.pop_front();
        }
        // A chunk's age is its distance from the newest; its action for now is the row of that number.
        let newest = chunks.len() - 1;
        let first = (0..=newest).find(|i| newest - i < chunks[*i].nrows()).unwrap_or(newest);
        chunks.drain(..first);
        let newest = chunks.len() - 1;
        let mut sum = Array1::<f64>::zeros(width);
        let mut total = 0.0;
        for (i, chunk) in chunks.iter().enumerate() {
            let age = newest - i;
            if age >= chunk.nrows() {
                continue;
            }
            let weight = match &self.rule {
                ChunkExecution::Receding(_) => 1.0,
                ChunkExecution::ActEnsemble(a) => (-a.decay * i as f64).exp(),
                ChunkExecution::Vla0Ensemble(_) if age == 0 => 1.0,
                ChunkExecution::Vla0Ensemble(v) => match v.weights {
                    OldWeights::Constant => v.old_weight,
                    OldWeights::Power => v.old_weight.powf(age as f64),
                },
            };
            sum.scaled_add(weight, &chunk.row(age).mapv(f64::from));
            total += weight;
        }
        Ok(sum.mapv(|x| (x / total) as f32))
    }

    /// New episodes begin there: forget their chunks.
    pub fn reset(&mut self, envs: &[EnvId]) {
        for env in envs {
            self.chunks.remove(env);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    const ENV: EnvId = EnvId(0);

    /// Chunk `n` says `100 n + row` for its rows: every action names where it came from.
    fn chunk(n: usize, rows: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, 1), |(row, _)| (100 * n + row) as f32)
    }

    fn run(rule: ChunkExecution, rows: usize, count: usize) -> Vec<f32> {
        let mut ensemble = Ensemble::new(rule);
        (0..count).map(|n| ensemble.push_and_act(ENV, chunk(n, rows).view()).unwrap()[0]).collect()
    }

    #[track_caller]
    fn assert_near(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((f64::from(*g) - e).abs() < 1e-4, "{got:?} {expected:?}");
        }
    }

    #[test]
    fn act_weighs_the_oldest_most() {
        // Chunks of 3, decay ln 2, so that weights are 1, 1/2, 1/4 from the oldest on.
        // t = 0: 0.
        // t = 1: chunk 0 says 1, chunk 1 says 100: (1 · 1 + 100/2) / 1.5 = 34.
        // t = 2: 2, 101, 200: (2 + 50.5 + 50) / 1.75 = 58.571429.
        // t = 3: chunk 0 is over; 102, 201, 300: (102 + 100.5 + 75) / 1.75 = 158.571429.
        // The classic fault, i = 0 the newest, gives (100 + 0.5) / 1.5 = 67 at t = 1.
        let rule = ChunkExecution::ActEnsemble(ActEnsemble { decay: 2f64.ln() });
        assert_near(&run(rule, 3, 4), &[0.0, 34.0, 58.571_429, 158.571_429]);
    }

    #[test]
    fn the_default_decay_is_acts() {
        // exp(-0.01) = 0.990049834: (1 + 100 · 0.990049834) / 1.990049834 = 50.252494.
        let rule = ChunkExecution::ActEnsemble(ActEnsemble::default());
        assert_near(&run(rule, 3, 2), &[0.0, 50.252_494]);
    }

    #[test]
    fn vla0_weighs_the_newest_double() {
        // Three chunks count, old ones weigh 1/2.
        // t = 1: (1/2 + 100) / 1.5 = 67. t = 2: (1 + 50.5 + 200) / 2 = 125.75.
        // t = 3: chunk 0 has left: (102/2 + 201/2 + 300) / 2 = 225.75.
        let v = Vla0Ensemble { n_chunks: 3, ..Vla0Ensemble::default() };
        let rule = ChunkExecution::Vla0Ensemble(v.clone());
        assert_near(&run(rule, 8, 4), &[0.0, 67.0, 125.75, 225.75]);
        // Version 2: weights 1/4, 1/2, 1. t = 2: (2/4 + 101/2 + 200) / 1.75 = 143.428571;
        // t = 3: (102/4 + 201/2 + 300) / 1.75 = 243.428571.
        let rule = ChunkExecution::Vla0Ensemble(Vla0Ensemble { weights: OldWeights::Power, ..v });
        assert_near(&run(rule, 8, 4), &[0.0, 67.0, 143.428_571, 243.428_571]);
    }

    #[test]
    fn a_chunk_of_one_action_is_followed_as_it_is() {
        for rule in [
            ChunkExecution::ActEnsemble(ActEnsemble::default()),
            ChunkExecution::Vla0Ensemble(Vla0Ensemble::default()),
        ] {
            assert_near(&run(rule, 1, 3), &[0.0, 100.0, 200.0]);
        }
    }

    #[test]
    fn chunks_that_agree_give_their_action() {
        // Every chunk predicts 10 · time: the mean of equal numbers is that number, whatever the weights.
        let rule = ChunkExecution::Vla0Ensemble(Vla0Ensemble::default());
        let mut ensemble = Ensemble::new(rule);
        for t in 0..20 {
            let chunk = Array2::from_shape_fn((5, 2), |(row, _)| 10.0 * (t + row) as f32);
            let action = ensemble.push_and_act(ENV, chunk.view()).unwrap();
            assert_eq!(action, array![10.0 * t as f32, 10.0 * t as f32]);
        }
    }

    #[test]
    fn environments_do_not_mix_and_reset_forgets() {
        let rule = ChunkExecution::ActEnsemble(ActEnsemble::default());
        let mut executor = ChunkExecutor::new(rule, 3).unwrap();
        let mut act = |env, n| executor.execute(EnvId(env), chunk(n, 3).view()).unwrap()[[0, 0]];
        assert_eq!(act(0, 0), 0.0);
        assert_eq!(act(1, 5), 500.0);
        assert!((act(0, 1) - 50.252_494).abs() < 1e-4);
        executor.reset(&[EnvId(0)]);
        let mut act = |env, n| executor.execute(EnvId(env), chunk(n, 3).view()).unwrap()[[0, 0]];
        assert_eq!(act(0, 2), 200.0);
        assert!(
            (f64::from(act(1, 6)) - (501.0 + 600.0 * 0.990_049_834) / 1.990_049_834).abs() < 1e-3
        );
    }

    #[test]
    fn receding_gives_the_first_actions() {
        let rule = ChunkExecution::Receding(Receding { n_action_steps: 2 });
        let mut executor = ChunkExecutor::new(rule.clone(), 3).unwrap();
        let actions = executor.execute(ENV, chunk(1, 3).view()).unwrap();
        assert_eq!(actions, array![[100.0], [101.0]]);
        assert!(executor.execute(ENV, chunk(1, 1).view()).is_err());
        let error = ChunkExecutor::new(rule, 1).unwrap_err().to_string();
        assert!(error.contains("n_action_steps = 2 must be in 1..=1"), "{error}");
    }

    #[test]
    fn chunks_of_another_width_are_refused() {
        let mut ensemble = Ensemble::new(ChunkExecution::ActEnsemble(ActEnsemble::default()));
        ensemble.push_and_act(ENV, Array2::zeros((3, 2)).view()).unwrap();
        assert!(ensemble.push_and_act(ENV, Array2::zeros((3, 3)).view()).is_err());
        assert!(ensemble.push_and_act(ENV, Array2::zeros((0, 2)).view()).is_err());
    }

    #[test]
    fn settings_are_read_by_name_and_typos_are_refused() {
        let read = serde_json::from_str::<ChunkExecution>;
        let rule = read(r#"{"kind": "vla0_ensemble", "weights": "power"}"#).unwrap();
        let expected = Vla0Ensemble { weights: OldWeights::Power, ..Vla0Ensemble::default() };
        assert_eq!(rule, ChunkExecution::Vla0Ensemble(expected));
        assert!(read(r#"{"kind": "act_ensemble", "decya": 1.0}"#).is_err());
        let zero = Vla0Ensemble { old_weight: 0.0, ..Vla0Ensemble::default() };
        assert!(ChunkExecution::Vla0Ensemble(zero).validate(8).is_err());
    }
}
