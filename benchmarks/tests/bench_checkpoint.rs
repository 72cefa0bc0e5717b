//! `bench pusht --policy FOLDER`: the same ledger however it is run, what it says of itself, and what is refused.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

#[path = "checkpoints/mod.rs"]
mod checkpoints;
mod said;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use checkpoints::{image_policy, relative_policy, robot_policy, state_policy};
use said::{digest, text};

const EPISODES: &str = "10";

fn bench(policy: &Path, dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["pusht", "--videos", "0", "--max-steps", "40", "--episodes", EPISODES, "--policy"])
        .arg(policy)
        .arg("--output-dir")
        .arg(dir)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_ledger_of_a_checkpoint_is_the_same_for_any_workers_batch_and_order() {
    let dir = tempfile::tempdir().unwrap();
    for policy in [state_policy(dir.path(), "state", 3), image_policy(dir.path(), 4)] {
        let at = |name: &str| dir.path().join(policy.file_name().unwrap()).join("runs").join(name);
        let expected =
            digest(&bench(&policy, &at("1"), &["--workers", "1", "--worker-kind", "sync"]));
        for (name, args) in [
            ("default", &[][..]),
            ("2", &["--workers", "2"]),
            ("4", &["--workers", "4", "--shuffle", "5"]),
            ("sync", &["--workers", "3", "--worker-kind", "sync", "--shuffle", "6"]),
            ("processes", &["--workers", "3", "--worker-kind", "processes", "--shuffle", "7"]),
        ] {
            assert_eq!(expected, digest(&bench(&policy, &at(name), args)), "{name}");
        }
        assert_ne!(expected, digest(&bench(&policy, &at("other"), &["--seed", "1"])));
        assert_ne!(expected, digest(&bench(&policy, &at("fewer"), &["--n-action-steps", "2"])));
    }
}

#[test]
fn a_result_names_its_weights_and_its_seconds_per_decision() {
    let dir = tempfile::tempdir().unwrap();
    let policy = state_policy(dir.path(), "runs/tiny/best", 3);
    let folder = dir.path().join("result");
    let output = bench(&policy, &folder, &[]);
    digest(&output);
    let run = json(&folder.join("run.json"));
    let hash = run["fingerprint"]["policy.sha256"].as_str().unwrap();
    assert_eq!(hash.len(), 64);
    assert_eq!(run["policy"], format!("tiny/best@{}", &hash[..12]));
    assert_eq!(run["fingerprint"]["env"], "pusht/state-v1", "chosen from the policy's inputs");
    let times = &json(&folder.join("eval_info.json"))["decision_times"];
    let [p50, p99, mean] =
        ["p50_secs", "p99_secs", "mean_secs"].map(|key| times[key].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99 && p99 < 60.0 && mean <= p99, "{times}");
    // Forty steps in chunks of four, ten episodes.
    assert_eq!(times["decisions"], 100);
    assert!(times["batches"].as_u64().unwrap() < 100, "decisions are made in batches: {times}");
    assert!(text(&output).contains("99th percentile"), "{}", text(&output));
}

#[test]
fn other_weights_are_compared_but_never_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (state_policy(dir.path(), "a", 3), state_policy(dir.path(), "b", 4));
    let (of_a, of_b) = (dir.path().join("of_a"), dir.path().join("of_b"));
    digest(&bench(&a, &of_a, &[]));
    digest(&bench(&b, &of_b, &[]));
    let resumed = bench(&b, &of_a, &["--resume"]);
    assert_eq!(resumed.status.code(), Some(2), "{}", text(&resumed));
    assert!(text(&resumed).contains("policy.sha256"), "{}", text(&resumed));
    // The same folder name with other weights in it.
    std::fs::remove_dir_all(&a).unwrap();
    state_policy(dir.path(), "a", 5);
    assert_eq!(bench(&a, &of_a, &["--resume"]).status.code(), Some(2));
    let compared = Command::new(env!("CARGO_BIN_EXE_bench"))
        .arg("compare")
        .args([&of_a, &of_b])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", text(&compared));
    assert!(text(&compared).contains("10 shared episodes"), "{}", text(&compared));
}

#[test]
fn what_is_no_fitting_checkpoint_is_refused_with_2_and_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("empty")).unwrap();
    std::fs::create_dir_all(at("pickled")).unwrap();
    std::fs::write(at("pickled/pytorch_model.bin"), b"PK").unwrap();
    std::fs::write(at("weights.pt"), b"PK").unwrap();
    std::fs::write(at("model.safetensors"), b"xx").unwrap();
    let good = state_policy(dir.path(), "run/best", 1);
    let torn = state_policy(dir.path(), "torn", 1);
    let weights = torn.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let image = image_policy(dir.path(), 1);
    for (policy, args, reason) in [
        (at("nowhere"), &[][..], "neither a policy nor a folder"),
        (at("empty"), &[], "no config.json"),
        (at("run"), &[], "best does"),
        (at("pickled"), &[], "pytorch_model.bin can run code"),
        (at("weights.pt"), &[], "can run code"),
        (at("model.safetensors"), &[], "a policy is a folder"),
        (torn, &[], "model.safetensors"),
        (robot_policy(dir.path()), &[], "joint_0_rad"),
        (relative_policy(dir.path()), &[], "convention"),
        (good.clone(), &["--observation", "pixels_agent_pos"], "5 numbers"),
        (good.clone(), &["--n-action-steps", "9"], "chunk"),
        (good.clone(), &["--device", "tpu"], "cuda:1"),
        (image.clone(), &["--image-size", "96"], "48 x 48"),
        (image, &["--observation", "state"], "2 numbers"),
    ] {
        let output = bench(&policy, &at("result"), args);
        let words = text(&output);
        assert_eq!(output.status.code(), Some(2), "{} {args:?}: {words}", policy.display());
        assert!(words.contains(reason), "{} {args:?}: {words}", policy.display());
        assert!(!at("result").exists(), "a refused run leaves no folder");
    }
    digest(&bench(&good, &at("result"), &[]));
}
