//! HDF5 files in the layouts of robomimic, LIBERO, robosuite and D4RL, against h5py (`golden/hdf5_sums.py`).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]

use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde_json::Value;
use simloop_trainers::data::hdf5::{D4rl, D4rlOptions, ObsTiming, Robomimic, RobomimicOptions};
use simloop_trainers::data::{DemoSource, Frames};

fn sample(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: no sample `{}`", path.display());
    None
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hdf5_sums.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn sum<'a>(values: impl IntoIterator<Item = &'a f32>) -> f64 {
    values.into_iter().map(|v| f64::from(*v)).sum()
}

fn near(got: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() < 1e-6 * expected.abs().max(1.0), "{got} {expected}");
}

fn raw(frames: &Frames) -> &[simloop_envs::Frame] {
    match frames {
        Frames::Raw(frames) => frames,
        Frames::Encoded(_) => panic!("HDF5 holds pixels"),
    }
}

#[test]
fn gzip_chunks_read_as_h5py_reads_them() {
    let Some(path) = sample("robomimic_gzip_image.hdf5") else { return };
    let golden = &golden()["robomimic"];
    let options = RobomimicOptions {
        timing: ObsTiming::Before,
        rotate_images: Some(false),
        ..RobomimicOptions::default()
    };
    let source = Robomimic::open(&path, &options).unwrap();
    assert_eq!(source.spec().proprio.len(), 8);
    assert_eq!(source.masks()["train"], [0, 2]);
    for (i, meta) in source.episodes().iter().enumerate() {
        let expected = &golden["demos"][&meta.id];
        let episode = source.read(i, true).unwrap();
        assert_eq!(&*episode.instruction, golden["language"].as_str().unwrap());
        assert_eq!(episode.len() as u64, expected["rows"].as_u64().unwrap());
        near(sum(&episode.actions), &expected["actions"]);
        near(sum(episode.proprio.slice(ndarray::s![.., ..6])), &expected["ee_states"]);
        near(sum(episode.proprio.slice(ndarray::s![.., 6..])), &expected["gripper_states"]);
        let frames = raw(&episode.images["agentview"]);
        let pixels: u64 = frames.iter().flat_map(|f| f.iter()).map(|v| u64::from(*v)).sum();
        assert_eq!(pixels, expected["agentview"].as_u64().unwrap());
        let corner: Vec<u8> = frames[3].slice(ndarray::s![0, 1, ..]).to_vec();
        assert_eq!(serde_json::json!(corner), expected["corner"]);
    }
    assert_eq!(source.episodes().len(), 3);
}

#[test]
fn raw_libero_pairs_an_observation_with_the_next_action_and_turns_images() {
    let Some(path) = sample("robomimic_gzip_image.hdf5") else { return };
    let golden = &golden()["robomimic"]["demos"]["demo_1"];
    let source = Robomimic::open(&path, &RobomimicOptions::default()).unwrap();
    assert_eq!(source.spec().format, "libero_hdf5");
    let episode = source.read(1, true).unwrap();
    assert_eq!(episode.len() as u64 + 1, golden["rows"].as_u64().unwrap());
    near(sum(&episode.actions), &golden["actions_from_1"]);
    near(sum(episode.proprio.slice(ndarray::s![.., 6..])), &golden["gripper_states_to_last"]);
    let corner: Vec<u8> =
        raw(&episode.images["agentview"])[3].slice(ndarray::s![0, 1, ..]).to_vec();
    assert_eq!(serde_json::json!(corner), golden["turned_corner"]);
}

#[test]
fn robosuites_own_recording_has_states_for_proprio() {
    let wipe = "robosuite_wipe/robosuite/models/assets/demonstrations/wipe/panda/demo.hdf5";
    let Some(path) = sample(wipe) else { return };
    let source = Robomimic::open(&path, &RobomimicOptions::default()).unwrap();
    let episode = source.read(0, true).unwrap();
    assert_eq!((episode.actions.dim(), episode.proprio.dim()), ((174, 6), (174, 15)));
    near(sum(&episode.actions), &golden()["wipe"]["actions"]);
    near(sum(&episode.proprio), &golden()["wipe"]["states"]);
}

#[test]
fn d4rl_episodes_end_at_terminals_or_timeouts() {
    let Some(path) = sample("d4rl_layout_door/door-demos-v1.hdf5") else { return };
    let golden = &golden()["door"];
    let source = D4rl::open(&path, &D4rlOptions::default()).unwrap();
    let lengths: Vec<usize> = source.episodes().iter().map(|e| e.len).collect();
    assert_eq!(serde_json::json!(lengths), golden["lengths"]);
    let (mut actions, mut observations) = (0.0, 0.0);
    for i in 0..lengths.len() {
        let episode = source.read(i, false).unwrap();
        actions += sum(&episode.actions);
        observations += sum(&episode.proprio);
        if i == 1 {
            let first: Vec<f64> = episode.proprio.row(0).iter().map(|v| f64::from(*v)).collect();
            assert_eq!(serde_json::json!(first), golden["second_first"]);
        }
    }
    near(actions, &golden["actions"]);
    near(observations, &golden["observations"]);
}

