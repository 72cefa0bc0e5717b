//! Every fault of a worker has a name, and the next episode works.
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod bridge_common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bridge_common::{fake_worker, fault, reset_ok, rust_worker, serve_if_started};
use ndarray::{Array2, array};
use serde_json::{Value, json};
use simloop_envs::bridge::{BridgeConfig, BridgeEnv, Deadlines, OUTPUT_TAIL};
use simloop_envs::vec::ThreadedVecEnv;
use simloop_envs::{
    ActionChunk, Env, EnvError, EnvFactory, EnvId, FrameRequest, Reply, Request, ResetOptions,
    ResetRequest, VecEnv,
};

#[test]
fn worker_entry() {
    serve_if_started();
}

/// A fault, the class of the error it must give (`ok` for none), and words that the message must hold.
type Case = (&'static str, &'static str, &'static str, &'static str);

const CASES: &[Case] = &[
    ("hang", "hello", "deadline", "`hello` within 3 s"),
    ("exit_0", "hello", "worker_died", "exited with status 0"),
    ("sigsegv", "hello", "worker_died", "SIGSEGV"),
    ("exception", "hello", "simulator", "RuntimeError: an exception on purpose"),
    ("garbage", "hello", "protocol", "a frame claims"),
    ("slow_loris", "hello", "deadline", "`hello`"),
    ("prompt", "hello", "ok", ""),
    ("hang", "reset", "deadline", "`reset` within 5 s"),
    ("ignore_sigterm", "reset", "deadline", "`reset`"),
    ("sigabrt", "reset", "worker_died", "SIGABRT"),
    ("exit_3", "reset", "worker_died", "exited with status 3\nleaving early"),
    ("exception", "reset", "simulator", "raise RuntimeError"),
    ("empty_ok", "reset", "protocol", "missing field `obs`"),
    ("late_reply", "reset", "ok", ""),
    ("prompt", "reset", "ok", ""),
    ("hang", "step", "deadline", "`step` within 6 s"),
    ("ignore_sigterm", "step", "deadline", "`step`"),
    ("sigsegv", "step", "worker_died", "SIGSEGV) killed it\nthe last words of a dying worker"),
    ("sigabrt", "step", "worker_died", "SIGABRT"),
    ("sigkill", "step", "worker_died", "memory runs out"),
    ("exit_0", "step", "worker_died", "exited with status 0\nleaving early"),
    ("exception", "step", "simulator", "on purpose"),
    ("truncated", "step", "worker_died", "exited with status 0"),
    ("truncated_hang", "step", "deadline", "`step`"),
    ("length_max", "step", "protocol", "4294967295 bytes, the limit is 16777216"),
    ("garbage", "step", "protocol", "a frame claims"),
    ("not_a_map", "step", "protocol", "starts with byte 0x93"),
    ("no_id", "step", "protocol", "without `id`"),
    ("ok_and_err", "step", "protocol", "exactly one"),
    ("empty_ok", "step", "protocol", "missing field `steps`"),
    ("image_outside", "step", "protocol", "outside the 16777216 shared bytes"),
    ("slow_loris", "step", "deadline", "`step`"),
    ("late_reply", "step", "ok", ""),
    ("close_socket", "step", "worker_died", "closed its socket"),
];

fn reset(seed: u64) -> Request {
    Request::Reset(ResetRequest { seed: Some(seed), options: ResetOptions::default() })
}

fn step() -> Request {
    Request::Step(ActionChunk::new(Array2::zeros((2, 1))).unwrap(), FrameRequest::Last)
}

/// One request; the reply, or the error's class and message.
fn one(
    vec: &mut ThreadedVecEnv,
    requests: Vec<(EnvId, Request)>,
) -> Vec<(usize, Result<Reply, EnvError>)> {
    let n = requests.len();
    vec.send(requests).unwrap();
    vec.recv(n).into_iter().map(|(id, reply)| (id.0, reply)).collect()
}

