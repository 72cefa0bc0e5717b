//! A vision-language-action policy, composed from config: encoders, fusion, head.
//!
//! ```text
//! images [B, T_o, H, W, 3] u8 ─▶ vision ─┐
//! proprio [B, T_o, P]        ─▶ state  ──┼─▶ fusion ─▶ head ─▶ chunk [B, T_p, D] ─▶ the first n_action_steps are executed
//! instruction                ─▶ text   ──┘
//! ```
//!
//! # Shapes
//! `B` batch, `T_o` observations seen ([`VlaConfig::n_obs_steps`]), `T_p` actions predicted ([`VlaConfig::chunk_size`]),
//! `T_a` actions executed ([`VlaConfig::execution`]), `P` proprio, `D` action, `H W 3` image, `N` tokens, `W` width.
//!
//! # Details
//! 1. Everything between [`Normalizer`]s is in numbers of order one; chunks leave in the environment's units.
//! 2. With [`Align::Window`] row 0 of a chunk belongs to the oldest observation (diffusion_policy), so acting starts at row
//!    `T_o - 1`; with [`Align::Current`] it belongs to the newest (ACT, LeRobot).
//! 3. Acting runs in batches of exactly [`VlaConfig::inference_batch`] rows, padded by repeating a row, and every row draws
//!    from its own noise: a decision does not depend on who else waits for one.
//! 4. Before an episode's `T_o`-th observation the first one is repeated.

mod actor;
mod perception;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use simloop_envs::{ActionChunk, ActionConvention, EnvId, ImageSpace, Observation};
use tch::{Device, Tensor};

use crate::chunk::{ChunkExecution, ChunkExecutor, Receding};
use crate::encoders::{StateConfig, VisionConfig};
use crate::fusion::FusionConfig;
use crate::heads::{Head, HeadConfig, HeadShape};
use crate::nn::{Params, Scope};
use crate::normalize::{Affine, NormMode, Normalizer, Stats};
use crate::text::{TextConfig, Tokenizer};
use crate::{
    ActMode, ActRequest, ImitationBatch, ImitationModel, Needs, NoiseStream, ObsBatch, Policy,
    PolicyError, PolicyStep,
};

pub use perception::Perception;

/// Which time step row 0 of a chunk belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    /// The newest observation's (ACT, LeRobot).
    #[default]
    Current,
    /// The oldest observation's (diffusion_policy).
    Window,
}

/// Actions as offsets from where the robot is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativeAction {
    /// Which number of `proprio` each number of the action is relative to, `[D]`.
    pub proprio: Vec<usize>,
    /// Raw units per normalised unit.
    pub scale: f64,
}

/// A policy's architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VlaConfig {
    /// `T_o`.
    pub n_obs_steps: usize,
    /// `T_p`.
    pub chunk_size: usize,
    /// Which step row 0 of a chunk belongs to.
    pub align: Align,
    /// How chunks are executed.
    pub execution: ChunkExecution,
    /// Rows of every batch when acting.
    pub inference_batch: usize,
    /// What scales `proprio`.
    pub proprio_norm: NormMode,
    /// What scales actions; not used with `relative`.
    pub action_norm: NormMode,
    /// Lowest and highest value of every number of `proprio`, for [`NormMode::Bounds`].
    pub proprio_bounds: Option<(f64, f64)>,
    /// Lowest and highest value of every number of an action, for [`NormMode::Bounds`].
    pub action_bounds: Option<(f64, f64)>,
    /// Actions as offsets from `proprio`.
    pub relative: Option<RelativeAction>,
    /// Images are cut to this side: at random when learning, in the middle when acting (diffusion_policy `crop_shape`).
    pub crop: Option<i64>,
    /// `proprio` to tokens.
    pub state: StateConfig,
    /// Images to tokens.
    pub vision: VisionConfig,
    /// Instruction to tokens.
    pub text: TextConfig,
    /// Tokens to one context.
    pub fusion: FusionConfig,
    /// Context to chunk.
    pub head: HeadConfig,
}

impl Default for VlaConfig {
    fn default() -> Self {
        Self {
            n_obs_steps: 2, // diffusion_policy, PushT
            chunk_size: 16,
            align: Align::Current,
            execution: ChunkExecution::default(),
            inference_batch: 8,
            proprio_norm: NormMode::MinMax,
            action_norm: NormMode::MinMax,
            proprio_bounds: None,
            action_bounds: None,
            relative: None,
            crop: None,
            state: StateConfig::default(),
            vision: VisionConfig::default(),
            text: TextConfig::default(),
            fusion: FusionConfig::default(),
            head: HeadConfig::default(),
        }
    }
}

