//! The command line of `train`: parse, run, report.
//!
//! Exit codes: 0 fine; 1 ran and failed; 2 could not run as asked.

pub mod parity;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Learn robot policies from demonstrations.
#[derive(Debug, Parser)]
#[command(name = "train", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare models with recorded numbers of their references.
    Parity(parity::ParityArgs),
}

/// Parses the command line and runs it.
#[expect(clippy::print_stderr, reason = "the error of a command-line program")]
pub fn main() -> ExitCode {
    // Before anything asks libtorch about CUDA: its hooks are cached at the first question.
    simloop_policies::device::load_cuda();
    let result = match Cli::parse().command {
        Command::Parity(args) => parity::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("train: failed to {error:#}");
        ExitCode::from(2)
    })
}
