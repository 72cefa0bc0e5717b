//! Decisions with a density, for learners that explore.

use simloop_envs::{ActionChunk, Observation};
use tch::{Device, Kind, Tensor};

use super::{VlaConfig, VlaPolicy};
use crate::heads::steered::{NOISE, SteeredConfig};
use crate::heads::{HeadConfig, StochasticHead};
use crate::nn::Params;
use crate::{ActMode, Decision, Density, NoiseStream, ObsBatch, PolicyError, StochasticActor};

impl VlaPolicy {
    /// Whether its decisions have a density ([`StochasticActor`]).
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the heads that do.
    pub fn stochastic_head(&self) -> Result<&dyn StochasticHead, PolicyError> {
        if self.frames.is_some() {
            return Err(PolicyError::Config {
                detail: "explore in goals' frames: densities do not know `policy.frames`"
                    .to_owned(),
            });
        }
        self.head.stochastic().ok_or_else(|| PolicyError::Config {
            detail: "explore with this head: its chunks have no density; use `gaussian` or `flow`"
                .to_owned(),
        })
    }

    /// How much it explores, as a standard deviation in normalised units: of the noise in the first denoising step of a
    /// flow, or of a normal distribution whose deviation does not depend on the context. Other heads ignore it.
    pub fn set_explore_std(&mut self, std: f64) {
        self.head.set_explore_std(std);
    }

    /// The same policy with its flow steered by a noise that learns ([`crate::heads::steered`]); everything else is frozen.
    /// Until something is learned it acts as before, but for rounding.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a head that is no flow.
    pub fn steered(&self, hidden: &[i64], seed: u64) -> Result<Self, PolicyError> {
        let HeadConfig::Flow(flow) = &self.config.head else {
            return Err(PolicyError::Config {
                detail: "steer this policy by its noise: only a `flow` head starts from one"
                    .to_owned(),
            });
        };
        let head = HeadConfig::Steered(SteeredConfig {
            flow: flow.clone(),
            hidden: hidden.to_vec(),
            ..SteeredConfig::default()
        });
        let config = VlaConfig { head, ..self.config.clone() };
        let steered = Self::with_tokenizer(
            config,
            self.io.clone(),
            self.normalizers.clone(),
            self.tokenizer.clone(),
            self.device(),
            seed,
        )?;
        let mut values = steered.params.snapshot();
        values.extend(self.params.snapshot());
        steered.params.load(&values)?;
        steered.freeze_flow();
        Ok(steered)
    }

    /// Lets nothing but the noise of a steered flow learn.
    pub fn freeze_flow(&self) {
        let learns = format!("head.{NOISE}.");
        self.params.set_trainable(|name| name.starts_with(&learns));
    }

    /// Acts in batches of `rows`; results of a row may differ in the last bits between two sizes.
    pub fn set_inference_batch(&mut self, rows: usize) {
        self.config.inference_batch = rows.max(1);
    }

    /// `T_a`.
    pub fn n_action_steps(&self) -> usize {
        self.config.execution.n_action_steps()
    }

    /// The executed part of a chunk for each window, as acting without memory does: for heads without a density too.
    ///
    /// # Errors
    /// [`PolicyError`] for windows that do not fit the model, or a chunk that is not finite.
    pub fn act_on(
        &self,
        windows: &[Vec<Observation>],
        seeds: &[u64],
        mode: ActMode,
    ) -> Result<Vec<ActionChunk>, PolicyError> {
        let executed = self.n_action_steps();
        self.chunks(windows, seeds, mode)?
            .into_iter()
            .map(|chunk| {
                ActionChunk::new(chunk.slice(ndarray::s![..executed, ..]).to_owned())
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })
            })
            .collect()
    }

    /// `T_a D`: the numbers of a decision that is executed.
    pub fn action_width(&self) -> i64 {
        (self.n_action_steps() * self.io.action.len()) as i64
    }

    /// Where the executed actions lie in the latent of a `gaussian` head.
    pub fn executed_latent(&self) -> std::ops::Range<usize> {
        let d = self.io.action.len();
        let first = self.config.first_action();
        first * d..(first + self.n_action_steps()) * d
    }

    /// A sample of the executed actions, `[B, T_a D]`, normalised, and its log-density, `[B]`; both with gradient.
    ///
    /// # Errors
    /// [`PolicyError`] for windows that do not fit; [`PolicyError::Config`] for a head other than `gaussian`.
    pub fn draw(
        &self,
        obs: &ObsBatch,
        noise: &mut NoiseStream,
    ) -> Result<(Tensor, Tensor), PolicyError> {
        let context = self.perception.context(obs, None)?;
        let gaussian = self.stochastic_head()?.gaussian(&context)?;
        let z = noise.normal(&gaussian.mean.size(), self.params.device());
        let first = self.config.first_action();
        Ok(gaussian.draw(&z, first..first + self.n_action_steps()))
    }

    /// The likeliest executed actions, `[B, T_a D]`, normalised, with gradient.
    ///
    /// # Errors
    /// As [`VlaPolicy::draw`].
    pub fn mode(&self, obs: &ObsBatch) -> Result<Tensor, PolicyError> {
        let context = self.perception.context(obs, None)?;
        Ok(self.executed(&self.stochastic_head()?.gaussian(&context)?.mode()))
    }

    /// Rows of `[B, T_p, D]` that are executed, flat.
    fn executed(&self, chunk: &Tensor) -> Tensor {
        let (first, n) = (self.config.first_action() as i64, self.n_action_steps() as i64);
        chunk.narrow(1, first, n).flatten(1, 2)
    }
}

