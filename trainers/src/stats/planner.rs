//! How many episodes a question needs, and what a number of episodes can show.
//!
//! Sources: Cohen 1988 (arcsine effect size h); the unpooled z formula of Fleiss; Connor 1987 (pairs for
//! `McNemar`'s test).

use std::fmt;

use serde::Serialize;

use super::special::{binomial_table, bisect, critical_z, normal_cdf, normal_quantile};
use super::{Alpha, Method, Rate, StatsError};

/// What `bench plan` is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanRequest {
    /// Success rate of the present policy, in (0, 1).
    pub base: f64,
    /// Difference to detect, as a fraction (5 pp = 0.05).
    pub detect: f64,
    /// Probability of finding a difference of that size, in (0, 1).
    pub power: f64,
    /// Two-sided error rate.
    pub alpha: Alpha,
    /// Share of shared episodes on which the two policies differ; `None` to be told the two extremes.
    pub discordance: Option<f64>,
}

impl Default for PlanRequest {
    fn default() -> Self {
        Self { base: 0.9, detect: 0.05, power: 0.8, alpha: Alpha::FIVE_PERCENT, discordance: None }
    }
}

/// Shared episodes a paired comparison needs at a given share of discordant pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PairedPlan {
    /// Share of pairs with different outcomes.
    pub discordance: f64,
    /// Pairs, rounded up.
    pub pairs: u64,
}

/// Episodes per policy for one question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Lower of the two rates told apart.
    pub low: f64,
    /// Higher of the two rates told apart.
    pub high: f64,
    /// Probability of finding the difference.
    pub power: f64,
    /// Two-sided error rate.
    pub alpha: Alpha,
    /// Episodes per policy on different episodes (arcsine formula, rounded up).
    pub unpaired: u64,
    /// The same by the unpooled z formula, rounded up.
    pub unpaired_z: u64,
    /// Pairs at the discordance that was given.
    pub paired: Option<PairedPlan>,
    /// Pairs if outcomes on shared episodes were independent: about the unpaired number.
    pub paired_independent: PairedPlan,
    /// Pairs if the worse policy never wins an episode alone: the fewest possible.
    pub paired_best: PairedPlan,
    /// Half-width of the 1 - alpha Wilson interval of `base` after `unpaired` episodes.
    pub half_width: f64,
}

fn expect_fraction(name: &'static str, got: f64) -> Result<(), StatsError> {
    if got > 0.0 && got < 1.0 {
        return Ok(());
    }
    Err(StatsError::Range { name, got, range: "(0, 1)" })
}

impl PlanRequest {
    /// Plans for `base` against `base + detect`, or against `base - detect` when the sum leaves no room below 1.
    ///
    /// # Errors
    /// [`StatsError::Range`] for a rate, difference or power outside (0, 1), a difference that leaves (0, 1) on
    /// both sides, or a discordance that these rates cannot have.
    pub fn plan(&self) -> Result<Plan, StatsError> {
        let Self { base, detect, power, alpha, .. } = *self;
        expect_fraction("base", base)?;
        expect_fraction("detect", detect)?;
        expect_fraction("power", power)?;
        let (low, high) =
            if base + detect < 1.0 - 1e-9 { (base, base + detect) } else { (base - detect, base) };
        expect_fraction("base - detect", low)?;

        let pairs = |discordance: f64| PairedPlan {
            discordance,
            pairs: round_up(paired_sample_size(discordance, high - low, alpha, power)),
        };
        let most = (low + high).min(2.0 - low - high);
        if let Some(got) = self.discordance
            && !(got >= high - low - 1e-9 && got <= most + 1e-9)
        {
            return Err(StatsError::Range {
                name: "discordance",
                got,
                range: "[detect, the most that the two rates allow]",
            });
        }
        let unpaired = round_up(arcsine_sample_size(high, low, alpha, power));
        let successes = (base * unpaired as f64).round() as u64;
        let rate = Rate::from_parts(successes, unpaired - successes.min(unpaired));
        Ok(Plan {
            low,
            high,
            power,
            alpha,
            unpaired,
            unpaired_z: round_up(unpooled_sample_size(high, low, alpha, power)),
            paired: self.discordance.map(pairs),
            paired_independent: pairs(high * (1.0 - low) + low * (1.0 - high)),
            paired_best: pairs(high - low),
            half_width: Method::Wilson.interval(rate, alpha).half_width(),
        })
    }
}

/// Plans in sentences, as `bench plan` prints them.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |x: f64| 100.0 * x;
        writeln!(
            f,
            "to tell {:.1} % from {:.1} % with {:.0} % power at alpha = {}:",
            percent(self.high),
            percent(self.low),
            percent(self.power),
            self.alpha.get()
        )?;
        writeln!(f, "  unpaired: {} episodes per policy", self.unpaired)?;
        if let Some(paired) = self.paired {
            writeln!(
                f,
                "  paired:   {} shared episodes at {:.1} % discordant pairs",
                paired.pairs,
                percent(paired.discordance)
            )?;
        }
        write!(
            f,
            "  paired:   between {} shared episodes (the worse policy never wins alone) and {} (independent outcomes)",
            self.paired_best.pairs, self.paired_independent.pairs
        )
    }
}

/// Rounds up, but forgives the rounding of an exact whole number.
fn round_up(n: f64) -> u64 {
    (n - 1e-9).ceil().max(1.0) as u64
}

/// Cohen's effect size h = 2 asin(sqrt(p1)) - 2 asin(sqrt(p2)).
pub fn cohen_h(p1: f64, p2: f64) -> f64 {
    2.0 * (p1.sqrt().asin() - p2.sqrt().asin())
}

