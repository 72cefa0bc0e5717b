//! What is kept of an evaluated episode.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use simloop_envs::{EpisodeEnd, Observation, Step};

/// How an episode counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The task was solved at some step.
    Success,
    /// It was not, and the simulator ran to the end.
    Failure,
    /// Every attempt met a fault: says nothing about the policy.
    Error,
}

/// The largest and the last value of a metric over an episode.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricRange {
    /// Its maximum.
    pub max: f64,
    /// Its value after the last step.
    pub last: f64,
}

/// One fault on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultNote {
    /// The short name of the error, `EnvError::class`.
    pub class: String,
    /// Its text, with the end of the worker's standard error.
    pub detail: String,
}

/// One episode. Everything up to `trace` depends on the seed alone; the rest tells how it went on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeRecord {
    /// The task, e.g. `libero_spatial/3`.
    pub task: String,
    /// The trial's number within the task.
    pub trial: u32,
    /// The seed that the environment was reset with.
    pub seed: u64,
    /// The stored initial state, where the protocol names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_state: Option<u32>,
    /// How it counts.
    pub status: Status,
    /// Why it stopped.
    pub end: EpisodeEnd,
    /// Environment steps.
    pub steps: u32,
    /// Policy decisions (chunks).
    pub decisions: u32,
    /// The undiscounted sum of rewards.
    #[serde(rename = "return")]
    pub ret: f64,
    /// The largest reward of a single step; 0 without steps.
    pub max_reward: f64,
    /// The environment's metrics.
    pub metrics: BTreeMap<String, MetricRange>,
    /// SHA-256, hex, of every observation's proprio, action, reward and end: see [`TraceHash`].
    pub trace: String,
    /// How often it was started.
    pub attempts: u32,
    /// What went wrong in earlier attempts, or in all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultNote>,
    /// Wall time of the attempt that counts, seconds.
    pub wall_secs: f64,
    /// Time spent inside the policy for this episode's decisions, seconds (a batch's time is shared out equally).
    pub policy_secs: f64,
}

/// Hashes what happened in an episode: two episodes with one hash are the same bit for bit.
///
/// Images are left out, so that an episode can be run again with a camera on it and still be recognised; a policy that
/// looks at images shows every difference in its actions.
#[derive(Clone, Default)]
pub struct TraceHash(Sha256);

impl TraceHash {
    /// Takes in the first observation.
    pub fn reset(&mut self, obs: &Observation) {
        self.floats(obs.proprio.iter());
        self.0.update(obs.instruction.as_bytes());
    }

    /// Takes in one step and the action `[D]` that led to it.
    pub fn step<'a>(&mut self, action: impl Iterator<Item = &'a f32>, step: &Step) {
        self.floats(action);
        self.floats(step.obs.proprio.iter());
        self.0.update(step.reward.to_bits().to_le_bytes());
        self.0.update([u8::from(step.terminated), u8::from(step.truncated)]);
    }

    fn floats<'a>(&mut self, values: impl Iterator<Item = &'a f32>) {
        for value in values {
            self.0.update(value.to_bits().to_le_bytes());
        }
    }

    /// The hash, hex.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
