//! A run's folder: who may write there, what it learned, where it can go on.
//!
//! ```text
//! runs/<name>/
//!   resolved.toml   run.json            every setting; program, versions, machine
//!   metrics.jsonl   tb/   report.html   numbers and curves
//!   checkpoints/<update>/               the last few, complete or not there
//!   last -> checkpoints/<update>        the newest
//!   best/  final/                       policies with everything to act
//! ```

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::TrainerError;
use crate::checkpoint::{self, Manifest, Origin};

/// A run's folder, held by this process alone.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    origin: Origin,
    _lock: File,
}

/// What to do about a folder that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse: results are never mixed.
    Refuse,
    /// Go on from its newest complete checkpoint.
    Resume,
    /// Delete what an earlier run left.
    Overwrite,
}

const LOCK_FILE: &str = ".lock";
/// Every setting of the run.
pub const RESOLVED_FILE: &str = "resolved.toml";
/// Films of evaluations.
pub const VIDEOS_DIR: &str = "videos";

/// What folders of policies that are being judged are called, before the number of updates.
const JUDGED: &str = "judged-";

/// What a run writes and [`Existing::Overwrite`] deletes.
const OWN: [&str; 14] = [
    RESOLVED_FILE,
    "run.json",
    "metrics.jsonl",
    "tb",
    "report.html",
    "predictions.jsonl",
    "checkpoints",
    "last",
    "best",
    "final",
    "evaluation.json",
    "before.json",
    VIDEOS_DIR,
    "data",
];

impl RunFolder {
    /// Opens or makes the folder `root`.
    ///
    /// # Errors
    /// [`TrainerError::Config`] if it holds a run and `existing` refuses, if it holds none and `existing` resumes, or if
    /// another process is training there.
    pub fn open(root: &Path, existing: Existing, origin: Origin) -> Result<Self, TrainerError> {
        let holds_run = root.join(RESOLVED_FILE).exists() || root.join("checkpoints").exists();
        match existing {
            Existing::Refuse if holds_run => {
                return Err(TrainerError::config(format!(
                    "`{}` holds a run already: go on with --resume, start over with --overwrite, or choose another \
                     --output-dir",
                    root.display()
                )));
            }
            Existing::Resume if !holds_run => {
                return Err(TrainerError::config(format!(
                    "`{}` holds no run to resume: leave --resume out",
                    root.display()
                )));
            }
            _ => {}
        }
        fs::create_dir_all(root).map_err(TrainerError::io("create", root))?;
        let path = root.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(TrainerError::io("open", &path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            TrainerError::config(format!("another process is training in `{}`", root.display()))
        })?;
        let folder = Self { root: root.to_owned(), origin, _lock: lock };
        if existing == Existing::Overwrite {
            folder.clear()?;
        }
        folder.sweep()?;
        Ok(folder)
    }

    fn clear(&self) -> Result<(), TrainerError> {
        for name in OWN {
            let path = self.root.join(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(m) if m.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(_) => Ok(()),
            };
            removed.map_err(TrainerError::io("remove", &path))?;
        }
        self.forget_judged(&[])
    }

