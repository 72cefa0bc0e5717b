//! Noise schedules: DDPM (Ho et al. 2020, arXiv 2006.11239), DDIM (Song et al. 2021, arXiv 2010.02502) and straight
//! flow-matching paths (Lipman et al. 2023, arXiv 2210.02747).
//!
//! Arithmetic and its order follow diffusers' `DDPMScheduler` and `DDIMScheduler` with Diffusion Policy's settings:
//! `squaredcos_cap_v2`, `clip_sample`, `fixed_small`, `set_alpha_to_one`, `leading` spacing, eta = 0. Everything is a
//! function of tensors; callers bring the noise.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::PolicyError;

/// What the network answers with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// The clean sample.
    Sample,
}

/// The shape of a [`NoiseSchedule`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoiseScheduleConfig {
    /// Diffusion steps that training draws from.
    pub train_steps: i64,
    /// What the network answers with.
    pub prediction: Prediction,
    /// Whether the predicted clean sample is clipped to `[-1, 1]` at each step of sampling.
    pub clip_sample: bool,
}

impl Default for NoiseScheduleConfig {
    fn default() -> Self {
        // diffusion_policy config/train_diffusion_unet_lowdim_workspace.yaml.
        Self { train_steps: 100, prediction: Prediction::Epsilon, clip_sample: true }
    }
}

/// Tables of one schedule.
#[derive(Debug)]
pub struct NoiseSchedule {
    config: NoiseScheduleConfig,
    /// ᾱ, f32 as in the reference.
    alphas_cumprod: Vec<f32>,
    /// `[2, T]`: √ᾱ and √(1 − ᾱ), on the device that learns.
    roots: Tensor,
}

impl NoiseSchedule {
    /// Tables on `device`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] unless `1 ≤ train_steps ≤ 100 000`.
    pub fn new(config: NoiseScheduleConfig, device: Device) -> Result<Self, PolicyError> {
        let n = config.train_steps;
        if !(1..=100_000).contains(&n) {
            return Err(PolicyError::Config {
                detail: format!("noise schedule: train_steps = {n} is not within 1 and 100000"),
            });
        }
        // `betas_for_alpha_bar` (Nichol & Dhariwal 2021, eq. 17), capped at 0.999; f64 until the table of β.
        let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let betas: Vec<f32> = (0..n)
            .map(|i| {
                let (now, next) = (i as f64 / n as f64, (i + 1) as f64 / n as f64);
                (1.0 - alpha_bar(next) / alpha_bar(now)).min(0.999) as f32
            })
            .collect();
        let _guard = tch::no_grad_guard();
        let alphas_cumprod = (1f64 - Tensor::from_slice(&betas)).cumprod(0, Kind::Float);
        let roots = Tensor::stack(&[alphas_cumprod.sqrt(), (1f64 - &alphas_cumprod).sqrt()], 0);
        let alphas_cumprod = (0..n).map(|i| alphas_cumprod.double_value(&[i]) as f32).collect();
        Ok(Self { config, alphas_cumprod, roots: roots.to_device(device) })
    }

    /// Its shape.
    pub fn config(&self) -> &NoiseScheduleConfig {
        &self.config
    }

