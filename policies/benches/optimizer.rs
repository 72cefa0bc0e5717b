//! What an update costs beside libtorch's AdamW: `cargo bench -p simloop-policies --bench optimizer`.
//!
//! An MLP of 3.2 M parameters at batch 64, one thread, forward and backward included, gradients clipped.

#![allow(missing_docs, reason = "criterion's macros make public items without docs")]

use criterion::{Criterion, criterion_group, criterion_main};
use simloop_policies::NoiseStream;
use simloop_policies::nn::{Activation, Mlp, Params};
use simloop_policies::optim::{AdamW, AdamWConfig};
use tch::nn::OptimizerConfig as _;
use tch::{Device, Kind, Tensor};

const SIZES: [i64; 5] = [64, 1024, 1024, 1024, 32];

fn optimizer(c: &mut Criterion) {
    tch::set_num_threads(1);
    let x = NoiseStream::new(0).normal(&[64, SIZES[0]], Device::Cpu);
    let mut group = c.benchmark_group("update");
    group.sample_size(20);

    let params = Params::new(Device::Cpu, 0);
    let mlp = Mlp::new(&params.root(), &SIZES, Activation::Relu);
    let config = AdamWConfig { max_grad_norm: 1.0, ..AdamWConfig::default() };
    let mut ours = AdamW::new(&params, config).expect("settings in range");
    group.bench_function("simloop", |b| {
        b.iter(|| {
            ours.accumulate(&mlp.forward(&x).square().mean(Kind::Float)).expect("a loss");
            ours.step(1e-4)
        });
    });

    let store = tch::nn::VarStore::new(Device::Cpu);
    let layers: Vec<tch::nn::Linear> = SIZES
        .windows(2)
        .enumerate()
        .map(|(i, w)| {
            tch::nn::linear(store.root() / i, w[0], w[1], tch::nn::LinearConfig::default())
        })
        .collect();
    let forward = |x: &Tensor| {
        layers.iter().enumerate().fold(x.shallow_clone(), |h, (i, layer)| {
            let h = if i > 0 { h.relu() } else { h };
            h.apply(layer)
        })
    };
    let mut theirs =
        tch::nn::adamw(0.95, 0.999, 1e-6).build(&store, 1e-4).expect("settings in range");
    group.bench_function("libtorch", |b| {
        b.iter(|| theirs.backward_step_clip_norm(&forward(&x).square().mean(Kind::Float), 1.0));
    });
}

criterion_group!(benches, optimizer);
criterion_main!(benches);
