//! Where this machine keeps things, and how much it has left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create, statvfs};
use rustix::process::{Resource, getrlimit};
use simloop_envs::EnvError;
use simloop_envs::libero::{LocateOptions, find_assets, find_python};
use simloop_policies::device;

use super::libero::package_beside;

/// What libtorch says about CUDA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cuda {
    /// What became of libtorch's CUDA half.
    pub library: device::Cuda,
    /// GPUs that libtorch sees.
    pub devices: i64,
}

/// Everything the diagnosis reads: places, and measures that are no files.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The environment's variables that matter: `MUJOCO_GL`, `LIBERO_ASSETS`, …
    pub env: BTreeMap<String, String>,
    /// The libtorch folder that a build uses: `LIBTORCH`, or the checkout's.
    pub libtorch: PathBuf,
    /// The `libtorch_cpu.so` of this process; `None` where it is not known.
    pub loaded_libtorch: Option<PathBuf>,
    /// CUDA, as libtorch sees it.
    pub cuda: Cuda,
    /// The file that an NVIDIA driver provides.
    pub nvidia_driver: PathBuf,
    /// The interpreter that runs LIBERO, or why there is none.
    pub python: Result<PathBuf, EnvError>,
    /// The folder of LIBERO's assets, or why there is none.
    pub assets: Result<PathBuf, EnvError>,
    /// Folders in which the dynamic loader finds OpenGL.
    pub library_dirs: Vec<PathBuf>,
    /// The folders of `PATH`.
    pub path: Vec<PathBuf>,
    /// Bytes left where results are written.
    pub free_bytes: u64,
    /// Open files allowed to this process; `None` is no limit.
    pub open_files: Option<u64>,
    /// Whether anonymous shared memory (`memfd_create`) can be had.
    pub memfd: bool,
    /// The folder of named shared memory, used where `memfd` is not to be had.
    pub shared_memory: PathBuf,
}

impl Probe {
    /// This machine, seen from the working folder.
    pub fn here() -> Self {
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        let roots = roots();
        let set = |name: &str| env.get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let linked = Path::new(device::BUILT_AGAINST);
        let library = device::load_cuda().clone();
        let places = LocateOptions::default();
        let python = find_python(&places);
        let package = python.as_deref().ok().and_then(package_beside);
        Self {
            libtorch: set("LIBTORCH")
                .or_else(|| roots.iter().map(|r| r.join(".simloop/libtorch")).find(|p| p.exists()))
                .unwrap_or_else(|| linked.parent().unwrap_or(linked).to_owned()),
            loaded_libtorch: device::loaded_libtorch(),
            cuda: Cuda { library, devices: device::devices().cuda_devices },
            nvidia_driver: "/proc/driver/nvidia/version".into(),
            assets: find_assets(&places, package.as_deref()),
            python,
            library_dirs: library_dirs(&env),
            path: env.get("PATH").map(|p| std::env::split_paths(p).collect()).unwrap_or_default(),
            free_bytes: statvfs(".").map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize)),
            open_files: getrlimit(Resource::Nofile).current,
            memfd: memfd_create("simloop-doctor", MemfdFlags::CLOEXEC).is_ok(),
            shared_memory: "/dev/shm".into(),
            env,
        }
    }
}

/// Folders that may be the root of a checkout, nearest first: the working folder, the program's, and their parents.
fn roots() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for start in [std::env::current_dir(), std::env::current_exe()].into_iter().flatten() {
        for folder in start.ancestors() {
            if !roots.iter().any(|known| known == folder) {
                roots.push(folder.to_owned());
            }
        }
    }
    roots
}

/// Debian's, Fedora's and a GPU container's library folders, after those that the user named.
fn library_dirs(env: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let named = env.get("LD_LIBRARY_PATH").map(|p| std::env::split_paths(p).collect::<Vec<_>>());
    let arch = std::env::consts::ARCH;
    named
        .unwrap_or_default()
        .into_iter()
        .chain(
            [format!("/usr/lib/{arch}-linux-gnu"), format!("/lib/{arch}-linux-gnu")]
                .map(PathBuf::from),
        )
        .chain(
            ["/usr/lib64", "/usr/lib", "/usr/local/lib", "/usr/local/nvidia/lib64"]
                .map(PathBuf::from),
        )
        .collect()
}
