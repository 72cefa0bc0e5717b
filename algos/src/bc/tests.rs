//! Tests of behaviour cloning.

use std::sync::Arc;

use simloop_policies::nn::{Activation, Mlp, Params};
use simloop_policies::optim::Schedule;
use simloop_policies::{
    ActMode, ActRequest, Needs, ObsBatch, Policy, PolicyError, PolicyStep, normal_rows,
};
use tch::Device;

use super::*;

/// `[B, 1, 3]` proprio to `[B, 2, 2]` actions, with noise on the input so that the streams matter.
pub(crate) struct Toy {
    params: Params,
    net: Mlp,
}

impl Toy {
    fn new(seed: u64) -> Self {
        let params = Params::new(Device::Cpu, seed);
        let net = Mlp::new(&params.root().sub("net"), &[3, 32, 4], Activation::Tanh);
        Self { params, net }
    }

    fn forward(&self, proprio: &Tensor) -> Tensor {
        self.net.forward(&proprio.squeeze_dim(1)).reshape([-1, 2, 2])
    }
}

impl Policy for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn act(&mut self, _: &[ActRequest<'_>], _: ActMode) -> Result<Vec<PolicyStep>, PolicyError> {
        Err(PolicyError::Config { detail: "the toy does not act".to_owned() })
    }
}

impl ImitationModel for Toy {
    fn imitation_loss(
        &self,
        batch: &ImitationBatch,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let jitter = noise.normal(&batch.obs.proprio.size(), Device::Cpu) * 0.1;
        let error = self.forward(&(&batch.obs.proprio + jitter)) - &batch.actions;
        Ok(error.square().mean_dim([-1i64].as_slice(), false, Kind::Float))
    }

    fn predict(
        &self,
        obs: &ObsBatch,
        noise: &mut [NoiseStream],
        _: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _ = normal_rows(noise, &[1], Device::Cpu);
        Ok(self.forward(&obs.proprio))
    }

    fn params(&self) -> &Params {
        &self.params
    }
}

/// A batch of `[b]` windows; the action is a fixed function of the state.
pub(crate) fn batch(b: i64, seed: u64) -> ImitationBatch {
    let proprio = NoiseStream::new(seed).normal(&[b, 1, 3], Device::Cpu);
    let first = proprio.narrow(2, 0, 2);
    let actions = Tensor::cat(&[&first * 0.5, first.sin()], 1);
    let instructions = vec![Arc::from("push"); b as usize];
    ImitationBatch {
        obs: ObsBatch { images: BTreeMap::new(), proprio, instructions },
        actions,
        valid: Tensor::ones([b, 2], (Kind::Float, Device::Cpu)),
    }
}

fn config() -> BcConfig {
    BcConfig {
        optim: AdamWConfig {
            learning_rate: 3e-3,
            schedule: Schedule::Cosine { warmup: 10, floor: 0.0 },
            ..AdamWConfig::default()
        },
        total_updates: 300,
        ..BcConfig::default()
    }
}

fn loss(update: Update) -> f64 {
    match update {
        Update::Applied(metrics) => metrics["train/loss"],
        Update::Dropped { tensor } => panic!("dropped for {tensor}"),
    }
}

#[test]
fn learns_a_function_and_its_average_judges_better_than_its_start() {
    let mut bc = Bc::new(Toy::new(0), config(), 0).unwrap();
    let first = loss(bc.update(&[batch(64, 0)]).unwrap());
    let last = (1..300).map(|i| loss(bc.update(&[batch(64, i)]).unwrap())).last().unwrap();
    assert!(last < 0.05 * first, "{first} {last}");
    let test = batch(64, 1_000_000);
    let raw = bc.model().params().snapshot();
    let error = bc.averaged(|m| {
        (m.forward(&test.obs.proprio) - &test.actions).square().mean(Kind::Float).double_value(&[])
    });
    assert!(error < 0.2 * first, "{error} {first}");
    assert_eq!(bc.model().params().snapshot(), raw);
}

