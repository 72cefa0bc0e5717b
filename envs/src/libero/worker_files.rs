//! The worker's Python files, carried inside the program so that an installed binary works alone.

use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::assets::hex;
use crate::EnvError;

const FILES: [(&str, &str); 14] = [
    ("libero_worker.py", include_str!("../../python/libero_worker.py")),
    ("simloop_libero/__init__.py", include_str!("../../python/simloop_libero/__init__.py")),
    ("simloop_libero/bootstrap.py", include_str!("../../python/simloop_libero/bootstrap.py")),
    ("simloop_libero/calls.py", include_str!("../../python/simloop_libero/calls.py")),
    ("simloop_libero/errors.py", include_str!("../../python/simloop_libero/errors.py")),
    ("simloop_libero/init_states.py", include_str!("../../python/simloop_libero/init_states.py")),
    ("simloop_libero/preflight.py", include_str!("../../python/simloop_libero/preflight.py")),
    ("simloop_libero/privileged.py", include_str!("../../python/simloop_libero/privileged.py")),
    ("simloop_libero/scenes.py", include_str!("../../python/simloop_libero/scenes.py")),
    ("simloop_libero/server.py", include_str!("../../python/simloop_libero/server.py")),
    ("simloop_libero/settings.py", include_str!("../../python/simloop_libero/settings.py")),
    ("simloop_libero/soft_reset.py", include_str!("../../python/simloop_libero/soft_reset.py")),
    ("simloop_libero/task.py", include_str!("../../python/simloop_libero/task.py")),
    ("simloop_libero/wire.py", include_str!("../../python/simloop_libero/wire.py")),
];

/// The folder for things that can be made again: `$XDG_CACHE_HOME/simloop`, `~/.cache/simloop`, or a private one in the
/// temporary folder.
///
/// # Errors
/// [`EnvError::File`] if none can be made.
pub(super) fn cache_dir() -> Result<PathBuf, EnvError> {
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    for base in xdg.into_iter().chain(home).filter(|base| base.is_absolute()) {
        let dir = base.join("simloop");
        if fs::create_dir_all(&dir).is_ok() && is_ours_and_writable(&dir) {
            return Ok(dir);
        }
    }
    let user = rustix::process::getuid().as_raw();
    let dir = std::env::temp_dir().join(format!("simloop-{user}"));
    // Whoever else can write to the temporary folder must not be able to put code there in our name.
    let made = DirBuilder::new().mode(0o700).create(&dir);
    if (made.is_ok() || dir.is_dir()) && is_private(&dir) {
        return Ok(dir);
    }
    Err(EnvError::File { path: dir, detail: "no private cache folder; set XDG_CACHE_HOME".into() })
}

fn is_ours_and_writable(dir: &Path) -> bool {
    let ours = |m: fs::Metadata| m.uid() == rustix::process::getuid().as_raw();
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    let writable = fs::write(&probe, b"").is_ok();
    let _gone = fs::remove_file(&probe);
    writable && fs::symlink_metadata(dir).is_ok_and(ours)
}

fn is_private(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|m| {
        m.is_dir()
            && m.uid() == rustix::process::getuid().as_raw()
            // Nothing for group and others.
            && m.permissions().mode().trailing_zeros() >= 6
    })
}

/// Writes the worker's files, if they are not there yet, and returns the script to run. Any number of processes may do so
/// at once: the folder is named by the contents, files appear by renaming.
///
/// # Errors
/// [`EnvError::File`].
pub(super) fn unpack(cache: &Path) -> Result<PathBuf, EnvError> {
    let mut hasher = Sha256::new();
    for (name, text) in FILES {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    let digest = hex(&hasher.finalize()[..8]);
    let dir = cache.join(format!("libero-worker-{digest}"));
    for (name, text) in FILES {
        let path = dir.join(name);
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            continue;
        }
        write(&path, text).map_err(|e| EnvError::File {
            path: path.clone(),
            detail: format!("the worker's files cannot be written: {e}"),
        })?;
    }
    Ok(dir.join(FILES[0].0))
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let dir = path.parent().expect("a file in the cache has a folder");
    fs::create_dir_all(dir)?;
    let partial = path.with_extension(format!("{}.part", std::process::id()));
    let mut file = fs::File::create(&partial)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_carries_every_file_of_the_worker() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
        let mut there: Vec<String> = fs::read_dir(folder.join("simloop_libero"))
            .unwrap()
            .map(|e| format!("simloop_libero/{}", e.unwrap().file_name().to_string_lossy()))
            .filter(|name| Path::new(name).extension().is_some_and(|e| e == "py"))
            .chain(["libero_worker.py".to_owned()])
            .collect();
        there.sort();
        let mut carried: Vec<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        carried.sort();
        assert_eq!(there, carried);
    }

    #[test]
    fn a_damaged_file_in_the_cache_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let script = unpack(cache.path()).unwrap();
        fs::write(&script, "import evil").unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), script);
        assert_eq!(fs::read_to_string(&script).unwrap(), FILES[0].1);
        assert!(script.with_file_name("simloop_libero").join("wire.py").exists());
    }
}
