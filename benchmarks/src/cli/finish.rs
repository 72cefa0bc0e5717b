//! From a suite to a result folder a person can read: run, film, summarise, write, print.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use simloop_envs::ResetRequest;
use simloop_trainers::EpisodeRecord;
use simloop_trainers::stop::StopFlag;

use super::common::{RunArgs, stop_on_signals};
use crate::BenchError;
use crate::ledger::RunManifest;
use crate::outcome::{Session, append_session, sessions, summarise};
use crate::runner::{self, RunResult, WorkerKind};
use crate::suites::SuiteRun;
use crate::summary::{EvalSummary, Headline};
use crate::videos::{Beginning, Filming, Video, VideoChoice, film};

type Videos = BTreeMap<(String, u32), Video>;

/// Runs a suite and leaves a complete result folder.
pub(super) fn run_suite(
    mut suite: SuiteRun,
    args: &RunArgs,
    kind: WorkerKind,
) -> Result<ExitCode, BenchError> {
    let stop = stop_on_signals()?;
    let mut options =
        args.options(&format!("{}_{}", suite.suite, label(&suite.policy_label)), kind);
    if args.workers.is_none() && kind != WorkerKind::Processes {
        // Cheap environments: enough of them to fill a batch.
        options.workers = options.workers.max(suite.min_ready);
    }
    let mut monitor = args.monitor()?;
    let started = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let result = runner::run(&mut suite, &options, monitor.as_mut(), &stop)?;
    if result.fresh > 0 {
        let finished = result.records.len().saturating_sub(result.known);
        let session = Session {
            started,
            wall_secs: result.wall_secs,
            episodes: finished,
            workers: options.workers,
            decision_times: result.decision_times,
        };
        append_session(&options.dir, &session)?;
    }
    let choice = VideoChoice { successes: args.videos, failures: args.max_failure_videos };
    let (videos, mut notes) =
        make_videos(&suite, &options.dir, &result, choice, options.workers, &stop);
    if result.interrupted {
        notes.insert(0, "The run was interrupted; --resume goes on with it.".to_owned());
    }
    if let Some((verdict, episodes)) = &result.decided {
        notes.insert(0, format!("Stopped after {episodes} episodes: {verdict}"));
    }
    let summary = write_results(&options.dir, &result.manifest, &result.records, &videos, notes)?;
    print_summary(&summary, &options.dir);
    Ok(exit_code(&summary.headline, &result, args.allow_errors))
}

pub(super) fn label(policy: &str) -> String {
    let name = policy.trim_end_matches('/').rsplit('/').next().unwrap_or(policy);
    crate::ledger::file_stem(name)
}

pub(super) fn exit_code(headline: &Headline, result: &RunResult, allow_errors: bool) -> ExitCode {
    let failed = result.interrupted || (headline.errors > 0 && !allow_errors);
    ExitCode::from(u8::from(failed))
}

fn make_videos(
    suite: &SuiteRun,
    dir: &Path,
    result: &RunResult,
    choice: VideoChoice,
    workers: usize,
    stop: &StopFlag,
) -> (Videos, Vec<String>) {
    let chosen = choice.choose(&result.records);
    if chosen.is_empty() {
        return (BTreeMap::new(), Vec::new());
    }
    let begin: BTreeMap<(&str, u32), &ResetRequest> =
        suite.episodes.iter().map(|e| ((e.task.as_str(), e.trial), &e.request)).collect();
    let ids: BTreeMap<&str, u32> = suite.tasks.iter().map(|t| (t.key.as_str(), t.id)).collect();
    let begin = |record: &EpisodeRecord| {
        let request = (*begin.get(&(record.task.as_str(), record.trial))?).clone();
        Some(Beginning { task_id: *ids.get(record.task.as_str())?, request })
    };
    let bar = ProgressBar::new(chosen.len() as u64);
    let style = ProgressStyle::with_template(
        "videos {bar:28} {pos}/{len}  {elapsed_precise} < {eta_precise}",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let filming = Filming { dir, viewer: &suite.viewer, fps: suite.video_fps, workers };
    let (videos, notes) = film(&filming, &chosen, &begin, stop, &|| bar.inc(1));
    bar.finish_and_clear();
    (videos, notes)
}

/// Computes the summary from the records and writes `eval_info.json` and `report.html`.
pub(super) fn write_results(
    dir: &Path,
    manifest: &RunManifest,
    records: &[EpisodeRecord],
    videos: &Videos,
    notes: Vec<String>,
) -> Result<EvalSummary, BenchError> {
    let mut summary = summarise(manifest, records, &sessions(dir), videos, notes);
    summary.labels = crate::operator::label::read(dir);
    crate::report::write_results(dir, &summary).map_err(|e| BenchError::io(dir, &e))?;
    Ok(summary)
}

/// Prints the table and the headline.
#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
pub(super) fn print_summary(summary: &EvalSummary, dir: &Path) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "task",
        "instruction",
        "success",
        "rate",
        "95 % interval",
        "errors",
        "mean steps",
    ]);
    for task in &summary.tasks {
        let percent = |v: f64| format!("{:.1}", 100.0 * v);
        table.add_row([
            task.key.clone(),
            task.instruction.clone(),
            format!("{}/{}", task.successes, task.completed),
            task.rate.map_or("-".to_owned(), percent),
            task.wilson95
                .map_or("-".to_owned(), |i| format!("{} to {}", percent(i.low), percent(i.high))),
            task.errors.to_string(),
            task.mean_steps.map_or("-".to_owned(), |s| format!("{s:.1}")),
        ]);
    }
    for column in 2..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    println!("{}", headline_words(summary));
    for note in &summary.notes {
        println!("note: {note}");
    }
    let throughput = &summary.throughput;
    if let (Some(steps), Some(decision)) =
        (throughput.env_steps_per_sec, throughput.secs_per_decision)
    {
        let spread = throughput.decision_times.map_or_else(String::new, |times| {
            format!(
                " (median {:.3}, 99th percentile {:.3}; {:.1} at once, {:.3} ms a batch)",
                1e3 * times.p50_secs,
                1e3 * times.p99_secs,
                times.mean_batch(),
                1e3 * times.batch_p50_secs
            )
        });
        println!(
            "{:.1} s of rollouts, {steps:.0} env steps/s, {:.3} ms per decision{spread}",
            summary.elapsed_secs,
            1e3 * decision
        );
    }
    println!("ledger {}", summary.ledger_digest);
    println!("report {}", dir.join("report.html").display());
}

fn headline_words(summary: &EvalSummary) -> String {
    let h = &summary.headline;
    if let Some(why) = &h.withheld {
        return format!("no headline: {why}");
    }
    let (Some(rate), Some(ci)) = (h.rate, h.wilson95) else {
        return "no episode was completed".to_owned();
    };
    let errors = match (h.errors, h.error_bounds) {
        (0, _) | (_, None) => String::new(),
        (n, Some(b)) => format!(
            "; {n} errors ({:.1} to {:.1} % if they all failed or all succeeded)",
            100.0 * b.low,
            100.0 * b.high
        ),
    };
    format!(
        "{} of {} episodes succeeded: {:.1} %, 95 % interval {:.1} to {:.1} %{errors}",
        h.successes,
        h.completed,
        100.0 * rate,
        100.0 * ci.low,
        100.0 * ci.high
    )
}
