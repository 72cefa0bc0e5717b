//! What a report shows, as plain data: one evaluation, all numbers settled.
//!
//! The summary is computed from the ledger once and then only rendered: `report.html`
//! ([`report`](crate::report)) and `eval_info.json` ([`eval_info`](crate::eval_info)) hold the same numbers. Rates and
//! interval bounds are fractions in [0, 1]; times are seconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use simloop_trainers::{EpisodeRecord, FaultNote, MetricRange, Status};

use crate::operator::label::Label;
use crate::timing::DecisionTimes;

/// One evaluation of one policy on one suite under one protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSummary {
    /// The report's heading, e.g. `PushT, scripted expert`.
    pub title: String,
    /// `pusht`, `libero_spatial`, …
    pub suite: String,
    /// What acted.
    pub policy: String,
    /// The rules it was run by.
    pub protocol: Protocol,
    /// The command line that gives these numbers again.
    pub command: String,
    /// The run's seed.
    pub seed: u64,
    /// When it began, for people, e.g. `2026-05-04 12:30 UTC`; `None` where it was not recorded.
    pub started: Option<String>,
    /// Wall time of the rollouts, seconds.
    pub elapsed_secs: f64,
    /// Versions and hashes of everything that decides a result, by name.
    pub fingerprint: BTreeMap<String, String>,
    /// The one number.
    pub headline: Headline,
    /// One row per task, in the suite's order.
    pub tasks: Vec<TaskRow>,
    /// The mean over tasks, where there is more than one.
    pub macro_mean: Option<MacroMean>,
    /// Every episode, in the suite's order (task, then trial).
    pub episodes: Vec<EpisodeRow>,
    /// The success rate as episodes add up, in an order that depends on the protocol alone (by trial, tasks taking
    /// turns); empty where it is not shown.
    pub running: Vec<RunningPoint>,
    /// How fast it went.
    pub throughput: Throughput,
    /// SHA-256, hex, of the sorted episode records: the same for every order and number of workers.
    pub ledger_digest: String,
    /// Remarks for the reader, a sentence each.
    pub notes: Vec<String>,
    /// Every verdict of a person, also those that count neither way; empty where a simulator judges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
}

/// The rules of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// E.g. `openvla`.
    pub name: String,
    /// E.g. `v1`; empty where the name says it.
    pub version: String,
    /// Every number with its source.
    pub numbers: Vec<ProtocolNumber>,
}

/// One number of a protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtocolNumber {
    /// E.g. `max_steps`.
    pub name: String,
    /// As text, with its unit.
    pub value: String,
    /// Where it comes from; a part that begins with `https://` becomes a link.
    pub source: String,
}

/// A 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// Successes over completed episodes, with everything needed to judge the rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Headline {
    /// Episodes that solved their task.
    pub successes: u64,
    /// Episodes that ran to their end: successes and failures.
    pub completed: u64,
    /// Episodes that met a fault at every attempt; they say nothing about the policy.
    pub errors: u64,
    /// `successes / completed`; `None` without a completed episode.
    pub rate: Option<f64>,
    /// Wilson's interval of `rate`.
    pub wilson95: Option<Interval>,
    /// The mean of the Beta(1 + k, 1 + n - k) posterior.
    pub posterior_mean: Option<f64>,
    /// The rate over all episodes if every error had failed, and if every error had succeeded.
    pub error_bounds: Option<Interval>,
    /// Why no headline number is given, e.g. too many errors.
    pub withheld: Option<String>,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRow {
    /// Its number within the suite.
    pub id: u32,
    /// Its key in the ledger, e.g. `libero_spatial/3`.
    pub key: String,
    /// What the policy is told. Foreign text.
    pub instruction: String,
    /// Solved episodes.
    pub successes: u64,
    /// Completed episodes: successes and failures.
    pub completed: u64,
    /// Episodes that ended in errors.
    pub errors: u64,
    /// `successes / completed`.
    pub rate: Option<f64>,
    /// Wilson's interval of `rate`.
    pub wilson95: Option<Interval>,
    /// Mean number of environment steps of completed episodes.
    pub mean_steps: Option<f64>,
    /// Mean undiscounted sum of rewards of completed episodes.
    pub mean_return: Option<f64>,
    /// Means over completed episodes of each metric's maximum.
    pub metrics: BTreeMap<String, f64>,
}

/// The mean of the tasks' rates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MacroMean {
    /// The mean.
    pub mean: f64,
    /// Percentile bootstrap, resampled within each task.
    pub bootstrap95: Interval,
    /// How many resamples.
    pub resamples: u32,
}

/// One episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeRow {
    /// [`TaskRow::key`].
    pub task: String,
    /// The trial's number within the task.
    pub trial: u32,
    /// The seed that the environment was reset with.
    pub seed: u64,
    /// The stored initial state, where the protocol names one.
    pub init_state: Option<u32>,
    /// How it counts.
    pub status: Status,
    /// What went wrong last, if anything did. Foreign text.
    pub fault: Option<FaultNote>,
    /// Environment steps.
    pub steps: u32,
    /// The undiscounted sum of rewards.
    pub ret: f64,
    /// The largest reward of a single step.
    pub max_reward: f64,
    /// The environment's metrics.
    pub metrics: BTreeMap<String, MetricRange>,
    /// Wall time of the attempt that counts, seconds.
    pub wall_secs: f64,
    /// How often it was started.
    pub attempts: u32,
    /// Path of its video relative to the result folder, with forward slashes.
    pub video: Option<String>,
    /// A small PNG, usually its last frame.
    #[serde(skip)]
    pub thumbnail: Option<Vec<u8>>,
}

impl From<&EpisodeRecord> for EpisodeRow {
    /// The row of a ledger record, without video and thumbnail.
    fn from(record: &EpisodeRecord) -> Self {
        Self {
            task: record.task.clone(),
            trial: record.trial,
            seed: record.seed,
            init_state: record.init_state,
            status: record.status,
            fault: record.faults.last().cloned(),
            steps: record.steps,
            ret: record.ret,
            max_reward: record.max_reward,
            metrics: record.metrics.clone(),
            wall_secs: record.wall_secs,
            attempts: record.attempts,
            video: None,
            thumbnail: None,
        }
    }
}

/// The success rate after some episodes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningPoint {
    /// Completed episodes so far, from 1.
    pub completed: u64,
    /// The rate so far.
    pub rate: f64,
    /// The anytime-valid 95 % confidence sequence at this point.
    pub band: Interval,
}

/// How fast it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throughput {
    /// Environment steps of all workers per second of wall time.
    pub env_steps_per_sec: Option<f64>,
    /// Episodes per minute of wall time.
    pub episodes_per_min: Option<f64>,
    /// Mean time inside the policy per decision, seconds.
    pub secs_per_decision: Option<f64>,
    /// How that time is spread, in the longest session.
    #[serde(default)]
    pub decision_times: Option<DecisionTimes>,
}
