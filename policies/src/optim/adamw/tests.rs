//! Tests of the optimizer.

use super::*;
use crate::NoiseStream;
use crate::nn::{Activation, Init, Mlp};
use tch::Device;

fn config() -> AdamWConfig {
    AdamWConfig { schedule: Schedule::Constant { warmup: 0 }, ..AdamWConfig::default() }
}

/// A network, its inputs and targets; large enough for several chunks.
fn regression(seed: u64) -> (Params, impl Fn() -> Tensor) {
    let params = Params::new(Device::Cpu, seed);
    let mlp = Mlp::new(&params.root().sub("net"), &[8, 300, 300, 4], Activation::Relu);
    let mut noise = NoiseStream::new(seed);
    let x = noise.normal(&[32, 8], Device::Cpu);
    let y = noise.normal(&[32, 4], Device::Cpu);
    (params, move || mlp.forward(&x).mse_loss(&y, tch::Reduction::Mean))
}

/// PyTorch's `_single_tensor_adamw` after `clip_grad_norm_`, one parameter at a time, in plain f64:
///
/// ```python
/// total_norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
/// g.mul_(torch.clamp(max_norm / (total_norm + 1e-6), max=1.0))
/// param.mul_(1 - lr * weight_decay)
/// exp_avg.lerp_(grad, 1 - beta1)
/// exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
/// denom = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
/// param.addcdiv_(exp_avg, denom, value=-lr / (1 - beta1**step))
/// ```
#[derive(Default)]
struct Reference {
    moments: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
    step: i32,
}

impl Reference {
    fn step(
        &mut self,
        values: &mut BTreeMap<String, Vec<f64>>,
        grads: &BTreeMap<String, Vec<f64>>,
        config: &AdamWConfig,
    ) -> f64 {
        self.step += 1;
        let norm = grads.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let clip = (config.max_grad_norm / (norm + 1e-6)).min(1.0);
        let [b1, b2] = config.betas;
        for (name, p) in values {
            let group = config.groups.get(config.group_of(name));
            let lr = config.learning_rate * group.map_or(1.0, |g| g.lr_scale);
            let decay = group.and_then(|g| g.weight_decay).unwrap_or(config.weight_decay);
            let (m, v) = self
                .moments
                .entry(name.clone())
                .or_insert_with(|| (vec![0.0; p.len()], vec![0.0; p.len()]));
            for i in 0..p.len() {
                let g = grads[name][i] * clip;
                p[i] *= 1.0 - lr * decay;
                m[i] += (1.0 - b1) * (g - m[i]);
                v[i] = v[i] * b2 + (1.0 - b2) * g * g;
                let denom = v[i].sqrt() / (1.0 - b2.powi(self.step)).sqrt() + config.eps;
                p[i] -= lr / (1.0 - b1.powi(self.step)) * m[i] / denom;
            }
        }
        norm
    }
}

