//! Recorded PushT episodes: the file layout that `bench replay pusht` reads and writes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::geometry::{Point, Pose};
use super::scene::SceneState;
use crate::EnvError;

/// A file of recorded episodes. Unknown fields are ignored, so a recorder may add its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// What made the recording: engine and versions.
    pub source: String,
    /// The episodes.
    pub cases: Vec<RecordedCase>,
}

/// One recorded episode of T steps.
///
/// States have T + 1 rows, the first being the state after the reset; everything else has T rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedCase {
    /// Name; the part before a trailing `_<number>` is the case's group.
    pub name: String,
    /// Seed of the reset, if the state was drawn from one.
    #[serde(default)]
    pub seed: Option<u64>,
    /// The state asked for by `options["reset_to_state"]`, if any.
    #[serde(default)]
    pub reset_to_state: Option<[f64; 5]>,
    /// The state handed to gym-pusht's `_set_state`: agent, block, angle.
    #[serde(default)]
    pub init_state_requested: Option<[f64; 5]>,
    /// The first observation: agent, block origin, angle in `[0, 2 pi)`.
    #[serde(default)]
    pub reset_obs: Option<[f64; 5]>,
    /// `[T, 2]` targets, px.
    pub action: Vec<Point>,
    /// `[T + 1, 2]`, px.
    pub agent_pos: Vec<Point>,
    /// `[T + 1, 2]`, px/s.
    pub agent_vel: Vec<Point>,
    /// `[T + 1, 3]` block origin (px) and unwrapped angle (rad).
    pub block_pose: Vec<[f64; 3]>,
    /// `[T]` coverage after each step.
    #[serde(default)]
    pub coverage: Vec<f64>,
    /// `[T]` reward of each step.
    #[serde(default)]
    pub reward: Vec<f64>,
    /// `[T]` whether the step ended the episode.
    #[serde(default)]
    pub terminated: Vec<bool>,
    /// `[T]`, positive where the block was touched.
    #[serde(default)]
    pub n_contacts: Vec<u32>,
}

impl Recording {
    /// Reads and checks a recording.
    ///
    /// # Errors
    /// [`EnvError::File`] naming the file and the field that is missing, misshapen or not finite.
    pub fn read(path: &Path) -> Result<Self, EnvError> {
        let text = std::fs::read_to_string(path).map_err(|e| broken(path, e.to_string()))?;
        let recording: Self = serde_json::from_str(&text).map_err(|e| {
            broken(path, format!("not a PushT recording ({e}); {}", Self::LAYOUT_HINT))
        })?;
        for case in &recording.cases {
            case.check().map_err(|detail| {
                broken(path, format!("case `{}`: {detail}; {}", case.name, Self::LAYOUT_HINT))
            })?;
        }
        if recording.cases.is_empty() {
            return Err(broken(path, format!("it holds no case; {}", Self::LAYOUT_HINT)));
        }
        Ok(recording)
    }

    const LAYOUT_HINT: &str = "expected {\"source\", \"cases\": [{\"name\", \"action\": [T, 2], \"agent_pos\": \
                               [T+1, 2], \"agent_vel\": [T+1, 2], \"block_pose\": [T+1, 3], ...}]}";
}

fn broken(path: &Path, detail: String) -> EnvError {
    EnvError::File { path: PathBuf::from(path), detail }
}

impl RecordedCase {
    /// The number of steps, T.
    pub fn len(&self) -> usize {
        self.action.len()
    }

    /// Whether nothing was recorded after the reset.
    pub fn is_empty(&self) -> bool {
        self.action.is_empty()
    }

    /// The part of the name before a trailing `_<number>`.
    pub fn group(&self) -> &str {
        match self.name.rsplit_once('_') {
            Some((group, number))
                if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) =>
            {
                group
            }
            _ => &self.name,
        }
    }

    /// The state before step `t`, `t <= T`.
    ///
    /// # Panics
    /// If `t > T`.
    pub fn state(&self, t: usize) -> SceneState {
        let [x, y, angle] = self.block_pose[t];
        SceneState {
            agent: self.agent_pos[t],
            agent_velocity: self.agent_vel[t],
            block: Pose { x, y, angle },
        }
    }

    /// Whether the block was touched in step `t`: as recorded, or else whether it moved.
    pub(super) fn touched(&self, t: usize) -> bool {
        match self.n_contacts.get(t) {
            Some(&n) => n > 0,
            None => self.block_pose[t] != self.block_pose[t + 1],
        }
    }

    fn check(&self) -> Result<(), String> {
        let steps = self.len();
        let expect = |field: &str, got: usize, expected: usize, optional: bool| {
            if got == expected || (optional && got == 0) {
                Ok(())
            } else {
                Err(format!("`{field}` has {got} rows, expected {expected} for {steps} actions"))
            }
        };
        if steps == 0 {
            return Err("`action` is empty".into());
        }
        expect("agent_pos", self.agent_pos.len(), steps + 1, false)?;
        expect("agent_vel", self.agent_vel.len(), steps + 1, false)?;
        expect("block_pose", self.block_pose.len(), steps + 1, false)?;
        expect("coverage", self.coverage.len(), steps, true)?;
        expect("reward", self.reward.len(), steps, true)?;
        expect("terminated", self.terminated.len(), steps, true)?;
        expect("n_contacts", self.n_contacts.len(), steps, true)?;
        let finite = |rows: &[Point]| rows.iter().flatten().all(|v| v.is_finite());
        if !finite(&self.action) || !finite(&self.agent_pos) || !finite(&self.agent_vel) {
            return Err("a number is not finite".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> RecordedCase {
        RecordedCase {
            name: "human_12".into(),
            seed: None,
            reset_to_state: None,
            init_state_requested: None,
            reset_obs: None,
            action: vec![[1.0, 2.0]],
            agent_pos: vec![[0.0; 2]; 2],
            agent_vel: vec![[0.0; 2]; 2],
            block_pose: vec![[100.0, 100.0, 0.0]; 2],
            coverage: vec![],
            reward: vec![],
            terminated: vec![],
            n_contacts: vec![],
        }
    }

    #[test]
    fn groups_drop_a_trailing_number_only() {
        assert_eq!(case().group(), "human");
        assert_eq!(RecordedCase { name: "wall_squeeze".into(), ..case() }.group(), "wall_squeeze");
        assert_eq!(RecordedCase { name: "plain".into(), ..case() }.group(), "plain");
    }

    #[test]
    fn a_short_column_is_named() {
        let broken = RecordedCase { agent_vel: vec![[0.0; 2]], ..case() };
        let message = broken.check().unwrap_err();
        assert!(message.contains("`agent_vel` has 1 rows, expected 2"), "{message}");
    }

    #[test]
    fn a_file_of_another_layout_is_refused_with_the_expected_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.json");
        for text in ["{}", "[1, 2", r#"{"source": "x", "cases": []}"#] {
            std::fs::write(&path, text).unwrap();
            let message = Recording::read(&path).unwrap_err().to_string();
            assert!(message.contains("other.json") && message.contains("block_pose"), "{message}");
        }
    }
}
