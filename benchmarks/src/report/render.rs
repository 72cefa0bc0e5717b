//! The page: what the template sees, limits, files.

use std::io::Write as _;
use std::path::Path;

use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;
use simloop_trainers::Status;

use super::figures::{Plot, Strip, plots, strips};
use super::foreign::{Piece, cut, link, pieces};
use super::plots::whisker;
use super::svg::{base64, escape};
use super::words;
use crate::eval_info::{EVAL_INFO_FILE, render_eval_info};
use crate::summary::{EpisodeRow, EvalSummary, TaskRow};

/// The name of the page in a result folder.
pub const REPORT_FILE: &str = "report.html";
/// No report is larger.
pub const MAX_BYTES: usize = 2 * 1024 * 1024;
const TEMPLATE: &str = include_str!("template.html");
/// How much of each long list is shown.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    tasks: usize,
    pub(super) strips: usize,
    pub(super) strip_cells: usize,
    failures: usize,
    errors: usize,
    thumbnail_bytes: usize,
}

/// Tried in turn until the page is small enough.
const LIMITS: [Limits; 3] = [
    Limits {
        tasks: 300,
        strips: 130,
        strip_cells: 6000,
        failures: 60,
        errors: 60,
        thumbnail_bytes: 1_200_000,
    },
    Limits {
        tasks: 150,
        strips: 60,
        strip_cells: 2000,
        failures: 40,
        errors: 30,
        thumbnail_bytes: 300_000,
    },
    Limits {
        tasks: 50,
        strips: 20,
        strip_cells: 500,
        failures: 20,
        errors: 10,
        thumbnail_bytes: 0,
    },
];

/// The page, as HTML of at most [`MAX_BYTES`]. A pure function of the summary.
///
/// # Errors
/// [`std::io::ErrorKind::InvalidData`] if even the shortest page is too large, which takes megabytes of notes or
/// fingerprints.
pub fn render_report(summary: &EvalSummary) -> std::io::Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    // The built-in escaping also replaces every slash, which makes commands and paths in the source unreadable.
    environment.set_formatter(|out, _, value| {
        if value.is_undefined() || value.is_none() {
            return Ok(());
        }
        let text = value.to_string();
        let written =
            if value.is_safe() { out.write_str(&text) } else { out.write_str(&escape(&text)) };
        written.map_err(|_| minijinja::ErrorKind::WriteFailure.into())
    });
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    let template = environment.template_from_str(TEMPLATE).map_err(std::io::Error::other)?;
    for limits in LIMITS {
        let page = template
            .render(context! { page => Page::new(summary, limits) })
            .map_err(std::io::Error::other)?;
        if page.len() <= MAX_BYTES {
            return Ok(page);
        }
    }
    let what = format!("the report is larger than {MAX_BYTES} bytes; shorten notes or fingerprint");
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}

/// Writes [`REPORT_FILE`] and [`EVAL_INFO_FILE`] into the result folder `dir`, each whole or not at all.
///
/// # Errors
/// As [`render_report`], and what the file system says.
pub fn write_results(dir: &Path, summary: &EvalSummary) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let files =
        [(EVAL_INFO_FILE, render_eval_info(summary)), (REPORT_FILE, render_report(summary)?)];
    for (name, text) in files {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        }
        file.persist(dir.join(name)).map_err(|error| error.error)?;
    }
    Ok(())
}

const MAX_LABELS: usize = 1000;

