//! One success rate: intervals, Beta posterior, exact tests and exact coverage.
//!
//! Sources: Wilson 1927; Clopper and Pearson 1934; Agresti and Coull 1998; Brown, Cai and `DasGupta` 2001
//! (Jeffreys); Newcombe 1998, Stat. Med. 17:857, method 4 (Wilson with continuity correction).

use serde::Serialize;

use super::special::{
    beta_cdf, beta_ln_pdf, beta_quantile, binomial_table, bisect, critical_z,
    two_sided_by_likelihood,
};
use super::{Alpha, Alternative, Interval, Rate};

/// How an interval for one rate is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Score interval; the default: close to nominal coverage at every n.
    Wilson,
    /// Score interval with continuity correction, conservative.
    WilsonContinuity,
    /// Exact: coverage never below nominal.
    ClopperPearson,
    /// Equal-tailed interval of Beta(1/2 + k, 1/2 + n - k).
    Jeffreys,
    /// Wald after adding z^2/2 successes and z^2/2 failures.
    AgrestiCoull,
    /// The textbook interval. Covers 63.5 % instead of 95 % at n = 50, p = 0.98; kept for comparison only.
    Wald,
}

impl Method {
    /// Every method, for tables.
    pub const ALL: [Self; 6] = [
        Self::Wilson,
        Self::WilsonContinuity,
        Self::ClopperPearson,
        Self::Jeffreys,
        Self::AgrestiCoull,
        Self::Wald,
    ];

    /// The interval of this kind; `[0, 1]` before the first episode.
    pub fn interval(self, rate: Rate, alpha: Alpha) -> Interval {
        match self {
            Self::Wilson => wilson(rate, alpha),
            Self::WilsonContinuity => wilson_continuity(rate, alpha),
            Self::ClopperPearson => clopper_pearson(rate, alpha),
            Self::Jeffreys => jeffreys(rate, alpha),
            Self::AgrestiCoull => agresti_coull(rate, alpha),
            Self::Wald => wald(rate, alpha),
        }
    }
}

/// Wilson score interval.
pub fn wilson(rate: Rate, alpha: Alpha) -> Interval {
    let (k, n) = rate.kn();
    let Some(p) = rate.fraction() else {
        return Interval::UNIT;
    };
    let z = critical_z(alpha.get());
    let z2 = z * z;
    let scale = 1.0 + z2 / n;
    let centre = (p + z2 / (2.0 * n)) / scale;
    let half = z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt() / scale;
    pinned(k, n, centre - half, centre + half)
}

/// Wilson score interval with continuity correction (Newcombe 1998, method 4).
pub fn wilson_continuity(rate: Rate, alpha: Alpha) -> Interval {
    let (k, n) = rate.kn();
    let Some(p) = rate.fraction() else {
        return Interval::UNIT;
    };
    let z = critical_z(alpha.get());
    let z2 = z * z;
    let side = |sign: f64| {
        let root = (z2 + 2.0 * sign - 1.0 / n + 4.0 * p * (n * (1.0 - p) - sign)).max(0.0);
        (2.0 * k + z2 + sign * (1.0 + z * root.sqrt())) / (2.0 * (n + z2))
    };
    pinned(k, n, side(-1.0), side(1.0))
}

/// Clopper-Pearson interval: Beta quantiles that make both exact one-sided tests accept.
pub fn clopper_pearson(rate: Rate, alpha: Alpha) -> Interval {
    let (k, n) = rate.kn();
    let tail = 0.5 * alpha.get();
    let low = if rate.successes() == 0 { 0.0 } else { beta_quantile(tail, k, n - k + 1.0) };
    let high = if rate.failures() == 0 { 1.0 } else { beta_quantile(1.0 - tail, k + 1.0, n - k) };
    Interval::new(low, high)
}

/// Jeffreys interval: equal tails of Beta(1/2 + k, 1/2 + n - k). It excludes k/n when k is 0 or n.
pub fn jeffreys(rate: Rate, alpha: Alpha) -> Interval {
    if rate.episodes() == 0 {
        return Interval::UNIT;
    }
    BetaPosterior::with_prior(rate, 0.5, 0.5).equal_tailed(alpha)
}

/// Agresti-Coull interval, cut to `[0, 1]`.
pub fn agresti_coull(rate: Rate, alpha: Alpha) -> Interval {
    let (k, n) = rate.kn();
    if rate.episodes() == 0 {
        return Interval::UNIT;
    }
    let z = critical_z(alpha.get());
    let n = n + z * z;
    let p = (k + 0.5 * z * z) / n;
    let half = z * (p * (1.0 - p) / n).sqrt();
    Interval::new(p - half, p + half).clamped()
}

