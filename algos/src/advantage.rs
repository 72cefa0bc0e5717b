//! Advantage estimation: pure functions, shared by every on-policy algorithm.

use crate::AlgoError;

/// The inputs of [`gae`]: one trajectory in order, all of length `T`.
#[derive(Clone, Copy, Debug)]
pub struct GaeInput<'a> {
    /// Rewards, discounted within each chunk.
    pub rewards: &'a [f32],
    /// V of the observation that each decision was made on.
    pub values: &'a [f32],
    /// V of the *true* successor of each decision.
    pub next_values: &'a [f32],
    /// The task ended with this decision: its successor is worth nothing.
    pub terminated: &'a [bool],
    /// The trajectory does not go on to the next entry (terminated, truncated or cut): nothing flows back over it.
    pub ended: &'a [bool],
    /// Environment steps per decision, for `γ^steps`.
    pub steps: &'a [u32],
}

/// Generalised advantage estimation (Schulman et al. 2016, eq. 16), for chunked decisions.
///
/// With `n_t` environment steps in decision `t`:
/// `δ_t = r_t + γ^{n_t} V(s_{t+1}) (1 - terminated_t) - V(s_t)` and
/// `A_t = δ_t + γ^{n_t} λ (1 - ended_t) A_{t+1}`. A truncated decision therefore bootstraps and a terminated one does not.
/// Returns `A`, length `T`, not normalised; the value target is `A + values`.
///
/// # Errors
/// [`AlgoError::Shape`] unless all inputs have one length; [`AlgoError::Range`] for `gamma` or `gae_lambda` outside `[0, 1]`.
pub fn gae(input: &GaeInput<'_>, gamma: f32, gae_lambda: f32) -> Result<Vec<f32>, AlgoError> {
    let expected = input.rewards.len();
    for (what, got) in [
        ("values", input.values.len()),
        ("next_values", input.next_values.len()),
        ("terminated", input.terminated.len()),
        ("ended", input.ended.len()),
        ("steps", input.steps.len()),
    ] {
        if got != expected {
            return Err(AlgoError::Shape { what, got, expected });
        }
    }
    for (what, value) in [("gamma", gamma), ("gae_lambda", gae_lambda)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(AlgoError::Range { what, got: f64::from(value), range: "[0, 1]" });
        }
    }
    let mut advantages = vec![0.0; expected];
    let mut carried = 0.0;
    for t in (0..expected).rev() {
        let discount = gamma.powi(input.steps[t] as i32);
        let successor = if input.terminated[t] { 0.0 } else { input.next_values[t] };
        let delta = input.rewards[t] + discount * successor - input.values[t];
        carried = delta + if input.ended[t] { 0.0 } else { discount * gae_lambda * carried };
        advantages[t] = carried;
    }
    Ok(advantages)
}

/// How the returns of a group that shares its initial state become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupBaseline {
    /// `(R_i - mean) / (std + 1e-6)` with the population standard deviation (GRPO, Shao et al. 2024, eq. in section 4.1.2).
    Normalised,
    /// `R_i - mean of the others` (leave one out; RLOO, Ahmadian et al. 2024, eq. 10).
    LeaveOneOut,
}