/// Everything the template reads. Plain text is escaped there; fields named `svg` or `*_svg` are markup.
#[derive(Serialize)]
struct Page<'a> {
    title: String,
    facts_line: Vec<String>,
    rate: Option<String>,
    withheld: Option<String>,
    sentence: String,
    interval: Option<String>,
    errors_sentence: Option<String>,
    headline_svg: String,
    facts: Vec<Fact>,
    reading: Vec<String>,
    plots: Vec<Plot>,
    strips: Vec<Strip>,
    strips_left_out: Option<String>,
    protocol: String,
    numbers: Vec<NumberRow>,
    metric_names: Vec<&'a str>,
    tasks: Vec<TaskLine>,
    tasks_left_out: Option<String>,
    macro_line: Option<MacroLine>,
    failures: Vec<Card>,
    failures_left_out: Option<String>,
    no_failures: Option<&'static str>,
    errors: Vec<ErrorLine>,
    errors_left_out: Option<String>,
    fingerprint: Vec<(String, String)>,
    command_words: Vec<&'a str>,
    seed: u64,
    ledger_digest: &'a str,
    notes: &'a [String],
    labels: Vec<LabelLine>,
}

/// One verdict of a person.
#[derive(Serialize)]
struct LabelLine {
    trial: u32,
    attempt: u32,
    verdict: &'static str,
    credit: String,
    labeller: String,
    at: String,
    steps: u32,
    fault: String,
    video: Option<String>,
}

#[derive(Serialize)]
struct Fact {
    name: &'static str,
    value: String,
    note: Option<String>,
}

#[derive(Serialize)]
struct NumberRow {
    name: String,
    value: String,
    source: Vec<Piece>,
}

#[derive(Serialize)]
struct TaskLine {
    key: String,
    instruction: String,
    score: String,
    rate: String,
    interval: String,
    errors: u64,
    steps: String,
    ret: String,
    metrics: Vec<String>,
    whisker_svg: String,
}

#[derive(Serialize)]
struct MacroLine {
    rate: String,
    interval: String,
    resamples: String,
    whisker_svg: String,
}

#[derive(Serialize)]
struct Card {
    task: String,
    instruction: String,
    trial: u32,
    facts: String,
    seed: String,
    video: Option<String>,
    image: Option<String>,
}

#[derive(Serialize)]
struct ErrorLine {
    task: String,
    trial: u32,
    seed: String,
    class: String,
    detail: String,
    attempts: u32,
}

impl<'a> Page<'a> {
    fn new(summary: &'a EvalSummary, limits: Limits) -> Self {
        let headline = &summary.headline;
        let metric_names = metric_names(summary);
        let (strips, strips_left_out) = strips(summary, limits);
        let (failures, failures_left_out) = failures(summary, limits);
        let (errors, errors_left_out) = errors(summary, limits);
        let shown_tasks = summary.tasks.len().min(limits.tasks);
        let withheld = headline.withheld.clone();
        Self {
            title: cut(&summary.title),
            facts_line: facts_line(summary),
            rate: headline.rate.filter(|_| withheld.is_none()).map(words::percent),
            withheld,
            sentence: words::headline(headline),
            interval: words::headline_interval(headline),
            errors_sentence: words::errors(headline),
            headline_svg: whisker(headline.rate, headline.wilson95, true),
            facts: facts(summary),
            reading: reading(summary),
            plots: plots(summary),
            strips,
            strips_left_out,
            protocol: format!("{} {}", cut(&summary.protocol.name), cut(&summary.protocol.version)),
            numbers: summary
                .protocol
                .numbers
                .iter()
                .map(|n| NumberRow {
                    name: cut(&n.name),
                    value: cut(&n.value),
                    source: pieces(&n.source),
                })
                .collect(),
            tasks: summary.tasks[..shown_tasks]
                .iter()
                .map(|t| task_line(t, &metric_names))
                .collect(),
            tasks_left_out: left_out(summary.tasks.len() - shown_tasks, "task", "eval_info.json"),
            metric_names,
            macro_line: summary.macro_mean.map(|m| MacroLine {
                rate: words::percent(m.mean),
                interval: words::interval(m.bootstrap95),
                resamples: words::thousands(u64::from(m.resamples)),
                whisker_svg: whisker(Some(m.mean), Some(m.bootstrap95), false),
            }),
            failures,
            failures_left_out,
            no_failures: no_failures(summary),
            errors,
            errors_left_out,
            fingerprint: summary.fingerprint.iter().map(|(k, v)| (cut(k), cut(v))).collect(),
            command_words: summary.command.split(' ').collect(),
            seed: summary.seed,
            ledger_digest: &summary.ledger_digest,
            notes: &summary.notes,
            labels: labels(summary),
        }
    }
}

