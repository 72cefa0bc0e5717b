//! The messages of the table in the [module's documentation](super), as serde writes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::protocol::WireError;
use crate::{EnvSpec, FrameRequest, ResetOptions};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HelloRequest<C> {
    pub(super) id: u64,
    pub(super) op: String,
    pub(super) magic: String,
    pub(super) proto: u64,
    pub(super) config: C,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ResetCall {
    pub(super) id: u64,
    pub(super) op: String,
    pub(super) seed: Option<u64>,
    #[serde(default)]
    pub(super) options: ResetOptions,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StepCall {
    pub(super) id: u64,
    pub(super) op: String,
    pub(super) actions: ByteBuf,
    pub(super) n: usize,
    pub(super) frames: FrameRequest,
}

#[derive(Debug, Serialize)]
pub(super) struct NamedCall<'a> {
    pub(super) id: u64,
    pub(super) op: &'a str,
    pub(super) name: &'a str,
    pub(super) args: &'a rmpv::Value,
}

#[derive(Debug, Serialize)]
pub(super) struct PlainCall<'a> {
    pub(super) id: u64,
    pub(super) op: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct OkReply<T> {
    pub(super) id: u64,
    pub(super) ok: T,
}

#[derive(Debug, Serialize)]
pub(super) struct ErrReply {
    pub(super) id: u64,
    pub(super) err: WireError,
}

/// The part of a hello reply that every version shares.
#[derive(Debug, Deserialize)]
pub(super) struct HelloHead {
    #[serde(default)]
    pub(super) magic: Option<String>,
    #[serde(default)]
    pub(super) proto: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HelloReply {
    pub(super) magic: String,
    pub(super) proto: u64,
    pub(super) adapter: String,
    pub(super) adapter_version: String,
    pub(super) pid: u32,
    pub(super) versions: BTreeMap<String, String>,
    pub(super) spec: EnvSpec,
    pub(super) shm_bytes: u64,
}

/// Where an image lies in the shared memory: `[H, W, 3]` u8 RGB, row 0 on top, rows packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRef {
    pub(super) offset: u64,
    pub(super) shape: [u64; 3],
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireObs {
    #[serde(default)]
    pub(super) images: BTreeMap<String, ImageRef>,
    pub(super) proprio: ByteBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instruction: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct WireInfo {
    pub(super) success: Option<bool>,
    pub(super) metrics: BTreeMap<String, f64>,
    pub(super) privileged: Option<ByteBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) layout: Option<Vec<(String, u64)>>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ResetReply {
    pub(super) obs: WireObs,
    #[serde(default)]
    pub(super) info: WireInfo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) spec: Option<EnvSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rss: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireStep {
    pub(super) obs: WireObs,
    pub(super) reward: f64,
    pub(super) terminated: bool,
    pub(super) truncated: bool,
    #[serde(default)]
    pub(super) info: WireInfo,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StepReply {
    pub(super) steps: Vec<WireStep>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rss: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RenderReply {
    #[serde(default)]
    pub(super) frame: Option<ImageRef>,
}

#[derive(Debug, Deserialize)]
pub(super) struct CallReply {
    pub(super) result: rmpv::Value,
}
