//! Confidence sequences: intervals whose joint coverage over all times is at least `1 - alpha`, so that a run
//! may be watched and stopped at will.
//!
//! Sources: Robbins 1970 (Beta mixtures of the likelihood); Howard, Ramdas, `McAuliffe` and Sekhon 2021
//! (Beta-binomial mixture tuned to a sample size); Waudby-Smith and Ramdas 2024, section 4.2 (hedged capital
//! for any bounded outcome).

use super::special::{bisect, ln_beta, x_ln_y};
use super::{Alpha, Interval, Rate, StatsError};

/// Beta(a, b) mixture sequence for one success rate: all p with
/// `ln B(a + k, b + n - k) - ln B(a, b) - k ln p - (n - k) ln(1 - p) < ln(1 / alpha)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixtureSequence {
    a: f64,
    b: f64,
}

impl MixtureSequence {
    /// Uniform mixture, Beta(1, 1).
    pub const UNIFORM: Self = Self { a: 1.0, b: 1.0 };
    /// Jeffreys mixture, Beta(1/2, 1/2): tighter for rates near 0 and 1. The default of `--until-decided`.
    pub const JEFFREYS: Self = Self { a: 0.5, b: 0.5 };

    /// # Errors
    /// [`StatsError::Range`] unless both are positive and finite.
    pub fn new(a: f64, b: f64) -> Result<Self, StatsError> {
        for got in [a, b] {
            if !(got > 0.0 && got.is_finite()) {
                return Err(StatsError::Range {
                    name: "mixture parameter",
                    got,
                    range: "(0, inf)",
                });
            }
        }
        Ok(Self { a, b })
    }

    /// The set of rates not yet rejected; `[0, 1]` before the first episode.
    pub fn interval(self, rate: Rate, alpha: Alpha) -> Interval {
        let (k, n) = rate.kn();
        let Some(observed) = rate.fraction() else {
            return Interval::UNIT;
        };
        let budget =
            ln_beta(self.a + k, self.b + n - k) - ln_beta(self.a, self.b) + alpha.get().ln();
        // Convex in p with its minimum, below zero, at the observed rate.
        let excess = |p: f64| budget - x_ln_y(k, p) - x_ln_y(n - k, 1.0 - p);
        solve_around(observed, excess)
    }
}

/// Both roots of a convex function that is negative at `inside`; an end without a root is 0 or 1.
fn solve_around(inside: f64, excess: impl Fn(f64) -> f64) -> Interval {
    let low = if inside <= 0.0 || excess(0.0) < 0.0 { 0.0 } else { bisect(0.0, inside, &excess) };
    let high = if inside >= 1.0 || excess(1.0) < 0.0 { 1.0 } else { bisect(inside, 1.0, &excess) };
    Interval::new(low, high)
}

/// Beta-binomial sequence of Howard et al. 2021: each candidate rate p is tested with its own mixture
/// Beta(r p, r (1 - p)), whose strength r makes the interval tightest near `t_opt` episodes.
///
/// `r = t_opt / c - 1` with `c = 2 ln(1/alpha) + ln(1 + 2 ln(1/alpha))`, from the normal-mixture tuning of the
/// paper's section 3.5. `[0, 1]` before the first episode.
///
/// # Errors
/// [`StatsError::Range`] when `t_opt` is at most `c` (7.94 at alpha = 0.05), where r would not be positive.
pub fn howard_interval(rate: Rate, alpha: Alpha, t_opt: f64) -> Result<Interval, StatsError> {
    let log = -2.0 * alpha.get().ln();
    let strength = t_opt / (log + log.ln_1p()) - 1.0;
    if !(strength > 0.0 && strength.is_finite()) {
        return Err(StatsError::Range {
            name: "t_opt",
            got: t_opt,
            range: "(2 ln(1/alpha) + ln(1 + 2 ln(1/alpha)), inf)",
        });
    }
    let (k, n) = rate.kn();
    let Some(observed) = rate.fraction() else {
        return Ok(Interval::UNIT);
    };
    let excess = |p: f64| {
        // Off the exact ends, where the mixture loses a parameter.
        let p = p.clamp(1e-13, 1.0 - 1e-13);
        let (a, b) = (strength * p, strength * (1.0 - p));
        ln_beta(a + k, b + n - k) - ln_beta(a, b) - x_ln_y(k, p) - x_ln_y(n - k, 1.0 - p)
            + alpha.get().ln()
    };
    Ok(solve_around(observed, excess))
}

/// Hedged-capital betting sequence for the mean of outcomes in `[0, 1]` (not only 0 and 1).
///
/// For every candidate mean m on a grid two gamblers bet against it, one that the mean is higher and one that
/// it is lower; m is out when half the capital of either exceeds 1/alpha. Bets are the predictable plug-in
/// `sqrt(2 ln(2/alpha) / (v t ln(1 + t)))` with the running variance v, cut at half of what could ruin the
/// gambler. Intervals are widened by one grid step and intersected over time.
#[derive(Debug, Clone)]
pub struct HedgedSequence {
    alpha: Alpha,
    steps: usize,
    /// ln capital of the gambler on "higher", per candidate.
    ln_up: Vec<f64>,
    /// ln capital of the gambler on "lower", per candidate.
    ln_down: Vec<f64>,
    seen: f64,
    sum: f64,
    squares: f64,
    interval: Interval,
}

impl HedgedSequence {
    /// Fraction of the ruinous bet that is allowed (the paper's c).
    const CAUTION: f64 = 0.5;

