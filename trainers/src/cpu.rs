//! CPU time of this process and of its children, from the kernel's own accounts.

use crate::TrainerError;

/// CPU seconds, user and system together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuTime {
    /// This process, all threads.
    pub own_secs: f64,
    /// Children that have ended and been waited for, and theirs.
    pub children_secs: f64,
}

impl CpuTime {
    /// What has been used so far.
    ///
    /// # Errors
    /// [`TrainerError::Config`] where `/proc` is not Linux's.
    pub fn now() -> Result<Self, TrainerError> {
        Self::of_stat("/proc/self/stat")
    }

    /// What a living process has used so far.
    ///
    /// # Errors
    /// [`TrainerError::Config`] if there is no such process.
    pub fn of(pid: u32) -> Result<Self, TrainerError> {
        Self::of_stat(&format!("/proc/{pid}/stat"))
    }

    fn of_stat(path: &str) -> Result<Self, TrainerError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| TrainerError::config(format!("read {path}: {e}")))?;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        parse(&text, ticks)
            .ok_or_else(|| TrainerError::config(format!("read {path}: not the layout of proc(5)")))
    }

    /// Own and children's together.
    pub fn total(self) -> f64 {
        self.own_secs + self.children_secs
    }
}

/// So many threads inside one operation of libtorch for as long as this lives, and as many as before afterwards. They are
/// the whole process's: no other thread may compute meanwhile.
pub(crate) struct TorchThreads {
    before: Option<i32>,
}

impl TorchThreads {
    /// `threads`; `None` leaves them as they are.
    pub(crate) fn hold(threads: Option<i32>) -> Self {
        let before = threads.map(|n| {
            let before = tch::get_num_threads();
            tch::set_num_threads(n);
            before
        });
        Self { before }
    }
}

impl Drop for TorchThreads {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            tch::set_num_threads(before);
        }
    }
}

/// CPU seconds of this process, of everything it has waited for, and of all its living descendants.
///
/// # Errors
/// [`TrainerError::Config`] where `/proc` is not Linux's.
pub fn tree_secs() -> Result<f64, TrainerError> {
    let mut total = CpuTime::now()?.total();
    let mut pids = children(std::process::id());
    while let Some(pid) = pids.pop() {
        // A descendant that has just ended is its parent's `children_secs` at the next look.
        if let Ok(time) = CpuTime::of(pid) {
            total += time.total();
        }
        pids.extend(children(pid));
    }
    Ok(total)
}

/// The living children of a process, of all its threads.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

/// Fields 14 to 17 of proc(5): utime, stime, cutime, cstime. The name in field 2 may hold blanks and brackets.
fn parse(stat: &str, ticks: f64) -> Option<CpuTime> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<f64> =
        after_name.split_whitespace().skip(11).take(4).filter_map(|f| f.parse().ok()).collect();
    let [user, system, child_user, child_system] = fields[..] else { return None };
    Some(CpuTime {
        own_secs: (user + system) / ticks,
        children_secs: (child_user + child_system) / ticks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_is_no_trap() {
        let stat = "7 (a) b) c) R 1 7 7 0 -1 4194304 90 0 0 0 150 50 20 5 20 0 1 0 9 0 0";
        assert_eq!(parse(stat, 100.0), Some(CpuTime { own_secs: 2.0, children_secs: 0.25 }));
        assert_eq!(parse("nonsense", 100.0), None);
    }

    #[test]
    fn work_shows_up() {
        let before = CpuTime::now().unwrap().own_secs;
        let mut x = 0u64;
        while CpuTime::now().unwrap().own_secs < before + 0.05 {
            x = std::hint::black_box(x.wrapping_mul(3).wrapping_add(1));
        }
        assert!(CpuTime::of(std::process::id()).unwrap().own_secs >= before + 0.05);
    }
}
