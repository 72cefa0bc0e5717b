//! `data convert`.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::bar::Bar;
use super::data::SourceArgs;
use crate::data::{ConvertOptions, build_manifest, convert};
use crate::stop::StopFlag;

/// What to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// LeRobot v3.0: parquet with PNG inside.
    #[default]
    Lerobot,
    /// This project's manifest.jsonl with image files beside it; goes on where it was stopped.
    Manifest,
}

/// Write a data set of any readable format as another.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The folder to write.
    target: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value = "lerobot")]
    to: Format,
    /// Leave the images out (LeRobot).
    #[arg(long)]
    numbers_only: bool,
    /// Only the first so many episodes (LeRobot).
    #[arg(long)]
    episodes: Option<usize>,
    /// The robot's name in info.json (LeRobot).
    #[arg(long, default_value = "unknown")]
    robot_type: String,
}

pub(super) fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let source = args.source.open()?;
    let stop = StopFlag::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.inner()).context("listen for signals")?;
    }
    let total = source.episodes().len() as u64;
    let mut bar = Bar::new("convert", total);
    let (episodes, steps) = match args.to {
        Format::Lerobot => {
            let options = ConvertOptions {
                numbers_only: args.numbers_only,
                episodes: args.episodes,
                robot_type: args.robot_type.clone(),
            };
            let mut progress = |done: usize, total: usize| {
                bar.set(done as u64, total as u64, "");
                if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let written = convert(source.as_ref(), &args.target, &options, &mut progress)?;
            let Some((episodes, steps)) = written else {
                anyhow::bail!("write `{}`: stopped; nothing is left", args.target.display());
            };
            (episodes as u64, Some(steps))
        }
        Format::Manifest => {
            let done = build_manifest(source.as_ref(), &args.target, |progress| {
                bar.set((progress.found + progress.written) as u64, progress.total as u64, "");
                stop.is_set()
            })?;
            let there = (done.found + done.written) as u64;
            if there < total {
                anyhow::bail!(
                    "write `{}`: stopped at {there} of {total} episodes; the same command goes on",
                    args.target.display()
                );
            }
            (there, None)
        }
    };
    bar.finish();
    let steps = steps.map_or(String::new(), |n| format!(", {n} steps"));
    writeln!(std::io::stdout(), "{}: {episodes} episodes{steps}", args.target.display())?;
    Ok(ExitCode::SUCCESS)
}
