//! One ledger for every build, machine and way of running: committed digests of short PushT runs.

use simloop_benchmarks::ledger::digest;
use simloop_benchmarks::runner::{self, FolderMode, RunOptions, WorkerKind};
use simloop_benchmarks::suites::policy::Inference;
use simloop_benchmarks::suites::pusht::PushtSuite;
use simloop_envs::pusht::{MAX_EPISODE_STEPS, PushtConfig, PushtGoals};
use simloop_trainers::stop::StopFlag;

/// The digest of six episodes.
fn ledger(policy: &str, workers: usize, sync: bool, shuffle: Option<u64>) -> String {
    ledger_of(PushtConfig::default(), policy, workers, sync, shuffle)
}

/// The digest of six episodes of each task.
fn ledger_of(
    env: PushtConfig,
    policy: &str,
    workers: usize,
    sync: bool,
    shuffle: Option<u64>,
) -> String {
    let suite = PushtSuite {
        env,
        max_steps: MAX_EPISODE_STEPS,
        episodes: 6,
        seed: 0,
        policy: policy.to_owned(),
        n_action_steps: None,
        workers: WorkerKind::Threads,
        swap_instructions: false,
        inference: Inference::default(),
        fit_observation: true,
        fit_image_size: true,
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let options = RunOptions {
        dir: dir.path().join("run"),
        mode: FolderMode::New,
        workers,
        sync,
        shard: None,
        shuffle,
        max_attempts: 1,
        memory_limit_bytes: None,
        recycle_after: None,
        command: String::new(),
    };
    let mut suite = suite.build().expect("the suite exists");
    let result = runner::run(&mut suite, &options, None, &StopFlag::default()).expect("it runs");
    digest(&result.records)
}

/// The same in debug and release builds; a change of physics, seeds, experts or ledger layout changes it and must be meant.
const RANDOM: &str = "9b5fc0e3bf7d40482ee5b1ebfdc8dd4a37d006bb3e1ab0511656dab5b3bd615d";
const SCRIPTED: &str = "8fd7534f5731a8a41256413da3e007a71d003648fcca6d9b420d0f261e894842";
const TWO_GOALS: &str = "6d10f7e24ccc0472b282c28f115aaeab5edb1d48e5e7654b3d4b6366e1cd9686";

#[test]
fn random_episodes_have_the_committed_digest_however_they_are_run() {
    assert_eq!(ledger("random", 1, true, None), RANDOM);
    assert_eq!(ledger("random", 4, false, Some(3)), RANDOM);
}

#[test]
fn the_expert_s_episodes_have_the_committed_digest() {
    assert_eq!(ledger("scripted", 2, false, None), SCRIPTED);
}

#[test]
fn episodes_with_two_targets_have_the_committed_digest() {
    let env = PushtConfig { goals: PushtGoals::Two, ..PushtConfig::default() };
    assert_eq!(ledger_of(env.clone(), "scripted", 1, true, None), TWO_GOALS);
    assert_eq!(ledger_of(env, "scripted", 3, false, Some(5)), TWO_GOALS);
}
