//! The requests of `widowx_env_service` and its replies.
//!
//! Source: bridge_data_robot `widowx_envs/widowx_env_service.py`, edgeml `action.py`; recorded exchanges.

use std::borrow::Cow;
use std::io::{Read as _, Write as _};

use lz4_flex::frame::{FrameDecoder, FrameEncoder};

use super::fault::{Fault, FaultKind};
use super::pickle::{self, Array, Bounds, DType, Value};

/// Largest pickle accepted, bytes; an observation is 0.84 MB.
pub const MAX_PICKLE: usize = 24 << 20;
/// The actions that the server must know.
pub const ACTION_KEYS: [&str; 6] =
    ["init", "move", "gripper", "reset", "step_action", "reboot_motor"];
/// The entries of an observation.
pub const OBSERVATION_KEYS: [&str; 3] = ["image", "state", "full_image"];
/// The protocol's version, edgeml's default.
pub const VERSION: &str = "0.0.1";

/// A message body: the LZ4 frame of the value's pickle.
pub fn encode(value: &Value<'_>) -> Vec<u8> {
    let pickle = pickle::write(value);
    let mut encoder = FrameEncoder::new(Vec::with_capacity(pickle.len() + 32));
    // Writing to a Vec cannot fail, and neither can compressing.
    let written = encoder.write_all(&pickle).and_then(|()| encoder.finish().map_err(Into::into));
    written.unwrap_or_default()
}

/// The pickle inside of a message body.
///
/// # Errors
/// [`FaultKind::BadReply`] for a damaged frame or more than [`MAX_PICKLE`] bytes.
pub fn decompress(body: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    let mut reader = FrameDecoder::new(body).take(MAX_PICKLE as u64 + 1);
    reader
        .read_to_end(&mut out)
        .map_err(|e| Fault::new(FaultKind::BadReply, format!("the LZ4 frame is damaged: {e}")))?;
    if out.len() > MAX_PICKLE {
        let detail = format!("the reply unpacks to more than {MAX_PICKLE} bytes");
        return Err(Fault::new(FaultKind::BadReply, detail));
    }
    Ok(out)
}

/// The value inside of a pickle.
///
/// # Errors
/// [`FaultKind::BadReply`] with the reason.
pub fn decode(pickle: &[u8]) -> Result<Value<'_>, Fault> {
    let bounds = Bounds { bytes: MAX_PICKLE, ..Bounds::default() };
    pickle::read(pickle, &bounds).map_err(|e| Fault::new(FaultKind::BadReply, e.to_string()))
}

/// `{"type": "hash"}`.
pub fn hash() -> Value<'static> {
    Value::dict([("type", Value::str("hash"))])
}

/// `{"type": "obs", "keys": {…}}`.
pub fn obs() -> Value<'static> {
    let keys = OBSERVATION_KEYS.map(Value::str).into();
    Value::dict([("type", Value::str("obs")), ("keys", Value::Set(keys))])
}

fn act<'a>(key: &'a str, payload: Value<'a>) -> Value<'a> {
    Value::dict([("type", Value::str("act")), ("key", Value::str(key)), ("payload", payload)])
}