/// What goes in and out of a policy, in its environment's terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyIo {
    /// Camera name to frame size.
    pub cameras: BTreeMap<String, ImageSpace>,
    /// One name per number of `proprio`.
    pub proprio: Vec<String>,
    /// One name per number of an action.
    pub action: Vec<String>,
    /// What an action means; `None` if the data did not say.
    pub convention: Option<ActionConvention>,
    /// Actions per second of the demonstrations, if known.
    pub control_hz: Option<f64>,
}

/// The normalisers saved with a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalizers {
    /// `[P]`.
    pub proprio: Normalizer,
    /// `[D]`.
    pub action: Normalizer,
}

impl Normalizers {
    /// The normalisers that `config` asks for, from statistics of the demonstrations it will learn from.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for [`NormMode::Bounds`] without bounds.
    pub fn fit(config: &VlaConfig, proprio: Stats, action: Stats) -> Result<Self, PolicyError> {
        let build = |what: &str, mode, stats: Stats, bounds: Option<(f64, f64)>| {
            let d = stats.mean.len();
            let (low, high) = match (mode, bounds) {
                (NormMode::Bounds, None) => {
                    return Err(PolicyError::Config {
                        detail: format!(
                            "scale {what} by its bounds: give `policy.{what}_bounds = [low, high]`"
                        ),
                    });
                }
                (_, bounds) => bounds.unwrap_or((0.0, 0.0)),
            };
            Ok(Normalizer::new(mode, stats, vec![low; d], vec![high; d]))
        };
        Ok(Self {
            proprio: build("proprio", config.proprio_norm, proprio, config.proprio_bounds)?,
            action: build("action", config.action_norm, action, config.action_bounds)?,
        })
    }
}

impl VlaConfig {
    /// Checks what the parts cannot check alone.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the numbers that do not fit.
    pub fn validate(&self, io: &PolicyIo) -> Result<(), PolicyError> {
        let fail = |detail: String| Err(PolicyError::Config { detail });
        let start = self.first_action();
        if self.n_obs_steps == 0 || self.inference_batch == 0 || start >= self.chunk_size {
            return fail(format!(
                "use n_obs_steps = {}, inference_batch = {}, chunk_size = {}: the first two must be at least 1, and a \
                 chunk must reach the present",
                self.n_obs_steps, self.inference_batch, self.chunk_size
            ));
        }
        self.execution.validate(self.chunk_size - start)?;
        if let Some(relative) = &self.relative
            && (relative.proprio.len() != io.action.len()
                || relative.proprio.iter().any(|&i| i >= io.proprio.len())
                || !relative.scale.is_finite()
                || relative.scale <= 0.0)
        {
            return fail(format!(
                "use relative actions {relative:?}: give one index below {} for each of {} numbers of an action, and a \
                 positive scale",
                io.proprio.len(),
                io.action.len()
            ));
        }
        if let Some(crop) = self.crop {
            for (name, size) in &io.cameras {
                if crop < 1 || crop > i64::from(size.height.min(size.width)) {
                    return fail(format!(
                        "crop `{name}` ({} x {}) to {crop} pixels: it must fit",
                        size.height, size.width
                    ));
                }
            }
        }
        Ok(())
    }

    /// The row of a chunk that is executed first.
    pub fn first_action(&self) -> usize {
        match self.align {
            Align::Current => 0,
            Align::Window => self.n_obs_steps.saturating_sub(1),
        }
    }
}

/// A neural policy.
pub struct VlaPolicy {
    name: String,
    config: VlaConfig,
    io: PolicyIo,
    normalizers: Normalizers,
    tokenizer: Option<Tokenizer>,
    params: Params,
    perception: Perception,
    head: Box<dyn Head>,
    action: Affine,
    histories: BTreeMap<EnvId, VecDeque<Observation>>,
    executor: ChunkExecutor,
}

impl VlaPolicy {
    /// A policy with initial weights that are a function of `seed` alone.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for parts that do not fit together.
    pub fn new(
        config: VlaConfig,
        io: PolicyIo,
        normalizers: Normalizers,
        device: Device,
        seed: u64,
    ) -> Result<Self, PolicyError> {
        Self::with_tokenizer(config, io, normalizers, None, device, seed)
    }