/// Episodes per policy by the arcsine transformation, not rounded: the n with
/// `Phi(h sqrt(n/2) - z) + Phi(-h sqrt(n/2) - z) = power`, which also counts rejections on the wrong side.
pub fn arcsine_sample_size(p1: f64, p2: f64, alpha: Alpha, power: f64) -> f64 {
    let z = critical_z(alpha.get());
    let h = cohen_h(p1, p2).abs();
    // Without the wrong side the equation has a closed form, an upper bound.
    let most = 2.0 * ((z + normal_quantile(power)) / h).powi(2);
    bisect(0.0, most.next_up(), |n| {
        let shift = h * (0.5 * n).sqrt();
        normal_cdf(shift - z) + normal_cdf(-shift - z) - power
    })
}

/// Episodes per policy by the unpooled z formula, not rounded.
pub fn unpooled_sample_size(p1: f64, p2: f64, alpha: Alpha, power: f64) -> f64 {
    let z = critical_z(alpha.get()) + normal_quantile(power);
    z * z * (p1 * (1.0 - p1) + p2 * (1.0 - p2)) / (p1 - p2).powi(2)
}

/// Pairs for `McNemar`'s test, not rounded: `(z_a sqrt(d) + z_b sqrt(d - diff^2))^2 / diff^2`.
///
/// `discordance` d is the share of pairs with different outcomes, `difference` that of the two rates.
pub fn paired_sample_size(discordance: f64, difference: f64, alpha: Alpha, power: f64) -> f64 {
    let spread = (discordance - difference * difference).max(0.0);
    let z = critical_z(alpha.get()) * discordance.sqrt() + normal_quantile(power) * spread.sqrt();
    (z / difference).powi(2)
}

/// Probability that two *identical* policies of rate `p` differ by at least `gap` over `n` episodes each, exact.
pub fn false_difference_probability(p: f64, n: u64, gap: f64) -> f64 {
    let table = binomial_table(n, p);
    let least = ((gap * n as f64 - 1e-9).ceil().max(0.0)) as usize;
    // Probability of a gap of at least `least` in one direction, by the upper tail sums.
    let mut tail = vec![0.0; table.len() + 1];
    for k in (0..table.len()).rev() {
        tail[k] = tail[k + 1] + table[k];
    }
    if least == 0 {
        return 1.0;
    }
    let one_way: f64 = table
        .iter()
        .enumerate()
        .filter_map(|(k, weight)| tail.get(k + least).map(|tail| weight * tail))
        .sum();
    (2.0 * one_way).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_points_on_ninety_take_424_episodes() {
        let plan = PlanRequest::default().plan().unwrap();
        assert_eq!(plan.unpaired, 424);
        assert_eq!(plan.unpaired_z, 432);
        assert!(plan.to_string().contains("424 episodes per policy"), "{plan}");
        // Independent outcomes gain nothing by pairing; nested ones gain most.
        assert!(plan.paired_best.pairs < 200 && plan.paired_independent.pairs > 400);
    }

    #[test]
    fn pairing_with_known_discordance_takes_108_instead_of_195() {
        let request = PlanRequest {
            base: 0.8,
            detect: 0.1,
            discordance: Some(0.14),
            ..PlanRequest::default()
        };
        let plan = request.plan().unwrap();
        assert_eq!(plan.unpaired, 195);
        assert_eq!(plan.paired.unwrap().pairs, 108);
    }

    #[test]
    fn a_base_near_one_plans_downwards() {
        let request = PlanRequest { base: 0.97, ..PlanRequest::default() };
        let plan = request.plan().unwrap();
        assert!((plan.low - 0.92).abs() < 1e-12 && plan.high == 0.97);
    }

    #[test]
    fn impossible_requests_are_named() {
        let base = PlanRequest::default();
        for (request, name) in [
            (PlanRequest { base: 1.0, ..base }, "base"),
            (PlanRequest { detect: 0.0, ..base }, "detect"),
            (PlanRequest { power: 1.0, ..base }, "power"),
            (PlanRequest { base: 0.5, detect: 0.6, ..base }, "base - detect"),
            (PlanRequest { discordance: Some(0.01), ..base }, "discordance"),
            (PlanRequest { discordance: Some(0.5), ..base }, "discordance"),
        ] {
            let message = request.plan().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn the_planned_number_has_the_promised_power() {
        // Power of the unpaired z test by enumeration at the planned 195 per policy, 90 % against 80 %.
        let n = 195;
        let (t1, t2) = (binomial_table(n, 0.9), binomial_table(n, 0.8));
        let mut power = 0.0;
        for (x, wx) in t1.iter().enumerate() {
            for (y, wy) in t2.iter().enumerate() {
                let rate = |k: usize| Rate::from_parts(k as u64, n - k as u64);
                if wx * wy > 1e-12
                    && super::super::two_sample::score_test(rate(x), rate(y)).p < 0.05
                {
                    power += wx * wy;
                }
            }
        }
        assert!((power - 0.8).abs() < 0.02, "{power}");
    }

    #[test]
    fn identical_policies_differ_often() {
        assert!(
            (false_difference_probability(0.9, 50, 0.05) - 0.400_017_129_490_419_2).abs() < 1e-12
        );
        assert_eq!(false_difference_probability(0.5, 10, 0.0), 1.0);
        assert_eq!(false_difference_probability(1.0, 10, 0.1), 0.0);
    }
}
