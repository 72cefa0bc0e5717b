//! Losses, gradients and advantages beside PyTorch's: `tests/fixtures/make_losses.py` computes `losses.json` by straightforward
//! code and autograd. To 1e-6 in f32, and to 1e-12 in f64 where the code under test has f64.

use serde_json::Value;
use simloop_policies::heads::gaussian::Gaussian;
use simloop_policies::nn::Loss;
use tch::{Kind, Tensor};

use super::*;
use crate::advantage::{GaeInput, GroupBaseline, gae, group_relative};

/// One case of the fixture in one precision.
struct Case {
    all: Value,
    prefix: String,
    kind: Kind,
}

impl Case {
    /// Calls `check` with the case in f64 and in f32.
    fn each(name: &str, check: impl Fn(&Case)) {
        let text = include_str!("../../tests/fixtures/losses.json");
        for (precision, kind) in [("f64", Kind::Double), ("f32", Kind::Float)] {
            let all = serde_json::from_str(text).unwrap();
            check(&Case { all, prefix: format!("{precision}/{name}"), kind });
        }
    }

    fn tensor(&self, name: &str) -> Tensor {
        let entry = &self.all[format!("{}/{name}", self.prefix)];
        let data: Vec<f64> = serde_json::from_value(entry["data"].clone()).unwrap();
        let shape: Vec<i64> = serde_json::from_value(entry["shape"].clone()).unwrap();
        Tensor::from_slice(&data).reshape(shape).to_kind(self.kind)
    }

    /// An input that a gradient is wanted for.
    fn leaf(&self, name: &str) -> Tensor {
        self.tensor(name).set_requires_grad(true)
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).to_kind(Kind::Float).try_into().unwrap()
    }

    fn flags(&self, name: &str) -> Vec<bool> {
        self.floats(name).iter().map(|x| *x != 0.0).collect()
    }

    fn number(&self, name: &str) -> f64 {
        self.tensor(name).double_value(&[])
    }

    /// `got` is what PyTorch computed under `name`.
    #[track_caller]
    fn expect(&self, name: &str, got: &Tensor) {
        let expected = self.tensor(name);
        assert_eq!(got.size(), expected.size(), "{}/{name}", self.prefix);
        assert_eq!(got.kind(), self.kind, "{}/{name}", self.prefix);
        let tolerance = if self.kind == Kind::Double { 1e-12 } else { 1e-6 };
        self.close(name, got, tolerance);
    }

    /// The same for what is computed in f32 whatever the kind.
    #[track_caller]
    fn expect_f32(&self, name: &str, got: &[f32]) {
        self.close(name, &Tensor::from_slice(got), 1e-6);
    }

    #[track_caller]
    fn expect_number(&self, name: &str, got: f64) {
        self.close(name, &Tensor::from(got), if self.kind == Kind::Double { 1e-12 } else { 1e-6 });
    }

    #[track_caller]
    fn close(&self, name: &str, got: &Tensor, tolerance: f64) {
        let _guard = tch::no_grad_guard();
        let expected = self.tensor(name).to_kind(Kind::Double);
        let size: Tensor = expected.abs().clamp_min(1.0);
        let error: Tensor = (got.to_kind(Kind::Double) - expected).abs() / size;
        let worst = error.max().double_value(&[]);
        assert!(worst <= tolerance, "{}/{name} differs by {worst}", self.prefix);
    }
}

#[test]
fn gae_is_the_weighted_sum_of_its_paper_for_single_steps_and_chunks() {
    for name in ["gae_single", "gae_chunked"] {
        Case::each(name, |case| {
            let steps: Vec<u32> = case.floats("steps").iter().map(|n| *n as u32).collect();
            let input = GaeInput {
                rewards: &case.floats("rewards"),
                values: &case.floats("values"),
                next_values: &case.floats("next_values"),
                terminated: &case.flags("terminated"),
                ended: &case.flags("ended"),
                steps: &steps,
            };
            case.expect_f32("advantage", &gae(&input, 0.99, 0.95).unwrap());
        });
    }
}

#[test]
fn group_advantages_are_pytorchs_for_both_baselines() {
    for name in ["group_spread", "group_success"] {
        Case::each(name, |case| {
            let returns = case.floats("returns");
            let run = |baseline| group_relative(&returns, baseline).unwrap().unwrap();
            case.expect_f32("normalised", &run(GroupBaseline::Normalised));
            case.expect_f32("leave_one_out", &run(GroupBaseline::LeaveOneOut));
        });
    }
}

