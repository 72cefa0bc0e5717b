//! What a gradient of a small network costs by autograd and by a tape: `cargo bench -p simloop-policies --bench networks`.
//!
//! One thread, f32: twin critics as in SAC (7 inputs, two hidden layers of 256, 256 rows) and one as in PPO (5 inputs, two
//! hidden layers of 64, 64 rows).

#![allow(missing_docs, reason = "criterion's macros make public items without docs")]

use criterion::{Criterion, criterion_group, criterion_main};
use simloop_policies::NoiseStream;
use simloop_policies::nn::{Activation, Loss, Mlp, Params, Tape};
use tch::{Device, Kind, Tensor};

fn networks(c: &mut Criterion) {
    tch::set_num_threads(1);
    for (name, sizes, twins, rows, activation) in [
        ("sac_critics", [7, 256, 256, 1], 2, 256, Activation::Relu),
        ("ppo_critic", [5, 64, 64, 1], 1, 64, Activation::Tanh),
    ] {
        let params = Params::new(Device::Cpu, 0);
        let nets: Vec<Mlp> =
            (0..twins).map(|i| Mlp::new(&params.root().sub(i), &sizes, activation)).collect();
        let x = NoiseStream::new(1).normal(&[rows, sizes[0]], Device::Cpu);
        let wanted: Vec<Tensor> = params.all().into_iter().map(|(_, tensor)| tensor).collect();
        let wanted: Vec<&Tensor> = wanted.iter().collect();
        let loss = || Mlp::forward_stacked(&nets, &[&x]).square().sum(None::<Kind>);
        let mut group = c.benchmark_group(name);
        group.bench_function("autograd", |b| {
            b.iter(|| Tensor::run_backward(&[loss()], &wanted, false, false));
        });
        group.bench_function("tape", |b| {
            b.iter(|| {
                let tape = Tape::record(&[&params]);
                let loss = Loss::Scalar(loss());
                tape.gradients(&[&loss], &wanted).expect("a loss with a graph")
            });
        });
        group.finish();
    }
}

criterion_group!(benches, networks);
criterion_main!(benches);
