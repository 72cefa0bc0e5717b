//! `data` as a user runs it: what it prints and its exit codes.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

#[path = "common/zarr_writer.rs"]
mod zarr_writer;

use std::path::Path;
use std::process::{Command, Output};

fn data(args: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_data")).args(args).arg(path).output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[test]
fn inspect_describes_a_data_set_and_its_exit_code_says_whether_it_is_usable() {
    let folder = tempfile::tempdir().unwrap();
    zarr_writer::write_pusht(folder.path(), &[3, 5], 4);
    let fine = data(&["inspect", "--obs", "pixels_agent_pos"], folder.path());
    assert_eq!(fine.status.code(), Some(0), "{}", text(&fine));
    for word in ["2 episodes, 8 steps at 10 Hz", "pixels", "agent_x_px", "Push the T", "no fault"] {
        assert!(text(&fine).contains(word), "{word} in {}", text(&fine));
    }
    let json = data(&["inspect", "--json"], folder.path());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["steps"], &json["action"][1]["max"]), (&8.into(), &15.0.into()));
    std::fs::remove_file(folder.path().join("data/img/3.0.0.0")).unwrap();
    let torn = data(&["inspect", "--obs", "pixels"], folder.path());
    assert_eq!(torn.status.code(), Some(1), "{}", text(&torn));
    assert!(text(&torn).contains("FAULT") && text(&torn).contains("3.0.0.0"), "{}", text(&torn));
    let nothing = data(&["inspect"], &folder.path().join("data"));
    assert_eq!(nothing.status.code(), Some(2));
    assert!(text(&nothing).contains("manifest.jsonl"), "{}", text(&nothing));
}

#[test]
fn stats_are_openvlas_file() {
    let folder = tempfile::tempdir().unwrap();
    zarr_writer::write_pusht(folder.path(), &[3, 5], 4);
    let printed = data(&["stats", "--name", "toy", "--unscaled", "1"], folder.path());
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed));
    let json: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    // Actions are 0 1, 2 3, … 14 15.
    assert_eq!(json["toy"]["action"]["mean"], serde_json::json!([7.0, 8.0]));
    assert_eq!(json["toy"]["action"]["mask"], serde_json::json!([true, false]));
    assert_eq!(
        (&json["toy"]["num_transitions"], &json["toy"]["num_trajectories"]),
        (&8.into(), &2.into())
    );
    let out = folder.path().join("dataset_statistics.json");
    let written = data(
        &["stats", "--name", "toy", "--unscaled", "1", "--out", out.to_str().unwrap()],
        folder.path(),
    );
    assert_eq!(written.status.code(), Some(0), "{}", text(&written));
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(out).unwrap()).unwrap(),
        json
    );
    assert_eq!(data(&["stats", "--unscaled", "2"], folder.path()).status.code(), Some(2));
}
