//! Two policies on common seeds.

use std::path::Path;

use serde::Serialize;
use simloop_envs::pusht::PushtObs;
use simloop_policies::checkpoint::load_policy;
use simloop_policies::vla::VlaPolicy;
use simloop_trainers::acting::Acting;
use simloop_trainers::config::{EvalConfig, EvalEnv};
use simloop_trainers::stop::StopFlag;
use simloop_trainers::{EpisodeRecord, Status};
use tch::Device;

use super::plan::{MAX_STEPS, Stage, Start};
use crate::BenchError;
use crate::stats::PairedTable;
use crate::stats::paired::sign_flip;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Whether the episode was solved: McNemar's exact test.
    Success,
    /// The largest coverage of the episode, on average: Fisher's randomisation test of the paired differences.
    Coverage,
}

/// A policy before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// What was compared.
    pub measure: Measure,
    /// Episodes.
    pub episodes: u32,
    /// Success rate before and after.
    pub success: [f64; 2],
    /// Mean of the episodes' largest coverage, before and after.
    pub coverage: [f64; 2],
    /// Two-sided p of the paired test on `measure`, against a rise by the stage's margin.
    pub p: f64,
    /// Whether `measure` rose with p < 0.05.
    pub learned: bool,
}

/// The policy in `folder`, and the one that it began as.
///
/// # Errors
/// [`BenchError::Policy`] for a damaged folder.
pub fn pair(start: Start, cloned: &Path, folder: &Path) -> Result<[VlaPolicy; 2], BenchError> {
    let after = load_policy(folder, Device::Cpu)?;
    let before = match start {
        Start::Cloned => load_policy(cloned, Device::Cpu)?,
        Start::Nothing => VlaPolicy::new(
            after.config().clone(),
            after.io().clone(),
            after.normalizers().clone(),
            Device::Cpu,
            0,
        )?,
    };
    Ok([before, after])
}

/// Runs both policies on `episodes` common seeds.
///
/// # Errors
/// What the environment or a policy answers; an evaluation that was stopped.
pub fn judge(
    policies: [VlaPolicy; 2],
    stage: &Stage,
    episodes: u32,
    stop: &StopFlag,
) -> Result<Change, BenchError> {
    let config =
        EvalConfig { env: EvalEnv::Pusht, max_steps: MAX_STEPS, envs: 64, ..EvalConfig::default() };
    let mut records = Vec::with_capacity(2);
    for mut policy in policies {
        let obs = PushtObs::EnvironmentStateAgentPos;
        let mut acting = Acting::new(&config, obs)?
            .ok_or_else(|| BenchError::usage("judge a policy nowhere"))?;
        policy.set_inference_batch(64);
        let ran = acting.records(&mut policy, "smoke", episodes, stop)?;
        records.push(ran.ok_or_else(|| BenchError::usage("finish: interrupted"))?);
    }
    let [before, after] = &records[..] else { unreachable!("two policies") };
    Ok(compare(stage.measure, stage.margin, before, after))
}

/// The paired test; both in the order of trials.
fn compare(
    measure: Measure,
    margin: f64,
    before: &[EpisodeRecord],
    after: &[EpisodeRecord],
) -> Change {
    let solved = |r: &EpisodeRecord| r.status == Status::Success;
    let coverage = |r: &EpisodeRecord| r.metrics.get("coverage").map_or(0.0, |c| c.max);
    let both = || before.iter().zip(after);
    let mean = |records: &[EpisodeRecord], value: &dyn Fn(&EpisodeRecord) -> f64| {
        records.iter().map(value).sum::<f64>() / records.len().max(1) as f64
    };
    let success = |records| mean(records, &|r| f64::from(u8::from(solved(r))));
    let (p, up) = match measure {
        Measure::Success => {
            let table = PairedTable::from_pairs(both().map(|(a, b)| (solved(a), solved(b))));
            (table.mcnemar_exact(), table.n01 > table.n10)
        }
        Measure::Coverage => {
            let differences: Vec<f64> =
                both().map(|(a, b)| coverage(b) - coverage(a) - margin).collect();
            (sign_flip(&differences, RESAMPLES, 0), differences.iter().sum::<f64>() > 0.0)
        }
    };
    Change {
        measure,
        episodes: before.len() as u32,
        success: [success(before), success(after)],
        coverage: [mean(before, &coverage), mean(after, &coverage)],
        p,
        learned: p < 0.05 && up,
    }
}

/// Sign flips tried: the least p is 1e-5.
const RESAMPLES: u32 = 99_999;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use simloop_envs::EpisodeEnd;
    use simloop_trainers::MetricRange;

    use super::*;

    fn episodes(coverage: impl Fn(u32) -> f64) -> Vec<EpisodeRecord> {
        (0..20)
            .map(|trial| {
                let max = coverage(trial);
                let solved = max > 0.95;
                EpisodeRecord {
                    task: "pusht".to_owned(),
                    trial,
                    seed: u64::from(trial),
                    init_state: None,
                    status: if solved { Status::Success } else { Status::Failure },
                    end: if solved { EpisodeEnd::Terminated } else { EpisodeEnd::Truncated },
                    steps: 1,
                    decisions: 1,
                    ret: 0.0,
                    max_reward: max,
                    metrics: BTreeMap::from([(
                        "coverage".to_owned(),
                        MetricRange { max, last: max },
                    )]),
                    trace: String::new(),
                    attempts: 1,
                    faults: Vec::new(),
                    wall_secs: 0.0,
                    policy_secs: 0.0,
                }
            })
            .collect()
    }

    #[test]
    fn what_rose_everywhere_has_been_learned_and_what_fell_has_not() {
        let (low, high) =
            (episodes(|i| 0.01 * f64::from(i)), episodes(|i| 0.02 * f64::from(i) + 0.1));
        let up = compare(Measure::Coverage, 0.0, &low, &high);
        assert!(up.learned && up.p < 1e-4, "{up:?}");
        let too_little = compare(Measure::Coverage, 0.3, &low, &high);
        assert!(!too_little.learned, "{too_little:?}");
        let down = compare(Measure::Coverage, 0.0, &high, &low);
        assert!(!down.learned && down.p < 1e-4, "{down:?}");
        // No success on either side: nothing can be said.
        let none = compare(Measure::Success, 0.0, &low, &high);
        assert!(!none.learned && none.p == 1.0, "{none:?}");
    }

    #[test]
    fn noise_is_not_learning() {
        let before = episodes(|i| if i % 2 == 0 { 0.3 } else { 0.2 });
        let after = episodes(|i| if i % 2 == 0 { 0.2 } else { 0.3 });
        assert!(!compare(Measure::Coverage, 0.0, &before, &after).learned);
        let equal = compare(Measure::Coverage, 0.0, &before, &before);
        assert!(!equal.learned && equal.p == 1.0);
    }

    #[test]
    fn six_more_solved_episodes_are_enough_and_five_are_not() {
        // 2 · 2^-6 = 0.031, 2 · 2^-5 = 0.0625.
        let before = episodes(|_| 0.5);
        for (more, learned) in [(5, false), (6, true)] {
            let after = episodes(|i| if i < more { 1.0 } else { 0.5 });
            assert_eq!(compare(Measure::Success, 0.0, &before, &after).learned, learned);
        }
    }
}
