//! Episodes as learners see them.

use simloop_envs::{ActionChunk, EnvId, EpisodeEnd, Info, Observation, ResetRequest};
use simloop_policies::ActStats;

/// One decision and what came of it.
#[derive(Clone, Debug)]
pub struct Transition {
    /// What was seen.
    pub obs: Observation,
    /// What was decided, `[T_a, D]`.
    pub chunk: ActionChunk,
    /// The reward of the executed steps, discounted within the chunk: `Σ γ^k r_k`.
    pub reward: f32,
    /// How many actions of the chunk were executed, `1..=T_a`. The next value counts `γ^steps`.
    pub steps: u32,
    /// The task ended within the chunk: no bootstrap.
    pub terminated: bool,
    /// A limit ended the episode within the chunk: bootstrap from `next_obs`.
    pub truncated: bool,
    /// The true successor of the last executed action.
    pub next_obs: Observation,
    /// What the policy said of its decision.
    pub stats: Option<ActStats>,
    /// What the environment said after the last executed action.
    pub info: Info,
}

/// One episode, or the part of it that a budget allowed.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// Where it ran.
    pub env: EnvId,
    /// How it began; the same request begins the same episode.
    pub start: ResetRequest,
    /// Its decisions in order.
    pub transitions: Vec<Transition>,
    /// Why it stopped. One that ended in a fault is dropped before learning.
    pub end: EpisodeEnd,
}