/// The `init` request.
pub fn init(params: &EnvParams) -> Value<'_> {
    let floats =
        |values: &[f64]| -> Vec<Value<'_>> { values.iter().map(|v| Value::Float(*v)).collect() };
    let boundaries = [params.low, params.high].map(|corner| {
        // x, y, z, a rotation that the server never uses, and the int that stands for the gripper.
        let mut list = floats(&corner);
        list.push(Value::Int(0));
        Value::List(list)
    });
    let start = params.start_state.iter().map(|v| {
        if params.start_is_numpy {
            let data = Cow::Owned(v.to_le_bytes().to_vec());
            let dtype = DType::Float(8);
            Value::Scalar(Array { dtype, shape: Vec::new(), fortran: false, data })
        } else {
            Value::Float(*v)
        }
    });
    let topics = params
        .camera_topics
        .iter()
        .map(|name| Value::dict([("name", Value::str(name.as_str()))]))
        .collect();
    let env_params = Value::dict([
        ("fix_zangle", Value::Float(0.1)),
        ("move_duration", Value::Float(params.move_duration)),
        ("adaptive_wait", Value::Bool(true)),
        ("move_to_rand_start_freq", Value::Int(1)),
        ("override_workspace_boundaries", Value::List(boundaries.into())),
        ("action_clipping", Value::str("xyz")),
        ("catch_environment_except", Value::Bool(false)),
        ("start_state", Value::List(start.collect())),
        ("skip_move_to_neutral", Value::Bool(false)),
        ("return_full_image", Value::Bool(params.return_full_image)),
        ("camera_topics", Value::List(topics)),
    ]);
    let payload =
        [("env_params", env_params), ("image_size", Value::Int(i64::from(params.image_size)))];
    act("init", Value::dict(payload))
}

/// The `reset` request.
pub fn reset() -> Value<'static> {
    act("reset", Value::dict([]))
}

/// The `move` request: a pose `[4, 4]`, row by row, and seconds. The server answers when the arm is there.
pub fn move_to(pose: &[f64; 16], duration_secs: f64) -> Value<'static> {
    let payload = [
        ("pose", array(&[4, 4], pose)),
        ("duration", Value::Float(duration_secs)),
        ("blocking", Value::Bool(true)),
    ];
    act("move", Value::dict(payload))
}

/// The `step_action` request: dx, dy, dz \[m\], droll, dpitch, dyaw \[rad\], gripper. The server answers when the goal is
/// set.
pub fn step_action(action: &[f64; 7]) -> Value<'static> {
    let payload = [("action", array(&[7], action)), ("blocking", Value::Bool(false))];
    act("step_action", Value::dict(payload))
}

/// The `gripper` request: above 0.5 opens.
pub fn gripper(open: f64) -> Value<'static> {
    act("gripper", Value::dict([("open", Value::Float(open))]))
}

/// The `reboot_motor` request.
pub fn reboot_motor(joint: &str) -> Value<'_> {
    act("reboot_motor", Value::dict([("joint_name", Value::str(joint))]))
}

fn array(shape: &[usize], values: &[f64]) -> Value<'static> {
    // The server asks for `.shape`: a list kills the request.
    Array::of_f64(shape, values).map_or(Value::None, Value::Array)
}

/// Side of the pictures in an observation's `image` (float32, `[cameras, 3 S S]`), pixels. The server fixes it when it builds
/// a robot, and keeps it when `init` repeats the parameters of the robot that it has.
pub fn image_side(reply: &Value<'_>) -> Option<u32> {
    let Some(Value::Array(Array { dtype: DType::Float(4), shape, .. })) = reply.get("image") else {
        return None;
    };
    let &[_, values] = &shape[..] else { return None };
    let side = (values / 3).isqrt();
    if side == 0 || 3 * side * side != values {
        return None;
    }
    u32::try_from(side).ok()
}

/// What the server is told at `init`. It must be the same in every session of one server process: other parameters make it
/// build a second robot beside the first.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvParams {
    /// Low corner of the server's own bounds: x, y, z \[m\] and an angle that it never uses.
    pub low: [f64; 4],
    /// High corner.
    pub high: [f64; 4],
    /// Seconds of one motion.
    pub move_duration: f64,
    /// Where `reset` goes: the server reads x, y, z, roll, pitch, yaw, gripper.
    pub start_state: [f64; 7],
    /// OpenVLA's holds numpy scalars.
    pub start_is_numpy: bool,
    /// Asked for by OpenVLA; the server sends the full image in any case.
    pub return_full_image: bool,
    /// ROS topics of the cameras; the first one is `full_image`.
    pub camera_topics: Vec<String>,
    /// Side of `image`, pixels.
    pub image_size: u32,
}

