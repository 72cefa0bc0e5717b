//! Two independent success rates: intervals for the difference `first - second`, tests, P(better).
//!
//! Sources: Newcombe 1998, Stat. Med. 17:873 (method 10); Agresti and Caffo 2000; Miettinen and Nurminen 1985
//! (score interval); Fisher 1935; Barnard 1947; Boschloo 1970. The score interval deviates on purpose from
//! statsmodels 0.14, whose cubic has a count where the paper has a sample size (so its interval is not
//! antisymmetric and often cannot be solved).

use super::special::{
    binomial_table, bisect, critical_z, hypergeometric_table, ln_beta, normal_sf,
    two_sided_by_likelihood,
};
use super::{Alpha, Alternative, Interval, Rate, proportion::wilson};

/// All differences: what is known before both rates have an episode.
const ANY_DIFFERENCE: Interval = Interval::new(-1.0, 1.0);

/// Ties of test statistics are found with this slack.
const TIE: f64 = 1e-9;

/// Difference of the observed rates; `None` before both have an episode.
pub fn difference(first: Rate, second: Rate) -> Option<f64> {
    Some(first.fraction()? - second.fraction()?)
}

/// Newcombe's hybrid score interval, made of the two Wilson intervals.
pub fn newcombe(first: Rate, second: Rate, alpha: Alpha) -> Interval {
    let (Some(p1), Some(p2)) = (first.fraction(), second.fraction()) else {
        return ANY_DIFFERENCE;
    };
    let (w1, w2) = (wilson(first, alpha), wilson(second, alpha));
    let diff = p1 - p2;
    Interval::new(
        diff - (p1 - w1.low).hypot(w2.high - p2),
        diff + (w1.high - p1).hypot(p2 - w2.low),
    )
}

/// Wald interval of the difference; of width zero when both rates are 0 or 1.
pub fn wald(first: Rate, second: Rate, alpha: Alpha) -> Interval {
    added_wald(first, second, alpha, 0.0)
}

/// Agresti-Caffo interval: Wald after one success and one failure more on each side. Not cut to `[-1, 1]`.
pub fn agresti_caffo(first: Rate, second: Rate, alpha: Alpha) -> Interval {
    added_wald(first, second, alpha, 1.0)
}

fn added_wald(first: Rate, second: Rate, alpha: Alpha, added: f64) -> Interval {
    let ((k1, n1), (k2, n2)) = (first.kn(), second.kn());
    let (n1, n2) = (n1 + 2.0 * added, n2 + 2.0 * added);
    if n1 == 0.0 || n2 == 0.0 {
        return ANY_DIFFERENCE;
    }
    let (p1, p2) = ((k1 + added) / n1, (k2 + added) / n2);
    let half = critical_z(alpha.get()) * (p1 * (1.0 - p1) / n1 + p2 * (1.0 - p2) / n2).sqrt();
    Interval::new(p1 - p2 - half, p1 - p2 + half)
}

/// Score interval of Miettinen and Nurminen, with their factor N/(N - 1) on the variance.
pub fn miettinen_nurminen(first: Rate, second: Rate, alpha: Alpha) -> Interval {
    let Some(diff) = difference(first, second) else {
        return ANY_DIFFERENCE;
    };
    let z = critical_z(alpha.get());
    let low = if diff <= -1.0 {
        -1.0
    } else {
        bisect(-1.0, diff, |delta| z - score(first, second, delta))
    };
    let high =
        if diff >= 1.0 { 1.0 } else { bisect(diff, 1.0, |delta| -z - score(first, second, delta)) };
    Interval::new(low, high)
}

/// Score statistic of `p1 - p2 = delta`, infinite where the constrained variance vanishes.
fn score(first: Rate, second: Rate, delta: f64) -> f64 {
    let ((k1, n1), (k2, n2)) = (first.kn(), second.kn());
    let p2 = constrained_second(first, second, delta);
    let p1 = p2 + delta;
    let n = n1 + n2;
    let variance = ((p1 * (1.0 - p1) / n1 + p2 * (1.0 - p2) / n2) * n / (n - 1.0)).max(0.0);
    let gap = k1 / n1 - k2 / n2 - delta;
    if gap == 0.0 { 0.0 } else { gap / variance.sqrt() }
}

