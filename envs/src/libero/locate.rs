//! Finds the Python environment and the assets, without importing a simulator: absence is answered in milliseconds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::EnvError;

/// The line that installs LIBERO's Python environment.
pub const INSTALL: &str = "make libero";
const ENV_PYTHON: &str = "SIMLOOP_LIBERO_PYTHON";
const ENV_ASSETS: &str = "LIBERO_ASSETS";
const VENV_PYTHON: &str = ".simloop/libero/bin/python";
/// A file that every copy of the assets has; all scenes of a table need it.
const MARK: &str = "scenes/libero_tabletop_base_style.xml";
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

// Prints what is installed, importing none of it. Names on the left are distributions, on the right packages.
const PROBE: &str = r"
import importlib.metadata as m, importlib.util as u, json, sys
names = {'hf-libero': 'libero', 'robosuite': 'robosuite', 'mujoco': 'mujoco', 'bddl': 'bddl', 'numpy': 'numpy', 'msgpack': 'msgpack'}
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return 'unknown'
specs = {d: u.find_spec(p) for d, p in names.items()}
libero = specs['hf-libero']
print(json.dumps({
    'python': sys.version.split()[0],
    'recent': sys.version_info >= (3, 10),
    'missing': [d for d, s in specs.items() if s is None],
    'versions': {d: version(d) for d, s in specs.items() if s is not None},
    'package': list(libero.submodule_search_locations)[0] if libero else None,
}))
";

/// Where to look, beyond the usual places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocateOptions {
    /// `--python`: the interpreter with LIBERO.
    pub python: Option<PathBuf>,
    /// `--assets`: the folder with meshes, textures and scenes.
    pub assets: Option<PathBuf>,
}

/// A LIBERO that can be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiberoInstall {
    /// The interpreter.
    pub python: PathBuf,
    /// The assets.
    pub assets: PathBuf,
    /// Versions as installed: `python`, `hf-libero`, `robosuite`, `mujoco`, …
    pub versions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Probe {
    python: String,
    recent: bool,
    missing: Vec<String>,
    versions: BTreeMap<String, String>,
    package: Option<PathBuf>,
}

/// Finds interpreter and assets and asks the interpreter what is installed.
///
/// # Errors
/// [`EnvError::Unavailable`] with the line that provides what is missing.
pub fn locate(options: &LocateOptions) -> Result<LiberoInstall, EnvError> {
    let python = find_python(options)?;
    let probe = probe(&python)?;
    let assets = find_assets(options, probe.package.as_deref())?;
    let mut versions = probe.versions;
    versions.insert("python".into(), probe.python);
    Ok(LiberoInstall { python, assets, versions })
}

/// The interpreter: `--python`, `$SIMLOOP_LIBERO_PYTHON`, then `.simloop/libero/bin/python` in the working folder, its
/// parents, the program's own parents, and the workspace it was built from. A place that was named is the only one.
///
/// # Errors
/// [`EnvError::Unavailable`] with the line that installs it.
pub fn find_python(options: &LocateOptions) -> Result<PathBuf, EnvError> {
    let named = options
        .python
        .clone()
        .map(|path| ("--python", path))
        .or_else(|| named_by(ENV_PYTHON).map(|path| (ENV_PYTHON, path)));
    if let Some((how, path)) = named {
        if path.is_file() {
            return Ok(path);
        }
        return Err(EnvError::Unavailable {
            what: format!("the Python that {how} names, {}", path.display()),
            remedy: format!("name another, or run `{INSTALL}` and leave {how} out"),
        });
    }
    roots().into_iter().map(|root| root.join(VENV_PYTHON)).find(|path| path.is_file()).ok_or_else(
        || EnvError::Unavailable {
            what: format!("LIBERO (no {VENV_PYTHON} here or above, {ENV_PYTHON} is not set)"),
            remedy: format!("install it with `{INSTALL}`"),
        },
    )
}

