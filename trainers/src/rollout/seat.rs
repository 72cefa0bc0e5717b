//! One environment's place in a rollout.

use std::collections::VecDeque;

use ndarray::Array2;
use simloop_algos::{Trajectory, Transition};
use simloop_envs::{
    ActionChunk, ChunkStep, EnvError, EnvId, EpisodeEnd, FrameRequest, Info, Observation, Reply,
    Request,
};
use simloop_policies::Decision;

use super::{Job, RolloutOptions, SeatState, Seen};
use crate::TrainerError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between episodes.
    Idle,
    /// An episode of an earlier process, to be replayed.
    Loaded,
    Resetting,
    /// Executing chunk `i` again.
    Replaying(usize),
    Waiting,
    Stepping,
}

/// What came of a reply.
pub(super) enum Outcome {
    Nothing,
    Send(Request),
    /// The request that begins the retry; none if the episode is given up.
    Fault {
        retry: Option<Request>,
    },
    Ended((u64, u64), Trajectory),
}

pub(super) struct Seat {
    pub(super) env: EnvId,
    /// Episodes begun.
    pub(super) begun: u64,
    /// Decisions left in this rollout.
    pub(super) budget: usize,
    phase: Phase,
    job: Option<Job>,
    attempts: u32,
    /// What was executed in this episode, with how many actions of each.
    chunks: Vec<ActionChunk>,
    window: VecDeque<Observation>,
    info: Info,
    potential: f32,
    ret: f32,
    discount: f32,
    steps: u32,
    success: bool,
    /// The decision under way.
    pending: Option<Transition>,
    pending_chunk: Option<ActionChunk>,
    /// Pieces of this episode that earlier rollouts took.
    pieces: u64,
    piece: Vec<Transition>,
}

impl Seat {
    pub(super) fn new(env: EnvId) -> Self {
        Self {
            env,
            begun: 0,
            budget: 0,
            phase: Phase::Idle,
            job: None,
            attempts: 0,
            chunks: Vec::new(),
            window: VecDeque::new(),
            info: Info::default(),
            potential: 0.0,
            ret: 0.0,
            discount: 1.0,
            steps: 0,
            success: false,
            pending: None,
            pending_chunk: None,
            pieces: 0,
            piece: Vec::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    pub(super) fn must_replay(&self) -> bool {
        self.phase == Phase::Loaded
    }

    pub(super) fn wants_decision(&self) -> bool {
        self.phase == Phase::Waiting && self.budget > 0
    }

    /// Begins the next episode.
    pub(super) fn begin(&mut self, job: Job) -> Request {
        self.begun += 1;
        self.chunks.clear();
        self.piece.clear();
        self.pieces = 0;
        self.attempts = 0;
        self.pending = None;
        self.pending_chunk = None;
        self.job = Some(job);
        self.restart()
    }

    /// Begins the episode of an earlier process again, to replay it.
    pub(super) fn resume(&mut self, job: Job) -> Request {
        self.job = Some(job);
        self.restart()
    }

    fn restart(&mut self) -> Request {
        self.phase = Phase::Resetting;
        let request = self.job.as_ref().map(|job| job.request.clone()).unwrap_or_default();
        Request::Reset(request)
    }

    /// Forgets the episode under way.
    pub(super) fn vacate(&mut self) {
        self.phase = Phase::Idle;
        self.piece.clear();
        self.pending = None;
        self.pending_chunk = None;
    }

    pub(super) fn seen(&self) -> Option<Seen<'_>> {
        if !self.wants_decision() {
            return None;
        }
        let job = self.job.as_ref()?;
        let decision = self.chunks.len() as u32;
        let (window, rest) = self.window.as_slices();
        debug_assert!(rest.is_empty(), "made contiguous after every step");
        let seed = job.noise.index(u64::from(decision)).seed();
        Some(Seen { env: self.env, job, decision, window, info: &self.info, seed })
    }

    pub(super) fn act(&mut self, decision: Decision, frames: FrameRequest) -> Request {
        self.budget -= 1;
        self.pending = Some(Transition {
            window: self.window.iter().cloned().collect(),
            latent: decision.latent,
            log_prob: decision.log_prob,
            reward: 0.0,
            steps: 0,
        });
        self.pending_chunk = Some(decision.chunk.clone());
        self.phase = Phase::Stepping;
        Request::Step(decision.chunk, frames)
    }

    pub(super) fn receive(
        &mut self,
        reply: Result<Reply, EnvError>,
        options: &RolloutOptions,
    ) -> Result<Outcome, TrainerError> {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return self.fault(&error, options),
        };
        match (self.phase, reply) {
            (Phase::Resetting, Reply::Reset { obs, info, .. }) => {
                self.window = std::iter::repeat_n(obs, options.n_obs_steps.max(1)).collect();
                self.window.make_contiguous();
                self.potential = options.reward.potential(&info)?;
                self.info = info;
                (self.ret, self.discount, self.steps, self.success) = (0.0, 1.0, 0, false);
                Ok(self.proceed(0, options.frames))
            }
            (Phase::Replaying(i), Reply::Step(outcome)) => {
                let same = outcome.steps.len() == self.chunks[i].len() && !outcome.last().done();
                self.advance(&outcome, options)?;
                if !same {
                    tracing::warn!(env = self.env.0, "an episode did not repeat and is given up");
                    self.give_up();
                    return Ok(Outcome::Fault { retry: None });
                }
                Ok(self.proceed(i + 1, options.frames))
            }
            (Phase::Stepping, Reply::Step(outcome)) => self.stepped(&outcome, options),
            _ => {
                Err(EnvError::Disconnected { detail: "a reply to another request".to_owned() }
                    .into())
            }
        }
    }

