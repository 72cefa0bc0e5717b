//! Checkpoints made on the spot: tiny networks with weights drawn from a seed, so no test downloads or commits any.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "test helpers fail by panicking; not every test uses all of them"
)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use simloop_policies::checkpoint::save_policy;
use simloop_policies::normalize::Stats;
use simloop_policies::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};

/// Four rows to a batch, chunks of eight of which four are executed, two observations seen.
fn architecture(vision: &Value) -> VlaConfig {
    serde_json::from_value(json!({
        "n_obs_steps": 2,
        "chunk_size": 8,
        "inference_batch": 4,
        "execution": { "kind": "receding", "n_action_steps": 4 },
        "proprio_norm": "bounds",
        "proprio_bounds": [0.0, 512.0],
        "action_norm": "bounds",
        "action_bounds": [0.0, 512.0],
        "state": { "kind": "mlp", "width": 24 },
        "vision": vision,
        "head": {
            "kind": "flow",
            "steps": 3,
            "denoiser": { "kind": "unet1d", "down_dims": [24, 40], "step_embed_dim": 16, "n_groups": 4 },
        },
    }))
    .unwrap()
}

fn save(dir: PathBuf, io: Value, vision: &Value, seed: u64) -> PathBuf {
    let io: PolicyIo = serde_json::from_value(io).unwrap();
    let config = architecture(vision);
    let stats = |n: usize| {
        Stats::of(ndarray::Array2::from_shape_fn((2, n), |(i, _)| 512.0 * i as f32).view())
    };
    let normalizers = Normalizers::fit(
        &config,
        stats(io.proprio.len()).unwrap(),
        stats(io.action.len()).unwrap(),
    )
    .unwrap();
    let policy = VlaPolicy::new(config, io, normalizers, tch::Device::Cpu, seed).unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    save_policy(&policy, &dir).unwrap();
    dir
}

fn convention(control: &str) -> Value {
    json!({ "control": { "kind": control }, "frame": "world", "gripper": "none" })
}

/// Sees the five numbers of `obs_type="state"`.
pub(crate) fn state_policy(dir: &Path, name: &str, seed: u64) -> PathBuf {
    let io = json!({
        "cameras": {},
        "proprio": ["agent_x", "agent_y", "block_x", "block_y", "block_angle"],
        "action": ["x", "y"],
        "convention": convention("absolute_position"),
        "control_hz": 10.0,
    });
    save(dir.join(name), io, &json!({ "kind": "none" }), seed)
}

/// Sees a 48 px image that its data called `image`, and the agent.
pub(crate) fn image_policy(dir: &Path, seed: u64) -> PathBuf {
    let io = json!({
        "cameras": { "image": { "height": 48, "width": 48 } },
        "proprio": ["agent_x", "agent_y"],
        "action": ["x", "y"],
        "convention": null,
        "control_hz": null,
    });
    let vision = json!({ "kind": "cnn", "channels": [16, 16], "strides": [4, 2] });
    save(dir.join("image"), io, &vision, seed)
}

/// Was trained on a robot: seven numbers in, joint targets out.
pub(crate) fn robot_policy(dir: &Path) -> PathBuf {
    let names: Vec<String> = (0..7).map(|i| format!("joint_{i}_rad")).collect();
    let io = json!({
        "cameras": {}, "proprio": names, "action": names,
        "convention": convention("joint_position"), "control_hz": 20.0,
    });
    save(dir.join("robot"), io, &json!({ "kind": "none" }), 0)
}

/// Fits PushT in all but the meaning of its actions.
pub(crate) fn relative_policy(dir: &Path) -> PathBuf {
    let io = json!({
        "cameras": {},
        "proprio": ["agent_x", "agent_y", "block_x", "block_y", "block_angle"],
        "action": ["x", "y"],
        "convention": convention("delta_pose_metric"),
        "control_hz": 10.0,
    });
    save(dir.join("relative"), io, &json!({ "kind": "none" }), 0)
}