    /// ᾱ per step.
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// √ᾱₜ · clean + √(1 − ᾱₜ) · noise; `clean` and `noise` `[B, ..]`, `steps [B]` i64 in `[0, train_steps)`.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor, steps: &Tensor) -> Tensor {
        let mut shape = vec![1; clean.dim()];
        shape[0] = steps.size()[0];
        let roots = self.roots.index_select(1, steps);
        let root = |i| roots.get(i).reshape(&shape);
        root(0) * clean + root(1) * noise
    }

    /// What the network should answer: the noise or the clean sample.
    pub fn target(&self, clean: &Tensor, noise: &Tensor) -> Tensor {
        match self.config.prediction {
            Prediction::Epsilon => noise.shallow_clone(),
            Prediction::Sample => clean.shallow_clone(),
        }
    }

    /// The steps that `n` steps of sampling visit, last first: `leading` spacing, 10 of 100 → 90, 80, …, 0.
    ///
    /// # Errors
    /// [`PolicyError::Config`] unless `1 ≤ n ≤ train_steps`.
    pub fn sampling_steps(&self, n: i64) -> Result<Vec<i64>, PolicyError> {
        if n < 1 || n > self.config.train_steps {
            return Err(PolicyError::Config {
                detail: format!(
                    "noise schedule: {n} sampling steps are not within 1 and {}",
                    self.config.train_steps
                ),
            });
        }
        let ratio = self.config.train_steps / n;
        Ok((0..n).rev().map(|i| i * ratio).collect())
    }

    /// ᾱ at `step`, 1 before the first (`set_alpha_to_one`).
    fn alpha_bar(&self, step: i64) -> f32 {
        usize::try_from(step).map_or(1.0, |i| self.alphas_cumprod[i])
    }

    /// The clean sample and the noise that `output` claims; the clean one clipped as configured.
    fn split(&self, output: &Tensor, sample: &Tensor, alpha_bar: f32) -> (Tensor, Tensor) {
        let (signal, noise) = (root(alpha_bar), root(1.0 - alpha_bar));
        let (clean, epsilon) = match self.config.prediction {
            Prediction::Epsilon => ((sample - noise * output) / signal, output.shallow_clone()),
            Prediction::Sample => (output.shallow_clone(), (sample - signal * output) / noise),
        };
        let clean = if self.config.clip_sample { clean.clamp(-1.0, 1.0) } else { clean };
        (clean, epsilon)
    }

    /// One DDIM step from `step` to `previous` (−1: the clean sample), eta = 0 (Song et al., eq. 12).
    pub fn ddim_step(&self, output: &Tensor, sample: &Tensor, step: i64, previous: i64) -> Tensor {
        let before = self.alpha_bar(previous);
        let (clean, epsilon) = self.split(output, sample, self.alpha_bar(step));
        root(before) * clean + root(1.0 - before) * epsilon
    }

    /// One DDPM step from `step` to `previous` (−1: the clean sample); `noise` is standard normal and unused at step 0
    /// (Ho et al., eq. 7; variance `fixed_small`).
    pub fn ddpm_step(
        &self,
        output: &Tensor,
        sample: &Tensor,
        step: i64,
        previous: i64,
        noise: Option<&Tensor>,
    ) -> Tensor {
        let (now, before) = (self.alpha_bar(step), self.alpha_bar(previous));
        let (beta_now, beta_before) = (1.0 - now, 1.0 - before);
        let alpha = now / before;
        let beta = 1.0 - alpha;
        let (clean, _) = self.split(output, sample, now);
        let of_clean = before.sqrt() * beta / beta_now;
        let of_sample = alpha.sqrt() * beta_before / beta_now;
        let mean = f64::from(of_clean) * clean + f64::from(of_sample) * sample;
        match noise {
            Some(noise) if step > 0 => {
                let variance = (beta_before / beta_now * beta).max(1e-20);
                mean + root(variance) * noise
            }
            _ => mean,
        }
    }

    /// DDIM from pure noise `[B, ..]` in `n` steps; `network(sample, steps [B] i64)` answers as configured.
    ///
    /// # Errors
    /// [`PolicyError::Config`] from [`Self::sampling_steps`]; the network's own.
    pub fn ddim(
        &self,
        noise: &Tensor,
        n: i64,
        mut network: impl FnMut(&Tensor, &Tensor) -> Result<Tensor, PolicyError>,
    ) -> Result<Tensor, PolicyError> {
        let ratio = self.config.train_steps / n.max(1);
        let mut sample = noise.shallow_clone();
        for step in self.sampling_steps(n)? {
            let steps = Tensor::full([noise.size()[0]], step, (Kind::Int64, noise.device()));
            let output = network(&sample, &steps)?;
            sample = self.ddim_step(&output, &sample, step, step - ratio);
        }
        Ok(sample)
    }

    /// DDPM from pure noise `[B, ..]` in `n` steps; `fresh()` gives the noise of each step but the last, in order.
    ///
    /// # Errors
    /// [`PolicyError::Config`] from [`Self::sampling_steps`]; the network's own.
    pub fn ddpm(
        &self,
        noise: &Tensor,
        n: i64,
        mut fresh: impl FnMut() -> Tensor,
        mut network: impl FnMut(&Tensor, &Tensor) -> Result<Tensor, PolicyError>,
    ) -> Result<Tensor, PolicyError> {
        let ratio = self.config.train_steps / n.max(1);
        let mut sample = noise.shallow_clone();
        for step in self.sampling_steps(n)? {
            let steps = Tensor::full([noise.size()[0]], step, (Kind::Int64, noise.device()));
            let output = network(&sample, &steps)?;
            let noise = (step > 0).then(&mut fresh);
            sample = self.ddpm_step(&output, &sample, step, step - ratio, noise.as_ref());
        }
        Ok(sample)
    }
}

/// √x in f32, as the reference's one-element tensors do it.
fn root(x: f32) -> f64 {
    f64::from(x.sqrt())
}

