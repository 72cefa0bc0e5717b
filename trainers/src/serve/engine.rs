//! The inference thread: jobs in, batches through the policy, chunks out.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use simloop_envs::{ActionChunk, EnvId, Info, Observation};
use simloop_policies::remote::Description;
use simloop_policies::{ActMode, ActRequest, Policy, PolicyStep};
use tokio::sync::oneshot;

use super::metrics::Metrics;
use super::refusal::Refusal;
use crate::TrainerError;

/// A policy and what is told of it.
pub struct Loaded {
    /// What decides; it stays on the thread that made it.
    pub policy: Box<dyn Policy>,
    /// What clients are told.
    pub description: Description,
    /// Whether it reads its instruction.
    pub reads: bool,
}

/// Makes the policy, on the inference thread.
pub type Loader = Box<dyn FnOnce() -> Result<Loaded, TrainerError> + Send>;

/// A decision that somebody waits for.
pub(super) struct Job {
    pub(super) env: EnvId,
    /// Who asks: a websocket, a session, or the connection of a request without one.
    pub(super) caller: u64,
    /// Exactly `T_o` observations, oldest first: acting on them again changes nothing.
    pub(super) window: Vec<Observation>,
    pub(super) noise_seed: u64,
    /// A new episode begins.
    pub(super) fresh: bool,
    pub(super) asked: Instant,
    pub(super) reply: oneshot::Sender<Result<Decision, Refusal>>,
}

/// A decision.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) chunk: ActionChunk,
    /// How long it waited for its batch.
    pub(super) waited: Duration,
    /// How long the batch took.
    pub(super) infer: Duration,
    /// How many shared the batch.
    pub(super) batch: usize,
}

enum Message {
    Act(Box<Job>),
    Forget(EnvId),
}

/// The network's end of the inference thread.
#[derive(Clone)]
pub(super) struct Engine {
    jobs: Sender<Message>,
}

/// How to form batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batching {
    pub(super) max_batch: Option<usize>,
    pub(super) max_wait: Duration,
    pub(super) queue: usize,
}

impl Engine {
    /// Starts the thread and loads the policy there.
    ///
    /// # Errors
    /// The loader's, and [`TrainerError::Config`] if the thread cannot be.
    pub(super) fn start(
        load: Loader,
        batching: Batching,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Description, bool, JoinHandle<()>), TrainerError> {
        let (jobs, inbox) = crossbeam_channel::bounded(batching.queue);
        let (told, hears) = crossbeam_channel::bounded(1);
        let run = move || {
            let loaded = match load() {
                Ok(loaded) => loaded,
                Err(e) => {
                    let _ = told.send(Err(e));
                    return;
                }
            };
            let max_batch = batching.max_batch.unwrap_or(loaded.description.inference_batch).max(1);
            if told.send(Ok((loaded.description, loaded.reads))).is_err() {
                return;
            }
            let mut worker = Worker {
                policy: loaded.policy,
                inbox,
                max_batch,
                max_wait: batching.max_wait,
                infer: Duration::ZERO,
                answered: VecDeque::new(),
                metrics,
            };
            worker.run();
        };
        let thread = std::thread::Builder::new()
            .name("inference".to_owned())
            .spawn(run)
            .map_err(|e| TrainerError::config(format!("start the inference thread: {e}")))?;
        let (description, reads) = hears
            .recv()
            .map_err(|_| TrainerError::config("load the policy: its thread ended"))??;
        Ok((Self { jobs }, description, reads, thread))
    }

    /// Hands in a job.
    ///
    /// # Errors
    /// 503 when too many wait.
    pub(super) fn ask(&self, job: Job) -> Result<(), Refusal> {
        self.jobs.try_send(Message::Act(Box::new(job))).map_err(|e| match e {
            TrySendError::Full(_) => Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests wait for the policy",
            ),
            TrySendError::Disconnected(_) => Refusal::closing(),
        })
    }

    /// A session is over. If the queue is full its few kilobytes stay until the end.
    pub(super) fn forget(&self, env: EnvId) {
        let _ = self.jobs.try_send(Message::Forget(env));
    }

    /// Jobs that wait.
    pub(super) fn waiting(&self) -> usize {
        self.jobs.len()
    }
}

struct Worker {
    policy: Box<dyn Policy>,
    inbox: Receiver<Message>,
    max_batch: usize,
    max_wait: Duration,
    /// How long the last batch took.
    infer: Duration,
    /// Who was answered last, and when, oldest first.
    answered: VecDeque<(Instant, u64)>,
    metrics: Arc<Metrics>,
}

/// Somebody who was answered less than so many times the longest wait ago is expected to ask again at once, and is
/// waited for. A robot that executes its chunk first is not.
const EAGER: u32 = 5;
/// Part of the last batch's time that may be waited where that is longer than [`Batching::max_wait`]: a place left empty costs a slow
/// policy more than the wait.
const PART: u32 = 20;
/// Bounds what is remembered of who was answered.
const MAX_ANSWERED: usize = 1024;