fn doubles(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<f64>> {
    let list = |t: Tensor| Vec::<f64>::try_from(t.to_kind(Kind::Double).reshape([-1])).unwrap();
    tensors.into_iter().map(|(name, t)| (name, list(t))).collect()
}

#[test]
fn ten_updates_follow_pytorchs_formula_with_groups_and_clipping() {
    let (params, loss) = regression(1);
    let config = AdamWConfig {
        learning_rate: 1e-3,
        weight_decay: 0.1,
        max_grad_norm: 0.1,
        groups: vec![
            ParamGroup { names: vec!["*.bias".into()], lr_scale: 1.0, weight_decay: Some(0.0) },
            ParamGroup { names: vec!["net.0.*".into()], lr_scale: 0.1, weight_decay: None },
        ],
        ..config()
    };
    let mut optimizer = AdamW::new(&params, config.clone()).unwrap();
    let mut expected = doubles(params.snapshot());
    let mut reference = Reference::default();
    for _ in 0..10 {
        optimizer.accumulate(&loss()).unwrap();
        let grads = doubles(optimizer.gradients());
        let norm = reference.step(&mut expected, &grads, &config);
        let Step::Applied { grad_norm } = optimizer.step(1e-3) else { panic!("dropped") };
        assert!(norm > 0.1, "clipping must matter: {norm}");
        assert!((grad_norm / norm - 1.0).abs() < 1e-6, "{grad_norm} {norm}");
    }
    for (name, got) in doubles(params.snapshot()) {
        for (a, b) in got.iter().zip(&expected[&name]) {
            assert!((a - b).abs() < 2e-6, "{name}: {a} {b}");
        }
    }
}

#[test]
fn equals_libtorchs_own_adamw() {
    let build = || regression(2);
    let (ours, our_loss) = build();
    let mut optimizer = AdamW::new(
        &ours,
        AdamWConfig { betas: [0.9, 0.999], weight_decay: 0.01, max_grad_norm: 0.0, ..config() },
    )
    .unwrap();
    // The same network as plain variables of a VarStore, driven by tch's optimizer.
    let store = tch::nn::VarStore::new(Device::Cpu);
    let mut theirs = BTreeMap::new();
    for (name, tensor) in ours.all() {
        let mut variable = store.root().zeros(&name.replace('.', "_"), &tensor.size());
        tch::no_grad(|| variable.copy_(&tensor));
        theirs.insert(name, variable);
    }
    let mut noise = NoiseStream::new(2);
    let x = noise.normal(&[32, 8], Device::Cpu);
    let y = noise.normal(&[32, 4], Device::Cpu);
    let their_loss = || {
        let layer = |h: &Tensor, i: usize| {
            h.linear(&theirs[&format!("net.{i}.weight")], Some(&theirs[&format!("net.{i}.bias")]))
        };
        let h = layer(&layer(&x, 0).relu(), 1).relu();
        layer(&h, 2).mse_loss(&y, tch::Reduction::Mean)
    };
    let mut reference =
        tch::nn::OptimizerConfig::build(tch::nn::adamw(0.9, 0.999, 0.01), &store, 1e-3).unwrap();
    for _ in 0..20 {
        let (a, b) = (our_loss(), their_loss());
        let (a_value, b_value) = (a.double_value(&[]), b.double_value(&[]));
        assert!((a_value - b_value).abs() < 1e-6, "{a_value} {b_value}");
        optimizer.accumulate(&a).unwrap();
        optimizer.step(1e-3);
        reference.backward_step(&b);
    }
    for (name, tensor) in ours.all() {
        let gap = (tensor - &theirs[&name]).abs().max().double_value(&[]);
        assert!(gap < 1e-6, "{name}: {gap}");
    }
}

#[test]
fn a_non_finite_gradient_is_named_and_changes_nothing() {
    let params = Params::new(Device::Cpu, 0);
    let a = params.root().param("a", &[3], Init::Ones);
    let b = params.root().param("b", &[3], Init::Ones);
    let mut optimizer = AdamW::new(&params, config()).unwrap();
    let good = || (&a * &b).sum(Kind::Float);
    optimizer.accumulate(&good()).unwrap();
    assert!(matches!(optimizer.step(1e-2), Step::Applied { .. }));
    let (weights, moments) = (params.snapshot(), optimizer.state());
    // d/db √(b - b) is infinite; a's gradient is finite.
    optimizer.accumulate(&(good() + (&b - b.detach()).sqrt().sum(Kind::Float))).unwrap();
    assert_eq!(optimizer.step(1e-2), Step::Dropped { tensor: "the gradient of `b`".to_owned() });
    assert_eq!((params.snapshot(), optimizer.state()), (weights, moments));
    // What was dropped does not come back.
    optimizer.accumulate(&good()).unwrap();
    assert!(matches!(optimizer.step(1e-2), Step::Applied { .. }));
}

#[test]
fn accumulated_gradients_add_up_and_unused_parameters_count_as_zero() {
    let params = Params::new(Device::Cpu, 0);
    let a = params.root().param("a", &[2], Init::Ones);
    let _ = params.root().param("unused", &[5], Init::Ones);
    let mut optimizer = AdamW::new(&params, config()).unwrap();
    optimizer.accumulate(&(&a * 2.0).sum(Kind::Float)).unwrap();
    optimizer.accumulate(&(&a * 3.0).sum(Kind::Float)).unwrap();
    let grads = doubles(optimizer.gradients());
    assert_eq!((grads["a"].clone(), grads["unused"].clone()), (vec![5.0; 2], vec![0.0; 5]));
    optimizer.discard();
    optimizer.accumulate(&(&a * 3.0).sum(Kind::Float)).unwrap();
    let Step::Applied { grad_norm } = optimizer.step(0.0) else { panic!("dropped") };
    assert!((grad_norm - 18f64.sqrt()).abs() < 1e-6);
    let constant = Tensor::from(1.0f32);
    assert!(optimizer.accumulate(&constant).is_err());
}

#[test]
fn a_resumed_optimizer_goes_on_bit_for_bit_and_a_cold_one_does_not() {
    let run = |resume: bool, warm: bool| {
        let (params, loss) = regression(3);
        let mut optimizer = AdamW::new(&params, config()).unwrap();
        for update in 0..20 {
            if resume && update == 10 {
                let state = optimizer.state();
                let weights = params.snapshot();
                optimizer = AdamW::new(&params, config()).unwrap();
                params.load(&weights).unwrap();
                if warm {
                    optimizer.load_state(&state).unwrap();
                }
            }
            optimizer.accumulate(&loss()).unwrap();
            optimizer.step(1e-3);
        }
        params.snapshot()
    };
    let straight = run(false, true);
    assert_eq!(straight, run(true, true));
    assert_ne!(straight, run(true, false));
}

#[test]
fn names_match_patterns() {
    assert!(matches("*.bias", "net.0.bias") && !matches("*.bias", "net.bias.weight"));
    assert!(matches("*norm*", "layer_norm.weight") && matches("a", "a") && !matches("a", "ab"));
    assert!(matches("a.*.b.*", "a.1.2.b.c") && !matches("a.*.b", "a.b"));
}

#[test]
fn numbers_out_of_range_are_named() {
    let error = |config: AdamWConfig| config.validate().unwrap_err().to_string();
    assert!(error(AdamWConfig { betas: [0.9, 1.0], ..config() }).contains("optim.betas = 1"));
    assert!(error(AdamWConfig { learning_rate: f64::NAN, ..config() }).contains("learning_rate"));
    assert!(error(AdamWConfig { eps: 0.0, ..config() }).contains("eps"));
}
