//! The real LIBERO behind the contract. Skipped, with the reason, where it is not installed (`make libero`).

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod libero_common;

use std::process::Command;

use libero_common::{actions, libero, renders, sources, turn};
use ndarray::{Array2, ArrayView1};
use simloop_envs::libero::{LiberoConfig, LiberoEnv, LiberoInstall, Suite, preflight};
use simloop_envs::testing::check_env;
use simloop_envs::{ActionChunk, Env, EnvError, FrameRequest, ResetOptions};

fn start(install: &LiberoInstall, config: &LiberoConfig) -> LiberoEnv {
    LiberoEnv::start(install, config).unwrap_or_else(|e| panic!("failed to {e}"))
}

fn init(task: &str, state: u32) -> ResetOptions {
    ResetOptions { task: Some(task.into()), init_state: Some(state), state: None }
}

/// Bits of everything an episode shows, and of the simulator's state at its end.
fn episode(env: &mut LiberoEnv, seed: u64, options: &ResetOptions, steps: usize) -> Vec<u64> {
    let (obs, _) = env.reset(Some(seed), options).unwrap();
    let mut bits: Vec<u64> = obs.proprio.iter().map(|v| u64::from(v.to_bits())).collect();
    for action in actions(steps, 3) {
        let step = env.step(ArrayView1::from(&action), false).unwrap();
        bits.extend(step.obs.proprio.iter().map(|v| u64::from(v.to_bits())));
        if let Some(privileged) = &step.info.privileged {
            bits.extend(privileged.values().iter().map(|v| v.to_bits()));
        }
    }
    bits.extend(env.state().unwrap().iter().map(|v| v.to_bits()));
    bits
}

#[test]
fn a_real_task_with_a_camera_meets_the_contract() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    if !renders(&install) {
        return;
    }
    let config = LiberoConfig {
        cameras: vec!["agentview".into()],
        image_size: [64, 64],
        privileged: true,
        ..LiberoConfig::default()
    };
    let mut env = start(&install, &config);
    let breaches = check_env(&mut env, &init("libero_spatial/0", 3)).unwrap();
    assert!(breaches.is_empty(), "{breaches:#?}");
    assert!(env.memory_bytes().unwrap() > 100 << 20);
}

#[test]
fn two_workers_and_any_order_give_the_same_episode_bit_for_bit() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    let config = LiberoConfig::blind("libero_spatial/4");
    let options = init("libero_spatial/4", 7);
    let one = {
        let mut env = start(&install, &config);
        episode(&mut env, 11, &options, 15)
    };
    let mut env = start(&install, &config);
    let other = episode(&mut env, 12, &options, 15);
    assert_ne!(one, other, "the seed decides where the cabinet stands");
    episode(&mut env, 5, &init("libero_object/1", 2), 15);
    assert_eq!(one, episode(&mut env, 11, &options, 15));
}

