//! Aggregate scores of several runs on several tasks, with stratified percentile bootstrap intervals.
//!
//! Source: Agarwal et al. 2021 (rliable). Deviations: the seed is an argument and is used (rliable 1.2.0 ignores
//! its own), and small cases can be enumerated exactly. Strata are tasks: episodes are resampled within each
//! task, so the interval speaks of these tasks, not of unseen ones.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::special::percentile;
use super::{Alpha, Interval, Rate, StatsError};

/// Scores by task: `scores.tasks()[task][run]`. Tasks may have different numbers of runs, none may be empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    tasks: Vec<Vec<f64>>,
}

impl Scores {
    /// # Errors
    /// [`StatsError::EmptyStratum`] when there is no task or a task has no score.
    pub fn new(tasks: Vec<Vec<f64>>) -> Result<Self, StatsError> {
        if tasks.is_empty() {
            return Err(StatsError::EmptyStratum { stratum: 0 });
        }
        if let Some(stratum) = tasks.iter().position(Vec::is_empty) {
            return Err(StatsError::EmptyStratum { stratum });
        }
        Ok(Self { tasks })
    }

    /// From rows of runs, `rows[run][task]`, as rliable stores them.
    ///
    /// # Errors
    /// [`StatsError::Lengths`] when rows differ in length; [`StatsError::EmptyStratum`] when nothing is left.
    pub fn from_runs(rows: &[Vec<f64>]) -> Result<Self, StatsError> {
        let tasks = rows.first().map_or(0, Vec::len);
        if let Some(row) = rows.iter().find(|row| row.len() != tasks) {
            return Err(StatsError::Lengths { left: tasks, right: row.len(), at_least: 1 });
        }
        Self::new((0..tasks).map(|task| rows.iter().map(|row| row[task]).collect()).collect())
    }

    /// Successes as 1 and failures as 0, one stratum per task.
    ///
    /// # Errors
    /// [`StatsError::EmptyStratum`] when there is no task or a task has no episode.
    pub fn from_rates(rates: &[Rate]) -> Result<Self, StatsError> {
        let outcomes = |rate: &Rate| {
            let mut scores = vec![1.0; rate.successes() as usize];
            scores.resize(rate.episodes() as usize, 0.0);
            scores
        };
        Self::new(rates.iter().map(outcomes).collect())
    }

    /// Scores of each task.
    pub fn tasks(&self) -> &[Vec<f64>] {
        &self.tasks
    }

    fn pooled(&self) -> impl Iterator<Item = f64> + '_ {
        self.tasks.iter().flatten().copied()
    }

    fn task_means(&self) -> impl Iterator<Item = f64> + '_ {
        self.tasks.iter().map(|task| mean(task))
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Mean of the task means: every task counts the same.
pub fn macro_mean(scores: &Scores) -> f64 {
    scores.task_means().sum::<f64>() / scores.tasks.len() as f64
}

/// Mean of all scores: every episode counts the same.
pub fn micro_mean(scores: &Scores) -> f64 {
    let (count, sum) = scores.pooled().fold((0.0, 0.0), |(n, s), x| (n + 1.0, s + x));
    sum / count
}

/// Median of the task means.
pub fn median(scores: &Scores) -> f64 {
    percentile(&sorted(scores.task_means()), 0.5)
}

/// Interquartile mean: the mean of runs x tasks without the lowest and highest quarter (rounded down).
pub fn iqm(scores: &Scores) -> f64 {
    let all = sorted(scores.pooled());
    let cut = all.len() / 4;
    mean(&all[cut..all.len() - cut])
}

/// Mean shortfall below `target`; scores above it count as the target.
pub fn optimality_gap(scores: &Scores, target: f64) -> f64 {
    scores.mean_of(|x| (target - x).max(0.0))
}

/// Performance profile: the fraction of runs x tasks with a score above `tau`.
pub fn performance_profile(scores: &Scores, tau: f64) -> f64 {
    let (count, above) =
        scores.pooled().fold((0.0, 0.0), |(n, a), x| (n + 1.0, a + f64::from(u8::from(x > tau))));
    above / count
}

