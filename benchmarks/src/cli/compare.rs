//! `bench compare`, `plan`, `merge` and `report`: work on results that exist.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use simloop_trainers::{EpisodeRecord, Status};

use super::finish::{print_summary, write_results};
use crate::BenchError;
use crate::ledger::{self, RunManifest};
use crate::stats::{
    Alpha, Outcomes, PairedComparison, PairedTable, PlanRequest, Rate, TaskTable,
    UnpairedComparison,
};
use crate::videos::Video;

/// Two results.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The first result folder.
    a: PathBuf,
    /// The second result folder.
    b: PathBuf,
    /// Compare although protocol, seed or fingerprint differ; the differences are printed.
    #[arg(long)]
    force: bool,
    /// Two-sided error rate of the verdicts.
    #[arg(long, default_value_t = 0.05)]
    alpha: f64,
    /// Write the comparison as JSON here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Everything a comparison says, for programs.
#[derive(Debug, Serialize)]
struct Comparison {
    a: String,
    b: String,
    forced_over: Vec<String>,
    paired: Option<PairedComparison>,
    unpaired: Option<UnpairedComparison>,
    tasks: TaskTable,
    errors_a: u64,
    errors_b: u64,
    verdict: String,
}

struct Side {
    name: String,
    manifest: RunManifest,
    records: Vec<EpisodeRecord>,
}

/// Runs `bench compare`.
#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
pub(super) fn compare(args: &CompareArgs) -> Result<ExitCode, BenchError> {
    let alpha = Alpha::new(args.alpha).map_err(|e| BenchError::usage(e.to_string()))?;
    let (a, b) = (side(&args.a, "A")?, side(&args.b, "B")?);
    let differences = a.manifest.differences(&b.manifest, false);
    if !differences.is_empty() && !args.force {
        return Err(BenchError::usage(format!(
            "compare results that were run by different rules (A -> B):\n  {}\ngive --force to compare them all the same",
            differences.join("\n  ")
        )));
    }
    let comparison = build(&a, &b, differences, alpha);
    print_comparison(&comparison);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&comparison)
            .map_err(|e| BenchError::folder(path, e.to_string()))?;
        ledger::write_atomically(path, text.as_bytes())?;
        println!("written to {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn side(dir: &Path, letter: &str) -> Result<Side, BenchError> {
    let (manifest, records) = ledger::load(dir)?;
    Ok(Side { name: format!("{letter} ({})", manifest.policy), manifest, records })
}

type Key = (String, u32, Option<u32>, u64);

fn outcomes_by_key(records: &[EpisodeRecord]) -> BTreeMap<Key, bool> {
    let completed = records.iter().filter(|r| r.status != Status::Error);
    completed
        .map(|r| ((r.task.clone(), r.trial, r.init_state, r.seed), r.status == Status::Success))
        .collect()
}

fn build(a: &Side, b: &Side, forced_over: Vec<String>, alpha: Alpha) -> Comparison {
    let (ours, theirs) = (outcomes_by_key(&a.records), outcomes_by_key(&b.records));
    let mut total = PairedTable::default();
    let mut by_task: BTreeMap<String, PairedTable> = BTreeMap::new();
    for (key, &success) in &ours {
        if let Some(&other) = theirs.get(key) {
            total.push(success, other);
            by_task.entry(key.0.clone()).or_default().push(success, other);
        }
    }
    let errors = |side: &Side| crate::outcome::outcomes(&side.records).errors;
    let order: Vec<String> = a.manifest.tasks.iter().map(|t| t.key.clone()).collect();
    let (paired, unpaired, tasks) = if total.pairs() > 0 {
        let all = a.records.len().max(b.records.len()) as u64;
        let paired = PairedComparison::new(total, all - total.pairs(), alpha);
        let rows =
            order.iter().filter_map(|task| by_task.remove(task).map(|table| (task.clone(), table)));
        (Some(paired), None, TaskTable::paired(rows.collect::<Vec<_>>(), alpha))
    } else {
        let rate = |side: &Side, task: Option<&str>| -> Rate {
            let records = side.records.iter().filter(|r| task.is_none_or(|task| r.task == task));
            Outcomes::completed(crate::outcome::outcomes(records))
        };
        let unpaired = UnpairedComparison::new(rate(a, None), rate(b, None), alpha);
        let rows =
            order.iter().map(|task| (task.clone(), rate(a, Some(task)), rate(b, Some(task))));
        (None, Some(unpaired), TaskTable::unpaired(rows.collect::<Vec<_>>(), alpha))
    };
    let verdict = paired.as_ref().map(|c| c.verdict).or(unpaired.as_ref().map(|c| c.verdict));
    Comparison {
        verdict: verdict.map_or_else(String::new, |v| v.in_words(&a.name, &b.name)),
        a: a.name.clone(),
        b: b.name.clone(),
        forced_over,
        paired,
        unpaired,
        tasks,
        errors_a: errors(a),
        errors_b: errors(b),
    }
}

