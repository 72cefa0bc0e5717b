//! What a user may choose of a PushT environment.

use serde::{Deserialize, Serialize};

use super::goals::PushtGoals;

/// What a policy sees, by gym-pusht's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushtObs {
    /// Five numbers: agent, block origin, block angle in `[0, 2 pi)`.
    #[default]
    State,
    /// Eighteen numbers: the block's eight keypoints, then the agent.
    EnvironmentStateAgentPos,
    /// An image.
    Pixels,
    /// An image and the agent's position.
    PixelsAgentPos,
}

impl PushtObs {
    /// The name in configs and environment ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::EnvironmentStateAgentPos => "environment_state_agent_pos",
            Self::Pixels => "pixels",
            Self::PixelsAgentPos => "pixels_agent_pos",
        }
    }

    /// Whether the observation holds an image.
    pub fn has_image(self) -> bool {
        matches!(self, Self::Pixels | Self::PixelsAgentPos)
    }
}

/// Whose rule turns a seed into an initial state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushtSeeding {
    /// gym-pusht 0.1.8. Resetting without a seed continues its stream.
    #[default]
    GymPusht,
    /// The original benchmark, whose published test seeds start at 100,000. Resetting without a seed repeats the state.
    DiffusionPolicy,
}

/// Settings of a [`PushtEnv`](super::PushtEnv).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushtConfig {
    /// What a policy sees.
    pub obs: PushtObs,
    /// Which targets there are.
    pub goals: PushtGoals,
    /// Whose seeds.
    pub seeding: PushtSeeding,
    /// Side of the observed image, px.
    pub image_size: u32,
    /// Side of the frames for people, px.
    pub render_size: u32,
    /// Whether [`Info`](crate::Info) holds the true state (for scripted experts; costs an allocation per step).
    pub privileged: bool,
}

impl Default for PushtConfig {
    fn default() -> Self {
        Self {
            obs: PushtObs::State,
            goals: PushtGoals::One,
            seeding: PushtSeeding::GymPusht,
            image_size: 96,   // gym-pusht `observation_width`
            render_size: 512, // gym-pusht's canvas before it is scaled
            privileged: false,
        }
    }
}
