//! What a run that learns by acting keeps to go on: the learner's tensors, and counters.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use simloop_algos::LearnerState;
use simloop_policies::safetensors_io;

use crate::TrainerError;
use crate::checkpoint::Best;
use crate::rollout::{Rollout, RolloutState};

/// The folder beside the policy's files.
const STATE_DIR: &str = "training_state";
/// Everything that is no tensor.
const STATE_FILE: &str = "state.json";

/// Everything of a run that is no tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RlState {
    /// Updates tried.
    pub update: u64,
    /// Environment steps learned from.
    pub env_steps: u64,
    /// Episodes that ended.
    pub episodes: u64,
    /// Faults met.
    pub faults: u64,
    /// Episodes given up.
    pub lost: u64,
    /// The best score so far.
    pub best: Option<Best>,
    /// Updates in a row that were dropped.
    pub dropped_in_a_row: u32,
    /// Seconds spent acting and learning so far, over all processes, without evaluation.
    pub trained_secs: f64,
    /// CPU-seconds of all processes so far, with evaluation and children.
    pub cpu_secs: f64,
    /// Where the environments stand.
    pub rollouts: RolloutState,
    /// After how many updates the policies were that are still to be judged.
    #[serde(deserialize_with = "open_judgements")]
    pub judging: Vec<u64>,
    /// The learner's counters.
    pub counters: std::collections::BTreeMap<String, u64>,
}

impl RlState {
    /// Takes in a rollout, after which the environments stand at `at`.
    pub fn count(&mut self, rollout: &Rollout, at: RolloutState) {
        self.rollouts = at;
        self.env_steps += rollout.steps;
        self.episodes += rollout.episodes.len() as u64;
        self.faults += rollout.faults;
        self.lost += rollout.lost;
    }
}

/// Writes the learner and the counters into `folder/training_state`.
///
/// # Errors
/// [`TrainerError::Io`], [`TrainerError::Policy`] naming the file.
pub fn save(folder: &Path, learner: &LearnerState, state: &RlState) -> Result<(), TrainerError> {
    let dir = folder.join(STATE_DIR);
    fs::create_dir_all(&dir).map_err(TrainerError::io("create", &dir))?;
    for (name, tensors) in &learner.tensors {
        safetensors_io::save(&dir.join(format!("{name}.safetensors")), tensors)?;
    }
    let state = RlState { counters: learner.counters.clone(), ..state.clone() };
    let path = dir.join(STATE_FILE);
    let text = serde_json::to_string(&state)
        .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
    fs::write(&path, text).map_err(TrainerError::io("write", &path))
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// [`TrainerError::Io`], [`TrainerError::Checkpoint`], [`TrainerError::Policy`] naming the file.
pub fn load(folder: &Path) -> Result<(LearnerState, RlState), TrainerError> {
    let dir = folder.join(STATE_DIR);
    let path = dir.join(STATE_FILE);
    let text = fs::read_to_string(&path).map_err(TrainerError::io("read", &path))?;
    let state: RlState =
        serde_json::from_str(&text).map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
    let mut learner = LearnerState { counters: state.counters.clone(), ..LearnerState::default() };
    let entries = fs::read_dir(&dir).map_err(TrainerError::io("read", &dir))?;
    for entry in entries {
        let path = entry.map_err(TrainerError::io("read", &dir))?.path();
        if path.extension().is_some_and(|e| e == "safetensors")
            && let Some(name) = path.file_stem().and_then(|n| n.to_str())
        {
            learner.tensors.insert(name.to_owned(), safetensors_io::load(&path)?);
        }
    }
    Ok((learner, state))
}

/// A list; in older checkpoints one number or none.
fn open_judgements<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Found {
        Many(Vec<u64>),
        One(Option<u64>),
    }
    Ok(match Found::deserialize(from)? {
        Found::Many(open) => open,
        Found::One(open) => open.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_before_judgements_were_a_list_are_read() {
        for (written, expected) in [("null", vec![]), ("40", vec![40]), ("[40, 60]", vec![40, 60])]
        {
            let text = format!(r#"{{"update": 61, "judging": {written}}}"#);
            let state: RlState = serde_json::from_str(&text).unwrap();
            assert_eq!((state.update, state.judging), (61, expected));
        }
        let state = RlState { judging: vec![2, 4], ..RlState::default() };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<RlState>(&text).unwrap(), state);
    }
}
