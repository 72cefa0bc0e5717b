//! `bench compare`: two results side by side, with a verdict in words.
//!
//! The verdict follows one test fixed beforehand, so that nobody picks the kindest: exact `McNemar` on shared
//! episodes, Fisher on different ones, Holm-corrected over tasks. The other numbers are there to be read.

use std::fmt::Write as _;

use serde::Serialize;

use super::multiplicity::holm;
use super::two_sample::{difference, fisher_exact, newcombe, prob_better};
use super::{Alpha, Alternative, Interval, PairedTable, Rate};

/// What a comparison shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// There is nothing to compare.
    NoData,
    /// The same outcome on every shared episode.
    NoDifference,
    /// A difference this large also happens between equal policies.
    NothingShown,
    /// A is better.
    ABetter,
    /// B is better.
    BBetter,
}

impl Verdict {
    fn from_test(p: f64, alpha: Alpha, difference: Option<f64>) -> Self {
        match difference {
            None => Self::NoData,
            Some(diff) if p <= alpha.get() && diff > 0.0 => Self::ABetter,
            Some(diff) if p <= alpha.get() && diff < 0.0 => Self::BBetter,
            Some(_) => Self::NothingShown,
        }
    }

    /// The verdict with the names of the two policies.
    pub fn in_words(self, a: &str, b: &str) -> String {
        match self {
            Self::NoData => "nothing to compare".to_owned(),
            Self::NoDifference => "no difference".to_owned(),
            Self::NothingShown => "nothing shown".to_owned(),
            Self::ABetter => format!("{a} is better"),
            Self::BBetter => format!("{b} is better"),
        }
    }
}

/// Two policies on the same episodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedComparison {
    /// Outcomes of the shared episodes.
    pub table: PairedTable,
    /// Pairs left out because one half is missing or errored.
    pub dropped: u64,
    /// Error rate of the verdict; intervals have confidence `1 - alpha`.
    pub alpha: Alpha,
    /// Rate of A on shared episodes.
    pub rate_a: Rate,
    /// Rate of B on shared episodes.
    pub rate_b: Rate,
    /// A - B; `None` without pairs.
    pub difference: Option<f64>,
    /// Bonett-Price interval of A - B.
    pub interval: Interval,
    /// Exact two-sided `McNemar` p-value; decides the verdict.
    pub p_exact: f64,
    /// Mid-p version.
    pub p_mid: f64,
    /// E-value under the Beta(1/2, 1/2) mixture; valid even if the runs were stopped on a look.
    pub e_value: f64,
    /// Interval of the share of discordant pairs that A wins.
    pub share_a: Interval,
    /// What it shows.
    pub verdict: Verdict,
}

impl PairedComparison {
    /// Compares on a table of shared episodes; `dropped` pairs were left out of it.
    pub fn new(table: PairedTable, dropped: u64, alpha: Alpha) -> Self {
        let difference = table.difference();
        let p_exact = table.mcnemar_exact();
        let verdict = if table.pairs() > 0 && table.discordant() == 0 {
            Verdict::NoDifference
        } else {
            Verdict::from_test(p_exact, alpha, difference)
        };
        Self {
            table,
            dropped,
            alpha,
            rate_a: table.rate_a(),
            rate_b: table.rate_b(),
            difference,
            interval: table.bonett_price(alpha),
            p_exact,
            p_mid: table.mcnemar_mid_p(),
            e_value: table.e_value(),
            share_a: table.discordant_share(alpha),
            verdict,
        }
    }

    /// A few lines for the terminal and the report.
    pub fn summary(&self, a: &str, b: &str) -> String {
        let table = self.table;
        let mut text = format!("{} shared episodes", table.pairs());
        if self.dropped > 0 {
            let _ = write!(text, " ({} dropped: one half missing or errored)", self.dropped);
        }
        let _ = write!(
            text,
            ": {a} {}, {b} {}\n{a} alone succeeds on {}, {b} alone on {}\n{}\nexact McNemar p {}, mid-p {}, e-value {}\n{}",
            self.rate_a,
            self.rate_b,
            table.n10,
            table.n01,
            difference_line(self.difference, self.interval, self.alpha),
            p_in_words(self.p_exact),
            p_in_words(self.p_mid),
            if self.e_value < 1e4 {
                format!("{:.3}", self.e_value)
            } else {
                format!("{:.1e}", self.e_value)
            },
            self.verdict.in_words(a, b)
        );
        text
    }
}

