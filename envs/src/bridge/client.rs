//! The parent's side: an environment in a child process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ndarray::{ArrayView1, Axis};
use rmpv::Value;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::child::{Broken, ChildConfig, ChildProcess, SocketAt};
use super::images::ImageReader;
use super::messages::{HelloRequest, NamedCall, PlainCall, ResetCall, StepCall};
use super::protocol::{Envelope, MAGIC, PROTO, WireError, encode};
use super::session::Session;
use crate::{
    ActionChunk, ChunkStep, Env, EnvError, EnvSpec, Frame, FrameRequest, Info, Observation,
    ResetOptions, Step,
};

/// How long a child may take for a whole reply, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// From the start of the process to the end of the handshake: a Python child imports its simulator here.
    pub start: f64,
    /// For `reset` and `render`.
    pub reset: f64,
    /// For each action of a chunk.
    pub step: f64,
    /// For a polite end; then the child is killed.
    pub close: f64,
    /// A child that neither uses nor waits for CPU time for so long while it owes a reply to `reset`, `render` or a step has
    /// missed its deadline already. `None` where a simulator may rightly wait for something else.
    pub asleep: Option<f64>,
}

impl Default for Deadlines {
    /// About ten times what LIBERO on one busy core needs.
    fn default() -> Self {
        Self { start: 120.0, reset: 60.0, step: 10.0, close: 2.0, asleep: None }
    }
}

impl Deadlines {
    /// # Errors
    /// [`EnvError::Config`] for a deadline that is not a positive number.
    pub fn validate(&self) -> Result<(), EnvError> {
        let all = [
            ("start", Some(self.start)),
            ("reset", Some(self.reset)),
            ("step", Some(self.step)),
            ("close", Some(self.close)),
            ("asleep", self.asleep),
        ];
        let mut all = all.into_iter().filter_map(|(name, secs)| Some((name, secs?)));
        match all.find(|(_, secs)| !(secs.is_finite() && *secs > 0.0)) {
            None => Ok(()),
            Some((name, secs)) => Err(EnvError::Config {
                detail: format!("deadline `{name}` is {secs} s; give a positive number of seconds"),
            }),
        }
    }
}

/// How to start a child.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The program: an interpreter, or this program itself.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables on top of this process's own.
    pub env: Vec<(String, String)>,
    /// What `hello` carries; a map that the child understands.
    pub config: serde_json::Value,
    /// How long to wait.
    pub deadlines: Deadlines,
    /// A name for logs, e.g. `libero_spatial`.
    pub label: String,
    /// Where the child finds the socket.
    pub socket: SocketAt,
}

impl BridgeConfig {
    /// A child in another language, with the socket on descriptor 3.
    pub fn new(program: impl Into<PathBuf>, args: Vec<String>, config: serde_json::Value) -> Self {
        let program = program.into();
        let label = program.display().to_string();
        Self {
            program,
            args,
            env: Vec::new(),
            config,
            deadlines: Deadlines::default(),
            label,
            socket: SocketAt::Fd3,
        }
    }

    /// A child that calls [`serve`](super::serve), with the socket on standard input.
    pub fn rust(program: impl Into<PathBuf>, args: Vec<String>, config: serde_json::Value) -> Self {
        Self { socket: SocketAt::Stdin, ..Self::new(program, args, config) }
    }
}

/// An environment in a child process.
///
/// A child that misses a deadline, dies or sends something malformed is killed together with its process group; after that
/// `step` answers [`EnvError::NeedsReset`], and `reset` starts a fresh child. Dropping the environment asks the child to
/// close, waits [`Deadlines::close`], then kills and collects it.
#[derive(Debug)]
pub struct BridgeEnv {
    config: BridgeConfig,
    session: Session,
    child: Option<ChildProcess>,
    pid: u32,
    next_id: u64,
    in_episode: bool,
}

