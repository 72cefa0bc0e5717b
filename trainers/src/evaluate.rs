//! The evaluation loop: every episode once, faults retried, results a function of the seed alone.
//!
//! # Details
//! 1. Episodes wait in a queue; a free environment takes the next one, preferring the task it has loaded
//!    (`Queue::take`). Which environment runs an episode, and when, decides nothing about its result.
//! 2. All noise of a decision is keyed by (run, suite, task, trial, decision) ([`Episode::noise`]).
//! 3. A fault puts the episode back at the head of the queue with the same seed, up to
//!    [`EvaluateOptions::max_attempts`]; then it is recorded as [`Status::Error`], never as a failure.
//! 4. An error that no retry can mend ([`EnvError::is_permanent`]) ends the run.
//! 5. A policy that sees several observations gets those of the steps inside of a chunk too
//!    ([`ActRequest::recent`]).
//! 6. An environment whose process has grown past [`EvaluateOptions::memory_limit_bytes`], or that has run
//!    [`EvaluateOptions::recycle_after`] episodes, is built anew before its next episode.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use ndarray::Array2;
use simloop_envs::{
    ActionChunk, ChunkStep, EnvError, EnvId, EpisodeEnd, FrameRequest, Info, Observation, Reply,
    Request, ResetRequest, SeedTree, VecEnv,
};
use simloop_policies::{ActMode, ActRequest, Policy};

use crate::stop::StopFlag;
use crate::{EpisodeRecord, FaultNote, MetricRange, Status, TraceHash, TrainerError};

/// An episode to be run.
#[derive(Clone, Debug)]
pub struct Episode {
    /// The task; environments that have it loaded are preferred.
    pub task: String,
    /// The trial's number within the task.
    pub trial: u32,
    /// How to begin it.
    pub request: ResetRequest,
    /// The root of its decisions' noise.
    pub noise: SeedTree,
}

/// How to run episodes.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Which observations carry images: [`FrameRequest::None`] unless the policy looks.
    pub frames: FrameRequest,
    /// Execute at most so many actions of each chunk before deciding again; `None` executes all.
    pub n_action_steps: Option<usize>,
    /// Wait for so many environments before a batch of decisions (1: decide as soon as anybody waits).
    pub min_ready: usize,
    /// Starts per episode before it is recorded as an error.
    pub max_attempts: u32,
    /// Rebuild an environment whose process uses more resident memory than this.
    pub memory_limit_bytes: Option<u64>,
    /// Rebuild an environment after so many episodes.
    pub recycle_after: Option<u32>,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            frames: FrameRequest::None,
            n_action_steps: None,
            min_ready: 1,
            max_attempts: 3, // bar of `reliability`, R3: three attempts, then an error
            memory_limit_bytes: None,
            recycle_after: None,
        }
    }
}

/// A finished episode: its record and the actions that were executed, `[T, D]`.
pub type Finished = (EpisodeRecord, Array2<f32>);

