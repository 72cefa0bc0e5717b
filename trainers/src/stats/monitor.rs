//! `--until-decided`: stop as soon as the question is answered, without paying for the looking.
//!
//! Alone, one rate is watched through the Beta(1/2, 1/2) confidence sequence; against a stored result, pairs on
//! the same (task, initial state, seed) are watched through the paired e-process. Both guarantees hold at every
//! stopping time: a wrong decision has probability at most alpha.

use std::fmt;

use serde::Serialize;

use super::confidence_sequence::{HedgedSequence, MixtureSequence};
use super::e_process::PairedEProcess;
use super::{Alpha, Interval, PairedTable, Rate, StatsError};

/// Grid of the difference's confidence sequence: steps of 0.1 pp.
const DIFFERENCE_STEPS: usize = 2000;

/// The question.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Goal {
    /// Is the rate above or below this fraction?
    Target {
        /// The fraction, in (0, 1).
        rate: f64,
    },
    /// Know the rate to plus or minus this fraction.
    HalfWidth {
        /// Half-width of the confidence sequence, in (0, 0.5).
        half_width: f64,
    },
    /// Is the candidate better or worse than a stored result on the same episodes?
    Versus {
        /// Stop as well once the difference is known to be smaller than this fraction, in (0, 1).
        margin: Option<f64>,
    },
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The rate is above the target.
    AboveTarget,
    /// The rate is below the target.
    BelowTarget,
    /// The rate is known as well as was asked.
    Precise,
    /// The candidate is better than the stored result.
    CandidateBetter,
    /// The stored result is better than the candidate.
    StoredBetter,
    /// The two differ by less than the margin.
    WithinMargin,
}

/// What to do after an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Run another episode.
    Continue,
    /// Stop; stays once reached.
    Decided(Decision),
}

/// A sequential monitor, fed one completed episode at a time. Errored episodes are not fed.
#[derive(Debug, Clone)]
pub struct UntilDecided {
    goal: Goal,
    alpha: Alpha,
    rate: Rate,
    /// Intersection over time of the rate's sequence.
    rate_interval: Interval,
    pairs: PairedEProcess,
    difference: Option<HedgedSequence>,
    dropped: u64,
    status: Status,
}

impl UntilDecided {
    /// A monitor before its first episode.
    ///
    /// # Errors
    /// [`StatsError::Range`] for a target, half-width or margin outside its range.
    pub fn new(goal: Goal, alpha: Alpha) -> Result<Self, StatsError> {
        let expect = |name, got: f64, below: f64, range| {
            if got > 0.0 && got < below {
                Ok(())
            } else {
                Err(StatsError::Range { name, got, range })
            }
        };
        match goal {
            Goal::Target { rate } => expect("target", rate, 1.0, "(0, 1)")?,
            Goal::HalfWidth { half_width } => {
                expect("half-width", half_width, 0.5, "(0, 0.5)")?;
            }
            Goal::Versus { margin: Some(margin) } => expect("margin", margin, 1.0, "(0, 1)")?,
            Goal::Versus { margin: None } => {}
        }
        Ok(Self {
            goal,
            alpha,
            rate: Rate::default(),
            rate_interval: Interval::UNIT,
            pairs: PairedEProcess::new(alpha),
            difference: matches!(goal, Goal::Versus { .. })
                .then(|| HedgedSequence::new(alpha, DIFFERENCE_STEPS)),
            dropped: 0,
            status: Status::Continue,
        })
    }

    /// Takes one completed episode: its outcome and, against a stored result, the stored outcome of the very
    /// same episode. A pair whose stored half is missing is dropped and counted. Alone, `stored` is ignored.
    pub fn observe(&mut self, success: bool, stored: Option<bool>) -> Status {
        self.rate.push(success);
        let now = MixtureSequence::JEFFREYS.interval(self.rate, self.alpha);
        self.rate_interval = self.rate_interval.intersection(now);
        let found = match self.goal {
            Goal::Target { rate } => {
                if self.rate_interval.low > rate {
                    Some(Decision::AboveTarget)
                } else if self.rate_interval.high < rate {
                    Some(Decision::BelowTarget)
                } else {
                    None
                }
            }
            Goal::HalfWidth { half_width } => {
                (self.rate_interval.half_width() <= half_width).then_some(Decision::Precise)
            }
            Goal::Versus { margin } => {
                self.dropped += u64::from(stored.is_none());
                stored.and_then(|stored| self.observe_pair(success, stored, margin))
            }
        };
        if let (Status::Continue, Some(decision)) = (self.status, found) {
            self.status = Status::Decided(decision);
        }
        self.status
    }

