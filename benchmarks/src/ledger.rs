//! The append-only ledger: each (task, trial) exactly once, every number recomputed from it.
//!
//! A result folder holds
//!
//! | file | what |
//! |---|---|
//! | `run.json` | [`RunManifest`]: what was asked for and what it ran on; written once, before the first episode |
//! | `ledger.jsonl` | one [`EpisodeRecord`] a line, appended and flushed as episodes finish |
//! | `actions/TASK_epTRIAL.npy` | the executed actions, f32 `[T, D]` |
//!
//! A line that was cut by a crash is dropped when the ledger is opened again; that episode runs again from its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use simloop_trainers::EpisodeRecord;

use crate::BenchError;
use crate::outcome::SESSIONS_FILE;

/// The name of the manifest in a result folder.
pub const MANIFEST_FILE: &str = "run.json";
/// The name of the ledger in a result folder.
pub const LEDGER_FILE: &str = "ledger.jsonl";
/// Names of the fingerprint that tell about the policy, not about the rules, begin so.
pub const POLICY_KEYS: &str = "policy.";
const FORMAT: u32 = 1;

/// What a run is: two folders may be resumed, merged or compared only as far as these agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunManifest {
    /// The layout of the folder.
    pub format: u32,
    /// `pusht`, `libero_spatial`, …
    pub suite: String,
    /// The protocol's name and version, e.g. `openvla-v1`.
    pub protocol: String,
    /// Every number of the protocol with its source.
    pub protocol_lines: Vec<ProtocolLine>,
    /// What acts.
    pub policy: String,
    /// The run's seed.
    pub seed: u64,
    /// The tasks in the suite's order.
    pub tasks: Vec<TaskEntry>,
    /// Trials asked for per task: first and one past the last.
    pub trials: (u32, u32),
    /// Versions and hashes of everything that decides a result.
    pub fingerprint: BTreeMap<String, String>,
    /// The command line.
    pub command: String,
}

/// One task of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEntry {
    /// Its key in the ledger, e.g. `libero_spatial/3`.
    pub key: String,
    /// Its number within the suite.
    pub id: u32,
    /// What the policy is told.
    pub instruction: String,
}

/// One number of a protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtocolLine {
    /// What it is, e.g. `max_steps`.
    pub name: String,
    /// Its value, as text.
    pub value: String,
    /// Where it comes from.
    pub source: String,
}

impl RunManifest {
    /// The layout this program writes.
    pub fn current_format() -> u32 {
        FORMAT
    }

    /// Every point in which `other` would give other numbers for the same (task, trial): `name: mine -> theirs`. What acts
    /// counts only `with_policy`.
    pub fn differences(&self, other: &Self, with_policy: bool) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |name: &str, mine: &str, theirs: &str| {
            if mine != theirs {
                differences.push(format!("{name}: {mine} -> {theirs}"));
            }
        };
        compare("format", &self.format.to_string(), &other.format.to_string());
        compare("suite", &self.suite, &other.suite);
        compare("protocol", &self.protocol, &other.protocol);
        if with_policy {
            compare("policy", &self.policy, &other.policy);
        }
        compare("seed", &self.seed.to_string(), &other.seed.to_string());
        let lines =
            |m: &Self| m.protocol_lines.iter().map(|l| (l.name.clone(), l.value.clone())).collect();
        compare_maps("protocol", &lines(self), &lines(other), &mut compare);
        let fingerprint = |m: &Self| {
            let counts = |name: &String| with_policy || !name.starts_with(POLICY_KEYS);
            let lines = m.fingerprint.iter().filter(|(name, _)| counts(name));
            lines.map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        compare_maps("fingerprint", &fingerprint(self), &fingerprint(other), &mut compare);
        differences
    }
}

fn compare_maps(
    group: &str,
    mine: &BTreeMap<String, String>,
    theirs: &BTreeMap<String, String>,
    compare: &mut impl FnMut(&str, &str, &str),
) {
    let names: BTreeSet<_> = mine.keys().chain(theirs.keys()).collect();
    for name in names {
        let get = |map: &BTreeMap<String, String>| {
            map.get(name).cloned().unwrap_or_else(|| "absent".to_owned())
        };
        compare(&format!("{group}.{name}"), &get(mine), &get(theirs));
    }
}