    /// Replays chunk `i`, or goes on where the episode was.
    fn proceed(&mut self, i: usize, frames: FrameRequest) -> Outcome {
        if let Some(chunk) = self.chunks.get(i) {
            self.phase = Phase::Replaying(i);
            return Outcome::Send(Request::Step(chunk.clone(), frames));
        }
        if let Some(chunk) = &self.pending_chunk {
            self.phase = Phase::Stepping;
            return Outcome::Send(Request::Step(chunk.clone(), frames));
        }
        self.phase = Phase::Waiting;
        Outcome::Nothing
    }

    /// Takes in what a chunk did; returns its reward, discounted from its first step.
    fn advance(
        &mut self,
        outcome: &ChunkStep,
        options: &RolloutOptions,
    ) -> Result<f32, TrainerError> {
        let (mut reward, mut within) = (0.0, 1.0);
        for step in &outcome.steps {
            let potential = options.reward.potential(&step.info)?;
            let r = options.reward.plain(step) + options.gamma * potential - self.potential;
            self.potential = potential;
            reward += within * r;
            within *= options.gamma;
            self.ret += self.discount * r;
            self.discount *= options.gamma;
            self.steps += 1;
            self.success |= step.info.success == Some(true);
            if self.window.len() == options.n_obs_steps.max(1) {
                self.window.pop_front();
            }
            self.window.push_back(step.obs.clone());
        }
        self.window.make_contiguous();
        self.info = outcome.last().info.clone();
        Ok(reward)
    }

    fn stepped(
        &mut self,
        outcome: &ChunkStep,
        options: &RolloutOptions,
    ) -> Result<Outcome, TrainerError> {
        let reward = self.advance(outcome, options)?;
        let steps = outcome.steps.len();
        if let (Some(mut transition), Some(chunk)) =
            (self.pending.take(), self.pending_chunk.take())
        {
            transition.reward = reward;
            transition.steps = steps as u32;
            self.piece.push(transition);
            self.chunks.push(chunk.truncated(steps));
        }
        let last = outcome.last();
        if !last.done() {
            self.phase = Phase::Waiting;
            return Ok(Outcome::Nothing);
        }
        self.phase = Phase::Idle;
        let end = if last.terminated { EpisodeEnd::Terminated } else { EpisodeEnd::Truncated };
        Ok(match self.take(end) {
            Some((key, trajectory)) => Outcome::Ended(key, trajectory),
            None => Outcome::Nothing,
        })
    }

    /// The piece of an episode that goes on in the next rollout.
    pub(super) fn cut(&mut self) -> Option<((u64, u64), Trajectory)> {
        if self.phase == Phase::Waiting { self.take(EpisodeEnd::Cut) } else { None }
    }

    fn take(&mut self, end: EpisodeEnd) -> Option<((u64, u64), Trajectory)> {
        let job = self.job.as_ref()?;
        if self.piece.is_empty() {
            return None;
        }
        let key = (job.number, self.pieces);
        self.pieces += 1;
        let trajectory = Trajectory {
            env: self.env,
            group: job.group,
            start: job.request.clone(),
            transitions: std::mem::take(&mut self.piece),
            after: self.window.iter().cloned().collect(),
            end,
            ret: self.ret,
            episode_steps: self.steps,
            success: self.success,
        };
        Some((key, trajectory))
    }

    fn fault(
        &mut self,
        error: &EnvError,
        options: &RolloutOptions,
    ) -> Result<Outcome, TrainerError> {
        if error.is_permanent() || matches!(error, EnvError::InvalidAction { .. }) {
            return Err(error.clone().into());
        }
        self.attempts += 1;
        tracing::warn!(
            env = self.env.0,
            class = error.class(),
            attempt = self.attempts,
            "an environment met a fault while rolling out"
        );
        if self.attempts >= options.max_attempts {
            self.give_up();
            return Ok(Outcome::Fault { retry: None });
        }
        Ok(Outcome::Fault { retry: Some(self.restart()) })
    }

    /// Nothing of this episode is learned from; its decisions are made again in the next one.
    fn give_up(&mut self) {
        let under_way = usize::from(self.pending.is_some());
        self.budget = self.budget.saturating_add(self.piece.len() + under_way);
        self.vacate();
    }

    pub(super) fn state(&self) -> SeatState {
        let under_way = matches!(self.phase, Phase::Waiting | Phase::Loaded);
        let chunks = under_way.then(|| {
            self.chunks.iter().map(|chunk| chunk.actions().map(|a| a.to_vec()).collect()).collect()
        });
        SeatState { begun: self.begun, chunks }
    }

    pub(super) fn load(&mut self, state: &SeatState) -> Result<(), TrainerError> {
        *self = Self { begun: state.begun, ..Self::new(self.env) };
        let Some(chunks) = &state.chunks else { return Ok(()) };
        for rows in chunks {
            let width = rows.first().map_or(0, Vec::len);
            let flat: Vec<f32> = rows.iter().flatten().copied().collect();
            let actions = Array2::from_shape_vec((rows.len(), width), flat)
                .map_err(|e| TrainerError::config(format!("replay an episode: {e}")))?;
            self.chunks.push(ActionChunk::new(actions)?);
        }
        self.phase = Phase::Loaded;
        Ok(())
    }
}