impl EnvParams {
    /// As OpenVLA's `run_bridgev2_eval.py` sends it (openvla c8f03f4).
    pub fn openvla() -> Self {
        Self {
            low: [0.1, -0.20, -0.01, -1.57],
            high: [0.45, 0.25, 0.30, 1.57],
            move_duration: 0.2,
            // Position and a quaternion, which the server takes for angles: pitch -0.259 is what it was meant to be.
            start_state: [0.3, -0.09, 0.26, 0.0, -0.259, 0.0, -0.966],
            start_is_numpy: true,
            return_full_image: true,
            camera_topics: vec!["/blue/image_raw".to_owned()],
            image_size: 256,
        }
    }

    /// As Octo's and BridgeData V2's evaluation scripts send it (octo 241fb35, bridge_data_v2 830fc9e).
    pub fn octo() -> Self {
        Self {
            low: [0.1, -0.15, -0.01, -1.57],
            high: [0.45, 0.25, 0.25, 1.57],
            move_duration: 0.2,
            start_state: [0.3, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0],
            start_is_numpy: false,
            return_full_image: false,
            camera_topics: vec!["/blue/image_raw".to_owned()],
            image_size: 256,
        }
    }
}

/// Checks the answer to `hash`: keys and version must be ours, ports may differ (a forwarded port).
///
/// # Errors
/// [`FaultKind::Handshake`] naming both sides; [`FaultKind::BadReply`].
pub fn check_hash(reply: &Value<'_>) -> Result<(), Fault> {
    let handshake = |detail: String| Fault::new(FaultKind::Handshake, detail);
    if reply.get("success") != Some(&Value::Bool(true)) {
        let said = reply.get("message").and_then(Value::as_str).unwrap_or("no reason");
        return Err(handshake(format!("the server refuses the handshake ({said})")));
    }
    let payload = reply.get("payload").and_then(Value::as_str);
    let payload =
        payload.ok_or_else(|| handshake("its handshake holds no configuration".into()))?;
    let config: serde_json::Value = serde_json::from_str(payload)
        .map_err(|e| handshake(format!("its configuration is no JSON: {e}")))?;
    let list = |name: &str| -> Vec<&str> {
        let list = config.get(name).and_then(serde_json::Value::as_array);
        list.into_iter().flatten().filter_map(serde_json::Value::as_str).collect()
    };
    for (name, ours) in
        [("action_keys", &ACTION_KEYS[..]), ("observation_keys", &OBSERVATION_KEYS[..])]
    {
        let theirs = list(name);
        if theirs != ours {
            return Err(handshake(format!("its {name} are {theirs:?}, ours {ours:?}")));
        }
    }
    match config.get("version").and_then(serde_json::Value::as_str) {
        Some(VERSION) => Ok(()),
        other => {
            Err(handshake(format!("its version is {}, ours {VERSION}", other.unwrap_or("missing"))))
        }
    }
}

/// Checks the answer to an action: 1 is success.
///
/// # Errors
/// [`FaultKind::ExecutionFailed`] (2), [`FaultKind::NotInitialised`] (3), [`FaultKind::TestMode`] (3 to `init` itself),
/// [`FaultKind::BadReply`].
pub fn check_status(request: &str, reply: &Value<'_>) -> Result<(), Fault> {
    match reply.get("status").and_then(Value::as_int) {
        Some(1) => Ok(()),
        Some(2) => Err(Fault::new(
            FaultKind::ExecutionFailed,
            format!("the server answers EXECUTION_FAILURE to `{request}`"),
        )),
        Some(3) if request == "init" => Err(Fault::new(
            FaultKind::TestMode,
            "the server answers NOT_INITIALIZED to `init` itself",
        )),
        Some(3) => Err(Fault::new(
            FaultKind::NotInitialised,
            format!("the server answers NOT_INITIALIZED to `{request}`"),
        )),
        Some(other) => Err(Fault::new(
            FaultKind::BadReply,
            format!("the server answers status {other} to `{request}`"),
        )),
        None => Err(Fault::new(
            FaultKind::BadReply,
            format!("the answer to `{request}` is a {} without a status", reply.type_name()),
        )),
    }
}