impl BridgeEnv {
    /// Starts the child and shakes hands.
    ///
    /// # Errors
    /// [`EnvError::Spawn`] if there is no such program; [`EnvError::Handshake`] for another magic or version;
    /// [`EnvError::Deadline`], [`EnvError::WorkerDied`], [`EnvError::Protocol`]; the child's own error if it cannot build its
    /// environment; [`EnvError::Config`] for a deadline that is not positive or a config that is no map.
    pub fn start(config: BridgeConfig) -> Result<Self, EnvError> {
        config.deadlines.validate()?;
        if !config.config.is_object() {
            return Err(EnvError::Config {
                detail: format!("the config of worker `{}` is not a map", config.label),
            });
        }
        let secs = config.deadlines.start;
        let patience = Patience { secs, until: deadline(secs), asleep: None };
        let (images, theirs) = ImageReader::create().map_err(|e| EnvError::Spawn {
            program: config.program.display().to_string(),
            detail: format!("shared memory: {e}"),
        })?;
        let start = ChildConfig {
            program: config.program.clone(),
            args: config.args.clone(),
            env: config.env.clone(),
            socket: config.socket,
        };
        let child = ChildProcess::start(&start, theirs)?;
        let pid = child.pid();
        let hello = encode(&HelloRequest {
            id: 0,
            op: "hello".to_owned(),
            magic: MAGIC.to_owned(),
            proto: PROTO,
            config: &config.config,
        })?;
        let mut child = Some(child);
        let mut images = Some(images);
        let session = ask(&mut child, "hello", 0, &hello, &patience, |ok| {
            let images = images.take().ok_or_else(|| EnvError::Protocol {
                detail: "a second reply to `hello`".to_owned(),
            })?;
            Session::open(ok, images)
        })?;
        tracing::debug!(worker = config.label, pid, env = session.spec().id, "worker started");
        Ok(Self { config, session, child, pid, next_id: 1, in_episode: false })
    }

    /// Versions as the child announced them: its adapter, interpreter, simulator.
    pub fn versions(&self) -> &BTreeMap<String, String> {
        self.session.versions()
    }

    /// The child's process id (also of a dead child).
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A query of one adapter (LIBERO: its suites, the preflight); allowed before any reset. Whether it ends the episode is
    /// the adapter's business.
    ///
    /// # Errors
    /// [`EnvError::NeedsReset`] if the child is dead; the child's own error; the bridge's faults.
    pub fn call(&mut self, name: &str, args: &Value, timeout_secs: f64) -> Result<Value, EnvError> {
        let id = self.id();
        let request = encode(&NamedCall { id, op: "call", name, args })?;
        self.request(name, id, &request, timeout_secs, |_, ok| Session::result(ok))
    }

    /// For how long a child may sleep over `op`. An adapter's own queries may wait for what they like.
    fn asleep(&self, op: &str) -> Option<Duration> {
        let secs = self.config.deadlines.asleep?;
        matches!(op, "reset" | "step" | "render").then(|| Duration::from_secs_f64(secs))
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn request<T>(
        &mut self,
        op: &str,
        id: u64,
        request: &[u8],
        timeout_secs: f64,
        read: impl FnOnce(&mut Session, &[u8]) -> Result<T, EnvError>,
    ) -> Result<T, EnvError> {
        let patience =
            Patience { secs: timeout_secs, until: deadline(timeout_secs), asleep: self.asleep(op) };
        let session = &mut self.session;
        let answer = ask(&mut self.child, op, id, request, &patience, |ok| read(session, ok));
        if let Err(error) = &answer {
            self.in_episode &= matches!(error, EnvError::InvalidAction { .. });
            if self.child.is_none() {
                tracing::warn!(
                    worker = self.config.label,
                    pid = self.pid,
                    op,
                    class = error.class(),
                    "worker lost"
                );
            }
        }
        answer
    }
}

fn deadline(secs: f64) -> Instant {
    const FOREVER: Duration = Duration::from_hours(365 * 24);
    Instant::now() + Duration::try_from_secs_f64(secs).unwrap_or(FOREVER).min(FOREVER)
}

/// How long a reply may take.
struct Patience {
    secs: f64,
    until: Instant,
    asleep: Option<Duration>,
}

/// One request and its reply. A child that cannot be trusted any more is killed and taken out of `child`.
fn ask<T>(
    child: &mut Option<ChildProcess>,
    op: &str,
    id: u64,
    request: &[u8],
    patience: &Patience,
    read: impl FnOnce(&[u8]) -> Result<T, EnvError>,
) -> Result<T, EnvError> {
    let Some(process) = child else {
        return Err(EnvError::NeedsReset { since: "its worker was lost" });
    };
    let mut read = Some(read);
    let answer = process.exchange(request, patience.until, patience.asleep, |body| {
        let envelope = Envelope::open(body)?;
        if envelope.id != id {
            tracing::debug!(got = envelope.id, expected = id, op, "late reply discarded");
            return Ok(None);
        }
        let read = read.take().expect("the first matching reply ends the exchange");
        Ok(Some(match envelope.outcome {
            Ok(ok) => read(ok).map_err(Refused::Parent),
            Err(error) => Err(Refused::Child(error)),
        }))
    });
    let broken = match answer {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(Refused::Child(error))) => {
            let error = EnvError::from(error);
            if matches!(error, EnvError::Panicked { .. }) {
                // What a panic leaves behind is not used again.
                *child = None;
            }
            return Err(error);
        }
        Ok(Err(Refused::Parent(error))) => Broken::Malformed(error),
        Err(broken) => broken,
    };
    let process = child.take().expect("it was there above");
    Err(match broken {
        Broken::Malformed(error) => {
            let ended = process.end(Duration::ZERO);
            match error {
                EnvError::Protocol { detail } if !ended.output.is_empty() => {
                    EnvError::Protocol { detail: format!("{detail} (`{op}`)\n{}", ended.output) }
                }
                EnvError::Protocol { detail } => {
                    EnvError::Protocol { detail: format!("{detail} (`{op}`)") }
                }
                other => other,
            }
        }
        Broken::Late => {
            let ended = process.end(Duration::ZERO);
            let timeout_secs = match patience.asleep {
                Some(asleep) if Instant::now() < patience.until => asleep.as_secs_f64(),
                _ => patience.secs,
            };
            EnvError::Deadline { op: op.to_owned(), timeout_secs, stderr: ended.output }
        }
        Broken::Gone => {
            let ended = process.end_of_gone();
            EnvError::WorkerDied { op: op.to_owned(), status: ended.status, stderr: ended.output }
        }
    })
}