    /// A fresh sequence on a grid of `steps + 1` candidate means (1000 in the reference code).
    pub fn new(alpha: Alpha, steps: usize) -> Self {
        let steps = steps.max(2);
        Self {
            alpha,
            steps,
            ln_up: vec![0.0; steps + 1],
            ln_down: vec![0.0; steps + 1],
            seen: 0.0,
            sum: 0.0,
            squares: 0.0,
            interval: Interval::UNIT,
        }
    }

    /// The sequence's interval for the mean now.
    pub fn interval(&self) -> Interval {
        self.interval
    }

    /// Takes one outcome, cut to `[0, 1]`, and returns the new interval.
    pub fn push(&mut self, outcome: f64) -> Interval {
        let x = outcome.clamp(0.0, 1.0);
        // The bet uses only the past: prior mean 1/2 and variance 1/4 count as one observation.
        let t = self.seen + 1.0;
        let variance = (0.25 + self.squares) / t;
        let bet = (2.0 * (2.0 / self.alpha.get()).ln() / (variance * t * t.ln_1p())).sqrt();
        let grid = self.steps as f64;
        for (i, (up, down)) in self.ln_up.iter_mut().zip(&mut self.ln_down).enumerate() {
            let m = i as f64 / grid;
            *up += (bet.min(Self::CAUTION / m) * (x - m)).ln_1p();
            *down += (-bet.min(Self::CAUTION / (1.0 - m)) * (x - m)).ln_1p();
        }
        self.seen = t;
        self.sum += x;
        self.squares += (x - (0.5 + self.sum) / (t + 1.0)).powi(2);

        let limit = (2.0 / self.alpha.get()).ln();
        let alive = |i: usize| self.ln_up[i].max(self.ln_down[i]) <= limit;
        let low = (0..=self.steps).find(|&i| alive(i));
        let high = (0..=self.steps).rfind(|&i| alive(i));
        if let (Some(low), Some(high)) = (low, high) {
            let now = Interval::new((low as f64 - 1.0) / grid, (high as f64 + 1.0) / grid);
            self.interval = self.interval.intersection(now.clamped());
        }
        self.interval
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::stats::proportion::wilson;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    proptest! {
        #[test]
        fn mixture_contains_the_observed_rate_mirrors_and_is_wider_than_wilson(
            n in 1_u64..2000, share in 0.0..=1.0,
        ) {
            let rate = Rate::new((share * n as f64) as u64, n).unwrap();
            for mixture in [MixtureSequence::UNIFORM, MixtureSequence::JEFFREYS] {
                let interval = mixture.interval(rate, ALPHA);
                prop_assert!(interval.contains(rate.fraction().unwrap()));
                let mirrored = mixture.interval(rate.mirrored(), ALPHA);
                prop_assert!((interval.low - (1.0 - mirrored.high)).abs() < 1e-9);
                prop_assert!(interval.half_width() > wilson(rate, ALPHA).half_width());
            }
            let howard = howard_interval(rate, ALPHA, 100.0).unwrap();
            prop_assert!(howard.contains(rate.fraction().unwrap()));
        }
    }

    #[test]
    fn one_success_by_hand() {
        // k = n = 1, uniform mixture: (1/2) / p < 20, so p > 0.025.
        let interval = MixtureSequence::UNIFORM.interval(Rate::new(1, 1).unwrap(), ALPHA);
        assert!((interval.low - 0.025).abs() < 1e-12);
        assert_eq!(interval.high, 1.0);
    }

    #[test]
    fn bad_parameters_are_named() {
        assert!(MixtureSequence::new(0.0, 1.0).is_err());
        assert!(howard_interval(Rate::default(), ALPHA, 5.0).is_err());
    }

    #[test]
    fn all_sequences_cover_at_all_times_while_wilson_does_not() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let (runs, episodes, p) = (300, 200, 0.9);
        let mut missed = [0; 4];
        for _ in 0..runs {
            let mut rate = Rate::default();
            let mut hedged = HedgedSequence::new(ALPHA, 200);
            let mut out = [false; 4];
            for _ in 0..episodes {
                let success = rng.random_bool(p);
                rate.push(success);
                let hedged = hedged.push(f64::from(u8::from(success)));
                let now = [
                    MixtureSequence::JEFFREYS.interval(rate, ALPHA),
                    howard_interval(rate, ALPHA, 50.0).unwrap(),
                    hedged,
                    wilson(rate, ALPHA),
                ];
                for (out, interval) in out.iter_mut().zip(now) {
                    *out |= !interval.contains(p);
                }
            }
            for (missed, out) in missed.iter_mut().zip(out) {
                *missed += i32::from(out);
            }
        }
        // 5 % of 300 plus three standard errors is 26; Wilson watched at every step fails far more often.
        assert!(missed[..3].iter().all(|&m| m <= 26), "{missed:?}");
        assert!(missed[3] > 60, "the control lost its fault: {missed:?}");
    }

    #[test]
    fn hedged_sequence_takes_any_bounded_outcome() {
        let mut sequence = HedgedSequence::new(ALPHA, 1000);
        for i in 0..2000 {
            sequence.push(if i % 2 == 0 { 0.5 } else { 0.7 });
        }
        let interval = sequence.interval();
        assert!(interval.contains(0.6), "{interval:?}");
        assert!(interval.half_width() < 0.02, "{interval:?}");
    }
}
