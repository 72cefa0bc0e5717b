//! The child's side, for environments written in Rust.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ndarray::Array2;
use serde::Serialize;
use serde_bytes::ByteBuf;

use super::child::open_images;
use super::endpoint::Endpoint;
use super::images::ImageWriter;
use super::messages::{
    HelloHead, HelloReply, HelloRequest, RenderReply, ResetCall, ResetReply, StepCall, StepReply,
    WireInfo, WireObs, WireStep,
};
use super::protocol::{Call, MAGIC, MAX_IMAGES, PROTO, decode};
use crate::{ActionChunk, Env, EnvError, Info, Observation, PrivilegedLayout, Step};

/// Serves one environment over the socket on standard input until the parent closes it; for programs started with
/// [`SocketAt::Stdin`](super::SocketAt::Stdin).
///
/// `build` makes the environment from the config in the parent's `hello`, and its error is the parent's error. A panic of
/// the environment is answered as [`EnvError::Panicked`]. The process receives SIGKILL when its parent dies.
///
/// # Errors
/// [`EnvError::Config`] if the process was not started by a bridge; [`EnvError::Protocol`] for a malformed request;
/// [`EnvError::Disconnected`] if the socket fails.
pub fn serve<B>(build: B) -> Result<(), EnvError>
where
    B: FnOnce(serde_json::Value) -> Result<Box<dyn Env>, EnvError>,
{
    let socket = Endpoint::on_stdin()?;
    let images = open_images().map_err(|e| EnvError::Disconnected { detail: e.to_string() })?;
    run(socket, images, build)
}

fn run<B>(mut socket: Endpoint, images: File, build: B) -> Result<(), EnvError>
where
    B: FnOnce(serde_json::Value) -> Result<Box<dyn Env>, EnvError>,
{
    let Some(body) = socket.receive()? else { return Ok(()) };
    let id = Call::open(&body)?.id;
    let mut worker = match hello(&body, images, build) {
        Ok((worker, hello)) => {
            socket.reply(id, Ok(hello))?;
            worker
        }
        Err(error) => return socket.reply::<()>(id, Err(error)),
    };
    while let Some(body) = socket.receive()? {
        let call = Call::open(&body)?;
        let id = call.id;
        if call.op == "close" {
            // The environment ends before the reply, so that the parent waits for its destructor.
            drop(worker);
            return socket.reply(id, Ok(rmpv::Value::Map(Vec::new())));
        }
        let answer = catch_unwind(AssertUnwindSafe(|| worker.answer(&call)))
            .unwrap_or_else(|payload| Err(panicked(payload.as_ref())));
        socket.reply(id, answer)?;
    }
    Ok(())
}

fn hello<B>(body: &[u8], images: File, build: B) -> Result<(Worker, HelloReply), EnvError>
where
    B: FnOnce(serde_json::Value) -> Result<Box<dyn Env>, EnvError>,
{
    let head: HelloHead = decode("hello", body)?;
    if head.magic.as_deref() != Some(MAGIC) || head.proto != Some(PROTO) {
        return Err(EnvError::Handshake {
            detail: format!(
                "the parent speaks {:?} protocol {:?}, this worker speaks {MAGIC:?} protocol {PROTO}",
                head.magic.unwrap_or_default(),
                head.proto.unwrap_or_default()
            ),
        });
    }
    let hello: HelloRequest<serde_json::Value> = decode("hello", body)?;
    let images = ImageWriter::new(images, MAX_IMAGES)
        .map_err(|e| EnvError::Disconnected { detail: format!("shared memory: {e}") })?;
    let env = catch_unwind(AssertUnwindSafe(|| build(hello.config)))
        .unwrap_or_else(|payload| Err(panicked(payload.as_ref())))?;
    let reply = HelloReply {
        magic: MAGIC.to_owned(),
        proto: PROTO,
        adapter: "simloop".to_owned(),
        adapter_version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        versions: env.spec().versions.clone(),
        spec: env.spec().clone(),
        shm_bytes: MAX_IMAGES,
    };
    let worker =
        Worker { spec: reply.spec.clone(), env, images, layout: Arc::default(), told: false };
    Ok((worker, reply))
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Reset(Box<ResetReply>),
    Step(StepReply),
    Render(RenderReply),
}

