//! Episodes as learners see them.

use simloop_envs::{EnvId, EpisodeEnd, Observation, ResetRequest};

/// One decision and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// What was seen, `T_o` observations, oldest first.
    pub window: Vec<Observation>,
    /// What was drawn, `[L]`; see [`Decision::latent`](simloop_policies::Decision::latent).
    pub latent: Vec<f32>,
    /// Log-density of each of its `K` terms when it was drawn, nats.
    pub log_prob: Vec<f32>,
    /// The reward of the executed steps, discounted within the chunk: `Σ γ^k r_k`.
    pub reward: f32,
    /// How many actions of the chunk were executed, `1..=T_a`. The next value counts `γ^steps`.
    pub steps: u32,
}

/// One episode, or the part of it that a budget allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// Where it ran.
    pub env: EnvId,
    /// Trajectories of one group began in the same state (GRPO).
    pub group: u64,
    /// How its episode began; the same request begins the same episode.
    pub start: ResetRequest,
    /// Its decisions in order; never empty.
    pub transitions: Vec<Transition>,
    /// What followed the last decision, `T_o` observations: the true successor, also where the episode ended.
    pub after: Vec<Observation>,
    /// Why it stopped.
    pub end: EpisodeEnd,
    /// The return of the whole episode so far, discounted per step from its first step.
    pub ret: f32,
    /// Steps of the whole episode so far.
    pub episode_steps: u32,
    /// Whether the task was solved.
    pub success: bool,
}

impl Trajectory {
    /// Environment steps in it.
    pub fn steps(&self) -> u64 {
        self.transitions.iter().map(|t| u64::from(t.steps)).sum()
    }

    /// Whether the task itself ended with its last decision, so that nothing follows.
    pub fn terminated(&self) -> bool {
        self.end == EpisodeEnd::Terminated
    }
}