/// A point on the straight path from noise (t = 1) to data (t = 0), `t·noise + (1 − t)·clean`, and the velocity along
/// it, `noise − clean`, which the network learns (SmolVLA's and π0's convention). `time` is `[B]` f32.
pub fn flow_path(clean: &Tensor, noise: &Tensor, time: &Tensor) -> (Tensor, Tensor) {
    let mut shape = vec![1; clean.dim()];
    shape[0] = time.size()[0];
    let velocity = noise - clean;
    (clean + time.reshape(&shape) * &velocity, velocity)
}

/// Euler's method from noise (t = 1) to data (t = 0) in `n` equal steps; `velocity(sample, time [B] f32)`.
///
/// # Errors
/// [`PolicyError::Config`] for `n < 1`; the network's own.
pub fn flow_euler(
    noise: &Tensor,
    n: i64,
    mut velocity: impl FnMut(&Tensor, &Tensor) -> Result<Tensor, PolicyError>,
) -> Result<Tensor, PolicyError> {
    if n < 1 {
        return Err(PolicyError::Config { detail: format!("flow matching: {n} sampling steps") });
    }
    let mut sample = noise.shallow_clone();
    for i in 0..n {
        let time = 1.0 - i as f64 / n as f64;
        let times = Tensor::full([noise.size()[0]], time, (Kind::Float, noise.device()));
        sample = &sample - velocity(&sample, &times)? * (1.0 / n as f64);
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(prediction: Prediction) -> NoiseSchedule {
        let config = NoiseScheduleConfig { prediction, ..NoiseScheduleConfig::default() };
        NoiseSchedule::new(config, Device::Cpu).unwrap()
    }

    #[test]
    fn leading_spacing_visits_the_reference_steps() {
        let s = schedule(Prediction::Epsilon);
        assert_eq!(s.sampling_steps(10).unwrap(), [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]);
        assert_eq!(s.sampling_steps(16).unwrap()[..3], [90, 84, 78]);
        assert_eq!(s.sampling_steps(100).unwrap()[..2], [99, 98]);
        assert!(s.sampling_steps(0).is_err() && s.sampling_steps(101).is_err());
    }

    #[test]
    fn an_oracle_network_brings_the_clean_sample_back() {
        let clean = Tensor::from_slice(&[0.5f32, -0.25, 0.9, 0.0]).reshape([2, 2]);
        let noise = Tensor::from_slice(&[1.5f32, -0.5, 0.3, -2.0]).reshape([2, 2]);
        for prediction in [Prediction::Epsilon, Prediction::Sample] {
            let s = schedule(prediction);
            let start = s.add_noise(&clean, &noise, &Tensor::from_slice(&[90i64, 90]));
            let oracle = |_: &Tensor, _: &Tensor| Ok(s.target(&clean, &noise));
            let back = s.ddim(&start, 10, oracle).unwrap();
            assert!((back - &clean).abs().max().double_value(&[]) < 1e-4);
        }
        let oracle = |_: &Tensor, _: &Tensor| Ok(&noise - &clean);
        let back = flow_euler(&noise, 10, oracle).unwrap();
        assert!((back - &clean).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn the_flow_path_runs_from_data_to_noise() {
        let (clean, noise) = (Tensor::from_slice(&[1f32, 1.0]), Tensor::from_slice(&[3f32, 3.0]));
        let (clean, noise) = (clean.reshape([2, 1]), noise.reshape([2, 1]));
        let (x, v) = flow_path(&clean, &noise, &Tensor::from_slice(&[0f32, 0.75]));
        assert_eq!(Vec::<f32>::try_from(x.flatten(0, -1)).unwrap(), [1.0, 2.5]);
        assert_eq!(Vec::<f32>::try_from(v.flatten(0, -1)).unwrap(), [2.0, 2.0]);
    }

    #[test]
    fn ddpm_adds_no_noise_at_the_last_step() {
        let s = schedule(Prediction::Sample);
        let x = Tensor::from_slice(&[0.3f32]).reshape([1, 1]);
        let huge = Tensor::from_slice(&[1e6f32]).reshape([1, 1]);
        let y = s.ddpm_step(&x, &x, 0, -1, Some(&huge));
        assert!((y - &x).abs().max().double_value(&[]) < 1e-6);
        let mut drawn = 0;
        let fresh = || {
            drawn += 1;
            Tensor::zeros([1, 1], (Kind::Float, Device::Cpu))
        };
        let _ = s.ddpm(&x, 100, fresh, |sample, _| Ok(sample.shallow_clone())).unwrap();
        assert_eq!(drawn, 99);
    }
}
