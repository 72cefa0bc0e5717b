//! Children for the bridge's tests: the test binary itself as a Rust worker, and the Python fake worker.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::{Array3, ArrayView1};
use serde_json::{Value, json};
use simloop_envs::bridge::{BridgeConfig, BridgeEnv, Deadlines, ENV_BRIDGE, serve};
use simloop_envs::testing::CountingEnv;
use simloop_envs::{
    Env, EnvError, EnvSpec, Frame, ImageSpace, Info, Observation, Privileged, PrivilegedLayout,
    ResetOptions, Step,
};

/// The name of the test that turns into a worker when the bridge starts it.
pub const ENTRY: &str = "worker_entry";

/// A counting env with two cameras of different sizes and a privileged state, and faults by seed.
pub struct ToyEnv {
    inner: CountingEnv,
    spec: EnvSpec,
    layout: Arc<PrivilegedLayout>,
    faults: BTreeMap<u64, String>,
    fault: Option<String>,
    seed: u64,
}

impl ToyEnv {
    pub fn new(config: &Value) -> Self {
        let inner = CountingEnv::new(config["episode_len"].as_u64().unwrap_or(50) as u32);
        let mut spec = inner.spec().clone();
        spec.observation.images = BTreeMap::from([
            ("front".to_owned(), ImageSpace { height: 6, width: 5 }),
            ("wrist".to_owned(), ImageSpace { height: 3, width: 8 }),
        ]);
        spec.observation.proprio.high[1] = f32::INFINITY;
        spec.versions.insert("toy".to_owned(), "1.2".to_owned());
        let layout = Arc::new(PrivilegedLayout::new([("position_m", 3), ("angle_rad", 1)]));
        let faults = config["faults"].as_object().into_iter().flatten();
        let faults =
            faults.map(|(seed, kind)| (seed.parse().unwrap(), kind.as_str().unwrap().to_owned()));
        let faults = faults.collect();
        Self { inner, spec, layout, faults, fault: None, seed: 0 }
    }

    fn strike(&self) -> Result<(), EnvError> {
        match self.fault.as_deref() {
            None => Ok(()),
            Some("panic") => panic!("a toy panic"),
            Some("abort") => std::process::abort(),
            Some("exit") => std::process::exit(0),
            Some("hang") => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            Some("busy") => {
                let started = Instant::now();
                while started.elapsed() < Duration::from_secs(2) {
                    std::hint::spin_loop();
                }
                Ok(())
            }
            Some("error") => Err(EnvError::Simulator {
                kind: "ToyError".to_owned(),
                message: "on purpose".to_owned(),
                trace: "line 1".to_owned(),
            }),
            Some(other) => panic!("unknown fault {other}"),
        }
    }

    fn dress(&self, obs: &mut Observation, info: &mut Info) {
        let t = obs.proprio[1] as usize;
        if !obs.images.is_empty() {
            let camera = |name: &str| {
                let ImageSpace { height, width } = self.spec.observation.images[name];
                pattern(self.seed, t, name.len(), height as usize, width as usize)
            };
            obs.images = ["front", "wrist"].map(|n| (n.to_owned(), camera(n))).into();
        }
        let values = Arc::from([0.1, 1.0 / 3.0, -f64::from(obs.proprio[1]), f64::MIN_POSITIVE]);
        info.privileged = Privileged::new(Arc::clone(&self.layout), values);
    }
}

/// Pixels that differ by seed, time, camera and place; `fake_worker.py` draws the same.
pub fn pattern(seed: u64, t: usize, salt: usize, height: usize, width: usize) -> Frame {
    let pixel = |(y, x, c)| (seed as usize * 7 + t * 13 + salt * 31 + y * 17 + x * 5 + c * 3) as u8;
    Array3::from_shape_fn((height, width, 3), pixel).into_shared()
}

impl Env for ToyEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        self.seed = seed.unwrap_or(self.seed + 1);
        self.fault = self.faults.get(&self.seed).cloned();
        if options.task.as_deref() == Some("another") {
            "toy/another-v1".clone_into(&mut self.spec.id);
        } else if let Some(task) = &options.task {
            return Err(EnvError::Config { detail: format!("there is no task `{task}`") });
        }
        let (mut obs, mut info) = self.inner.reset(Some(self.seed), options)?;
        self.dress(&mut obs, &mut info);
        Ok((obs, info))
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        self.strike()?;
        let mut step = self.inner.step(action, frames)?;
        self.dress(&mut step.obs, &mut step.info);
        Ok(step)
    }

    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        Ok(Some(pattern(self.seed, 0, 0, 40, 30)))
    }
}

/// The body of the test [`ENTRY`]: serves if a bridge started this process, returns at once otherwise.
pub fn serve_if_started() {
    if std::env::var_os(ENV_BRIDGE).is_none() {
        return;
    }
    let served = serve(|config| match config["refuse"].as_str() {
        Some(detail) => Err(EnvError::Config { detail: detail.to_owned() }),
        None => Ok(Box::new(ToyEnv::new(&config)) as Box<dyn Env>),
    });
    // libtest would wait for its other threads; a worker leaves at once.
    std::process::exit(i32::from(served.is_err()));
}

pub fn quick() -> Deadlines {
    Deadlines { start: 20.0, reset: 3.0, step: 1.0, close: 2.0, asleep: None }
}

/// This test binary as a Rust worker.
pub fn rust_worker(config: Value) -> BridgeConfig {
    let args = [ENTRY, "--exact", "--nocapture", "--test-threads=1"].map(str::to_owned);
    let program = std::env::current_exe().unwrap();
    BridgeConfig { deadlines: quick(), ..BridgeConfig::rust(program, args.to_vec(), config) }
}

/// The Python worker, or `None` without a `python3` on this machine.
pub fn fake_worker(config: Value) -> Option<BridgeConfig> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = python()?;
    let script = root.join("python/fake_worker.py").display().to_string();
    let args = vec!["-I".to_owned(), script];
    Some(BridgeConfig { deadlines: quick(), ..BridgeConfig::new(python, args, config) })
}

fn python() -> Option<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.simloop/libero/bin/python");
    let works = |python: &PathBuf| {
        let version = std::process::Command::new(python).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    };
    let found = [PathBuf::from("python3"), own].into_iter().find(works);
    if found.is_none() {
        println!("skipped: no python3 on this machine");
    }
    found
}

/// A fault of the fake worker at a place, once per process.
pub fn fault(kind: &str, at: &str) -> Value {
    json!({ "fault": { "kind": kind, "at": at } })
}

pub fn reset_ok(env: &mut BridgeEnv, seed: u64) -> (Observation, Info) {
    env.reset(Some(seed), &ResetOptions::default()).unwrap()
}

/// Whether a process runs (a zombie does not).
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with(['Z', 'X']))
}

/// Waits until `done` holds, at most `limit`.
pub fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