#[test]
fn every_fault_is_named_and_the_next_episode_works() {
    if fake_worker(json!({})).is_none() {
        return;
    }
    let struck = Arc::new(Mutex::new(BTreeSet::new()));
    let factory: EnvFactory = Arc::new(move |id| {
        let (kind, at, ..) = CASES[id.0];
        // The first worker of a place has the fault, its successor is sound.
        let faulty = struck.lock().unwrap().insert(id);
        let config = if faulty { fault(kind, at) } else { json!({}) };
        let mut worker = fake_worker(config).expect("checked above");
        let silent = faulty && at == "hello" && ["hang", "slow_loris"].contains(&kind);
        let start = if silent { 3.0 } else { 60.0 };
        worker.deadlines = Deadlines { start, reset: 5.0, step: 3.0, close: 2.0, asleep: None };
        Ok(Box::new(BridgeEnv::start(worker)?))
    });
    let mut vec = ThreadedVecEnv::new(&factory, CASES.len(), 12).unwrap();
    let all = |request: fn() -> Request| {
        (0..CASES.len()).map(|i| (EnvId(i), request())).collect::<Vec<_>>()
    };
    let mut errors: Vec<Option<EnvError>> = vec![None; CASES.len()];
    let mut replies = one(&mut vec, all(|| reset(5)));
    let sound = replies.iter().filter(|(_, reply)| reply.is_ok()).map(|(i, _)| *i);
    replies.extend({
        let steps = sound.map(|i| (EnvId(i), step())).collect();
        one(&mut vec, steps)
    });
    for (i, reply) in replies {
        if let Err(error) = reply {
            errors[i] = Some(error);
        }
    }
    for ((kind, at, class, words), error) in CASES.iter().zip(&errors) {
        let got = error.as_ref().map_or("ok", EnvError::class);
        let message = error.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(got, *class, "{kind} at {at}: {message}");
        assert!(message.contains(words), "{kind} at {at}: {message}");
    }
    for (i, reply) in one(&mut vec, all(|| reset(6))) {
        assert!(reply.is_ok(), "{:?}: {reply:?}", CASES[i]);
    }
    for (i, reply) in one(&mut vec, all(step)) {
        let Ok(Reply::Step(outcome)) = reply else { panic!("{:?}: {reply:?}", CASES[i]) };
        assert_eq!(outcome.last().obs.proprio.as_slice().unwrap(), [6.0, 2.0]);
    }
}

#[test]
fn another_magic_or_version_is_named_on_both_sides() {
    for (key, value, words) in [
        ("magic", json!("other"), "\"other\" protocol 1"),
        ("proto", json!(2), "protocol 2, this program speaks \"simloop-bridge\" protocol 1"),
        ("proto", json!(0), "protocol 0, this program speaks \"simloop-bridge\" protocol 1"),
    ] {
        let Some(config) = fake_worker(json!({ "fault": { key: value } })) else { return };
        let error = BridgeEnv::start(config).unwrap_err();
        assert_eq!(error.class(), "handshake");
        assert!(error.is_permanent());
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn what_is_no_worker_is_named() {
    let start = |program: &str, args: &[&str]| {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        BridgeEnv::start(BridgeConfig::new(program, args, json!({}))).unwrap_err()
    };
    let error = start("no/such/program", &[]);
    assert_eq!(error.class(), "spawn");
    assert!(error.to_string().contains("no/such/program"), "{error}");
    let error = start("/bin/sh", &["-c", "echo I am a shell; exit 7"]);
    assert_eq!(error.class(), "worker_died");
    assert!(error.to_string().contains("status 7\nI am a shell"), "{error}");
    let config = BridgeConfig::new("/bin/sh", Vec::new(), Value::Null);
    assert_eq!(BridgeEnv::start(config).unwrap_err().class(), "config");
}

#[test]
fn a_rust_workers_faults_keep_their_class() {
    let faults = json!({ "1": "panic", "2": "error", "3": "abort", "4": "exit", "5": "hang" });
    let mut env = BridgeEnv::start(rust_worker(json!({ "faults": faults }))).unwrap();
    let first = env.pid();
    for (seed, class, words) in [
        (1, "panicked", "a toy panic"),
        (2, "simulator", "ToyError: on purpose\nline 1"),
        (3, "worker_died", "SIGABRT"),
        (4, "worker_died", "status 0"),
        (5, "deadline", "within 1 s"),
    ] {
        reset_ok(&mut env, seed);
        let error = env.step(array![0.0].view(), true).unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        let next = env.step(array![0.0].view(), true).unwrap_err();
        assert_eq!(next.class(), "needs_reset");
    }
    // A reset starts a fresh child.
    reset_ok(&mut env, 6);
    assert_ne!(env.pid(), first);
    assert!(env.step(array![0.0].view(), true).is_ok());
    let options = ResetOptions { task: Some("nonsense".to_owned()), ..ResetOptions::default() };
    let error = env.reset(Some(1), &options).unwrap_err();
    assert_eq!(error.class(), "config");
    assert!(error.to_string().contains("there is no task `nonsense`"), "{error}");
    let error = BridgeEnv::start(rust_worker(json!({ "refuse": "no such suite" }))).unwrap_err();
    assert!(matches!(error, EnvError::Config { detail } if detail == "no such suite"));
}

/// Whether each of its threads is stopped by a signal.
fn all_stopped(pid: u32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat[stat.rfind(')').unwrap()..].starts_with(") T")
    })
}