impl Scores {
    /// Mean of all scores after `f`.
    fn mean_of(&self, f: impl Fn(f64) -> f64) -> f64 {
        let (count, sum) = self.pooled().fold((0.0, 0.0), |(n, s), x| (n + 1.0, s + f(x)));
        sum / count
    }
}

/// Probability that a run of `x` scores above a run of `y` on a random task; ties count half.
///
/// # Errors
/// [`StatsError::Lengths`] unless both have the same tasks.
pub fn prob_improvement(x: &Scores, y: &Scores) -> Result<f64, StatsError> {
    if x.tasks.len() != y.tasks.len() {
        return Err(StatsError::Lengths { left: x.tasks.len(), right: y.tasks.len(), at_least: 1 });
    }
    let wins = |x: &[f64], y: &[f64]| {
        let score = |a: f64, b: f64| {
            if a > b {
                1.0
            } else if a == b {
                0.5
            } else {
                0.0
            }
        };
        let sum: f64 = x.iter().map(|&a| y.iter().map(|&b| score(a, b)).sum::<f64>()).sum();
        sum / (x.len() * y.len()) as f64
    };
    let sum: f64 = x.tasks.iter().zip(&y.tasks).map(|(x, y)| wins(x, y)).sum();
    Ok(sum / x.tasks.len() as f64)
}

/// Standard error of the macro mean of success rates, tasks being fixed strata:
/// `sqrt(sum p (1 - p) / n) / tasks`. NaN without tasks or for a task without episodes.
pub fn stratified_standard_error(rates: &[Rate]) -> f64 {
    let variance: f64 = rates
        .iter()
        .map(|rate| {
            let (k, n) = rate.kn();
            let p = k / n;
            p * (1.0 - p) / n
        })
        .sum();
    variance.sqrt() / rates.len() as f64
}

/// Standard error of the pooled success rate as if all episodes were alike. NaN without episodes.
pub fn pooled_standard_error(rates: &[Rate]) -> f64 {
    let (k, n) = rates.iter().fold((0.0, 0.0), |(k, n), rate| {
        let (dk, dn) = rate.kn();
        (k + dk, n + dn)
    });
    let p = k / n;
    (p * (1.0 - p) / n).sqrt()
}

/// What resampling says about a statistic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Resampled {
    /// The statistic of the scores themselves.
    pub estimate: f64,
    /// Percentile interval over the resamples.
    pub interval: Interval,
    /// Mean over the resamples.
    pub mean: f64,
    /// Standard deviation over the resamples (population form).
    pub deviation: f64,
}

fn summarise(estimate: f64, mut values: Vec<f64>, alpha: Alpha) -> Resampled {
    values.sort_by(f64::total_cmp);
    let centre = mean(&values);
    let variance = values.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / values.len() as f64;
    let tail = 0.5 * alpha.get();
    Resampled {
        estimate,
        interval: Interval::new(percentile(&values, tail), percentile(&values, 1.0 - tail)),
        mean: centre,
        deviation: variance.sqrt(),
    }
}

/// Stratified percentile bootstrap with `resamples` (at least 1) draws from the generator seeded by `seed`.
/// Equal arguments give equal bits on every machine.
pub fn stratified_bootstrap(
    scores: &Scores,
    statistic: impl Fn(&Scores) -> f64,
    resamples: usize,
    seed: u64,
    alpha: Alpha,
) -> Resampled {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = scores.clone();
    let values = (0..resamples.max(1))
        .map(|_| {
            for (drawn, task) in draw.tasks.iter_mut().zip(&scores.tasks) {
                for slot in drawn {
                    *slot = task[rng.random_range(0..task.len())];
                }
            }
            statistic(&draw)
        })
        .collect();
    summarise(statistic(scores), values, alpha)
}

/// Most resamples that [`exact_bootstrap`] goes through.
pub const MAX_EXACT_RESAMPLES: usize = 1_000_000;

