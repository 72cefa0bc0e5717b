//! Soft actor-critic: target, critics, actor and temperature.
//!
//! Source: SAC (arXiv 1812.05905), eqs. 5, 7 and 18 with twin critics; constants of the sums as Stable-Baselines3 `sac/sac.py`.
//! `E` critics, `N` rows.

use tch::Tensor;

use super::{expect_dims, expect_shape, like, numbers};
use crate::AlgoError;

/// The critics' target `reward + discount (min_E next_q - alpha next_log_prob)`, `[N]`, without gradient (eqs. 3 and 5).
///
/// `discount` is `γ^steps (1 - terminated)`, `[N]`: a truncated step bootstraps and a terminated one does not. `next_q` is
/// `[E, N]`, of the target critics; `next_log_prob` `[N]`, of a fresh action of the current policy, summed over its numbers.
///
/// # Errors
/// [`AlgoError::TensorShape`] unless the shapes fit those of `next_q`.
pub fn sac_target(
    reward: &Tensor,
    discount: &Tensor,
    next_q: &Tensor,
    next_log_prob: &Tensor,
    alpha: f64,
) -> Result<Tensor, AlgoError> {
    let [_, n] = expect_dims("next q", next_q)?;
    expect_shape("reward", reward, &[n])?;
    expect_shape("discount", discount, &[n])?;
    expect_shape("next log-probs", next_log_prob, &[n])?;
    let least = least(&numbers(next_q), n as usize);
    let target: Vec<f64> = numbers(reward)
        .into_iter()
        .zip(numbers(discount))
        .zip(least)
        .zip(numbers(next_log_prob))
        .map(|(((reward, discount), (_, q)), log_prob)| reward + discount * (q - alpha * log_prob))
        .collect();
    Ok(like(reward, &target))
}

/// `0.5 Σ_E mean((q - target)^2)` and its gradient for `q`; `q` `[E, N]`, `target` `[N]`.
///
/// # Errors
/// [`AlgoError::TensorShape`] unless the shapes fit that of `q`.
pub fn sac_critic_loss(q: &Tensor, target: &Tensor) -> Result<(f64, Tensor), AlgoError> {
    let [_, n] = expect_dims("q", q)?;
    expect_shape("q target", target, &[n])?;
    let share = 1.0 / n.max(1) as f64;
    // Every critic is compared with the same row of targets.
    let targets = numbers(target);
    let errors: Vec<f64> =
        numbers(q).iter().zip(targets.iter().cycle()).map(|(q, target)| q - target).collect();
    let loss = errors.iter().map(|error| error * error).sum::<f64>() * 0.5 * share;
    let slope: Vec<f64> = errors.iter().map(|error| error * share).collect();
    Ok((loss, like(q, &slope)))
}

/// What the actor goes down, and its gradients.
#[derive(Debug)]
pub struct ActorLoss {
    /// `mean(alpha log_prob - min_E q)`.
    pub loss: f64,
    /// For `q`, `[E, N]`: only the least critic of a row has one.
    pub of_q: Tensor,
    /// For `log_prob`, `[N]`.
    pub of_log_prob: Tensor,
}

/// `mean(alpha log_prob - min_E q)` (eq. 7) and its gradients; `q` `[E, N]` of the current policy's own actions, `log_prob`
/// `[N]`.
///
/// # Errors
/// [`AlgoError::TensorShape`] unless the shapes fit that of `q`.
pub fn sac_actor_loss(q: &Tensor, log_prob: &Tensor, alpha: f64) -> Result<ActorLoss, AlgoError> {
    let [_, n] = expect_dims("q", q)?;
    expect_shape("log-probs", log_prob, &[n])?;
    let (n, share) = (n as usize, 1.0 / n.max(1) as f64);
    let least = least(&numbers(q), n);
    let mut of_q = vec![0.0; q.numel()];
    for (row, (critic, _)) in least.iter().enumerate() {
        of_q[critic * n + row] = -share;
    }
    let each = numbers(log_prob).into_iter().zip(&least);
    let loss = each.map(|(log_prob, (_, q))| alpha * log_prob - q).sum::<f64>() * share;
    let of_log_prob = vec![alpha * share; n];
    Ok(ActorLoss { loss, of_q: like(q, &of_q), of_log_prob: like(log_prob, &of_log_prob) })
}

/// `-mean(log_alpha (log_prob + target_entropy))` (eq. 18 with `log α` for `α`, as Stable-Baselines3) and its gradient for
/// `log_alpha`, which holds one number. `log_prob` is `[N]`.
///
/// # Errors
/// [`AlgoError::TensorShape`] if `log_alpha` has more than one number or `log_prob` another shape.
pub fn temperature_loss(
    log_alpha: &Tensor,
    log_prob: &Tensor,
    target_entropy: f64,
) -> Result<(f64, Tensor), AlgoError> {
    let [n] = expect_dims("log-probs", log_prob)?;
    if log_alpha.numel() != 1 {
        expect_shape("log alpha", log_alpha, &[1])?;
    }
    let slope = -(numbers(log_prob).iter().sum::<f64>() / n.max(1) as f64 + target_entropy);
    let value = log_alpha.detach().reshape([1]).double_value(&[0]);
    Ok((value * slope, like(log_alpha, &[slope])))
}

