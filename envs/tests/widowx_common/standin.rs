//! The stand-in robot server as a child process, and arms and settings for tests.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use simloop_envs::widowx::safety::{Limits, Workspace};
use simloop_envs::widowx::{
    Consent, Deadlines, EmergencyStop, RobotClient, Session, WidowXConfig, WidowXEnv,
};

/// A stand-in that ends with this value.
pub(crate) struct StandIn {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(crate) port: u16,
}

impl StandIn {
    /// Starts one that takes `speed` times less time for its long motions.
    pub(crate) fn start(python: &Path, speed: f64, faults: &Value) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/widowx_standin.py");
        let mut child = Command::new(python)
            .arg("-B")
            .arg(script)
            .args(["--speed", &speed.to_string(), "--faults", &faults.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let port = said["port"].as_u64().unwrap() as u16;
        Self { child, stdin, stdout, port }
    }

    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn set(&mut self, faults: &Value) {
        self.ask(&json!({ "do": "set", "faults": faults }));
    }

    pub(crate) fn restart(&mut self) {
        self.ask(&json!({ "do": "restart" }));
    }

    pub(crate) fn clear(&mut self) {
        self.ask(&json!({ "do": "clear" }));
    }

    /// What was executed: (seconds, key, values).
    pub(crate) fn log(&mut self) -> Vec<(f64, String, Vec<f64>)> {
        let log = self.ask(&json!({ "do": "log" }));
        log["log"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| {
                let values = line[2].as_array().into_iter().flatten();
                (
                    line[0].as_f64().unwrap(),
                    line[1].as_str().unwrap().to_owned(),
                    values.map(|v| v.as_f64().unwrap()).collect(),
                )
            })
            .collect()
    }

    pub(crate) fn state(&mut self) -> Value {
        self.ask(&json!({ "do": "state" }))
    }

    pub(crate) fn client(&self, deadlines: Deadlines, stop: EmergencyStop) -> RobotClient {
        let params = config().params();
        RobotClient::new("127.0.0.1", self.port, params, deadlines, stop).unwrap()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A box inside of OpenVLA's bounds.
pub(crate) fn workspace() -> Workspace {
    Workspace::new([0.15, -0.18, 0.02], [0.44, 0.22, 0.29]).unwrap()
}

/// OpenVLA's settings with small images.
pub(crate) fn config() -> WidowXConfig {
    WidowXConfig {
        image_size: [32, 32],
        ..WidowXConfig::openvla("put the carrot on the plate", Limits::at_5_hz(workspace()))
    }
}

/// Deadlines that a test can wait for.
pub(crate) fn quick() -> Deadlines {
    Deadlines {
        connect: Duration::from_millis(1500),
        obs: Duration::from_secs(2),
        step: Duration::from_secs(2),
        first_step: Duration::from_secs(5),
        move_extra: Duration::from_secs(2),
        reset: Duration::from_secs(6),
        init: Duration::from_secs(8),
        reopen: Duration::from_secs(4),
        ..Deadlines::default()
    }
}

pub(crate) fn consent() -> Consent {
    Consent::of("test")
}

/// An environment on the stand-in, with consent for one trial.
pub(crate) fn env(
    standin: &StandIn,
    config: WidowXConfig,
    deadlines: Deadlines,
    stop: &EmergencyStop,
    session: &Session,
) -> WidowXEnv {
    session.consent(consent());
    let arm = Box::new(standin.client(deadlines, stop.clone()));
    WidowXEnv::new(config, arm, stop.clone(), session.clone(), None).unwrap()
}