impl StochasticActor for VlaPolicy {
    fn decide(
        &self,
        windows: &[Vec<Observation>],
        seeds: &[u64],
        mode: ActMode,
    ) -> Result<Vec<Decision>, PolicyError> {
        let _guard = tch::no_grad_guard();
        let head = self.stochastic_head()?;
        let (first, executed) = (self.config.first_action() as i64, self.n_action_steps() as i64);
        let batch = self.config.inference_batch;
        let mut decisions = Vec::with_capacity(windows.len());
        for (windows, seeds) in windows.chunks(batch).zip(seeds.chunks(batch)) {
            let pad = batch - windows.len();
            let padded;
            let rows = if pad == 0 {
                windows
            } else {
                let more = std::iter::repeat_n(&windows[0], pad);
                padded = windows.iter().chain(more).cloned().collect::<Vec<_>>();
                &padded
            };
            let mut noise: Vec<_> = seeds
                .iter()
                .chain(std::iter::repeat_n(&seeds[0], pad))
                .map(|&seed| NoiseStream::new(seed))
                .collect();
            let obs = ObsBatch::stack(rows, self.cameras(), self.params.device())?;
            let context = self.perception.context(&obs, None)?;
            let drawn = head.explore(&context, &mut noise, mode)?;
            let chunk = self.denormalize_actions(&obs, &drawn.chunk).narrow(1, first, executed);
            let d = self.io.action.len();
            let (chunks, latents, log_probs) =
                (to_rows(&chunk), to_rows(&drawn.latent), to_rows(&drawn.log_prob));
            let rows = chunks.into_iter().zip(latents).zip(log_probs).take(windows.len());
            for ((chunk, latent), log_prob) in rows {
                if chunk.iter().chain(&log_prob).any(|v| !v.is_finite()) {
                    return Err(PolicyError::NonFinite { tensor: "chunk".to_owned() });
                }
                let chunk = ndarray::Array2::from_shape_vec((executed as usize, d), chunk)
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                let chunk = ActionChunk::new(chunk)
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                decisions.push(Decision { chunk, latent, log_prob });
            }
        }
        Ok(decisions)
    }

    fn density(&self, obs: &ObsBatch, latent: &Tensor) -> Result<Density, PolicyError> {
        let context = self.perception.context(obs, None)?;
        self.stochastic_head()?.density(&context, latent)
    }

    fn terms(&self) -> Vec<Option<usize>> {
        let first = self.config.first_action();
        let rows = self.stochastic_head().map(StochasticHead::term_rows).unwrap_or_default();
        // A row before the present is as far from being executed as one after the chunk's end.
        rows.into_iter()
            .map(|row| row.map(|r| r.checked_sub(first).unwrap_or(usize::MAX)))
            .collect()
    }

    fn cameras(&self) -> &[String] {
        self.perception.cameras()
    }

    fn params(&self) -> &Params {
        &self.params
    }
}

/// `[B, …]` to `B` vectors.
fn to_rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    let b = tensor.size()[0].max(1) as usize;
    let tensor = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let n = tensor.numel();
    let mut values = vec![0f32; n];
    tensor.copy_data(&mut values, n);
    values.chunks((n / b).max(1)).map(<[f32]>::to_vec).collect()
}
