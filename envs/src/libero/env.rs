//! The environment: LIBERO behind the bridge.

use std::collections::BTreeMap;

use ndarray::ArrayView1;
use rmpv::Value;
use serde::{Deserialize, Serialize};

use super::worker_files::{cache_dir, unpack};
use super::{LiberoConfig, LiberoInstall, Suite};
use crate::bridge::{BridgeConfig, BridgeEnv};
use crate::{
    ActionChunk, ChunkStep, Env, EnvError, EnvSpec, Frame, FrameRequest, Info, Observation,
    ResetOptions, Step,
};

/// Seconds for a query that simulates nothing.
const QUERY_SECS: f64 = 30.0;

/// A task as the benchmark lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// `libero_spatial/3`.
    pub task: String,
    /// LIBERO's own name, which is also its file's.
    pub name: String,
    /// What a policy is told: made from the file name, as every published evaluation does.
    pub instruction: String,
}

/// One LIBERO simulator in a Python process.
#[derive(Debug)]
pub struct LiberoEnv {
    bridge: BridgeEnv,
    reset_secs: f64,
}

impl LiberoEnv {
    /// Starts a worker. The first task's scene is built by the first reset.
    ///
    /// # Errors
    /// [`EnvError::Config`] for a wrong setting; [`EnvError::Unavailable`] for a missing package, GL library or asset; the
    /// bridge's faults.
    pub fn start(install: &LiberoInstall, config: &LiberoConfig) -> Result<Self, EnvError> {
        config.validate()?;
        let cache = cache_dir()?;
        let script = unpack(&cache)?;
        let mut bridge = BridgeConfig::new(
            &install.python,
            vec![script.display().to_string()],
            config.for_worker(install, &cache),
        );
        // Orders of sets of names must not differ between processes.
        bridge.env = vec![("PYTHONHASHSEED".into(), "0".into())];
        bridge.deadlines = config.deadlines;
        bridge.label.clone_from(&config.task);
        Ok(Self { bridge: BridgeEnv::start(bridge)?, reset_secs: config.deadlines.reset })
    }

    /// Versions of Python, LIBERO, robosuite, `MuJoCo`, numpy and the renderer, as the worker runs them.
    pub fn versions(&self) -> &BTreeMap<String, String> {
        self.bridge.versions()
    }

    /// The worker's process id.
    pub fn pid(&self) -> u32 {
        self.bridge.pid()
    }

    /// The tasks of a suite in the benchmark's order.
    ///
    /// # Errors
    /// The bridge's faults.
    pub fn tasks(&mut self, suite: Suite) -> Result<Vec<TaskInfo>, EnvError> {
        let answer = self.call("suites", &Value::Map(Vec::new()), QUERY_SECS)?;
        let mut suites: BTreeMap<String, Vec<TaskInfo>> = decode("suites", answer)?;
        suites.remove(suite.name()).ok_or_else(|| EnvError::Protocol {
            detail: format!("the worker does not list {suite}"),
        })
    }

    /// The simulator's state (time, positions, velocities), for [`ResetOptions::state`].
    ///
    /// # Errors
    /// [`EnvError::NeedsReset`] before the first reset; the bridge's faults.
    pub fn state(&mut self) -> Result<Vec<f64>, EnvError> {
        #[derive(Deserialize)]
        struct State {
            state: serde_bytes::ByteBuf,
        }
        let answer = self.call("state", &Value::Map(Vec::new()), QUERY_SECS)?;
        let state: State = decode("state", answer)?;
        let (numbers, _) = state.state.as_chunks::<8>();
        Ok(numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }

    /// A query of the worker by name.
    pub(super) fn call(
        &mut self,
        name: &str,
        args: &Value,
        timeout_secs: f64,
    ) -> Result<Value, EnvError> {
        self.bridge.call(name, args, timeout_secs)
    }

    /// The deadline of a reset, seconds.
    pub(super) fn reset_secs(&self) -> f64 {
        self.reset_secs
    }
}

/// Reads a worker's answer to `name`.
pub(super) fn decode<T: serde::de::DeserializeOwned>(
    name: &str,
    answer: Value,
) -> Result<T, EnvError> {
    rmpv::ext::from_value(answer)
        .map_err(|e| EnvError::Protocol { detail: format!("the answer to `{name}`: {e}") })
}

impl Env for LiberoEnv {
    fn spec(&self) -> &EnvSpec {
        self.bridge.spec()
    }
    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        self.bridge.reset(seed, options)
    }
    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        self.bridge.step(action, frames)
    }
    fn step_chunk(
        &mut self,
        chunk: &ActionChunk,
        frames: FrameRequest,
    ) -> Result<ChunkStep, EnvError> {
        self.bridge.step_chunk(chunk, frames)
    }
    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        self.bridge.render()
    }
    fn memory_bytes(&self) -> Option<u64> {
        self.bridge.memory_bytes()
    }
}
