//! The command line of `data`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use simloop_envs::pusht::PushtObs;

use super::collect::{self, CollectArgs};
use super::convert::{self, ConvertArgs};
use crate::data::hdf5::{Hdf5Options, ObsTiming, RobomimicOptions};
use crate::data::{
    DataError, DataStatistics, DemoSource, InspectOptions, Inspection, OpenOptions, RldsOptions,
    WindowDataset, WindowOptions, inspect, open_source, save_statistics,
};

/// Instructions that `data inspect` lists without `--all-tasks`.
const TASKS_SHOWN: usize = 20;

/// Look at demonstrations and bring them into other formats.
#[derive(Debug, Parser)]
#[command(name = "data", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what a data set holds and what is wrong with it; exit 1 where something is.
    Inspect(InspectArgs),
    /// Write a data set of any readable format as LeRobot v3.0 or as a manifest.
    Convert(ConvertArgs),
    /// Record what a policy does in a simulator, as LeRobot v3.0.
    Collect(CollectArgs),
    /// Compute exact statistics of actions and proprio, as JSON with OpenVLA's keys.
    Stats(StatsArgs),
}

/// Which data set, and how it is read.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The data set's folder or file; its format is known by its files.
    path: PathBuf,
    /// PushT zarr: what the proprio holds, and whether there are images.
    #[arg(long, value_enum, default_value = "state")]
    obs: Obs,
    /// RLDS: the split, in TFDS's notation (`train`, `train[:95%]`).
    #[arg(long, default_value = "train")]
    split: String,
    /// RLDS: a row of OpenVLA's table of standardisations, e.g. `bridge_orig`.
    #[arg(long)]
    standardise: Option<String>,
    /// RLDS: leave out episodes without an instruction, as OpenVLA does.
    #[arg(long)]
    skip_unlabeled: bool,
    /// HDF5: whether an observation was seen before or after the action of its row; `auto` takes raw LIBERO files for
    /// `after` and all others for `before`.
    #[arg(long, value_enum, default_value = "auto")]
    obs_timing: Timing,
    /// HDF5: leave out actions that do nothing, by OpenVLA's rule.
    #[arg(long)]
    drop_noops: bool,
    /// HDF5: only the demonstrations of `mask/NAME`.
    #[arg(long)]
    mask: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Obs {
    State,
    EnvironmentStateAgentPos,
    Pixels,
    PixelsAgentPos,
}

impl From<Obs> for PushtObs {
    fn from(obs: Obs) -> Self {
        match obs {
            Obs::State => Self::State,
            Obs::EnvironmentStateAgentPos => Self::EnvironmentStateAgentPos,
            Obs::Pixels => Self::Pixels,
            Obs::PixelsAgentPos => Self::PixelsAgentPos,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Timing {
    Auto,
    Before,
    After,
}

impl SourceArgs {
    /// Opens it.
    ///
    /// # Errors
    /// As [`open_source`].
    pub fn open(&self) -> Result<Arc<dyn DemoSource>, DataError> {
        let options = OpenOptions {
            pusht_obs: self.obs.into(),
            rlds: RldsOptions {
                split: self.split.clone(),
                standardise: self.standardise.clone(),
                skip_unlabeled: self.skip_unlabeled,
            },
            hdf5: Hdf5Options {
                robomimic: RobomimicOptions {
                    timing: match self.obs_timing {
                        Timing::Auto => ObsTiming::Auto,
                        Timing::Before => ObsTiming::Before,
                        Timing::After => ObsTiming::After,
                    },
                    drop_noops: self.drop_noops,
                    mask: self.mask.clone(),
                    ..RobomimicOptions::default()
                },
                ..Hdf5Options::default()
            },
            ..OpenOptions::default()
        };
        open_source(&self.path, &options)
    }
}

#[derive(Debug, Args)]
struct InspectArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Episodes whose first, middle and last frames are decoded, spread over the data set.
    #[arg(long, default_value_t = 50)]
    image_episodes: usize,
    /// List every instruction.
    #[arg(long)]
    all_tasks: bool,
}

#[derive(Debug, Args)]
struct StatsArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The name of the entry; the folder's where it is not given.
    #[arg(long)]
    name: Option<String>,
    /// Numbers of an action that are not scaled, e.g. `6` for a gripper; may be repeated.
    #[arg(long)]
    unscaled: Vec<usize>,
    /// Write the file instead of printing it.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Parses the command line and runs it.
#[expect(clippy::print_stderr, reason = "the error of a command-line program")]
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Inspect(args) => run_inspect(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Collect(args) => collect::run(&args),
        Command::Stats(args) => run_stats(&args),
    };
    result.unwrap_or_else(|error| {
        // A closed pipe (`data inspect … | head`) is no failure worth a message.
        let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
        if error.downcast_ref::<std::io::Error>().is_some_and(closed) {
            return ExitCode::SUCCESS;
        }
        eprintln!("data: {error:#}");
        ExitCode::from(2)
    })
}

fn run_inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let source = args.source.open()?;
    let options = InspectOptions { image_episodes: args.image_episodes };
    let found = inspect(source.as_ref(), options)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        write!(out, "{}", report(&found, if args.all_tasks { usize::MAX } else { TASKS_SHOWN }))?;
    }
    Ok(ExitCode::from(u8::from(!found.faults.is_empty())))
}

