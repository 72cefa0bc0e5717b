//! `bench widowx` as a user runs it: the simulated arm, a dry run, the stand-in robot server, keys, signals, exit codes.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

mod said;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use said::{digest, text};
use serde_json::Value;

const BOX: &str = "0.15,-0.18,0.02,0.44,0.22,0.29";

fn bench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["widowx", "--task", "put the carrot on the plate", "--operator", "Kim"]);
    // A test machine may be busier than a robot would bear.
    command.args(["--max-obs-age-ms", "5000"]);
    command.args(args).arg("--output-dir").arg(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it with these keys on standard input.
fn run(dir: &Path, args: &[&str], keys: &str) -> Output {
    let mut child = bench(dir, args).spawn().unwrap();
    child.stdin.take().unwrap().write_all(keys.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_simulated_arm_puts_the_carrot_on_the_plate_and_the_scene_judges() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let args =
        ["--mock", "--unattended", "--policy", "scripted", "--trials", "3", "--workspace", BOX];
    let output = run(&folder, &args, "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("3 of 3 episodes succeeded"), "{}", text(&output));
    let labels = lines(&folder.join("labels.jsonl"));
    assert_eq!(labels.len(), 3);
    for label in &labels {
        assert_eq!(
            (&label["verdict"], &label["labeller"]),
            (&"success".into(), &"simulated scene".into())
        );
        for file in [label["video"].as_str().unwrap(), label["trajectory"].as_str().unwrap()] {
            assert!(folder.join(file).metadata().unwrap().len() > 500, "{file}");
        }
    }
    let trajectory = lines(&folder.join(labels[0]["trajectory"].as_str().unwrap()));
    assert_eq!(trajectory.len() as u64, labels[0]["steps"].as_u64().unwrap() + 1);
    assert!(trajectory[0]["sent"].is_array() && trajectory.last().unwrap()["gate"].is_array());
    let report = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(report.contains("Verdicts") && report.contains("simulated scene"));
    let info: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("eval_info.json")).unwrap())
            .unwrap();
    assert_eq!(info["labels"].as_array().unwrap().len(), 3);
    assert_eq!(info["overall"]["n_successes"], 3);
    // The same seed, the same ledger: the simulated arm keeps to the project's rule.
    let again = dir.path().join("again");
    let output = run(&again, &args, "");
    let first = run(&folder, &[&args[..], &["--resume"]].concat(), "");
    assert_eq!(digest(&output), digest(&first));
}

#[test]
fn verdicts_of_a_person_are_kept_and_void_counts_neither_way() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let args =
        ["--mock", "--policy", "hold", "--trials", "4", "--max-steps", "3", "--workspace", BOX];
    // Arm, start, verdict; the third trial is void first and then run again.
    let output = run(&folder, &args, "a\ns a\nf a\nv a\np7 a\nf".replace(' ', "").as_str());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let labels = lines(&folder.join("labels.jsonl"));
    let told: Vec<_> = labels
        .iter()
        .map(|l| {
            (
                l["trial"].as_u64().unwrap(),
                l["verdict"].as_str().unwrap().to_owned(),
                l["credit"].as_f64(),
            )
        })
        .collect();
    let expected = [
        (0, "success", Some(1.0)),
        (1, "failure", Some(0.0)),
        (2, "void", None),
        (2, "partial", Some(0.7)),
        (3, "failure", Some(0.0)),
    ];
    assert_eq!(told, expected.map(|(t, v, c)| (t, v.to_owned(), c)));
    assert!(
        labels.iter().all(|l| l["labeller"] == "Kim" && l["at"].as_str().unwrap().ends_with('Z'))
    );
    let words = text(&output);
    assert!(words.contains("1 of 4 episodes succeeded"), "{words}");
    assert!(words.contains("1 attempts were void"), "{words}");
    let ledger = lines(&folder.join("ledger.jsonl"));
    assert_eq!(ledger[2]["attempts"], 2);
    assert_eq!(ledger[2]["metrics"]["credit"]["max"], 0.7);
    // Leaving at a question keeps what there is, and --resume goes on.
    let other = dir.path().join("other");
    let left = run(&other, &args, "a\nsq");
    assert_eq!(left.status.code(), Some(1), "{}", text(&left));
    assert_eq!(lines(&other.join("ledger.jsonl")).len(), 1);
    let rest = run(&other, &[&args[..], &["--resume"]].concat(), "a\nfa\nfa\nf");
    assert_eq!(rest.status.code(), Some(0), "{}", text(&rest));
    assert_eq!(lines(&other.join("ledger.jsonl")).len(), 4);
}