    /// As [`VlaPolicy::new`], for a policy that reads its instruction.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for parts that do not fit together.
    pub fn with_tokenizer(
        config: VlaConfig,
        io: PolicyIo,
        normalizers: Normalizers,
        tokenizer: Option<Tokenizer>,
        device: Device,
        seed: u64,
    ) -> Result<Self, PolicyError> {
        config.validate(&io)?;
        for (what, normalizer, expected) in [
            ("proprio", &normalizers.proprio, io.proprio.len()),
            ("action", &normalizers.action, io.action.len()),
        ] {
            normalizer.validate(what)?;
            if normalizer.len() != expected {
                return Err(PolicyError::Config {
                    detail: format!(
                        "use the normaliser of {what}: it has {} dimensions, the policy {expected}",
                        normalizer.len()
                    ),
                });
            }
        }
        let params = Params::new(device, seed);
        let root = params.root();
        let perception = Perception::new(&root, &config, &io, &normalizers, tokenizer.as_ref())?;
        let (t, d) = (config.chunk_size as i64, io.action.len() as i64);
        let head =
            config.head.build(&root.sub("head"), HeadShape::of(perception.fusion(), t, d))?;
        Ok(Self {
            name: "vla".to_owned(),
            action: normalizers.action.on(device),
            executor: ChunkExecutor::new(
                config.execution.clone(),
                config.chunk_size - config.first_action(),
            )?,
            histories: BTreeMap::new(),
            config,
            io,
            normalizers,
            tokenizer,
            params,
            perception,
            head,
        })
    }

    /// Its architecture.
    pub fn config(&self) -> &VlaConfig {
        &self.config
    }

    /// What goes in and out.
    pub fn io(&self) -> &PolicyIo {
        &self.io
    }

    /// Its normalisers.
    pub fn normalizers(&self) -> &Normalizers {
        &self.normalizers
    }

    /// What cuts its instruction into tokens, if it reads.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.params.device()
    }

    /// Eyes like its own, with new weights below `scope`, for a critic.
    ///
    /// # Errors
    /// [`PolicyError::Config`] as when the policy was built.
    pub fn new_perception(&self, scope: &Scope) -> Result<Perception, PolicyError> {
        let tokenizer = self.tokenizer.as_ref();
        Perception::new(scope, &self.config, &self.io, &self.normalizers, tokenizer)
    }

    /// Chunks `[B, T_p, D]` in raw units to the numbers that the head speaks.
    pub fn normalize_actions(&self, obs: &ObsBatch, actions: &Tensor) -> Tensor {
        match &self.config.relative {
            Some(relative) => (actions - origin(obs, relative)) / relative.scale,
            None => self.action.normalize(actions),
        }
    }

    /// The inverse of [`VlaPolicy::normalize_actions`].
    pub fn denormalize_actions(&self, obs: &ObsBatch, chunk: &Tensor) -> Tensor {
        match &self.config.relative {
            Some(relative) => chunk * relative.scale + origin(obs, relative),
            None => self.action.denormalize(chunk),
        }
    }

    /// Gives it a name for reports.
    pub fn set_name(&mut self, name: impl Into<String>) {
        self.name = name.into();
    }

    /// The cameras it looks through.
    pub fn cameras(&self) -> &[String] {
        self.perception.cameras()
    }

    /// Executes another number of actions per decision.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for more actions than a chunk holds.
    pub fn set_n_action_steps(&mut self, n: usize) -> Result<(), PolicyError> {
        let execution = ChunkExecution::Receding(Receding { n_action_steps: n });
        let config = VlaConfig { execution, ..self.config.clone() };
        config.validate(&self.io)?;
        let rows = config.chunk_size - config.first_action();
        self.executor = ChunkExecutor::new(config.execution.clone(), rows)?;
        self.config = config;
        Ok(())
    }

    /// What environment `env` showed last, oldest first, `T_o` observations.
    fn remember(&mut self, request: &ActRequest<'_>) -> Vec<Observation> {
        let keep = self.config.n_obs_steps;
        let history = self.histories.entry(request.env).or_default();
        for obs in request.recent {
            if history.len() == keep {
                history.pop_front();
            }
            history.push_back(obs.clone());
        }
        let missing = keep - history.len();
        let first = history.front().unwrap_or(request.obs);
        std::iter::repeat_n(first, missing).chain(history.iter()).cloned().collect()
    }

    /// Rows `first_action ..` of each chunk, `[T_p - first, D]`.
    fn chunks(
        &self,
        windows: &[Vec<Observation>],
        seeds: &[u64],
        mode: ActMode,
    ) -> Result<Vec<ndarray::Array2<f32>>, PolicyError> {
        let (t, d) = (self.config.chunk_size, self.io.action.len());
        let first = self.config.first_action();
        let mut chunks = Vec::with_capacity(windows.len());
        for (windows, seeds) in windows
            .chunks(self.config.inference_batch)
            .zip(seeds.chunks(self.config.inference_batch))
        {
            let pad = self.config.inference_batch - windows.len();
            let padded: Vec<_> =
                windows.iter().chain(std::iter::repeat_n(&windows[0], pad)).cloned().collect();
            let mut noise: Vec<_> = seeds
                .iter()
                .chain(std::iter::repeat_n(&seeds[0], pad))
                .map(|&seed| NoiseStream::new(seed))
                .collect();
            let obs = ObsBatch::stack(&padded, self.cameras(), self.params.device())?;
            let out = self.predict(&obs, &mut noise, mode)?.to_device(Device::Cpu).contiguous();
            let mut values = vec![0f32; self.config.inference_batch * t * d];
            let n = values.len();
            out.copy_data(&mut values, n);
            if values[..windows.len() * t * d].iter().any(|v| !v.is_finite()) {
                return Err(PolicyError::NonFinite { tensor: "chunk".to_owned() });
            }
            for row in values.chunks(t * d).take(windows.len()) {
                let chunk = ndarray::ArrayView2::from_shape((t, d), row)
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                chunks.push(chunk.slice(ndarray::s![first.., ..]).to_owned());
            }
        }
        Ok(chunks)
    }
}