/// An open ledger in a result folder.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    file: File,
    records: Vec<EpisodeRecord>,
    done: BTreeMap<(String, u32), usize>,
}

impl Ledger {
    /// Starts a new folder.
    ///
    /// # Errors
    /// [`BenchError::Folder`] if it holds a run already, or cannot be written.
    pub fn create(dir: &Path, manifest: &RunManifest) -> Result<Self, BenchError> {
        if dir.join(MANIFEST_FILE).exists() {
            return Err(BenchError::folder(
                dir,
                "holds a run already; give --resume to go on with it, --overwrite to replace it, or another --output-dir",
            ));
        }
        std::fs::create_dir_all(dir).map_err(|e| BenchError::io(dir, &e))?;
        let text = serde_json::to_string_pretty(manifest)
            .map_err(|e| BenchError::folder(dir, e.to_string()))?;
        write_atomically(&dir.join(MANIFEST_FILE), text.as_bytes())?;
        let path = dir.join(LEDGER_FILE);
        let file = File::create(&path).map_err(|e| BenchError::io(&path, &e))?;
        Ok(Self { dir: dir.to_owned(), file, records: Vec::new(), done: BTreeMap::new() })
    }

    /// Goes on with a folder: a torn last line is cut off, everything before it must be whole.
    ///
    /// # Errors
    /// [`BenchError::Folder`] if a line in the middle is damaged or an episode stands twice.
    pub fn open(dir: &Path) -> Result<(Self, RunManifest), BenchError> {
        let (manifest, records, valid_bytes) = read(dir)?;
        let path = dir.join(LEDGER_FILE);
        let io = |e: std::io::Error| BenchError::io(&path, &e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        file.set_len(valid_bytes).map_err(io)?;
        file.seek(std::io::SeekFrom::End(0)).map_err(io)?;
        let done =
            records.iter().enumerate().map(|(i, r)| ((r.task.clone(), r.trial), i)).collect();
        Ok((Self { dir: dir.to_owned(), file, records, done }, manifest))
    }

    /// Appends one episode: one `write` of one line, so that a killed process leaves whole lines or a torn last one.
    ///
    /// # Errors
    /// [`BenchError::Folder`] if the episode is there already or the disk refuses.
    pub fn append(
        &mut self,
        record: EpisodeRecord,
        actions: &Array2<f32>,
    ) -> Result<(), BenchError> {
        if self.contains(&record.task, record.trial) {
            let what = format!("{} trial {} was recorded before", record.task, record.trial);
            return Err(BenchError::folder(&self.dir, what));
        }
        if !actions.is_empty() {
            let path = actions_path(&self.dir, &record.task, record.trial);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(|e| BenchError::io(parent, &e))?;
            }
            ndarray_npy::write_npy(&path, actions)
                .map_err(|e| BenchError::folder(&path, e.to_string()))?;
        }
        let mut line = serde_json::to_vec(&record)
            .map_err(|e| BenchError::folder(&self.dir, e.to_string()))?;
        line.push(b'\n');
        let path = self.dir.join(LEDGER_FILE);
        self.file.write_all(&line).map_err(|e| BenchError::io(&path, &e))?;
        self.done.insert((record.task.clone(), record.trial), self.records.len());
        self.records.push(record);
        Ok(())
    }

    /// Forces what was appended to the disk.
    ///
    /// # Errors
    /// [`BenchError::Folder`] if the disk refuses.
    pub fn sync(&self) -> Result<(), BenchError> {
        self.file.sync_data().map_err(|e| BenchError::io(&self.dir, &e))
    }

    /// Whether this episode is recorded.
    pub fn contains(&self, task: &str, trial: u32) -> bool {
        self.done.contains_key(&(task.to_owned(), trial))
    }

    /// The record of an episode.
    pub fn get(&self, task: &str, trial: u32) -> Option<&EpisodeRecord> {
        self.done.get(&(task.to_owned(), trial)).map(|&i| &self.records[i])
    }