#[test]
fn a_sleeping_worker_is_late_at_once_and_a_busy_one_is_waited_for() {
    let mut config = rust_worker(json!({ "faults": { "1": "hang", "2": "busy" } }));
    config.deadlines.step = 600.0;
    config.deadlines.asleep = Some(0.5);
    let mut env = BridgeEnv::start(config).unwrap();
    // Asleep by itself, and stopped from outside.
    for seed in [1, 3] {
        reset_ok(&mut env, seed);
        if seed == 3 {
            let pid = env.pid();
            let stop = ["-STOP", &pid.to_string()].map(str::to_owned);
            std::process::Command::new("kill").args(stop).status().unwrap();
            // A busy machine takes its time to stop every thread.
            while !all_stopped(pid) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let error = env.step(array![0.0].view(), true).unwrap_err();
        assert_eq!(error.class(), "deadline", "{error}");
        assert!(error.to_string().contains("within 0.5 s"), "{error}");
    }
    // Two seconds of work are four times the limit.
    reset_ok(&mut env, 2);
    assert!(env.step(array![0.0].view(), true).is_ok());
}

#[test]
fn noise_on_both_outputs_neither_stalls_nor_breaks_the_protocol() {
    let steps = std::env::var("SIMLOOP_NOISE_STEPS").map_or(20, |n| n.parse().unwrap());
    let config = json!({ "noise_bytes": 10 << 20, "episode_len": steps });
    let Some(mut config) = fake_worker(config) else { return };
    config.deadlines.step = 30.0;
    let mut env = BridgeEnv::start(config).unwrap();
    reset_ok(&mut env, 5);
    for t in 1..=steps {
        let step = env.step(array![0.0].view(), true).unwrap();
        assert_eq!(step.obs.proprio[1], t as f32);
    }
}

#[test]
fn the_output_that_an_error_carries_is_bounded() {
    let config = json!({
        "noise_bytes": 1 << 20,
        "fault": { "kind": "sigabrt", "at": "step", "step": 2 },
    });
    let Some(config) = fake_worker(config) else { return };
    let mut env = BridgeEnv::start(config).unwrap();
    reset_ok(&mut env, 5);
    env.step(array![0.0].view(), true).unwrap();
    let error = env.step(array![0.0].view(), true).unwrap_err();
    let EnvError::WorkerDied { stderr, .. } = error else { panic!("{error}") };
    assert!(stderr.ends_with("the last words of a dying worker"), "{}", stderr.len());
    // A byte that is no UTF-8 becomes three.
    assert!(stderr.len() <= 3 * OUTPUT_TAIL);
}

#[test]
fn late_replies_are_never_taken_for_the_present_one() {
    let Some(config) = fake_worker(json!({
        "episode_len": 1000,
        "faults": [{ "kind": "late_reply", "at": "step" }, { "kind": "late_reply", "at": "reset" }],
    })) else {
        return;
    };
    let mut env = BridgeEnv::start(config).unwrap();
    for seed in 0..5 {
        reset_ok(&mut env, seed);
        for t in 1..=100 {
            let step = env.step(array![0.0].view(), false).unwrap();
            assert_eq!(step.obs.proprio.as_slice().unwrap(), [seed as f32, t as f32]);
        }
    }
}

#[test]
fn a_leaking_worker_shows_in_its_memory() {
    let Some(config) = fake_worker(json!({ "leak_bytes": 1 << 20 })) else { return };
    let mut env = BridgeEnv::start(config).unwrap();
    reset_ok(&mut env, 0);
    let before = env.memory_bytes().unwrap();
    for seed in 0..30 {
        reset_ok(&mut env, seed);
    }
    let grown = env.memory_bytes().unwrap() - before;
    assert!((25 << 20..40 << 20).contains(&grown), "{grown}");
}