#[test]
fn instructions_states_limits_and_truth_are_those_of_the_task() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    let mut config = LiberoConfig::blind("libero_spatial/5");
    config.step_limits.insert("libero_spatial".into(), 3);
    let mut env = start(&install, &config);
    assert_eq!(env.spec().max_episode_steps, Some(3));
    let tasks = env.tasks(Suite::Spatial).unwrap();
    assert_eq!(tasks.len(), 10);
    assert_eq!(env.tasks(Suite::Ninety).unwrap().len(), 90);

    let (obs, info) = env.reset(Some(0), &init("libero_spatial/5", 0)).unwrap();
    assert_eq!(
        &*obs.instruction,
        "pick up the black bowl on the ramekin and place it on the plate"
    );
    assert_eq!(tasks[5].instruction, *obs.instruction);
    assert_eq!(info.success, Some(false));
    assert_eq!(info.metrics["init_state"], 0.0);
    let truth = info.privileged.unwrap();
    let pos = |name: &str| truth.array::<3>(&format!("{name}_pos")).unwrap();
    let (bowl, ramekin) = (pos("akita_black_bowl_1"), pos("glazed_rim_porcelain_ramekin_1"));
    // Seated under mujoco 3.2.3: 35.1 mm above the ramekin's origin.
    assert!((0.034..0.037).contains(&(bowl[2] - ramekin[2])), "{bowl:?} {ramekin:?}");
    let eef = truth.array::<3>("eef_pos").unwrap();
    for (shown, there) in obs.proprio.iter().zip(eef) {
        // Proprioception is sampled 2 ms before the step ends.
        assert!((f64::from(*shown) - there).abs() < 1e-3);
    }
    let boxes = truth.get("akita_black_bowl_1_boxes").unwrap();
    assert!(!boxes.is_empty() && boxes.len() % 10 == 0);
    for (_, len) in truth.layout().fields() {
        assert!(len > 0);
    }

    // The limit truncates on its step, stops the chunk there, and asks for a reset.
    let flat: Vec<f32> = actions(8, 1).into_iter().flatten().collect();
    let chunk = ActionChunk::new(Array2::from_shape_vec((8, 7), flat).unwrap()).unwrap();
    let steps = env.step_chunk(&chunk, FrameRequest::None).unwrap().steps;
    assert_eq!(steps.len(), 3);
    assert!(steps[2].truncated && !steps[2].terminated && !steps[1].truncated);
    let after = env.step(ArrayView1::from(&[0.0_f32; 7]), false).unwrap_err();
    assert!(matches!(after, EnvError::NeedsReset { .. }), "{after}");

    // A state that was read can be returned to; a request that cannot be met leaves the worker usable.
    env.reset(Some(1), &init("libero_spatial/5", 1)).unwrap();
    let state = env.state().unwrap();
    let options = ResetOptions { state: Some(state.clone()), ..ResetOptions::default() };
    env.reset(Some(1), &options).unwrap();
    assert_eq!(env.state().unwrap(), state);
    for wrong in [
        init("libero_spatial/10", 0),
        init("libero_sideways/0", 0),
        init("libero_spatial/5", 50),
        ResetOptions { state: Some(vec![0.0; 3]), ..ResetOptions::default() },
    ] {
        let error = env.reset(Some(1), &wrong).unwrap_err();
        assert!(matches!(error, EnvError::Config { .. }), "{error}");
    }
    env.reset(Some(1), &init("libero_spatial/5", 1)).unwrap();
}

#[test]
fn noise_on_both_outputs_does_not_reach_the_protocol() {
    use std::os::unix::fs::PermissionsExt as _;

    let _turn = turn();
    let Some(install) = libero() else { return };
    // The same worker, started by a program that shouts at the descriptors from Python and from C all the while.
    let dir = tempfile::tempdir().unwrap();
    let shouting = dir.path().join("python");
    let text = format!(
        "#!{}\nimport ctypes, os, runpy, sys, threading, time\n\
         def shout():\n    c = ctypes.CDLL(None)\n    while True:\n        \
         os.write(1, b'x' * 50000); os.write(2, b'\\x00\\xff\\n' * 20000); c.puts(b'from C'); time.sleep(0.01)\n\
         threading.Thread(target=shout, daemon=True).start()\n\
         sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n",
        install.python.display()
    );
    std::fs::write(&shouting, text).unwrap();
    std::fs::set_permissions(&shouting, std::fs::Permissions::from_mode(0o755)).unwrap();

    let config = LiberoConfig::blind("libero_spatial/0");
    let options = init("libero_spatial/0", 0);
    let loud = LiberoInstall { python: shouting, ..install.clone() };
    let loud = episode(&mut start(&loud, &config), 1, &options, 20);
    let quiet = episode(&mut start(&install, &config), 1, &options, 20);
    assert_eq!(loud, quiet);
}

