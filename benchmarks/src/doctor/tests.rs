//! Faults are put into folders, links and limits; what the diagnosis then says is never written by hand.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use simloop_envs::libero::{LocateOptions, find_assets, find_python};
use simloop_policies::device;
use tempfile::TempDir;

use super::finding::report;
use super::{Cuda, Finding, Probe, Status, diagnose};

/// A machine on which everything is as it should be, in a folder.
struct Machine {
    dir: TempDir,
    probe: Probe,
}

const SITE: &str = ".simloop/libero/lib/python3.11/site-packages";
const LIBTORCH: &str = ".simloop/libtorch";
const ASSETS: &str = "shared/data/libero_assets";
const SUITES: [(&str, usize); 5] = [
    ("libero_spatial", 10),
    ("libero_object", 10),
    ("libero_goal", 10),
    ("libero_10", 10),
    ("libero_90", 90),
];

/// The many files that most faults leave alone: tasks, initial states, assets.
fn data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |relative: &str| {
        let path = dir.path().join(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    };
    for (suite, tasks) in SUITES {
        for task in 0..tasks {
            write(&format!("libero/libero/init_files/{suite}/{task}.pruned_init"));
            write(&format!("libero/libero/bddl_files/{suite}/{task}.bddl"));
        }
    }
    include_str!("libero_assets.txt").lines().for_each(|file| write(&format!("assets/{file}")));
    dir
}

