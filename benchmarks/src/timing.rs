//! How long a policy takes to decide.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use simloop_envs::{ActionConvention, EnvId};
use simloop_policies::{ActMode, ActRequest, Needs, Policy, PolicyError, PolicyStep};

/// Seconds per decision. Decisions are made in batches; each is charged an equal share of its batch's time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionTimes {
    /// How many decisions.
    pub decisions: u64,
    /// In how many batches.
    pub batches: u64,
    /// Mean, seconds.
    pub mean_secs: f64,
    /// Median, seconds.
    pub p50_secs: f64,
    /// 99th percentile, seconds.
    pub p99_secs: f64,
    /// Median time of a whole batch, seconds: what an environment waits for its answer.
    pub batch_p50_secs: f64,
}

impl DecisionTimes {
    /// From `(seconds, decisions)` of every batch; `None` without a decision.
    pub fn of(batches: &[(f64, u32)]) -> Option<Self> {
        let mut shares: Vec<(f64, u64)> = batches
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|&(secs, n)| (secs / f64::from(n), u64::from(n)))
            .collect();
        shares.sort_by(|a, b| a.0.total_cmp(&b.0));
        let decisions: u64 = shares.iter().map(|(_, n)| n).sum();
        let total: f64 = shares.iter().map(|&(share, n)| share * n as f64).sum();
        // The smallest share that at least this part of all decisions does not exceed.
        let quantile = |part: f64| {
            let rank = ((part * decisions as f64).ceil() as u64).max(1);
            let mut seen = 0;
            shares.iter().find_map(|&(share, n)| {
                seen += n;
                (seen >= rank).then_some(share)
            })
        };
        let mut whole: Vec<f64> = batches.iter().map(|(secs, _)| *secs).collect();
        whole.sort_by(f64::total_cmp);
        Some(Self {
            decisions,
            batches: batches.len() as u64,
            mean_secs: total / decisions as f64,
            p50_secs: quantile(0.5)?,
            p99_secs: quantile(0.99)?,
            batch_p50_secs: *whole.get(whole.len() / 2)?,
        })
    }

    /// Decisions per batch.
    pub fn mean_batch(&self) -> f64 {
        self.decisions as f64 / self.batches.max(1) as f64
    }
}

/// A policy with a clock on it.
pub struct Timed<'a> {
    inner: &'a mut dyn Policy,
    batches: Vec<(f64, u32)>,
}

impl<'a> Timed<'a> {
    /// Starts with no decision.
    pub fn new(inner: &'a mut dyn Policy) -> Self {
        Self { inner, batches: Vec::new() }
    }

    /// What was measured so far.
    pub fn times(&self) -> Option<DecisionTimes> {
        DecisionTimes::of(&self.batches)
    }
}

impl Policy for Timed<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn convention(&self) -> Option<&ActionConvention> {
        self.inner.convention()
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        let started = Instant::now();
        let steps = self.inner.act(requests, mode)?;
        self.batches.push((started.elapsed().as_secs_f64(), requests.len() as u32));
        Ok(steps)
    }

    fn reset(&mut self, envs: &[EnvId]) {
        self.inner.reset(envs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_share_their_batch_s_time() {
        // Nine decisions at 1 s each, in one batch; one at 10 s.
        let times = DecisionTimes::of(&[(9.0, 9), (10.0, 1)]).unwrap();
        assert_eq!((times.decisions, times.batches), (10, 2));
        assert!((times.mean_secs - 1.9).abs() < 1e-12);
        assert_eq!((times.p50_secs, times.p99_secs), (1.0, 10.0));
        assert_eq!(times.mean_batch(), 5.0);
        assert_eq!(DecisionTimes::of(&[]), None);
    }
}