/// Most likely second rate among pairs with `p1 - p2 = delta`, by bisection on the concave log-likelihood.
fn constrained_second(first: Rate, second: Rate, delta: f64) -> f64 {
    let ((k1, n1), (k2, n2)) = (first.kn(), second.kn());
    let (low, high) = ((-delta).max(0.0), (1.0 - delta).min(1.0));
    let term = |count: f64, p: f64| if count == 0.0 { 0.0 } else { count / p };
    let slope = |p2: f64| {
        let p1 = p2 + delta;
        term(k1, p1) - term(n1 - k1, 1.0 - p1) + term(k2, p2) - term(n2 - k2, 1.0 - p2)
    };
    // Open ends: a term may divide by zero there, its sign is what counts.
    let (mut low, mut high) = (low, high);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if slope(middle) > 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Statistic and p-value of a two-sided z test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZTest {
    /// Standardised difference.
    pub z: f64,
    /// Two-sided p-value.
    pub p: f64,
}

/// Pooled score test of equal rates. With no episodes, or all outcomes alike, z = 0 and p = 1.
pub fn score_test(first: Rate, second: Rate) -> ZTest {
    let z = pooled_z(first, second);
    ZTest { z, p: (2.0 * normal_sf(z.abs())).min(1.0) }
}

fn pooled_z(first: Rate, second: Rate) -> f64 {
    let ((k1, n1), (k2, n2)) = (first.kn(), second.kn());
    let Some(diff) = difference(first, second) else {
        return 0.0;
    };
    let p = (k1 + k2) / (n1 + n2);
    let variance = p * (1.0 - p) * (1.0 / n1 + 1.0 / n2);
    if variance <= 0.0 { 0.0 } else { diff / variance.sqrt() }
}

/// Fisher's exact test of equal rates, conditional on the total number of successes.
pub fn fisher_exact(first: Rate, second: Rate, alternative: Alternative) -> f64 {
    let (n1, n2) = (first.episodes(), second.episodes());
    let marked = first.successes() + second.successes();
    let (least, table) = hypergeometric_table(n1 + n2, marked, n1);
    let at = (first.successes() - least) as usize;
    match alternative {
        Alternative::TwoSided => two_sided_by_likelihood(&table, at),
        Alternative::Greater => table[at..].iter().sum::<f64>().min(1.0),
        Alternative::Less => table[..=at].iter().sum::<f64>().min(1.0),
    }
}

/// Barnard's exact unconditional test with the pooled z statistic.
///
/// Cost is about a thousand times `n1 * n2`: meant for up to some hundred episodes per side.
pub fn barnard_exact(first: Rate, second: Rate, alternative: Alternative) -> f64 {
    let seen = pooled_z(first, second);
    let extreme = |z: f64| match alternative {
        Alternative::TwoSided => z.abs() >= seen.abs() - TIE,
        Alternative::Greater => z >= seen - TIE,
        Alternative::Less => z <= seen + TIE,
    };
    let (n1, n2) = (first.episodes(), second.episodes());
    supremum_over_common_rate(n1, n2, |x1, x2| extreme(pooled_z(x1, x2)))
}

/// Boschloo's exact unconditional test: Fisher's p-value as the statistic of Barnard's scheme.
///
/// Two-sided is twice the smaller one-sided value, as in scipy. Uniformly more powerful than Fisher. Same cost
/// as [`barnard_exact`].
pub fn boschloo_exact(first: Rate, second: Rate, alternative: Alternative) -> f64 {
    let one_sided = |alternative: Alternative| {
        let limit = fisher_exact(first, second, alternative) * (1.0 + 1e-9);
        let (n1, n2) = (first.episodes(), second.episodes());
        supremum_over_common_rate(n1, n2, |x1, x2| fisher_exact(x1, x2, alternative) <= limit)
    };
    match alternative {
        Alternative::TwoSided => {
            let smaller = one_sided(Alternative::Greater).min(one_sided(Alternative::Less));
            (2.0 * smaller).min(1.0)
        }
        side => one_sided(side),
    }
}

/// Largest probability of a rejection region over all common success rates: a grid, then golden sections
/// round its best point.
fn supremum_over_common_rate(n1: u64, n2: u64, in_region: impl Fn(Rate, Rate) -> bool) -> f64 {
    const GRID: u32 = 1000;
    let region: Vec<Vec<bool>> = (0..=n1)
        .map(|x1| {
            (0..=n2)
                .map(|x2| in_region(Rate::from_parts(x1, n1 - x1), Rate::from_parts(x2, n2 - x2)))
                .collect()
        })
        .collect();
    let probability = |p: f64| -> f64 {
        let (t1, t2) = (binomial_table(n1, p), binomial_table(n2, p));
        t1.iter()
            .zip(&region)
            .filter(|(weight, _)| **weight > 1e-18)
            .map(|(weight, row)| {
                let inside = row.iter().zip(&t2).filter(|(inside, _)| **inside);
                weight * inside.map(|(_, weight)| weight).sum::<f64>()
            })
            .sum()
    };
    let (mut best_p, mut best) = (0.0, probability(0.0));
    for step in 1..=GRID {
        let p = f64::from(step) / f64::from(GRID);
        let value = probability(p);
        if value > best {
            (best_p, best) = (p, value);
        }
    }
    let cell = 1.0 / f64::from(GRID);
    let (mut low, mut high) = ((best_p - cell).max(0.0), (best_p + cell).min(1.0));
    let golden = 0.5 * (5.0_f64.sqrt() - 1.0);
    for _ in 0..40 {
        let (left, right) = (high - golden * (high - low), low + golden * (high - low));
        let (at_left, at_right) = (probability(left), probability(right));
        best = best.max(at_left).max(at_right);
        if at_left < at_right {
            low = left;
        } else {
            high = right;
        }
    }
    best.min(1.0)
}

/// Posterior probability that the first rate is the larger one, both under uniform priors.
///
/// The finite sum over the first policy's successes (E. Miller 2014, "Formulas for Bayesian A/B testing"),
/// with each term made from the last in logarithms. The smaller tail is summed, so values near 1 are exact.
pub fn prob_better(first: Rate, second: Rate) -> f64 {
    let upper = finite_sum(first, second);
    if upper <= 0.5 { upper } else { 1.0 - finite_sum(second, first) }
}

fn finite_sum(first: Rate, second: Rate) -> f64 {
    let ((k1, n1), (k2, n2)) = (first.kn(), second.kn());
    let b1 = 1.0 + n1 - k1;
    let (a2, b2) = (1.0 + k2, 1.0 + n2 - k2);
    let mut ln_term = ln_beta(a2, b1 + b2) - ln_beta(a2, b2);
    let mut sum = 0.0;
    for i in 0..=first.successes() {
        sum += ln_term.exp();
        let i = i as f64;
        ln_term += ((a2 + i) * (b1 + i) / ((a2 + b1 + b2 + i) * (1.0 + i))).ln();
    }
    sum.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    fn rate(k: u64, n: u64) -> Rate {
        Rate::new(k, n).unwrap()
    }

    #[test]
    fn newcombe_1998_table_ii_first_example() {
        // 56/70 against 48/80, published to four decimals: Wald, Miettinen-Nurminen, hybrid score.
        let (a, b) = (rate(56, 70), rate(48, 80));
        let close = |got: Interval, low: f64, high: f64| {
            assert!((got.low - low).abs() < 5.1e-5, "{got:?} for {low}");
            assert!((got.high - high).abs() < 5.1e-5, "{got:?} for {high}");
        };
        close(wald(a, b, ALPHA), 0.0575, 0.3425);
        close(miettinen_nurminen(a, b, ALPHA), 0.0528, 0.3382);
        close(newcombe(a, b, ALPHA), 0.0524, 0.3339);
    }

    #[test]
    fn score_interval_ends_are_where_the_score_equals_z() {
        let z = critical_z(0.05);
        for (a, b) in [(rate(8, 10), rate(5, 10)), (rate(47, 50), rate(42, 50))] {
            let interval = miettinen_nurminen(a, b, ALPHA);
            assert!((score(a, b, interval.low) - z).abs() < 1e-9);
            assert!((score(a, b, interval.high) + z).abs() < 1e-9);
        }
        let sure = miettinen_nurminen(rate(15, 15), rate(0, 15), ALPHA);
        assert_eq!(sure.high, 1.0);
        assert!(sure.low > 0.6 && sure.low < 1.0, "{sure:?}");
    }

    #[test]
    fn tea_tasting_is_seventeen_in_seventy() {
        let (a, b) = (rate(3, 4), rate(1, 4));
        let greater = fisher_exact(a, b, Alternative::Greater);
        assert!((greater - 17.0 / 70.0).abs() < 1e-15);
        let both = fisher_exact(a, b, Alternative::TwoSided);
        assert!((both - 34.0 / 70.0).abs() < 1e-15);
    }

    #[test]
    fn certain_cases_of_prob_better() {
        // Uniform against uniform, and one success against one failure: 2/3 > 1/3 densities give 5/6.
        assert!((prob_better(rate(0, 0), rate(0, 0)) - 0.5).abs() < 1e-13);
        assert!((prob_better(rate(1, 1), rate(0, 1)) - 5.0 / 6.0).abs() < 1e-13);
        // Far apart: no underflow, no value outside [0, 1].
        assert_eq!(prob_better(rate(5000, 5000), rate(0, 5000)), 1.0);
        assert_eq!(prob_better(rate(0, 5000), rate(5000, 5000)), 0.0);
    }

    proptest! {
        #[test]
        fn swapping_the_policies_mirrors_everything(
            n1 in 1_u64..80, n2 in 1_u64..80, f1 in 0.0..=1.0, f2 in 0.0..=1.0,
        ) {
            let a = rate((f1 * n1 as f64) as u64, n1);
            let b = rate((f2 * n2 as f64) as u64, n2);
            for interval in [newcombe, agresti_caffo, miettinen_nurminen] {
                let (ab, ba) = (interval(a, b, ALPHA), interval(b, a, ALPHA));
                prop_assert!((ab.low + ba.high).abs() < 1e-9, "{a} {b}: {ab:?} {ba:?}");
            }
            for interval in [newcombe, miettinen_nurminen] {
                let inside = interval(a, b, ALPHA);
                let diff = difference(a, b).unwrap();
                prop_assert!(inside.low <= diff + 1e-12 && diff <= inside.high + 1e-12);
                prop_assert!(inside.low >= -1.0 - 1e-12 && inside.high <= 1.0 + 1e-12);
            }
            prop_assert!((prob_better(a, b) + prob_better(b, a) - 1.0).abs() < 1e-10);
            let p = fisher_exact(a, b, Alternative::TwoSided);
            prop_assert!((p - fisher_exact(b, a, Alternative::TwoSided)).abs() < 1e-12);
        }
    }

    #[test]
    fn unconditional_tests_hold_their_level_and_beat_fisher() {
        // Size by enumeration at n = 12 per side and several common rates.
        let n = 12;
        let all: Vec<(Rate, Rate)> =
            (0..=n).flat_map(|x| (0..=n).map(move |y| (rate(x, n), rate(y, n)))).collect();
        let size = |test: &dyn Fn(Rate, Rate) -> f64, p: f64| -> f64 {
            let table = binomial_table(n, p);
            all.iter()
                .filter(|(a, b)| test(*a, *b) <= 0.05)
                .map(|(a, b)| table[a.successes() as usize] * table[b.successes() as usize])
                .sum()
        };
        // Fisher's p-value is a statistic; rejecting where Boschloo does rejects wherever Fisher does.
        let mut rejected_more = 0;
        for (a, b) in &all {
            let fisher = fisher_exact(*a, *b, Alternative::Greater);
            let boschloo = boschloo_exact(*a, *b, Alternative::Greater);
            assert!(boschloo <= fisher + 1e-9, "{a} {b}: {boschloo} {fisher}");
            rejected_more += usize::from(boschloo <= 0.05 && fisher > 0.05);
        }
        assert!(rejected_more > 0);
        for p in [0.1, 0.5, 0.83] {
            let z = size(&|a, b| score_test(a, b).p, p);
            let fisher = size(&|a, b| fisher_exact(a, b, Alternative::TwoSided), p);
            assert!(fisher <= 0.05, "{fisher}");
            assert!(z > fisher, "the z test spends more: {z} {fisher}");
        }
    }
}
