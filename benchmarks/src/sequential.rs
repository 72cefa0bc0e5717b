//! `--until-decided`: a run that stops as soon as its question is answered.

use std::collections::BTreeMap;
use std::path::PathBuf;

use simloop_trainers::{EpisodeRecord, Status};

use crate::BenchError;
use crate::ledger::{RunManifest, load};
use crate::stats::{Alpha, Goal, Status as Progress, UntilDecided};

/// The question.
#[derive(Clone, Debug)]
pub enum Against {
    /// Better or worse than a stored result, episode by episode?
    Stored(PathBuf),
    /// Above or below this rate?
    Target(f64),
    /// Stop when the anytime-valid interval is this far from its middle.
    HalfWidth(f64),
}

/// Feeds finished episodes to the anytime-valid test.
pub struct Monitor {
    until: UntilDecided,
    stored: BTreeMap<(String, u32, u64), bool>,
    manifest: Option<RunManifest>,
}

impl Monitor {
    /// Reads the stored result, if there is one to be compared with.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for a number outside its range; [`BenchError::Folder`] for a result that cannot be read.
    pub fn new(against: &Against) -> Result<Self, BenchError> {
        let (goal, stored, manifest) = match against {
            Against::Target(rate) => (Goal::Target { rate: *rate }, BTreeMap::new(), None),
            Against::HalfWidth(half_width) => {
                (Goal::HalfWidth { half_width: *half_width }, BTreeMap::new(), None)
            }
            Against::Stored(dir) => {
                let (manifest, records) = load(dir)?;
                let completed = records.into_iter().filter(|r| r.status != Status::Error);
                let stored = completed
                    .map(|r| ((r.task, r.trial, r.seed), r.status == Status::Success))
                    .collect();
                (Goal::Versus { margin: None }, stored, Some(manifest))
            }
        };
        let until = UntilDecided::new(goal, Alpha::FIVE_PERCENT)
            .map_err(|e| BenchError::usage(e.to_string()))?;
        Ok(Self { until, stored, manifest })
    }

    /// Refuses to pair episodes that were run by other rules than `manifest`'s.
    ///
    /// # Errors
    /// [`BenchError::Usage`] listing each difference.
    pub fn check(&self, manifest: &RunManifest) -> Result<(), BenchError> {
        let Some(stored) = &self.manifest else { return Ok(()) };
        let differences = stored.differences(manifest, false);
        if differences.is_empty() {
            return Ok(());
        }
        Err(BenchError::usage(format!(
            "pair episodes with the stored result; it was run by other rules (stored -> now):\n  {}",
            differences.join("\n  ")
        )))
    }

    /// Takes in an episode; one that ended in an error says nothing and is passed over.
    pub fn observe(&mut self, record: &EpisodeRecord) {
        if record.status != Status::Error {
            let key = (record.task.clone(), record.trial, record.seed);
            self.until.observe(record.status == Status::Success, self.stored.get(&key).copied());
        }
    }

    /// The answer in words, once there is one.
    pub fn verdict(&self) -> Option<String> {
        matches!(self.until.status(), Progress::Decided(_)).then(|| self.until.to_string())
    }

    /// Where the question stands.
    pub fn standing(&self) -> String {
        self.until.to_string()
    }
}
