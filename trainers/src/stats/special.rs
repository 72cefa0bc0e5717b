//! Special functions and exact discrete distributions at double precision.
//!
//! `statrs` gives the regularised incomplete Beta function and `ln_gamma`. Its `erfc` is only good to 4e-11
//! (relative, near 1.4), so that one is made here; quantiles are solved by a bracketed Newton iteration,
//! because the library's own inverses stop early. Binomial and
//! hypergeometric probabilities come as whole tables built by ratios from the mode and normalised: no
//! logarithm, no cancellation, relative error of a few ulps times the square root of the length.

use statrs::function::{beta::beta_reg, gamma::ln_gamma};

/// Complementary error function, relative error of some 1e-15.
///
/// Below 2 by the series of erf with positive terms (Abramowitz and Stegun 7.1.6), from there on by the
/// continued fraction 7.1.14, evaluated backwards.
pub fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term > 1e-18 * sum {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        1.0 - 2.0 * scale * sum
    } else {
        // 100 levels leave less than one ulp at x = 2, fewer would do further out.
        scale / (1..=100).rev().fold(x, |tail, level| x + 0.5 * f64::from(level) / tail)
    }
}

/// Standard normal distribution function.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x / std::f64::consts::SQRT_2)
}

/// Upper tail of the standard normal distribution.
pub fn normal_sf(x: f64) -> f64 {
    normal_cdf(-x)
}

/// Standard normal quantile of `p` in (0, 1); infinite at the ends.
pub fn normal_quantile(p: f64) -> f64 {
    if p <= 0.0 {
        return f64::NEG_INFINITY;
    }
    if p >= 1.0 {
        return f64::INFINITY;
    }
    // The lower half has the relative precision, so solve there and mirror.
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    // In logarithms the far tail is nearly a parabola, which Newton likes; cdf(-40) is below every float.
    newton_in_bracket(-40.0, 0.0, -1.0, |x| {
        let cdf = normal_cdf(x);
        (cdf.ln() - p.ln(), density(x) / cdf)
    })
}

/// The two-sided critical value: 1.959963984540054 at `alpha` = 0.05.
pub fn critical_z(alpha: f64) -> f64 {
    -normal_quantile(0.5 * alpha)
}

/// Upper tail of the chi-squared distribution with one degree of freedom.
pub fn chi2_1_sf(x: f64) -> f64 {
    erfc((0.5 * x.max(0.0)).sqrt())
}

/// ln B(a, b) for positive arguments.
pub fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// Distribution function of Beta(a, b) at `x`, clamped to `[0, 1]`.
pub fn beta_cdf(x: f64, a: f64, b: f64) -> f64 {
    beta_reg(a, b, x.clamp(0.0, 1.0))
}

/// ln of the Beta(a, b) density at `x` in (0, 1); minus infinity where the density is zero.
pub fn beta_ln_pdf(x: f64, a: f64, b: f64) -> f64 {
    x_ln_y(a - 1.0, x) + x_ln_y(b - 1.0, 1.0 - x) - ln_beta(a, b)
}

/// Quantile of Beta(a, b): the x with cdf(x) = q; 0 and 1 at the ends.
pub fn beta_quantile(q: f64, a: f64, b: f64) -> f64 {
    if q <= 0.0 {
        return 0.0;
    }
    if q >= 1.0 {
        return 1.0;
    }
    let mean = a / (a + b);
    // Solve next to zero, where floats are dense.
    if beta_cdf(0.5, a, b) < q {
        return 1.0
            - newton_in_bracket(0.0, 0.5, (1.0 - mean).min(0.25), |y| {
                // 1 - cdf(1 - y) = cdf of the mirrored Beta.
                (beta_cdf(y, b, a) - (1.0 - q), beta_ln_pdf(y, b, a).exp())
            });
    }
    newton_in_bracket(0.0, 0.5, mean.min(0.25), |x| {
        (beta_cdf(x, a, b) - q, beta_ln_pdf(x, a, b).exp())
    })
}