impl Machine {
    /// `data` is what [`data`] made; it is linked, for speed.
    fn healthy(data: &TempDir) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let machine = Self { probe: probe(root), dir };
        for file in [
            "lib/libtorch_cpu.so",
            "lib/libc10.so",
            "lib/libtorch.so",
            "include/torch/csrc/api/include/torch/torch.h",
        ] {
            machine.write(&format!("{LIBTORCH}/{file}"), "");
        }
        machine.write(&format!("{LIBTORCH}/build-version"), "2.11.0\n");
        machine.write(".simloop/libero/bin/python", "");
        machine.write(".simloop/libero/pyvenv.cfg", "home = x\nversion = 3.11.7\n");
        let pins = include_str!("../../../envs/python/requirements-libero.txt");
        for line in pins.lines().filter(|line| line.contains("==") && !line.starts_with('#')) {
            let (name, version) = line.split_once("==").unwrap();
            machine.package(name, version.split_whitespace().next().unwrap());
        }
        for (suite, _) in SUITES {
            for folder in ["init_files", "bddl_files"] {
                let inside = format!("libero/libero/{folder}/{suite}");
                machine.link(&data.path().join(&inside), &format!("{SITE}/{inside}"));
            }
        }
        machine.link(&data.path().join("assets"), ASSETS);
        machine.write("lib/libOSMesa.so.8", "");
        for tool in ["cargo", "gcc", "g++", "make"] {
            machine.write(&format!("bin/{tool}"), "");
        }
        machine
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    fn write(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, target: &Path, relative: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn remove(&self, relative: &str) {
        let path = self.path(relative);
        if path.symlink_metadata().unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    /// Looks for LIBERO as `Probe::here` does, in this machine's folders.
    fn look_again(&mut self) {
        let places = LocateOptions {
            python: Some(self.path(".simloop/libero/bin/python")),
            assets: Some(self.path(ASSETS)),
        };
        self.probe.python = find_python(&places);
        self.probe.assets = find_assets(&places, None).map(|_| self.path(ASSETS));
    }

    /// Installs a package as pip leaves it: a `dist-info` folder, dashes written as underscores.
    fn package(&self, name: &str, version: &str) {
        let folder = format!("{SITE}/{}-{version}.dist-info", name.replace('-', "_"));
        self.write(&format!("{folder}/METADATA"), "");
    }

    /// Replaces an installed version by another.
    fn reinstall(&self, name: &str, old: &str, new: &str) {
        self.remove(&format!("{SITE}/{}-{old}.dist-info", name.replace('-', "_")));
        self.package(name, new);
    }
}

fn probe(root: &Path) -> Probe {
    Probe {
        env: [].into(),
        libtorch: root.join(LIBTORCH),
        loaded_libtorch: None,
        cuda: Cuda { library: device::Cuda::Absent, devices: 0 },
        nvidia_driver: root.join("proc/driver/nvidia/version"),
        python: Ok(root.join(".simloop/libero/bin/python")),
        assets: Ok(root.join(ASSETS)),
        library_dirs: vec![root.join("lib")],
        path: vec![root.join("bin")],
        free_bytes: 100 << 30,
        open_files: Some(1 << 20),
        memfd: true,
        shared_memory: root.join("shm"),
    }
}

fn wrong(probe: &Probe) -> Vec<Finding> {
    diagnose(probe).into_iter().filter(|finding| finding.status != Status::Ok).collect()
}

#[test]
fn a_healthy_machine_has_nothing_to_fix() {
    let data = data();
    let machine = Machine::healthy(&data);
    assert_eq!(wrong(&machine.probe), []);
    let mut text = Vec::new();
    assert_eq!(report(&diagnose(&machine.probe), &mut text).unwrap(), 0);
    assert!(String::from_utf8(text).unwrap().ends_with("0 faults, 0 warnings\n"));
}

/// What to break, and what the one finding must say: subject, a word of what was found, a word of the remedy.
type Injection = (&'static str, fn(&mut Machine), &'static str, &'static str, &'static str);

/// What to break, and the subject and a word of the remedy of the one warning.
type Slowdown = (fn(&mut Machine), &'static str, &'static str);

const FAULTS: &[Injection] = &[
    (
        "no libtorch",
        |m| m.remove(LIBTORCH),
        "libtorch",
        "is no folder, needed 2.11.0",
        "make libtorch",
    ),
    (
        "another release of libtorch",
        |m| m.write(&format!("{LIBTORCH}/build-version"), "2.9.1+cpu\n"),
        "libtorch",
        "version 2.9.1+cpu",
        "make libtorch",
    ),
    (
        "libtorch without a version",
        |m| m.remove(&format!("{LIBTORCH}/build-version")),
        "libtorch",
        "no build-version",
        "make libtorch",
    ),
    (
        "a link of libtorch that leads nowhere",
        |m| {
            m.remove(&format!("{LIBTORCH}/lib/libtorch_cpu.so"));
            symlink("gone.so", m.path(&format!("{LIBTORCH}/lib/libtorch_cpu.so"))).unwrap();
        },
        "libtorch",
        "lacks lib/libtorch_cpu.so",
        "make libtorch",
    ),
    (
        "LIBTORCH exported with another release",
        |m| {
            m.write("elsewhere/version.py", "__version__ = '2.4.0'\ncuda = None\n");
            m.probe.libtorch = m.path("elsewhere");
            m.probe.env.insert("LIBTORCH".into(), "elsewhere".into());
        },
        "libtorch",
        "version 2.4.0",
        "unset LIBTORCH",
    ),
    (
        "no virtual environment",
        |m| {
            m.remove(".simloop/libero");
            m.look_again();
        },
        "LIBERO's Python",
        "the Python that --python names",
        "make libero",
    ),
    (
        "another Python",
        |m| m.write(".simloop/libero/pyvenv.cfg", "version = 3.12.3\n"),
        "LIBERO's Python",
        "version 3.12.3",
        "SIMLOOP_PYTHON=python3.11 make libero",
    ),
    (
        "a MuJoCo that breaks a task",
        |m| m.reinstall("mujoco", "3.2.3", "3.8.1"),
        "mujoco",
        "version 3.8.1, needed 3.2.3",
        "pip install --no-deps mujoco==3.2.3",
    ),
    (
        "robosuite 1.5",
        |m| m.reinstall("robosuite", "1.4.1", "1.5.1"),
        "robosuite",
        "version 1.5.1, needed 1.4.1",
        "pip install --no-deps robosuite==1.4.1",
    ),
    (
        "numpy 2",
        |m| m.reinstall("numpy", "1.26.4", "2.1.0"),
        "numpy",
        "version 2.1.0, needed 1.26.4",
        "pip install --no-deps numpy==1.26.4",
    ),
    (
        "no LIBERO package",
        |m| m.remove(&format!("{SITE}/hf_libero-0.1.4.dist-info")),
        "hf-libero",
        "not installed",
        "pip install --no-deps hf-libero==0.1.4",
    ),
    (
        "a package that only some tasks import",
        |m| m.remove(&format!("{SITE}/bddl-1.0.1.dist-info")),
        "other packages",
        "bddl not installed",
        "pip install --no-deps bddl==1.0.1",
    ),
    (
        "a lost file of initial states",
        |m| {
            let suite = format!("{SITE}/libero/libero/init_files/libero_goal");
            m.remove(&suite);
            (0..9).for_each(|task| m.write(&format!("{suite}/{task}.pruned_init"), ""));
        },
        "initial states",
        "libero_goal: 9 .pruned_init files",
        "--force-reinstall hf-libero==0.1.4",
    ),
    (
        "no assets",
        |m| {
            m.remove(ASSETS);
            m.look_again();
        },
        "assets",
        "LIBERO's assets in",
        "bench libero --download-assets",
    ),
    (
        "assets cut short",
        |m| {
            m.remove(ASSETS);
            let files = include_str!("libero_assets.txt").lines();
            files.filter(|f| *f != "wall.xml").for_each(|f| m.write(&format!("{ASSETS}/{f}"), ""));
        },
        "assets",
        "1 of 250 files missing",
        "--download-assets",
    ),
    ("no OpenGL", |m| m.remove("lib/libOSMesa.so.8"), "OpenGL", "none", "libosmesa6"),
    (
        "MUJOCO_GL names what is not there",
        |m| {
            m.probe.env.insert("MUJOCO_GL".into(), "egl".into());
        },
        "OpenGL",
        "MUJOCO_GL=egl",
        "unset MUJOCO_GL",
    ),
    ("a full disk", |m| m.probe.free_bytes = 100 << 20, "disk", "100 MB free", "free some space"),
    (
        "a low limit of open files",
        |m| m.probe.open_files = Some(64),
        "open files",
        "64 allowed",
        "ulimit -n",
    ),
    (
        "no shared memory",
        |m| {
            m.probe.memfd = false; // and the folder of named shared memory does not exist
        },
        "shared memory",
        "no memfd",
        "--shm-size",
    ),
];

#[test]
fn each_injected_fault_is_the_one_finding_and_brings_its_remedy() {
    let data = data();
    for (name, inject, subject, found, remedy) in FAULTS {
        let mut machine = Machine::healthy(&data);
        inject(&mut machine);
        let findings = wrong(&machine.probe);
        let [finding] = findings.as_slice() else { panic!("{name}: {findings:?}") };
        assert_eq!((finding.subject, finding.status), (*subject, Status::Fault), "{name}");
        assert!(finding.found.contains(found), "{name}: found `{}`", finding.found);
        assert!(finding.remedy.contains(remedy), "{name}: remedy `{}`", finding.remedy);
        assert!(!finding.remedy.contains('\n'), "{name}: one line fixes it");
        let mut text = Vec::new();
        assert_eq!(report(&findings, &mut text).unwrap(), 1, "{name}");
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(&format!("fix: {}", finding.remedy)), "{name}: {text}");
    }
}

#[test]
fn what_only_slows_down_is_a_warning_and_exits_0() {
    let warnings: [Slowdown; 5] = [
        (|m| m.write("proc/driver/nvidia/version", ""), "CUDA", "SIMLOOP_CUDA=1 make libtorch"),
        (
            |m| {
                m.write("proc/driver/nvidia/version", "");
                let path = m.path("libtorch_cuda.so");
                m.probe.cuda.library =
                    device::Cuda::Failed { path, detail: "libcudnn.so.9: cannot open".into() };
            },
            "CUDA",
            "make libtorch",
        ),
        (|m| m.remove("bin/g++"), "build tools", "apt-get install g++"),
        (|m| m.probe.open_files = Some(512), "open files", "ulimit -n 4096"),
        (
            |m| {
                m.write("other/libtorch_cpu.so", "");
                m.probe.loaded_libtorch = Some(m.path("other/libtorch_cpu.so"));
            },
            "libtorch",
            "unset LD_LIBRARY_PATH",
        ),
    ];
    let data = data();
    for (inject, subject, remedy) in warnings {
        let mut machine = Machine::healthy(&data);
        inject(&mut machine);
        let findings = wrong(&machine.probe);
        let [finding] = findings.as_slice() else { panic!("{subject}: {findings:?}") };
        assert_eq!((finding.subject, finding.status), (subject, Status::Warn));
        assert!(finding.remedy.contains(remedy), "{finding:?}");
        assert_eq!(report(&findings, &mut Vec::new()).unwrap(), 0);
    }
}

#[test]
fn this_process_runs_the_libtorch_that_the_probe_names() {
    let findings = diagnose(&Probe::here());
    let libtorch = findings.iter().find(|f| f.subject == "libtorch").unwrap();
    assert!(libtorch.found.contains(device::TORCH_VERSION), "{libtorch:?}");
}