#[test]
fn ppos_surrogate_and_its_gradient_are_pytorchs() {
    Case::each("ppo", |case| {
        let advantage = normalized(&case.tensor("raw_advantage"));
        case.expect("normalised", &advantage);
        let new = case.tensor("new");
        let advantage = advantage.unsqueeze(1).expand_as(&new);
        let clip = Clip { low: 0.2, high: 0.2 };
        let (old, valid) = (case.tensor("old"), case.tensor("valid"));
        let result = clipped_surrogate(&new, &old, &advantage, Some(&valid), clip).unwrap();
        case.expect_number("loss", result.loss);
        case.expect_number("clip_fraction", result.clip_fraction);
        case.expect_number("approx_kl", result.approx_kl);
        case.expect("grad_new", &result.slope);
        assert!(result.clip_fraction > 0.2 && result.approx_kl > 1e-3, "the case clips nothing");
    });
}

#[test]
fn the_value_loss_and_its_gradient_are_pytorchs_with_and_without_clipping() {
    for (name, clip) in [("value_plain", None), ("value_clipped", Some(0.2))] {
        Case::each(name, |case| {
            let input =
                Case { prefix: case.prefix.replace(name, "value"), all: case.all.clone(), ..*case };
            let [value, old, target] = ["value", "old_value", "target"].map(|x| input.tensor(x));
            let (loss, slope) = value_loss(&value, &old, &target, clip).unwrap();
            case.expect_number("loss", loss);
            case.expect("grad_value", &slope);
        });
    }
}

#[test]
fn grpos_loss_with_clip_higher_and_divergence_is_pytorchs() {
    Case::each("grpo", |case| {
        let new = case.leaf("new");
        let valid = case.tensor("valid");
        // Advantages are f32 here, and would hide what f64 is for.
        let returns = case.tensor("returns");
        let mean = returns.mean_dim(1, true, None);
        let std = returns.std_dim(1, false, true);
        let relative = (returns - mean) / (std + 1e-6);
        let advantage = relative.flatten(0, -1).unsqueeze(1).expand_as(&new);
        let clip = Clip { low: 0.2, high: 0.28 };
        let old = case.tensor("old");
        let result = clipped_surrogate(&new, &old, &advantage, Some(&valid), clip).unwrap();
        case.expect_number("loss", result.loss);
        case.expect_number("clip_fraction", result.clip_fraction);
        case.expect_number("approx_kl", result.approx_kl);
        let kl = kl_to_reference(&new, &case.tensor("reference"), &valid).unwrap();
        case.expect("kl_to_reference", &kl);
        case.expect_number("total", result.loss + kl.double_value(&[]) * 0.04);
        let surrogate = Loss::Slopes(vec![(new.shallow_clone(), result.slope)]);
        (surrogate.scalar() + kl * 0.04).backward();
        case.expect("grad_new", &new.grad());
    });
}

#[test]
fn sacs_actor_loss_reaches_mean_and_deviation_as_in_pytorch() {
    Case::each("sac_actor", |case| {
        let gaussian =
            Gaussian { mean: case.leaf("mean"), log_std: case.leaf("log_std"), squash: true };
        let (action, log_prob) = gaussian.reparameterised(&case.tensor("z"));
        case.expect("action", &action);
        case.expect("log_prob", &log_prob);
        let q = case.tensor("weight").matmul(&action.tr()) + case.tensor("bias");
        let log_prob = log_prob.sum_dim_intlist(-1, false, None);
        let actor = sac_actor_loss(&q, &log_prob, 0.2).unwrap();
        case.expect_number("loss", actor.loss);
        let slopes = vec![(q, actor.of_q), (log_prob, actor.of_log_prob)];
        Loss::Slopes(slopes).scalar().backward();
        case.expect("grad_mean", &gaussian.mean.grad());
        case.expect("grad_log_std", &gaussian.log_std.grad());
    });
}

#[test]
fn sacs_target_and_critic_loss_are_pytorchs() {
    Case::each("sac_critic", |case| {
        let target = sac_target(
            &case.tensor("reward"),
            &case.tensor("discount"),
            &case.tensor("next_q"),
            &case.tensor("next_log_prob"),
            0.2,
        )
        .unwrap();
        case.expect("target", &target);
        let (loss, slope) = sac_critic_loss(&case.tensor("q"), &target).unwrap();
        case.expect_number("loss", loss);
        case.expect("grad_q", &slope);
    });
}

#[test]
fn sacs_temperature_loss_is_pytorchs() {
    Case::each("sac_temperature", |case| {
        let (log_alpha, log_prob) = (case.tensor("log_alpha"), case.tensor("log_prob"));
        let target_entropy = case.number("target_entropy");
        let (loss, slope) = temperature_loss(&log_alpha, &log_prob, target_entropy).unwrap();
        case.expect_number("loss", loss);
        case.expect("grad_log_alpha", &slope);
    });
}