/// x ln y with 0 ln 0 = 0.
pub fn x_ln_y(x: f64, y: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x * y.ln() }
}

/// Root of an increasing function in `[low, high]`: Newton where it stays inside the shrinking bracket,
/// bisection elsewhere. `f` returns value and derivative.
fn newton_in_bracket(
    mut low: f64,
    mut high: f64,
    start: f64,
    f: impl Fn(f64) -> (f64, f64),
) -> f64 {
    let mut x = start;
    for _ in 0..200 {
        let (value, slope) = f(x);
        if value == 0.0 {
            return x;
        }
        if value > 0.0 {
            high = x;
        } else {
            low = x;
        }
        let newton = x - value / slope;
        let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
        if (next - x).abs() <= 2.0 * f64::EPSILON * next.abs() {
            return next;
        }
        x = next;
    }
    x
}

/// Root of a function that changes sign once in `[low, high]`, by bisection to adjacent floats.
///
/// When the sign does not change the end with the smaller magnitude is returned.
pub fn bisect(mut low: f64, mut high: f64, f: impl Fn(f64) -> f64) -> f64 {
    let (at_low, at_high) = (f(low), f(high));
    if at_low.signum() == at_high.signum() {
        return if at_low.abs() <= at_high.abs() { low } else { high };
    }
    let rising = at_low < at_high;
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if (f(middle) > 0.0) == rising {
            high = middle;
        } else {
            low = middle;
        }
    }
    0.5 * (low + high)
}

/// Probabilities of 0..=n successes in `n` trials at rate `p` in `[0, 1]`; `n + 1` entries that sum to 1.
pub fn binomial_table(n: u64, p: f64) -> Vec<f64> {
    let len = n as usize + 1;
    if p <= 0.0 || p >= 1.0 {
        let mut table = vec![0.0; len];
        table[if p <= 0.0 { 0 } else { n as usize }] = 1.0;
        return table;
    }
    let odds = p / (1.0 - p);
    let mode = (((n + 1) as f64 * p) as usize).min(n as usize);
    ratio_table(len, mode, |k| (n as f64 - k as f64) / (k as f64 + 1.0) * odds)
}

/// Hypergeometric probabilities of `x` marked items in a sample of `draws` out of `total` with `marked`
/// marked ones. Returns the smallest possible `x` and the table from there upwards.
pub fn hypergeometric_table(total: u64, marked: u64, draws: u64) -> (u64, Vec<f64>) {
    let least = (draws + marked).saturating_sub(total);
    let most = draws.min(marked);
    let len = (most - least) as usize + 1;
    let mode = ((draws + 1) as f64 * (marked + 1) as f64 / (total + 2) as f64) as u64;
    let mode = (mode.clamp(least, most) - least) as usize;
    let table = ratio_table(len, mode, |i| {
        let x = (least + i as u64) as f64;
        let (marked, draws, total) = (marked as f64, draws as f64, total as f64);
        (marked - x) * (draws - x) / ((x + 1.0) * (total - marked - draws + x + 1.0))
    });
    (least, table)
}

/// Builds a probability table from the ratios `p[k + 1] / p[k]`, starting with weight 1 at `mode`.
fn ratio_table(len: usize, mode: usize, ratio: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut table = vec![0.0; len];
    table[mode] = 1.0;
    for k in mode..len - 1 {
        table[k + 1] = table[k] * ratio(k);
    }
    for k in (0..mode).rev() {
        table[k] = table[k + 1] / ratio(k);
    }
    let sum: f64 = table.iter().sum();
    for weight in &mut table {
        *weight /= sum;
    }
    table
}

