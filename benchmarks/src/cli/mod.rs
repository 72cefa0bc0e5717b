//! The command line of `bench`: parse, build, run, report.
//!
//! Exit codes: 0 fine; 1 ran and failed (an episode ended as an error without `--allow-errors`, a comparison or check
//! failed, the run was interrupted); 2 could not run as asked.

mod common;
mod compare;
mod finish;
mod libero;
mod pusht;
mod replay;
mod smoke;
mod speed;
mod widowx;
mod worker;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::BenchError;

/// Success rates that can be trusted: benchmark robot policies in simulation.
#[derive(Debug, Parser)]
#[command(name = "bench", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Benchmark a policy on PushT (native rapier3d).
    Pusht(pusht::PushtArgs),
    /// Benchmark a policy on LIBERO (the real one, in Python worker processes).
    Libero(libero::LiberoArgs),
    /// Benchmark a policy on the real WidowX behind BridgeData V2's robot server, judged by you.
    Widowx(Box<widowx::WidowXArgs>),
    /// Find what is missing on this machine, with one line that fixes each.
    Doctor,
    /// Apply recorded actions from recorded states and report the differences.
    Replay(replay::ReplayArgs),
    /// Compare two result folders by a paired test on shared (task, trial).
    Compare(compare::CompareArgs),
    /// Plan how many episodes a comparison needs.
    Plan(compare::PlanArgs),
    /// Join result folders of one run (shards, machines).
    Merge(compare::MergeArgs),
    /// Write eval_info.json and report.html again from a result folder.
    Report(compare::ReportArgs),
    /// Train everything that learns for a moment, end to end, and ask whether it learned.
    Smoke(smoke::SmokeArgs),
    /// Measure environment steps per second, wall and CPU.
    Speed(speed::SpeedArgs),
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
        Command::Pusht(args) => pusht::run(&args),
        Command::Libero(args) => libero::run(&args),
        Command::Widowx(args) => widowx::run(&args),
        Command::Doctor => crate::doctor::run(&mut std::io::stdout())
            .map(ExitCode::from)
            .map_err(|e| BenchError::usage(format!("print the findings: {e}"))),
        Command::Replay(args) => replay::run(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Plan(args) => compare::plan(&args),
        Command::Merge(args) => compare::merge(&args),
        Command::Report(args) => compare::report(&args),
        Command::Smoke(args) => smoke::run(&args),
        Command::Speed(args) => speed::run(args),
        Command::Worker => worker::run(),
    };
    result.unwrap_or_else(|error| {
        let hint = if matches!(error, BenchError::Env(_)) {
            "\nrun `bench doctor` for what this machine lacks"
        } else {
            ""
        };
        eprintln!("bench: failed to {error}{hint}");
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
