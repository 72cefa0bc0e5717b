//! Frames and messages: bounded before anything is allocated from what the wire claims.
//!
//! A frame is a little-endian `u32` length and a body of one msgpack map. [`FrameBuffer`] cuts a byte stream into bodies,
//! [`check`] walks a body once without allocating, and only then do the typed decoders run.

use std::ops::Range;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::EnvError;

/// What both sides call themselves.
pub const MAGIC: &str = "simloop-bridge";
/// The version of the protocol in this module's documentation.
pub const PROTO: u64 = 1;
/// The longest body, bytes.
pub const MAX_BODY: usize = 16 << 20;
/// The most msgpack values in a body. Decoded, a value costs about 100 bytes at worst, so a body stays under 64 MiB.
pub const MAX_VALUES: usize = 1 << 18;
/// The deepest nesting of maps and arrays.
pub const MAX_DEPTH: usize = 32;
/// The largest shared memory a child may ask for, bytes.
pub const MAX_SHM: u64 = 256 << 20;
/// The largest single image, bytes.
pub const MAX_IMAGE: u64 = 16 << 20;
/// The most image bytes in one reply.
pub const MAX_IMAGES: u64 = 64 << 20;

const PREFIX: usize = 4;
const READ_AHEAD: usize = 64 << 10;

pub(super) fn malformed(detail: impl Into<String>) -> EnvError {
    EnvError::Protocol { detail: detail.into() }
}

