//! libtorch and CUDA.

use std::path::Path;

use simloop_policies::device::{Cuda, TORCH_VERSION};

use super::{Finding, Probe};

/// What a build links (torch-sys 0.24 `build.rs`) and what it compiles against.
const PARTS: [&str; 4] = [
    "lib/libtorch_cpu.so",
    "lib/libc10.so",
    "lib/libtorch.so",
    "include/torch/csrc/api/include/torch/torch.h",
];

pub(super) fn judge(probe: &Probe) -> Vec<Finding> {
    vec![libtorch(probe), cuda(probe)]
}

fn libtorch(probe: &Probe) -> Finding {
    let folder = &probe.libtorch;
    let remedy = if probe.env.get("LIBTORCH").is_some_and(|v| !v.is_empty()) {
        "unset LIBTORCH && make libtorch"
    } else {
        "make libtorch"
    };
    let fault = |found: String| Finding::fault("libtorch", found, remedy);
    if !folder.is_dir() {
        return fault(format!("none: {} is no folder, needed {TORCH_VERSION}", folder.display()));
    }
    let Some(version) = version(folder) else {
        return fault(format!("{} has no build-version, needed {TORCH_VERSION}", folder.display()));
    };
    // A local suffix such as +cpu or +cu130 names the build, not another release.
    if version.split('+').next() != Some(TORCH_VERSION) {
        return fault(format!("version {version} in {}, needed {TORCH_VERSION}", folder.display()));
    }
    // `exists` follows links, so a link to a deleted file counts as missing.
    if let Some(part) = PARTS.iter().find(|part| !folder.join(part).exists()) {
        return fault(format!("{version} in {} lacks {part}", folder.display()));
    }
    let real = |path: &Path| path.canonicalize().ok();
    let wanted = real(&folder.join(PARTS[0]));
    match probe.loaded_libtorch.as_deref().and_then(real) {
        Some(loaded) if wanted.as_ref() != Some(&loaded) => Finding::warn(
            "libtorch",
            format!(
                "{version} in {}, but this program runs {}",
                folder.display(),
                loaded.display()
            ),
            "unset LD_LIBRARY_PATH and build again: make build",
        ),
        _ => Finding::ok("libtorch", format!("{version} in {}", folder.display())),
    }
}

/// The release in a libtorch folder: `build-version` in libtorch's own layout, `version.py` in the Python package.
fn version(folder: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned()).filter(|v| !v.is_empty());
    }
    let text = std::fs::read_to_string(folder.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim().trim_matches(['\'', '"']).to_owned())
}

fn cuda(probe: &Probe) -> Finding {
    let driver = probe.nvidia_driver.exists();
    match &probe.cuda.library {
        Cuda::Loaded(_) if probe.cuda.devices > 0 => {
            Finding::ok("CUDA", format!("{} GPUs", probe.cuda.devices))
        }
        Cuda::Loaded(path) if driver => Finding::warn(
            "CUDA",
            format!("{} is loaded and sees no GPU", path.display()),
            "check that `nvidia-smi` lists a GPU and that CUDA_VISIBLE_DEVICES is not empty",
        ),
        Cuda::Loaded(_) => Finding::ok("CUDA", "library loaded, no NVIDIA driver: the CPU is used"),
        Cuda::Failed { path, detail } if driver => Finding::warn(
            "CUDA",
            format!("{} does not load: {detail}", path.display()),
            "rm -rf .simloop/libtorch && make libtorch",
        ),
        Cuda::Absent if driver => Finding::warn(
            "CUDA",
            "an NVIDIA driver, but a libtorch without CUDA: the CPU is used",
            "SIMLOOP_CUDA=1 make libtorch",
        ),
        Cuda::Absent | Cuda::Failed { .. } => {
            Finding::ok("CUDA", "no NVIDIA driver: the CPU is used")
        }
    }
}