fn facts_line(summary: &EvalSummary) -> Vec<String> {
    let mut line = vec![
        cut(&summary.suite),
        format!("policy {}", cut(&summary.policy)),
        format!("protocol {} {}", cut(&summary.protocol.name), cut(&summary.protocol.version)),
    ];
    line.extend(summary.started.as_deref().map(cut));
    line
}

fn facts(summary: &EvalSummary) -> Vec<Fact> {
    let headline = &summary.headline;
    let fact =
        |name, value, note: Option<&str>| Fact { name, value, note: note.map(str::to_owned) };
    let mut facts = vec![
        fact("Episodes completed", words::thousands(headline.completed), None),
        fact("Errors", words::thousands(headline.errors), Some("faults, not failures")),
    ];
    if let Some(mean) = headline.posterior_mean {
        facts.push(fact("Posterior mean", words::percent(mean), Some("from a uniform prior")));
    }
    if let Some(macro_mean) = summary.macro_mean {
        facts.push(Fact {
            name: "Mean over tasks",
            value: words::percent(macro_mean.mean),
            note: Some(words::interval(macro_mean.bootstrap95)),
        });
    }
    facts.push(fact("Wall time", words::duration(summary.elapsed_secs), None));
    let speed = &summary.throughput;
    if let Some(steps) = speed.env_steps_per_sec {
        facts.push(fact("Steps per second", words::number(steps), Some("all workers")));
    }
    if let Some(episodes) = speed.episodes_per_min {
        facts.push(fact("Episodes per minute", words::number(episodes), None));
    }
    if let Some(secs) = speed.secs_per_decision {
        let spread = speed.decision_times.map(|times| {
            format!(
                "median {}, 99th percentile {}, {:.1} at once",
                words::duration(times.p50_secs),
                words::duration(times.p99_secs),
                times.mean_batch()
            )
        });
        facts.push(Fact {
            name: "Policy, per decision",
            value: words::duration(secs),
            note: spread,
        });
    }
    facts
}

fn reading(summary: &EvalSummary) -> Vec<String> {
    let headline = &summary.headline;
    let mut text = vec![
        "The interval holds the true success rates that fit what was seen: of intervals made this way, about 95 in \
         100 contain the true rate. It covers the luck of these episodes alone, not another simulator, protocol or \
         robot."
            .to_owned(),
    ];
    if let Some(ci) = headline.wilson95 {
        text.push(format!(
            "From {} the rate is known to about \u{b1}{} percentage points. Four times as many episodes would halve \
             that.",
            words::count(headline.completed, "episode"),
            words::number((ci.high - ci.low) * 50.0)
        ));
    }
    text.push(
        "To tell two policies apart, run both on the same seeds and give the two folders to bench compare. Looking at \
         whether two intervals overlap is no test, and rates measured under different protocols are no comparison."
            .to_owned(),
    );
    text.push(
        "An error is a fault of the simulator or a worker that stayed after every retry. It is no verdict on the \
         policy, so it counts neither way; above 1\u{a0}% of errors no headline is given."
            .to_owned(),
    );
    text
}