/// A p-value as a reader wants it: never a bare zero.
fn p_in_words(p: f64) -> String {
    if p < 1e-4 { "< 0.0001".to_owned() } else { format!("= {p:.4}") }
}

fn difference_line(difference: Option<f64>, interval: Interval, alpha: Alpha) -> String {
    difference.map_or_else(
        || "no difference to give".to_owned(),
        |diff| {
            format!(
                "difference {:+.1} pp, {:.0} % interval {:+.1} to {:+.1} pp",
                100.0 * diff,
                100.0 * (1.0 - alpha.get()),
                100.0 * interval.low,
                100.0 * interval.high
            )
        },
    )
}

/// Two policies on different episodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnpairedComparison {
    /// Rate of A.
    pub rate_a: Rate,
    /// Rate of B.
    pub rate_b: Rate,
    /// Error rate of the verdict; intervals have confidence `1 - alpha`.
    pub alpha: Alpha,
    /// A - B; `None` before both have an episode.
    pub difference: Option<f64>,
    /// Newcombe interval of A - B.
    pub interval: Interval,
    /// Fisher's two-sided p-value; decides the verdict.
    pub p_fisher: f64,
    /// Posterior probability that A's rate is the higher one, uniform priors.
    pub prob_a_better: f64,
    /// What it shows.
    pub verdict: Verdict,
}

impl UnpairedComparison {
    /// Compares two independent rates.
    pub fn new(rate_a: Rate, rate_b: Rate, alpha: Alpha) -> Self {
        let difference = difference(rate_a, rate_b);
        let p_fisher = fisher_exact(rate_a, rate_b, Alternative::TwoSided);
        Self {
            rate_a,
            rate_b,
            alpha,
            difference,
            interval: newcombe(rate_a, rate_b, alpha),
            p_fisher,
            prob_a_better: prob_better(rate_a, rate_b),
            verdict: Verdict::from_test(p_fisher, alpha, difference),
        }
    }

    /// A few lines for the terminal and the report.
    pub fn summary(&self, a: &str, b: &str) -> String {
        format!(
            "{a} {}, {b} {}, different episodes\n{}\nFisher p {}, P({a} better) = {:.3}\n{}",
            self.rate_a,
            self.rate_b,
            difference_line(self.difference, self.interval, self.alpha),
            p_in_words(self.p_fisher),
            self.prob_a_better,
            self.verdict.in_words(a, b)
        )
    }
}

/// One task of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskRow {
    /// Name of the task.
    pub task: String,
    /// Rate of A.
    pub rate_a: Rate,
    /// Rate of B.
    pub rate_b: Rate,
    /// A - B; `None` before both have an episode.
    pub difference: Option<f64>,
    /// Bonett-Price (paired) or Newcombe (unpaired) interval of A - B, not corrected for the number of tasks.
    pub interval: Interval,
    /// Exact `McNemar` (paired) or Fisher (unpaired) p-value.
    pub p: f64,
    /// The same, Holm-corrected over the table; decides the verdict.
    pub p_holm: f64,
    /// What this task shows.
    pub verdict: Verdict,
}

/// Per-task tests with Holm's correction: the chance of any false finding in the table is at most alpha.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskTable {
    /// One row per task, in the order given.
    pub rows: Vec<TaskRow>,
    /// Error rate of the whole table.
    pub alpha: Alpha,
}

impl TaskTable {
    /// Tasks with shared episodes.
    pub fn paired(tasks: impl IntoIterator<Item = (String, PairedTable)>, alpha: Alpha) -> Self {
        let rows = tasks.into_iter().map(|(task, table)| {
            let comparison = PairedComparison::new(table, 0, alpha);
            TaskRow {
                task,
                rate_a: comparison.rate_a,
                rate_b: comparison.rate_b,
                difference: comparison.difference,
                interval: comparison.interval,
                p: comparison.p_exact,
                p_holm: comparison.p_exact,
                verdict: comparison.verdict,
            }
        });
        Self::corrected(rows.collect(), alpha)
    }

    /// Tasks with different episodes.
    pub fn unpaired(tasks: impl IntoIterator<Item = (String, Rate, Rate)>, alpha: Alpha) -> Self {
        let rows = tasks.into_iter().map(|(task, rate_a, rate_b)| {
            let comparison = UnpairedComparison::new(rate_a, rate_b, alpha);
            TaskRow {
                task,
                rate_a,
                rate_b,
                difference: comparison.difference,
                interval: comparison.interval,
                p: comparison.p_fisher,
                p_holm: comparison.p_fisher,
                verdict: comparison.verdict,
            }
        });
        Self::corrected(rows.collect(), alpha)
    }

