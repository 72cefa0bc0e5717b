//! From ledger to numbers: everything a report shows is recomputed here from the records.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use simloop_trainers::{EpisodeRecord, Status};

use crate::BenchError;
use crate::ledger::{RunManifest, digest};
use crate::stats::bootstrap::{Scores, macro_mean, stratified_bootstrap};
use crate::stats::confidence_sequence::MixtureSequence;
use crate::stats::proportion::wilson;
use crate::stats::{Alpha, BetaPosterior, Outcomes, Rate};
use crate::summary::{
    EpisodeRow, EvalSummary, Headline, Interval, MacroMean, Protocol, ProtocolNumber, RunningPoint,
    TaskRow, Throughput,
};
use crate::timing::DecisionTimes;
use crate::videos::Video;

/// One stretch of work on a result folder; a resumed run has several.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    /// When it began, `2026-05-04 12:30 UTC`.
    pub started: String,
    /// Wall time of the rollouts, seconds.
    pub wall_secs: f64,
    /// Episodes finished.
    pub episodes: usize,
    /// Environments at once.
    pub workers: usize,
    /// How long decisions took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_times: Option<DecisionTimes>,
}

/// The name of the file of [`Session`]s, one JSON object a line.
pub const SESSIONS_FILE: &str = "sessions.jsonl";
/// Resamples of the bootstrap over episodes within tasks, and its seed.
const RESAMPLES: u32 = 4_000;
const BOOTSTRAP_SEED: u64 = 0;

/// Appends a session to the folder's list.
///
/// # Errors
/// [`BenchError::Folder`] if the disk refuses.
pub fn append_session(dir: &Path, session: &Session) -> Result<(), BenchError> {
    use std::io::Write as _;
    let path = dir.join(SESSIONS_FILE);
    let io = |e: std::io::Error| BenchError::io(&path, &e);
    let mut line =
        serde_json::to_vec(session).map_err(|e| BenchError::folder(&path, e.to_string()))?;
    line.push(b'\n');
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).map_err(io)?;
    file.write_all(&line).map_err(io)
}

/// The folder's sessions; lines that cannot be read are left out, since no result depends on them.
pub fn sessions(dir: &Path) -> Vec<Session> {
    let text = std::fs::read_to_string(dir.join(SESSIONS_FILE)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Counts records by how they count.
pub fn outcomes<'a>(records: impl IntoIterator<Item = &'a EpisodeRecord>) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for record in records {
        match record.status {
            Status::Success => outcomes.successes += 1,
            Status::Failure => outcomes.failures += 1,
            Status::Error => outcomes.errors += 1,
        }
    }
    outcomes
}

/// Settles every number of a run.
pub fn summarise(
    manifest: &RunManifest,
    records: &[EpisodeRecord],
    sessions: &[Session],
    videos: &BTreeMap<(String, u32), Video>,
    notes: Vec<String>,
) -> EvalSummary {
    let order: BTreeMap<&str, usize> =
        manifest.tasks.iter().enumerate().map(|(i, t)| (t.key.as_str(), i)).collect();
    let mut sorted: Vec<&EpisodeRecord> = records.iter().collect();
    sorted.sort_by_key(|r| (order.get(r.task.as_str()).copied().unwrap_or(usize::MAX), r.trial));
    let tasks: Vec<TaskRow> = manifest
        .tasks
        .iter()
        .map(|task| {
            let rows: Vec<&EpisodeRecord> =
                sorted.iter().copied().filter(|r| r.task == task.key).collect();
            task_row(task.id, &task.key, &task.instruction, &rows)
        })
        .filter(|row| row.completed + row.errors > 0)
        .collect();
    let episodes = sorted
        .iter()
        .map(|record| {
            let video = videos.get(&(record.task.clone(), record.trial));
            EpisodeRow {
                video: video.map(|v| v.path.clone()),
                thumbnail: video.and_then(|v| v.thumbnail.clone()),
                ..EpisodeRow::from(*record)
            }
        })
        .collect();
    let (name, version) =
        manifest.protocol.rsplit_once('-').unwrap_or((manifest.protocol.as_str(), ""));
    EvalSummary {
        title: format!("{}, {} policy", manifest.suite, manifest.policy),
        suite: manifest.suite.clone(),
        policy: manifest.policy.clone(),
        protocol: Protocol {
            name: name.to_owned(),
            version: version.to_owned(),
            numbers: manifest
                .protocol_lines
                .iter()
                .map(|l| ProtocolNumber {
                    name: l.name.clone(),
                    value: l.value.clone(),
                    source: l.source.clone(),
                })
                .collect(),
        },
        command: manifest.command.clone(),
        seed: manifest.seed,
        started: sessions.first().map(|s| s.started.clone()),
        elapsed_secs: sessions.iter().map(|s| s.wall_secs).sum(),
        fingerprint: manifest.fingerprint.clone(),
        headline: headline(outcomes(records)),
        macro_mean: over_tasks(&tasks),
        tasks,
        episodes,
        running: running(&sorted, &order),
        throughput: throughput(records, sessions),
        ledger_digest: digest(records),
        notes,
        labels: Vec::new(),
    }
}

