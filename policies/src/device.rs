//! libtorch: which one is loaded, and CUDA when the machine has it.
//!
//! rustc drops libraries that no symbol asks for, so a program built against any libtorch links its CPU half alone and
//! CUDA has to be loaded by hand, before libtorch is asked anything: its CUDA hooks are looked up once and cached.
//! Programs call [`prepare`] first thing in `main`; the same binary then serves machines with and without a GPU.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::PolicyError;

/// The libtorch that this program needs: tch 0.24 binds exactly this release (torch-sys 0.24, `build.rs`).
pub const TORCH_VERSION: &str = "2.11.0";

/// The folder of shared libraries that this program was linked against and looks in first at run time.
pub const BUILT_AGAINST: &str = env!("SIMLOOP_LIBTORCH_LIB");

/// libtorch's CUDA half; it lies beside `libtorch_cpu.so` in builds that have one.
const CUDA_LIBRARY: &str = "libtorch_cuda.so";

/// What libtorch can use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// Threads libtorch uses inside one operation.
    pub intra_op_threads: i32,
    /// CUDA devices; 0 without CUDA.
    pub cuda_devices: i64,
}

/// What became of libtorch's CUDA half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cuda {
    /// Loaded from this file; [`devices`] says how many GPUs it sees.
    Loaded(PathBuf),
    /// This libtorch has none: a CPU build, or one installed on a machine without a GPU.
    Absent,
    /// The file is there and cannot be loaded.
    Failed {
        /// The file.
        path: PathBuf,
        /// The dynamic loader's answer.
        detail: String,
    },
}

/// What a program does before anything else: loads CUDA's half of libtorch, before anything asks libtorch about CUDA (its hooks
/// are cached at the first question), and makes the C library keep the memory of freed tensors for the next ones.
///
/// glibc hands pieces of more than 128 KiB back to the kernel as they are freed, and a training step frees thousands: the kernel then
/// spends a tenth of the step on clearing pages. At most 512 MiB are kept.
pub fn prepare() {
    load_cuda();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "mallopt is a C function")]
        // SAFETY: both are documented parameters of glibc's mallopt, with values in range; it may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_KEPT);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}

/// Freed memory at the heap's end that is kept, bytes.
const KEPT: i32 = 512 << 20;

/// The largest piece that is taken from the heap rather than from the kernel, bytes: glibc's own maximum (`HEAP_MAX / 2`).
const LARGEST_KEPT: i32 = 32 << 20;

/// Asks libtorch what it can use, CUDA included. Also proves that the library loads.
pub fn devices() -> Devices {
    load_cuda();
    Devices { intra_op_threads: tch::get_num_threads(), cuda_devices: tch::Cuda::device_count() }
}

/// The device called `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// [`PolicyError::Config`] for another name, or a GPU that libtorch does not see here.
pub fn device_called(name: &str) -> Result<tch::Device, PolicyError> {
    let index = match name {
        "cpu" => return Ok(tch::Device::Cpu),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()),
    };
    let refuse = |why: String| {
        Err(PolicyError::Config { detail: format!("use the device `{name}`: {why}") })
    };
    let Some(index) = index else { return refuse("write cpu, cuda or cuda:1".to_owned()) };
    let found = devices().cuda_devices;
    if (index as i64) < found {
        return Ok(tch::Device::Cuda(index));
    }
    refuse(format!("libtorch sees {found} CUDA devices here; `bench doctor` says why"))
}

/// Loads libtorch's CUDA half when it lies beside the CPU half. Call it first thing in `main`: a CUDA question put to
/// libtorch earlier is answered "none" for the rest of the process. Later calls return the first one's outcome.
pub fn load_cuda() -> &'static Cuda {
    static OUTCOME: OnceLock<Cuda> = OnceLock::new();
    OUTCOME.get_or_init(|| match loaded_libtorch() {
        // The real folder, not that of a link to it: libtorch_cuda finds cuDNN and the like relative to itself.
        Some(cpu) => load_beside(&cpu.canonicalize().unwrap_or(cpu)),
        None => Cuda::Absent,
    })
}

