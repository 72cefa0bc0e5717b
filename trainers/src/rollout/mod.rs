//! Rollouts for learning: many environments, one policy that decides in batches.
//!
//! # Details
//! 1. What an episode does is a function of its [`Job`] and of the policies that acted in it: all noise of a decision is
//!    keyed by (job, decision). Which environment runs it, on which thread, and who else was in the batch decide nothing.
//! 2. While the policy decides for those who wait, the others step: with twice as many environments as a batch has rows,
//!    neither side waits long (double buffering). Queues are bounded by the number of environments.
//! 3. A fault does not lose an episode: a fresh environment is reset by the same request and the actions so far are
//!    executed again, which leads to the same state in a simulator worth the name. Where it does not, or after
//!    [`RolloutOptions::max_attempts`] faults, the episode is given up: nothing of it is learned from, and it is counted.
//! 4. The same replay is how a run resumes in the middle of episodes: a checkpoint holds each environment's job and
//!    actions, not its state.

mod reward;
mod seat;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use simloop_algos::Trajectory;
use simloop_envs::{
    ActionChunk, BoxSpace, EnvId, FrameRequest, Info, Observation, Request, ResetRequest, SeedTree,
    VecEnv,
};
use simloop_policies::Decision;

pub use reward::RewardConfig;

use crate::TrainerError;
use crate::cpu::TorchThreads;
use crate::heartbeat::Heartbeat;
use crate::stop::StopFlag;
use seat::{Outcome, Seat};

/// An episode to be rolled out.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its number; trajectories come back in this order.
    pub number: u64,
    /// Episodes of one group begin in the same state.
    pub group: u64,
    /// How to begin it.
    pub request: ResetRequest,
    /// The root of its decisions' noise.
    pub noise: SeedTree,
}

/// An environment that waits for a decision.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Which environment.
    pub env: EnvId,
    /// The episode.
    pub job: &'a Job,
    /// The number of this decision in its episode; 0 begins one.
    pub decision: u32,
    /// What was seen, `T_o` observations, oldest first.
    pub window: &'a [Observation],
    /// What else is known; for experts.
    pub info: &'a Info,
    /// The seed of this decision's noise.
    pub seed: u64,
}

/// Decides for whoever waits.
pub trait Decider {
    /// One decision per environment, in order. It must not depend on who else is in the batch.
    ///
    /// # Errors
    /// What ends the run.
    fn decide(&mut self, seen: &[Seen<'_>]) -> Result<Vec<Decision>, TrainerError>;

    /// How many it likes to decide for at once.
    fn batch(&self) -> usize;
}

/// How to roll out.
#[derive(Clone, Debug)]
pub struct RolloutOptions {
    /// `T_o`.
    pub n_obs_steps: usize,
    /// Which observations carry images.
    pub frames: FrameRequest,
    /// Discount per environment step.
    pub gamma: f32,
    /// What is rewarded.
    pub reward: RewardConfig,
    /// Starts per episode before it is given up.
    pub max_attempts: u32,
    /// What is executed stays within this space; what was drawn is learned from as it was drawn. None executes all.
    pub clip: Option<BoxSpace>,
}

/// What to do in one go.
pub enum Plan<'a> {
    /// So many decisions in each environment, which goes from episode to episode; the jobs of environment `i` are
    /// `next(i, 0)`, `next(i, 1)`, …. Episodes go on in the next call.
    Decisions {
        /// Per environment.
        each: usize,
        /// The job of an environment's `k`-th episode.
        next: &'a dyn Fn(EnvId, u64) -> Job,
    },
    /// Whole episodes, each once.
    Episodes(VecDeque<Job>),
}

/// What was rolled out, and what it took.
#[derive(Debug, Default)]
pub struct Rollout {
    /// In the order of environments (and then time), or of jobs.
    pub trajectories: Vec<Trajectory>,
    /// Environment steps.
    pub steps: u64,
    /// Episodes that ended, without the lost ones: return, steps, success.
    pub episodes: Vec<Ended>,
    /// Faults met.
    pub faults: u64,
    /// Episodes given up.
    pub lost: u64,
    /// Time spent deciding.
    pub deciding: Duration,
    /// Time spent waiting for environments.
    pub waiting: Duration,
    /// Whether it was stopped before it was done: nothing of it may be learned from.
    pub stopped: bool,
}

/// An episode that ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// Its discounted return.
    pub ret: f32,
    /// Its steps.
    pub steps: u32,
    /// Whether it solved its task.
    pub success: bool,
}