    fn observe_pair(
        &mut self,
        success: bool,
        stored: bool,
        margin: Option<f64>,
    ) -> Option<Decision> {
        let evidence = self.pairs.push(success, stored);
        if let Some(sequence) = &mut self.difference {
            let difference = f64::from(i8::from(success) - i8::from(stored));
            sequence.push(0.5 * (1.0 + difference));
        }
        let table = self.pairs.table();
        if evidence.rejected_at().is_some() {
            return Some(if table.n10 > table.n01 {
                Decision::CandidateBetter
            } else {
                Decision::StoredBetter
            });
        }
        let difference = self.interval();
        margin
            .is_some_and(|margin| difference.low > -margin && difference.high < margin)
            .then_some(Decision::WithinMargin)
    }

    /// The question.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// Continue or the decision.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The candidate's rate so far.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// The pairs so far (candidate first); empty when watching alone.
    pub fn pairs(&self) -> PairedTable {
        self.pairs.table()
    }

    /// Episodes without a stored partner, left out of the comparison.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Anytime-valid interval of what is watched: the rate, or the difference candidate - stored in `[-1, 1]`.
    pub fn interval(&self) -> Interval {
        self.difference.as_ref().map_or(self.rate_interval, |sequence| {
            let scaled = sequence.interval();
            Interval::new(2.0 * scaled.low - 1.0, 2.0 * scaled.high - 1.0)
        })
    }

    /// The e-value against "no difference"; 1 when watching alone.
    pub fn e_value(&self) -> f64 {
        self.pairs.evidence().e_value()
    }
}