/// Sum of the entries that are at most `table[at]`, the two-sided "no more likely than seen" rule of exact
/// tests. Ties are found with a relative slack of 1e-7, as R and scipy do.
pub fn two_sided_by_likelihood(table: &[f64], at: usize) -> f64 {
    let limit = table[at] * (1.0 + 1e-7);
    table.iter().filter(|&&p| p <= limit).sum::<f64>().min(1.0)
}

/// Percentile `q` in `[0, 1]` of sorted values, linear between order statistics (numpy's default).
///
/// Returns NaN for an empty slice.
pub fn percentile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_quantile_inverts_the_distribution_function() {
        let z = critical_z(0.05);
        assert!((z - 1.959_963_984_540_054).abs() < 1e-13, "{z:.17}");
        let z = normal_quantile(0.8);
        assert!((z - 0.841_621_233_572_914_3).abs() < 1e-13, "{z:.17}");
        for p in [1e-300, 1e-12, 0.01, 0.3, 0.5, 0.7, 0.999_999] {
            let back = normal_cdf(normal_quantile(p));
            assert!((back / p - 1.0).abs() < 1e-12, "{p}: {back}");
        }
    }

    #[test]
    fn erfc_equals_published_values_on_both_sides_of_the_switch() {
        // Abramowitz and Stegun, tables 7.1 and 7.3, and the digits of mpmath.
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (3.0, 2.209_049_699_858_544e-5),
            (-1.0, 1.842_700_792_949_715),
        ] {
            let got = erfc(x);
            assert!((got / want - 1.0).abs() < 2e-15, "{x}: {got:e}");
        }
        assert!((erfc(2.0_f64.next_down()) / erfc(2.0) - 1.0).abs() < 1e-13);
        assert_eq!(erfc(40.0), 0.0);
    }

    #[test]
    fn beta_quantile_inverts_in_both_tails() {
        for (a, b) in [(0.5, 500.5), (1.0, 1.0), (3.0, 8.0), (487.0, 15.0), (1961.0, 41.0)] {
            for q in [1e-9, 0.005, 0.025, 0.5, 0.975, 0.995] {
                let back = beta_cdf(beta_quantile(q, a, b), a, b);
                assert!((back - q).abs() < 1e-12, "Beta({a}, {b}) at {q}: {back}");
            }
        }
        // Beta(1, n): 1 - (1 - x)^n, solved by hand.
        let exact = 1.0 - 0.975_f64.powf(0.1);
        assert!((beta_quantile(0.025, 1.0, 10.0) - exact).abs() < 1e-16);
    }

    #[test]
    fn tables_agree_with_hand_counts() {
        let table = binomial_table(4, 0.5);
        for (got, want) in table.iter().zip([1.0, 4.0, 6.0, 4.0, 1.0]) {
            assert!((got - want / 16.0).abs() < 1e-16);
        }
        assert_eq!(binomial_table(3, 0.0), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(binomial_table(3, 1.0), [0.0, 0.0, 0.0, 1.0]);
        // 5 balls, 3 marked, draw 3: x = 1, 2, 3 with 3, 6, 1 of 10 ways.
        let (least, table) = hypergeometric_table(5, 3, 3);
        assert_eq!(least, 1);
        for (got, want) in table.iter().zip([0.3, 0.6, 0.1]) {
            assert!((got - want).abs() < 1e-15);
        }
    }

    #[test]
    fn long_tables_do_not_underflow_at_the_mode() {
        let table = binomial_table(100_000, 0.9);
        let mean: f64 = table.iter().enumerate().map(|(k, p)| k as f64 * p).sum();
        assert!((mean - 90_000.0).abs() < 1e-6, "{mean}");
    }

    #[test]
    fn percentile_is_linear_between_order_statistics() {
        let sorted = [1.0, 2.0, 4.0];
        assert_eq!(percentile(&sorted, 0.0), 1.0);
        assert_eq!(percentile(&sorted, 0.25), 1.5);
        assert_eq!(percentile(&sorted, 0.75), 3.0);
        assert_eq!(percentile(&sorted, 1.0), 4.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
