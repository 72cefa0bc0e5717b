//! Fidelity to gym-pusht 0.1.8 on its recorded episodes.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::path::{Path, PathBuf};

use simloop_envs::pusht::{Recording, replay, replay_file, rerun};

fn golden() -> Option<PathBuf> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/pusht/golden.json");
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

#[test]
fn recorded_episodes_are_reproduced() {
    let Some(path) = golden() else { return };
    let report = replay_file(&path, None).unwrap();
    let human = &report.groups["human"];
    // The bars are 0.15 px (p50), 0.6 px (p99), 0.25 px open loop and 0.004 coverage; these are what was measured, with
    // room for nothing but rounding.
    let contact = human.one_step_contact_px;
    assert!(contact.count > 200, "{contact:?}");
    assert!(contact.p50 < 0.001 && contact.p99 < 0.001 && contact.max < 0.005, "{contact:?}");
    assert!(human.open_loop_final_max_px < 0.01, "{human:?}");
    assert!(human.max_coverage_diff < 1e-4, "{human:?}");
    for case in &report.cases {
        assert!(case.one_step_agent_px < 1e-9, "{case:?}");
        assert!(case.one_step_free_px.max < 0.001, "{case:?}");
        assert!(case.reset_diff.is_some_and(|d| d < 1e-9), "{case:?}");
        assert_ne!(case.seed_gives_requested_state, Some(false), "{case:?}");
        assert!(case.coverage_function_diff.is_some_and(|d| d < 1e-12), "{case:?}");
    }
    let all = report.groups["all"].one_step_contact_px;
    assert!(all.p50 < 0.001 && all.p90 < 0.5, "{all:?}");
    let frames = report.frames.expect("frames.npz lies beside the recording");
    assert!(frames.mean_abs_diff < 0.1 && frames.exact_pixels > 0.99, "{frames:?}");
}

/// The replay must notice an engine that is wrong: here the recorded blocks are 1 px off.
#[test]
fn a_shifted_recording_is_noticed() {
    let Some(path) = golden() else { return };
    let mut recording = Recording::read(&path).unwrap();
    recording.cases.retain(|case| case.name == "human_6");
    for pose in recording.cases[0].block_pose.iter_mut().skip(1) {
        pose[0] += 1.0;
    }
    let human = &replay(&recording).groups["human"];
    assert!(human.open_loop_final_max_px > 0.5, "{human:?}");
}

#[test]
fn our_own_recording_replays_without_any_difference() {
    let Some(path) = golden() else { return };
    let mut recording = Recording::read(&path).unwrap();
    recording.cases.truncate(2);
    let ours = rerun(&recording);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ours.json");
    std::fs::write(&file, serde_json::to_string(&ours).unwrap()).unwrap();
    let report = replay_file(&file, None).unwrap();
    assert!(report.frames.is_none());
    assert_eq!(report.groups["all"].open_loop_final_max_px, 0.0);
    assert_eq!(report.groups["all"].max_coverage_diff, 0.0);
}
