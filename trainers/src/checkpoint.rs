//! Folders that are either whole or not there.
//!
//! A checkpoint is written to `<name>.tmp-<pid>`, every file is flushed to the disk, `manifest.json` lists their sizes
//! and SHA-256, and one rename publishes it; a crash at any instant leaves the folders before it as they were.
//!
//! | file of a checkpoint | what |
//! |---|---|
//! | `config.json`, `model.safetensors`, `normalizer.json`, … | the policy, ready to act (`simloop_policies::checkpoint`) |
//! | `training_state/weights.safetensors` | the raw weights, where the policy's are averaged |
//! | `training_state/optimizer.safetensors` | moments |
//! | `training_state/ema.safetensors` | the moving average |
//! | `training_state/state.json` | [`TrainState`]: counters, the data's place, patience |
//! | `manifest.json` | [`Manifest`] |

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use simloop_algos::bc::BcState;
use simloop_policies::safetensors_io;

use crate::TrainerError;
use crate::data::LoaderPosition;

/// The version of this layout.
pub const FORMAT: &str = "simloop-checkpoint-v1";
/// Sizes and digests of all other files.
pub const MANIFEST_FILE: &str = "manifest.json";
/// What only training needs.
pub const STATE_DIR: &str = "training_state";

const STATE_FILE: &str = "state.json";
const WEIGHTS_FILE: &str = "weights.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const EMA_FILE: &str = "ema.safetensors";

/// The most bytes of a manifest or state file that are read.
const MAX_JSON_BYTES: u64 = 16 << 20;

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its size.
    pub bytes: u64,
    /// Its digest, hexadecimal.
    pub sha256: String,
}

/// What a complete checkpoint consists of, and what made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// Digest of the run's settings.
    pub config_sha256: String,
    /// Which program wrote it: version and git revision.
    pub program: String,
    /// libtorch's version.
    pub torch: String,
    /// Every file but this one, by path within the folder.
    pub files: BTreeMap<String, FileEntry>,
}

/// Counters of a run: everything that is no tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// Updates tried; the counter of all random streams.
    pub update: u64,
    /// Where the loader stands.
    pub loader: LoaderPosition,
    /// The best score so far.
    pub best: Option<Best>,
    /// Validations in a row without a better score.
    pub stale: u32,
    /// Updates in a row that were dropped.
    pub dropped_in_a_row: u32,
    /// Seconds spent training so far, over all processes.
    pub trained_secs: f64,
}

/// The best score so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Which metric.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// After which update.
    pub update: u64,
}

/// Writes the learner's tensors and the counters into `folder/training_state`.
///
/// # Errors
/// [`TrainerError::Io`], [`TrainerError::Policy`] naming the file.
pub fn save_state(
    folder: &Path,
    learner: &BcState,
    state: &TrainState,
) -> Result<(), TrainerError> {
    let dir = folder.join(STATE_DIR);
    fs::create_dir_all(&dir).map_err(TrainerError::io("create", &dir))?;
    safetensors_io::save(&dir.join(WEIGHTS_FILE), &learner.weights)?;
    safetensors_io::save(&dir.join(OPTIMIZER_FILE), &learner.optimizer)?;
    if let Some(ema) = &learner.ema {
        safetensors_io::save(&dir.join(EMA_FILE), ema)?;
    }
    let path = dir.join(STATE_FILE);
    let text = serde_json::to_string_pretty(state)
        .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
    fs::write(&path, text).map_err(TrainerError::io("write", &path))
}

/// Reads what [`save_state`] wrote.
///
/// # Errors
/// [`TrainerError::Io`], [`TrainerError::Checkpoint`], [`TrainerError::Policy`] naming the file.
pub fn load_state(folder: &Path) -> Result<(BcState, TrainState), TrainerError> {
    let dir = folder.join(STATE_DIR);
    let path = dir.join(STATE_FILE);
    let state: TrainState = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
    let ema = dir.join(EMA_FILE);
    let learner = BcState {
        updates: state.update,
        weights: safetensors_io::load(&dir.join(WEIGHTS_FILE))?,
        optimizer: safetensors_io::load(&dir.join(OPTIMIZER_FILE))?,
        ema: ema.exists().then(|| safetensors_io::load(&ema)).transpose()?,
    };
    Ok((learner, state))
}

