//! What a head costs to train: `cargo bench -p simloop-policies --bench heads`.
//!
//! Time of one loss with its gradient for each head's default settings, batch 64, on a flat context (`C` = 512, `T_p` = 16,
//! `D` = 2).

#![allow(missing_docs, reason = "criterion's macros make public items without docs")]

use criterion::{Criterion, criterion_group, criterion_main};
use simloop_policies::NoiseStream;
use simloop_policies::fusion::Context;
use simloop_policies::heads::{HeadConfig, HeadShape};
use simloop_policies::nn::Params;
use tch::{Device, Kind, Tensor};

const BATCH: i64 = 64;

fn heads(c: &mut Criterion) {
    let shape = HeadShape { pooled_width: 512, token_width: 512, chunk_size: 16, action_dim: 2 };
    let mut noise = NoiseStream::new(0);
    let pooled = noise.normal(&[BATCH, shape.pooled_width], Device::Cpu);
    let context = Context { tokens: pooled.unsqueeze(1), pooled };
    let actions =
        noise.normal(&[BATCH, shape.chunk_size, shape.action_dim], Device::Cpu).clamp(-1.0, 1.0);
    let valid = Tensor::ones([BATCH, shape.chunk_size], (Kind::Float, Device::Cpu));
    let mut group = c.benchmark_group("loss_and_gradient");
    group.sample_size(10);
    // Each with its defaults.
    for kind in ["mlp", "gaussian", "act", "bins", "text", "diffusion", "flow"] {
        let config: HeadConfig =
            serde_json::from_value(serde_json::json!({ "kind": kind })).expect("a head's name");
        let params = Params::new(Device::Cpu, 0);
        let head = config.build(&params.root(), shape).expect("default settings fit");
        group.bench_function(kind, |b| {
            b.iter(|| {
                let loss =
                    head.loss(&context, &actions, &valid, &mut noise).expect("shapes that fit");
                loss.mean(None).backward();
                for (_, mut tensor) in params.trainable() {
                    tensor.zero_grad();
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, heads);
criterion_main!(benches);