fn failures(summary: &EvalSummary, limits: Limits) -> (Vec<Card>, Option<String>) {
    let mut bytes_left = limits.thumbnail_bytes;
    let all: Vec<&EpisodeRow> =
        summary.episodes.iter().filter(|e| e.status == Status::Failure).collect();
    let cards = all.iter().take(limits.failures).map(|e| {
        let mut facts = vec![words::count(u64::from(e.steps), "step")];
        facts.extend(e.metrics.iter().map(|(name, range)| {
            format!("max {} {}", cut(name).replace('_', " "), words::number(range.max))
        }));
        if e.attempts > 1 {
            facts.push(format!("attempt {}", e.attempts));
        }
        let image = e.thumbnail.as_ref().filter(|png| png.len() <= bytes_left).map(|png| {
            bytes_left -= png.len();
            format!("data:image/png;base64,{}", base64(png))
        });
        let task = summary.tasks.iter().find(|task| task.key == e.task);
        Card {
            task: cut(&e.task),
            instruction: task.map(|task| cut(&task.instruction)).unwrap_or_default(),
            trial: e.trial,
            facts: facts.join(", "),
            seed: e.seed.to_string(),
            video: e.video.as_deref().and_then(link),
            image,
        }
    });
    let cards: Vec<Card> = cards.collect();
    let more = left_out(all.len() - cards.len(), "failure", "ledger.jsonl");
    (cards, more)
}

fn errors(summary: &EvalSummary, limits: Limits) -> (Vec<ErrorLine>, Option<String>) {
    let all: Vec<&EpisodeRow> =
        summary.episodes.iter().filter(|e| e.status == Status::Error).collect();
    let lines: Vec<ErrorLine> = all
        .iter()
        .take(limits.errors)
        .map(|e| ErrorLine {
            task: cut(&e.task),
            trial: e.trial,
            seed: e.seed.to_string(),
            class: e.fault.as_ref().map_or_else(|| "unknown".to_owned(), |fault| cut(&fault.class)),
            detail: e.fault.as_ref().map_or_else(String::new, |fault| cut(&fault.detail)),
            attempts: e.attempts,
        })
        .collect();
    let more = left_out(all.len() - lines.len(), "error", "ledger.jsonl");
    (lines, more)
}

/// A person gives some hundred verdicts a day: no limit is needed but that of the page.
fn labels(summary: &EvalSummary) -> Vec<LabelLine> {
    let lines = summary.labels.iter().take(MAX_LABELS).map(|label| LabelLine {
        trial: label.trial,
        attempt: label.attempt,
        verdict: label.verdict.name(),
        credit: label.credit.map_or_else(|| "\u{2013}".to_owned(), words::number),
        labeller: cut(&label.labeller),
        at: cut(&label.at),
        steps: label.steps,
        fault: label.fault.as_deref().map_or_else(String::new, cut),
        video: label.video.clone(),
    });
    lines.collect()
}

fn no_failures(summary: &EvalSummary) -> Option<&'static str> {
    let failed = summary.headline.completed > summary.headline.successes;
    match (failed, summary.headline.completed) {
        (true, _) => None,
        (false, 0) => Some("No episode was completed."),
        (false, _) => Some("Every completed episode succeeded."),
    }
}

fn task_line(task: &TaskRow, metric_names: &[&str]) -> TaskLine {
    let optional = |value: Option<f64>| value.map_or_else(|| "\u{2013}".to_owned(), words::number);
    TaskLine {
        key: cut(&task.key),
        instruction: cut(&task.instruction),
        score: format!("{}/{}", words::thousands(task.successes), words::thousands(task.completed)),
        rate: task.rate.map_or_else(|| "\u{2013}".to_owned(), words::percent),
        interval: task.wilson95.map_or_else(|| "\u{2013}".to_owned(), words::interval),
        errors: task.errors,
        steps: optional(task.mean_steps),
        ret: optional(task.mean_return),
        metrics: metric_names
            .iter()
            .map(|name| optional(task.metrics.get(*name).copied()))
            .collect(),
        whisker_svg: whisker(task.rate, task.wilson95, false),
    }
}

pub(super) fn metric_names(summary: &EvalSummary) -> Vec<&str> {
    let mut names: Vec<&str> =
        summary.tasks.iter().flat_map(|task| task.metrics.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

pub(super) fn left_out(n: usize, noun: &str, file: &str) -> Option<String> {
    (n > 0).then(|| format!("{} more: see {file}.", words::count(n as u64, noun)))
}
