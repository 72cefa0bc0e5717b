//! What the parent remembers of its child, and how reply bodies become the contract's types.
//!
//! Every number that the wire claims is checked here against what was asked for; no process is involved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::ArcArray1;

use super::images::ImageReader;
use super::messages::{
    CallReply, HelloHead, HelloReply, ImageRef, RenderReply, ResetReply, StepReply, WireInfo,
    WireObs,
};
use super::protocol::{MAGIC, MAX_IMAGE, MAX_IMAGES, PROTO, decode, malformed};
use crate::{
    BoxSpace, ChunkStep, EnvError, EnvSpec, Frame, FrameRequest, Info, Observation, Privileged,
    PrivilegedLayout, Step,
};

/// One child's spec, instruction and privileged layout, its images, and the versions it announced.
#[derive(Debug)]
pub struct Session {
    images: ImageReader,
    spec: EnvSpec,
    versions: BTreeMap<String, String>,
    instruction: Arc<str>,
    layout: Arc<PrivilegedLayout>,
    rss: Option<u64>,
}

impl Session {
    /// Opens a session from the `ok` map of a hello reply.
    ///
    /// # Errors
    /// [`EnvError::Handshake`] for another magic or version; [`EnvError::Protocol`] for a spec that contradicts itself or
    /// sizes above the limits.
    pub fn open(ok: &[u8], mut images: ImageReader) -> Result<Self, EnvError> {
        let head: HelloHead = decode("hello", ok)?;
        if head.magic.as_deref() != Some(MAGIC) || head.proto != Some(PROTO) {
            let proto = head.proto.map_or_else(|| "none".to_owned(), |proto| proto.to_string());
            return Err(EnvError::Handshake {
                detail: format!(
                    "the worker speaks {:?} protocol {proto}, this program speaks {MAGIC:?} protocol {PROTO}; use the \
                     worker that came with this version",
                    head.magic.unwrap_or_default()
                ),
            });
        }
        let hello: HelloReply = decode("hello", ok)?;
        images.set_len(hello.shm_bytes)?;
        check_spec(&hello.spec)?;
        let mut versions = hello.versions;
        versions.insert(hello.adapter, hello.adapter_version);
        Ok(Self {
            images,
            spec: hello.spec,
            versions,
            instruction: Arc::from(""),
            layout: Arc::default(),
            rss: None,
        })
    }

    /// What the environment is.
    pub fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// Versions as the child announced them, its own among them.
    pub fn versions(&self) -> &BTreeMap<String, String> {
        &self.versions
    }

    /// The child's resident memory as it last said, bytes.
    pub fn rss(&self) -> Option<u64> {
        self.rss
    }

    /// The `ok` map of a reset reply.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] where it contradicts the spec or the shared memory; [`EnvError::Simulator`] for a
    /// non-finite number.
    pub fn reset(&mut self, ok: &[u8]) -> Result<(Observation, Info), EnvError> {
        let reply: ResetReply = decode("reset", ok)?;
        if let Some(spec) = reply.spec {
            check_spec(&spec)?;
            self.spec = spec;
        }
        self.rss = reply.rss.or(self.rss);
        if let Some(instruction) = &reply.obs.instruction {
            self.instruction = Arc::from(instruction.as_str());
        }
        self.layout = Arc::default();
        let mut budget = MAX_IMAGES;
        let obs = self.observation(&reply.obs, true, &mut budget)?;
        Ok((obs, self.info(reply.info)?))
    }

    /// The `ok` map of the reply to a chunk of `n` actions.
    ///
    /// # Errors
    /// As [`reset`](Self::reset).
    pub fn steps(
        &mut self,
        ok: &[u8],
        n: usize,
        frames: FrameRequest,
    ) -> Result<ChunkStep, EnvError> {
        let reply: StepReply = decode("step", ok)?;
        self.rss = reply.rss.or(self.rss);
        let count = reply.steps.len();
        if count == 0 || count > n {
            return Err(malformed(format!("{count} steps answer a chunk of {n}")));
        }
        let mut budget = MAX_IMAGES;
        let mut steps = Vec::with_capacity(count);
        for (i, step) in reply.steps.into_iter().enumerate() {
            let (last, done) = (i + 1 == count, step.terminated || step.truncated);
            if done != last && (done || count < n) {
                return Err(malformed(format!(
                    "step {} of {count} {} the episode in a chunk of {n}",
                    i + 1,
                    if done { "ends" } else { "does not end" }
                )));
            }
            let reward = step.reward as f32;
            if !reward.is_finite() {
                return Err(non_finite("the reward", step.reward));
            }
            let obs = self.observation(&step.obs, frames.wants(i, n), &mut budget)?;
            steps.push(Step {
                obs,
                reward,
                terminated: step.terminated,
                truncated: step.truncated,
                info: self.info(step.info)?,
            });
        }
        Ok(ChunkStep { steps })
    }

    /// The `ok` map of a render reply.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] for an image outside the shared memory.
    pub fn render(&self, ok: &[u8]) -> Result<Option<Frame>, EnvError> {
        let reply: RenderReply = decode("render", ok)?;
        reply.frame.map(|at| self.images.read("render", at)).transpose()
    }