/// `actions[t, 0] * 100 - 1` and `ee_states[t, 0]` of the fixtures: the rows that were paired.
fn pairs(actions: &Array2<f32>, proprio: &Array2<f32>) -> Vec<(i32, i32)> {
    let rows = actions.outer_iter().zip(proprio.outer_iter());
    rows.map(|(a, p)| ((a[0] * 100.0).round() as i32 - 1, p[0] as i32)).collect()
}

#[test]
fn demo_10_follows_demo_9_and_holes_are_fine() {
    let source = Robomimic::open(&fixture("libero.hdf5"), &RobomimicOptions::default()).unwrap();
    let ids: Vec<&str> = source.episodes().iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["demo_0", "demo_2", "demo_9", "demo_10"]);
    assert_eq!(source.masks()["train"], [0, 3]);
    assert_eq!(source.spec().control_hz, Some(20.0));
    let cameras: Vec<_> = source.spec().cameras.keys().collect();
    assert_eq!(cameras, ["agentview", "robot0_eye_in_hand"]);
    let mask = RobomimicOptions { mask: Some("valid".into()), ..RobomimicOptions::default() };
    let source = Robomimic::open(&fixture("libero.hdf5"), &mask).unwrap();
    let ids: Vec<&str> = source.episodes().iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["demo_2", "demo_9"]);
    let mask = RobomimicOptions { mask: Some("test".into()), ..RobomimicOptions::default() };
    let error = Robomimic::open(&fixture("libero.hdf5"), &mask).unwrap_err().to_string();
    assert!(error.contains("`test`") && error.contains("valid"), "{error}");
}

#[test]
fn the_observation_before_an_action_is_found_in_both_conventions() {
    let read = |name: &str, timing| {
        let options = RobomimicOptions { timing, ..RobomimicOptions::default() };
        let source = Robomimic::open(&fixture(name), &options).unwrap();
        let episode = source.read(2, true).unwrap(); // demo_9, four rows
        let seen = raw(&episode.images["agentview"])
            .iter()
            .map(|f| f[[7, 9, 0]]) // turned: the file's pixel (0, 0)
            .collect::<Vec<_>>();
        assert_eq!(seen.len(), source.episodes()[2].len);
        (pairs(&episode.actions, &episode.proprio), seen)
    };
    let after = (vec![(1, 0), (2, 1), (3, 2)], vec![0, 1, 2]);
    let before = (vec![(0, 0), (1, 1), (2, 2), (3, 3)], vec![0, 1, 2, 3]);
    assert_eq!(read("libero.hdf5", ObsTiming::Auto), after);
    assert_eq!(read("libero.hdf5", ObsTiming::Before), before);
    assert_eq!(read("regenerated.hdf5", ObsTiming::Auto), before);
    assert_eq!(read("regenerated.hdf5", ObsTiming::After), after);
}

#[test]
fn actions_that_do_nothing_are_left_out_on_request() {
    let options = RobomimicOptions { drop_noops: true, ..RobomimicOptions::default() };
    let source = Robomimic::open(&fixture("regenerated.hdf5"), &options).unwrap();
    let episode = source.read(0, false).unwrap(); // demo_0: row 3 of six does nothing
    assert_eq!(source.episodes()[0].len, 5);
    assert_eq!(pairs(&episode.actions, &episode.proprio), [(0, 0), (1, 1), (2, 2), (4, 4), (5, 5)]);
    let source = Robomimic::open(&fixture("libero.hdf5"), &options).unwrap();
    let episode = source.read(0, false).unwrap();
    assert_eq!(pairs(&episode.actions, &episode.proprio), [(1, 0), (2, 1), (4, 3), (5, 4)]);
}

#[test]
fn steps_after_the_last_flag_make_an_episode_too() {
    let source = D4rl::open(&fixture("d4rl.hdf5"), &D4rlOptions::default()).unwrap();
    let lengths: Vec<usize> = source.episodes().iter().map(|e| e.len).collect();
    assert_eq!(lengths, [3, 4, 3]);
    assert_eq!(source.read(1, false).unwrap().actions[[0, 0]], 6.0);
}

#[test]
fn a_key_that_is_missing_is_answered_with_those_that_are_there() {
    let options =
        RobomimicOptions { proprio: Some(vec!["joint".into()]), ..RobomimicOptions::default() };
    let error = Robomimic::open(&fixture("libero.hdf5"), &options).unwrap_err().to_string();
    assert!(error.contains("`joint`") && error.contains("ee_states"), "{error}");
    let error = Robomimic::open(&fixture("d4rl.hdf5"), &RobomimicOptions::default()).unwrap_err();
    assert!(error.to_string().contains("data"), "{error}");
}