struct Worker {
    env: Box<dyn Env>,
    /// As the parent knows it.
    spec: crate::EnvSpec,
    images: ImageWriter,
    layout: Arc<PrivilegedLayout>,
    told: bool,
}

impl Worker {
    fn answer(&mut self, call: &Call<'_>) -> Result<Answer, EnvError> {
        self.images.rewind();
        match call.op.as_str() {
            "reset" => {
                let ResetCall { seed, options, .. } = decode("reset", call.args)?;
                let (obs, info) = self.env.reset(seed, &options)?;
                let changed = (*self.env.spec() != self.spec).then(|| self.env.spec().clone());
                if let Some(spec) = &changed {
                    self.spec = spec.clone();
                }
                let instruction = Some(obs.instruction.to_string());
                let obs = WireObs { instruction, ..self.observation(&obs)? };
                self.told = false;
                let info = self.info(info);
                Ok(Answer::Reset(Box::new(ResetReply { obs, info, spec: changed, rss: rss() })))
            }
            "step" => {
                let StepCall { actions, n, frames, .. } = decode("step", call.args)?;
                let chunk = self.chunk(&actions, n)?;
                let outcome = self.env.step_chunk(&chunk, frames)?;
                let steps = outcome.steps.into_iter();
                let steps = steps.map(|step| self.step(step)).collect::<Result<_, _>>()?;
                Ok(Answer::Step(StepReply { steps, rss: None }))
            }
            "render" => {
                let frame = self.env.render()?;
                let frame = frame.map(|frame| self.images.write(frame.view())).transpose()?;
                Ok(Answer::Render(RenderReply { frame }))
            }
            other => Err(EnvError::Config { detail: format!("this worker has no op `{other}`") }),
        }
    }

    fn chunk(&self, actions: &[u8], n: usize) -> Result<ActionChunk, EnvError> {
        let width = self.env.spec().action.len();
        let refuse = || EnvError::InvalidAction {
            detail: format!("{} bytes are not {n} actions of {width} f32", actions.len()),
        };
        let (numbers, rest) = actions.as_chunks::<4>();
        let numbers: Vec<f32> = numbers.iter().map(|n| f32::from_le_bytes(*n)).collect();
        if !rest.is_empty() {
            return Err(refuse());
        }
        ActionChunk::new(Array2::from_shape_vec((n, width), numbers).map_err(|_| refuse())?)
    }

    fn step(&mut self, step: Step) -> Result<WireStep, EnvError> {
        Ok(WireStep {
            obs: self.observation(&step.obs)?,
            reward: f64::from(step.reward),
            terminated: step.terminated,
            truncated: step.truncated,
            info: self.info(step.info),
        })
    }

    fn observation(&mut self, obs: &Observation) -> Result<WireObs, EnvError> {
        let mut images = BTreeMap::new();
        for (camera, frame) in &obs.images {
            images.insert(camera.clone(), self.images.write(frame.view())?);
        }
        let proprio = obs.proprio.iter().flat_map(|number| number.to_le_bytes());
        Ok(WireObs {
            images,
            proprio: ByteBuf::from(proprio.collect::<Vec<_>>()),
            instruction: None,
        })
    }

    fn info(&mut self, info: Info) -> WireInfo {
        let mut layout = None;
        let privileged = info.privileged.map(|state| {
            if !self.told || **state.layout() != *self.layout {
                layout = Some(segments(state.layout()));
                self.layout = Arc::clone(state.layout());
                self.told = true;
            }
            let bytes = state.values().iter().flat_map(|number| number.to_le_bytes());
            ByteBuf::from(bytes.collect::<Vec<_>>())
        });
        WireInfo { success: info.success, metrics: info.metrics, privileged, layout }
    }
}

fn segments(layout: &PrivilegedLayout) -> Vec<(String, u64)> {
    layout.segments().map(|(name, len)| (name.to_owned(), len as u64)).collect()
}

fn panicked(payload: &(dyn Any + Send)) -> EnvError {
    let message = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    EnvError::Panicked { message }
}

/// Resident memory of this process, bytes.
fn rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