    fn sweep(&self) -> Result<(), TrainerError> {
        for dir in [&self.root, &self.checkpoints()] {
            for name in checkpoint::sweep(dir)? {
                tracing::warn!(folder = %dir.display(), name, "swept what an interrupted write left");
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Publishes the checkpoint of `update`, points `last` at it, and removes all but the newest `keep`.
    ///
    /// # Errors
    /// See [`checkpoint::publish`].
    pub fn save(
        &self,
        update: u64,
        keep: usize,
        fill: impl FnOnce(&Path) -> Result<(), TrainerError>,
    ) -> Result<Manifest, TrainerError> {
        let name = step_name(update);
        let manifest = checkpoint::publish(&self.checkpoints().join(&name), &self.origin, fill)?;
        checkpoint::point(&self.root.join("last"), &Path::new("checkpoints").join(&name))?;
        let steps = self.steps()?;
        for (_, name) in steps.iter().rev().skip(keep.max(1)) {
            let path = self.checkpoints().join(name);
            fs::remove_dir_all(&path).map_err(TrainerError::io("remove", &path))?;
        }
        Ok(manifest)
    }

    /// Publishes the folder `name` (`best`, `final`), replacing an older one.
    ///
    /// # Errors
    /// See [`checkpoint::publish`].
    pub fn publish(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<(), TrainerError>,
    ) -> Result<Manifest, TrainerError> {
        checkpoint::publish(&self.root.join(name), &self.origin, fill)
    }

    /// Removes policies that were judged, but for those of `keep`.
    ///
    /// # Errors
    /// [`TrainerError::Io`].
    pub fn forget_judged(&self, keep: &[u64]) -> Result<(), TrainerError> {
        let kept: Vec<_> = keep.iter().copied().map(step_name).collect();
        for name in checkpoint::entry_names(&self.root)? {
            let of = name.strip_prefix(JUDGED);
            if of.is_some_and(|of| kept.iter().all(|kept| kept != of)) {
                let path = self.root.join(&name);
                fs::remove_dir_all(&path).map_err(TrainerError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint that is complete; broken ones are named in a warning and left out.
    ///
    /// # Errors
    /// [`TrainerError::Io`] if the folder cannot be read.
    pub fn newest(&self) -> Result<Option<(u64, PathBuf)>, TrainerError> {
        for (update, name) in self.steps()?.into_iter().rev() {
            let path = self.checkpoints().join(name);
            match checkpoint::verify(&path) {
                Ok(_) => return Ok(Some((update, path))),
                Err(error) => {
                    tracing::warn!(checkpoint = %path.display(), %error, "skipping a broken checkpoint");
                }
            }
        }
        Ok(None)
    }

    /// Checkpoints by update, in ascending order.
    fn steps(&self) -> Result<Vec<(u64, String)>, TrainerError> {
        let dir = self.checkpoints();
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let names = checkpoint::entry_names(&dir)?;
        let mut steps: Vec<_> =
            names.into_iter().filter_map(|n| n.parse().ok().map(|s: u64| (s, n))).collect();
        steps.sort();
        Ok(steps)
    }
}

/// The name of the folder in which the policy of after `update` updates lies while it is judged.
pub(crate) fn judged(update: u64) -> String {
    format!("{JUDGED}{}", step_name(update))
}

/// The name of a checkpoint: names sort as numbers do.
fn step_name(update: u64) -> String {
    format!("{update:08}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path) -> Result<(), TrainerError> {
        let path = dir.join("model.safetensors");
        fs::write(&path, b"weights").map_err(TrainerError::io("write", &path))
    }

    fn open(root: &Path, existing: Existing) -> Result<RunFolder, TrainerError> {
        RunFolder::open(root, existing, Origin::default())
    }

    #[test]
    fn keeps_the_last_few_and_last_resolves() {
        let root = tempfile::tempdir().unwrap();
        let run = open(root.path(), Existing::Refuse).unwrap();
        for update in [5, 10, 100] {
            run.save(update, 2, write).unwrap();
            let last = fs::canonicalize(root.path().join("last")).unwrap();
            assert!(last.ends_with(step_name(update)));
        }
        let left = checkpoint::entry_names(&run.checkpoints()).unwrap();
        assert_eq!(left, ["00000010", "00000100"]);
        assert_eq!(run.newest().unwrap().unwrap().0, 100);
    }

    #[test]
    fn broken_and_unfinished_checkpoints_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let run = open(root.path(), Existing::Refuse).unwrap();
        for update in [1, 2, 3] {
            run.save(update, 9, write).unwrap();
        }
        fs::write(run.checkpoints().join("00000003/model.safetensors"), b"weightz").unwrap();
        fs::create_dir(run.checkpoints().join("00000004.tmp-77")).unwrap();
        drop(run);
        let run = open(root.path(), Existing::Resume).unwrap();
        assert_eq!(run.newest().unwrap().unwrap().0, 2);
        assert!(!run.checkpoints().join("00000004.tmp-77").exists());
    }

    #[test]
    fn results_are_never_mixed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a");
        let error = open(&dir, Existing::Resume).unwrap_err().to_string();
        assert!(error.contains("no run to resume"), "{error}");
        let run = open(&dir, Existing::Refuse).unwrap();
        run.save(1, 1, write).unwrap();
        fs::write(dir.join("notes.txt"), b"mine").unwrap();
        let error = open(&dir, Existing::Resume).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(run);
        let error = open(&dir, Existing::Refuse).unwrap_err().to_string();
        assert!(error.contains("--overwrite"), "{error}");
        let run = open(&dir, Existing::Overwrite).unwrap();
        assert!(run.newest().unwrap().is_none());
        assert!(dir.join("notes.txt").exists());
    }
}
