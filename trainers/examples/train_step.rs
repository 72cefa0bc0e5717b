//! One training step of behaviour cloning, timed: the same models, batch and optimiser as `benchmarks/peers/train_step.py`.
//!
//! ```text
//! cargo run --release -p simloop-trainers --example train_step -- --model unet|vla [--threads 2] [--seconds 10]
//! ```
//!
//! `unet` is Diffusion Policy's low-dimensional U-Net (65.8 M parameters), `vla` a small image policy (ViT, state MLP,
//! concatenation with self-attention, flow matching with a transformer). Batch 64. Prints one line of JSON.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use ndarray::Array2;
use simloop_algos::bc::{Bc, BcConfig, Update};
use simloop_envs::ImageSpace;
use simloop_policies::normalize::Stats;
use simloop_policies::optim::{AdamWConfig, EmaConfig};
use simloop_policies::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use simloop_policies::{ImitationBatch, ImitationModel as _, NoiseStream, ObsBatch};
use tch::{Device, Kind, Tensor};

const BATCH: i64 = 64;

#[derive(Parser)]
struct Args {
    /// unet or vla.
    #[arg(long)]
    model: String,
    /// Threads inside one operation of libtorch.
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

/// `[P]`, camera side, and the architecture.
fn model(name: &str) -> Result<(usize, Option<u32>, VlaConfig)> {
    let unet = r#"
        n_obs_steps = 2
        align = "window"
        head = { kind = "diffusion", denoiser = { kind = "unet1d" } }
    "#;
    let vla = r#"
        n_obs_steps = 1
        vision = { kind = "vit" }
        state = { kind = "mlp", width = 192 }
        fusion = { kind = "concat" }
        head = { kind = "flow", denoiser = { kind = "transformer", width = 256, layers = 4, heads = 4 } }
    "#;
    Ok(match name {
        "unet" => (20, None, toml::from_str(unet)?),
        "vla" => (2, Some(96), toml::from_str(vla)?),
        other => anyhow::bail!("measure `{other}`: the models are `unet` and `vla`"),
    })
}

fn batch(proprio: usize, side: Option<u32>, config: &VlaConfig) -> ImitationBatch {
    let mut noise = NoiseStream::new(0);
    let (t_o, t_p) = (config.n_obs_steps as i64, config.chunk_size as i64);
    let images = side.map(|side| {
        let shape = [BATCH, t_o, i64::from(side), i64::from(side), 3];
        let pixels = noise.integers(256, &shape, Device::Cpu).to_kind(Kind::Uint8);
        ("pixels".to_owned(), pixels)
    });
    ImitationBatch {
        obs: ObsBatch {
            images: images.into_iter().collect(),
            proprio: noise.normal(&[BATCH, t_o, proprio as i64], Device::Cpu),
            instructions: vec!["go".into(); BATCH as usize],
        },
        actions: noise.normal(&[BATCH, t_p, 2], Device::Cpu),
        valid: Tensor::ones([BATCH, t_p], (Kind::Float, Device::Cpu)),
    }
}

#[expect(clippy::print_stdout, reason = "the result of a measurement")]
fn main() -> Result<()> {
    simloop_policies::device::prepare();
    let args = Args::parse();
    tch::set_num_threads(args.threads);
    let (proprio, side, config) = model(&args.model)?;
    let names = |n: usize| (0..n).map(|i| format!("x{i}")).collect::<Vec<_>>();
    let space = side.map(|s| ("pixels".to_owned(), ImageSpace { height: s, width: s }));
    let io = PolicyIo {
        cameras: space.into_iter().collect::<BTreeMap<_, _>>(),
        proprio: names(proprio),
        action: names(2),
        convention: None,
        control_hz: None,
    };
    let stats = |d| Stats::of(Array2::from_shape_fn((10, d), |(i, _)| i as f32).view());
    let normalizers = Normalizers::fit(&config, stats(proprio)?, stats(2)?)?;
    let policy = VlaPolicy::new(config.clone(), io, normalizers, Device::Cpu, 0)?;
    let (parameters, _) = policy.params().count();
    let optim = AdamWConfig {
        learning_rate: 1e-4,
        betas: [0.95, 0.999],
        weight_decay: 1e-6,
        max_grad_norm: 1.0,
        ..AdamWConfig::default()
    };
    let ema = Some(EmaConfig::Constant { decay: 0.99 });
    let settings = BcConfig { optim, ema, total_updates: 1_000_000, ..BcConfig::default() };
    let mut bc = Bc::new(policy, settings, 0)?;
    let batches = [batch(proprio, side, &config)];
    let (mut times, mut cpu) = (Vec::new(), 0.0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs_f64(args.seconds) || times.len() < 4 {
        if times.len() == 2 {
            cpu = cpu_secs()?;
        }
        let wall = Instant::now();
        anyhow::ensure!(
            matches!(bc.update(&batches)?, Update::Applied(_)),
            "an update was dropped"
        );
        times.push(wall.elapsed().as_secs_f64());
    }
    // The first two steps allocate.
    let mut times = times.split_off(2);
    let cpu = (cpu_secs()? - cpu) / times.len() as f64;
    times.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "engine": "simloop",
        "model": args.model,
        "parameters": parameters,
        "wall_ms": 1e3 * times[times.len() / 2],
        "cpu_ms": 1e3 * cpu,
        "steps": times.len(),
    });
    println!("{line}");
    Ok(())
}

/// CPU time of this process, all threads, in ticks of 10 ms as a rule (`proc_pid_stat(5)`, fields 14 and 15).
fn cpu_secs() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').context("/proc/self/stat has another layout")?;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
