//! `bench smoke`: everything that learns, end to end, in a minute.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::{Table, presets};
use simloop_trainers::stop::StopFlag;

use crate::BenchError;
use crate::smoke::{SmokeOptions, SmokeReport, smoke};

/// How to run it.
#[derive(Debug, Args)]
pub(super) struct SmokeArgs {
    /// Keep what was written in this folder, which must be empty or missing [default: a temporary one, removed].
    #[arg(long, alias = "output_dir", alias = "out")]
    output_dir: Option<PathBuf>,
    /// Episodes to judge each policy by, before and after.
    #[arg(long, default_value_t = 500)]
    episodes: u32,
    /// Fail if it takes longer than so many seconds; 0 for no limit.
    #[arg(long, default_value_t = 0.0)]
    max_secs: f64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs `bench smoke`.
#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
pub(super) fn run(args: &SmokeArgs) -> Result<ExitCode, BenchError> {
    let program = std::env::current_exe()
        .map_err(|e| BenchError::usage(format!("find this program: {e}")))?;
    let programs = program.parent().map(PathBuf::from).unwrap_or_default();
    for name in ["data", "train"] {
        if !programs.join(name).exists() {
            return Err(BenchError::folder(
                &programs,
                format!(
                    "`{name}` is not there; build all programs: cargo build --release --workspace"
                ),
            ));
        }
    }
    let temporary =
        tempfile::tempdir().map_err(|e| BenchError::usage(format!("make a folder: {e}")))?;
    let out = args.output_dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let out = std::path::absolute(&out).map_err(|e| BenchError::io(&out, &e))?;
    let stop = StopFlag::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.inner())
            .map_err(|e| BenchError::usage(format!("listen for signals: {e}")))?;
    }
    let report = smoke(&SmokeOptions { out, programs, episodes: args.episodes }, &stop)?;
    if args.json {
        let text = serde_json::to_string(&report).map_err(|e| BenchError::usage(e.to_string()))?;
        println!("{text}");
    } else {
        println!("{}", table(&report));
    }
    let late = args.max_secs > 0.0 && report.secs > args.max_secs;
    if late {
        println!("took {:.1} s, allowed are {:.1} s", report.secs, args.max_secs);
    }
    Ok(ExitCode::from(u8::from(late || !report.passed())))
}

fn table(report: &SmokeReport) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header([
        "algorithm",
        "success, %",
        "coverage",
        "judged by",
        "p",
        "train, s",
        "judge, s",
        "",
    ]);
    for stage in &report.stages {
        let change = &stage.change;
        table.add_row([
            stage.algorithm.to_owned(),
            format!("{:.1} → {:.1}", 100.0 * change.success[0], 100.0 * change.success[1]),
            format!("{:.3} → {:.3}", change.coverage[0], change.coverage[1]),
            format!("{:?}", change.measure).to_lowercase(),
            format!("{:.1e}", change.p),
            format!("{:.1}", stage.train_secs),
            format!("{:.1}", stage.judge_secs),
            if change.learned { "learned" } else { "FAILED" }.to_owned(),
        ]);
    }
    let resumes = if report.resumes { "resumes exactly" } else { "DOES NOT RESUME exactly" };
    format!("{table}\nPPO {resumes}. {:.1} s in all.", report.secs)
}
