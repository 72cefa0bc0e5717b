//! The figures of the page: running rate, histograms, strips of outcomes.

use serde::Serialize;
use simloop_trainers::Status;

use super::foreign::{cut, link};
use super::plots::{Histogram, OutcomeCell, histogram, outcome_strip, running_rate};
use super::render::{Limits, left_out, metric_names};
use super::words;
use crate::summary::{EpisodeRow, EvalSummary};

/// The name of an axis after so many: it cannot wrap.
const MAX_AXIS_TEXT: usize = 24;
/// Columns of an outcome strip: 325 pixels fit a phone.
const STRIP_COLUMNS: usize = 25;
const STEP_BINS: usize = 30;
const METRIC_BINS: usize = 40;

#[derive(Serialize)]
pub(super) struct Plot {
    pub(super) heading: String,
    pub(super) caption: String,
    pub(super) svg: String,
}

#[derive(Serialize)]
pub(super) struct Strip {
    pub(super) label: String,
    pub(super) score: String,
    pub(super) described: String,
    pub(super) svg: String,
}

pub(super) fn plots(summary: &EvalSummary) -> Vec<Plot> {
    let of = |status: Status, value: &dyn Fn(&EpisodeRow) -> Option<f64>| -> Vec<f64> {
        summary.episodes.iter().filter(|e| e.status == status).filter_map(value).collect()
    };
    let mut plots = Vec::new();
    let running = running_rate(&summary.running);
    if !running.is_empty() {
        plots.push(Plot {
            heading: "Success rate as episodes add up".to_owned(),
            caption: "Episodes are taken in a fixed order, not as they finished. The band is an anytime-valid \
                      95\u{a0}% confidence sequence: with 95\u{a0}% probability it holds the true rate at all times \
                      at once, so it may be looked at whenever one likes. That makes it wider than the interval \
                      above."
                .to_owned(),
            svg: running,
        });
    }
    let steps = |e: &EpisodeRow| Some(f64::from(e.steps));
    let longest = summary.episodes.iter().map(|e| e.steps).max().unwrap_or(0);
    if longest > 0 {
        plots.push(Plot {
            heading: "Episode length".to_owned(),
            caption: "Environment steps of completed episodes. A failure usually runs into the step limit.".to_owned(),
            svg: histogram(&Histogram {
                successes: &of(Status::Success, &steps),
                failures: &of(Status::Failure, &steps),
                range: (0.0, f64::from(longest)),
                bins: STEP_BINS,
                label: "steps",
            }),
        });
    }
    if let Some((heading, caption, label, value)) = distribution(summary) {
        let (successes, failures) = (of(Status::Success, &*value), of(Status::Failure, &*value));
        let all = || successes.iter().chain(&failures).copied().filter(|v| v.is_finite());
        let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(f64::MIN, f64::max));
        // Fractions keep their natural axis; a single value gets some room.
        let range = match (low, high) {
            (low, high) if low >= 0.0 && high <= 1.0 => (0.0, 1.0),
            (low, high) if high > low => (low.min(0.0), high),
            (low, _) => (low - 0.5, low + 0.5),
        };
        plots.push(Plot {
            heading,
            caption,
            svg: histogram(&Histogram {
                successes: &successes,
                failures: &failures,
                range,
                bins: METRIC_BINS,
                label: &label,
            }),
        });
    }
    plots
}

type ValueOf = Box<dyn Fn(&EpisodeRow) -> Option<f64>>;

/// What besides success is worth a histogram: `PushT`'s coverage, else the first metric, else the return if it is more
/// than success in disguise. As heading, caption, axis label and value.
fn distribution(summary: &EvalSummary) -> Option<(String, String, String, ValueOf)> {
    let names = metric_names(summary);
    let name = names.iter().find(|name| **name == "coverage").or(names.first());
    if let Some(name) = name {
        let name = (*name).to_owned();
        let shown: String = name.chars().take(MAX_AXIS_TEXT).collect::<String>().replace('_', " ");
        let label = format!("max {shown}");
        let caption = format!("The largest {shown} of each completed episode.");
        let value = move |e: &EpisodeRow| e.metrics.get(&name).map(|range| range.max);
        return Some((format!("How close it came: {label}"), caption, label, Box::new(value)));
    }
    let completed = || summary.episodes.iter().filter(|e| e.status != Status::Error);
    let mut returns: Vec<f64> = completed().map(|e| e.ret).collect();
    returns.sort_by(f64::total_cmp);
    returns.dedup();
    (returns.len() > 2).then(|| {
        let caption = "The undiscounted sum of rewards of each completed episode.".to_owned();
        let value: ValueOf = Box::new(|e: &EpisodeRow| Some(e.ret));
        ("Return".to_owned(), caption, "return".to_owned(), value)
    })
}

pub(super) fn strips(summary: &EvalSummary, limits: Limits) -> (Vec<Strip>, Option<String>) {
    let mut strips = Vec::new();
    let mut cells_left = limits.strip_cells;
    for task in summary.tasks.iter().take(limits.strips) {
        let cells: Vec<OutcomeCell> = summary
            .episodes
            .iter()
            .filter(|e| e.task == task.key)
            .take(cells_left)
            .map(|e| OutcomeCell {
                status: e.status,
                tip: format!(
                    "trial {}: {}, {}",
                    e.trial,
                    status_word(e.status),
                    words::count(u64::from(e.steps), "step")
                ),
                href: e.video.as_deref().and_then(link),
            })
            .collect();
        if cells.is_empty() {
            continue;
        }
        cells_left -= cells.len();
        let label = if task.instruction.is_empty() { &task.key } else { &task.instruction };
        let score = format!("{}/{}", task.successes, task.completed);
        let described =
            format!("{} of {} succeeded", task.successes, words::count(task.completed, "episode"));
        // One plot per row lets a wide page put rows side by side.
        let rows = cells.chunks(STRIP_COLUMNS).enumerate().map(|(row, cells)| {
            let first = row * STRIP_COLUMNS;
            let title = format!("episodes {} to {}", first + 1, first + cells.len());
            outcome_strip(cells, STRIP_COLUMNS, &title)
        });
        let svg = rows.collect();
        strips.push(Strip { label: cut(label), score, described, svg });
    }
    let shown = limits.strip_cells - cells_left;
    (strips, left_out(summary.episodes.len().saturating_sub(shown), "episode", "ledger.jsonl"))
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Success => "success",
        Status::Failure => "failure",
        Status::Error => "error",
    }
}
