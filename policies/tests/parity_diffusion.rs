//! Diffusion Policy's U-Net and its schedules against numbers from the authors' code and diffusers.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]
#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use simloop_policies::nn::{NoiseSchedule, NoiseScheduleConfig, Params, Unet1d, Unet1dConfig};
use simloop_policies::safetensors_io;
use tch::{Device, Tensor};

fn folder() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/models/dp");
    if !path.is_dir() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn load() -> Option<(Unet1d, BTreeMap<String, Tensor>)> {
    let folder = folder()?;
    let weights = safetensors_io::load(&folder.join("model.safetensors")).unwrap();
    let io = safetensors_io::load(&folder.join("io.safetensors")).unwrap();
    let params = Params::new(Device::Cpu, 0);
    let net = Unet1d::new(&params.root(), Unet1dConfig::infer(&weights, 8).unwrap()).unwrap();
    params.load(&weights).unwrap();
    // The numbers were made with two threads; libtorch sums in another order with more or fewer, and the first of 100
    // DDIM steps divides such last bits by 5e-4.
    tch::set_num_threads(2);
    Some((net, io))
}

#[test]
fn the_unet_answers_as_the_reference_does() {
    let Some((net, io)) = load() else { return };
    let _guard = tch::no_grad_guard();
    let out = net.forward(&io["x"], &io["t"], &io["c"]).unwrap();
    let d = distance(&out, &io["out"]);
    println!("forward: {d:e}");
    assert!(d <= 1e-5);
    // The classic slip: time and channels exchanged would still have the right shape after the last transpose.
    assert!(distance(&out, &io["x"]) > 0.1);
}

#[test]
fn ddim_and_ddpm_end_where_diffusers_does() {
    let Some((net, io)) = load() else { return };
    let _guard = tch::no_grad_guard();
    let schedule = NoiseSchedule::new(NoiseScheduleConfig::default(), Device::Cpu).unwrap();
    let table = Tensor::from_slice(schedule.alphas_cumprod());
    println!("alphas_cumprod: {:e}", distance(&table, &io["alphas_cumprod"]));
    assert!(distance(&table, &io["alphas_cumprod"]) <= 1e-7);
    let noisy = schedule.add_noise(&io["x"], &io["x"].ones_like(), &io["t"]);
    println!("add_noise: {:e}", distance(&noisy, &io["noisy"]));
    assert!(distance(&noisy, &io["noisy"]) <= 1e-6);
    let network = |sample: &Tensor, steps: &Tensor| net.forward(sample, steps, &io["c"]);
    for n in [10, 16, 100] {
        let steps: Vec<i64> = Vec::try_from(&io[&format!("ddim{n}.t")]).unwrap();
        assert_eq!(schedule.sampling_steps(n).unwrap(), steps);
        let d = distance(&schedule.ddim(&io["x"], n, network).unwrap(), &io[&format!("ddim{n}")]);
        println!("ddim {n}: {d:e}");
        assert!(d <= 1e-5, "ddim {n}: {d:e}");
    }
    let mut i = 0;
    let fresh = || {
        i += 1;
        io["ddpm.z"].get(i - 1)
    };
    let d = distance(&schedule.ddpm(&io["x"], 100, fresh, network).unwrap(), &io["ddpm"]);
    println!("ddpm 100: {d:e}");
    assert!(d <= 1e-5);
}