fn headline(outcomes: Outcomes) -> Headline {
    let completed = outcomes.completed();
    let known = completed.episodes() > 0;
    let withheld = outcomes.headline().is_none().then(|| {
        format!(
            "{} of {} episodes ended as errors ({:.1} %, more than {:.0} %): mend the simulator and run them again with \
             --resume after deleting their lines, or read the bounds",
            outcomes.errors,
            outcomes.errors + completed.episodes(),
            100.0 * outcomes.error_fraction(),
            100.0 * Outcomes::MAX_ERROR_FRACTION
        )
    });
    Headline {
        successes: completed.successes(),
        completed: completed.episodes(),
        errors: outcomes.errors,
        rate: completed.fraction(),
        wilson95: known.then(|| interval(wilson(completed, Alpha::FIVE_PERCENT))),
        posterior_mean: known.then(|| BetaPosterior::uniform(completed).mean()),
        error_bounds: (outcomes.errors > 0).then(|| outcomes.bounds().map(interval)).flatten(),
        withheld,
    }
}

fn interval(interval: crate::stats::Interval) -> Interval {
    Interval { low: interval.low, high: interval.high }
}

fn task_row(id: u32, key: &str, instruction: &str, rows: &[&EpisodeRecord]) -> TaskRow {
    let counted = outcomes(rows.iter().copied());
    let rate = counted.completed();
    let completed: Vec<_> = rows.iter().filter(|r| r.status != Status::Error).collect();
    let mean = |value: &dyn Fn(&EpisodeRecord) -> f64| {
        (!completed.is_empty())
            .then(|| completed.iter().map(|r| value(r)).sum::<f64>() / completed.len() as f64)
    };
    let mut sums: BTreeMap<String, (f64, u32)> = BTreeMap::new();
    for (name, range) in completed.iter().flat_map(|r| &r.metrics) {
        let entry = sums.entry(name.clone()).or_default();
        *entry = (entry.0 + range.max, entry.1 + 1);
    }
    TaskRow {
        id,
        key: key.to_owned(),
        instruction: instruction.to_owned(),
        successes: rate.successes(),
        completed: rate.episodes(),
        errors: counted.errors,
        rate: rate.fraction(),
        wilson95: (rate.episodes() > 0).then(|| interval(wilson(rate, Alpha::FIVE_PERCENT))),
        mean_steps: mean(&|r| f64::from(r.steps)),
        mean_return: mean(&|r| r.ret),
        metrics: sums.into_iter().map(|(name, (sum, n))| (name, sum / f64::from(n))).collect(),
    }
}

/// The mean of the tasks' rates, every task counting the same; `None` for a single task.
fn over_tasks(tasks: &[TaskRow]) -> Option<MacroMean> {
    let rates: Vec<Rate> = tasks
        .iter()
        .filter(|t| t.completed > 0)
        .map(|t| Rate::from_parts(t.successes, t.completed - t.successes))
        .collect();
    if rates.len() < 2 {
        return None;
    }
    let scores = Scores::from_rates(&rates).ok()?;
    let resampled = stratified_bootstrap(
        &scores,
        macro_mean,
        RESAMPLES as usize,
        BOOTSTRAP_SEED,
        Alpha::FIVE_PERCENT,
    );
    Some(MacroMean {
        mean: resampled.estimate,
        bootstrap95: interval(resampled.interval),
        resamples: RESAMPLES,
    })
}

/// The rate over trials, all tasks of a trial before the next, so that the curve does not show the tasks' difficulty.
fn running(sorted: &[&EpisodeRecord], order: &BTreeMap<&str, usize>) -> Vec<RunningPoint> {
    let mut rate = Rate::default();
    let mut points = Vec::new();
    let mut by_trial: Vec<_> = sorted.iter().filter(|r| r.status != Status::Error).collect();
    by_trial.sort_by_key(|r| (r.trial, order.get(r.task.as_str()).copied()));
    for record in by_trial {
        rate.push(record.status == Status::Success);
        let band = MixtureSequence::JEFFREYS.interval(rate, Alpha::FIVE_PERCENT);
        points.push(RunningPoint {
            completed: rate.episodes(),
            rate: rate.fraction().unwrap_or_default(),
            band: interval(band),
        });
    }
    points
}

fn throughput(records: &[EpisodeRecord], sessions: &[Session]) -> Throughput {
    let wall: f64 = sessions.iter().map(|s| s.wall_secs).sum();
    let steps: f64 = records.iter().map(|r| f64::from(r.steps)).sum();
    let decisions: f64 = records.iter().map(|r| f64::from(r.decisions)).sum();
    let policy: f64 = records.iter().map(|r| r.policy_secs).sum();
    let per = |amount: f64, base: f64| (base > 0.0).then(|| amount / base);
    Throughput {
        env_steps_per_sec: per(steps, wall),
        episodes_per_min: per(60.0 * records.len() as f64, wall),
        secs_per_decision: per(policy, decisions),
        // Quantiles of several sessions cannot be joined: the one with the most decisions speaks for all.
        decision_times: sessions
            .iter()
            .filter_map(|s| s.decision_times)
            .max_by_key(|times| times.decisions),
    }
}
