//! What a policy is made of, what goes in and out of it, and what scales both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use simloop_envs::{ActionConvention, ImageSpace};

use super::FramesConfig;
use crate::PolicyError;
use crate::chunk::ChunkExecution;
use crate::encoders::{StateConfig, VisionConfig};
use crate::fusion::FusionConfig;
use crate::heads::HeadConfig;
use crate::normalize::{NormMode, Normalizer, Stats};
use crate::text::TextConfig;

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
    /// Goals in the plane, of which the instruction names one; then the policy sees and acts in that goal's frame, and
    /// the instruction's tokens go nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<FramesConfig>,
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
            frames: None,
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
        if let Some(frames) = &self.frames {
            let (reads, looks) = (self.text != TextConfig::None, self.vision != VisionConfig::None);
            frames.validate(io, reads, looks)?;
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
