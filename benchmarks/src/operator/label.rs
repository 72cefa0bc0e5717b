//! Verdicts: what a person said of a trial, who and when, beside the ledger.
//!
//! `labels.jsonl` has a line for every attempt at a trial, also for those that count neither way (void, fault). The ledger
//! holds what counts.

use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::BenchError;

/// The name of the file in a result folder.
pub const LABELS_FILE: &str = "labels.jsonl";

/// How a trial counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The task was done.
    Success,
    /// A part of it: a failure with credit.
    Partial,
    /// It was not done.
    Failure,
    /// The trial says nothing about the policy (somebody bumped the table).
    Void,
    /// The robot or its link met a fault: void, too.
    Fault,
}

impl Verdict {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Partial => "partial",
            Self::Failure => "failure",
            Self::Void => "void",
            Self::Fault => "fault",
        }
    }

    /// Whether it counts as success or failure of the policy.
    pub fn counts(self) -> bool {
        matches!(self, Self::Success | Self::Partial | Self::Failure)
    }
}

/// One attempt at a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The task's key in the ledger.
    pub task: String,
    /// The trial's number.
    pub trial: u32,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// The verdict.
    pub verdict: Verdict,
    /// 1 for a success, 0 for a failure, between for a part; `None` where it does not count.
    pub credit: Option<f64>,
    /// Who judged: a person's name, or `simulated scene`.
    pub labeller: String,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// The fault's name, and what was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Commands' steps until then.
    pub steps: u32,
    /// Relative to the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<String>,
    /// Relative to the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory: Option<String>,
}

/// Appends a line, forced to the disk: a verdict cannot be had again.
///
/// # Errors
/// [`BenchError::Folder`] if the disk refuses.
pub fn append(dir: &Path, label: &Label) -> Result<(), BenchError> {
    let path = dir.join(LABELS_FILE);
    let io = |e: std::io::Error| BenchError::io(&path, &e);
    let mut line =
        serde_json::to_vec(label).map_err(|e| BenchError::folder(&path, e.to_string()))?;
    line.push(b'\n');
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).map_err(io)?;
    file.write_all(&line).and_then(|()| file.sync_data()).map_err(io)
}

/// The folder's labels in the order they were given; lines that cannot be read are left out.
pub fn read(dir: &Path) -> Vec<Label> {
    let text = std::fs::read_to_string(dir.join(LABELS_FILE)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