/// `[B, 1, D]`: where the robot is, in the numbers that actions are relative to.
fn origin(obs: &ObsBatch, relative: &RelativeAction) -> Tensor {
    let index: Vec<i64> = relative.proprio.iter().map(|&i| i as i64).collect();
    let index = Tensor::from_slice(&index).to_device(obs.proprio.device());
    obs.proprio.narrow(1, -1, 1).index_select(2, &index)
}

impl Policy for VlaPolicy {
    fn name(&self) -> &str {
        &self.name
    }

    fn needs(&self) -> Needs {
        Needs {
            images: !self.cameras().is_empty(),
            privileged: false,
            n_obs_steps: self.config.n_obs_steps,
        }
    }

    fn convention(&self) -> Option<&ActionConvention> {
        self.io.convention.as_ref()
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        let windows: Vec<_> = requests.iter().map(|request| self.remember(request)).collect();
        let seeds: Vec<_> = requests.iter().map(|request| request.noise_seed).collect();
        let chunks = self.chunks(&windows, &seeds, mode)?;
        requests
            .iter()
            .zip(chunks)
            .map(|(request, chunk)| {
                let actions = self.executor.execute(request.env, chunk.view())?;
                let chunk = ActionChunk::new(actions)
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                Ok(PolicyStep { chunk, stats: None })
            })
            .collect()
    }

    fn reset(&mut self, envs: &[EnvId]) {
        for env in envs {
            self.histories.remove(env);
        }
        self.executor.reset(envs);
    }
}

impl ImitationModel for VlaPolicy {
    fn imitation_loss(
        &self,
        batch: &ImitationBatch,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let size =
            [batch.obs.len() as i64, self.config.chunk_size as i64, self.io.action.len() as i64];
        if batch.actions.size() != size || batch.valid.size() != size[..2] {
            return Err(PolicyError::Config {
                detail: format!(
                    "learn from actions {:?} with validity {:?}: the policy needs {size:?}",
                    batch.actions.size(),
                    batch.valid.size()
                ),
            });
        }
        let context = self.perception.context(&batch.obs, Some(noise))?;
        let actions = self.normalize_actions(&batch.obs, &batch.actions);
        self.head.loss(&context, &actions, &batch.valid, noise)
    }

    fn predict(
        &self,
        obs: &ObsBatch,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        let context = self.perception.context(obs, None)?;
        let chunk = self.head.sample(&context, noise, mode)?;
        Ok(self.denormalize_actions(obs, &chunk))
    }

    fn params(&self) -> &Params {
        &self.params
    }
}

#[cfg(test)]
mod tests;