/// Wald interval, cut to `[0, 1]`. Too narrow near 0 and 1, of width zero at the ends.
pub fn wald(rate: Rate, alpha: Alpha) -> Interval {
    let (_, n) = rate.kn();
    let Some(p) = rate.fraction() else {
        return Interval::UNIT;
    };
    let half = critical_z(alpha.get()) * (p * (1.0 - p) / n).sqrt();
    Interval::new(p - half, p + half).clamped()
}

/// Sets the end that is 0 or 1 in exact arithmetic to exactly that.
fn pinned(k: f64, n: f64, low: f64, high: f64) -> Interval {
    Interval::new(if k == 0.0 { 0.0 } else { low }, if k == n { 1.0 } else { high }).clamped()
}

/// Posterior Beta(a, b) of a success rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BetaPosterior {
    /// Prior successes plus successes; positive.
    pub a: f64,
    /// Prior failures plus failures; positive.
    pub b: f64,
}

impl BetaPosterior {
    /// Posterior under the uniform prior Beta(1, 1).
    pub fn uniform(rate: Rate) -> Self {
        Self::with_prior(rate, 1.0, 1.0)
    }

    /// Posterior under Beta(a, b), both positive.
    pub fn with_prior(rate: Rate, a: f64, b: f64) -> Self {
        let (k, n) = rate.kn();
        Self { a: a + k, b: b + n - k }
    }

    /// Posterior mean.
    pub fn mean(self) -> f64 {
        self.a / (self.a + self.b)
    }

    /// Posterior variance.
    pub fn variance(self) -> f64 {
        let sum = self.a + self.b;
        self.a * self.b / (sum * sum * (sum + 1.0))
    }

    /// Probability that the rate is above `p`.
    pub fn prob_above(self, p: f64) -> f64 {
        beta_cdf(1.0 - p, self.b, self.a)
    }

    /// Equal-tailed credible interval.
    pub fn equal_tailed(self, alpha: Alpha) -> Interval {
        let tail = 0.5 * alpha.get();
        Interval::new(
            beta_quantile(tail, self.a, self.b),
            beta_quantile(1.0 - tail, self.a, self.b),
        )
    }

    /// Highest-density credible interval: the shortest one.
    ///
    /// A density that is highest at an end (a or b at most 1) gives an interval that starts there; the flat
    /// Beta(1, 1) and the U-shaped case fall back to equal tails.
    pub fn highest_density(self, alpha: Alpha) -> Interval {
        let Self { a, b } = self;
        let alpha_value = alpha.get();
        match (a > 1.0, b > 1.0) {
            (false, true) => Interval::new(0.0, beta_quantile(1.0 - alpha_value, a, b)),
            (true, false) => Interval::new(beta_quantile(alpha_value, a, b), 1.0),
            (false, false) if a < b => Interval::new(0.0, beta_quantile(1.0 - alpha_value, a, b)),
            (false, false) if a > b => Interval::new(beta_quantile(alpha_value, a, b), 1.0),
            (false, false) => self.equal_tailed(alpha),
            (true, true) => {
                // Slide mass from the right tail to the left until both ends are equally dense.
                let high = |left: f64| beta_quantile(left + 1.0 - alpha_value, a, b);
                let left = bisect(0.0, alpha_value, |left| {
                    if left <= 0.0 {
                        return -1.0;
                    }
                    if left >= alpha_value {
                        return 1.0;
                    }
                    let low = beta_quantile(left, a, b);
                    beta_ln_pdf(low, a, b) - beta_ln_pdf(high(left), a, b)
                });
                Interval::new(beta_quantile(left, a, b), high(left))
            }
        }
    }
}

/// Exact binomial test of `p = p0`; two-sided by likelihood. 1 before the first episode.
pub fn binomial_test(rate: Rate, p0: f64, alternative: Alternative) -> f64 {
    let table = binomial_table(rate.episodes(), p0);
    let k = rate.successes() as usize;
    match alternative {
        Alternative::TwoSided => two_sided_by_likelihood(&table, k),
        Alternative::Greater => table[k..].iter().sum::<f64>().min(1.0),
        Alternative::Less => table[..=k].iter().sum::<f64>().min(1.0),
    }
}

/// Probability that an interval of `n` episodes covers the true rate `p`, by enumeration of all outcomes.
pub fn exact_coverage(method: Method, n: u64, p: f64, alpha: Alpha) -> f64 {
    binomial_table(n, p)
        .iter()
        .enumerate()
        .filter(|&(k, _)| {
            let rate = Rate::from_parts(k as u64, n - k as u64);
            method.interval(rate, alpha).contains(p)
        })
        .map(|(_, weight)| weight)
        .sum()
}