#[test]
fn a_foreign_pickle_is_refused_before_it_runs() {
    let Some(install) = libero() else { return };
    // A file as `torch.save` lays it out, whose pickle would create a file when it is loaded.
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
import io, os, pickle, sys, zipfile
import numpy as np
sys.path.insert(0, sys.argv[1])
from simloop_libero.init_states import read_init_states
os.chdir(sys.argv[2])

class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))

def save(name, value):
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))

save("good", np.arange(6, dtype=np.float64).reshape(2, 3))
assert read_init_states("good").tolist() == [[0, 1, 2], [3, 4, 5]]
refused = {"evil": Evil(), "nested": [np.zeros(2), Evil()], "list": [1.0], "ints": np.zeros((2, 2), dtype=np.int64),
           "nan": np.full((1, 2), np.nan), "object": np.array([[Evil()]], dtype=object)}
for name, value in refused.items():
    save(name + ".zip", value)
    try:
        read_init_states(name + ".zip")
    except (pickle.UnpicklingError, ValueError) as error:
        print(name, "refused:", error)
    else:
        sys.exit(name + " was read")
assert not os.path.isdir("evil")
# The same file through plain pickle does run: the guard is what stops it.
pickle.loads(zipfile.ZipFile("evil.zip").read("archive/data.pkl"))
assert os.path.isdir("evil")
"#;
    let done = Command::new(&install.python)
        .args(["-c", script])
        .arg(sources())
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("mkdir"), "the refusal names what the file asked for: {said}");
}

#[test]
fn the_preflight_passes_what_is_sound_and_the_fingerprint_repeats() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    let mut config = LiberoConfig::blind("libero_spatial/5");
    config.privileged = false;
    let mut env = start(&install, &config);
    // The bowl on the ramekin, the bowl in the open drawer, cartons on the floor.
    for (task, states) in
        [("libero_spatial/5", [0, 49]), ("libero_spatial/4", [0, 5]), ("libero_object/7", [3, 30])]
    {
        let report = preflight::check_task(&mut env, task, Some(&states)).unwrap();
        assert!(report.passed() && report.notes.is_empty(), "{report:#?}");
        assert_eq!((report.checked, report.states), (2, 50));
    }
    let first = preflight::fingerprint(&mut env, &install, "libero_spatial/5").unwrap();
    let again = preflight::fingerprint(&mut env, &install, "libero_spatial/5").unwrap();
    assert_eq!(first, again);
    let lines = first.lines();
    assert!(lines.contains_key("mujoco") && lines["assets_sha256"].len() == 64, "{lines:?}");

    // A premise that does not hold is named: here nothing lies where the task file says.
    let error = preflight::check_task(&mut env, "libero_spatial/5", Some(&[50])).unwrap_err();
    assert!(matches!(error, EnvError::Config { .. }), "{error}");
}

#[test]
fn the_preflight_names_the_task_that_mujoco_3_8_1_breaks() {
    let _turn = turn();
    let Some(install) = libero() else { return };
    // `scripts/libero.sh --mujoco-3.8.1` makes it.
    let python = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../.simloop/libero-mujoco-3.8.1/bin/python");
    if !python.is_file() {
        println!("skipped: no {}; scripts/libero.sh --mujoco-3.8.1 makes it", python.display());
        return;
    }
    let mut config = LiberoConfig::blind("libero_spatial/0");
    config.privileged = false;
    let mut env = start(&LiberoInstall { python, ..install }, &config);
    let broken: Vec<_> = (0..10)
        .map(|i| {
            let task = Suite::Spatial.task(i).unwrap();
            preflight::check_task(&mut env, &task, Some(&[0])).unwrap()
        })
        .filter(|report| !report.passed())
        .collect();
    assert_eq!(broken.len(), 1, "{broken:#?}");
    assert_eq!(broken[0].task, "libero_spatial/5");
    let problems = broken[0].failures[0].problems.join("; ");
    assert!(
        problems.contains("on akita_black_bowl_1 glazed_rim_porcelain_ramekin_1"),
        "{problems}"
    );
}
