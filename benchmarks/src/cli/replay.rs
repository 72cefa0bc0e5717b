//! `bench replay`: how anyone checks an engine's fidelity.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use simloop_envs::pusht::{self, ReplayReport};

use crate::BenchError;
use crate::ledger::write_atomically;

/// Which environment.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ReplayEnv {
    Pusht,
}

/// What to replay.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The environment that replays it.
    env: ReplayEnv,
    /// A recording: JSON with `source` and `cases` (action, agent_pos, agent_vel, block_pose, … per case).
    file: PathBuf,
    /// Frames of the same cases, an .npz with `CASE_frames` and `CASE_idx` [default: frames.npz beside the recording].
    #[arg(long)]
    frames: Option<PathBuf>,
    /// Write the report as JSON here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write our own open-loop trajectories in the recording's layout here.
    #[arg(long, value_name = "FILE")]
    rerun: Option<PathBuf>,
}

/// Runs `bench replay`.
#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
pub(super) fn run(args: &ReplayArgs) -> Result<ExitCode, BenchError> {
    let ReplayEnv::Pusht = args.env;
    let report = pusht::replay_file(&args.file, args.frames.as_deref())?;
    print_report(&report);
    let write = |path: &PathBuf, text: Result<String, serde_json::Error>| {
        let text = text.map_err(|e| BenchError::folder(path, e.to_string()))?;
        write_atomically(path, text.as_bytes())?;
        println!("written to {}", path.display());
        Ok::<_, BenchError>(())
    };
    if let Some(path) = &args.json {
        write(path, serde_json::to_string_pretty(&report))?;
    }
    if let Some(path) = &args.rerun {
        let recording = pusht::Recording::read(&args.file)?;
        write(path, serde_json::to_string(&pusht::rerun(&recording)))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
fn print_report(report: &ReplayReport) {
    println!("recorded with {}\nreplayed with {}", report.recorded_with, report.replayed_with);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "group",
        "cases",
        "contact steps",
        "one step p50, px",
        "p90",
        "p99",
        "max",
        "open loop end, median, px",
        "max",
        "max coverage differs by",
        "reset differs by",
    ]);
    for (name, group) in &report.groups {
        let one = &group.one_step_contact_px;
        table.add_row([
            name.clone(),
            group.cases.to_string(),
            one.count.to_string(),
            format!("{:.4}", one.p50),
            format!("{:.4}", one.p90),
            format!("{:.4}", one.p99),
            format!("{:.4}", one.max),
            format!("{:.4}", group.open_loop_final_median_px),
            format!("{:.4}", group.open_loop_final_max_px),
            format!("{:.5}", group.max_coverage_diff),
            group.reset_diff.map_or("-".to_owned(), |d| format!("{d:.1e}")),
        ]);
    }
    for column in 1..11 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    if let Some(frames) = &report.frames {
        println!(
            "{} frames: mean absolute difference {:.3} of 255 (worst frame {:.3}), {:.2} % of pixels equal",
            frames.frames,
            frames.mean_abs_diff,
            frames.worst_frame_mean_abs_diff,
            100.0 * frames.exact_pixels
        );
    }
}