/// The central band of observed rates of one policy with true rate `p` over `n` episodes: binomial quantiles
/// `alpha / 2` and `1 - alpha / 2` over `n`. Results inside it need no explanation. `n` at least 1.
pub fn observed_band(n: u64, p: f64, alpha: Alpha) -> Interval {
    let table = binomial_table(n, p);
    let quantile = |q: f64| {
        let mut sum = 0.0;
        let found = table.iter().position(|weight| {
            sum += weight;
            sum >= q
        });
        found.unwrap_or(n as usize) as f64 / n.max(1) as f64
    };
    let tail = 0.5 * alpha.get();
    Interval::new(quantile(tail), quantile(1.0 - tail))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    fn rates() -> impl Strategy<Value = Rate> {
        (1_u64..400).prop_flat_map(|n| {
            (0..=n).prop_map(move |k| Rate::new(k, n).expect("k is drawn up to n"))
        })
    }

    proptest! {
        #[test]
        fn intervals_contain_the_observed_rate(rate in rates()) {
            let p = rate.fraction().unwrap();
            for method in Method::ALL {
                let at_an_end = rate.successes() == 0 || rate.failures() == 0;
                if method == Method::Jeffreys && at_an_end {
                    continue; // documented: equal tails exclude the end
                }
                let interval = method.interval(rate, ALPHA);
                prop_assert!(interval.contains(p), "{method:?} {rate}: {interval:?}");
                prop_assert!(interval.low >= 0.0 && interval.high <= 1.0);
            }
        }

        #[test]
        fn swapping_success_and_failure_mirrors_every_interval(rate in rates()) {
            for method in Method::ALL {
                let here = method.interval(rate, ALPHA);
                let there = method.interval(rate.mirrored(), ALPHA);
                prop_assert!((here.low - (1.0 - there.high)).abs() < 1e-12, "{method:?}");
                prop_assert!((here.high - (1.0 - there.low)).abs() < 1e-12, "{method:?}");
            }
        }

        #[test]
        fn one_more_success_moves_both_ends_up(rate in rates()) {
            if rate.failures() == 0 {
                return Ok(());
            }
            let more = Rate::from_parts(rate.successes() + 1, rate.failures() - 1);
            // Wald is left out: its width collapses towards the ends, so its lower end may go either way.
            for method in &Method::ALL[..5] {
                let (here, there) = (method.interval(rate, ALPHA), method.interval(more, ALPHA));
                prop_assert!(here.low <= there.low + 1e-12, "{method:?} {rate}");
                prop_assert!(here.high <= there.high + 1e-12, "{method:?} {rate}");
            }
        }

        #[test]
        fn more_confidence_is_wider(rate in rates()) {
            for method in Method::ALL {
                let narrow = method.interval(rate, ALPHA);
                let wide = method.interval(rate, Alpha::ONE_PERCENT);
                prop_assert!(wide.low <= narrow.low + 1e-15 && narrow.high <= wide.high + 1e-15);
            }
        }

        #[test]
        fn highest_density_holds_its_mass_and_is_no_wider_than_equal_tails(rate in rates()) {
            let posterior = BetaPosterior::uniform(rate);
            let hdi = posterior.highest_density(ALPHA);
            let mass = beta_cdf(hdi.high, posterior.a, posterior.b)
                - beta_cdf(hdi.low, posterior.a, posterior.b);
            prop_assert!((mass - 0.95).abs() < 1e-10, "{mass}");
            prop_assert!(hdi.half_width() <= posterior.equal_tailed(ALPHA).half_width() + 1e-12);
        }
    }

    #[test]
    fn clopper_pearson_inverts_the_exact_tests() {
        let rate = Rate::new(8, 10).unwrap();
        let interval = clopper_pearson(rate, ALPHA);
        let greater = binomial_test(rate, interval.low, Alternative::Greater);
        let less = binomial_test(rate, interval.high, Alternative::Less);
        assert!((greater - 0.025).abs() < 1e-12, "{greater}");
        assert!((less - 0.025).abs() < 1e-12, "{less}");
    }

    #[test]
    fn clopper_pearson_covers_everywhere_and_wald_does_not() {
        let mut worst_wald: f64 = 1.0;
        for n in [1, 5, 10, 37, 50] {
            for step in 1..200 {
                let p = f64::from(step) / 200.0;
                let exact = exact_coverage(Method::ClopperPearson, n, p, ALPHA);
                assert!(exact >= 0.95 - 1e-12, "n {n} p {p}: {exact}");
                worst_wald = worst_wald.min(exact_coverage(Method::Wald, n, p, ALPHA));
            }
        }
        assert!(worst_wald < 0.7, "the control lost its fault: {worst_wald}");
    }

    #[test]
    fn nothing_is_known_before_the_first_episode() {
        let empty = Rate::default();
        for method in Method::ALL {
            assert_eq!(method.interval(empty, ALPHA), Interval::UNIT);
        }
        assert_eq!(binomial_test(empty, 0.9, Alternative::TwoSided), 1.0);
    }
}