/// Group-relative advantages of `G` returns; `None` for a group whose returns are all equal, which teaches nothing and is
/// filtered out (dynamic sampling, DAPO, Yu et al. 2025, section 3.2).
///
/// # Errors
/// [`AlgoError::Shape`] for a group of fewer than two.
pub fn group_relative(
    returns: &[f32],
    baseline: GroupBaseline,
) -> Result<Option<Vec<f32>>, AlgoError> {
    let n = returns.len();
    if n < 2 {
        return Err(AlgoError::Shape { what: "returns", got: n, expected: 2 });
    }
    if returns.iter().all(|r| *r == returns[0]) {
        return Ok(None);
    }
    let sum: f32 = returns.iter().sum();
    let mean = sum / n as f32;
    let advantages = match baseline {
        GroupBaseline::Normalised => {
            let variance = returns.iter().map(|r| (r - mean).powi(2)).sum::<f32>() / n as f32;
            returns.iter().map(|r| (r - mean) / (variance.sqrt() + 1e-6)).collect()
        }
        GroupBaseline::LeaveOneOut => {
            returns.iter().map(|r| r - (sum - r) / (n - 1) as f32).collect()
        }
    };
    Ok(Some(advantages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn constant_reward(t: usize, value: f32, terminated: bool) -> Vec<f32> {
        let last = t - 1;
        let terminated: Vec<_> = (0..t).map(|i| terminated && i == last).collect();
        let ended: Vec<_> = (0..t).map(|i| i == last).collect();
        let input = GaeInput {
            rewards: &vec![1.0; t],
            values: &vec![value; t],
            next_values: &vec![value; t],
            terminated: &terminated,
            ended: &ended,
            steps: &vec![1; t],
        };
        gae(&input, 0.9, 0.95).unwrap()
    }

    #[test]
    fn worked_by_hand() {
        // γ = 0.5, λ = 0.5. t=1: δ = 2 + 0.5·4 - 3 = 1, A = 1. t=0: δ = 1 + 0.5·3 - 2 = 0.5, A = 0.5 + 0.25·1 = 0.75.
        let input = GaeInput {
            rewards: &[1.0, 2.0],
            values: &[2.0, 3.0],
            next_values: &[3.0, 4.0],
            terminated: &[false, false],
            ended: &[false, true],
            steps: &[1, 1],
        };
        assert_eq!(gae(&input, 0.5, 0.5).unwrap(), [0.75, 1.0]);
        // Chunks of two steps: γ² = 0.25 takes γ's place.
        let chunked = GaeInput { steps: &[2, 2], ..input };
        assert_eq!(gae(&chunked, 0.5, 0.5).unwrap(), [1.0 + 0.75 - 2.0, 2.0 + 1.0 - 3.0]);
    }

    #[test]
    fn truncated_step_bootstraps_and_the_classic_bug_does_not() {
        // Reward 1 for ever is worth 1/(1-γ) = 10. At that value a truncated trajectory has no advantage anywhere …
        assert!(constant_reward(20, 10.0, false).iter().all(|a| a.abs() < 1e-5));
        // … and treating the truncation as a termination invents a loss of γ·10 at the end.
        assert!(constant_reward(20, 10.0, true).last().unwrap() + 9.0 < 1e-5);
    }

    /// The value of an environment that pays 1 at every step for ever, learned from episodes that a limit of 20 steps cuts.
    /// One state, so one number is the whole value function.
    fn learned_value(gamma: f32, truncation_is_termination: bool) -> f32 {
        let last = |yes: bool| (0..20).map(|t| yes && t == 19).collect::<Vec<_>>();
        let mut value = 0.0;
        for _ in 0..1000 {
            let input = GaeInput {
                rewards: &[1.0; 20],
                values: &[value; 20],
                next_values: &[value; 20],
                terminated: &last(truncation_is_termination),
                ended: &last(true),
                steps: &[1; 20],
            };
            // Half a step towards the mean of the targets `A + V`.
            value += 0.5 * gae(&input, gamma, 0.95).unwrap().iter().sum::<f32>() / 20.0;
        }
        value
    }

    #[test]
    fn a_value_learned_across_a_time_limit_is_that_of_for_ever_and_the_classic_bug_finds_less() {
        // As Stable-Baselines3's test_infinite_horizon: within 1 of 1/(1-γ).
        for gamma in [0.9, 0.99] {
            let forever = 1.0 / (1.0 - gamma);
            let right = learned_value(gamma, false);
            assert!((right - forever).abs() < 1.0, "γ = {gamma}: {right}, not {forever}");
            let bug = learned_value(gamma, true);
            assert!((bug - forever).abs() > 1.0, "γ = {gamma}: {bug} is as good as {forever}");
        }
    }

    #[test]
    fn nothing_flows_back_over_an_end() {
        let run = |second: f32| {
            let input = GaeInput {
                rewards: &[1.0, second],
                values: &[0.0, 0.0],
                next_values: &[0.0, 0.0],
                terminated: &[true, true],
                ended: &[true, true],
                steps: &[1, 1],
            };
            gae(&input, 0.99, 0.95).unwrap()[0].to_bits()
        };
        assert_eq!(run(0.0), run(1e6));
    }

    #[test]
    fn mismatched_lengths_are_named() {
        let input = GaeInput {
            rewards: &[1.0],
            values: &[1.0, 2.0],
            next_values: &[1.0],
            terminated: &[false],
            ended: &[true],
            steps: &[1],
        };
        assert!(matches!(
            gae(&input, 0.9, 0.9),
            Err(AlgoError::Shape { what: "values", got: 2, expected: 1 })
        ));
        let fixed = GaeInput { values: &[1.0], ..input };
        assert!(matches!(gae(&fixed, 1.1, 0.9), Err(AlgoError::Range { what: "gamma", .. })));
    }

    #[test]
    fn equal_returns_teach_nothing() {
        assert_eq!(group_relative(&[1.0, 1.0, 1.0], GroupBaseline::Normalised).unwrap(), None);
        assert_eq!(
            group_relative(&[0.0, 1.0], GroupBaseline::LeaveOneOut).unwrap().unwrap(),
            [-1.0, 1.0]
        );
        assert!(group_relative(&[1.0], GroupBaseline::Normalised).is_err());
    }

    proptest! {
        #[test]
        fn group_advantages_sum_to_zero(returns in prop::collection::vec(-10.0f32..10.0, 2..32)) {
            for baseline in [GroupBaseline::Normalised, GroupBaseline::LeaveOneOut] {
                if let Some(advantages) = group_relative(&returns, baseline).unwrap() {
                    let sum: f32 = advantages.iter().sum();
                    prop_assert!(sum.abs() < 1e-2, "{sum}");
                }
            }
        }
    }
}