/// The most pessimistic critic of each row, of `[E, N]`, and what it says. What is not a number is less than any.
fn least(q: &[f64], n: usize) -> Vec<(usize, f64)> {
    let mut least: Vec<(usize, f64)> = q.iter().take(n).map(|&q| (0, q)).collect();
    for (critic, row) in q.chunks_exact(n.max(1)).enumerate().skip(1) {
        for (least, &q) in least.iter_mut().zip(row) {
            if q < least.1 || q.is_nan() {
                *least = (critic, q);
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_terminated_step_is_worth_its_reward_and_a_truncated_one_its_future_too() {
        let reward = Tensor::from_slice(&[1f64, 1.0]);
        let discount = Tensor::from_slice(&[0.0f64, 0.9]);
        let next_q = Tensor::from_slice2(&[[10f64, 20.0], [11.0, 10.0]]).set_requires_grad(true);
        let log_prob = Tensor::from_slice(&[-3f64, 2.0]);
        let target = sac_target(&reward, &discount, &next_q, &log_prob, 0.5).unwrap();
        assert_eq!(Vec::<f64>::try_from(&target).unwrap(), [1.0, 1.0 + 0.9 * (10.0 - 1.0)]);
        assert!(!target.requires_grad());
    }

    #[test]
    fn a_critic_learned_across_a_time_limit_finds_the_value_of_for_ever_and_the_classic_bug_less() {
        // Reward 1 for ever, episodes cut after 20 steps, one state: the critic is one number, moved to its mean target.
        let learn = |truncation_is_termination: bool| {
            let mut q = 0.0;
            let discount: Vec<f64> = (0..20)
                .map(|t| if truncation_is_termination && t == 19 { 0.0 } else { 0.99 })
                .collect();
            let discount = Tensor::from_slice(&discount);
            for _ in 0..2000 {
                let next_q = Tensor::full([2, 20], q, (Kind::Double, Device::Cpu));
                let (reward, log_prob) = (discount.ones_like(), discount.zeros_like());
                let target = sac_target(&reward, &discount, &next_q, &log_prob, 0.2).unwrap();
                q = target.mean(Kind::Double).double_value(&[]);
            }
            q
        };
        assert!((learn(false) - 100.0).abs() < 1.0);
        assert!((learn(true) - 100.0).abs() > 1.0);
    }

    #[test]
    fn the_actor_follows_the_more_pessimistic_critic() {
        let q = Tensor::from_slice2(&[[1f64, 4.0], [2.0, 3.0]]);
        let log_prob = Tensor::from_slice(&[0f64, 0.0]);
        let actor = sac_actor_loss(&q, &log_prob, 0.3).unwrap();
        assert_eq!(actor.loss, -2.0);
        let grad = Vec::<f64>::try_from(actor.of_q.flatten(0, -1)).unwrap();
        assert_eq!(grad, [-0.5, 0.0, 0.0, -0.5]);
        assert_eq!(Vec::<f64>::try_from(actor.of_log_prob).unwrap(), [0.15, 0.15]);
    }

    #[test]
    fn the_temperature_rises_while_entropy_is_below_its_target() {
        let log_alpha = Tensor::from_slice(&[0f64]);
        // Entropy -log p = 1 below the target 3: descending the loss raises log α.
        let log_prob = Tensor::from_slice(&[-1f64, -1.0]);
        let (_, slope) = temperature_loss(&log_alpha, &log_prob, 3.0).unwrap();
        assert_eq!(slope.double_value(&[0]), -2.0);
    }

    #[test]
    fn a_column_of_targets_does_not_broadcast() {
        let q = Tensor::zeros([2, 3], (Kind::Double, Device::Cpu));
        let row = q.get(0);
        let column = row.unsqueeze(1);
        assert!(sac_critic_loss(&q, &row).is_ok());
        assert!(sac_critic_loss(&q, &column).is_err());
        assert!(sac_critic_loss(&row, &row).is_err());
        assert!(sac_actor_loss(&q, &column, 0.1).is_err());
        assert!(sac_target(&column, &row, &q, &row, 0.1).is_err());
        assert!(sac_target(&row, &column, &q, &row, 0.1).is_err());
        assert!(sac_target(&row, &row, &q, &column, 0.1).is_err());
        assert!(temperature_loss(&row, &row, 1.0).is_err());
        assert!(temperature_loss(&row.narrow(0, 0, 1), &column, 1.0).is_err());
    }
}