/// Who writes: goes into every manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Digest of the run's settings.
    pub config_sha256: String,
    /// Version and git revision of the program.
    pub program: String,
    /// libtorch's version.
    pub torch: String,
}

/// Publishes the folder `target`, filled by `fill`, which gets the folder to write into. An older `target` is replaced in
/// one step.
///
/// # Errors
/// Whatever went wrong, as [`TrainerError::Checkpoint`] with the path, the bytes written until then, and the assurance
/// that what was there before still is.
pub fn publish(
    target: &Path,
    origin: &Origin,
    fill: impl FnOnce(&Path) -> Result<(), TrainerError>,
) -> Result<Manifest, TrainerError> {
    let tmp = sibling(target, "tmp");
    let result = write_and_rename(target, &tmp, origin, fill);
    result.map_err(|error| {
        let bytes = list_files(&tmp).map_or(0, |files| files.iter().map(|f| f.2).sum::<u64>());
        let _ = fs::remove_dir_all(&tmp);
        TrainerError::checkpoint(
            target,
            format!(
                "{error}; {bytes} bytes were written and removed, earlier checkpoints are untouched"
            ),
        )
    })
}

fn write_and_rename(
    target: &Path,
    tmp: &Path,
    origin: &Origin,
    fill: impl FnOnce(&Path) -> Result<(), TrainerError>,
) -> Result<Manifest, TrainerError> {
    let parent = parent(target);
    if tmp.exists() {
        fs::remove_dir_all(tmp).map_err(TrainerError::io("remove", tmp))?;
    }
    fs::create_dir_all(tmp).map_err(TrainerError::io("create", tmp))?;
    fill(tmp)?;
    let mut files = BTreeMap::new();
    for (path, name, bytes) in list_files(tmp).map_err(TrainerError::io("list", tmp))? {
        let sha256 = digest(&path).map_err(TrainerError::io("read", &path))?;
        sync(&path)?;
        files.insert(name, FileEntry { bytes, sha256 });
    }
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        config_sha256: origin.config_sha256.clone(),
        program: origin.program.clone(),
        torch: origin.torch.clone(),
        files,
    };
    let path = tmp.join(MANIFEST_FILE);
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
    fs::write(&path, text).map_err(TrainerError::io("write", &path))?;
    sync(&path)?;
    for dir in folders(tmp).map_err(TrainerError::io("list", tmp))? {
        sync(&dir)?;
    }
    swap_in(tmp, target)?;
    sync(parent)?;
    Ok(manifest)
}

/// Renames `tmp` to `target`; an older `target` changes places with it and is then removed.
fn swap_in(tmp: &Path, target: &Path) -> Result<(), TrainerError> {
    if !target.exists() {
        return fs::rename(tmp, target).map_err(TrainerError::io("rename", tmp));
    }
    match renameat_with(CWD, tmp, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_dir_all(tmp).map_err(TrainerError::io("remove", tmp)),
        // File systems without an exchange: a crash between the two renames leaves `<name>.old-<pid>`, which
        // [`sweep`] puts back.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let old = sibling(target, "old");
            fs::rename(target, &old).map_err(TrainerError::io("rename", target))?;
            fs::rename(tmp, target).map_err(TrainerError::io("rename", tmp))?;
            fs::remove_dir_all(&old).map_err(TrainerError::io("remove", &old))
        }
        Err(error) => Err(TrainerError::io("rename", tmp)(error.into())),
    }
}

