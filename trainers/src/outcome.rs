//! What a run that learned by acting has gained: success before and after on common seeds, and what it cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::proportion::wilson;
use crate::stats::{Alpha, PairedTable, Rate};
use crate::{EpisodeRecord, Status, TrainerError};

/// A success rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Success {
    /// Episodes that succeeded.
    pub successes: u64,
    /// Episodes that ran to their end.
    pub episodes: u64,
    /// The rate.
    pub rate: f64,
    /// Wilson's 95 % interval.
    pub interval: [f64; 2],
    /// Mean of the largest reward of an episode.
    pub mean_score: f64,
    /// Mean number of steps.
    pub mean_steps: f64,
}

/// A task before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskChange {
    /// The task.
    pub task: String,
    /// Before the first update.
    pub before: Success,
    /// After the last one.
    pub after: Success,
}

/// Before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Before the first update.
    pub before: Success,
    /// After the last one.
    pub after: Success,
    /// `after - before`, a fraction.
    pub gain: f64,
    /// 95 % interval of the gain on paired episodes (Bonett and Price).
    pub gain_interval: [f64; 2],
    /// McNemar's exact two-sided test.
    pub p: f64,
    /// Each task; a task that was learned away shows here.
    pub tasks: Vec<TaskChange>,
    /// Environment steps learned from.
    pub env_steps: u64,
    /// CPU-seconds of the run, evaluation in between included.
    pub cpu_secs: f64,
    /// CPU-seconds per percentage point gained; none without a gain.
    pub cpu_secs_per_point: Option<f64>,
}

/// The rate of some records; faults do not count.
///
/// # Errors
/// [`TrainerError::Config`] if there is not one episode.
pub fn success(records: &[&EpisodeRecord]) -> Result<Success, TrainerError> {
    let ran: Vec<_> = records.iter().filter(|r| r.status != Status::Error).collect();
    let n = ran.len() as u64;
    let k = ran.iter().filter(|r| r.status == Status::Success).count() as u64;
    let rate = Rate::new(k, n).map_err(|e| TrainerError::config(e.to_string()))?;
    let interval = wilson(rate, Alpha::default());
    let mean = |value: &dyn Fn(&EpisodeRecord) -> f64| {
        ran.iter().map(|r| value(r)).sum::<f64>() / n.max(1) as f64
    };
    Ok(Success {
        successes: k,
        episodes: n,
        rate: rate.fraction().unwrap_or(0.0),
        interval: [interval.low, interval.high],
        mean_score: mean(&|r| r.max_reward),
        mean_steps: mean(&|r| f64::from(r.steps)),
    })
}

impl Outcome {
    /// Compares the records of two evaluations on common seeds.
    ///
    /// # Errors
    /// [`TrainerError::Config`] if they share no episode.
    pub fn new(
        before: &[EpisodeRecord],
        after: &[EpisodeRecord],
        env_steps: u64,
        cpu_secs: f64,
    ) -> Result<Self, TrainerError> {
        let index = |records: &[EpisodeRecord]| -> BTreeMap<(String, u32), bool> {
            records
                .iter()
                .filter(|r| r.status != Status::Error)
                .map(|r| ((r.task.clone(), r.trial), r.status == Status::Success))
                .collect()
        };
        let (old, new) = (index(before), index(after));
        let mut table = PairedTable::default();
        for (key, a) in &old {
            if let Some(b) = new.get(key) {
                table.push(*a, *b);
            }
        }
        let mut tasks: Vec<String> = before.iter().map(|r| r.task.clone()).collect();
        tasks.sort();
        tasks.dedup();
        let of = |records: &[EpisodeRecord], task: &str| {
            success(&records.iter().filter(|r| r.task == task).collect::<Vec<_>>())
        };
        let tasks = tasks
            .into_iter()
            .map(|task| {
                Ok(TaskChange { before: of(before, &task)?, after: of(after, &task)?, task })
            })
            .collect::<Result<_, TrainerError>>()?;
        let all = |records: &[EpisodeRecord]| success(&records.iter().collect::<Vec<_>>());
        let (before, after) = (all(before)?, all(after)?);
        let gain = after.rate - before.rate;
        let interval = table.swapped().bonett_price(Alpha::default());
        Ok(Self {
            gain,
            gain_interval: [interval.low, interval.high],
            p: table.mcnemar_exact(),
            tasks,
            env_steps,
            cpu_secs,
            cpu_secs_per_point: (gain > 0.0).then(|| cpu_secs / (100.0 * gain)),
            before,
            after,
        })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let percent = |v: f64| format!("{:.1}", 100.0 * v);
        let rate = |s: &Success| {
            format!(
                "{}/{} = {} % ({} to {})",
                s.successes,
                s.episodes,
                percent(s.rate),
                percent(s.interval[0]),
                percent(s.interval[1])
            )
        };
        format!(
            "before {}, after {}: {} points ({} to {}), McNemar p = {}; {} env steps, {:.0} CPU-s",
            rate(&self.before),
            rate(&self.after),
            percent(self.gain),
            percent(self.gain_interval[0]),
            percent(self.gain_interval[1]),
            if self.p < 1e-3 { format!("{:.1e}", self.p) } else { format!("{:.3}", self.p) },
            self.env_steps,
            self.cpu_secs
        )
    }
}
