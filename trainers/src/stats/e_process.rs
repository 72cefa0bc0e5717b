//! Sequential tests: evidence that may be looked at after every episode.
//!
//! An e-process starts at 1 and, under the null hypothesis, has expectation at most 1 at every stopping time;
//! it therefore exceeds 1/alpha, ever, with probability at most alpha (Ville 1939).
//!
//! Sources: Turner and Gruenwald 2023 and Turner, Ly and Gruenwald 2024 (two streams, "SAVI"); Wald 1945 (SPRT).

use super::{Alpha, PairedTable, StatsError};

/// Running evidence: the current and the largest ln e, and when 1/alpha was first reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    ln_e: f64,
    ln_max: f64,
    seen: u64,
    ln_threshold: f64,
    rejected_at: Option<u64>,
}

impl Evidence {
    fn new(alpha: Alpha) -> Self {
        Self { ln_e: 0.0, ln_max: 0.0, seen: 0, ln_threshold: -alpha.get().ln(), rejected_at: None }
    }

    fn update(&mut self, ln_e: f64) {
        self.seen += 1;
        self.ln_e = ln_e;
        self.ln_max = self.ln_max.max(ln_e);
        // Slack for the rounding of logarithms: e = 20 exactly must reject at alpha = 0.05.
        if self.rejected_at.is_none() && ln_e >= self.ln_threshold - 1e-12 {
            self.rejected_at = Some(self.seen);
        }
    }

    /// The e-value now.
    pub fn e_value(&self) -> f64 {
        self.ln_e.exp()
    }

    /// Anytime-valid p-value: one over the largest e-value so far, at most 1.
    pub fn p_value(&self) -> f64 {
        (-self.ln_max).exp().min(1.0)
    }

    /// Observations so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The number of observations at which 1/alpha was first reached; stays once set.
    pub fn rejected_at(&self) -> Option<u64> {
        self.rejected_at
    }
}

/// Pairs of outcomes on the same episode, against "both win discordant pairs equally often". Two-sided: the
/// Beta(1/2, 1/2) mixture bets on either direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedEProcess {
    table: PairedTable,
    evidence: Evidence,
}

impl PairedEProcess {
    /// A process at e = 1.
    pub fn new(alpha: Alpha) -> Self {
        Self { table: PairedTable::default(), evidence: Evidence::new(alpha) }
    }

    /// Takes one pair and returns the evidence.
    pub fn push(&mut self, a: bool, b: bool) -> Evidence {
        self.table.push(a, b);
        self.evidence.update(self.table.ln_mixture(0.5));
        self.evidence
    }

    /// The pairs so far.
    pub fn table(&self) -> PairedTable {
        self.table
    }

    /// The evidence so far.
    pub fn evidence(&self) -> Evidence {
        self.evidence
    }
}

/// Two independent streams, one outcome of each at a time, against "p0 >= p1" (SAVI).
///
/// Each outcome is bet on with the posterior means under Beta(1, 2) and Beta(2, 1); the null's best answer is
/// their common mean, or the estimates themselves (a bet of nothing) when they do not favour stream 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SaviEProcess {
    /// Posterior parameters (successes, failures) of stream 0 and 1.
    posterior: [[f64; 2]; 2],
    evidence: Evidence,
}

impl SaviEProcess {
    /// A process at e = 1.
    pub fn new(alpha: Alpha) -> Self {
        Self { posterior: [[1.0, 2.0], [2.0, 1.0]], evidence: Evidence::new(alpha) }
    }

    /// Takes one outcome of each stream and returns the evidence for "stream 1 is better".
    pub fn push(&mut self, outcome0: bool, outcome1: bool) -> Evidence {
        let [p0, p1] = self.posterior.map(|[a, b]| a / (a + b));
        let likelihood = |success: bool, p: f64| if success { p } else { 1.0 - p };
        let mut ln_e = self.evidence.ln_e;
        if p0 < p1 {
            let null = 0.5 * (p0 + p1);
            ln_e += (likelihood(outcome0, p0) / likelihood(outcome0, null)).ln()
                + (likelihood(outcome1, p1) / likelihood(outcome1, null)).ln();
        }
        for (posterior, outcome) in self.posterior.iter_mut().zip([outcome0, outcome1]) {
            posterior[usize::from(!outcome)] += 1.0;
        }
        self.evidence.update(ln_e);
        self.evidence
    }

    /// The evidence so far.
    pub fn evidence(&self) -> Evidence {
        self.evidence
    }
}

/// Both directions of [`SaviEProcess`]; their mean is an e-process against "equal rates".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SaviTwoSided {
    directions: [SaviEProcess; 2],
    evidence: Evidence,
}

impl SaviTwoSided {
    /// A process at e = 1.
    pub fn new(alpha: Alpha) -> Self {
        Self { directions: [SaviEProcess::new(alpha); 2], evidence: Evidence::new(alpha) }
    }

    /// Takes one outcome of each policy and returns the evidence for "the rates differ".
    pub fn push(&mut self, a: bool, b: bool) -> Evidence {
        let [up, down] = &mut self.directions;
        let (up, down) = (up.push(a, b).ln_e, down.push(b, a).ln_e);
        let larger = up.max(down);
        let mean = larger + (0.5 * ((up - larger).exp() + (down - larger).exp())).ln();
        self.evidence.update(mean);
        self.evidence
    }