#[test]
fn a_dry_run_makes_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let args = [
        "--dry-run",
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--unattended",
        "--policy",
        "random",
        "--trials",
        "2",
        "--workspace",
        BOX,
    ];
    let output = run(&folder, &args, "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("nothing was sent to a robot"), "{}", text(&output));
    assert!(listener.accept().is_err(), "somebody connected");
    // A trial that a busy machine voids is tried again, with a line of its own.
    assert!(lines(&folder.join("labels.jsonl")).len() >= 2);
}

#[test]
fn what_cannot_run_as_asked_exits_with_2_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["--host", "127.0.0.1", "--policy", "hold"], "--workspace"),
        (&["--policy", "hold", "--workspace", BOX], "--host"),
        (
            &["--host", "127.0.0.1", "--port", "1", "--policy", "hold", "--workspace", BOX],
            "Start the robot server",
        ),
        (
            &["--host", "127.0.0.1", "--policy", "hold", "--unattended", "--workspace", BOX],
            "unattended",
        ),
        (
            &["--mock", "--policy", "hold", "--workspace", "0.1,-0.2,0,0.6,0.2,0.3"],
            "its bounds win",
        ),
        (&["--mock", "--policy", "hold", "--workspace", "0.1,-0.2,0,0.4,-0.3,0.3"], "low corner"),
        (&["--mock", "--policy", "nonsense", "--workspace", BOX], "neither a policy nor a folder"),
    ];
    for (args, word) in cases {
        let output = run(&dir.path().join("x"), args, "");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(word), "{args:?}: {}", text(&output));
    }
}

