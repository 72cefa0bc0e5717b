//! `bench speed`: how fast a suite's environment runs here, CPU and wall.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use simloop_envs::vec::ThreadedVecEnv;
use simloop_envs::{EnvId, FrameRequest, Info, Observation, Reply, Request, VecEnv};
use simloop_policies::{ActMode, ActRequest, Policy, RandomPolicy};

use super::libero::LiberoEnvArgs;
use super::pusht::PushtEnvArgs;
use crate::BenchError;
use crate::cpu::tree_secs;
use crate::runner::WorkerKind;
use crate::suites::SuiteRun;

/// Which observations carry images.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Frames {
    /// Nobody looks.
    None,
    /// After each chunk.
    Last,
    /// After each step.
    Every,
}

/// What to measure.
#[derive(Debug, Args)]
pub(super) struct SpeedArgs {
    #[command(subcommand)]
    env: SpeedEnv,
}

#[derive(Debug, Subcommand)]
enum SpeedEnv {
    /// PushT.
    Pusht {
        #[command(flatten)]
        env: PushtEnvArgs,
        #[command(flatten)]
        pace: PaceArgs,
    },
    /// LIBERO.
    Libero {
        #[command(flatten)]
        env: LiberoEnvArgs,
        #[command(flatten)]
        pace: PaceArgs,
    },
}

#[derive(Debug, Args)]
struct PaceArgs {
    /// Environment steps, over all environments.
    #[arg(long, default_value_t = 1000)]
    steps: u32,
    /// Actions per chunk.
    #[arg(long, default_value_t = 1)]
    chunk: usize,
    /// Which observations carry images.
    #[arg(long, value_enum, default_value_t = Frames::None)]
    frames: Frames,
    /// Environments at once, one thread each.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Where environments live.
    #[arg(long, value_enum, default_value_t = WorkerKind::Threads)]
    worker_kind: WorkerKind,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

/// What was measured. CPU seconds are this process's and its workers', start-up and resets left out.
#[derive(Debug, Serialize)]
struct Pace {
    env: String,
    steps: u32,
    episodes: u32,
    chunk: usize,
    frames: FrameRequest,
    workers: usize,
    wall_secs: f64,
    cpu_secs: f64,
    steps_per_cpu_sec: f64,
    steps_per_sec: f64,
}

/// Runs `bench speed`.
#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
pub(super) fn run(args: SpeedArgs) -> Result<ExitCode, BenchError> {
    let (suite, pace) = match args.env {
        SpeedEnv::Pusht { env, pace } => {
            (env.suite("random", 1000, 0, pace.worker_kind).build()?, pace)
        }
        SpeedEnv::Libero { env, pace } => {
            (env.suite_for_speed(!matches!(pace.frames, Frames::None))?, pace)
        }
    };
    let measured = measure(&suite, &pace)?;
    if pace.json {
        println!(
            "{}",
            serde_json::to_string(&measured).map_err(|e| BenchError::usage(e.to_string()))?
        );
    } else {
        println!(
            "{}: {} steps, {:.2} s wall, {:.2} s CPU: {:.0} steps/s, {:.0} steps per CPU-second",
            measured.env,
            measured.steps,
            measured.wall_secs,
            measured.cpu_secs,
            measured.steps_per_sec,
            measured.steps_per_cpu_sec
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(suite: &SuiteRun, pace: &PaceArgs) -> Result<Pace, BenchError> {
    let frames = match pace.frames {
        Frames::None => FrameRequest::None,
        Frames::Last => FrameRequest::Last,
        Frames::Every => FrameRequest::Every,
    };
    let workers = pace.workers.max(1);
    let mut vec = ThreadedVecEnv::new(&suite.factory, workers, workers)?;
    let spec = vec.spec()?;
    let mut policy = RandomPolicy::new(spec.action.clone(), pace.chunk);
    let mut clock = Clock::default();
    let mut episodes = suite.episodes.iter().cycle();
    let mut needs_reset: Vec<EnvId> = (0..workers).map(EnvId).collect();
    let (mut steps, mut begun, mut decision) = (0, 0, 0);
    let mut seen: Vec<Option<(Observation, Info)>> = vec![None; workers];
    while steps < pace.steps {
        if !needs_reset.is_empty() {
            clock.pause()?;
            begun += needs_reset.len() as u32;
            let reset = |id| Some((id, Request::Reset(episodes.next()?.request.clone())));
            let resets: Vec<_> = needs_reset.drain(..).filter_map(reset).collect();
            let asked = resets.len();
            vec.send(resets)?;
            for (id, reply) in vec.recv(asked) {
                if let Reply::Reset { obs, info, .. } = reply? {
                    seen[id.0] = Some((obs, info));
                }
            }
            clock.resume()?;
        }
        let mut requests = Vec::new();
        for (i, state) in seen.iter().enumerate() {
            let Some((obs, info)) = state else { continue };
            decision += 1;
            let recent = std::slice::from_ref(obs);
            let request = ActRequest { env: EnvId(i), obs, recent, info, noise_seed: decision };
            let chunk = policy.act(&[request], ActMode::Stochastic)?.remove(0).chunk;
            requests.push((EnvId(i), Request::Step(chunk, frames)));
        }
        vec.send(requests)?;
        for (id, reply) in vec.recv(workers) {
            if let Reply::Step(outcome) = reply? {
                steps += outcome.steps.len() as u32;
                if outcome.last().done() {
                    needs_reset.push(id);
                }
            }
        }
    }
    clock.pause()?;
    Ok(Pace {
        env: spec.id,
        steps,
        episodes: begun,
        chunk: pace.chunk,
        frames,
        workers,
        wall_secs: clock.wall,
        cpu_secs: clock.cpu,
        steps_per_cpu_sec: f64::from(steps) / clock.cpu,
        steps_per_sec: f64::from(steps) / clock.wall,
    })
}

/// Wall and CPU time of the stretches between `resume` and `pause`.
#[derive(Default)]
struct Clock {
    wall: f64,
    cpu: f64,
    running: Option<(Instant, f64)>,
}

impl Clock {
    fn resume(&mut self) -> Result<(), BenchError> {
        self.running = Some((Instant::now(), tree_secs()?));
        Ok(())
    }

    fn pause(&mut self) -> Result<(), BenchError> {
        if let Some((wall, cpu)) = self.running.take() {
            self.wall += wall.elapsed().as_secs_f64();
            self.cpu += tree_secs()? - cpu;
        }
        Ok(())
    }
}