/// Cuts a byte stream into frame bodies.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameBuffer {
    /// Room for the next bytes of the stream, never empty; say with [`filled`](Self::filled) how many were put there.
    ///
    /// It grows with what has arrived, not with what a length prefix claims: at most twice the bytes received.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > 1 << 20 {
                self.bytes = Vec::new();
            }
        } else if self.start > 0 && self.bytes.len() - self.end < READ_AHEAD {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.bytes.len() - self.end < READ_AHEAD {
            let len = (self.end * 2).clamp(READ_AHEAD, PREFIX + MAX_BODY) + READ_AHEAD;
            self.bytes.resize(len, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Counts `n` bytes that were written to [`space`](Self::space).
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// Bytes received that belong to no complete frame yet.
    pub fn pending(&self) -> usize {
        self.end - self.start
    }

    /// Takes the next complete body, if there is one.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] for a length above [`MAX_BODY`] or a body that [`check`] refuses.
    pub fn next_body(&mut self) -> Result<Option<&[u8]>, EnvError> {
        let received = &self.bytes[self.start..self.end];
        let Some((prefix, rest)) = received.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > MAX_BODY {
            return Err(malformed(format!(
                "a frame claims {len} bytes, the limit is {MAX_BODY}; is something else writing to the socket?"
            )));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let body = self.start + PREFIX..self.start + PREFIX + len;
        self.start = body.end;
        let body = &self.bytes[body];
        check(body)?;
        Ok(Some(body))
    }
}

/// One msgpack head: what follows it.
enum Head {
    /// So many bytes of payload.
    Bytes(usize),
    /// So many values.
    Values(usize),
    /// So many pairs.
    Pairs(usize),
}

/// Reads the head at `at`; returns it with the position behind it (payload not included).
fn head(body: &[u8], at: usize) -> Result<(Head, usize), EnvError> {
    let cut = || malformed(format!("the body ends inside a value at byte {at} of {}", body.len()));
    let marker = *body.get(at).ok_or_else(cut)?;
    let length = |bytes: usize| -> Result<usize, EnvError> {
        let raw = body.get(at + 1..at + 1 + bytes).ok_or_else(cut)?;
        Ok(raw.iter().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    };
    let low = |mask: u8| usize::from(marker & mask);
    Ok(match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (Head::Bytes(0), at + 1),
        0x80..=0x8f => (Head::Pairs(low(0x0f)), at + 1),
        0x90..=0x9f => (Head::Values(low(0x0f)), at + 1),
        0xa0..=0xbf => (Head::Bytes(low(0x1f)), at + 1),
        0xc1 => return Err(malformed(format!("byte 0xc1 at {at} is no msgpack"))),
        0xc4 | 0xd9 => (Head::Bytes(length(1)?), at + 2),
        0xc5 | 0xda => (Head::Bytes(length(2)?), at + 3),
        0xc6 | 0xdb => (Head::Bytes(length(4)?), at + 5),
        // Extensions: one byte of type before the payload.
        0xc7 => (Head::Bytes(1 + length(1)?), at + 2),
        0xc8 => (Head::Bytes(1 + length(2)?), at + 3),
        0xc9 => (Head::Bytes(1 + length(4)?), at + 5),
        0xd4..=0xd8 => (Head::Bytes(1 + (1 << low(0x0f).saturating_sub(4))), at + 1),
        0xcc | 0xd0 => (Head::Bytes(1), at + 1),
        0xcd | 0xd1 => (Head::Bytes(2), at + 1),
        0xca | 0xce | 0xd2 => (Head::Bytes(4), at + 1),
        0xcb | 0xcf | 0xd3 => (Head::Bytes(8), at + 1),
        0xdc => (Head::Values(length(2)?), at + 3),
        0xdd => (Head::Values(length(4)?), at + 5),
        0xde => (Head::Pairs(length(2)?), at + 3),
        0xdf => (Head::Pairs(length(4)?), at + 5),
    })
}

/// Finds the end of the value at `start`: iterative, no allocation, `budget` counts values down.
fn skip(body: &[u8], start: usize, budget: &mut usize) -> Result<usize, EnvError> {
    let mut open = [0_usize; MAX_DEPTH];
    let (mut depth, mut at) = (0, start);
    loop {
        *budget = budget.checked_sub(1).ok_or_else(|| {
            malformed(format!("a body holds more than {MAX_VALUES} msgpack values"))
        })?;
        let (head, next) = head(body, at)?;
        let children = match head {
            Head::Bytes(len) => {
                at = next + len;
                if at > body.len() {
                    return Err(malformed(format!(
                        "a value claims {len} bytes at byte {next}, the body has {}",
                        body.len()
                    )));
                }
                0
            }
            Head::Values(n) => n,
            Head::Pairs(n) => n.saturating_mul(2),
        };
        if !matches!(head, Head::Bytes(_)) {
            at = next;
        }
        if children > 0 {
            if children > body.len() - at {
                return Err(malformed(format!(
                    "a map or array claims {children} values, {} bytes are left",
                    body.len() - at
                )));
            }
            *open.get_mut(depth).ok_or_else(|| {
                malformed(format!("maps and arrays are nested deeper than {MAX_DEPTH}"))
            })? = children;
            depth += 1;
            continue;
        }
        while depth > 0 {
            open[depth - 1] -= 1;
            if open[depth - 1] > 0 {
                break;
            }
            depth -= 1;
        }
        if depth == 0 {
            return Ok(at);
        }
    }
}

/// Checks that `body` is exactly one msgpack map within the limits, without allocating.
///
/// # Errors
/// [`EnvError::Protocol`] naming the first breach and its position.
pub fn check(body: &[u8]) -> Result<(), EnvError> {
    if body.is_empty() {
        return Err(malformed("an empty body; a body is one msgpack map"));
    }
    if !matches!(head(body, 0)?.0, Head::Pairs(_)) {
        return Err(malformed(format!("a body starts with byte {:#04x}, not with a map", body[0])));
    }
    let end = skip(body, 0, &mut MAX_VALUES.clone())?;
    if end != body.len() {
        return Err(malformed(format!("{} bytes follow the map of a body", body.len() - end)));
    }
    Ok(())
}

/// The byte ranges of the values of the named top-level keys of a checked body; the last one counts if a key is repeated.
fn fields<const N: usize>(
    body: &[u8],
    names: [&str; N],
) -> Result<[Option<Range<usize>>; N], EnvError> {
    let (head, mut at) = head(body, 0)?;
    let Head::Pairs(pairs) = head else { return Err(malformed("a body is not a map")) };
    let mut found = [const { None }; N];
    let mut budget = MAX_VALUES;
    for _ in 0..pairs {
        let value = skip(body, at, &mut budget)?;
        let end = skip(body, value, &mut budget)?;
        let key = &body[at..value];
        for (name, slot) in names.iter().zip(&mut found) {
            // The header of a short string is one byte; longer keys are not ours.
            if key.len() == name.len() + 1
                && key[0] == 0xa0 | name.len() as u8
                && &key[1..] == name.as_bytes()
            {
                *slot = Some(value..end);
            }
        }
        at = end;
    }
    Ok(found)
}

/// Decodes a checked value; unknown map keys are ignored.
///
/// # Errors
/// [`EnvError::Protocol`] naming `what`.
pub fn decode<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T, EnvError> {
    rmp_serde::from_slice(value).map_err(|e| malformed(format!("`{what}`: {e}")))
}

/// Writes a frame: length prefix and body.
pub(super) fn encode(message: &impl Serialize) -> Result<Vec<u8>, EnvError> {
    let mut frame = vec![0; PREFIX];
    let mut serializer = rmp_serde::Serializer::new(&mut frame).with_struct_map();
    message
        .serialize(&mut serializer)
        .map_err(|e| malformed(format!("a message cannot be written: {e}")))?;
    let len = frame.len() - PREFIX;
    if len > MAX_BODY {
        return Err(malformed(format!("a message has {len} bytes, the limit is {MAX_BODY}")));
    }
    frame[..PREFIX].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(frame)
}

/// A reply's outside: which request it answers, and with what.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The request's id.
    pub id: u64,
    /// The msgpack map under `ok`, or the error under `err`.
    pub outcome: Result<&'a [u8], WireError>,
}

impl<'a> Envelope<'a> {
    /// Opens a body that [`check`] accepted.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] unless it holds an `id` and exactly one of `ok` and `err`.
    pub fn open(body: &'a [u8]) -> Result<Self, EnvError> {
        let [id, ok, err] = fields(body, ["id", "ok", "err"])?;
        let id = id.ok_or_else(|| malformed("a reply without `id`"))?;
        let id = decode("id", &body[id])?;
        let outcome = match (ok, err) {
            (Some(ok), None) => Ok(&body[ok]),
            (None, Some(err)) => Err(decode("err", &body[err])?),
            _ => return Err(malformed("a reply holds exactly one of `ok` and `err`")),
        };
        Ok(Self { id, outcome })
    }
}

/// What a child answers when it cannot do what was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WireError {
    /// An [`EnvError::class`] or the name of an exception.
    pub kind: String,
    /// Its message.
    pub message: String,
    /// Its trace.
    pub trace: String,
}

impl From<WireError> for EnvError {
    fn from(error: WireError) -> Self {
        let WireError { kind, message, trace } = error;
        match kind.as_str() {
            "config" => Self::Config { detail: message },
            "unavailable" => Self::Unavailable { what: message, remedy: trace },
            "invalid_action" => Self::InvalidAction { detail: message },
            "needs_reset" => Self::NeedsReset { since: "its last episode or fault" },
            "handshake" => Self::Handshake { detail: message },
            "panicked" => Self::Panicked { message },
            _ => Self::Simulator { kind, message, trace },
        }
    }
}

impl From<EnvError> for WireError {
    fn from(error: EnvError) -> Self {
        let class = error.class();
        let of = |kind: &str, message, trace| Self { kind: kind.to_owned(), message, trace };
        match error {
            EnvError::Config { detail }
            | EnvError::InvalidAction { detail }
            | EnvError::Handshake { detail } => of(class, detail, String::new()),
            EnvError::Unavailable { what, remedy } => of(class, what, remedy),
            EnvError::Panicked { message } => of(class, message, String::new()),
            EnvError::Simulator { kind, message, trace } => Self { kind, message, trace },
            other => of(class, other.to_string(), String::new()),
        }
    }
}

/// The outside of a request, as a child reads it.
#[derive(Debug)]
pub struct Call<'a> {
    /// What the reply must carry.
    pub id: u64,
    /// What is asked for.
    pub op: String,
    /// The whole map: each operation decodes its own keys from it.
    pub args: &'a [u8],
}

