//! `data collect`.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use simloop_envs::libero::{INIT_STATES, LiberoConfig, LiberoEnv, LocateOptions, Suite, locate};
use simloop_envs::pusht::{MAX_EPISODE_STEPS, PushtConfig, PushtEnv, PushtGoals};
use simloop_envs::seeding::episode_seed;
use simloop_envs::wrappers::TimeLimit;
use simloop_envs::{ActionChunk, Env, EnvError, ResetOptions, ResetRequest};
use simloop_policies::scripted::{LiberoExpert, PushtExpert};
use simloop_policies::vla::VlaPolicy;
use simloop_policies::{ExpertPolicy, Policy, checkpoint};

use super::bar::Bar;
use super::data::Obs;
use crate::acting::pusht_observation_of;
use crate::data::collect::{CollectOptions, MakeEnv, MakePolicy, collect, spec_of};
use crate::data::lerobot::LerobotWriter;
use crate::stop::StopFlag;
use crate::{Episode, TrainerError};

/// The suite's expert.
const SCRIPTED: &str = "scripted";
/// Attempts per wanted episode before `--only-successes` gives up.
const ATTEMPTS_PER_EPISODE: u32 = 10;

/// Record what a policy does in a simulator, as LeRobot v3.0.
#[derive(Debug, Args)]
pub(super) struct CollectArgs {
    #[command(subcommand)]
    env: EnvArgs,
}

#[derive(Debug, Subcommand)]
enum EnvArgs {
    /// PushT.
    Pusht(PushtArgs),
    /// LIBERO, from its own initial states.
    Libero(LiberoArgs),
}

/// What to collect, whatever the environment.
#[derive(Debug, Args)]
struct CommonArgs {
    /// `scripted`, or a checkpoint's folder.
    #[arg(long, default_value = SCRIPTED)]
    policy: String,
    /// Episodes (LIBERO: per task).
    #[arg(long)]
    episodes: u32,
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Decides every initial state and all noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The number of the first trial; LIBERO's trial k begins from stored initial state k.
    #[arg(long, default_value_t = 0)]
    first_trial: u32,
    /// Keep episodes that solve the task, and go on until there are enough of them.
    #[arg(long)]
    only_successes: bool,
    /// Threads; they change no number.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Execute at most so many actions of each chunk [default: all].
    #[arg(long)]
    n_action_steps: Option<usize>,
    /// Disturb what is executed, not what is recorded, with normal noise of up to this standard deviation, in the units of
    /// an action; each episode draws its own.
    #[arg(long, default_value_t = 0.0, value_parser = parse_noise)]
    action_noise: f32,
}

fn parse_noise(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(std) if std.is_finite() && std >= 0.0 => Ok(std),
        _ => Err("it must be a number of at least 0".to_owned()),
    }
}

#[derive(Debug, Args)]
struct PushtArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// What the proprio holds, and whether there are images [default: what the checkpoint was trained on, else state].
    #[arg(long, value_enum)]
    obs: Option<Obs>,
    /// Two targets, of which the instruction names the one that counts; so many episodes for each.
    #[arg(long)]
    two_goals: bool,
    /// Steps after which an episode ends.
    #[arg(long, default_value_t = MAX_EPISODE_STEPS)]
    max_steps: u32,
}

#[derive(Debug, Args)]
struct LiberoArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// spatial, object, goal, 10 or 90.
    #[arg(long, default_value = "spatial")]
    suite: Suite,
    /// Task numbers, e.g. 0,3 [default: all].
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<u32>,
    /// Leave the cameras out: nothing is rendered.
    #[arg(long)]
    no_images: bool,
    /// Side of the images, pixels.
    #[arg(long, default_value_t = 256)]
    image_size: u32,
    /// Steps after which an episode ends.
    #[arg(long, default_value_t = 600)]
    // above every protocol's limit, LIBERO-10's 520 included
    max_steps: u32,
    /// The Python that has LIBERO [default: what `make libero` made].
    #[arg(long)]
    python: Option<PathBuf>,
    /// LIBERO's assets [default: $LIBERO_ASSETS, the package's own folder, ../shared/data/libero_assets].
    #[arg(long)]
    assets: Option<PathBuf>,
}

pub(super) fn run(args: &CollectArgs) -> anyhow::Result<ExitCode> {
    match &args.env {
        EnvArgs::Pusht(args) => pusht(args),
        EnvArgs::Libero(args) => libero(args),
    }
}

fn pusht(args: &PushtArgs) -> anyhow::Result<ExitCode> {
    let goals = if args.two_goals { PushtGoals::Two } else { PushtGoals::One };
    let mut config =
        PushtConfig { goals, privileged: args.common.policy == SCRIPTED, ..PushtConfig::default() };
    if args.common.policy != SCRIPTED {
        let policy = load(&args.common.policy)?;
        let (obs, side) = pusht_observation_of(policy.io(), policy.cameras())?;
        config.obs = obs;
        config.image_size = side.unwrap_or(config.image_size);
    }
    if let Some(obs) = args.obs {
        config.obs = obs.into();
    }
    let max_steps = args.max_steps;
    let make_env = move || -> Result<Box<dyn Env>, EnvError> {
        Ok(Box::new(TimeLimit::new(PushtEnv::new(config.clone())?, max_steps)?))
    };
    let name = args.common.policy.clone();
    let make_policy = move || -> Result<Box<dyn Policy>, TrainerError> {
        if name == SCRIPTED {
            // The middle of the arena: where the goal is, for a state the expert has no opinion on.
            let hold = ActionChunk::single(&[256.0, 256.0])?;
            return Ok(Box::new(ExpertPolicy::new(&name, hold, || Box::new(PushtExpert::new()))));
        }
        Ok(Box::new(load(&name)?))
    };
    let tasks: Vec<Task> = goals.all().iter().map(|goal| Task::new(goal.task, None)).collect();
    record(&args.common, goals.env_name(), "pusht", &tasks, &make_env, &make_policy)
}

