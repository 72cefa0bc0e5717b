//! Acting: many observations in, one chunk for each out.

use simloop_envs::{ActionChunk, ActionConvention, EnvId, FrameRequest, Info, Observation};

use crate::PolicyError;

/// One environment that waits for a decision.
#[derive(Clone, Copy, Debug)]
pub struct ActRequest<'a> {
    /// Which environment; state kept between decisions belongs to it.
    pub env: EnvId,
    /// What it shows.
    pub obs: &'a Observation,
    /// What it showed since the previous decision, oldest first, ending with `obs`: `[obs]` after a reset, otherwise the
    /// last [`Needs::n_obs_steps`] of the executed chunk's observations, or all of a shorter chunk's. A policy that sees
    /// further back keeps the rest itself.
    pub recent: &'a [Observation],
    /// What else it says; only scripted experts may look.
    pub info: &'a Info,
    /// The seed of all noise in this decision: a function of (run, task, trial, decision), never of batch order.
    pub noise_seed: u64,
}

/// Whether a policy explores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActMode {
    /// The most likely action: evaluation.
    Deterministic,
    /// A sample: training rollouts.
    Stochastic,
}

/// What an on-policy learner must remember of a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActStats {
    /// Log-density of the chunk, nats, summed over `T_a` and `D`.
    pub log_prob: f32,
    /// The critic's estimate of the return from here.
    pub value: f32,
}

/// One decision.
#[derive(Clone, Debug)]
pub struct PolicyStep {
    /// What to execute, `[T_a, D]`.
    pub chunk: ActionChunk,
    /// For learners; `None` from policies that do not learn.
    pub stats: Option<ActStats>,
}

/// What a policy wants to be shown. Nothing that is not asked for is rendered or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Camera images.
    pub images: bool,
    /// The simulator's true state.
    pub privileged: bool,
    /// `T_o`: how many of the newest observations it looks at, at least 1.
    pub n_obs_steps: usize,
}

impl Default for Needs {
    /// The newest observation, without images and without the true state.
    fn default() -> Self {
        Self { images: false, privileged: false, n_obs_steps: 1 }
    }
}

impl Needs {
    /// The frames of a chunk that this policy will look at.
    pub fn frames(&self) -> FrameRequest {
        match (self.images, self.n_obs_steps) {
            (false, _) => FrameRequest::None,
            (true, 0 | 1) => FrameRequest::Last,
            (true, n) => FrameRequest::LastN(n),
        }
    }
}

/// Anything that acts: scripted, remote or neural. Lives on one thread; needs no `Send`.
pub trait Policy {
    /// A short name for reports.
    fn name(&self) -> &str;

    /// What it must be shown.
    fn needs(&self) -> Needs;

    /// The convention of its actions; `None` if it adapts to any.
    fn convention(&self) -> Option<&ActionConvention> {
        None
    }

    /// Decides for each request, in their order. The decision for one environment must not depend on which others are in
    /// the batch.
    ///
    /// # Errors
    /// [`PolicyError`] ends the run: a policy that cannot act is not a failed episode.
    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError>;

    /// New episodes begin in these environments: forget what was kept for them.
    fn reset(&mut self, _envs: &[EnvId]) {}
}