/// Checks a folder against its manifest: every file there, of its size and digest.
///
/// # Errors
/// [`TrainerError::Checkpoint`] naming the first file at fault.
pub fn verify(folder: &Path) -> Result<Manifest, TrainerError> {
    let path = folder.join(MANIFEST_FILE);
    let manifest: Manifest = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(TrainerError::checkpoint(
            &path,
            format!("its format is `{}`; this program reads `{FORMAT}`", manifest.format),
        ));
    }
    for (name, entry) in &manifest.files {
        let file = folder.join(name);
        let bytes = fs::metadata(&file).map_err(TrainerError::io("find", &file))?.len();
        if bytes != entry.bytes {
            return Err(TrainerError::checkpoint(
                &file,
                format!("it has {bytes} bytes, its manifest says {}", entry.bytes),
            ));
        }
        if digest(&file).map_err(TrainerError::io("read", &file))? != entry.sha256 {
            return Err(TrainerError::checkpoint(
                &file,
                "its SHA-256 is not the manifest's: the file is damaged".to_owned(),
            ));
        }
    }
    Ok(manifest)
}

/// Clears `dir` of what interrupted writers left, and puts back a folder that was caught between two renames. Returns
/// the names of what was cleared.
///
/// # Errors
/// [`TrainerError::Io`].
pub fn sweep(dir: &Path) -> Result<Vec<String>, TrainerError> {
    let mut swept = Vec::new();
    if !dir.exists() {
        return Ok(swept);
    }
    for name in entry_names(dir)? {
        let path = dir.join(&name);
        if let Some((of, _)) = name.split_once(".old-") {
            if dir.join(of).exists() {
                remove(&path)?;
            } else {
                fs::rename(&path, dir.join(of)).map_err(TrainerError::io("rename", &path))?;
            }
            swept.push(name);
        } else if name.contains(".tmp-") {
            remove(&path)?;
            swept.push(name);
        }
    }
    Ok(swept)
}

fn remove(path: &Path) -> Result<(), TrainerError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(TrainerError::io("remove", path))
}

/// Points `link` at `to` (a relative path) in one step.
///
/// # Errors
/// [`TrainerError::Io`].
pub fn point(link: &Path, to: &Path) -> Result<(), TrainerError> {
    let tmp = sibling(link, "tmp");
    if fs::symlink_metadata(&tmp).is_ok() {
        remove(&tmp)?;
    }
    std::os::unix::fs::symlink(to, &tmp).map_err(TrainerError::io("link", &tmp))?;
    fs::rename(&tmp, link).map_err(TrainerError::io("rename", &tmp))?;
    sync(parent(link))
}

/// Names in `dir`, in order.
///
/// # Errors
/// [`TrainerError::Io`].
pub fn entry_names(dir: &Path) -> Result<Vec<String>, TrainerError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(TrainerError::io("list", dir))? {
        let entry = entry.map_err(TrainerError::io("list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Flushes a file or folder to the disk.
///
/// # Errors
/// [`TrainerError::Io`].
pub fn sync(path: &Path) -> Result<(), TrainerError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(TrainerError::io("flush", path))
}

/// SHA-256 in hexadecimal.
pub fn hex_digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A `String` never refuses.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// A file as text, bounded.
fn read_text(path: &Path) -> Result<String, TrainerError> {
    let mut text = String::new();
    let file = File::open(path).map_err(TrainerError::io("open", path))?;
    file.take(MAX_JSON_BYTES).read_to_string(&mut text).map_err(TrainerError::io("read", path))?;
    Ok(text)
}

/// Every file below `dir` but the manifest: path, name relative to `dir`, size.
fn list_files(dir: &Path) -> io::Result<Vec<(PathBuf, String, u64)>> {
    let mut files = Vec::new();
    for folder in folders(dir)? {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let metadata = fs::metadata(&path)?;
            let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            if metadata.is_file() && name != MANIFEST_FILE {
                files.push((path, name, metadata.len()));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// `dir` and every folder below it.
fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while next < all.len() {
        for entry in fs::read_dir(&all[next])? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                all.push(entry.path());
            }
        }
        next += 1;
    }
    Ok(all)
}

/// `<path>.<kind>-<pid>`.
fn sibling(path: &Path, kind: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{kind}-{}", std::process::id()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
