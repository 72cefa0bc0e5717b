//! Two policies on the same episodes (same task, initial state and seed): only the discordant pairs speak.
//!
//! Sources: `McNemar` 1947; Fagerland, Lydersen and Laake 2013 (mid-p); Bonett and Price 2012 (interval for the
//! difference); Fisher 1935, section 21 (sign flips); the Beta mixture of Bernoulli likelihood ratios for the e-value (Turner and Gruenwald 2023).

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::special::{binomial_table, chi2_1_sf, critical_z, ln_beta};
use super::{Alpha, Interval, Rate, StatsError, proportion::clopper_pearson};

/// Outcomes of shared episodes. The first digit is policy A, the second policy B; 1 is a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PairedTable {
    /// Both succeed.
    pub n11: u64,
    /// Only A succeeds, "b".
    pub n10: u64,
    /// Only B succeeds, "c".
    pub n01: u64,
    /// Both fail.
    pub n00: u64,
}

/// Statistic and p-value of a chi-squared test with one degree of freedom.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Chi2Test {
    /// Statistic.
    pub stat: f64,
    /// Upper tail probability.
    pub p: f64,
}

impl PairedTable {
    /// The table with these four counts.
    pub const fn new(n11: u64, n10: u64, n01: u64, n00: u64) -> Self {
        Self { n11, n10, n01, n00 }
    }

    /// Counts pairs of outcomes `(a, b)` in any order.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut table = Self::default();
        for (a, b) in pairs {
            table.push(a, b);
        }
        table
    }

    /// Counts one more pair.
    pub const fn push(&mut self, a: bool, b: bool) {
        match (a, b) {
            (true, true) => self.n11 += 1,
            (true, false) => self.n10 += 1,
            (false, true) => self.n01 += 1,
            (false, false) => self.n00 += 1,
        }
    }

    /// The same pairs with A and B swapped.
    #[must_use]
    pub const fn swapped(self) -> Self {
        Self::new(self.n11, self.n01, self.n10, self.n00)
    }

    /// Number of pairs.
    pub const fn pairs(self) -> u64 {
        self.n11 + self.n10 + self.n01 + self.n00
    }

    /// Number of pairs with different outcomes, b + c.
    pub const fn discordant(self) -> u64 {
        self.n10 + self.n01
    }

    /// Rate of A.
    pub const fn rate_a(self) -> Rate {
        Rate::from_parts(self.n11 + self.n10, self.n01 + self.n00)
    }

    /// Rate of B.
    pub const fn rate_b(self) -> Rate {
        Rate::from_parts(self.n11 + self.n01, self.n10 + self.n00)
    }

    /// (b - c) / N, the difference A - B of the rates; `None` without pairs.
    pub fn difference(self) -> Option<f64> {
        let (b, c, n) = self.bcn();
        (n > 0.0).then(|| (b - c) / n)
    }

    fn bcn(self) -> (f64, f64, f64) {
        (self.n10 as f64, self.n01 as f64, self.pairs() as f64)
    }

    /// Lower binomial tail at min(b, c) and the probability of that very point.
    fn lower_tail(self) -> (f64, f64) {
        let table = binomial_table(self.discordant(), 0.5);
        let at = self.n10.min(self.n01) as usize;
        (table[..=at].iter().sum(), table[at])
    }

    /// Exact two-sided `McNemar` p-value. Exactly 1 without discordant pairs.
    pub fn mcnemar_exact(self) -> f64 {
        (2.0 * self.lower_tail().0).min(1.0)
    }

    /// Mid-p version: half the weight of the observed point. Less conservative, level nearly always held.
    pub fn mcnemar_mid_p(self) -> f64 {
        let (tail, point) = self.lower_tail();
        (2.0 * tail - point).min(1.0)
    }

    /// (b - c)^2 / (b + c); `None` without discordant pairs.
    pub fn mcnemar_chi2(self) -> Option<Chi2Test> {
        self.chi2(0.0)
    }

    /// (|b - c| - 1)^2 / (b + c), with Edwards' continuity correction; `None` without discordant pairs.
    pub fn mcnemar_chi2_corrected(self) -> Option<Chi2Test> {
        self.chi2(1.0)
    }

    fn chi2(self, correction: f64) -> Option<Chi2Test> {
        let (b, c, _) = self.bcn();
        (b + c > 0.0).then(|| {
            let stat = ((b - c).abs() - correction).powi(2) / (b + c);
            Chi2Test { stat, p: chi2_1_sf(stat) }
        })
    }

    /// Clopper-Pearson interval of b / (b + c), the share of discordant pairs that A wins. `[0, 1]` without any.
    pub fn discordant_share(self, alpha: Alpha) -> Interval {
        clopper_pearson(Rate::from_parts(self.n10, self.n01), alpha)
    }

    /// Wald interval of the difference; of width zero without discordant pairs.
    pub fn wald(self, alpha: Alpha) -> Interval {
        let (b, c, n) = self.bcn();
        if n == 0.0 {
            return Interval::new(-1.0, 1.0);
        }
        let diff = (b - c) / n;
        let half = critical_z(alpha.get()) * ((b + c - (b - c).powi(2) / n).max(0.0)).sqrt() / n;
        Interval::new(diff - half, diff + half)
    }

    /// Bonett-Price interval of the difference: Wald on (b + 1)/(N + 2) and (c + 1)/(N + 2), cut to `[-1, 1]`.
    pub fn bonett_price(self, alpha: Alpha) -> Interval {
        let (b, c, n) = self.bcn();
        let (p10, p01) = ((b + 1.0) / (n + 2.0), (c + 1.0) / (n + 2.0));
        let diff = p10 - p01;
        let half = critical_z(alpha.get()) * ((p10 + p01 - diff * diff) / (n + 2.0)).sqrt();
        Interval::new((diff - half).max(-1.0), (diff + half).min(1.0))
    }

    /// ln of the e-value against "A and B win discordant pairs equally often", with the mixture prior
    /// Beta(prior, prior) on A's share: B(prior + b, prior + c) / B(prior, prior) * 2^(b + c).
    ///
    /// # Errors
    /// [`StatsError::Range`] unless `prior` is positive and finite.
    pub fn ln_e_value(self, prior: f64) -> Result<f64, StatsError> {
        if !(prior > 0.0 && prior.is_finite()) {
            return Err(StatsError::Range { name: "prior", got: prior, range: "(0, inf)" });
        }
        Ok(self.ln_mixture(prior))
    }

    /// The e-value under the default prior Beta(1/2, 1/2). Reject at 1/alpha, at any time.
    pub fn e_value(self) -> f64 {
        self.ln_mixture(0.5).exp()
    }

    pub(crate) fn ln_mixture(self, prior: f64) -> f64 {
        let (b, c, _) = self.bcn();
        ln_beta(prior + b, prior + c) - ln_beta(prior, prior) + (b + c) * std::f64::consts::LN_2
    }
}

