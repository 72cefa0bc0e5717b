//! Does a simulator rank policies as reality does: MMRV, correlations; and pass@k.
//!
//! Sources: SIMPLER (Li et al. 2024, equation 1 of the MMRV metric); Chen et al. 2021 (pass@k).

use super::StatsError;

fn expect_pairs(left: &[f64], right: &[f64], at_least: usize) -> Result<(), StatsError> {
    if left.len() == right.len() && left.len() >= at_least {
        return Ok(());
    }
    Err(StatsError::Lengths { left: left.len(), right: right.len(), at_least })
}

/// Mean maximum rank violation: for each policy the largest real-world gap to a policy that the simulator
/// ranks the other way, averaged. 0 is a faithful ranking.
///
/// The order of arguments matters: gaps are measured in `real`, so `mmrv(real, sim)` is another number.
/// (SIMPLER's docstring has them swapped: 0.0027 instead of 0.1110 on its `move_near` table.)
///
/// # Errors
/// [`StatsError::Lengths`] unless both have the same, non-zero length.
pub fn mmrv(sim: &[f64], real: &[f64]) -> Result<f64, StatsError> {
    expect_pairs(sim, real, 1)?;
    let n = sim.len();
    let worst = |i: usize| {
        (0..n)
            .filter(|&j| (sim[i] > sim[j]) != (real[i] > real[j]))
            .map(|j| (real[i] - real[j]).abs())
            .fold(0.0, f64::max)
    };
    Ok((0..n).map(worst).sum::<f64>() / n as f64)
}

/// Pearson correlation; NaN when either list is constant.
///
/// # Errors
/// [`StatsError::Lengths`] unless both have the same length, at least 2.
pub fn pearson(x: &[f64], y: &[f64]) -> Result<f64, StatsError> {
    pearson_regularised(x, y, 0.0)
}

/// Pearson correlation as SIMPLER prints it: 1e-8 is added to the root of the product of the two sums of
/// squares, which pulls the result towards zero and makes constant lists give 0.
///
/// # Errors
/// [`StatsError::Lengths`] unless both have the same length, at least 2.
pub fn pearson_simpler(x: &[f64], y: &[f64]) -> Result<f64, StatsError> {
    pearson_regularised(x, y, 1e-8)
}

fn pearson_regularised(x: &[f64], y: &[f64], added: f64) -> Result<f64, StatsError> {
    expect_pairs(x, y, 2)?;
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let squares = |v: &[f64], m: f64| v.iter().map(|a| (a - m).powi(2)).sum::<f64>();
    let product: f64 = x.iter().zip(y).map(|(a, b)| (a - mx) * (b - my)).sum();
    let r = product / ((squares(x, mx) * squares(y, my)).sqrt() + added);
    Ok(r.clamp(-1.0, 1.0))
}

/// Spearman rank correlation; ties share the mean of their ranks. NaN when either list is constant.
///
/// # Errors
/// [`StatsError::Lengths`] unless both have the same length, at least 2.
pub fn spearman(x: &[f64], y: &[f64]) -> Result<f64, StatsError> {
    expect_pairs(x, y, 2)?;
    pearson(&mean_ranks(x), &mean_ranks(y))
}

/// 1 + values below + half of the other equal values.
fn mean_ranks(values: &[f64]) -> Vec<f64> {
    values
        .iter()
        .map(|v| {
            let below = values.iter().filter(|w| *w < v).count() as f64;
            let equal = values.iter().filter(|w| *w == v).count() as f64;
            below + 0.5 * (equal + 1.0)
        })
        .collect()
}

/// Unbiased chance that at least one of `k` attempts succeeds, from `successes` in `attempts`:
/// 1 - C(n - c, k) / C(n, k).
///
/// # Errors
/// [`StatsError::Count`] when `successes > attempts`; [`StatsError::Range`] unless `1 <= k <= attempts`.
pub fn pass_at_k(attempts: u64, successes: u64, k: u64) -> Result<f64, StatsError> {
    if successes > attempts {
        return Err(StatsError::Count { successes, episodes: attempts });
    }
    if k == 0 || k > attempts {
        return Err(StatsError::Range { name: "k", got: k as f64, range: "[1, attempts]" });
    }
    let failures = attempts - successes;
    if failures < k {
        return Ok(1.0);
    }
    let all_fail: f64 = (0..k).map(|i| (failures - i) as f64 / (attempts - i) as f64).product();
    Ok(1.0 - all_fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mmrv_measures_gaps_in_reality() {
        // The simulator swaps the first two policies; in reality they are 0.6 apart.
        let (sim, real) = ([0.5, 0.6, 0.9], [0.8, 0.2, 0.9]);
        assert!((mmrv(&sim, &real).unwrap() - 0.4).abs() < 1e-15);
        assert!((mmrv(&real, &sim).unwrap() - 0.2 / 3.0).abs() < 1e-15);
        assert_eq!(mmrv(&real, &real).unwrap(), 0.0);
        assert!(mmrv(&sim, &real[..2]).is_err());
    }

    #[test]
    fn correlations_by_hand() {
        assert!((pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]).unwrap() - 1.0).abs() < 1e-15);
        assert!((spearman(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]).unwrap() + 1.0).abs() < 1e-15);
        assert_eq!(mean_ranks(&[0.3, 0.1, 0.3]), [2.5, 1.0, 2.5]);
        assert!(pearson(&[1.0, 1.0], &[0.0, 1.0]).unwrap().is_nan());
        assert_eq!(pearson_simpler(&[1.0, 1.0], &[0.0, 1.0]).unwrap(), 0.0);
    }

    #[test]
    fn pass_at_one_is_the_rate_and_errors_are_named() {
        assert!((pass_at_k(50, 45, 1).unwrap() - 0.9).abs() < 1e-15);
        assert_eq!(pass_at_k(5, 3, 3).unwrap(), 1.0);
        assert!(pass_at_k(5, 6, 1).is_err());
        assert!(pass_at_k(5, 3, 6).is_err());
    }
}
