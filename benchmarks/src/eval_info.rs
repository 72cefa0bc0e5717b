//! `eval_info.json`: `LeRobot`'s layout, and what it leaves out.
//!
//! The keys `per_task`, `per_group` and `overall` and everything that `lerobot-eval` writes below them have its names,
//! types and units (lerobot 0.4.4, `scripts/lerobot_eval.py`, `eval_policy_all`): percentages are 0 to 100, times are
//! seconds, `per_task[].metrics` holds one entry per episode. The suite is the only group.
//!
//! Deviations:
//! 1. `LeRobot` writes `NaN` where there is nothing to average, which is no JSON. Here it is `null`.
//! 2. Episodes that ended in errors are in no list and no mean; `n_errors` counts them.
//! 3. Where the headline is withheld, `overall.pc_success` is `null` and `withheld` says why.
//! 4. Video paths are relative to the file.
//!
//! Ours beside them: `ci95` (percent, Wilson), `n_errors`, `n_successes`, `seeds`, `task`, `instruction`; at the top
//! `protocol`, `seeds`, `fingerprint`, `ledger_digest`, `secs_per_decision`, `decision_times`, `suite`, `policy`,
//! `command`, `notes`, `labels` (verdicts of a person, for a real robot).

use serde_json::{Value, json};
use simloop_trainers::Status;

use crate::summary::{EpisodeRow, EvalSummary, Interval, TaskRow};

/// The name of the file in a result folder.
pub const EVAL_INFO_FILE: &str = "eval_info.json";
const FORMAT: &str = "simloop-eval-info/1";

/// The summary in `LeRobot`'s layout with our additions. A pure function of the summary.
pub fn eval_info(summary: &EvalSummary) -> Value {
    let completed: Vec<&EpisodeRow> = completed(&summary.episodes).collect();
    let headline = &summary.headline;
    let aggregates = |pc_success: Option<f64>| {
        json!({
            "avg_sum_reward": mean(completed.iter().map(|e| e.ret)),
            "avg_max_reward": mean(completed.iter().map(|e| e.max_reward)),
            "pc_success": pc_success,
            "n_episodes": headline.completed,
            "n_successes": headline.successes,
            "n_errors": headline.errors,
            "ci95": percent_interval(headline.wilson95),
            "video_paths": video_paths(&summary.episodes),
        })
    };
    let rate = headline.rate.map(percent);
    let mut overall = aggregates(if headline.withheld.is_some() { None } else { rate });
    overall["eval_s"] = json!(summary.elapsed_secs);
    overall["eval_ep_s"] = json!(summary.elapsed_secs / headline.completed.max(1) as f64);
    overall["withheld"] = json!(headline.withheld);
    overall["ci95_method"] = json!("wilson");
    overall["posterior_mean"] = json!(headline.posterior_mean.map(percent));
    overall["error_bounds"] = percent_interval(headline.error_bounds);
    overall["pc_success_macro"] = json!(summary.macro_mean.map(|m| percent(m.mean)));
    overall["ci95_macro"] = percent_interval(summary.macro_mean.map(|m| m.bootstrap95));

    let suite = summary.suite.as_str();
    json!({
        "per_task": summary.tasks.iter().map(|task| per_task(summary, task)).collect::<Vec<_>>(),
        "per_group": { suite: aggregates(rate) },
        "overall": overall,
        "format": FORMAT,
        "suite": suite,
        "policy": summary.policy,
        "protocol": summary.protocol,
        "seeds": {
            "run": summary.seed,
            "episodes": summary.episodes.iter().map(|e| e.seed).collect::<Vec<_>>(),
        },
        "fingerprint": summary.fingerprint,
        "ledger_digest": summary.ledger_digest,
        "secs_per_decision": summary.throughput.secs_per_decision,
        "decision_times": summary.throughput.decision_times,
        "command": summary.command,
        "started": summary.started,
        "notes": summary.notes,
        "labels": summary.labels,
    })
}

/// [`eval_info`] as indented JSON with a final newline.
pub fn render_eval_info(summary: &EvalSummary) -> String {
    format!("{:#}\n", eval_info(summary))
}

fn per_task(summary: &EvalSummary, task: &TaskRow) -> Value {
    let all: Vec<&EpisodeRow> = summary.episodes.iter().filter(|e| e.task == task.key).collect();
    let completed: Vec<&EpisodeRow> = completed(all.iter().copied()).collect();
    json!({
        "task_group": summary.suite,
        "task_id": task.id,
        "metrics": {
            "sum_rewards": completed.iter().map(|e| e.ret).collect::<Vec<_>>(),
            "max_rewards": completed.iter().map(|e| e.max_reward).collect::<Vec<_>>(),
            "successes": completed.iter().map(|e| e.status == Status::Success).collect::<Vec<_>>(),
            "video_paths": video_paths(all.iter().copied()),
        },
        "task": task.key,
        "instruction": task.instruction,
        "pc_success": task.rate.map(percent),
        "ci95": percent_interval(task.wilson95),
        "n_episodes": task.completed,
        "n_successes": task.successes,
        "n_errors": task.errors,
        "seeds": completed.iter().map(|e| e.seed).collect::<Vec<_>>(),
        "mean_steps": task.mean_steps,
        "mean_metrics": task.metrics,
    })
}

fn completed<'a>(
    episodes: impl IntoIterator<Item = &'a EpisodeRow>,
) -> impl Iterator<Item = &'a EpisodeRow> {
    episodes.into_iter().filter(|episode| episode.status != Status::Error)
}

fn video_paths<'a>(episodes: impl IntoIterator<Item = &'a EpisodeRow>) -> Vec<&'a str> {
    episodes.into_iter().filter_map(|episode| episode.video.as_deref()).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

fn percent(fraction: f64) -> f64 {
    fraction * 100.0
}

fn percent_interval(interval: Option<Interval>) -> Value {
    json!(interval.map(|i| [percent(i.low), percent(i.high)]))
}
