//! Unmodified `openpi-client` and OpenVLA's REST client against the program `serve`: they get the chunks of this process.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::{ArcArray1, Array2, Array3};
use serde_json::{Value, json};
use simloop_envs::{EnvId, Info, Observation, SeedTree};
use simloop_policies::checkpoint::{load_policy, save_policy};
use simloop_policies::normalize::Stats;
use simloop_policies::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use simloop_policies::{ActMode, ActRequest, Policy as _};

const DECISIONS: usize = 6;
const SIDE: usize = 32;
const TOKEN: &str = "a-token-of-this-test";

/// A tiny policy with LIBERO's inputs and outputs: two cameras, eight numbers, chunks of four, two observations.
fn checkpoint(dir: &Path) -> PathBuf {
    let side = json!({ "height": SIDE, "width": SIDE });
    let names = |n: usize| (0..n).map(|i| format!("x{i}")).collect::<Vec<_>>();
    let io: PolicyIo = serde_json::from_value(json!({
        "cameras": { "agentview": side, "robot0_eye_in_hand": side },
        "proprio": names(8), "action": names(7), "convention": null, "control_hz": 20.0,
    }))
    .unwrap();
    let config: VlaConfig = serde_json::from_value(json!({
        "n_obs_steps": 2, "chunk_size": 8, "inference_batch": 4,
        "execution": { "kind": "receding", "n_action_steps": 4 },
        "state": { "kind": "mlp", "width": 16 },
        "vision": { "kind": "cnn", "channels": [16, 16], "strides": [4, 2] },
        "head": { "kind": "flow", "steps": 3, "denoiser":
            { "kind": "unet1d", "down_dims": [24, 40], "step_embed_dim": 16, "n_groups": 4 } },
    }))
    .unwrap();
    let stats = |n| Stats::of(Array2::from_shape_fn((2, n), |(i, _)| i as f32).view()).unwrap();
    let normalizers = Normalizers::fit(&config, stats(8), stats(7)).unwrap();
    let policy = VlaPolicy::new(config, io, normalizers, tch::Device::Cpu, 5).unwrap();
    let folder = dir.join("run/best");
    std::fs::create_dir_all(&folder).unwrap();
    save_policy(&policy, &folder).unwrap();
    folder
}

/// As `serve_clients.py` makes them.
fn observation(i: usize) -> Observation {
    let frame = |camera: usize| {
        Array3::from_shape_fn((SIDE, SIDE, 3), |(y, x, c)| {
            ((i * 37 + y * 3 + x * 5 + c * 11 + camera * 101) % 256) as u8
        })
        .into_shared()
    };
    Observation {
        images: [("agentview".to_owned(), frame(0)), ("robot0_eye_in_hand".to_owned(), frame(1))]
            .into(),
        proprio: (0..8)
            .map(|k| (0.25 * i as f64 + 0.5 * k as f64) as f32)
            .collect::<ArcArray1<f32>>(),
        instruction: Arc::from("put the bowl on the plate"),
    }
}

/// The program, on a port of its own; ended when dropped.
struct Served(Child, u16);

impl Served {
    fn start(folder: &Path, token: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_serve"));
        command
            .arg(folder)
            .args(["--port", "0"])
            .stdout(Stdio::piped())
            .env_remove("SIMLOOP_TOKEN");
        if let Some(token) = token {
            command.env("SIMLOOP_TOKEN", token);
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.rsplit_once("127.0.0.1:").unwrap().1.split('/').next().unwrap();
        Self(child, port.trim().parse().unwrap())
    }

    /// SIGTERM; how long it took to end, and how.
    fn terminate(mut self) -> (Duration, Option<i32>) {
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.0.wait().unwrap();
        (begun.elapsed(), status.code())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".simloop/peers/serve/bin/python");
    let code = "from openpi_client import websocket_client_policy; import json_numpy, requests";
    match Command::new(&python).args(["-c", code]).output() {
        Ok(output) if output.status.success() => Ok(python),
        Ok(output) => {
            Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("?").to_owned())
        }
        Err(_) => Err("no openpi-client here: run scripts/serve_clients.sh".to_owned()),
    }
}

