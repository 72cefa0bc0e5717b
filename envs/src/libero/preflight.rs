//! Whether every stored initial state of a suite holds what its task presumes, and a fingerprint of what was checked.
//!
//! A new `MuJoCo` can change a task without a word: since 3.4.0 the bowl of `libero_spatial/5` no longer settles in the
//! ramekin but tilts on its rim, and policies drop from 98 % to 12 % on that task. The premise comes from the task file's
//! `:init` section; `python/simloop_libero/preflight.py` says how each relation is checked.

use std::collections::BTreeMap;

use rmpv::Value;
use serde::{Deserialize, Serialize};

use super::env::decode;
use super::{AssetFingerprint, LiberoEnv, LiberoInstall, fingerprint_assets};
use crate::EnvError;

/// Simulated seconds per state are few; this bounds a worker that hangs, per state.
const SECS_PER_STATE: f64 = 10.0;

/// What was found in one initial state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateProblems {
    /// Its index.
    pub init_state: u32,
    /// In words.
    pub problems: Vec<String>,
}

/// What was found in one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// `libero_spatial/5`.
    pub task: String,
    /// What a policy is told.
    pub instruction: String,
    /// Stored initial states.
    pub states: u32,
    /// How many of them were looked at.
    pub checked: u32,
    /// States whose premise does not hold, or whose goal is already reached.
    pub failures: Vec<StateProblems>,
    /// States in which something odd happens to an object that the task does not mention.
    pub notes: Vec<StateProblems>,
    /// Pairs of equal states.
    pub duplicates: Vec<(u32, u32)>,
}

impl TaskReport {
    /// Whether the task can be evaluated as it is meant.
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.duplicates.is_empty()
    }
}

/// What a result depends on beside policy, protocol and seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiberoFingerprint {
    /// Versions of Python, LIBERO, robosuite, `MuJoCo`, numpy.
    pub versions: BTreeMap<String, String>,
    /// Meshes, textures, scenes.
    pub assets: AssetFingerprint,
    /// `vendor`, `renderer`, `version` of OpenGL; empty where nobody looks.
    pub renderer: BTreeMap<String, String>,
    /// SHA-256 of the first observation (proprioception and images) of the task that was asked for.
    pub first_observation: String,
    /// SHA-256 of the simulator's state there: equal on two machines whose physics agree bit for bit.
    pub state: String,
}

impl LiberoFingerprint {
    /// Flat names and values, for a run's manifest.
    pub fn lines(&self) -> BTreeMap<String, String> {
        let mut lines = self.versions.clone();
        lines.extend(self.renderer.iter().map(|(k, v)| (format!("gl_{k}"), v.clone())));
        lines.insert("assets_sha256".into(), self.assets.sha256.clone());
        lines.insert("first_observation_sha256".into(), self.first_observation.clone());
        lines.insert("state_sha256".into(), self.state.clone());
        lines
    }
}

/// Checks initial states of `task`, all of them or those listed.
///
/// # Errors
/// [`EnvError::Config`] for an unknown task or state; the bridge's faults.
pub fn check_task(
    env: &mut LiberoEnv,
    task: &str,
    states: Option<&[u32]>,
) -> Result<TaskReport, EnvError> {
    let listed = states.map_or(Value::Nil, |states| {
        Value::Array(states.iter().map(|&state| Value::from(state)).collect())
    });
    let args = Value::Map(vec![("task".into(), task.into()), ("states".into(), listed)]);
    let count = states.map_or(super::INIT_STATES as usize, <[u32]>::len);
    let timeout = env.reset_secs() + SECS_PER_STATE * count as f64;
    let answer = env.call("preflight", &args, timeout)?;
    decode("preflight", answer)
}

/// Versions, assets, renderer and the hash of the first observation of `task` (initial state 0, seed 0).
///
/// # Errors
/// [`EnvError::File`] if an asset cannot be read; the bridge's faults.
pub fn fingerprint(
    env: &mut LiberoEnv,
    install: &LiberoInstall,
    task: &str,
) -> Result<LiberoFingerprint, EnvError> {
    #[derive(Deserialize)]
    struct Answer {
        versions: BTreeMap<String, String>,
        renderer: BTreeMap<String, String>,
        first_observation: String,
        state: String,
    }
    let assets = fingerprint_assets(&install.assets)?;
    let args = Value::Map(vec![("task".into(), task.into())]);
    let timeout = env.reset_secs();
    let Answer { versions, renderer, first_observation, state } =
        decode("fingerprint", env.call("fingerprint", &args, timeout)?)?;
    Ok(LiberoFingerprint { versions, assets, renderer, first_observation, state })
}
