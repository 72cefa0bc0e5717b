//! The checked inputs and plain outputs shared by all statistics.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number that came from outside (command line, result file) and is not usable.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StatsError {
    /// More successes than episodes.
    #[error("count {successes} successes in {episodes} episodes: successes cannot exceed episodes")]
    Count {
        /// Successes given.
        successes: u64,
        /// Episodes given.
        episodes: u64,
    },
    /// A parameter outside its range.
    #[error("use {name} = {got}: it must lie in {range}")]
    Range {
        /// Name of the parameter, as the user knows it.
        name: &'static str,
        /// The value given.
        got: f64,
        /// The range that is accepted, in words.
        range: &'static str,
    },
    /// Two lists that must be equally long are not.
    #[error(
        "pair lists of lengths {left} and {right}: they must be equally long and hold at least {at_least}"
    )]
    Lengths {
        /// Length of the first list.
        left: usize,
        /// Length of the second list.
        right: usize,
        /// Fewest elements that make sense.
        at_least: usize,
    },
    /// A stratum without a single score.
    #[error("aggregate stratum {stratum}: it holds no score; drop the task or run it")]
    EmptyStratum {
        /// Index of the stratum.
        stratum: usize,
    },
    /// An enumeration too large to be done exactly.
    #[error(
        "enumerate {resamples:e} resamples exactly: at most {limit} are; use the seeded bootstrap"
    )]
    TooManyResamples {
        /// Resamples an exact answer needs.
        resamples: f64,
        /// The limit.
        limit: usize,
    },
}

/// A two-sided error rate, strictly between 0 and 1; intervals have confidence `1 - alpha`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Alpha(f64);

impl Alpha {
    /// 5 %: the usual 95 % interval.
    pub const FIVE_PERCENT: Self = Self(0.05);
    /// 1 %.
    pub const ONE_PERCENT: Self = Self(0.01);

    /// # Errors
    /// [`StatsError::Range`] unless `0 < alpha < 1`.
    pub fn new(alpha: f64) -> Result<Self, StatsError> {
        if alpha > 0.0 && alpha < 1.0 {
            Ok(Self(alpha))
        } else {
            Err(StatsError::Range { name: "alpha", got: alpha, range: "(0, 1)" })
        }
    }

    /// The error rate as a fraction.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl Default for Alpha {
    fn default() -> Self {
        Self::FIVE_PERCENT
    }
}

/// `successes` out of `episodes`; zero episodes are allowed and mean "nothing is known".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Rate {
    successes: u64,
    episodes: u64,
}

impl Rate {
    /// # Errors
    /// [`StatsError::Count`] when `successes > episodes`.
    pub const fn new(successes: u64, episodes: u64) -> Result<Self, StatsError> {
        if successes > episodes {
            return Err(StatsError::Count { successes, episodes });
        }
        Ok(Self { successes, episodes })
    }

    /// From parts that add up by construction.
    pub const fn from_parts(successes: u64, failures: u64) -> Self {
        Self { successes, episodes: successes + failures }
    }

    /// Successes, k.
    pub const fn successes(self) -> u64 {
        self.successes
    }

    /// Episodes, n.
    pub const fn episodes(self) -> u64 {
        self.episodes
    }

    /// Failures, n - k.
    pub const fn failures(self) -> u64 {
        self.episodes - self.successes
    }

    /// k / n, or `None` before the first episode.
    pub fn fraction(self) -> Option<f64> {
        (self.episodes > 0).then(|| self.successes as f64 / self.episodes as f64)
    }

    /// The same episodes with success and failure swapped.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        Self { successes: self.failures(), episodes: self.episodes }
    }

    /// Counts one more episode.
    pub const fn push(&mut self, success: bool) {
        self.episodes += 1;
        if success {
            self.successes += 1;
        }
    }

    /// k and n as floats.
    pub(crate) fn kn(self) -> (f64, f64) {
        (self.successes as f64, self.episodes as f64)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.successes, self.episodes)
    }
}