    /// The `ok` map of the reply to an adapter's own query.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] without a `result`.
    pub fn result(ok: &[u8]) -> Result<rmpv::Value, EnvError> {
        decode("call", ok).map(|reply: CallReply| reply.result)
    }

    fn observation(
        &self,
        wire: &WireObs,
        wanted: bool,
        budget: &mut u64,
    ) -> Result<Observation, EnvError> {
        let expected = self.spec.observation.proprio.len();
        if wire.proprio.len() != expected * 4 {
            return Err(malformed(format!(
                "proprio has {} bytes, the spec says {expected} f32",
                wire.proprio.len()
            )));
        }
        let (numbers, _) = wire.proprio.as_chunks::<4>();
        let proprio: ArcArray1<f32> = numbers.iter().map(|n| f32::from_le_bytes(*n)).collect();
        if let Some(i) = proprio.iter().position(|v| !v.is_finite()) {
            let name = &self.spec.observation.proprio.names[i];
            return Err(non_finite(&format!("`{name}`"), f64::from(proprio[i])));
        }
        let images = if wanted { self.frames(&wire.images, budget)? } else { BTreeMap::new() };
        Ok(Observation { images, proprio, instruction: Arc::clone(&self.instruction) })
    }

    fn frames(
        &self,
        wire: &BTreeMap<String, ImageRef>,
        budget: &mut u64,
    ) -> Result<BTreeMap<String, Frame>, EnvError> {
        let cameras = &self.spec.observation.images;
        if !wire.keys().eq(cameras.keys()) {
            return Err(malformed(format!(
                "an observation shows [{}], the spec says [{}]",
                wire.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
                cameras.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            )));
        }
        let mut frames = BTreeMap::new();
        for ((camera, at), space) in wire.iter().zip(cameras.values()) {
            let expected = [u64::from(space.height), u64::from(space.width), 3];
            if at.shape != expected {
                return Err(malformed(format!(
                    "`{camera}` is {:?}, the spec says {expected:?}",
                    at.shape
                )));
            }
            *budget = budget.checked_sub(expected.iter().product()).ok_or_else(|| {
                malformed(format!("a reply's images exceed {MAX_IMAGES} bytes; use shorter chunks"))
            })?;
            frames.insert(camera.clone(), self.images.read(camera, *at)?);
        }
        Ok(frames)
    }

    fn info(&mut self, wire: WireInfo) -> Result<Info, EnvError> {
        if let Some(layout) = wire.layout {
            self.layout = Arc::new(checked_layout(layout)?);
        }
        let privileged = match wire.privileged {
            None => None,
            Some(bytes) => {
                let (numbers, rest) = bytes.as_chunks::<8>();
                let values = numbers.iter().map(|n| f64::from_le_bytes(*n)).collect();
                let joined = Privileged::new(Arc::clone(&self.layout), values);
                Some(joined.filter(|_| rest.is_empty()).ok_or_else(|| {
                    malformed(format!(
                        "the privileged state has {} bytes, its layout says {} f64",
                        bytes.len(),
                        self.layout.len()
                    ))
                })?)
            }
        };
        Ok(Info { success: wire.success, metrics: wire.metrics, privileged })
    }
}

fn non_finite(what: &str, value: f64) -> EnvError {
    EnvError::Simulator {
        kind: "non-finite number".to_owned(),
        message: format!("{what} is {value}"),
        trace: String::new(),
    }
}

fn checked_layout(fields: Vec<(String, u64)>) -> Result<PrivilegedLayout, EnvError> {
    const LIMIT: u64 = (super::protocol::MAX_BODY / 8) as u64;
    let total = fields.iter().try_fold(0_u64, |sum, (_, len)| sum.checked_add(*len));
    if total.is_none_or(|total| total > LIMIT) {
        return Err(malformed(format!("a privileged layout of more than {LIMIT} numbers")));
    }
    let names: BTreeSet<_> = fields.iter().map(|(name, _)| name).collect();
    if names.len() != fields.len() {
        return Err(malformed("a privileged layout names a field twice"));
    }
    Ok(PrivilegedLayout::new(fields.into_iter().map(|(name, len)| (name, len as usize))))
}

fn check_spec(spec: &EnvSpec) -> Result<(), EnvError> {
    let refuse = |what: String| Err(malformed(format!("the spec of `{}`: {what}", spec.id)));
    let even = |space: &BoxSpace| {
        space.names.len() == space.low.len() && space.names.len() == space.high.len()
    };
    if !even(&spec.action) || !even(&spec.observation.proprio) {
        return refuse("names, low and high differ in length".to_owned());
    }
    if spec.action.is_empty() {
        return refuse("an action without numbers".to_owned());
    }
    if !(spec.control_hz.is_finite() && spec.control_hz > 0.0) {
        return refuse(format!("control_hz is {}", spec.control_hz));
    }
    for (camera, space) in &spec.observation.images {
        let bytes = u64::from(space.height) * u64::from(space.width);
        if bytes == 0 || bytes > MAX_IMAGE / 3 {
            return refuse(format!("`{camera}` is {} x {}", space.height, space.width));
        }
    }
    Ok(())
}
