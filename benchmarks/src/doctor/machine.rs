//! What the machine offers: disk, shared memory, open files, build tools.

use rustix::fs::statvfs;

use super::{Finding, Probe};

/// Below this a run of a suite cannot keep its videos: 500 episodes at about 0.3 MB, a report and a ledger, with room.
const DISK_FAULT_BYTES: u64 = 512 << 20;
/// Below this LIBERO's environment (1.2 GB) or a build (2.5 GB) does not fit.
const DISK_WARN_BYTES: u64 = 4 << 30;
/// A worker costs its parent about 8 descriptors (socket, pipes, shared memory, process); this is room for 24.
const OPEN_FILES_FAULT: u64 = 256;
/// The usual default of Linux distributions; room for about 100 workers.
const OPEN_FILES_WARN: u64 = 1024;
/// Two 256x256 RGB frames for each of 16 workers, in 8 slots.
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

pub(super) fn judge(probe: &Probe) -> Vec<Finding> {
    vec![disk(probe), shared_memory(probe), open_files(probe), build_tools(probe)]
}

fn disk(probe: &Probe) -> Finding {
    let found = format!("{} free where results are written", size(probe.free_bytes));
    let remedy = "free some space, or name another folder with --output-dir";
    if probe.free_bytes < DISK_FAULT_BYTES {
        Finding::fault("disk", format!("{found}, needed {}", size(DISK_FAULT_BYTES)), remedy)
    } else if probe.free_bytes < DISK_WARN_BYTES {
        let more = size(DISK_WARN_BYTES);
        Finding::warn("disk", format!("{found}; an installation or a build needs {more}"), remedy)
    } else {
        Finding::ok("disk", found)
    }
}

fn size(bytes: u64) -> String {
    if bytes < 1 << 30 {
        format!("{} MB", bytes >> 20)
    } else {
        format!("{:.1} GB", bytes as f64 / f64::from(1 << 30))
    }
}

fn shared_memory(probe: &Probe) -> Finding {
    if probe.memfd {
        return Finding::ok("shared memory", "memfd");
    }
    let folder = &probe.shared_memory;
    let free = statvfs(folder).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let remedy = "allow memfd_create, or give the container room: --shm-size=1g";
    let found = format!("no memfd; {} in {}", size(free), folder.display());
    if free < SHARED_MEMORY_BYTES {
        Finding::fault("shared memory", found, remedy)
    } else {
        Finding::warn("shared memory", found, remedy)
    }
}

fn open_files(probe: &Probe) -> Finding {
    let Some(limit) = probe.open_files else {
        return Finding::ok("open files", "no limit");
    };
    let found = format!("{limit} allowed");
    let remedy = "ulimit -n 4096";
    if limit < OPEN_FILES_FAULT {
        Finding::fault("open files", format!("{found}, needed {OPEN_FILES_FAULT}"), remedy)
    } else if limit < OPEN_FILES_WARN {
        Finding::warn("open files", format!("{found}: few workers fit"), remedy)
    } else {
        Finding::ok("open files", found)
    }
}

/// The tools that `make build` calls; a program that is built already runs without them.
fn build_tools(probe: &Probe) -> Finding {
    let has = |tool: &str| probe.path.iter().any(|folder| folder.join(tool).is_file());
    if !has("cargo") {
        return Finding::warn(
            "build tools",
            "no cargo in PATH",
            "install Rust from https://rustup.rs, then open a new shell",
        );
    }
    for (tool, package) in [("gcc", "gcc"), ("g++", "g++"), ("make", "make")] {
        if !has(tool) {
            return Finding::warn(
                "build tools",
                format!("no {tool} in PATH"),
                format!("apt-get install {package}"),
            );
        }
    }
    Finding::ok("build tools", "cargo, gcc, g++, make")
}