/// Who says no.
enum Refused {
    Child(WireError),
    Parent(EnvError),
}

impl Env for BridgeEnv {
    fn spec(&self) -> &EnvSpec {
        self.session.spec()
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        if self.child.is_none() {
            *self = Self::start(self.config.clone())?;
        }
        let id = self.id();
        let op = "reset".to_owned();
        let request = encode(&ResetCall { id, op, seed, options: options.clone() })?;
        self.in_episode = false;
        let first =
            self.request("reset", id, &request, self.config.deadlines.reset, Session::reset)?;
        self.in_episode = true;
        Ok(first)
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        let chunk = ActionChunk::new(action.to_owned().insert_axis(Axis(0)))?;
        let frames = if frames { FrameRequest::Last } else { FrameRequest::None };
        let mut outcome = self.step_chunk(&chunk, frames)?;
        Ok(outcome.steps.pop().expect("a reply without steps was refused"))
    }

    fn step_chunk(
        &mut self,
        chunk: &ActionChunk,
        frames: FrameRequest,
    ) -> Result<ChunkStep, EnvError> {
        for action in chunk.actions() {
            self.spec().action.check_action(action)?;
        }
        if !self.in_episode {
            return Err(EnvError::NeedsReset {
                since: "construction, its last episode or a fault",
            });
        }
        let (id, n) = (self.id(), chunk.len());
        let mut actions = Vec::with_capacity(n * self.spec().action.len() * 4);
        for number in chunk.view() {
            actions.extend_from_slice(&number.to_le_bytes());
        }
        let op = "step".to_owned();
        let actions = ByteBuf::from(actions);
        let request = encode(&StepCall { id, op, actions, n, frames })?;
        let timeout = self.config.deadlines.step * n as f64;
        let outcome = self
            .request("step", id, &request, timeout, |session, ok| session.steps(ok, n, frames))?;
        self.in_episode = !outcome.last().done();
        Ok(outcome)
    }

    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        let id = self.id();
        let request = encode(&PlainCall { id, op: "render" })?;
        let timeout = self.config.deadlines.reset;
        self.request("render", id, &request, timeout, |session, ok| session.render(ok))
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.session.rss()
    }
}

impl Drop for BridgeEnv {
    fn drop(&mut self) {
        let Some(mut process) = self.child.take() else { return };
        let patience = self.config.deadlines.close;
        let limit = deadline(patience);
        let Ok(request) = encode(&PlainCall { id: self.next_id, op: "close" }) else { return };
        let id = self.next_id;
        let closed = process.exchange(&request, limit, None, |body| {
            Ok((Envelope::open(body)?.id == id).then_some(()))
        });
        // A child that answered leaves by itself; any other is past waiting for.
        let left = limit.saturating_duration_since(Instant::now());
        process.end(if closed.is_ok() { left } else { Duration::ZERO });
    }
}
