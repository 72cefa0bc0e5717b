//! The program `train` on the real demonstrations.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use simloop_policies::safetensors_io;
use simloop_trainers::checkpoint::verify;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The demonstrations, or a word on their absence.
fn demonstrations() -> Option<PathBuf> {
    let path = workspace().join("../shared/data/pusht/pusht_cchi_v7_replay.zarr");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn command(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command
        .args(["bc", "--config"])
        .arg(workspace().join("trainers/configs/smoke.toml"))
        .arg("--set")
        .arg(format!("data.path={}", data.display()))
        .arg("--output-dir")
        .arg(out)
        .args(more);
    command
}

fn run(data: &Path, out: &Path, more: &[&str]) -> Output {
    command(data, out, more).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn trains_evaluates_and_leaves_a_folder_that_explains_itself() {
    let Some(data) = demonstrations() else { return };
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("run");
    let output = run(&data, &out, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for file in [
        "resolved.toml",
        "run.json",
        "metrics.jsonl",
        "predictions.jsonl",
        "report.html",
        "evaluation.json",
        "final/model.safetensors",
        "final/config.json",
        "final/normalizer.json",
        "last/training_state/optimizer.safetensors",
    ] {
        assert!(out.join(file).exists(), "{file} is missing");
    }
    for folder in ["final", "last", "best"] {
        verify(&out.join(folder)).unwrap();
    }
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    for name in ["train/loss", "train/grad_norm", "val/loss", "val/action_mae", "eval/success_rate"]
    {
        assert!(metrics.contains(name), "{name} is missing");
    }
    let examples = std::fs::read_to_string(out.join("predictions.jsonl")).unwrap();
    assert!(examples.contains("instruction") && examples.contains("predicted"));

    // The same folder again: refused; with other settings: each is listed.
    let output = run(&data, &out, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--resume"), "{}", text(&output));
    let output =
        run(&data, &out, &["--resume", "--set", "optim.learning_rate=0.5", "--set", "seed=9"]);
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output);
    assert!(message.contains("optim.learning_rate: ") && message.contains("→ 0.5"), "{message}");
    assert!(message.contains("seed: 0 → 9"), "{message}");
}

#[test]
fn what_cannot_begin_ends_with_2_and_a_reason() {
    let Some(data) = demonstrations() else { return };
    let root = tempfile::tempdir().unwrap();
    let pickle = root.path().join("model.pt");
    std::fs::write(&pickle, b"\x80\x02}q\x00.").unwrap();
    let pickle = format!("init_from={}", pickle.display());
    for (more, part) in [
        (vec!["--set", "train.batch_sice=3"], "batch_size"),
        (vec!["--set", "train.batch_size=100000000"], "batch"),
        (vec!["--set", "device=cuda"], "GPU"),
        (vec!["--set", &pickle], "pickle"),
        (vec!["--resume"], "no run to resume"),
    ] {
        if part == "GPU" && tch::Cuda::is_available() {
            continue;
        }
        let out = root.path().join("run");
        let output = run(&data, &out, &more);
        let message = text(&output);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {message}");
        assert!(message.contains(part), "{more:?}: {message}");
        assert!(!out.join("resolved.toml").exists(), "{more:?} left a run behind");
    }
}

/// Sends `signal` once the run has made `updates` updates.
fn interrupt(mut command: Command, out: &Path, signal: &str, updates: usize) -> Output {
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let patience = Instant::now();
    let lines =
        || std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count();
    let before = lines();
    while lines() < before.max(1) + updates {
        assert!(patience.elapsed() < Duration::from_mins(2), "no update in two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(10), "the checkpoint took {:?}", asked.elapsed());
    output
}

#[test]
fn preempted_three_times_ends_in_the_weights_of_an_uninterrupted_run() {
    let Some(data) = demonstrations() else { return };
    let root = tempfile::tempdir().unwrap();
    let quiet = [
        "--set",
        "train.updates=400",
        "--set",
        "eval.every=0",
        "--set",
        "eval.final_episodes=0",
        "--set",
        "train.best_metric=val/loss",
        "--set",
        "train.log_every=1",
    ];
    let straight = root.path().join("straight");
    let output = run(&data, &straight, &quiet);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    let cut = root.path().join("cut");
    for (i, signal) in ["-TERM", "-USR1", "-INT"].into_iter().enumerate() {
        let mut more = quiet.to_vec();
        if i > 0 {
            more.push("--resume");
        }
        let output = interrupt(command(&data, &cut, &more), &cut, signal, 20);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("resume with"), "{}", text(&output));
    }
    let mut more = quiet.to_vec();
    more.push("--resume");
    let output = run(&data, &cut, &more);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for file in ["final/model.safetensors", "last/training_state/optimizer.safetensors"] {
        let [a, b] = [&straight, &cut].map(|dir| safetensors_io::load(&dir.join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
}

#[test]
fn python_reads_equal_bytes() {
    let Ok(python) = std::env::var("SIMLOOP_SAFETENSORS_PYTHON") else {
        println!("skipped: SIMLOOP_SAFETENSORS_PYTHON names no Python with safetensors and numpy");
        return;
    };
    let Some(data) = demonstrations() else { return };
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("run");
    let output = run(&data, &out, &["--set", "train.updates=5", "--set", "eval.final_episodes=0"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for file in ["final/model.safetensors", "last/training_state/optimizer.safetensors"] {
        let path = out.join(file);
        let script = "
import sys, hashlib
from safetensors.numpy import load_file
for name, array in sorted(load_file(sys.argv[1]).items()):
    print(name, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest())
";
        let read = Command::new(&python).args(["-c", script]).arg(&path).output().unwrap();
        assert!(read.status.success(), "{}", text(&read));
        let line = |(name, tensor): (&String, &tch::Tensor)| {
            let mut data = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
            tensor.copy_data_u8(&mut data, tensor.numel());
            let digest = simloop_trainers::checkpoint::hex_digest(&data);
            format!("{name} {:?} {digest}", tensor.size())
        };
        let ours: Vec<String> = safetensors_io::load(&path).unwrap().iter().map(line).collect();
        let theirs = String::from_utf8_lossy(&read.stdout);
        assert_eq!(theirs.lines().collect::<Vec<_>>(), ours);
    }
}
