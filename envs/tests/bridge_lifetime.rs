//! No worker outlives its parent, and none leaves a zombie or a descriptor behind.
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod bridge_common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bridge_common::{alive, fake_worker, fault, reset_ok, rust_worker, serve_if_started, within};
use ndarray::array;
use serde_json::json;
use simloop_envs::bridge::{BridgeConfig, BridgeEnv, ENV_BRIDGE};
use simloop_envs::{Env, ResetOptions};

const ROLE: &str = "SIMLOOP_TEST_ROLE";
const PIDS: &str = "SIMLOOP_TEST_PIDS";

/// Descriptors and children are counted for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rounds(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

fn this_binary(entry: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([entry, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn worker_entry() {
    serve_if_started();
}

/// In a process of its own: a parent with workers, idle and hanging, that waits to be killed.
#[test]
fn parent_entry() {
    if std::env::var(ROLE).as_deref() != Ok("parent") || std::env::var_os(ENV_BRIDGE).is_some() {
        return;
    }
    let mut configs = vec![
        (rust_worker(json!({})), false),
        (rust_worker(json!({ "faults": { "1": "hang" } })), true),
    ];
    configs.extend(fake_worker(json!({})).map(|config| (config, false)));
    configs.extend(fake_worker(fault("ignore_sigterm", "step")).map(|config| (config, true)));
    let start = |(mut config, hangs): (BridgeConfig, bool)| {
        config.deadlines.step = 600.0;
        let mut env = BridgeEnv::start(config).unwrap();
        reset_ok(&mut env, 1);
        let pid = env.pid();
        let thread = std::thread::spawn(move || {
            if hangs {
                drop(env.step(array![0.0].view(), true));
            }
            std::thread::sleep(Duration::from_mins(10));
            drop(env);
        });
        (pid, thread)
    };
    let started: Vec<_> = configs.into_iter().map(start).collect();
    let pids: Vec<String> = started.iter().map(|(pid, _)| pid.to_string()).collect();
    let path = std::env::var(PIDS).unwrap();
    std::fs::write(format!("{path}.new"), pids.join(" ")).unwrap();
    std::fs::rename(format!("{path}.new"), path).unwrap();
    std::thread::sleep(Duration::from_mins(10));
}

#[test]
fn a_killed_parent_leaves_no_orphan() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds("SIMLOOP_ORPHAN_ROUNDS", 5) {
        let path = folder.path().join(round.to_string());
        let mut parent = this_binary("parent_entry", "parent").env(PIDS, &path).spawn().unwrap();
        assert!(within(Duration::from_mins(1), || path.exists()), "the parent did not start");
        let pids = pids(&path);
        assert!(pids.len() >= 2 && pids.iter().all(|pid| alive(*pid)));
        parent.kill().unwrap();
        parent.wait().unwrap();
        let killed = Instant::now();
        let gone = within(Duration::from_secs(10), || !pids.iter().any(|pid| alive(*pid)));
        assert!(gone, "round {round}: {pids:?}");
        slowest = slowest.max(killed.elapsed());
    }
    println!("slowest round: no worker left after {slowest:?}");
}

fn pids(path: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn restarts_leak_neither_descriptors_nor_zombies() {
    let _alone = alone();
    drop(BridgeEnv::start(rust_worker(json!({}))).unwrap());
    let before = descriptors();
    let faults = json!({ "1": "abort", "2": "hang" });
    let restarts = rounds("SIMLOOP_RESTARTS", 200);
    for i in 0..restarts {
        let mut config = rust_worker(json!({ "faults": faults }));
        config.deadlines.step = 0.05;
        let mut env = BridgeEnv::start(config).unwrap();
        let seed = u64::from(i % 4);
        reset_ok(&mut env, seed);
        let stepped = env.step(array![0.0].view(), true);
        assert!(matches!(seed, 1 | 2) == stepped.is_err() || seed == 0 || seed == 3);
        let pid = env.pid();
        drop(env);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "worker {i} was not collected");
    }
    let after = descriptors();
    assert!(after.abs_diff(before) <= 4, "{before} descriptors before, {after} after");
    assert_eq!(zombies(), Vec::<u32>::new());
    println!("{restarts} restarts: {before} descriptors before, {after} after");
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Dead children of this process that nobody has collected.
fn zombies() -> Vec<u32> {
    let me = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let dead = pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or("").split(' ');
        fields.next() == Some("Z") && fields.next() == Some(&me)
    });
    dead.collect()
}

#[test]
fn a_worker_started_by_a_temporary_thread_survives_it() {
    let _alone = alone();
    let start = || BridgeEnv::start(rust_worker(json!({}))).unwrap();
    let mut env = std::thread::spawn(start).join().unwrap();
    reset_ok(&mut env, 1);
    std::thread::sleep(Duration::from_millis(200));
    assert!(env.step(array![0.0].view(), true).is_ok());
}

/// In a process of its own: asks for a death signal, says so, waits.
#[test]
fn mortal_entry() {
    if std::env::var(ROLE).as_deref() == Ok("mortal") {
        let kill = rustix::process::Signal::KILL;
        rustix::process::set_parent_process_death_signal(Some(kill)).unwrap();
        std::fs::write(std::env::var(PIDS).unwrap(), "ready").unwrap();
        std::thread::sleep(Duration::from_mins(10));
    }
}

#[test]
fn without_the_spawner_thread_a_worker_would_die_with_the_thread_that_started_it() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ready");
    let ready = path.clone();
    let start = move || {
        let child = this_binary("mortal_entry", "mortal").env(PIDS, &ready).spawn().unwrap();
        assert!(within(Duration::from_secs(30), || ready.exists()));
        child
    };
    let mut child = std::thread::spawn(start).join().unwrap();
    assert!(within(Duration::from_secs(30), || !alive(child.id())));
    child.wait().unwrap();
}

#[test]
fn grandchildren_go_with_their_worker() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for (die, class) in [(false, "ok"), (true, "worker_died")] {
        let path = folder.path().join(class);
        let Some(config) = fake_worker(json!({ "fault": {
            "kind": "grandchildren", "at": "step", "pids": path, "die": die,
        } })) else {
            return;
        };
        let mut env = BridgeEnv::start(config).unwrap();
        reset_ok(&mut env, 1);
        // The grandchildren hold the socket open: the worker's death is seen all the same.
        let stepped = env.step(array![0.0].view(), true);
        assert_eq!(stepped.err().map_or("ok", |error| error.class()), class);
        let pids = pids(&path);
        assert_eq!(pids.len(), 2);
        assert!(die || pids.iter().all(|pid| alive(*pid)));
        drop(env);
        assert!(within(Duration::from_secs(10), || !pids.iter().any(|pid| alive(*pid))));
    }
}

#[test]
fn a_worker_that_does_not_close_is_killed() {
    let _alone = alone();
    for kind in ["hang", "ignore_sigterm", "slow_loris"] {
        let Some(mut config) = fake_worker(fault(kind, "close")) else { return };
        config.deadlines.close = 0.2;
        let mut env = BridgeEnv::start(config).unwrap();
        env.reset(Some(1), &ResetOptions::default()).unwrap();
        let pid = env.pid();
        drop(env);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{kind}");
    }
}