/// The stand-in robot server at a port (0 takes any), or `None` after saying why there is none.
fn standin(port: u16) -> Option<(Child, u16)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = root.join(".simloop/widowx/bin/python");
    let works = Command::new(&python).args(["-c", "import lz4.frame, numpy, zmq"]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        println!(
            "skipped: no Python with pyzmq, lz4 and numpy in .simloop/widowx; scripts/widowx.sh makes it"
        );
        return None;
    }
    let mut child = Command::new(python)
        .arg("-B")
        .arg(root.join("envs/python/widowx_standin.py"))
        .args(["--speed", "50", "--port", &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let port = said["port"].as_u64().unwrap() as u16;
    Some((child, port))
}

#[test]
fn trials_against_the_robot_server_over_the_wire() {
    let Some((mut server, port)) = standin(0) else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let port = port.to_string();
    let args = [
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--policy",
        "hold",
        "--trials",
        "2",
        "--max-steps",
        "8",
        "--workspace",
        BOX,
    ];
    let output = run(&folder, &args, "a\nsa\nf");
    // The same once more on the same server: it runs, and what is not known of the server is said.
    let again = run(&dir.path().join("again"), &args, "a\nsa\nf");
    server.kill().unwrap();
    server.wait().unwrap();
    for (output, known) in [(&output, false), (&again, true)] {
        assert_eq!(output.status.code(), Some(0), "{}", text(output));
        assert!(text(output).contains("1 of 2 episodes succeeded"), "{}", text(output));
        let said = text(output).contains("initialised before this run");
        assert_eq!(said, known, "{}", text(output));
    }
    for label in lines(&folder.join("labels.jsonl")) {
        assert_eq!(label["steps"], 8);
        let steps = lines(&folder.join(label["trajectory"].as_str().unwrap()));
        let periods: Vec<f64> = steps.iter().filter_map(|s| s["period_secs"].as_f64()).collect();
        assert_eq!(periods.len(), 8);
        // Late is what a busy machine makes of it; early would be an error.
        assert!(periods.iter().all(|period| *period > 0.15), "{periods:?}");
    }
}

#[test]
fn a_server_that_is_not_back_yet_uses_up_no_attempt() {
    let Some((mut server, port)) = standin(0) else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let port_text = port.to_string();
    let args = [
        "--host",
        "127.0.0.1",
        "--port",
        &port_text,
        "--policy",
        "hold",
        "--trials",
        "1",
        "--max-attempts",
        "1",
        "--max-steps",
        "3",
        "--workspace",
        BOX,
    ];
    let mut child = bench(&folder, &args).stderr(Stdio::null()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let mut screen = BufReader::new(child.stdout.take().unwrap());
    let mut until = |word: &str| {
        let mut said = String::new();
        while !said.contains(word) {
            assert_ne!(screen.read_line(&mut said).unwrap(), 0, "{said}");
        }
        said
    };
    until("[a] arm");
    server.kill().unwrap();
    server.wait().unwrap();
    for _ in 0..3 {
        keys.write_all(b"a").unwrap();
        let said = until("[a] arm");
        assert!(said.contains("Nothing moved: no_connection"), "{said}");
    }
    let (mut server, _) = standin(port).unwrap();
    keys.write_all(b"a\ns").unwrap();
    drop(keys);
    let mut rest = String::new();
    screen.read_to_string(&mut rest).unwrap();
    let status = child.wait().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{rest}");
    let labels = lines(&folder.join("labels.jsonl"));
    assert_eq!(labels.len(), 1, "{labels:?}");
    assert_eq!((&labels[0]["attempt"], &labels[0]["verdict"]), (&1.into(), &"success".into()));
    assert_eq!(lines(&folder.join("ledger.jsonl"))[0]["attempts"], 1);
}

/// A simulated arm that is armed and in its first trial of `trials`, and the operator's keyboard.
fn armed(folder: &Path, trials: &str) -> (Child, ChildStdin) {
    let args = [
        "--mock",
        "--policy",
        "hold",
        "--trials",
        trials,
        "--max-steps",
        "500",
        "--workspace",
        BOX,
    ];
    let mut child = bench(folder, &args).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"a\n").unwrap();
    // The trial runs as soon as its video is begun.
    let started = Instant::now();
    while !folder.join("videos").exists() {
        assert!(started.elapsed() < Duration::from_mins(1), "never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    (child, stdin)
}

#[test]
fn a_signal_stops_the_arm_and_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let (child, stdin) = armed(&folder, "3");
    std::thread::sleep(Duration::from_millis(600));
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let labels = lines(&folder.join("labels.jsonl"));
    assert_eq!(labels.len(), 1, "{}", text(&output));
    assert!(labels[0]["fault"].as_str().unwrap().contains("emergency_stop"), "{labels:?}");
    drop(stdin);
}

#[test]
fn the_stop_key_ends_the_trial_and_only_arming_releases_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let (child, mut stdin) = armed(&folder, "2");
    std::thread::sleep(Duration::from_millis(800));
    // Stop; it was the policy's fault; arm again; start; leave while the second trial runs: by the stop key, void.
    stdin.write_all(b" ").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stdin.write_all(b"fa\n").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    stdin.write_all(b" ").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stdin.write_all(b"vq").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let labels = lines(&folder.join("labels.jsonl"));
    let told: Vec<_> = labels.iter().map(|l| l["verdict"].as_str().unwrap()).collect();
    assert_eq!(told, ["failure", "fault"], "{}", text(&output));
    for label in &labels {
        assert!(label["fault"].as_str().unwrap().contains("emergency_stop"), "{label}");
    }
    for label in &labels {
        let gate = lines(&folder.join(label["trajectory"].as_str().unwrap()));
        let log = gate.last().unwrap()["gate"].to_string();
        assert!(log.contains("armed by Kim") && log.contains("latched: emergency_stop"), "{log}");
    }
}
