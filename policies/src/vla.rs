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
//! 1. Everything between [`Normalizers`] is in numbers of order one; chunks leave in the environment's units.
//! 2. With [`Align::Window`] row 0 of a chunk belongs to the oldest observation (diffusion_policy), so acting starts at row
//!    `T_o - 1`; with [`Align::Current`] it belongs to the newest (ACT, LeRobot).
//! 3. Acting runs in batches of exactly [`VlaConfig::inference_batch`] rows, padded by repeating a row, and every row draws
//!    from its own noise: a decision does not depend on who else waits for one.
//! 4. Before an episode's `T_o`-th observation the first one is repeated.

mod acting;
mod actor;
mod config;
mod frames;
mod perception;
mod pretrained;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use simloop_envs::{EnvId, Observation};
use tch::{Device, Tensor};

use self::frames::Frames;
use crate::chunk::{ChunkExecution, ChunkExecutor, Receding};
use crate::heads::{Head, HeadShape};
use crate::nn::{Params, Scope};
use crate::normalize::Affine;
use crate::text::Tokenizer;
use crate::{ActMode, ImitationBatch, ImitationModel, NoiseStream, ObsBatch, PolicyError};

pub use config::{Align, Normalizers, PolicyIo, RelativeAction, VlaConfig};
pub use frames::FramesConfig;
pub use perception::Perception;

/// A neural policy.
pub struct VlaPolicy {
    name: String,
    config: VlaConfig,
    io: PolicyIo,
    normalizers: Normalizers,
    tokenizer: Option<Tokenizer>,
    params: Params,
    perception: Perception,
    frames: Option<Frames>,
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
        let frames = match &config.frames {
            Some(frames) => config
                .text
                .build(&root.sub("text"), tokenizer.as_ref())?
                .map(|text| Frames::new(&root.sub("frames"), frames, text)),
            None => None,
        };
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
            frames,
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

    /// `[B, T_p]`.
    fn losses(
        &self,
        batch: &ImitationBatch,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let context = self.perception.context(&batch.obs, Some(noise))?;
        let actions = self.normalize_actions(&batch.obs, &batch.actions);
        self.head.loss(&context, &actions, &batch.valid, noise)
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
}

/// `[B, 1, D]`: where the robot is, in the numbers that actions are relative to.
fn origin(obs: &ObsBatch, relative: &RelativeAction) -> Tensor {
    let index: Vec<i64> = relative.proprio.iter().map(|&i| i as i64).collect();
    let index = Tensor::from_slice(&index).to_device(obs.proprio.device());
    obs.proprio.narrow(1, -1, 1).index_select(2, &index)
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
        match &self.frames {
            Some(frames) => {
                let losses = self.losses(&frames.everywhere(batch), noise)?;
                frames.mean(&losses, &batch.obs)
            }
            None => self.losses(batch, noise),
        }
    }

    fn predict(
        &self,
        obs: &ObsBatch,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        let sample = |obs: &ObsBatch, noise: &mut [NoiseStream]| {
            let context = self.perception.context(obs, None)?;
            let chunk = self.head.sample(&context, noise, mode)?;
            Ok(self.denormalize_actions(obs, &chunk))
        };
        match &self.frames {
            Some(frames) => {
                let goal = frames.chosen(obs)?;
                let chunk = sample(&frames.enter_obs(obs, &goal), noise)?;
                Ok(frames.leave(&chunk, &goal))
            }
            None => sample(obs, noise),
        }
    }

    fn params(&self) -> &Params {
        &self.params
    }
}