#[test]
fn micro_batches_give_the_gradient_of_one_large_batch() {
    // Unequal padding: means of means would be wrong.
    let halves: Vec<ImitationBatch> = (0..2)
        .map(|i| {
            let mut half = batch(8, i);
            half.valid = Tensor::zeros([8, 2], (Kind::Float, Device::Cpu));
            let _ = half.valid.narrow(1, 0, 1).narrow(0, 0, 3 + 4 * i as i64).fill_(1.0);
            half
        })
        .collect();
    let toy = Toy::new(0);
    let mut gradient = AdamW::new(toy.params(), config().optim).unwrap();
    let bc = Bc::new(Toy::new(0), config(), 5).unwrap();
    let parts: Vec<(Tensor, Tensor)> = halves
        .iter()
        .enumerate()
        .map(|(i, h)| {
            let each = toy.imitation_loss(h, &mut bc.noise(0, i as u64)).unwrap();
            masked_sum(&each, &h.valid).unwrap()
        })
        .collect();
    gradient.accumulate(&((&parts[0].0 + &parts[1].0) / (&parts[0].1 + &parts[1].1))).unwrap();
    let expected = gradient.gradients();
    let mut bc = bc;
    let update = bc.update(&halves).unwrap();
    let Update::Applied(metrics) = update else { panic!() };
    let norm =
        expected.values().map(|g| g.square().sum(Kind::Float).double_value(&[])).sum::<f64>();
    assert!((metrics["train/grad_norm"] / norm.sqrt() - 1.0).abs() < 1e-5);
    assert_eq!(metrics["train/samples"], 16.0);
}

#[test]
fn nan_in_the_batch_is_named_and_changes_nothing() {
    let mut bc = Bc::new(Toy::new(0), config(), 0).unwrap();
    bc.update(&[batch(8, 0)]).unwrap();
    bc.update(&[batch(8, 1)]).unwrap();
    let before = bc.state();
    for name in ["`actions` of the batch", "`proprio` of the batch"] {
        let broken = batch(8, 2);
        let part = if name.contains("actions") { &broken.actions } else { &broken.obs.proprio };
        let _ = part.narrow(0, 3, 1).fill_(f64::NAN);
        // A clean micro-batch before it must not slip through either.
        let update = bc.update(&[batch(8, 3), broken]).unwrap();
        assert_eq!(update, Update::Dropped { tensor: name.to_owned() });
    }
    let after = bc.state();
    assert_eq!(after.weights, before.weights);
    assert_eq!(after.optimizer, before.optimizer);
    assert_eq!(after.ema, before.ema);
    assert_eq!(after.updates, before.updates + 2);
    assert!(matches!(bc.update(&[batch(8, 4)]).unwrap(), Update::Applied(_)));
}

#[test]
fn resumed_learning_equals_uninterrupted_and_needs_every_item() {
    let run = |break_at: u64, spoil: &dyn Fn(&mut BcState)| {
        let mut bc = Bc::new(Toy::new(7), config(), 7).unwrap();
        for i in 0..40 {
            if i == break_at {
                let mut state = bc.state();
                spoil(&mut state);
                bc = Bc::new(Toy::new(8), config(), 7).unwrap();
                bc.load_state(&state).unwrap();
            }
            bc.update(&[batch(16, i)]).unwrap();
        }
        let state = bc.state();
        (state.weights, state.optimizer, state.ema)
    };
    let straight = run(99, &|_| {});
    assert_eq!(straight, run(20, &|_| {}));
    let fresh = || Bc::new(Toy::new(8), config(), 7).unwrap().state();
    assert_ne!(straight, run(20, &|s| s.updates = 0), "the generator's counter");
    assert_ne!(straight, run(20, &|s| s.weights = fresh().weights), "the weights");
    assert_ne!(straight, run(20, &|s| s.optimizer = fresh().optimizer), "the moments");
    assert_ne!(straight, run(20, &|s| s.ema = fresh().ema), "the average");
}

#[test]
fn padding_is_learnt_only_when_asked() {
    let error = |mask_padding: bool| {
        let mut bc = Bc::new(Toy::new(0), BcConfig { mask_padding, ..config() }, 0).unwrap();
        let mut padded = batch(8, 0);
        padded.valid = padded.valid.zeros_like();
        loss(bc.update(&[padded]).unwrap())
    };
    assert_eq!(error(true), 0.0);
    assert!(error(false) > 0.0);
    let mut bc = Bc::new(Toy::new(0), config(), 0).unwrap();
    assert!(bc.update(&[]).is_err());
}
