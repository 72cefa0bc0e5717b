//! Command lines of this crate's programs: parse, build, run, report.
//!
//! Exit codes: 0 fine; 1 ran and failed, found a fault, or was interrupted (a checkpoint was saved, the last line says how to
//! go on); 2 could not run as asked.

mod bar;
mod collect;
mod convert;
pub mod data;
pub mod parity;
mod rl;
#[cfg(feature = "serve")]
pub mod serve;
mod train;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use simloop_envs::pusht::worker;

use crate::TrainerError;

/// Learn robot policies, from demonstrations and by acting.
#[derive(Debug, Parser)]
#[command(name = "train", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Behaviour cloning.
    Bc(train::RunArgs),
    /// Proximal policy optimisation, by acting in a simulator.
    Ppo(train::RunArgs),
    /// Group-relative policy optimisation, by acting in a simulator.
    Grpo(train::RunArgs),
    /// Soft actor-critic, by acting in a simulator.
    Sac(train::RunArgs),
    /// DAgger: an expert labels the states that the policy gets into.
    Dagger(train::RunArgs),
    /// Compare models with recorded numbers of their references.
    Parity(parity::ParityArgs),
    /// Serve one environment to a parent process (internal).
    #[command(name = "__worker", hide = true)]
    Worker,
}

/// Parses the command line and runs it.
#[expect(clippy::print_stderr, reason = "the error of a command-line program")]
pub fn main() -> ExitCode {
    simloop_policies::device::prepare();
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Worker) {
        log_to_stderr();
    }
    let result = match cli.command {
        Command::Bc(args) => train::bc(&args),
        Command::Ppo(args) => rl::on_policy(rl::OnPolicyKind::Ppo, &args),
        Command::Grpo(args) => rl::on_policy(rl::OnPolicyKind::Grpo, &args),
        Command::Sac(args) => rl::off_policy(&args),
        Command::Dagger(args) => rl::interactive(&args),
        Command::Parity(args) => parity::run(&args)
            .map_err(|e| TrainerError::config(format!("print the comparison: {e}"))),
        Command::Worker => worker::serve().map(|()| ExitCode::SUCCESS).map_err(TrainerError::from),
    };
    result.unwrap_or_else(|error| {
        eprintln!("train: failed to {error}");
        ExitCode::from(error.exit_code())
    })
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SIMLOOP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
