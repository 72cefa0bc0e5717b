//! PPO and SAC on PushT from state, timed: the same networks and hyper-parameters as `benchmarks/peers/rl_speed.py`.
//!
//! ```text
//! cargo run --release -p simloop-trainers --example rl_speed -- --algo ppo|sac [--seconds 30]
//! ```
//!
//! 8 environments on the learner's thread, state observations (5 numbers), rollout and update together, one thread per
//! operation. Measuring begins after a warm-up (PPO: one rollout with its update; SAC: 1,000 steps and 400 updates) and ends
//! with a whole cycle. Prints one line of JSON.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use simloop_algos::{Learner as _, OnPolicy, Sac, Update};
use simloop_envs::vec::PerEnv;
use simloop_envs::{EnvError, EnvId, EnvSpec, Reply, Request, VecEnv};
use simloop_policies::vla::VlaPolicy;
use simloop_trainers::cpu::CpuTime;
use simloop_trainers::on_policy::{Explorer, Schedule};
use simloop_trainers::place::Place;
use simloop_trainers::rl_build;
use simloop_trainers::rl_config::RlConfig;
use simloop_trainers::rollout::{Plan, Rollout, RolloutOptions, Rollouts};
use simloop_trainers::stop::StopFlag;

#[derive(Parser)]
struct Args {
    /// ppo or sac.
    #[arg(long)]
    algo: String,
    /// CPU time to measure.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Hidden layers multiply in bf16 (SAC).
    #[arg(long)]
    bf16: bool,
}

/// What both algorithms have in common; Stable-Baselines3's constants where none is given.
const COMMON: &str = r#"
    name = "rl_speed"
    device = "cpu"
    threads = 1
    env = { kind = "pusht", obs = "state" }
    rollout = { envs = 8, workers = 0, decisions = DECISIONS }

    [policy.model]
    n_obs_steps = 1
    chunk_size = 1
    inference_batch = 8
    proprio_norm = "bounds"
    proprio_bounds = [0.0, 512.0]
    action_norm = "bounds"
    action_bounds = [0.0, 512.0]
    execution = { kind = "receding", n_action_steps = 1 }
"#;

const PPO: &str = r#"
    [policy.model.head]
    kind = "gaussian"
    hidden = [64, 64]
    activation = "tanh"
    state_dependent_std = false

    [critic]
    hidden = [64, 64]
    activation = "tanh"

    [ppo]
    gamma = 0.99
    gae_lambda = 0.95
    surrogate = { clip = 0.2, epochs = 10, minibatch = 64 }
"#;

const SAC: &str = r#"
    [policy.model.head]
    kind = "gaussian"
    hidden = [256, 256]
    activation = "relu"
    squash = true
    bf16 = BF16

    [critic]
    hidden = [256, 256]
    activation = "relu"
    bf16 = BF16

    [sac]
    gamma = 0.99
    tau = 0.005
    batch_size = 256
"#;

/// Adds up the time that environments take.
struct Timed {
    inner: Box<dyn VecEnv>,
    secs: Rc<Cell<f64>>,
}

impl Timed {
    fn time<T>(&mut self, f: impl FnOnce(&mut dyn VecEnv) -> T) -> T {
        let started = Instant::now();
        let result = f(self.inner.as_mut());
        self.secs.set(self.secs.get() + started.elapsed().as_secs_f64());
        result
    }
}

impl VecEnv for Timed {
    fn num_envs(&self) -> usize {
        self.inner.num_envs()
    }

    fn spec(&mut self) -> Result<EnvSpec, EnvError> {
        self.inner.spec()
    }

    fn send(&mut self, requests: Vec<(EnvId, Request)>) -> Result<(), EnvError> {
        self.time(|vec| vec.send(requests))
    }

    fn recv(&mut self, min_ready: usize) -> PerEnv<Reply> {
        self.time(|vec| vec.recv(min_ready))
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
}

/// PPO or SAC.
enum Learner {
    Ppo(Box<dyn OnPolicy<Actor = VlaPolicy>>),
    Sac(Box<Sac>),
}

impl Learner {
    fn actor(&self) -> &VlaPolicy {
        match self {
            Self::Ppo(ppo) => ppo.actor(),
            Self::Sac(sac) => sac.actor(),
        }
    }

    /// Learns from a rollout: PPO by its passes, SAC by an update per step once it has seen 1,000.
    fn learn(&mut self, rollout: &Rollout) -> Result<()> {
        match self {
            Self::Ppo(ppo) => applied(&ppo.update(&rollout.trajectories)?),
            Self::Sac(sac) => {
                sac.observe(&rollout.trajectories)?;
                if sac.experience().0 <= 1000 {
                    return Ok(());
                }
                for _ in 0..rollout.steps {
                    applied(&sac.update()?)?;
                }
                Ok(())
            }
        }
    }

