//! Our resets, renderless runs and images on demand against LIBERO as its users run it (`libero_reference.py`).

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod libero_common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use libero_common::{actions, libero, renders, sources, turn};
use ndarray::{Array2, ArrayView1};
use serde_json::Value;
use sha2::{Digest, Sha256};
use simloop_envs::libero::{
    FixtureSeeding, ImageTransform, LiberoConfig, LiberoEnv, LiberoInstall, ResetMode,
};
use simloop_envs::{ActionChunk, Env, FrameRequest, Observation, ResetOptions};

const SEED: u64 = 77;
const INIT_STATE: u32 = 2;

/// Asks plain LIBERO; one JSON value per line of its answer.
fn reference(install: &LiberoInstall, arguments: &[&str]) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libero_reference.py");
    let done = Command::new(&install.python)
        .arg(script)
        .arg(sources())
        .arg(&install.assets)
        .args(arguments)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn start(install: &LiberoInstall, config: &LiberoConfig) -> LiberoEnv {
    LiberoEnv::start(install, config).unwrap_or_else(|e| panic!("failed to {e}"))
}

fn at(task: &str, state: u32) -> ResetOptions {
    ResetOptions { task: Some(task.into()), init_state: Some(state), state: None }
}

#[test]
fn soft_and_hard_resets_without_a_renderer_equal_libero_bit_for_bit() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    if !renders(&install) {
        return;
    }
    // One of each kind: an opened drawer (growing initialisers), objects in contact at the start (solver warm start), a
    // stove whose burner changes colour, a scene of the long suite.
    let tasks = ["libero_spatial/4", "libero_object/0", "libero_goal/7", "libero_10/3"];
    let mut arguments = vec!["states"];
    arguments.extend(tasks);
    let theirs: BTreeMap<String, Vec<u64>> = reference(&install, &arguments)
        .into_iter()
        .map(|line| {
            let bits = line["bits"].as_array().unwrap();
            let bits = bits.iter().map(|b| b.as_u64().unwrap()).collect();
            (line["task"].as_str().unwrap().to_owned(), bits)
        })
        .collect();
    for mode in [ResetMode::Soft, ResetMode::Hard] {
        let config = LiberoConfig { reset_mode: mode, ..LiberoConfig::blind(tasks[0]) };
        let mut env = start(&install, &config);
        for task in tasks {
            // Another episode first, which leaves its traces in model and data.
            for (seed, state, steps) in [(5, 9, 12), (SEED, INIT_STATE, 20)] {
                env.reset(Some(seed), &at(task, state)).unwrap();
                for action in actions(steps, if steps == 20 { 3 } else { 8 }) {
                    env.step(ArrayView1::from(&action), false).unwrap();
                }
            }
            let ours: Vec<u64> = env.state().unwrap().iter().map(|v| v.to_bits()).collect();
            assert_eq!(ours, theirs[task], "{mode:?} {task}");
        }
    }
}

fn digest(obs: &Observation) -> String {
    let mut hasher = Sha256::new();
    for camera in ["agentview", "robot0_eye_in_hand"] {
        hasher.update(obs.images[camera].as_slice().unwrap());
    }
    format!("{:x}", hasher.finalize())
}

#[test]
fn images_on_demand_equal_those_of_cameras_that_are_always_on_byte_for_byte() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    if !renders(&install) {
        return;
    }
    let theirs: Vec<String> = reference(&install, &["images", "libero_goal/7"])[0]["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hash| hash.as_str().unwrap().to_owned())
        .collect();
    let config = LiberoConfig {
        task: "libero_goal/7".into(),
        image_size: [64, 64],
        image_transform: ImageTransform::None,
        ..LiberoConfig::default()
    };
    let mut env = start(&install, &config);
    let mut run = |frames: FrameRequest| {
        let (obs, _) = env.reset(Some(SEED), &at("libero_goal/7", INIT_STATE)).unwrap();
        let mut seen = vec![digest(&obs)];
        for chunk in actions(16, 3).chunks(8) {
            let flat: Vec<f32> = chunk.iter().flatten().copied().collect();
            let chunk = ActionChunk::new(Array2::from_shape_vec((8, 7), flat).unwrap()).unwrap();
            let steps = env.step_chunk(&chunk, frames).unwrap();
            let with_images = steps.steps.iter().filter(|s| !s.obs.images.is_empty()).count();
            assert_eq!(with_images, if frames == FrameRequest::Every { 8 } else { 1 });
            seen.push(digest(&steps.last().obs));
        }
        (seen, obs)
    };
    let (last, first) = run(FrameRequest::Last);
    assert_eq!(last, theirs);
    assert_eq!(run(FrameRequest::Every).0, theirs);

    // The transforms only move pixels: row 0 on top, and mirrored for the published models.
    let raw = &first.images["agentview"];
    for (transform, mirror) in
        [(ImageTransform::FlipVertical, false), (ImageTransform::Rot180, true)]
    {
        let mut env =
            start(&install, &LiberoConfig { image_transform: transform, ..config.clone() });
        let (obs, _) = env.reset(Some(SEED), &at("libero_goal/7", INIT_STATE)).unwrap();
        let frame = &obs.images["agentview"];
        for ((y, x, c), value) in frame.indexed_iter() {
            let from = raw[[63 - y, if mirror { 63 - x } else { x }, c]];
            assert_eq!(*value, from, "{transform:?} {y} {x}");
        }
    }
}

#[test]
fn any_trial_has_the_scene_of_the_sequential_run_of_openvla_and_openpi() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    // With an opened drawer: the number of draws per reset grows as LIBERO's list does.
    let task = "libero_spatial/4";
    for (mode, seed) in [(FixtureSeeding::Openvla, "0"), (FixtureSeeding::Openpi, "7")] {
        let theirs: Vec<[u64; 3]> = reference(&install, &["sequence", seed, task])
            .iter()
            .map(|line| {
                let bits = line["fixtures"]["wooden_cabinet_1_main"].as_array().unwrap();
                [0, 1, 2].map(|i| bits[i].as_u64().unwrap())
            })
            .collect();
        assert_eq!(theirs.len(), 4);
        assert!(theirs.windows(2).all(|pair| pair[0] != pair[1]), "scenes differ between trials");
        let config = LiberoConfig { fixture_seeding: mode, ..LiberoConfig::blind(task) };
        let mut env = start(&install, &config);
        for trial in [3, 0, 2, 3, 1] {
            let (_, info) = env.reset(Some(trial), &at(task, trial as u32)).unwrap();
            let truth = info.privileged.unwrap();
            // A body of the cabinet that is fixed to its root, which carries no shape of its own.
            let base = truth
                .array::<3>("wooden_cabinet_1_main_pos")
                .or_else(|| truth.array::<3>("wooden_cabinet_1_base_pos"));
            let ours = base.unwrap().map(f64::to_bits);
            assert_eq!(ours, theirs[trial as usize], "{mode:?} trial {trial}");
        }
    }
}
