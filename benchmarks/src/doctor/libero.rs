//! LIBERO's Python stack, its versions, initial states, assets and OpenGL, read from the disk alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use simloop_envs::EnvError;
use simloop_envs::libero::INSTALL;

use super::{Finding, Probe};

/// The pins that `make libero` installs.
const PINS: &str = include_str!("../../../envs/python/requirements-libero.txt");
/// The Python those pins have wheels for.
const PYTHON: &str = "3.11";
/// The files that the 40 tasks of spatial, object, goal and 10 read.
const ASSETS: &str = include_str!("libero_assets.txt");
/// Suites and their tasks: one file of initial states each (hf-libero 0.1.4, `libero/libero/init_files`).
const SUITES: [(&str, usize); 5] = [
    ("libero_spatial", 10),
    ("libero_object", 10),
    ("libero_goal", 10),
    ("libero_10", 10),
    ("libero_90", 90),
];
/// Packages with a row of their own, and what another version breaks.
const CORE: [(&str, &str); 5] = [
    ("hf-libero", "other tasks and initial states"),
    ("mujoco", "other physics; under 3.8.1 the premise of libero_spatial task 5 fails"),
    ("robosuite", "LIBERO needs the controllers and names of 1.4"),
    ("numpy", "robosuite 1.4.1 and numba 0.60.0 are built against numpy 1"),
    ("msgpack", "the worker speaks it"),
];

pub(super) fn judge(probe: &Probe) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &probe.python {
        Ok(python) => {
            if let Some(site) = interpreter(python, &mut findings) {
                packages(python, &site, &mut findings);
                findings.push(init_states(python, &site));
            }
        }
        Err(error) => findings.push(absent("LIBERO's Python", error, INSTALL)),
    }
    findings.push(assets(probe));
    findings.push(opengl(probe));
    findings
}

/// A thing that was looked for in vain, in the words of the one who looked.
fn absent(subject: &'static str, error: &EnvError, remedy: &str) -> Finding {
    match error {
        EnvError::Unavailable { what, remedy } => {
            Finding::fault(subject, format!("not found: {what}"), remedy)
        }
        other => Finding::fault(subject, other.to_string(), remedy),
    }
}

/// The `libero` package in the environment of this interpreter.
pub(super) fn package_beside(python: &Path) -> Option<PathBuf> {
    let (site, _) = site_packages(python.parent()?.parent()?)?;
    Some(site.join("libero")).filter(|package| package.is_dir())
}

/// Judges the interpreter and returns its `site-packages` when there is one.
fn interpreter(python: &Path, findings: &mut Vec<Finding>) -> Option<PathBuf> {
    let subject = "LIBERO's Python";
    // Not resolved: the link's own place, not its target's, is what makes a virtual environment.
    let prefix = python.parent()?.parent()?;
    let Some((site, folder_version)) = site_packages(prefix) else {
        findings.push(Finding::fault(
            subject,
            format!("{} has no site-packages", prefix.display()),
            "rm -rf .simloop/libero && make libero",
        ));
        return None;
    };
    let version = std::fs::read_to_string(prefix.join("pyvenv.cfg"))
        .ok()
        .and_then(|text| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(key, _)| matches!(key.trim(), "version" | "version_info"))
                .map(|(_, value)| value.trim().to_owned())
        })
        .unwrap_or(folder_version);
    if version == PYTHON || version.starts_with(&format!("{PYTHON}.")) {
        findings.push(Finding::ok(subject, format!("{version} in {}", python.display())));
    } else {
        findings.push(Finding::fault(
            subject,
            format!("version {version} in {}, needed {PYTHON}", python.display()),
            "rm -rf .simloop/libero && SIMLOOP_PYTHON=python3.11 make libero",
        ));
    }
    Some(site)
}

/// The package folder of a Python prefix, and the version in its name.
fn site_packages(prefix: &Path) -> Option<(PathBuf, String)> {
    let mut found: Vec<(PathBuf, String)> = std::fs::read_dir(prefix.join("lib"))
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix("python")?.to_owned();
            ["site-packages", "dist-packages"]
                .map(|folder| entry.path().join(folder))
                .into_iter()
                .find(|folder| folder.is_dir())
                .map(|folder| (folder, version))
        })
        .collect();
    found.sort();
    found.into_iter().next()
}

/// Judges versions: a row for each core package, one for all others.
fn packages(python: &Path, site: &Path, findings: &mut Vec<Finding>) {
    let installed = installed(site);
    let line = |name: &str, version: &str| {
        format!("{} -m pip install --no-deps {name}=={version}", python.display())
    };
    let mut others = Vec::new();
    for (name, needed) in pins() {
        let found = installed.get(&normalised(name));
        let core = CORE.iter().find(|(core, _)| *core == name);
        match (core, found) {
            (Some((subject, _)), Some(found)) if found == needed => {
                findings.push(Finding::ok(subject, found));
            }
            (Some((subject, breaks)), found) => {
                let found = found.map_or("not installed".to_owned(), |v| format!("version {v}"));
                findings.push(Finding::fault(
                    subject,
                    format!("{found}, needed {needed}: {breaks}"),
                    line(name, needed),
                ));
            }
            (None, found) if found.map(String::as_str) != Some(needed) => {
                let found = found.map_or("not installed", String::as_str);
                others.push((name, needed, format!("{name} {found}, needed {needed}")));
            }
            (None, _) => {}
        }
    }
    findings.push(match others.as_slice() {
        [] => Finding::ok("other packages", "as pinned"),
        [(name, needed, _), rest @ ..] => {
            let list: Vec<&str> = others.iter().map(|(_, _, text)| text.as_str()).collect();
            let more = rest.iter().map(|(name, needed, _)| format!(" {name}=={needed}"));
            let remedy = line(name, needed) + &more.collect::<String>();
            Finding::fault("other packages", list.join("; "), remedy)
        }
    });
}