/// Runs `episodes` in `vec` by `policy` and hands each to `sink` as it finishes, in no particular order.
///
/// Returns early, without an error, when `stop` is set or `sink` breaks; episodes under way are then dropped unrecorded.
///
/// # Errors
/// [`TrainerError`] when no retry can help. What `sink` has received stays valid.
pub fn evaluate(
    vec: &mut dyn VecEnv,
    policy: &mut dyn Policy,
    episodes: Vec<Episode>,
    options: &EvaluateOptions,
    stop: &StopFlag,
    sink: &mut dyn FnMut(Finished) -> Result<ControlFlow<()>, TrainerError>,
) -> Result<(), TrainerError> {
    let mut queue = Queue::new(episodes);
    let mut seats: Vec<Seat> = (0..vec.num_envs()).map(|_| Seat::default()).collect();
    let n_obs_steps = policy.needs().n_obs_steps.max(1);
    while !stop.is_set() {
        let mut requests = Vec::new();
        for (i, seat) in seats.iter_mut().enumerate() {
            if let Some(request) = seat.next_request(&mut queue) {
                if matches!(request, Request::Reset(_)) {
                    policy.reset(&[EnvId(i)]);
                }
                requests.push((EnvId(i), request));
            }
        }
        decide(policy, &mut seats, options, vec.in_flight() + requests.len(), &mut requests)?;
        vec.send(requests)?;
        if vec.in_flight() == 0 {
            return Ok(());
        }
        let waiting = seats.iter().filter(|seat| seat.is_waiting()).count();
        for (id, reply) in vec.recv(options.min_ready.saturating_sub(waiting).max(1)) {
            if let Some(finished) = seats[id.0].receive(reply, n_obs_steps, &mut queue, options)?
                && sink(finished)?.is_break()
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Lets the policy decide for everyone who waits, once enough do or nobody else is on the way.
fn decide(
    policy: &mut dyn Policy,
    seats: &mut [Seat],
    options: &EvaluateOptions,
    under_way: usize,
    requests: &mut Vec<(EnvId, Request)>,
) -> Result<(), TrainerError> {
    let waiting: Vec<_> = seats
        .iter()
        .enumerate()
        .filter_map(|(i, seat)| seat.waiting().map(|(run, recent, info)| (i, run, recent, info)))
        .collect();
    if waiting.is_empty() || (waiting.len() < options.min_ready && under_way > 0) {
        return Ok(());
    }
    let batch: Vec<_> = waiting
        .iter()
        .filter_map(|(i, run, recent, info)| {
            Some(ActRequest {
                env: EnvId(*i),
                obs: recent.last()?,
                recent,
                info,
                noise_seed: run.episode.noise.index(u64::from(run.decisions)).seed(),
            })
        })
        .collect();
    let started = Instant::now();
    let decisions = policy.act(&batch, ActMode::Deterministic)?;
    let share = started.elapsed() / batch.len() as u32;
    let places: Vec<usize> = waiting.iter().map(|(i, ..)| *i).collect();
    for (i, decision) in places.into_iter().zip(decisions) {
        let chunk = match options.n_action_steps {
            Some(n) => decision.chunk.truncated(n),
            None => decision.chunk,
        };
        seats[i].act(chunk.clone(), share);
        requests.push((EnvId(i), Request::Step(chunk, options.frames)));
    }
    Ok(())
}

/// Episodes that wait, by task.
struct Queue {
    waiting: VecDeque<(Episode, Vec<FaultNote>)>,
}

impl Queue {
    fn new(episodes: Vec<Episode>) -> Self {
        Self { waiting: episodes.into_iter().map(|episode| (episode, Vec::new())).collect() }
    }

    /// The next episode: of `loaded` if there is one, else the first.
    fn take(&mut self, loaded: Option<&str>) -> Option<(Episode, Vec<FaultNote>)> {
        let same = loaded
            .and_then(|task| self.waiting.iter().position(|(episode, _)| episode.task == task));
        self.waiting.remove(same.unwrap_or(0))
    }

    fn put_back(&mut self, episode: Episode, faults: Vec<FaultNote>) {
        self.waiting.push_front((episode, faults));
    }
}

/// An episode under way.
struct Run {
    episode: Episode,
    faults: Vec<FaultNote>,
    started: Instant,
    policy_time: Duration,
    decisions: u32,
    steps: u32,
    ret: f64,
    max_reward: f64,
    success: bool,
    metrics: BTreeMap<String, MetricRange>,
    trace: TraceHash,
    actions: Vec<f32>,
}

enum State {
    Idle,
    /// Built anew before the next episode.
    Stale,
    Recycling,
    Resetting(Box<Run>),
    /// With what was seen since the previous decision, oldest first and never empty.
    Waiting(Box<Run>, Vec<Observation>, Info),
    Stepping(Box<Run>, ActionChunk),
}

/// One environment's place in the loop.
struct Seat {
    state: State,
    loaded: Option<String>,
    episodes_run: u32,
    memory_bytes: Option<u64>,
}

impl Default for Seat {
    fn default() -> Self {
        Self { state: State::Idle, loaded: None, episodes_run: 0, memory_bytes: None }
    }
}

impl Seat {
    fn next_request(&mut self, queue: &mut Queue) -> Option<Request> {
        match self.state {
            State::Stale if !queue.waiting.is_empty() => {
                tracing::info!(
                    memory_bytes = self.memory_bytes,
                    episodes = self.episodes_run,
                    "recycling a worker"
                );
                self.state = State::Recycling;
                self.loaded = None;
                self.episodes_run = 0;
                Some(Request::Recycle)
            }
            State::Idle => {
                let (episode, faults) = queue.take(self.loaded.as_deref())?;
                self.loaded = Some(episode.task.clone());
                let request = Request::Reset(episode.request.clone());
                self.state = State::Resetting(Box::new(Run::new(episode, faults)));
                Some(request)
            }
            _ => None,
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(..))
    }

    fn waiting(&self) -> Option<(&Run, &[Observation], &Info)> {
        match &self.state {
            State::Waiting(run, recent, info) => Some((run, recent, info)),
            _ => None,
        }
    }

    fn act(&mut self, chunk: ActionChunk, policy_time: Duration) {
        if let State::Waiting(mut run, ..) = std::mem::replace(&mut self.state, State::Idle) {
            run.decisions += 1;
            run.policy_time += policy_time;
            self.state = State::Stepping(run, chunk);
        }
    }

    fn receive(
        &mut self,
        reply: Result<Reply, EnvError>,
        n_obs_steps: usize,
        queue: &mut Queue,
        options: &EvaluateOptions,
    ) -> Result<Option<Finished>, TrainerError> {
        match (std::mem::replace(&mut self.state, State::Idle), reply) {
            (State::Resetting(run) | State::Stepping(run, _), Err(error)) => {
                self.loaded = None;
                self.episodes_run = 0;
                return Self::fault(run, error, queue, options);
            }
            (State::Resetting(mut run), Ok(Reply::Reset { obs, info, memory_bytes })) => {
                self.memory_bytes = memory_bytes;
                run.trace.reset(&obs);
                self.state = State::Waiting(run, vec![obs], info);
            }
            (State::Stepping(mut run, chunk), Ok(Reply::Step(outcome))) => {
                run.advance(&chunk, &outcome);
                let last = outcome.last();
                if !last.done() {
                    let seen = &outcome.steps[outcome.steps.len().saturating_sub(n_obs_steps)..];
                    let recent = seen.iter().map(|step| step.obs.clone()).collect();
                    self.state = State::Waiting(run, recent, last.info.clone());
                    return Ok(None);
                }
                let end =
                    if last.terminated { EpisodeEnd::Terminated } else { EpisodeEnd::Truncated };
                self.episodes_run += 1;
                let grown = options
                    .memory_limit_bytes
                    .is_some_and(|limit| self.memory_bytes.is_some_and(|m| m > limit));
                if grown || options.recycle_after.is_some_and(|n| self.episodes_run >= n) {
                    self.state = State::Stale;
                }
                return Ok(Some(run.finish(end)));
            }
            (State::Recycling, _) => {}
            (_, Err(error)) => return Err(error.into()),
            (_, Ok(_)) => {
                return Err(EnvError::Disconnected {
                    detail: "a reply to another request".to_owned(),
                }
                .into());
            }
        }
        Ok(None)
    }

    fn fault(
        run: Box<Run>,
        error: EnvError,
        queue: &mut Queue,
        options: &EvaluateOptions,
    ) -> Result<Option<Finished>, TrainerError> {
        if error.is_permanent() || matches!(error, EnvError::InvalidAction { .. }) {
            return Err(error.into());
        }
        tracing::warn!(
            task = run.episode.task,
            trial = run.episode.trial,
            class = error.class(),
            "an attempt met a fault"
        );
        let Run { episode, mut faults, .. } = *run;
        faults.push(FaultNote { class: error.class().to_owned(), detail: error.to_string() });
        if (faults.len() as u32) < options.max_attempts {
            queue.put_back(episode, faults);
            return Ok(None);
        }
        let run = Run::new(episode, faults);
        let detail = error.class().to_owned();
        Ok(Some(Box::new(run).finish(EpisodeEnd::Fault { detail })))
    }
}

impl Run {
    fn new(episode: Episode, faults: Vec<FaultNote>) -> Self {
        Self {
            episode,
            faults,
            started: Instant::now(),
            policy_time: Duration::ZERO,
            decisions: 0,
            steps: 0,
            ret: 0.0,
            max_reward: 0.0,
            success: false,
            metrics: BTreeMap::new(),
            trace: TraceHash::default(),
            actions: Vec::new(),
        }
    }

    fn advance(&mut self, chunk: &ActionChunk, outcome: &ChunkStep) {
        for (action, step) in chunk.actions().zip(&outcome.steps) {
            self.steps += 1;
            self.ret += f64::from(step.reward);
            self.max_reward = self.max_reward.max(f64::from(step.reward));
            self.success |= step.info.success == Some(true);
            self.trace.step(action.iter(), step);
            self.actions.extend(action.iter());
            for (name, &value) in &step.info.metrics {
                match self.metrics.get_mut(name) {
                    Some(range) => *range = MetricRange { max: range.max.max(value), last: value },
                    None => {
                        self.metrics.insert(name.clone(), MetricRange { max: value, last: value });
                    }
                }
            }
        }
    }

    fn finish(self: Box<Self>, end: EpisodeEnd) -> Finished {
        let status = match (&end, self.success) {
            (EpisodeEnd::Fault { .. }, _) => Status::Error,
            (_, true) => Status::Success,
            (_, false) => Status::Failure,
        };
        let attempts = self.faults.len() as u32 + u32::from(status != Status::Error);
        let width = if self.steps == 0 { 0 } else { self.actions.len() / self.steps as usize };
        let actions = Array2::from_shape_vec((self.steps as usize, width), self.actions)
            .expect("every step appended one action of equal width");
        let record = EpisodeRecord {
            task: self.episode.task,
            trial: self.episode.trial,
            seed: self.episode.request.seed.unwrap_or_default(),
            init_state: self.episode.request.options.init_state,
            status,
            end,
            steps: self.steps,
            decisions: self.decisions,
            ret: self.ret,
            max_reward: self.max_reward,
            metrics: self.metrics,
            trace: self.trace.finish(),
            attempts,
            faults: self.faults,
            wall_secs: self.started.elapsed().as_secs_f64(),
            policy_secs: self.policy_time.as_secs_f64(),
        };
        (record, actions)
    }
}

#[cfg(test)]
mod tests;