/// Stratified bootstrap over every possible resample, each once: 729 for three runs of two tasks.
///
/// # Errors
/// [`StatsError::TooManyResamples`] above [`MAX_EXACT_RESAMPLES`].
pub fn exact_bootstrap(
    scores: &Scores,
    statistic: impl Fn(&Scores) -> f64,
    alpha: Alpha,
) -> Result<Resampled, StatsError> {
    let count: f64 =
        scores.tasks.iter().map(|task| (task.len() as f64).powi(task.len() as i32)).product();
    if count > MAX_EXACT_RESAMPLES as f64 {
        return Err(StatsError::TooManyResamples { resamples: count, limit: MAX_EXACT_RESAMPLES });
    }
    let mut draw = scores.clone();
    let values = (0..count as usize)
        .map(|code| {
            // The code's digits, base "runs of the task", pick one score per slot.
            let mut rest = code;
            for (drawn, task) in draw.tasks.iter_mut().zip(&scores.tasks) {
                for slot in drawn {
                    *slot = task[rest % task.len()];
                    rest /= task.len();
                }
            }
            statistic(&draw)
        })
        .collect();
    Ok(summarise(statistic(scores), values, alpha))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    fn scores() -> Scores {
        Scores::from_runs(&[vec![0.2, 0.9], vec![0.5, 0.6], vec![0.8, 0.3]]).unwrap()
    }

    #[test]
    fn enumeration_equals_the_worked_values() {
        let iqm = exact_bootstrap(&scores(), iqm, ALPHA).unwrap();
        assert!((iqm.estimate - 0.55).abs() < 1e-12);
        assert!((iqm.interval.low - 0.325).abs() < 1e-12);
        assert!((iqm.interval.high - 0.775).abs() < 1e-12);
        let mean = exact_bootstrap(&scores(), macro_mean, ALPHA).unwrap();
        assert!((mean.interval.low - 0.35).abs() < 1e-12);
        assert!((mean.interval.high - 0.75).abs() < 1e-12);
        assert!((mean.deviation - 0.1).abs() < 1e-12);
    }

    #[test]
    fn the_seed_decides_every_bit() {
        let run = |seed| stratified_bootstrap(&scores(), iqm, 500, seed, ALPHA);
        assert_eq!(run(1), run(1));
        assert_ne!(run(1).mean.to_bits(), run(2).mean.to_bits());
    }

    #[test]
    fn drawing_tends_to_the_enumeration() {
        let exact = exact_bootstrap(&scores(), macro_mean, ALPHA).unwrap();
        let drawn = stratified_bootstrap(&scores(), macro_mean, 20_000, 3, ALPHA);
        assert!((exact.mean - drawn.mean).abs() < 0.003, "{drawn:?}");
        assert!((exact.deviation - drawn.deviation).abs() < 0.003, "{drawn:?}");
    }

    #[test]
    fn strata_stay_apart() {
        // Task 0 always 0, task 1 always 1: resampling within tasks leaves nothing to vary.
        let scores = Scores::new(vec![vec![0.0; 5], vec![1.0; 5]]).unwrap();
        let result = stratified_bootstrap(&scores, macro_mean, 200, 0, ALPHA);
        assert_eq!((result.interval.low, result.interval.high), (0.5, 0.5));
    }

    #[test]
    fn iqm_drops_a_quarter_on_each_side_and_micro_differs_from_macro() {
        let one = Scores::new(vec![(1..=7).map(f64::from).collect()]).unwrap();
        assert_eq!(iqm(&one), 4.0);
        let uneven = Scores::new(vec![vec![1.0], vec![0.0, 0.0, 0.0]]).unwrap();
        assert_eq!((macro_mean(&uneven), micro_mean(&uneven)), (0.5, 0.25));
    }

    #[test]
    fn unusable_scores_are_named() {
        assert!(Scores::new(vec![]).is_err());
        assert!(Scores::new(vec![vec![1.0], vec![]]).is_err());
        assert!(Scores::from_runs(&[vec![1.0], vec![1.0, 2.0]]).is_err());
        let large = Scores::new(vec![vec![0.0; 20]]).unwrap();
        assert!(exact_bootstrap(&large, iqm, ALPHA).is_err());
        assert!(prob_improvement(&large, &scores()).is_err());
    }
}
