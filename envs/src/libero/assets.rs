//! One hash over all assets, so that two results can be told to come from the same scenes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::EnvError;

const CACHE_FILE: &str = "asset-hashes.json";

/// What an assets folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssetFingerprint {
    /// SHA-256 over the sorted relative paths, each with its file's SHA-256; hexadecimal.
    pub sha256: String,
    /// The number of files.
    pub files: u64,
    /// Their sizes added up, bytes.
    pub bytes: u64,
}

/// A file's hash, valid as long as size and time of change are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    mtime_ns: i128,
    sha256: String,
}

/// Hashes every file under `assets`, following links.
///
/// Hashes of unchanged files (same size and time of change) come from the user's cache, so a second call takes
/// milliseconds; without a writable cache the result is the same.
///
/// # Errors
/// [`EnvError::File`] if a file or folder cannot be read.
pub fn fingerprint_assets(assets: &Path) -> Result<AssetFingerprint, EnvError> {
    fingerprint_with_cache(assets, super::worker_files::cache_dir().ok().as_deref())
}

fn fingerprint_with_cache(
    assets: &Path,
    cache: Option<&Path>,
) -> Result<AssetFingerprint, EnvError> {
    let root = assets.canonicalize().map_err(|e| unreadable(assets, &e))?;
    let cache = cache.map(|dir| dir.join(CACHE_FILE));
    // Absolute path to hash, for any number of asset folders.
    let mut known: BTreeMap<PathBuf, Known> = cache
        .as_ref()
        .and_then(|path| fs::read(path).ok())
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let before = known.clone();

    let mut files = Vec::new();
    list(&root, &mut files)?;
    files.sort();
    let mut total = Sha256::new();
    let mut bytes = 0;
    for path in &files {
        let meta = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let sha256 = match known.get(path) {
            Some(hit) if hit.size == meta.len() && hit.mtime_ns == mtime_ns => hit.sha256.clone(),
            _ => hash_file(path).map_err(|e| unreadable(path, &e))?,
        };
        known.insert(path.clone(), Known { size: meta.len(), mtime_ns, sha256: sha256.clone() });
        let relative = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
        total.update((relative.len() as u64).to_le_bytes());
        total.update(relative.as_bytes());
        total.update(sha256.as_bytes());
        bytes += meta.len();
    }
    if let (Some(path), false) = (&cache, known == before) {
        remember(path, &known);
    }
    Ok(AssetFingerprint { sha256: hex(&total.finalize()), files: files.len() as u64, bytes })
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), EnvError> {
    for entry in fs::read_dir(dir).map_err(|e| unreadable(dir, &e))? {
        let path = entry.map_err(|e| unreadable(dir, &e))?.path();
        if fs::metadata(&path).map_err(|e| unreadable(&path, &e))?.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// A cache that cannot be written only costs time.
fn remember(path: &Path, known: &BTreeMap<PathBuf, Known>) {
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    let text = serde_json::to_vec(known).unwrap_or_default();
    if fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).is_err() {
        tracing::debug!(path = %path.display(), "asset hashes were not cached");
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> EnvError {
    EnvError::File { path: path.to_owned(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_follows_names_and_contents_but_not_the_folder() {
        let make = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            fingerprint_with_cache(dir.path(), None).unwrap()
        };
        let one = make(&[("a/x.xml", "1"), ("b.png", "22")]);
        assert_eq!((one.files, one.bytes), (2, 3));
        assert_eq!(one, make(&[("b.png", "22"), ("a/x.xml", "1")]));
        assert_ne!(one.sha256, make(&[("a/x.xml", "1"), ("b.png", "23")]).sha256);
        assert_ne!(one.sha256, make(&[("a/y.xml", "1"), ("b.png", "22")]).sha256);
    }

    #[test]
    fn a_changed_file_is_hashed_again_and_an_unchanged_one_is_not() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("a"), "1").unwrap();
        fs::write(dir.path().join("b"), "2").unwrap();
        let first = fingerprint_with_cache(dir.path(), Some(cache.path())).unwrap();
        // Poison the cache: an unchanged file's entry is believed, which shows that it was not read again.
        let file = cache.path().join(CACHE_FILE);
        let mut known: BTreeMap<PathBuf, Known> =
            serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let a = dir.path().canonicalize().unwrap().join("a");
        known.get_mut(&a).unwrap().sha256 = "believed".into();
        fs::write(&file, serde_json::to_vec(&known).unwrap()).unwrap();
        let poisoned = fingerprint_with_cache(dir.path(), Some(cache.path())).unwrap();
        assert_ne!(poisoned.sha256, first.sha256);
        // A change of size is noticed, and the true hash returns.
        fs::write(&a, "12").unwrap();
        let fresh = fingerprint_with_cache(dir.path(), Some(cache.path())).unwrap();
        assert_eq!(fresh, fingerprint_with_cache(dir.path(), None).unwrap());
    }
}
