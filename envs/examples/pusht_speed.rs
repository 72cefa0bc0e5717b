//! Speed of PushT: environment steps per CPU-second, as JSON; the other half of `benchmarks/peers/pusht_speed.py`.
//!
//! `pusht_speed [SECONDS]` measures one environment on one thread; `pusht_speed --threads [SECONDS]` measures wall-clock
//! steps of a `ThreadedVecEnv` with 1 and 2 workers.
#![expect(clippy::print_stdout, reason = "an example's report goes to standard output")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use ndarray::{Array2, ArrayView1};
use serde_json::{Map, Value, json};
use simloop_envs::pusht::{PushtConfig, PushtEnv, PushtObs, Scene, SceneState};
use simloop_envs::vec::ThreadedVecEnv;
use simloop_envs::{
    ActionChunk, Env, EnvError, EnvFactory, EnvId, FrameRequest, PerEnv, Reply, Request,
    ResetOptions, ResetRequest, VecEnv,
};

const EPISODE_STEPS: usize = 50;

/// Uniform targets in `[0, 512)` from Knuth's MMIX generator, top 24 bits.
struct Targets(u64);

impl Targets {
    fn coordinate(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32 * 512.0
    }

    fn draw(&mut self) -> [f32; 2] {
        let x = self.coordinate();
        [x, self.coordinate()]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Actions {
    Random,
    Push,
    Squeeze,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let threads = arguments.next_if_eq("--threads").is_some();
    let seconds = arguments.next().map_or(Ok(3.0), |s| s.parse())?;
    let report = if threads { threaded(seconds)? } else { single(seconds)? };
    println!("{report}");
    Ok(())
}

fn single(seconds: f64) -> Result<Value, Box<dyn Error>> {
    let mut results = Map::new();
    for (obs, obs_name) in [(PushtObs::State, "state"), (PushtObs::Pixels, "pixels")] {
        for (actions, name) in
            [(Actions::Random, "random"), (Actions::Push, "push"), (Actions::Squeeze, "squeeze")]
        {
            results.insert(format!("{obs_name}/{name}"), measure(obs, actions, seconds)?);
        }
    }
    Ok(json!({"engine": "simloop", "results": results}))
}

fn measure(obs: PushtObs, actions: Actions, seconds: f64) -> Result<Value, Box<dyn Error>> {
    let mut env = PushtEnv::new(PushtConfig { obs, ..PushtConfig::default() })?;
    let (mut steps, mut episode, mut contacts, mut checksum, mut spent) = (0, 0, 0, 0.0, 0.0);
    while spent < seconds {
        let mut targets = Targets(episode);
        let mut reward = 0.0;
        let start = cpu_seconds()?;
        env.reset(Some(episode), &ResetOptions::default())?;
        for _ in 0..EPISODE_STEPS {
            let action = match (actions, env.state()) {
                (Actions::Push, Some(state)) => aim(state, 20.0),
                (Actions::Squeeze, Some(state)) => aim(state, f64::INFINITY),
                _ => targets.draw(),
            };
            let step = env.step(ArrayView1::from(&action), true)?;
            contacts += u64::from(env.scene().is_some_and(Scene::touched));
            steps += 1;
            reward = step.reward;
            if step.terminated {
                break;
            }
        }
        spent += cpu_seconds()? - start;
        if episode < 20 {
            checksum += f64::from(reward);
        }
        episode += 1;
    }
    Ok(json!({
        "steps": steps,
        "cpu_seconds": spent,
        "steps_per_cpu_second": f64::from(steps) / spent,
        "contact_share": contacts as f64 / f64::from(steps),
        "reward_of_first_20_episodes": checksum,
    }))
}

/// The block's origin, or the point `ahead` px on the way to it.
fn aim(state: &SceneState, ahead: f64) -> [f32; 2] {
    let way = [state.block.x - state.agent[0], state.block.y - state.agent[1]];
    let share = (ahead / way[0].hypot(way[1]).max(1e-9)).min(1.0);
    [0, 1].map(|i| (state.agent[i] + way[i] * share) as f32)
}

/// CPU time of this thread, from the scheduler's own account (Linux).
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split(' ').next().ok_or("an empty schedstat")?.parse()?;
    Ok(nanoseconds * 1e-9)
}

/// Steps per second of wall time with 1 and 2 worker threads: 32 environments, chunks of 10 pushing targets.
fn threaded(seconds: f64) -> Result<Value, Box<dyn Error>> {
    const ENVS: usize = 32;
    let factory: EnvFactory =
        Arc::new(|_| Ok(Box::new(PushtEnv::new(PushtConfig::default())?) as Box<dyn Env>));
    let mut results = Map::new();
    for threads in [1, 2] {
        let mut envs = ThreadedVecEnv::new(&factory, ENVS, threads)?;
        let mut aims = [[256.0_f32; 2]; ENVS];
        let (mut steps, mut seed, start) = (0, 0, Instant::now());
        let mut spent = 0.0;
        while spent < seconds {
            let mut ids = (0..ENVS).map(EnvId);
            let resets = ids.by_ref().map(|id| {
                seed += 1;
                let options = ResetOptions::default();
                (id, Request::Reset(ResetRequest { seed: Some(seed), options }))
            });
            envs.send(resets.collect())?;
            read_aims(envs.recv(ENVS), &mut aims)?;
            for _ in 0..EPISODE_STEPS / 10 {
                let chunks = aims.iter().enumerate().map(|(i, aim)| {
                    let chunk = ActionChunk::new(Array2::from_shape_fn((10, 2), |(_, k)| aim[k]))?;
                    Ok((EnvId(i), Request::Step(chunk, FrameRequest::Last)))
                });
                envs.send(chunks.collect::<Result<_, EnvError>>()?)?;
                steps += read_aims(envs.recv(ENVS), &mut aims)?;
            }
            spent = start.elapsed().as_secs_f64();
        }
        results.insert(
            format!("threads_{threads}"),
            json!({"steps": steps, "seconds": spent, "steps_per_second": steps as f64 / spent}),
        );
    }
    Ok(json!({"engine": "simloop", "results": results}))
}

/// Takes the block's origin out of every reply and counts the steps.
fn read_aims(replies: PerEnv<Reply>, aims: &mut [[f32; 2]]) -> Result<usize, EnvError> {
    let mut steps = 0;
    for (id, reply) in replies {
        let obs = match reply? {
            Reply::Reset { obs, .. } => obs,
            Reply::Step(chunk) => {
                steps += chunk.steps.len();
                chunk.last().obs.clone()
            }
            Reply::Frame(_) | Reply::Recycled => continue,
        };
        aims[id.0] = [obs.proprio[2], obs.proprio[3]];
    }
    Ok(steps)
}