impl Worker {
    fn run(&mut self) {
        while let Some(batch) = self.gather() {
            self.decide(batch);
        }
    }

    /// The next batch, not empty; `None` once nobody can ask any more.
    fn gather(&mut self) -> Option<Vec<Job>> {
        let mut batch: Vec<Job> = Vec::with_capacity(self.max_batch);
        // Who asked during the last batch has waited long, and those whom it answered are about to ask: the wait begins now.
        let mut begun = Instant::now();
        let patience = self.max_wait.max(self.infer / PART);
        loop {
            let message = match batch.first() {
                None => self.inbox.recv().ok()?,
                Some(_) if batch.len() >= self.max_batch => return Some(batch),
                Some(_) => {
                    let left = patience.saturating_sub(begun.elapsed());
                    let next = self.inbox.try_recv().ok().or_else(|| {
                        let wait = !left.is_zero() && self.expects_more(&batch, patience);
                        wait.then(|| self.inbox.recv_timeout(left).ok()).flatten()
                    });
                    let Some(message) = next else { return Some(batch) };
                    message
                }
            };
            match message {
                Message::Forget(env) => self.policy.reset(&[env]),
                // Nobody waits for it any more.
                Message::Act(job) if job.reply.is_closed() => {}
                Message::Act(job) => {
                    if batch.is_empty() {
                        begun = Instant::now();
                    }
                    batch.push(*job);
                }
            }
        }
    }

    /// Whether somebody who is not in the batch can be expected to ask any moment.
    fn expects_more(&mut self, batch: &[Job], patience: Duration) -> bool {
        let limit = patience * EAGER;
        while self.answered.front().is_some_and(|(when, _)| when.elapsed() > limit) {
            self.answered.pop_front();
        }
        self.answered.iter().any(|(_, caller)| batch.iter().all(|job| job.caller != *caller))
    }

    fn decide(&mut self, batch: Vec<Job>) {
        let fresh: Vec<EnvId> = batch.iter().filter(|job| job.fresh).map(|job| job.env).collect();
        if !fresh.is_empty() {
            self.policy.reset(&fresh);
        }
        while self.answered.len() > MAX_ANSWERED {
            self.answered.pop_front();
        }
        let started = Instant::now();
        let size = batch.len();
        let answers = match self.act(&batch.iter().collect::<Vec<_>>()) {
            Ok(steps) => steps.into_iter().map(Ok).collect(),
            Err(refusal) if size == 1 => vec![Err(refusal)],
            // Whoever is to blame fails alone.
            Err(_) => batch
                .iter()
                .map(|job| {
                    let mut steps = self.act(&[job])?;
                    steps.pop().ok_or_else(|| {
                        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the policy failed to act")
                    })
                })
                .collect::<Vec<Result<PolicyStep, Refusal>>>(),
        };
        let infer = started.elapsed();
        self.infer = infer;
        self.metrics.batch(size, infer);
        let now = Instant::now();
        for job in &batch {
            self.answered.push_back((now, job.caller));
        }
        for (job, answer) in batch.into_iter().zip(answers) {
            let waited = started.saturating_duration_since(job.asked);
            let decision =
                answer.map(|step| Decision { chunk: step.chunk, waited, infer, batch: size });
            // Whoever left needs no answer.
            let _ = job.reply.send(decision);
        }
    }

    fn act(&mut self, jobs: &[&Job]) -> Result<Vec<PolicyStep>, Refusal> {
        let info = Info::default();
        let requests: Vec<ActRequest<'_>> = jobs
            .iter()
            .filter_map(|job| {
                Some(ActRequest {
                    env: job.env,
                    obs: job.window.last()?,
                    recent: &job.window,
                    info: &info,
                    noise_seed: job.noise_seed,
                })
            })
            .collect();
        let policy = &mut self.policy;
        let acted =
            catch_unwind(AssertUnwindSafe(|| policy.act(&requests, ActMode::Deterministic)));
        let failed = || Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the policy failed to act");
        match acted {
            Ok(Ok(steps)) if steps.len() == jobs.len() => {
                if steps.iter().any(|step| step.chunk.view().iter().any(|v| !v.is_finite())) {
                    let tensor = "chunk".to_owned();
                    return Err(Refusal::policy(&simloop_policies::PolicyError::NonFinite {
                        tensor,
                    }));
                }
                Ok(steps)
            }
            Ok(Ok(_)) => Err(failed()),
            Ok(Err(error)) => {
                tracing::warn!(%error, requests = jobs.len(), "the policy failed");
                Err(Refusal::policy(&error))
            }
            Err(_) => {
                tracing::error!(requests = jobs.len(), "the policy panicked");
                let envs: Vec<EnvId> = jobs.iter().map(|job| job.env).collect();
                // What it remembers of them may be half written; if even this panics, there is nothing to save.
                let _ = catch_unwind(AssertUnwindSafe(|| policy.reset(&envs)));
                Err(failed())
            }
        }
    }
}