    /// The evidence so far.
    pub fn evidence(&self) -> Evidence {
        self.evidence
    }
}

/// What Wald's test says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SprtDecision {
    /// Neither boundary is crossed.
    Continue,
    /// The rate is p1 rather than p0.
    AcceptP1,
    /// The rate is p0 rather than p1.
    AcceptP0,
}

/// Wald's sequential probability ratio test of rate p0 against rate p1 > p0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sprt {
    /// Accept p1 at or above this ln ratio: ln((1 - beta) / alpha).
    pub ln_upper: f64,
    /// Accept p0 at or below this ln ratio: ln(beta / (1 - alpha)).
    pub ln_lower: f64,
    /// ln ratio of a success: ln(p1 / p0).
    pub success_step: f64,
    /// ln ratio of a failure: ln((1 - p1) / (1 - p0)).
    pub failure_step: f64,
    ln_ratio: f64,
}

impl Sprt {
    /// A test with error rates `alpha` (accepting p1 under p0) and `beta` (accepting p0 under p1).
    ///
    /// # Errors
    /// [`StatsError::Range`] unless `0 < p0 < p1 < 1`.
    pub fn new(p0: f64, p1: f64, alpha: Alpha, beta: Alpha) -> Result<Self, StatsError> {
        if !(p0 > 0.0 && p0 < 1.0) {
            return Err(StatsError::Range { name: "p0", got: p0, range: "(0, 1)" });
        }
        if !(p1 > p0 && p1 < 1.0) {
            return Err(StatsError::Range { name: "p1", got: p1, range: "(p0, 1)" });
        }
        let (alpha, beta) = (alpha.get(), beta.get());
        Ok(Self {
            ln_upper: ((1.0 - beta) / alpha).ln(),
            ln_lower: (beta / (1.0 - alpha)).ln(),
            success_step: (p1 / p0).ln(),
            failure_step: ((1.0 - p1) / (1.0 - p0)).ln(),
            ln_ratio: 0.0,
        })
    }

    /// Takes one outcome.
    pub fn push(&mut self, success: bool) -> SprtDecision {
        self.ln_ratio += if success { self.success_step } else { self.failure_step };
        if self.ln_ratio >= self.ln_upper {
            SprtDecision::AcceptP1
        } else if self.ln_ratio <= self.ln_lower {
            SprtDecision::AcceptP0
        } else {
            SprtDecision::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHA: Alpha = Alpha::FIVE_PERCENT;

    #[test]
    fn zeros_against_ones_grow_as_published_and_reject_at_four() {
        let mut process = SaviEProcess::new(ALPHA);
        let values: Vec<f64> = (0..4).map(|_| process.push(false, true).e_value()).collect();
        for (got, want) in values.iter().zip([16.0 / 9.0, 4.0, 10.24, 256.0 / 9.0]) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
        assert_eq!(process.evidence().rejected_at(), Some(4));
    }

    #[test]
    fn the_wrong_direction_never_rejects() {
        let mut process = SaviEProcess::new(ALPHA);
        for _ in 0..200 {
            process.push(true, false);
        }
        assert!(process.evidence().e_value() < 1.0);
        let mut both = SaviTwoSided::new(ALPHA);
        for _ in 0..200 {
            both.push(true, false);
        }
        assert!(both.evidence().rejected_at().is_some());
    }

    #[test]
    fn rejection_stays_when_evidence_shrinks_again() {
        let mut process = PairedEProcess::new(ALPHA);
        for _ in 0..10 {
            process.push(true, false);
        }
        let at = process.evidence().rejected_at();
        assert!(at.is_some());
        for _ in 0..10 {
            process.push(false, true);
        }
        assert!(process.evidence().e_value() < 1.0);
        assert_eq!(process.evidence().rejected_at(), at);
        assert!(process.evidence().p_value() <= 0.05);
        assert_eq!(process.evidence().seen(), 20);
    }

    #[test]
    fn savi_is_a_fair_bet_on_the_boundary() {
        // Expectation over all 4^4 outcome sequences of equal rates: exactly 1 at p = 1/2, at most 1 elsewhere.
        for p in [0.2, 0.5, 0.9] {
            let mut expectation = 0.0;
            for code in 0..4_u32.pow(4) {
                let mut process = SaviEProcess::new(ALPHA);
                let mut weight = 1.0;
                for step in 0..4 {
                    let bits = code >> (2 * step);
                    let (x0, x1) = (bits & 1 == 1, bits & 2 == 2);
                    for success in [x0, x1] {
                        weight *= if success { p } else { 1.0 - p };
                    }
                    process.push(x0, x1);
                }
                expectation += weight * process.evidence().e_value();
            }
            assert!(expectation <= 1.0 + 1e-12, "p {p}: {expectation}");
        }
    }

    #[test]
    fn sprt_accepts_the_true_rate() {
        let beta = Alpha::new(0.1).unwrap();
        let mut test = Sprt::new(0.8, 0.9, ALPHA, beta).unwrap();
        let mut episodes = 0;
        let decision = loop {
            episodes += 1;
            match test.push(episodes % 20 != 0) {
                SprtDecision::Continue => {}
                decided => break decided,
            }
        };
        assert_eq!(decision, SprtDecision::AcceptP1, "95 % observed");
        assert!(Sprt::new(0.9, 0.8, ALPHA, beta).is_err());
    }
}
