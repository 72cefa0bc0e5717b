//! Many comparisons at once: adjusted p-values and compact letters.
//!
//! Adjusted values are compared with alpha as they are. Sources: Holm 1979; Hommel 1988; Benjamini and Hochberg
//! 1995; Sidak 1967; Piepho 2004 (letters by insert and absorb).

/// Indices of `p` from the smallest value to the largest; ties keep their order, NaN goes last.
fn ascending(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    order
}

/// Bonferroni: p times the number of tests, at most 1.
pub fn bonferroni(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    p.iter().map(|p| (p * m).min(1.0)).collect()
}

/// Sidak: 1 - (1 - p)^m, exact for independent tests.
pub fn sidak(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    p.iter().map(|p| -(m * (-p).ln_1p()).exp_m1()).collect()
}

/// Holm's step-down values: controls the family-wise error under any dependence.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let m = p.len();
    let mut adjusted = vec![0.0; m];
    let mut largest: f64 = 0.0;
    for (rank, i) in ascending(p).into_iter().enumerate() {
        largest = largest.max((m - rank) as f64 * p[i]).min(1.0);
        adjusted[i] = largest;
    }
    adjusted
}

/// Benjamini-Hochberg step-up values: controls the false discovery rate.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    let mut adjusted = vec![0.0; p.len()];
    let mut smallest: f64 = 1.0;
    for (rank, i) in ascending(p).into_iter().enumerate().rev() {
        smallest = smallest.min(p[i] * m / (rank + 1) as f64);
        adjusted[i] = smallest;
    }
    adjusted
}

/// Hommel's values: the closed test with Simes' inequality, at least as powerful as Holm under independence.
pub fn hommel(p: &[f64]) -> Vec<f64> {
    let m = p.len();
    let order = ascending(p);
    let sorted: Vec<f64> = order.iter().map(|&i| p[i]).collect();
    let mut best = sorted.clone();
    // For each subset size, the Simes value of the worst subset that holds a hypothesis.
    for size in (2..=m).rev() {
        let first_of_top = m - size + 1;
        let simes_of_top = (1..size)
            .map(|rank| size as f64 * sorted[first_of_top + rank - 1] / (rank + 1) as f64)
            .fold(f64::INFINITY, f64::min);
        for (i, best) in best.iter_mut().enumerate() {
            let smallest = sorted[i.min(first_of_top - 1)];
            let bound = simes_of_top.min(size as f64 * smallest);
            *best = best.max(bound);
        }
    }
    let mut adjusted = vec![0.0; m];
    for (value, i) in best.into_iter().zip(order) {
        adjusted[i] = value.min(1.0);
    }
    adjusted
}

/// Compact letters: items that share a letter are not shown to differ, items that share none are.
///
/// `differs(i, j)` is asked for `i < j < items`. Give items in the order of their rates, best first, so that
/// "a" marks the best group.
pub fn compact_letters(items: usize, differs: impl Fn(usize, usize) -> bool) -> Vec<String> {
    let mut groups: Vec<Vec<bool>> = vec![vec![true; items]];
    for i in 0..items {
        for j in i + 1..items {
            if !differs(i, j) {
                continue;
            }
            // Insert: split every group that holds both. Absorb: drop groups inside another.
            let (split, mut kept): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|group| group[i] && group[j]);
            for group in split {
                for dropped in [j, i] {
                    let mut part = group.clone();
                    part[dropped] = false;
                    kept.push(part);
                }
            }
            let inside =
                |small: &[bool], large: &[bool]| small.iter().zip(large).all(|(s, l)| !s || *l);
            let mut absorbed: Vec<Vec<bool>> = Vec::new();
            for group in kept {
                if absorbed.iter().any(|other| inside(&group, other)) {
                    continue;
                }
                absorbed.retain(|other| !inside(other, &group));
                absorbed.push(group);
            }
            groups = absorbed;
        }
    }
    groups.sort_by_key(|group| group.iter().position(|&member| member));
    (0..items)
        .map(|item| {
            groups
                .iter()
                .enumerate()
                .filter(|(_, group)| group[item])
                .map(|(index, _)| letter(index))
                .collect()
        })
        .collect()
}

/// a, b, ..., z, then a2, b2, ...
fn letter(index: usize) -> String {
    let base = char::from(b'a' + (index % 26) as u8);
    match index / 26 {
        0 => base.to_string(),
        round => format!("{base}{}", round + 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holm_by_hand() {
        // 3 * 0.01, 2 * 0.02, and 0.04 raised to the value before it.
        let adjusted = holm(&[0.04, 0.01, 0.02]);
        for (got, want) in adjusted.iter().zip([0.04, 0.03, 0.04]) {
            assert!((got - want).abs() < 1e-15);
        }
        assert!(holm(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_methods_are_ordered(p in proptest::collection::vec(0.0_f64..=1.0, 1..30)) {
            let (bonferroni, holm, hommel, bh) =
                (bonferroni(&p), holm(&p), hommel(&p), benjamini_hochberg(&p));
            for i in 0..p.len() {
                prop_assert!(holm[i] <= bonferroni[i] + 1e-12);
                prop_assert!(hommel[i] <= holm[i] + 1e-12, "{p:?}");
                prop_assert!(bh[i] <= hommel[i] + 1e-12);
                prop_assert!(p[i] <= bh[i] + 1e-12);
            }
            // Order of the p-values is kept.
            for i in 0..p.len() {
                for j in 0..p.len() {
                    if p[i] <= p[j] {
                        prop_assert!(holm[i] <= holm[j] && hommel[i] <= hommel[j] + 1e-12);
                    }
                }
            }
        }

        #[test]
        fn letters_are_shared_exactly_by_pairs_not_shown_to_differ(
            items in 1_usize..7, bits in any::<u32>(),
        ) {
            let differs = |i: usize, j: usize| bits >> (i * 7 + j).min(31) & 1 == 1;
            let letters = compact_letters(items, differs);
            for i in 0..items {
                prop_assert!(!letters[i].is_empty());
                for j in i + 1..items {
                    let shared = letters[i].chars().any(|l| letters[j].contains(l));
                    prop_assert_eq!(shared, !differs(i, j), "{:?}", &letters);
                }
            }
        }
    }

    #[test]
    fn the_best_group_is_a() {
        // 0 and 1 alike, 1 and 2 alike, 0 and 2 differ.
        let letters = compact_letters(3, |i, j| i == 0 && j == 2);
        assert_eq!(letters, ["a", "ab", "b"]);
        assert_eq!(letter(27), "b2");
    }
}