/// The assets: `--assets`, `$LIBERO_ASSETS`, the package's own folder, `../shared/data/libero_assets` beside any of the
/// folders where [`find_python`] looks, and where `bench libero --download-assets` puts them.
///
/// # Errors
/// [`EnvError::Unavailable`] naming every place.
pub fn find_assets(options: &LocateOptions, package: Option<&Path>) -> Result<PathBuf, EnvError> {
    let named = options
        .assets
        .clone()
        .map(|path| ("--assets", path))
        .or_else(|| named_by(ENV_ASSETS).map(|path| (ENV_ASSETS, path)));
    if let Some((how, path)) = named {
        if holds_assets(&path) {
            return absolute(&path);
        }
        return Err(EnvError::Unavailable {
            what: format!("LIBERO's assets in {} ({how}); no {MARK} there", path.display()),
            remedy: "name the folder that holds `scenes`, or run `bench libero --download-assets`"
                .into(),
        });
    }
    let package = package.map(|dir| dir.join("libero/assets"));
    let beside = roots().into_iter().flat_map(|root| {
        [root.join("../shared/data/libero_assets"), root.join(".simloop/libero_assets")]
    });
    if let Some(found) = package.clone().into_iter().chain(beside).find(|dir| holds_assets(dir)) {
        return absolute(&found);
    }
    let own = package.map_or_else(String::new, |dir| format!(", {}", dir.display()));
    Err(EnvError::Unavailable {
        what: format!(
            "LIBERO's assets (looked at --assets, ${ENV_ASSETS}{own}, ../shared/data/libero_assets, \
             .simloop/libero_assets)"
        ),
        remedy: "run `bench libero --download-assets` where the Hugging Face hub can be reached, or name their folder \
                 with --assets"
            .into(),
    })
}

fn holds_assets(dir: &Path) -> bool {
    dir.join(MARK).is_file()
}

fn absolute(dir: &Path) -> Result<PathBuf, EnvError> {
    dir.canonicalize().map_err(|e| EnvError::File {
        path: dir.to_owned(),
        detail: format!("cannot resolve: {e}"),
    })
}

fn named_by(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| *v != OsString::new()).map(PathBuf::from)
}

/// Folders that may be the root of a checkout, nearest first.
fn roots() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    for start in starts.into_iter().flatten() {
        roots.extend(start.ancestors().map(Path::to_path_buf));
    }
    // Built from a checkout: its root, for tests and `cargo run` from anywhere.
    roots.extend(Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf));
    let mut seen = std::collections::HashSet::new();
    roots.retain(|root| seen.insert(root.clone()));
    roots
}

fn probe(python: &Path) -> Result<Probe, EnvError> {
    let broken = |detail: String| EnvError::Unavailable {
        what: format!("LIBERO in {} ({detail})", python.display()),
        remedy: format!("install it with `{INSTALL}`"),
    };
    let mut child = Command::new(python)
        .args(["-c", PROBE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| broken(format!("it does not start: {e}")))?;
    let end = Instant::now() + PROBE_TIMEOUT;
    // The answer fits into the pipe, so the child never waits for a reader.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => {
                let _dead = child.kill();
                let _reaped = child.wait();
                return Err(broken(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())));
            }
        }
    };
    let mut answer = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut answer)
            .map_err(|e| broken(format!("its answer cannot be read: {e}")))?;
    }
    if !status.success() {
        return Err(broken(format!("it ends with {status}")));
    }
    let probe: Probe = serde_json::from_str(&answer)
        .map_err(|e| broken(format!("it answers something else: {e}")))?;
    if !probe.recent {
        return Err(broken(format!("Python {} is too old", probe.python)));
    }
    if !probe.missing.is_empty() {
        return Err(broken(format!("it lacks {}", probe.missing.join(", "))));
    }
    Ok(probe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("python");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_python_that_is_named_but_absent_is_an_error_with_the_install_line() {
        let options = LocateOptions { python: Some("/nowhere/python".into()), assets: None };
        let error = locate(&options).unwrap_err();
        assert_eq!(error.class(), "unavailable");
        assert!(error.to_string().contains("`make libero`"), "{error}");
    }

    #[test]
    fn a_python_without_the_packages_is_told_which() {
        let dir = tempfile::tempdir().unwrap();
        let answer = r#"{"python":"3.11.7","recent":true,"missing":["mujoco"],"versions":{},"package":null}"#;
        let python = script(dir.path(), &format!("echo '{answer}'"));
        let error = locate(&LocateOptions { python: Some(python), assets: None }).unwrap_err();
        assert!(error.to_string().contains("lacks mujoco"), "{error}");
        assert!(error.to_string().contains("`make libero`"), "{error}");
    }

    #[test]
    fn a_python_that_prints_nonsense_or_fails_is_no_libero() {
        let dir = tempfile::tempdir().unwrap();
        for (text, word) in [("echo hello", "something else"), ("exit 3", "exit status: 3")] {
            let python = script(dir.path(), text);
            let error = locate(&LocateOptions { python: Some(python), assets: None }).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn assets_that_are_named_are_the_only_ones() {
        let dir = tempfile::tempdir().unwrap();
        let options = LocateOptions { python: None, assets: Some(dir.path().into()) };
        let error = find_assets(&options, None).unwrap_err().to_string();
        assert!(error.contains("--download-assets"), "{error}");

        std::fs::create_dir(dir.path().join("scenes")).unwrap();
        std::fs::write(dir.path().join(MARK), "<mujoco/>").unwrap();
        assert_eq!(find_assets(&options, None).unwrap(), dir.path().canonicalize().unwrap());
    }
}
