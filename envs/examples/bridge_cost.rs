//! What the bridge costs: CPU time per step beside the same environment in this process.
//!
//! ```text
//! cargo run --release -p simloop-envs --example bridge_cost
//! ```
//!
//! CPU time is that of both processes, user and system, from `/proc/<pid>/stat` (ticks of 10 ms, so runs are long). The toy's
//! own step is almost free: what is left is the bridge. Set it against a LIBERO step of 22 to 40 CPU-ms.
#![allow(clippy::print_stdout, reason = "a report for a person")]

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, ArrayView1};
use serde_json::json;
use simloop_envs::bridge::{BridgeConfig, BridgeEnv, serve};
use simloop_envs::testing::CountingEnv;
use simloop_envs::{
    ActionChunk, Env, EnvError, EnvSpec, Frame, FrameRequest, ImageSpace, Info, Observation,
    Privileged, PrivilegedLayout, ResetOptions, Step,
};

const TICKS_PER_SEC: f64 = 100.0; // USER_HZ, fixed for /proc on every Linux we build for.

/// Two 256×256 cameras and a privileged state of 100 numbers, as LIBERO has them; no simulation.
struct Cameras {
    inner: CountingEnv,
    spec: EnvSpec,
    frame: Frame,
    state: Privileged,
}

impl Cameras {
    fn new() -> Self {
        let inner = CountingEnv::new(u32::MAX);
        let mut spec = inner.spec().clone();
        let space = ImageSpace { height: 256, width: 256 };
        spec.observation.images =
            ["agentview", "wrist"].map(|name| (name.to_owned(), space)).into_iter().collect();
        let frame = Frame::from_shape_fn((256, 256, 3), |(y, x, c)| (y * 7 + x * 5 + c) as u8);
        let layout = Arc::new(PrivilegedLayout::new([("state", 100)]));
        let state = Privileged::new(layout, Arc::from([0.5; 100])).expect("100 numbers");
        Self { inner, spec, frame, state }
    }

    fn dress(&self, obs: &mut Observation, info: &mut Info) {
        if !obs.images.is_empty() {
            // A fresh copy each time, as a renderer gives.
            let fresh = || Frame::from(self.frame.to_owned());
            let names = self.spec.observation.images.keys();
            obs.images = names.map(|name| (name.clone(), fresh())).collect::<BTreeMap<_, _>>();
        }
        info.privileged = Some(self.state.clone());
    }
}

impl Env for Cameras {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }
    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        let (mut obs, mut info) = self.inner.reset(seed, options)?;
        self.dress(&mut obs, &mut info);
        Ok((obs, info))
    }
    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        let mut step = self.inner.step(action, frames)?;
        self.dress(&mut step.obs, &mut step.info);
        Ok(step)
    }
}

fn cpu_secs(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = |field: usize| {
        after_name.split(' ').nth(field).and_then(|n| n.parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SEC
}

/// CPU and wall microseconds per step.
fn measure(
    env: &mut dyn Env,
    pids: &[u32],
    chunk: usize,
    frames: FrameRequest,
    steps: usize,
) -> Result<(f64, f64), EnvError> {
    env.reset(Some(0), &ResetOptions::default())?;
    let actions = ActionChunk::new(Array2::zeros((chunk, 1)))?;
    let cpu = || pids.iter().map(|pid| cpu_secs(*pid)).sum::<f64>();
    let (before, clock) = (cpu(), std::time::Instant::now());
    for _ in 0..steps / chunk {
        env.step_chunk(&actions, frames)?;
    }
    let scale = 1e6 / steps as f64;
    Ok(((cpu() - before) * scale, clock.elapsed().as_secs_f64() * scale))
}

fn main() -> Result<(), EnvError> {
    if std::env::args().nth(1).as_deref() == Some("worker") {
        return serve(|_| Ok(Box::new(Cameras::new()) as Box<dyn Env>));
    }
    let program = std::env::current_exe()
        .map_err(|e| EnvError::Unavailable { what: e.to_string(), remedy: String::new() })?;
    let config = BridgeConfig::rust(program, vec!["worker".to_owned()], json!({}));
    let mut far = BridgeEnv::start(config)?;
    let mut near = Cameras::new();
    let pids = [std::process::id(), far.pid()];
    println!("frames  chunk  in-process us  bridge us  (CPU per step)  bridge wall us");
    for (frames, chunk, steps) in [
        (FrameRequest::None, 1, 100_000),
        (FrameRequest::None, 8, 400_000),
        (FrameRequest::Last, 1, 10_000),
        (FrameRequest::Last, 8, 40_000),
    ] {
        let (near_cpu, _) = measure(&mut near, &pids[..1], chunk, frames, steps)?;
        let (far_cpu, far_wall) = measure(&mut far, &pids, chunk, frames, steps)?;
        println!("{frames:?}    {chunk:>3}  {near_cpu:>10.1}  {far_cpu:>10.1}  {far_wall:>24.1}");
    }
    Ok(())
}
