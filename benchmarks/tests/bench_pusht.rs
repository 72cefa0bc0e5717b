//! `bench pusht` as a user runs it: the same ledger however it is run, resume after a kill, worker deaths, exit codes.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod said;

use said::{digest, text};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const EPISODES: usize = 24;

fn bench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["pusht", "--videos", "0", "--episodes"]);
    command.arg(EPISODES.to_string()).args(args).arg("--output-dir").arg(dir);
    if !args.contains(&"--policy") {
        command.args(["--policy", "random"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    digest(&bench(&dir.path().join("run"), args).output().unwrap())
}

/// (task, trial) of every whole line.
fn recorded(dir: &Path) -> Vec<(String, u64)> {
    let ledger = std::fs::read_to_string(dir.join("ledger.jsonl")).unwrap_or_default();
    let complete = ledger.rfind('\n').map_or("", |end| &ledger[..=end]);
    let key = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        (record["task"].as_str().unwrap().to_owned(), record["trial"].as_u64().unwrap())
    };
    complete.lines().map(key).collect()
}

/// Living processes of which `pid` is an ancestor.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let pids = list.split_whitespace().filter_map(|p| p.parse::<u32>().ok());
            open.extend(pids.clone());
            found.extend(pids);
        }
    }
    found
}

fn alive(pid: u32) -> bool {
    // A zombie has ended; its parent is to blame if it stays.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

fn kill(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_mins(1), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_ledger_is_the_same_for_any_workers_order_and_kind() {
    let expected = run(&["--workers", "1", "--worker-kind", "sync"]);
    for args in [
        &["--workers", "4"][..],
        &["--workers", "3", "--shuffle", "7"],
        &["--workers", "1", "--worker-kind", "processes"],
        &["--workers", "2", "--worker-kind", "processes", "--shuffle", "8", "--recycle-after", "3"],
    ] {
        assert_eq!(expected, run(args), "{args:?}");
    }
    assert_ne!(expected, run(&["--seed", "1"]), "another seed is another result");
}

#[test]
fn a_killed_run_resumes_to_the_same_ledger_and_leaves_no_orphan() {
    let expected = run(&[]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let mut kills = 0;
    let slow = ["--worker-kind", "processes", "--workers", "2", "--resume", "--max-attempts", "3"];
    while kills < 3 {
        let known = recorded(&folder).len();
        let mut child: Child = bench(&folder, &slow).spawn().unwrap();
        wait_for("a new record", || {
            recorded(&folder).len() > known || child.try_wait().unwrap().is_some()
        });
        let workers = descendants(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        wait_for("the orphans to end", || !workers.iter().any(|pid| alive(*pid)));
        kills += 1;
    }
    assert!(
        recorded(&folder).len() < EPISODES,
        "the test must kill before the end to show anything"
    );
    assert_eq!(expected, digest(&bench(&folder, &slow).output().unwrap()));
    let records = recorded(&folder);
    assert_eq!(records.len(), EPISODES);
    assert_eq!(records.iter().collect::<BTreeSet<_>>().len(), EPISODES);
}

#[test]
fn killed_workers_cost_nothing_but_time() {
    let expected = run(&[]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    // Workers die often here, so an episode may be unlucky more than twice.
    let args = ["--worker-kind", "processes", "--workers", "2", "--max-attempts", "50"];
    let mut child = bench(&folder, &args).spawn().unwrap();
    let mut kills = 0;
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(150));
        if let Some(pid) = descendants(child.id()).first() {
            kill(*pid);
            kills += 1;
        }
        if kills >= 8 {
            break;
        }
    }
    let output = child.wait_with_output().unwrap();
    assert!(kills > 0, "{}", text(&output));
    assert_eq!(expected, digest(&output));
    let ledger = std::fs::read_to_string(folder.join("ledger.jsonl")).unwrap();
    assert!(ledger.contains("worker_died"), "faults are noted: {ledger}");
}

#[test]
fn shards_merge_into_the_whole() {
    let expected = run(&[]);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for shard in ["0/3", "1/3", "2/3"] {
        digest(&bench(&at(&shard[..1]), &["--shard", shard]).output().unwrap());
    }
    let merge = |inputs: &[&str], out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command
            .arg("merge")
            .args(inputs.iter().map(|i| at(i)))
            .arg("--output-dir")
            .arg(at(out))
            .output()
            .unwrap()
    };
    assert_eq!(expected, digest(&merge(&["0", "1", "2"], "all")));
    digest(&bench(&at("other"), &["--seed", "9"]).output().unwrap());
    let refused = merge(&["0", "other"], "mixed");
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("seed: 0 -> 9"), "{}", text(&refused));
}

#[test]
fn a_folder_with_a_run_is_refused_and_changes_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    digest(&bench(&folder, &[]).output().unwrap());
    let again = bench(&folder, &[]).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("--resume"), "{}", text(&again));
    let changed =
        bench(&folder, &["--resume", "--seed", "5", "--max-steps", "10"]).output().unwrap();
    assert_eq!(changed.status.code(), Some(2));
    let message = text(&changed);
    assert!(
        message.contains("seed: 0 -> 5") && message.contains("max_steps: 300 -> 10"),
        "{message}"
    );
    digest(&bench(&folder, &["--overwrite", "--seed", "5"]).output().unwrap());
    // Nothing of the run before counts, its time neither.
    let sessions = std::fs::read_to_string(folder.join("sessions.jsonl")).unwrap();
    assert_eq!(sessions.lines().count(), 1);
}