impl<'a> Call<'a> {
    /// Opens a body that [`check`] accepted.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] without `id` or `op`.
    pub fn open(body: &'a [u8]) -> Result<Self, EnvError> {
        let [id, op] = fields(body, ["id", "op"])?;
        let (Some(id), Some(op)) = (id, op) else {
            return Err(malformed("a request holds `id` and `op`"));
        };
        Ok(Self { id: decode("id", &body[id])?, op: decode("op", &body[op])?, args: body })
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rmpv::Value;

    use super::*;

    fn random_value(rng: &mut ChaCha8Rng, depth: u32) -> Value {
        let sizes = [0, 1, 2, 4, 8, 15, 16, 31, 32, 255, 256, 65_535, 65_536];
        let size = sizes[rng.random_range(0..sizes.len())];
        match rng.random_range(0..if depth == 0 { 8 } else { 10 }) {
            0 => Value::Nil,
            1 => rng.random::<bool>().into(),
            2 => (rng.random::<i64>() >> rng.random_range(0..64)).into(),
            3 => (rng.random::<u64>() >> rng.random_range(0..64)).into(),
            4 => Value::F32(rng.random()),
            5 => Value::F64(rng.random()),
            6 => Value::Ext(3, vec![7; size]),
            7 if rng.random() => "x".repeat(size).into(),
            7 => Value::Binary(vec![7; size]),
            8 => {
                let len = size.min(40);
                Value::Array((0..len).map(|_| random_value(rng, depth - 1)).collect())
            }
            _ => {
                let len = size.min(40);
                Value::Map((0..len).map(|i| (i.into(), random_value(rng, depth - 1))).collect())
            }
        }
    }

    #[test]
    fn the_walk_ends_where_an_independent_encoder_ended() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..2000 {
            let mut body = Vec::new();
            let map = Value::Map(vec![("k".into(), random_value(&mut rng, 2))]);
            rmpv::encode::write_value(&mut body, &map).unwrap();
            check(&body).unwrap();
            let [k, other] = fields(&body, ["k", "other"]).unwrap();
            assert_eq!(k, Some(3..body.len()));
            assert_eq!(other, None);
            body.push(0xc0);
            assert!(check(&body).unwrap_err().to_string().contains("1 bytes follow"));
            body.truncate(body.len() - 2);
            assert!(check(&body).is_err());
        }
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut() {
        let bodies: Vec<Vec<u8>> = (0..9_usize)
            .map(|i| {
                let mut body = Vec::new();
                let text = "y".repeat(i * i * 3000);
                let map = Value::Map(vec![("text".into(), text.into())]);
                rmpv::encode::write_value(&mut body, &map).unwrap();
                body
            })
            .collect();
        let mut stream = Vec::new();
        for body in &bodies {
            stream.extend_from_slice(&(body.len() as u32).to_le_bytes());
            stream.extend_from_slice(body);
        }
        for piece in [1, 3, 4, 5, 1000, 65_536, stream.len()] {
            let mut inbox = FrameBuffer::default();
            let mut arrived = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let space = inbox.space();
                let n = piece.min(rest.len()).min(space.len());
                space[..n].copy_from_slice(&rest[..n]);
                inbox.filled(n);
                rest = &rest[n..];
                while let Some(body) = inbox.next_body().unwrap() {
                    arrived.push(body.to_vec());
                }
            }
            assert_eq!(arrived, bodies, "pieces of {piece}");
            assert_eq!(inbox.pending(), 0);
        }
    }

    #[test]
    fn errors_keep_their_class_over_the_wire() {
        let text = || "text".to_owned();
        for error in [
            EnvError::Config { detail: text() },
            EnvError::Unavailable { what: text(), remedy: text() },
            EnvError::InvalidAction { detail: text() },
            EnvError::NeedsReset { since: "construction" },
            EnvError::Handshake { detail: text() },
            EnvError::Panicked { message: text() },
            EnvError::Simulator { kind: text(), message: text(), trace: text() },
        ] {
            let class = error.class();
            assert_eq!(EnvError::from(WireError::from(error)).class(), class);
        }
    }
}