fn run_stats(args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let source = args.source.open()?;
    let episodes = (0..source.episodes().len()).collect();
    let data = WindowDataset::new(source, episodes, WindowOptions::default())?;
    let mut stats = DataStatistics::of(&data)?;
    for &d in &args.unscaled {
        let n = stats.action_mask.len();
        *stats
            .action_mask
            .get_mut(d)
            .with_context(|| format!("--unscaled {d}: an action has {n} numbers"))? = false;
    }
    let folder = args.source.path.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = args.name.clone().or(folder).unwrap_or_else(|| "data".to_owned());
    let all = BTreeMap::from([(name, stats)]);
    match &args.out {
        Some(path) => save_statistics(path, &all)?,
        None => writeln!(std::io::stdout().lock(), "{}", crate::data::statistics_json(&all)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The summary as text.
fn report(found: &Inspection, tasks_shown: usize) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write_report(&mut text, found, tasks_shown);
    text
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(header.to_vec());
    table
}

fn write_report(out: &mut impl fmt::Write, found: &Inspection, tasks_shown: usize) -> fmt::Result {
    let hz = found.control_hz.map_or(String::new(), |hz| format!(" at {hz} Hz"));
    let (shortest, mean, longest) = found.lengths;
    writeln!(out, "{}: {}", found.format, found.location)?;
    writeln!(
        out,
        "{} episodes, {} steps{hz}; {shortest} to {longest} steps each, {mean:.1} on average",
        found.episodes, found.steps
    )?;
    if !found.cameras.is_empty() {
        let mut rows = table(&["camera", "height x width", "frames decoded", "black"]);
        for (name, c) in &found.cameras {
            rows.add_row([
                name.clone(),
                format!("{} x {}", c.height, c.width),
                c.looked_at.to_string(),
                c.black.to_string(),
            ]);
        }
        writeln!(out, "\n{rows}")?;
    }
    let mut rows = table(&["number", "min", "max", "mean", "std"]);
    for (what, numbers) in [("proprio", &found.proprio), ("action", &found.action)] {
        for n in numbers {
            let mut row = vec![format!("{what} {}", n.name)];
            row.extend([n.min, n.max, n.mean, n.std].map(|v| format!("{v:.5}")));
            rows.add_row(row);
        }
    }
    writeln!(out, "\n{rows}")?;
    let mut tasks: Vec<(&String, &usize)> = found.tasks.iter().collect();
    tasks.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let mut rows = table(&["episodes", "instruction"]);
    for (task, count) in tasks.iter().take(tasks_shown) {
        let task = if task.is_empty() { "(none)" } else { task.as_str() };
        rows.add_row([count.to_string(), task.to_owned()]);
    }
    writeln!(out, "\n{rows}")?;
    if tasks.len() > tasks_shown {
        writeln!(out, "… {} more instructions (--all-tasks)", tasks.len() - tasks_shown)?;
    }
    writeln!(out)?;
    for (what, lines) in [("note", &found.notes), ("FAULT", &found.faults)] {
        for line in lines {
            writeln!(out, "{what}: {line}")?;
        }
    }
    if found.faults.is_empty() { writeln!(out, "no fault found") } else { Ok(()) }
}