/// One line for the live display and the report.
impl fmt::Display for UntilDecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interval = self.interval();
        match self.status {
            Status::Continue => write!(f, "undecided after {} episodes: ", self.rate.episodes())?,
            Status::Decided(decision) => {
                let words = match decision {
                    Decision::AboveTarget => "above the target",
                    Decision::BelowTarget => "below the target",
                    Decision::Precise => "known to the precision asked for",
                    Decision::CandidateBetter => "better than the stored result",
                    Decision::StoredBetter => "worse than the stored result",
                    Decision::WithinMargin => "within the margin of the stored result",
                };
                write!(f, "decided after {} episodes, {words}: ", self.rate.episodes())?;
            }
        }
        match self.goal {
            Goal::Target { rate } => {
                write!(f, "{}, {interval}, target {:.1} %", self.rate, 100.0 * rate)
            }
            Goal::HalfWidth { half_width } => {
                write!(f, "{}, {interval}, asked for +-{:.1} pp", self.rate, 100.0 * half_width)
            }
            Goal::Versus { .. } => {
                let table = self.pairs();
                write!(
                    f,
                    "{} wins to {} in {} pairs, difference {:+.1} to {:+.1} pp, e-value {:.3}",
                    table.n10,
                    table.n01,
                    table.pairs(),
                    100.0 * interval.low,
                    100.0 * interval.high,
                    self.e_value()
                )?;
                if self.dropped > 0 {
                    write!(f, ", {} episodes without a stored partner left out", self.dropped)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    fn monitor(goal: Goal) -> UntilDecided {
        UntilDecided::new(goal, ALPHA).unwrap()
    }

    #[test]
    fn the_same_outcomes_twice_never_decide_for_a_side() {
        let mut monitor = monitor(Goal::Versus { margin: None });
        for i in 0..500 {
            let outcome = i % 9 != 0;
            assert_eq!(monitor.observe(outcome, Some(outcome)), Status::Continue);
        }
        assert!((monitor.e_value() - 1.0).abs() < 1e-12);
        assert!(monitor.interval().contains(0.0));
    }

    #[test]
    fn equal_policies_end_within_the_margin() {
        let mut monitor = monitor(Goal::Versus { margin: Some(0.05) });
        let mut episodes = 0;
        while monitor.status() == Status::Continue && episodes < 2000 {
            episodes += 1;
            let outcome = episodes % 9 != 0;
            monitor.observe(outcome, Some(outcome));
        }
        assert_eq!(monitor.status(), Status::Decided(Decision::WithinMargin), "{monitor}");
    }

    #[test]
    fn wins_alone_decide_and_the_decision_stays() {
        let mut monitor = monitor(Goal::Versus { margin: None });
        for _ in 0..8 {
            monitor.observe(true, Some(false));
        }
        let decided = Status::Decided(Decision::CandidateBetter);
        assert_eq!(monitor.status(), decided, "{monitor}");
        for _ in 0..50 {
            assert_eq!(monitor.observe(false, Some(true)), decided);
        }
        assert!(monitor.to_string().contains("better than the stored result"));
    }

    #[test]
    fn losses_alone_decide_for_the_stored_result_and_gaps_are_counted() {
        let mut monitor = monitor(Goal::Versus { margin: None });
        for _ in 0..8 {
            monitor.observe(false, Some(true));
            monitor.observe(true, None);
        }
        assert_eq!(monitor.status(), Status::Decided(Decision::StoredBetter));
        assert_eq!((monitor.dropped(), monitor.pairs().pairs()), (8, 8));
        assert!(monitor.to_string().contains("8 episodes without a stored partner"));
    }

    #[test]
    fn a_target_is_decided_on_the_right_side() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
        for (truth, decision) in [(0.95, Decision::AboveTarget), (0.4, Decision::BelowTarget)] {
            let mut monitor = monitor(Goal::Target { rate: 0.8 });
            while monitor.status() == Status::Continue {
                monitor.observe(rng.random_bool(truth), None);
                assert!(monitor.rate().episodes() < 2000, "{monitor}");
            }
            assert_eq!(monitor.status(), Status::Decided(decision));
        }
    }

    #[test]
    fn a_half_width_is_reached_and_reported() {
        let mut monitor = monitor(Goal::HalfWidth { half_width: 0.05 });
        let mut episodes = 0;
        while monitor.status() == Status::Continue {
            episodes += 1;
            monitor.observe(episodes % 10 != 0, None);
            assert!(episodes < 2000);
        }
        assert!(monitor.interval().half_width() <= 0.05);
        // The price of looking: more than the 138 episodes a fixed-size Wilson interval needs at p = 0.9.
        assert!(episodes > 138, "{episodes}");
    }

    #[test]
    fn goals_out_of_range_are_named() {
        for (goal, name) in [
            (Goal::Target { rate: 1.0 }, "target"),
            (Goal::HalfWidth { half_width: 0.0 }, "half-width"),
            (Goal::Versus { margin: Some(-0.1) }, "margin"),
        ] {
            let error = UntilDecided::new(goal, ALPHA).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn half_the_null_monitors_would_be_wrong_if_the_z_interval_were_watched() {
        // The target is the truth: every decision is an error. The monitor makes at most 5 % of them.
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let runs = 400;
        let (mut wrong, mut wrong_wald) = (0, 0);
        for _ in 0..runs {
            let mut monitor = monitor(Goal::Target { rate: 0.9 });
            let mut wald_out = false;
            for episode in 1..=300 {
                monitor.observe(rng.random_bool(0.9), None);
                wald_out |= episode >= 10
                    && !crate::stats::proportion::wald(monitor.rate(), ALPHA).contains(0.9);
            }
            wrong += i32::from(monitor.status() != Status::Continue);
            wrong_wald += i32::from(wald_out);
        }
        assert!(wrong <= 33, "5 % and three standard errors of {runs}: {wrong}");
        assert!(wrong_wald >= 160, "the control lost its fault: {wrong_wald}");
    }
}