/// A closed interval of fractions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// All rates: what is known before the first episode.
    pub const UNIT: Self = Self { low: 0.0, high: 1.0 };

    /// Both ends.
    pub const fn new(low: f64, high: f64) -> Self {
        Self { low, high }
    }

    /// Whether `x` lies inside, ends included.
    pub fn contains(self, x: f64) -> bool {
        self.low <= x && x <= self.high
    }

    /// Half of the width.
    pub fn half_width(self) -> f64 {
        0.5 * (self.high - self.low)
    }

    /// The common part; `self` when there is none.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let both = Self::new(self.low.max(other.low), self.high.min(other.high));
        if both.low <= both.high { both } else { self }
    }

    /// Cuts both ends to `[0, 1]`.
    pub(crate) fn clamped(self) -> Self {
        Self::new(self.low.clamp(0.0, 1.0), self.high.clamp(0.0, 1.0))
    }
}

/// Percent with one decimal: `95.4 to 98.3 %`.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} to {:.1} %", 100.0 * self.low, 100.0 * self.high)
    }
}

/// Which departures from the null hypothesis count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alternative {
    /// Either direction.
    #[default]
    TwoSided,
    /// The (first) rate is larger.
    Greater,
    /// The (first) rate is smaller.
    Less,
}

/// Outcomes of a run in which some episodes never completed.
///
/// An `error` (simulator fault after all retries) is neither success nor failure. The completed rate leaves
/// it out; the bounds say how far it could move the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Outcomes {
    /// Completed and solved.
    pub successes: u64,
    /// Completed and not solved.
    pub failures: u64,
    /// Never completed.
    pub errors: u64,
}

impl Outcomes {
    /// Above this fraction of errors no headline number is given (1 %).
    pub const MAX_ERROR_FRACTION: f64 = 0.01;

    /// Rate over completed episodes.
    pub const fn completed(self) -> Rate {
        Rate::from_parts(self.successes, self.failures)
    }

    /// Rate if every errored episode would have failed.
    pub const fn errors_all_fail(self) -> Rate {
        Rate::from_parts(self.successes, self.failures + self.errors)
    }

    /// Rate if every errored episode would have succeeded.
    pub const fn errors_all_succeed(self) -> Rate {
        Rate::from_parts(self.successes + self.errors, self.failures)
    }

    /// Point rates `[errors all fail, errors all succeed]`; `None` without any episode.
    pub fn bounds(self) -> Option<Interval> {
        Some(Interval::new(
            self.errors_all_fail().fraction()?,
            self.errors_all_succeed().fraction()?,
        ))
    }

    /// Errors over all episodes; 0 without any.
    pub fn error_fraction(self) -> f64 {
        let all = self.successes + self.failures + self.errors;
        if all == 0 { 0.0 } else { self.errors as f64 / all as f64 }
    }

    /// The rate to print large, or `None` when more than 1 % of the episodes errored.
    pub fn headline(self) -> Option<Rate> {
        (self.error_fraction() <= Self::MAX_ERROR_FRACTION).then(|| self.completed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_refuses_more_successes_than_episodes() {
        let error = Rate::new(3, 2).unwrap_err();
        assert!(error.to_string().contains("cannot exceed"), "{error}");
        assert_eq!(Rate::new(0, 0).unwrap().fraction(), None);
    }

    #[test]
    fn alpha_refuses_the_ends_and_nan() {
        for bad in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(Alpha::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_widen_the_bounds_and_withhold_the_headline() {
        // 5 % errors: 90 of 95 completed succeed, 5 errored.
        let run = Outcomes { successes: 90, failures: 5, errors: 5 };
        assert_eq!(run.completed(), Rate::new(90, 95).unwrap());
        let bounds = run.bounds().unwrap();
        assert_eq!((bounds.low, bounds.high), (0.90, 0.95));
        assert_eq!(run.headline(), None);
        let clean = Outcomes { successes: 198, failures: 1, errors: 1 };
        assert_eq!(clean.headline(), Some(Rate::new(198, 199).unwrap()));
        let fine = Outcomes { errors: 3, ..clean };
        assert_eq!(fine.headline(), None, "3 of 202 is above 1 %");
    }

    #[test]
    fn disjoint_intervals_keep_the_earlier_one() {
        let left = Interval::new(0.0, 0.2);
        assert_eq!(left.intersection(Interval::new(0.5, 1.0)), left);
        assert_eq!(left.intersection(Interval::new(0.1, 1.0)), Interval::new(0.1, 0.2));
    }
}