/// Where every environment stands, in the middle of episodes; see the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutState {
    /// One per environment.
    pub seats: Vec<SeatState>,
}

/// Where one environment stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeatState {
    /// How many episodes were begun.
    pub begun: u64,
    /// The chunks executed in the one under way, `[chunk][action][D]`; none between episodes.
    pub chunks: Option<Vec<Vec<Vec<f32>>>>,
}

/// Environments that roll out.
pub struct Rollouts {
    vec: Box<dyn VecEnv>,
    seats: Vec<Seat>,
    options: RolloutOptions,
    torch_threads: Option<i32>,
}

impl Rollouts {
    /// In the environments of `vec`.
    pub fn new(vec: Box<dyn VecEnv>, options: RolloutOptions) -> Self {
        let seats = (0..vec.num_envs()).map(|i| Seat::new(EnvId(i))).collect();
        Self { vec, seats, options, torch_threads: None }
    }

    /// Computes on so many threads of libtorch while environments act; `None` leaves them as they are.
    #[must_use]
    pub fn with_torch_threads(mut self, threads: Option<i32>) -> Self {
        self.torch_threads = threads;
        self
    }

    /// N.
    pub fn num_envs(&self) -> usize {
        self.seats.len()
    }

    /// Where every environment stands.
    pub fn state(&self) -> RolloutState {
        RolloutState { seats: self.seats.iter().map(Seat::state).collect() }
    }

    /// Goes on from a state at the next [`Plan::Decisions`].
    ///
    /// # Errors
    /// [`TrainerError::Config`] for a state of another number of environments.
    pub fn load_state(&mut self, state: &RolloutState) -> Result<(), TrainerError> {
        if state.seats.len() != self.seats.len() {
            return Err(TrainerError::config(format!(
                "go on with {} environments: the checkpoint has {}",
                self.seats.len(),
                state.seats.len()
            )));
        }
        for (seat, state) in self.seats.iter_mut().zip(&state.seats) {
            seat.load(state)?;
        }
        Ok(())
    }