#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
fn print_comparison(comparison: &Comparison) {
    for difference in &comparison.forced_over {
        println!("not the same: {difference}");
    }
    if comparison.tasks.rows.len() > 1 {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "task",
            "A",
            "B",
            "A - B, pp",
            "95 % interval, pp",
            "p",
            "p (Holm)",
            "verdict",
        ]);
        for row in &comparison.tasks.rows {
            table.add_row([
                row.task.clone(),
                row.rate_a.to_string(),
                row.rate_b.to_string(),
                row.difference.map_or("-".to_owned(), |d| format!("{:+.1}", 100.0 * d)),
                format!("{:+.1} to {:+.1}", 100.0 * row.interval.low, 100.0 * row.interval.high),
                format!("{:.4}", row.p),
                format!("{:.4}", row.p_holm),
                row.verdict.in_words("A", "B"),
            ]);
        }
        for column in 1..7 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{table}");
    }
    if comparison.errors_a + comparison.errors_b > 0 {
        println!("errors, in no rate: A {}, B {}", comparison.errors_a, comparison.errors_b);
    }
    if let Some(paired) = &comparison.paired {
        println!("{}", paired.summary(&comparison.a, &comparison.b));
    }
    if let Some(unpaired) = &comparison.unpaired {
        println!("no shared (task, initial state, seed): unpaired test");
        println!("{}", unpaired.summary(&comparison.a, &comparison.b));
    }
}

/// A question about sample sizes.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The difference to detect: `5pp` or `0.05`.
    #[arg(long, value_parser = parse_points)]
    detect: f64,
    /// Success rate of the present policy.
    #[arg(long, default_value_t = 0.9)]
    base: f64,
    /// Probability of finding a difference of that size.
    #[arg(long, default_value_t = 0.8)]
    power: f64,
    /// Two-sided error rate.
    #[arg(long, default_value_t = 0.05)]
    alpha: f64,
    /// Share of shared episodes on which the two policies differ, if it is known.
    #[arg(long)]
    discordance: Option<f64>,
}

fn parse_points(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.strip_suffix("pp").or_else(|| text.strip_suffix('%')) {
        Some(points) => (points, 100.0),
        None => (text, 1.0),
    };
    number.trim().parse::<f64>().map(|v| v / scale).map_err(|e| format!("{e}; write 5pp or 0.05"))
}

/// Runs `bench plan`.
#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
pub(super) fn plan(args: &PlanArgs) -> Result<ExitCode, BenchError> {
    let usage = |e: crate::stats::StatsError| BenchError::usage(e.to_string());
    let request = PlanRequest {
        base: args.base,
        detect: args.detect,
        power: args.power,
        alpha: Alpha::new(args.alpha).map_err(usage)?,
        discordance: args.discordance,
    };
    println!("{}", request.plan().map_err(usage)?);
    Ok(ExitCode::SUCCESS)
}

/// Result folders of one run.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// The folders: shards, or parts from several machines.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The folder to be made.
    #[arg(long, alias = "out", alias = "output_dir")]
    output_dir: PathBuf,
}

/// Runs `bench merge`.
pub(super) fn merge(args: &MergeArgs) -> Result<ExitCode, BenchError> {
    let merged = ledger::merge(&args.inputs, &args.output_dir)?;
    let manifest = ledger::load(&args.output_dir)?.0;
    for session in args.inputs.iter().flat_map(|dir| crate::outcome::sessions(dir)) {
        crate::outcome::append_session(&args.output_dir, &session)?;
    }
    let notes =
        vec![format!("Merged from {} folders; wall times are added up.", args.inputs.len())];
    let summary =
        write_results(&args.output_dir, &manifest, merged.records(), &BTreeMap::new(), notes)?;
    print_summary(&summary, &args.output_dir);
    Ok(ExitCode::SUCCESS)
}

/// A result folder.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// The folder.
    dir: PathBuf,
}

/// Runs `bench report`.
pub(super) fn report(args: &ReportArgs) -> Result<ExitCode, BenchError> {
    let (manifest, records) = ledger::load(&args.dir)?;
    let videos = existing_videos(&args.dir, &manifest, &records);
    let summary = write_results(&args.dir, &manifest, &records, &videos, Vec::new())?;
    print_summary(&summary, &args.dir);
    Ok(ExitCode::SUCCESS)
}

/// Videos that an earlier run left in the folder; their thumbnails are gone.
fn existing_videos(
    dir: &Path,
    manifest: &RunManifest,
    records: &[EpisodeRecord],
) -> BTreeMap<(String, u32), Video> {
    let ids: BTreeMap<&str, u32> = manifest.tasks.iter().map(|t| (t.key.as_str(), t.id)).collect();
    let mut videos = BTreeMap::new();
    for record in records {
        let Some(&id) = ids.get(record.task.as_str()) else { continue };
        let outcome = if record.status == Status::Success { "success" } else { "failure" };
        let stem = crate::video::video_stem(id as usize, record.trial as usize, outcome);
        for extension in ["mp4", "gif"] {
            let path = format!("videos/{stem}.{extension}");
            if dir.join(&path).exists() {
                videos.insert((record.task.clone(), record.trial), Video { path, thumbnail: None });
            }
        }
    }
    videos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_and_fractions_are_both_understood() {
        assert_eq!(parse_points("5pp"), Ok(0.05));
        assert_eq!(parse_points("2.5 %"), Ok(0.025));
        assert_eq!(parse_points("0.1"), Ok(0.1));
        assert!(parse_points("five").is_err());
    }
}