    /// Deletes the run in `dir` (manifest, ledger, sessions, actions, videos, reports) and leaves everything else there.
    ///
    /// # Errors
    /// [`BenchError::Folder`] if the system refuses.
    pub fn delete(dir: &Path) -> Result<(), BenchError> {
        if !dir.join(MANIFEST_FILE).exists() {
            return Ok(());
        }
        // The manifest goes last: a folder that still has one can be deleted again.
        for name in [
            "actions",
            "videos",
            LEDGER_FILE,
            SESSIONS_FILE,
            "eval_info.json",
            "report.html",
            MANIFEST_FILE,
        ] {
            let path = dir.join(name);
            let result = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            match result {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(BenchError::io(&path, &e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All records, in the order they finished.
    pub fn records(&self) -> &[EpisodeRecord] {
        &self.records
    }
}

/// Reads a result folder without changing it.
///
/// # Errors
/// [`BenchError::Folder`] naming the file, the line and the remedy.
pub fn load(dir: &Path) -> Result<(RunManifest, Vec<EpisodeRecord>), BenchError> {
    read(dir).map(|(manifest, records, _)| (manifest, records))
}

fn read(dir: &Path) -> Result<(RunManifest, Vec<EpisodeRecord>, u64), BenchError> {
    let path = dir.join(MANIFEST_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| {
        BenchError::folder(&path, format!("{e}; is this a folder that `bench` wrote?"))
    })?;
    let manifest: RunManifest = serde_json::from_str(&text).map_err(|e| {
        BenchError::folder(&path, format!("{e}; it was written by another version or damaged"))
    })?;
    if manifest.format != FORMAT {
        let what = format!(
            "format {} was written by another version; this one reads {FORMAT}",
            manifest.format
        );
        return Err(BenchError::folder(&path, what));
    }
    let path = dir.join(LEDGER_FILE);
    let Ok(file) = File::open(&path) else { return Ok((manifest, Vec::new(), 0)) };
    let mut reader = BufReader::new(file);
    let (mut records, mut seen, mut valid_bytes) =
        (Vec::<EpisodeRecord>::new(), BTreeSet::new(), 0);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(|e| BenchError::io(&path, &e))?;
        if read == 0 || line.last() != Some(&b'\n') {
            break; // the end, or a last line torn by a crash
        }
        let record: EpisodeRecord = serde_json::from_slice(&line)
            .map_err(|e| BenchError::folder(&path, format!("line {number} is damaged ({e}); restore the file, or delete that line and --resume")))?;
        if !seen.insert((record.task.clone(), record.trial)) {
            let what = format!(
                "line {number} repeats {} trial {}; delete one of the two",
                record.task, record.trial
            );
            return Err(BenchError::folder(&path, what));
        }
        records.push(record);
        valid_bytes += read as u64;
    }
    Ok((manifest, records, valid_bytes))
}

/// The SHA-256, hex, of what depends on the seed alone: the sorted records without wall times, attempts and faults of
/// this machine. Two runs with one digest are the same bit for bit.
pub fn digest(records: &[EpisodeRecord]) -> String {
    let mut keyed: Vec<_> = records.iter().map(|r| ((r.task.as_str(), r.trial), r)).collect();
    keyed.sort_by_key(|(key, _)| *key);
    let mut hasher = Sha256::new();
    for (_, r) in keyed {
        let line = format!(
            "{}\t{}\t{}\t{:?}\t{:?}\t{}\t{:016x}\t{}\n",
            r.task,
            r.trial,
            r.seed,
            r.init_state,
            r.status,
            r.steps,
            r.ret.to_bits(),
            r.trace
        );
        hasher.update(line.as_bytes());
    }
    hex(&hasher.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where an episode's executed actions lie.
pub fn actions_path(dir: &Path, task: &str, trial: u32) -> PathBuf {
    dir.join("actions").join(format!("{}_ep{trial:04}.npy", file_stem(task)))
}

/// A task's name as part of a file name.
pub fn file_stem(task: &str) -> String {
    task.chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' })
        .collect()
}

/// Writes a whole file or nothing: a temporary name, flushed, renamed.
///
/// # Errors
/// [`BenchError::Folder`] naming the path.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), BenchError> {
    let io = |e: std::io::Error| BenchError::io(path, &e);
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(io)?;
    file.write_all(contents).map_err(io)?;
    // A temporary file is private to its owner; a result folder is meant to be shared.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(io)?;
    }
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// Joins folders of one run (shards, machines) into `out`.
///
/// # Errors
/// [`BenchError::Folder`] if they differ in anything that decides a number, or tell two stories of one episode.
pub fn merge(inputs: &[PathBuf], out: &Path) -> Result<Ledger, BenchError> {
    let mut merged: BTreeMap<(String, u32), (EpisodeRecord, PathBuf)> = BTreeMap::new();
    let mut manifest: Option<RunManifest> = None;
    for dir in inputs {
        let (theirs, records) = load(dir)?;
        if let Some(ours) = &mut manifest {
            let differences = ours.differences(&theirs, true);
            if !differences.is_empty() {
                return Err(BenchError::folder(
                    dir,
                    format!("belongs to another run:\n  {}", differences.join("\n  ")),
                ));
            }
            let known: BTreeSet<_> = ours.tasks.iter().map(|t| t.key.clone()).collect();
            ours.trials = (ours.trials.0.min(theirs.trials.0), ours.trials.1.max(theirs.trials.1));
            ours.tasks.extend(theirs.tasks.into_iter().filter(|t| !known.contains(&t.key)));
            ours.tasks.sort_by_key(|t| t.id);
        } else {
            manifest = Some(theirs);
        }
        for record in records {
            let key = (record.task.clone(), record.trial);
            match merged.get(&key) {
                Some((known, other))
                    if digest(std::slice::from_ref(known))
                        != digest(std::slice::from_ref(&record)) =>
                {
                    let what = format!(
                        "{} trial {} ended otherwise than in {}",
                        key.0,
                        key.1,
                        other.display()
                    );
                    return Err(BenchError::folder(dir, what));
                }
                Some(_) => {}
                None => drop(merged.insert(key, (record, dir.clone()))),
            }
        }
    }
    let manifest = manifest.ok_or_else(|| BenchError::folder(out, "nothing to merge"))?;
    let mut ledger = Ledger::create(out, &manifest)?;
    for (record, dir) in merged.into_values() {
        let path = actions_path(&dir, &record.task, record.trial);
        let actions = if path.exists() {
            ndarray_npy::read_npy(&path).map_err(|e| BenchError::folder(&path, e.to_string()))?
        } else {
            Array2::zeros((0, 0))
        };
        ledger.append(record, &actions)?;
    }
    ledger.sync()?;
    Ok(ledger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_envs::EpisodeEnd;
    use simloop_trainers::Status;

    fn manifest() -> RunManifest {
        RunManifest {
            format: FORMAT,
            suite: "toy".into(),
            protocol: "toy-v1".into(),
            protocol_lines: vec![ProtocolLine {
                name: "max_steps".into(),
                value: "9".into(),
                source: "here".into(),
            }],
            policy: "random".into(),
            seed: 0,
            tasks: vec![TaskEntry { key: "t".into(), id: 0, instruction: "do".into() }],
            trials: (0, 4),
            fingerprint: BTreeMap::from([("engine".into(), "1".into())]),
            command: "bench toy".into(),
        }
    }

    fn record(trial: u32) -> EpisodeRecord {
        EpisodeRecord {
            task: "t".into(),
            trial,
            seed: u64::from(trial) + u64::MAX / 2,
            init_state: None,
            status: Status::Success,
            end: EpisodeEnd::Terminated,
            steps: 3,
            decisions: 3,
            ret: 0.1 + f64::from(trial),
            max_reward: 1.0,
            metrics: BTreeMap::new(),
            trace: format!("{trial:064x}"),
            attempts: 1,
            faults: vec![],
            wall_secs: f64::from(trial),
            policy_secs: 0.0,
        }
    }

    fn none() -> Array2<f32> {
        Array2::zeros((0, 0))
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let mut ledger = Ledger::create(&path, &manifest()).unwrap();
        for trial in 0..3 {
            ledger.append(record(trial), &none()).unwrap();
        }
        drop(ledger);
        let file = path.join(LEDGER_FILE);
        let whole = std::fs::read(&file).unwrap();
        let two_lines =
            whole.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0 + 1;
        for cut in two_lines..whole.len() {
            std::fs::write(&file, &whole[..cut]).unwrap();
            let (mut ledger, _) = Ledger::open(&path).unwrap();
            assert_eq!(ledger.records().len(), 2, "cut at {cut}");
            ledger.append(record(2), &none()).unwrap();
            assert_eq!(std::fs::read(&file).unwrap(), whole);
        }
    }

    #[test]
    fn damage_in_the_middle_is_named_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let mut ledger = Ledger::create(&path, &manifest()).unwrap();
        for trial in 0..3 {
            ledger.append(record(trial), &none()).unwrap();
        }
        let file = path.join(LEDGER_FILE);
        let text =
            std::fs::read_to_string(&file).unwrap().replacen("\"trial\":1", "\"trial\":?", 1);
        std::fs::write(&file, text).unwrap();
        assert!(Ledger::open(&path).unwrap_err().to_string().contains("line 2 is damaged"));
    }

    #[test]
    fn an_episode_cannot_be_recorded_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::create(&dir.path().join("run"), &manifest()).unwrap();
        ledger.append(record(0), &none()).unwrap();
        assert!(ledger.append(record(0), &none()).is_err());
        assert!(
            Ledger::create(&dir.path().join("run"), &manifest())
                .unwrap_err()
                .to_string()
                .contains("--resume")
        );
    }

    #[test]
    fn the_digest_ignores_order_and_machine_but_nothing_else() {
        let (a, b) = (record(0), record(1));
        let expected = digest(&[a.clone(), b.clone()]);
        let slower = EpisodeRecord { wall_secs: 99.0, attempts: 3, ..a.clone() };
        assert_eq!(expected, digest(&[b.clone(), slower]));
        for changed in [
            EpisodeRecord { trace: "other".into(), ..a.clone() },
            EpisodeRecord { status: Status::Failure, ..a.clone() },
            EpisodeRecord { ret: f64::from_bits(a.ret.to_bits() + 1), ..a.clone() },
        ] {
            assert_ne!(expected, digest(&[changed, b.clone()]));
        }
    }

    #[test]
    fn another_policy_may_be_compared_but_not_resumed() {
        let with = |hash: &str| {
            let mut manifest = manifest();
            manifest.fingerprint.insert(format!("{POLICY_KEYS}sha256"), hash.to_owned());
            manifest
        };
        assert_eq!(with("a").differences(&with("b"), false), Vec::<String>::new());
        assert_eq!(with("a").differences(&with("b"), true), ["fingerprint.policy.sha256: a -> b"]);
    }

    #[test]
    fn shards_merge_into_the_whole_and_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut a = Ledger::create(&at("a"), &manifest()).unwrap();
        let mut b = Ledger::create(&at("b"), &manifest()).unwrap();
        a.append(record(0), &none()).unwrap();
        a.append(record(1), &ndarray::array![[1.0, 2.0]]).unwrap();
        b.append(record(1), &none()).unwrap();
        b.append(record(2), &none()).unwrap();
        let merged = merge(&[at("a"), at("b")], &at("all")).unwrap();
        assert_eq!(digest(merged.records()), digest(&[record(2), record(0), record(1)]));
        assert!(actions_path(&at("all"), "t", 1).exists());

        let other = RunManifest { seed: 1, ..manifest() };
        drop(Ledger::create(&at("c"), &other).unwrap());
        assert!(
            merge(&[at("a"), at("c")], &at("d")).unwrap_err().to_string().contains("seed: 0 -> 1")
        );
        let mut e = Ledger::create(&at("e"), &manifest()).unwrap();
        e.append(EpisodeRecord { trace: "x".into(), ..record(0) }, &none()).unwrap();
        assert!(
            merge(&[at("a"), at("e")], &at("f"))
                .unwrap_err()
                .to_string()
                .contains("ended otherwise")
        );
    }
}