    fn corrected(mut rows: Vec<TaskRow>, alpha: Alpha) -> Self {
        let p: Vec<f64> = rows.iter().map(|row| row.p).collect();
        for (row, p_holm) in rows.iter_mut().zip(holm(&p)) {
            row.p_holm = p_holm;
            if row.verdict != Verdict::NoDifference {
                row.verdict = Verdict::from_test(p_holm, alpha, row.difference);
            }
        }
        Self { rows, alpha }
    }

    /// Mean over tasks of A - B, every task counting the same; `None` unless each has episodes of both.
    pub fn macro_difference(&self) -> Option<f64> {
        let sum = self.rows.iter().map(|row| row.difference).sum::<Option<f64>>()?;
        (!self.rows.is_empty()).then(|| sum / self.rows.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    fn rate(k: u64, n: u64) -> Rate {
        Rate::new(k, n).unwrap()
    }

    #[test]
    fn the_same_policy_twice_is_no_difference() {
        let comparison = PairedComparison::new(PairedTable::new(450, 0, 0, 50), 0, ALPHA);
        assert_eq!(comparison.verdict, Verdict::NoDifference);
        assert_eq!(comparison.p_exact, 1.0);
        assert!(comparison.interval.contains(0.0));
        assert!(comparison.summary("x", "y").ends_with("no difference"));
    }

    #[test]
    fn a_typical_state_of_the_art_gap_shows_nothing() {
        let comparison = UnpairedComparison::new(rate(489, 500), rate(486, 500), ALPHA);
        assert_eq!(comparison.verdict, Verdict::NothingShown);
        assert!((comparison.p_fisher - 0.686).abs() < 5e-4);
        assert!((comparison.prob_a_better - 0.724).abs() < 5e-4);
        assert!(comparison.summary("x", "y").contains("nothing shown"));
    }

    #[test]
    fn thirty_to_twelve_is_a_finding_in_the_right_direction() {
        let table = PairedTable::new(400, 30, 12, 58);
        let forward = PairedComparison::new(table, 3, ALPHA);
        assert_eq!(forward.verdict, Verdict::ABetter);
        let text = forward.summary("new", "old");
        assert!(text.contains("new is better") && text.contains("3 dropped"), "{text}");
        assert!(text.contains("0.0079"), "{text}");
        let backward = PairedComparison::new(table.swapped(), 0, ALPHA);
        assert_eq!(backward.verdict, Verdict::BBetter);
    }

    #[test]
    fn nothing_is_compared_without_episodes() {
        let paired = PairedComparison::new(PairedTable::default(), 4, ALPHA);
        let unpaired = UnpairedComparison::new(rate(3, 4), rate(0, 0), ALPHA);
        assert_eq!((paired.verdict, unpaired.verdict), (Verdict::NoData, Verdict::NoData));
        assert!(TaskTable::paired([], ALPHA).macro_difference().is_none());
    }

    #[test]
    fn one_lucky_task_of_ten_is_not_a_finding_after_holm() {
        let mut tasks: Vec<_> =
            (0..9).map(|i| (format!("task {i}"), PairedTable::new(45, 2, 2, 1))).collect();
        tasks.push(("lucky".to_owned(), PairedTable::new(42, 7, 0, 1)));
        let table = TaskTable::paired(tasks, ALPHA);
        let lucky = table.rows.last().unwrap();
        assert!(lucky.p < 0.05, "alone it would be one: {}", lucky.p);
        assert!((lucky.p_holm - 10.0 * lucky.p).abs() < 1e-12);
        assert!(table.rows.iter().all(|row| row.verdict == Verdict::NothingShown));
        assert!((table.macro_difference().unwrap() - 0.014).abs() < 1e-12);
    }

    #[test]
    fn unpaired_tasks_use_fisher() {
        let tasks = [
            ("open".to_owned(), rate(50, 50), rate(30, 50)),
            ("close".to_owned(), rate(25, 50), rate(25, 50)),
        ];
        let table = TaskTable::unpaired(tasks, ALPHA);
        assert_eq!(table.rows[0].verdict, Verdict::ABetter);
        assert_eq!(table.rows[1].verdict, Verdict::NothingShown);
    }
}