/// The `libtorch_cpu.so` of this process, as the dynamic loader opened it; the one it was linked against where the
/// process table cannot be read.
pub fn loaded_libtorch() -> Option<PathBuf> {
    // A program that refers to no symbol of libtorch would not have it among its libraries. Named, not called.
    std::hint::black_box(tch::get_num_threads as fn() -> i32);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    mapped_file(&maps, "libtorch_cpu.so").or_else(|| {
        let linked = Path::new(BUILT_AGAINST).join("libtorch_cpu.so");
        linked.exists().then_some(linked)
    })
}

/// The first file called `name` in the text of `/proc/<pid>/maps` (`proc_pid_maps(5)`).
fn mapped_file(maps: &str, name: &str) -> Option<PathBuf> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| path.file_name().is_some_and(|file| file == name))
        .map(Path::to_path_buf)
}

/// Loads the CUDA library in the folder of `cpu`, for the whole process and for good.
fn load_beside(cpu: &Path) -> Cuda {
    let path = cpu.with_file_name(CUDA_LIBRARY);
    if !path.exists() {
        return Cuda::Absent;
    }
    #[expect(
        unsafe_code,
        reason = "the initialisers of libtorch's own library run, as they do when it is linked"
    )]
    // SAFETY: the file belongs to the libtorch already mapped (same folder), and it is never unloaded.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            Cuda::Loaded(path)
        }
        Err(error) => {
            // The outer message says only that dlopen failed; its source names the library that is missing.
            let detail = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Cuda::Failed { path, detail }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_of_this_process_is_the_one_it_was_built_against() {
        let loaded = loaded_libtorch().unwrap().canonicalize().unwrap();
        let linked = Path::new(BUILT_AGAINST).join("libtorch_cpu.so").canonicalize().unwrap();
        assert_eq!(loaded, linked);
        assert!(devices().intra_op_threads >= 1);
    }

    #[test]
    fn mapped_file_finds_whole_names_with_spaces_in_the_path() {
        let maps = "7f00-7f10 r-xp 00000000 08:01 1 /opt/not_libtorch_cpu.so\n\
                    7f10-7f20 rw-p 00000000 00:00 0 \n\
                    7f20-7f30 r-xp 00000000 08:01 2 /opt/my torch/lib/libtorch_cpu.so\n";
        assert_eq!(
            mapped_file(maps, "libtorch_cpu.so").unwrap(),
            Path::new("/opt/my torch/lib/libtorch_cpu.so")
        );
        assert_eq!(mapped_file(maps, "libc10.so"), None);
    }

    #[test]
    fn cuda_is_absent_without_its_file_and_failed_with_a_broken_one() {
        let folder = std::env::temp_dir().join(format!("simloop-cuda-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let cpu = folder.join("libtorch_cpu.so");
        let absent = load_beside(&cpu);
        std::fs::write(folder.join(CUDA_LIBRARY), b"no shared library").unwrap();
        let broken = load_beside(&cpu);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(absent, Cuda::Absent);
        let Cuda::Failed { path, detail } = broken else { panic!("loaded {broken:?}") };
        assert!(path.ends_with(CUDA_LIBRARY));
        assert!(
            detail.contains("invalid ELF header") || detail.contains("file too short"),
            "{detail}"
        );
    }

    #[test]
    fn a_library_beside_the_cpu_half_is_loaded_for_the_whole_process() {
        // Any real library will do to show that the flags reach the loader: libtorch's own libc10 under CUDA's name.
        let folder = std::env::temp_dir().join(format!("simloop-cuda-ok-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(CUDA_LIBRARY);
        std::os::unix::fs::symlink(
            Path::new(BUILT_AGAINST).join("libc10.so").canonicalize().unwrap(),
            &file,
        )
        .unwrap();
        let outcome = load_beside(&folder.join("libtorch_cpu.so"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(outcome, Cuda::Loaded(file));
    }
}