    /// Carries out `plan` by `decider`.
    ///
    /// # Errors
    /// What no retry can mend.
    pub fn collect(
        &mut self,
        decider: &mut dyn Decider,
        plan: Plan<'_>,
        stop: &StopFlag,
    ) -> Result<Rollout, TrainerError> {
        let _threads = TorchThreads::hold(self.torch_threads);
        let (each, next, mut queue) = match plan {
            Plan::Decisions { each, next } => (each, Some(next), VecDeque::new()),
            Plan::Episodes(jobs) => {
                self.seats.iter_mut().for_each(Seat::vacate);
                (usize::MAX, None, jobs)
            }
        };
        for seat in &mut self.seats {
            seat.budget = each;
        }
        let mut heart = match next {
            Some(_) => Heartbeat::new("decisions made", each * self.seats.len()),
            None => Heartbeat::new("episodes acted", queue.len()),
        };
        let batch = decider.batch().clamp(1, self.seats.len().max(1));
        let mut rollout = Rollout::default();
        let mut done: Vec<((u64, u64), Trajectory)> = Vec::new();
        loop {
            let mut requests: Vec<(EnvId, Request)> = Vec::new();
            if !stop.is_set() {
                for seat in &mut self.seats {
                    if seat.is_idle() && seat.budget > 0 {
                        let job = match next {
                            Some(next) => Some(next(seat.env, seat.begun)),
                            None => queue.pop_front(),
                        };
                        if let Some(job) = job {
                            requests.push((seat.env, seat.begin(job)));
                        }
                    } else if let (true, Some(next)) = (seat.must_replay(), next) {
                        let job = next(seat.env, seat.begun - 1);
                        requests.push((seat.env, seat.resume(job)));
                    }
                }
                let waiting = self.seats.iter().filter(|s| s.wants_decision()).count();
                let others = self.vec.in_flight() + requests.len();
                if waiting >= batch || (waiting > 0 && others == 0) {
                    let started = Instant::now();
                    self.decide(decider, &mut requests)?;
                    rollout.deciding += started.elapsed();
                }
            }
            self.vec.send(requests)?;
            let in_flight = self.vec.in_flight();
            if in_flight == 0 {
                break;
            }
            let waiting = self.seats.iter().filter(|s| s.wants_decision()).count();
            let started = Instant::now();
            let replies = self.vec.recv(batch.saturating_sub(waiting).clamp(1, in_flight));
            rollout.waiting += started.elapsed();
            let mut more = Vec::new();
            for (id, reply) in replies {
                let seat = &mut self.seats[id.0];
                match seat.receive(reply, &self.options)? {
                    Outcome::Nothing => {}
                    Outcome::Send(request) => more.push((id, request)),
                    Outcome::Fault { retry } => {
                        rollout.faults += 1;
                        match retry {
                            Some(request) if !stop.is_set() => more.push((id, request)),
                            Some(_) => {}
                            None => rollout.lost += 1,
                        }
                    }
                    Outcome::Ended(key, trajectory) => {
                        rollout.episodes.push(Ended {
                            ret: trajectory.ret,
                            steps: trajectory.episode_steps,
                            success: trajectory.success,
                        });
                        done.push((key, trajectory));
                    }
                }
            }
            self.vec.send(more)?;
            heart.tick(|| match next {
                Some(_) => self.seats.iter().map(|seat| each.saturating_sub(seat.budget)).sum(),
                None => rollout.episodes.len(),
            });
        }
        if stop.is_set() {
            rollout.stopped = true;
            return Ok(rollout);
        }
        for seat in &mut self.seats {
            if let Some((key, piece)) = seat.cut() {
                done.push((key, piece));
            }
        }
        done.sort_by_key(|(key, _)| *key);
        rollout.trajectories = done.into_iter().map(|(_, trajectory)| trajectory).collect();
        rollout.steps = rollout.trajectories.iter().map(Trajectory::steps).sum();
        Ok(rollout)
    }

    fn decide(
        &mut self,
        decider: &mut dyn Decider,
        requests: &mut Vec<(EnvId, Request)>,
    ) -> Result<(), TrainerError> {
        let seen: Vec<_> = self.seats.iter().filter_map(Seat::seen).collect();
        let places: Vec<EnvId> = seen.iter().map(|s| s.env).collect();
        let decisions = decider.decide(&seen)?;
        for (id, mut decision) in places.into_iter().zip(decisions) {
            if let Some(space) = &self.options.clip {
                decision.chunk = clipped(&decision.chunk, space)?;
            }
            requests.push((id, self.seats[id.0].act(decision, self.options.frames)));
        }
        Ok(())
    }
}

/// Every number of every action brought into `space`.
fn clipped(chunk: &ActionChunk, space: &BoxSpace) -> Result<ActionChunk, TrainerError> {
    let mut actions = chunk.view().to_owned();
    for mut action in actions.rows_mut() {
        for ((v, low), high) in action.iter_mut().zip(&space.low).zip(&space.high) {
            *v = v.clamp(*low, *high);
        }
    }
    Ok(ActionChunk::new(actions)?)
}