/// Fisher's randomisation test of the mean of paired `differences` (B minus A of the same episodes): two-sided p that it is this far
/// from zero if each difference were as likely to have the other sign. For scores that are no counts, such as coverage.
///
/// All flips are tried if there are at most `resamples` of them, otherwise as many are drawn from the generator seeded by `seed`, and
/// p is `(1 + as far) / (1 + drawn)` (Phipson and Smyth 2010: never zero). Equal arguments give equal bits.
pub fn sign_flip(differences: &[f64], resamples: u32, seed: u64) -> f64 {
    let moved: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let observed = moved.iter().sum::<f64>().abs();
    // Rounding must not tell a sum from its own mirror image.
    let as_far = |sum: f64| sum.abs() >= observed * (1.0 - 1e-12);
    let n = moved.len() as u32;
    if let Some(all) = 1u32.checked_shl(n).filter(|all| *all <= resamples) {
        let flipped = |code: u32| {
            let signed = moved.iter().enumerate();
            signed.map(|(i, d)| if code >> i & 1 == 1 { -d } else { *d }).sum::<f64>()
        };
        let far = (0..all).filter(|&code| as_far(flipped(code))).count();
        return far as f64 / f64::from(all);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut far = 0u32;
    for _ in 0..resamples {
        let mut sum = 0.0;
        for piece in moved.chunks(64) {
            let mut signs: u64 = rng.random();
            for d in piece {
                sum += if signs & 1 == 1 { -d } else { *d };
                signs >>= 1;
            }
        }
        far += u32::from(as_far(sum));
    }
    (1.0 + f64::from(far)) / (1.0 + f64::from(resamples))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    #[test]
    fn the_same_outcomes_twice_are_no_difference() {
        let outcomes: Vec<bool> = (0..500).map(|i| i % 7 != 0).collect();
        let table = PairedTable::from_pairs(outcomes.iter().map(|&x| (x, x)));
        assert_eq!((table.n10, table.n01, table.pairs()), (0, 0, 500));
        assert_eq!(table.mcnemar_exact(), 1.0);
        assert_eq!(table.mcnemar_mid_p(), 1.0);
        assert_eq!(table.difference(), Some(0.0));
        assert!((table.e_value() - 1.0).abs() < 1e-15);
        assert_eq!(table.mcnemar_chi2(), None);
    }

    #[test]
    fn sign_flips_by_hand_and_by_the_normal_limit() {
        // Of 8 flips of (1, 2, 3) two reach ±6; of (1, 1, -1) all but none reach ±1.
        assert_eq!(sign_flip(&[1.0, 2.0, 3.0], 8, 0), 2.0 / 8.0);
        assert_eq!(sign_flip(&[1.0, 1.0, -1.0], 8, 0), 1.0);
        assert_eq!(sign_flip(&[0.0, 0.0], 8, 0), 1.0);
        assert_eq!(sign_flip(&[], 8, 0), 1.0);
        // Zeros say nothing.
        assert_eq!(sign_flip(&[1.0, 0.0, 2.0, 3.0, 0.0], 8, 0), 2.0 / 8.0);
        // 400 of ±1 with 30 more of one sign: z = 30 / sqrt(400) = 1.5, two-sided p = 0.134 (0.14 with the lattice's step).
        let many: Vec<f64> = (0..400).map(|i| if i < 215 { 1.0 } else { -1.0 }).collect();
        let p = sign_flip(&many, 20_000, 1);
        assert!((p - 0.147).abs() < 0.01, "{p}");
        assert_eq!(p.to_bits(), sign_flip(&many, 20_000, 1).to_bits());
        let negated: Vec<f64> = many.iter().map(|d| -d).collect();
        assert_eq!(p, sign_flip(&negated, 20_000, 1), "two-sided");
    }

    #[test]
    fn sign_flips_are_fair_where_nothing_differs() {
        // Under the null a p below 0.05 comes up in about one of twenty trials.
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let hits = (0..400)
            .filter(|_| {
                let d: Vec<f64> = (0..40).map(|_| rng.random::<f64>() - 0.5).collect();
                sign_flip(&d, 400, 3) < 0.05
            })
            .count();
        assert!((8..=34).contains(&hits), "{hits} of 400");
    }

    #[test]
    fn five_to_nothing_by_hand() {
        let table = PairedTable::new(10, 5, 0, 3);
        assert_eq!(table.mcnemar_exact(), 2.0 / 32.0);
        assert_eq!(table.mcnemar_mid_p(), 1.0 / 32.0);
        // Beta(1/2, 1/2): product of (1/2 + i) / (1 + i) for i = 0..5, times 2^5 = 7.875.
        assert!((table.e_value() - 7.875).abs() < 1e-12);
        assert!(table.ln_e_value(0.0).is_err());
    }

    #[test]
    fn the_e_value_is_a_fair_bet_under_the_null() {
        // Expectation over all outcomes of 30 discordant pairs at one half: exactly 1.
        let expectation: f64 = binomial_table(30, 0.5)
            .iter()
            .enumerate()
            .map(|(b, p)| p * PairedTable::new(0, b as u64, 30 - b as u64, 0).e_value())
            .sum();
        assert!((expectation - 1.0).abs() < 1e-12, "{expectation}");
    }

    proptest! {
        #[test]
        fn swapping_a_and_b_mirrors(n11 in 0_u64..300, b in 0_u64..60, c in 0_u64..60, n00 in 0_u64..300) {
            let table = PairedTable::new(n11, b, c, n00);
            let swapped = table.swapped();
            prop_assert_eq!(table.mcnemar_exact(), swapped.mcnemar_exact());
            prop_assert!(table.mcnemar_mid_p() <= table.mcnemar_exact());
            let (here, there) = (table.bonett_price(ALPHA), swapped.bonett_price(ALPHA));
            prop_assert!((here.low + there.high).abs() < 1e-12);
            prop_assert!((table.e_value() / swapped.e_value() - 1.0).abs() < 1e-9);
            if let Some(diff) = table.difference() {
                prop_assert!(table.wald(ALPHA).contains(diff));
                let gap = table.rate_a().fraction().unwrap() - table.rate_b().fraction().unwrap();
                prop_assert!((gap - diff).abs() < 1e-12);
            }
        }

        #[test]
        fn one_more_win_for_the_leader_strengthens_the_evidence(b in 0_u64..80, c in 0_u64..80) {
            let (b, c) = (b.max(c), b.min(c));
            let table = PairedTable::new(50, b, c, 5);
            let more = PairedTable::new(50, b + 1, c, 5);
            prop_assert!(more.mcnemar_exact() <= table.mcnemar_exact() + 1e-15);
        }
    }
}
