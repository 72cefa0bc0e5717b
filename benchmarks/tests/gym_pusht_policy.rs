//! `benchmarks/peers/gym_pusht_policy.py`: a checkpoint of ours in gym-pusht itself begins as in `bench pusht`.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

#[path = "checkpoints/mod.rs"]
mod checkpoints;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use checkpoints::{image_policy, state_policy};
use simloop_trainers::serve::{PolicySettings, ServeConfig, Server};

/// An interpreter with gym-pusht 0.1.8, or why there is none.
fn python() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let ours = root.join(".simloop/peers/pusht/bin/python");
    let python = std::env::var_os("PEER_PYTHON").map_or(ours, PathBuf::from);
    let code =
        "import gym_pusht; from importlib.metadata import version; print(version('gym-pusht'))";
    let output =
        Command::new(&python).args(["-c", code]).env("PYGAME_HIDE_SUPPORT_PROMPT", "1").output();
    match output {
        Ok(output) if output.status.success() => {
            let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if version == "0.1.8" {
                Ok(python)
            } else {
                Err(format!("gym-pusht is {version}, not 0.1.8"))
            }
        }
        Ok(output) => {
            Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("?").to_owned())
        }
        Err(e) => Err(format!("{}: {e}", python.display())),
    }
}

fn client(python: &Path, url: &str, args: &[&str]) -> std::process::Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/gym_pusht_policy.py");
    Command::new(python)
        .arg(script)
        .args(["--url", url])
        .args(args)
        .env("SDL_VIDEODRIVER", "dummy")
        .env("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        .output()
        .unwrap()
}

#[test]
fn both_sides_begin_in_the_same_states_with_the_same_actions() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return println!("skipped: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let cases = [(state_policy(dir.path(), "state", 3), 1e-3), (image_policy(dir.path(), 4), 8.0)];
    for (policy, tolerance_px) in cases {
        let (run, json) = (policy.join("run"), policy.join("gym.json"));
        let benched = Command::new(env!("CARGO_BIN_EXE_bench"))
            .args(["pusht", "--videos", "0", "--episodes", "6", "--seed", "11", "--policy"])
            .arg(&policy)
            .arg("--output-dir")
            .arg(&run)
            .output()
            .unwrap();
        assert!(benched.status.success(), "{}", String::from_utf8_lossy(&benched.stderr));
        let (run, out) = (run.to_str().unwrap(), json.to_str().unwrap());
        let settings = PolicySettings::new(&policy);
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ServeConfig { listen, ..ServeConfig::default() };
        let server = Server::start(config, Box::new(move || settings.load())).unwrap();
        let url = format!("http://{}", server.address());
        let args = ["--episodes", "6", "--seed", "11", "--compare", run, "--out", out];
        let output = client(&python, &url, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
        let comparison = &result["comparison"];
        assert_eq!(comparison["pairs"], 6, "the seeds are those of `bench pusht`");
        // State: the same bits in. Images: pictures differ in single pixels, see the fidelity of PushT's frames. Four
        // actions make a decision: the second one's noise is the runner's too.
        let gap = comparison["first_action_max_difference_px"].as_f64().unwrap();
        assert!(gap <= tolerance_px, "{gap} px");
        let agreeing = comparison["agreeing_steps_median"].as_f64().unwrap();
        assert!(agreeing > 8.0, "{comparison}");
        println!("{comparison}");
        let wilson = result["gym_pusht"]["success_wilson95"].as_array().unwrap();
        let rate = result["gym_pusht"]["success_rate"].as_f64().unwrap();
        assert!(wilson[0].as_f64().unwrap() <= rate && rate <= wilson[1].as_f64().unwrap());
        // Another seed begins elsewhere, and a result of another seed is refused.
        let output = client(&python, &url, &["--episodes", "2", "--seed", "12", "--compare", run]);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("its seed is 11"));
        server.stop();
    }
}