#[test]
fn what_cannot_run_as_asked_exits_with_2_and_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (policy, hint) in
        [("nonsense", "scripted"), ("ws://127.0.0.1:1", "ws://127.0.0.1:1: Connection refused")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_bench"))
            .args(["pusht", "--policy", policy, "--output-dir"])
            .arg(dir.path().join("x"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(hint), "{}", text(&output));
    }
    let typo =
        Command::new(env!("CARGO_BIN_EXE_bench")).args(["pusht", "--polcy", "x"]).output().unwrap();
    assert_eq!(typo.status.code(), Some(2));
    assert!(
        text(&typo).contains("--policy"),
        "a typo is answered with the nearest name: {}",
        text(&typo)
    );
}

#[test]
fn ctrl_c_finishes_cleanly_and_can_be_resumed() {
    let expected = run(&[]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let mut child =
        bench(&folder, &["--worker-kind", "processes", "--workers", "1"]).spawn().unwrap();
    wait_for("a record", || !recorded(&folder).is_empty() || child.try_wait().unwrap().is_some());
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("--resume"), "{}", text(&output));
    assert!(folder.join("report.html").exists());
    assert_eq!(expected, digest(&bench(&folder, &["--resume"]).output().unwrap()));
}

#[test]
fn a_run_until_decided_stops_at_the_same_episode_for_any_workers() {
    // The expert solves everything, so `above one half` is decided after a few episodes.
    let until = ["--policy", "scripted", "--until-decided", "--target", "0.5"];
    let alone = run(&[&until[..], &["--workers", "1"]].concat());
    assert_eq!(alone, run(&[&until[..], &["--workers", "4"]].concat()));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    digest(&bench(&folder, &until).output().unwrap());
    let decided = recorded(&folder).len();
    assert!((4..EPISODES).contains(&decided), "{decided} episodes");
}

#[test]
fn a_comparison_pairs_what_is_shared_and_refuses_other_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    digest(&bench(&a, &["--policy", "scripted"]).output().unwrap());
    digest(&bench(&b, &[]).output().unwrap());
    digest(&bench(&c, &["--max-steps", "50"]).output().unwrap());
    let compare = |x: &Path, y: &Path| {
        Command::new(env!("CARGO_BIN_EXE_bench")).arg("compare").arg(x).arg(y).output().unwrap()
    };
    let better = compare(&a, &b);
    assert!(
        better.status.success() && text(&better).contains("A (scripted) is better"),
        "{}",
        text(&better)
    );
    assert!(text(&compare(&b, &b)).contains("no difference"));
    let refused = compare(&b, &c);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("max_steps: 300 -> 50"), "{}", text(&refused));
}

#[test]
fn with_two_targets_a_swapped_instruction_leads_to_the_wrong_one() {
    let dir = tempfile::tempdir().unwrap();
    let (right, swapped) = (dir.path().join("right"), dir.path().join("swapped"));
    let two = ["--two-goals", "--policy", "scripted"];
    digest(&bench(&right, &two).output().unwrap());
    digest(&bench(&swapped, &[&two[..], &["--swap-instructions"]].concat()).output().unwrap());
    let (a, b) = (recorded(&right), recorded(&swapped));
    assert_eq!(a.iter().collect::<BTreeSet<_>>(), b.iter().collect::<BTreeSet<_>>());
    assert_eq!(a.len(), 2 * EPISODES, "so many episodes of each task");
    // Same seeds and rules, so the two runs are paired; the expert listens, so all is lost.
    let compared = Command::new(env!("CARGO_BIN_EXE_bench"))
        .arg("compare")
        .args([&right, &swapped])
        .output()
        .unwrap();
    let words = text(&compared);
    assert!(compared.status.success(), "{words}");
    assert!(words.contains("48 shared episodes") && words.contains("0/48"), "{words}");
    assert!(words.contains("p < 0.0001"), "{words}");
    let one_target = bench(&dir.path().join("x"), &["--swap-instructions"]).output().unwrap();
    assert_eq!(one_target.status.code(), Some(2), "{}", text(&one_target));
}