fn libero(args: &LiberoArgs) -> anyhow::Result<ExitCode> {
    let install =
        locate(&LocateOptions { python: args.python.clone(), assets: args.assets.clone() })?;
    let ids: Vec<u32> =
        if args.tasks.is_empty() { (0..args.suite.tasks()).collect() } else { args.tasks.clone() };
    let keys: Vec<String> = ids.iter().map(|id| args.suite.task(*id)).collect::<Result<_, _>>()?;
    let Some(first) = keys.first() else { bail!("collect no task at all") };
    let mut config = LiberoConfig {
        task: first.clone(),
        image_size: [args.image_size; 2],
        privileged: args.common.policy == SCRIPTED,
        ..LiberoConfig::default()
    };
    if args.no_images {
        config.cameras.clear();
    }
    let max_steps = args.max_steps;
    let make_env = move || -> Result<Box<dyn Env>, EnvError> {
        Ok(Box::new(TimeLimit::new(LiberoEnv::start(&install, &config)?, max_steps)?))
    };
    let name = args.common.policy.clone();
    let make_policy = move || -> Result<Box<dyn Policy>, TrainerError> {
        if name == SCRIPTED {
            let hold = ActionChunk::single(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])?;
            return Ok(Box::new(ExpertPolicy::new(&name, hold, || {
                Box::new(LiberoExpert::default())
            })));
        }
        Ok(Box::new(load(&name)?))
    };
    let tasks: Vec<Task> = keys.iter().map(|key| Task::new(key, Some(INIT_STATES))).collect();
    record(&args.common, args.suite.name(), "panda", &tasks, &make_env, &make_policy)
}

/// A checkpoint on the CPU; one thread, so that its numbers do not depend on the machine's cores.
fn load(folder: &str) -> Result<VlaPolicy, TrainerError> {
    tch::set_num_threads(1);
    Ok(checkpoint::load_policy(Path::new(folder), tch::Device::Cpu)?)
}

/// Collects, task after task, into one data set.
fn record(
    args: &CommonArgs,
    suite: &str,
    robot_type: &str,
    tasks: &[Task],
    make_env: &MakeEnv<'_>,
    make_policy: &MakePolicy<'_>,
) -> anyhow::Result<ExitCode> {
    let stop = StopFlag::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.inner()).context("listen for signals")?;
    }
    let spec = {
        let env = make_env()?;
        let policy = make_policy()?;
        if let Some(convention) = policy.convention() {
            convention.check_matches(&env.spec().convention)?;
        }
        spec_of(env.as_ref())
    };
    let options = CollectOptions {
        workers: args.workers,
        n_action_steps: args.n_action_steps,
        action_noise: args.action_noise,
    };
    let mut writer = LerobotWriter::create(&args.out, &spec, robot_type)?;
    let total = u64::from(args.episodes) * tasks.len() as u64;
    let mut bar = Bar::new("collect", total);
    let (mut tried, mut solved, mut faults) = (0u64, 0u64, 0u64);
    for task in tasks {
        let attempts = if args.only_successes {
            args.episodes.saturating_mul(ATTEMPTS_PER_EPISODE)
        } else {
            args.episodes
        };
        let episodes: Vec<Episode> = (0..attempts)
            .map(|k| task.episode(args.seed, suite, args.first_trial.saturating_add(k)))
            .collect();
        let mut kept = 0;
        collect(&episodes, options, make_env, make_policy, &mut |one| {
            if stop.is_set() {
                return Ok(ControlFlow::Break(()));
            }
            tried += 1;
            solved += u64::from(one.success);
            match one.episode {
                None => faults += 1,
                Some(demo) if one.success || !args.only_successes => {
                    writer.push(&demo)?;
                    kept += 1;
                }
                Some(_) => {}
            }
            bar.set(writer.len() as u64, total, &format!("{solved} of {tried} solved"));
            let enough = kept == args.episodes;
            Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if stop.is_set() {
            bail!("write `{}`: stopped; nothing is left", args.out.display());
        }
        if kept < args.episodes {
            bail!(
                "collect `{}`: only {kept} of {} episodes after {attempts}",
                task.key,
                args.episodes
            );
        }
    }
    let (episodes, steps) = (writer.len(), writer.frames());
    writer.finish()?;
    bar.finish();
    writeln!(
        std::io::stdout(),
        "{}: {episodes} episodes, {steps} steps; {solved} of {tried} tried were solved, {faults} lost to faults",
        args.out.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

/// A task and how its trials begin.
struct Task {
    key: String,
    /// How many initial states are stored, where the simulator has such.
    init_states: Option<u32>,
}

impl Task {
    fn new(key: &str, init_states: Option<u32>) -> Self {
        Self { key: key.to_owned(), init_states }
    }

    /// Trial `k` starts from the seed of (run, suite, task, k), and from stored state `k`, round and round.
    fn episode(&self, seed: u64, suite: &str, trial: u32) -> Episode {
        let node = episode_seed(seed, suite, &self.key, trial);
        let options = ResetOptions {
            task: Some(self.key.clone()),
            init_state: self.init_states.map(|n| trial % n),
            ..ResetOptions::default()
        };
        Episode {
            task: self.key.clone(),
            trial,
            request: ResetRequest { seed: Some(node.seed()), options },
            noise: node.child("noise"),
        }
    }
}