/// Chunks of decision 0, 1, … of one session that is shown these windows.
fn expected(folder: &Path, session: &str, windows: &[Vec<Observation>]) -> Vec<Vec<Vec<f32>>> {
    let mut policy = load_policy(folder, tch::Device::Cpu).unwrap();
    let noise = SeedTree::new(0).child("serve").child(session);
    let info = Info::default();
    let mut chunks = Vec::new();
    for (i, recent) in windows.iter().enumerate() {
        let request = ActRequest {
            env: EnvId(0),
            obs: recent.last().unwrap(),
            recent,
            info: &info,
            noise_seed: noise.index(i as u64).seed(),
        };
        let step = policy.act(&[request], ActMode::Deterministic).unwrap().remove(0);
        chunks.push(step.chunk.view().outer_iter().map(|row| row.to_vec()).collect());
    }
    chunks
}

fn numbers(value: &Value) -> Vec<Vec<Vec<f32>>> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn unmodified_clients_get_the_chunks_of_the_policy_in_this_process() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return println!("skipped: {why}"),
    };
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let folder = checkpoint(dir.path());
    let each: Vec<Vec<Observation>> = (0..DECISIONS).map(|i| vec![observation(i)]).collect();
    let chunks = expected(&folder, "", &each);
    for token in [None, Some(TOKEN)] {
        let served = Served::start(&folder, token);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve_clients.py");
        let output = Command::new(&python)
            .arg(script)
            .args([served.1.to_string(), DECISIONS.to_string()])
            .args(token)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let got: Value = serde_json::from_slice(&output.stdout).unwrap();
        let openpi = &got["openpi"];
        assert_eq!(numbers(&openpi["chunks"]), chunks, "openpi's client, bit for bit");
        let refusal = openpi["refusal"].as_str().unwrap();
        assert!(
            refusal.contains("observation/image") && refusal.contains("status 422"),
            "{refusal}"
        );
        let label = openpi["metadata"]["policy"]["label"].as_str().unwrap();
        assert!(label.starts_with("run/best@"), "{label}");
        // Without a session every request is a first one.
        let openvla = &got["openvla"];
        for (i, alone) in each.iter().enumerate() {
            let first = &expected(&folder, "", std::slice::from_ref(alone))[0];
            assert_eq!(
                openvla["alone"][i],
                json!(first[0].iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
            );
            assert_eq!(openvla["double"][i], openvla["alone"][i]);
        }
        let first = &expected(&folder, "", &each[..1])[0];
        let oft: Vec<Vec<f32>> = serde_json::from_value(openvla["oft"].clone()).unwrap();
        assert_eq!(&oft, first, "OpenVLA-OFT's list of actions");
        // A session deals out four actions, then decides on the last two observations.
        let windows = [vec![observation(0)], vec![observation(3), observation(4)]];
        let dealt: Vec<Vec<f32>> = expected(&folder, "arm", &windows).concat();
        let session: Vec<Vec<f32>> = serde_json::from_value(openvla["session"].clone()).unwrap();
        assert_eq!(session, dealt[..DECISIONS]);
        assert_eq!(openvla["refused"], 422);
        let (took, code) = served.terminate();
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

#[test]
fn the_program_says_why_it_does_not_start_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let folder = checkpoint(dir.path());
    let short = dir.path().join("short");
    std::fs::write(&short, "secret").unwrap();
    for (args, why) in [
        (vec!["--host", "0.0.0.0"], "token"),
        (vec!["--token-file", short.to_str().unwrap()], "at least 16"),
        (vec!["--device", "tpu"], "cuda:1"),
        (vec!["--n-action-steps", "99"], "n_action_steps"),
        (vec!["--key", "image.top=x"], "image.agentview"),
        (vec!["--max-batch", "0"], "max_batch"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_serve"))
            .arg(&folder)
            .args(["--port", "0"])
            .args(&args)
            .env_remove("SIMLOOP_TOKEN")
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {words}");
        assert!(words.contains(why), "{args:?}: {words}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_serve")).arg(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