    /// Numbers that are learned: actor and critics.
    fn parameters(&self) -> usize {
        let state = match self {
            Self::Ppo(ppo) => ppo.state(),
            Self::Sac(sac) => sac.state(),
        };
        let sets = ["actor", "critic"].into_iter().filter_map(|set| state.tensors.get(set));
        sets.flat_map(|set| set.values()).map(tch::Tensor::numel).sum()
    }

    fn warm(&self) -> bool {
        match self {
            Self::Ppo(ppo) => ppo.updates() >= 1,
            Self::Sac(sac) => sac.updates() >= 400,
        }
    }
}

fn applied(update: &Update) -> Result<()> {
    match update {
        Update::Applied(_) => Ok(()),
        Update::Dropped { tensor } => bail!("an update was dropped: {tensor}"),
    }
}

/// Sums since the warm-up, seconds.
#[derive(Default)]
struct Spent {
    steps: u64,
    inference: f64,
    update: f64,
}

#[expect(clippy::print_stdout, reason = "the result of a measurement")]
fn main() -> Result<()> {
    simloop_policies::device::prepare();
    let args = Args::parse();
    let (own, decisions) = match args.algo.as_str() {
        "ppo" => (PPO, 256),
        "sac" => (SAC, 1),
        other => bail!("measure `{other}`: the algorithms are `ppo` and `sac`"),
    };
    let text = format!("{}{own}", COMMON.replace("DECISIONS", &decisions.to_string()));
    let text = text.replace("BF16", &args.bf16.to_string());
    let config: RlConfig = toml::from_str(&text).context("read the settings")?;
    tch::set_num_threads(config.threads);
    let place = Place::new(&config.env, false)?;
    let mut vec = place.vec(config.rollout.envs, config.rollout.workers)?;
    let spec = vec.spec()?;
    let policy = rl_build::policy(&config, &spec)?;
    let env_secs = Rc::new(Cell::new(0.0));
    let timed = Timed { inner: vec, secs: Rc::clone(&env_secs) };
    let options = RolloutOptions {
        n_obs_steps: 1,
        frames: simloop_envs::FrameRequest::None,
        gamma: 0.99,
        reward: config.reward.clone(),
        max_attempts: 1,
        clip: None,
    };
    let mut rollouts = Rollouts::new(Box::new(timed), options);
    let mut learner = match args.algo.as_str() {
        "ppo" => Learner::Ppo(rl_build::ppo(&config, &spec, policy)?),
        _ => Learner::Sac(Box::new(Sac::new(
            policy,
            &config.critic,
            config.sac.clone(),
            config.seed,
        )?)),
    };
    let schedule = Schedule::new(config.seed, place.tasks.clone());
    let stop = StopFlag::default();

    let mut spent = Spent::default();
    let mut begun: Option<(f64, Instant)> = None;
    loop {
        if begun.is_none() && learner.warm() {
            begun = Some((CpuTime::now()?.total(), Instant::now()));
            env_secs.set(0.0);
            spent = Spent::default();
        }
        if let Some((cpu, _)) = begun
            && CpuTime::now()?.total() - cpu >= args.seconds
        {
            break;
        }
        let plan = Plan::Decisions { each: decisions, next: &|env, k| schedule.of_env(env, k) };
        let rollout = rollouts.collect(&mut Explorer(learner.actor()), plan, &stop)?;
        let learning = Instant::now();
        learner.learn(&rollout)?;
        spent.update += learning.elapsed().as_secs_f64();
        spent.inference += rollout.deciding.as_secs_f64();
        spent.steps += rollout.steps;
    }
    let (cpu, wall) = begun.context("nothing was measured")?;
    let (cpu, wall) = (CpuTime::now()?.total() - cpu, wall.elapsed().as_secs_f64());
    // The parts are measured by the clock on the wall; what another process took is shared out evenly.
    let share = cpu / wall;
    let parameters = learner.parameters();
    let line = serde_json::json!({
        "algo": args.algo,
        "engine": if args.bf16 { "simloop, bf16" } else { "simloop" },
        "parameters": parameters,
        "env_steps": spent.steps,
        "cpu_s": cpu,
        "wall_s": wall,
        "env_s": env_secs.get() * share,
        "inference_s": spent.inference * share,
        "update_s": spent.update * share,
    });
    println!("{line}");
    Ok(())
}