/// `(name, version)` of every pin.
fn pins() -> impl Iterator<Item = (&'static str, &'static str)> {
    PINS.lines().filter(|line| !line.trim_start().starts_with(['#', '-'])).filter_map(|line| {
        let (name, rest) = line.split_once("==")?;
        Some((name.trim(), rest.split_whitespace().next()?))
    })
}

/// Versions by normalised name, from the names of the `dist-info` folders.
fn installed(site: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(site).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (package, version) = name.strip_suffix(".dist-info")?.split_once('-')?;
            Some((normalised(package), version.to_owned()))
        })
        .collect()
}

/// Package names compare without case and with `_`, `.` and `-` alike (PEP 503).
fn normalised(name: &str) -> String {
    name.to_lowercase().replace(['_', '.'], "-")
}

/// The package's data: one task description and one file of initial states per task.
fn init_states(python: &Path, site: &Path) -> Finding {
    let subject = "initial states";
    let package = site.join("libero/libero");
    let remedy = format!(
        "{} -m pip install --no-deps --force-reinstall hf-libero=={}",
        python.display(),
        pins().find(|(name, _)| *name == "hf-libero").map_or("0.1.4", |(_, version)| version)
    );
    if !package.is_dir() {
        return Finding::fault(subject, format!("none: no {}", package.display()), remedy);
    }
    let count = |folder: &str, suite: &str, suffix: &str| {
        std::fs::read_dir(package.join(folder).join(suite))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|e| e == suffix))
            .count()
    };
    for (suite, tasks) in SUITES {
        for (folder, suffix) in [("init_files", "pruned_init"), ("bddl_files", "bddl")] {
            let found = count(folder, suite, suffix);
            if found < tasks {
                return Finding::fault(
                    subject,
                    format!("{suite}: {found} .{suffix} files in {folder}, needed {tasks}"),
                    remedy,
                );
            }
        }
    }
    let tasks: usize = SUITES.iter().map(|(_, tasks)| tasks).sum();
    Finding::ok(subject, format!("{tasks} tasks in {} suites", SUITES.len()))
}

fn assets(probe: &Probe) -> Finding {
    let subject = "assets";
    let folder = match &probe.assets {
        Ok(folder) => folder,
        Err(error) => return absent(subject, error, "bench libero --download-assets"),
    };
    let needed: Vec<&str> = ASSETS.lines().filter(|line| !line.is_empty()).collect();
    let missing: Vec<&&str> = needed.iter().filter(|file| !folder.join(file).is_file()).collect();
    match missing.as_slice() {
        [] => Finding::ok(
            subject,
            format!("all {} files of the four main suites in {}", needed.len(), folder.display()),
        ),
        [first, ..] => Finding::fault(
            subject,
            format!(
                "{} of {} files missing in {}, first {first}",
                missing.len(),
                needed.len(),
                folder.display()
            ),
            "bench libero --download-assets (or export LIBERO_ASSETS=<a complete copy>)",
        ),
    }
}

/// The renderer without a screen that LIBERO's cameras would use.
fn opengl(probe: &Probe) -> Finding {
    let subject = "OpenGL";
    let has = |prefix: &str| {
        probe.library_dirs.iter().any(|folder| {
            std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
                entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix))
                    && entry.path().exists()
            })
        })
    };
    let osmesa = has("libOSMesa.so");
    let egl = has("libEGL.so") && (has("libEGL_mesa.so") || has("libEGL_nvidia.so"));
    let install = "apt-get install -y libosmesa6 (or libegl1 libegl-mesa0 libgl1-mesa-dri libgbm1)";
    match probe.env.get("MUJOCO_GL").map(String::as_str) {
        Some("osmesa") if !osmesa => Finding::fault(
            subject,
            "MUJOCO_GL=osmesa, but no libOSMesa",
            if egl { "unset MUJOCO_GL" } else { "apt-get install -y libosmesa6" },
        ),
        Some("egl") if !egl => Finding::fault(
            subject,
            "MUJOCO_GL=egl, but no libEGL with a driver",
            if osmesa {
                "unset MUJOCO_GL"
            } else {
                "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libgbm1"
            },
        ),
        Some(other) if !matches!(other, "" | "egl" | "osmesa") => Finding::fault(
            subject,
            format!("MUJOCO_GL={other}, needed egl or osmesa"),
            "unset MUJOCO_GL",
        ),
        _ => match (osmesa, egl) {
            (true, true) => Finding::ok(subject, "EGL (OSMesa too: MUJOCO_GL=osmesa)"),
            (true, false) => Finding::ok(subject, "OSMesa"),
            (false, true) => Finding::ok(subject, "EGL"),
            (false, false) => {
                Finding::fault(subject, "none: LIBERO runs without images only", install)
            }
        },
    }
}
