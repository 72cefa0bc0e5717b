//! `bench pusht`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use simloop_envs::pusht::{MAX_EPISODE_STEPS, PushtConfig, PushtGoals, PushtObs, PushtSeeding};

use super::common::RunArgs;
use super::finish;
use crate::BenchError;
use crate::runner::WorkerKind;
use crate::suites::policy::Inference;
use crate::suites::pusht::PushtSuite;

/// gym-pusht's observation types.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Obs {
    /// Agent, block position and angle.
    State,
    /// Block keypoints and agent.
    EnvironmentStateAgentPos,
    /// A 96×96 image.
    Pixels,
    /// The image and the agent.
    PixelsAgentPos,
}

/// Whose reset states.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "kebab-case")]
enum Resets {
    /// gym-pusht 0.1.8.
    GymPusht,
    /// The original benchmark of Diffusion Policy.
    DiffusionPolicy,
}

/// The environment.
#[derive(Clone, Debug, Args)]
pub(super) struct PushtEnvArgs {
    /// What the policy sees, by gym-pusht's names [default: what a checkpoint was trained on; state for others].
    #[arg(long, value_enum)]
    observation: Option<Obs>,
    /// Two targets, a task each: the instruction names the one that counts.
    #[arg(long)]
    two_goals: bool,
    /// Whose rule turns a seed into an initial state.
    #[arg(long, value_enum, default_value_t = Resets::GymPusht)]
    resets: Resets,
    /// Side of the observed image, pixels [default: what a checkpoint was trained on; 96 for others].
    #[arg(long)]
    image_size: Option<u32>,
    /// Side of the videos, pixels.
    #[arg(long, default_value_t = 256)]
    video_size: u32,
    /// Steps after which an episode is truncated.
    #[arg(long, default_value_t = MAX_EPISODE_STEPS, value_parser = clap::value_parser!(u32).range(1..))]
    max_steps: u32,
}

impl PushtEnvArgs {
    fn config(&self) -> PushtConfig {
        let default = PushtConfig::default();
        PushtConfig {
            obs: self.observation.map_or(default.obs, |obs| match obs {
                Obs::State => PushtObs::State,
                Obs::EnvironmentStateAgentPos => PushtObs::EnvironmentStateAgentPos,
                Obs::Pixels => PushtObs::Pixels,
                Obs::PixelsAgentPos => PushtObs::PixelsAgentPos,
            }),
            goals: if self.two_goals { PushtGoals::Two } else { PushtGoals::One },
            seeding: match self.resets {
                Resets::GymPusht => PushtSeeding::GymPusht,
                Resets::DiffusionPolicy => PushtSeeding::DiffusionPolicy,
            },
            image_size: self.image_size.unwrap_or(default.image_size),
            render_size: self.video_size,
            privileged: false,
        }
    }

    /// The suite with these settings.
    pub(super) fn suite(
        &self,
        policy: &str,
        episodes: u32,
        seed: u64,
        workers: WorkerKind,
    ) -> PushtSuite {
        PushtSuite {
            env: self.config(),
            max_steps: self.max_steps,
            episodes,
            seed,
            policy: policy.to_owned(),
            n_action_steps: None,
            workers,
            swap_instructions: false,
            inference: Inference::default(),
            fit_observation: self.observation.is_none(),
            fit_image_size: self.image_size.is_none(),
        }
    }
}

/// Benchmark a policy on PushT.
#[derive(Debug, Args)]
pub(super) struct PushtArgs {
    /// How many episodes (of each task).
    #[arg(long, default_value_t = 100, alias = "eval.n_episodes", value_parser = clap::value_parser!(u32).range(1..))]
    episodes: u32,
    /// Tell the policy the other target's instruction; compare with a run without this to see whether it listens.
    #[arg(long, requires = "two_goals")]
    swap_instructions: bool,
    #[command(flatten)]
    env: PushtEnvArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs `bench pusht`.
pub(super) fn run(args: &PushtArgs) -> Result<ExitCode, BenchError> {
    let kind = args.run.worker_kind.unwrap_or(WorkerKind::Threads);
    let mut suite = args.env.suite(&args.run.policy, args.episodes, args.run.seed, kind);
    suite.n_action_steps = args.run.n_action_steps;
    suite.swap_instructions = args.swap_instructions;
    suite.inference = args.run.inference.inference()?;
    finish::run_suite(suite.build()?, &args.run, kind)
}
