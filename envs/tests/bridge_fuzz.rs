//! Whatever bytes arrive, the answer is a value or a named error, in bounded memory.
//!
//! A binary of its own, so that the peak memory it measures is its own.
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::collections::BTreeMap;
use std::fs::File;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rmpv::Value;
use simloop_envs::bridge::protocol::{Envelope, FrameBuffer, MAX_BODY, MAX_VALUES};
use simloop_envs::bridge::{ImageReader, Session};
use simloop_envs::{EnvError, FrameRequest};

const ALLOWED: u64 = 64 << 20;

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.map(|(key, value)| (key.into(), value)).into())
}

fn spec() -> Value {
    let space = |names: &[&str]| {
        let numbers = |x: f64| Value::Array(names.iter().map(|_| x.into()).collect());
        let names = Value::Array(names.iter().map(|name| (*name).into()).collect());
        map([("names", names), ("low", numbers(0.0)), ("high", numbers(f64::INFINITY))])
    };
    let camera = map([("height", 4.into()), ("width", 6.into())]);
    map([
        ("id", "fuzz/v1".into()),
        (
            "observation",
            map([("images", map([("camera", camera)])), ("proprio", space(&["a", "b"]))]),
        ),
        ("action", space(&["x"])),
        (
            "convention",
            map([
                ("control", map([("kind", "absolute_position".into())])),
                ("frame", "world".into()),
                ("gripper", "none".into()),
            ]),
        ),
        ("control_hz", 10.into()),
        ("max_episode_steps", Value::Nil),
        ("wrappers", Value::Array(vec![])),
        ("versions", map([("engine", "1".into())])),
    ])
}

fn hello() -> Value {
    map([
        ("magic", "simloop-bridge".into()),
        ("proto", 1.into()),
        ("adapter", "fuzz".into()),
        ("adapter_version", "1".into()),
        ("pid", 7.into()),
        ("versions", map([("python", "3".into())])),
        ("spec", spec()),
        ("shm_bytes", (1 << 20).into()),
    ])
}

fn obs(offset: u64) -> Value {
    let shape = Value::Array(vec![4.into(), 6.into(), 3.into()]);
    let image = map([("offset", offset.into()), ("shape", shape)]);
    map([
        ("images", map([("camera", image)])),
        ("proprio", Value::Binary(vec![0; 8])),
        ("instruction", "go".into()),
    ])
}

fn info() -> Value {
    let field = |name: &str, len: u64| Value::Array(vec![name.into(), len.into()]);
    map([
        ("success", false.into()),
        ("metrics", map([("coverage", 0.5.into()), ("count", 3.into())])),
        ("privileged", Value::Binary(vec![1; 24])),
        ("layout", Value::Array(vec![field("pose_m", 2), field("angle_rad", 1)])),
    ])
}

fn steps() -> Value {
    let step = || {
        map([
            ("obs", obs(72)),
            ("reward", 0.5.into()),
            ("terminated", false.into()),
            ("truncated", false.into()),
            ("info", info()),
        ])
    };
    map([("steps", Value::Array(vec![step(), step(), step()])), ("rss", 1000.into())])
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, value).unwrap();
    out
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

fn session() -> Session {
    open(&bytes(&hello())).unwrap()
}

fn open(ok: &[u8]) -> Result<Session, EnvError> {
    let (images, child) = ImageReader::create().unwrap();
    File::from(child).set_len(1 << 20).unwrap();
    Session::open(ok, images)
}

#[derive(Clone, Copy)]
enum Op {
    Hello,
    Reset,
    Step,
    Render,
    Call,
}

/// The way of a reply: stream, frame, envelope, contract types.
fn receive(session: &mut Session, op: Op, stream: &[u8]) -> Result<bool, EnvError> {
    let mut inbox = FrameBuffer::default();
    for piece in stream.chunks(4096) {
        inbox.space()[..piece.len()].copy_from_slice(piece);
        inbox.filled(piece.len());
        let Some(body) = inbox.next_body()? else { continue };
        let envelope = Envelope::open(body)?;
        let ok = envelope.outcome.map_err(EnvError::from)?;
        match op {
            Op::Hello => drop(open(ok)?),
            Op::Reset => drop(session.reset(ok)?),
            Op::Step => drop(session.steps(ok, 3, FrameRequest::Every)?),
            Op::Render => drop(session.render(ok)?),
            Op::Call => drop(Session::result(ok)?),
        }
        return Ok(true);
    }
    Ok(false)
}

fn mutate(stream: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    for _ in 0..rng.random_range(1..=4) {
        if stream.is_empty() {
            return;
        }
        let at = rng.random_range(0..stream.len());
        match rng.random_range(0..7) {
            0 => stream[at] ^= 1 << rng.random_range(0..8),
            1 => stream[at] = rng.random(),
            2 => stream.truncate(at),
            3 => stream.insert(at, rng.random()),
            4 => drop(stream.remove(at)),
            // Heads that claim much: bin32, str32, array32, map32, ext32.
            5 => {
                let mark = [0xc6, 0xdb, 0xdd, 0xdf, 0xc9][rng.random_range(0..5)];
                let claim: u32 = rng.random::<u32>() >> rng.random_range(0..32);
                stream.splice(at..at, [&[mark][..], &claim.to_be_bytes()].concat());
            }
            _ => {
                let from = rng.random_range(0..stream.len());
                let len = rng.random_range(0..64).min(stream.len() - from);
                let piece = stream[from..from + len].to_vec();
                stream.splice(at..at, piece);
            }
        }
    }
    // Two in three keep a length prefix that fits, so that the damage reaches the decoder.
    if rng.random_range(0..3) > 0 && stream.len() >= 4 {
        let len = (stream.len() - 4) as u32;
        stream[..4].copy_from_slice(&len.to_le_bytes());
    }
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

fn replies() -> Vec<(Op, Vec<u8>)> {
    let reset = map([("obs", obs(0)), ("info", info()), ("spec", spec()), ("rss", 9.into())]);
    let image = Value::Array(vec![5.into(), 5.into(), 3.into()]);
    let render = map([("frame", map([("offset", 0.into()), ("shape", image)]))]);
    let call = map([("result", Value::Array(vec![spec(), info(), Value::Nil]))]);
    let error = map([("kind", "E".into()), ("message", "m".into()), ("trace", "t".into())]);
    let reply = |key: &str, value| framed(&bytes(&map([("id", 1.into()), (key, value)])));
    vec![
        (Op::Hello, reply("ok", hello())),
        (Op::Reset, reply("ok", reset)),
        (Op::Step, reply("ok", steps())),
        (Op::Render, reply("ok", render)),
        (Op::Call, reply("ok", call)),
        (Op::Step, reply("err", error)),
    ]
}

/// A reply made to cost as much memory as the limits allow, or more than they allow.
fn bomb(number: usize) -> Option<(Op, Vec<u8>)> {
    let most = MAX_VALUES - 16;
    let call = |head: &[u8], item: &[u8], times: usize| {
        let mut stream = vec![0, 0, 0, 0, 0x82, 0xa2, b'i', b'd', 1, 0xa2, b'o', b'k', 0x81, 0xa6];
        stream.reserve_exact(head.len() + item.len() * times + 6);
        stream.extend_from_slice(b"result");
        stream.extend_from_slice(head);
        for _ in 0..times {
            stream.extend_from_slice(item);
        }
        let len = (stream.len() - 4) as u32;
        stream[..4].copy_from_slice(&len.to_le_bytes());
        Some((Op::Call, stream))
    };
    let claim = |mark: u8, len: usize| [&[mark][..], &(len as u32).to_be_bytes()].concat();
    match number {
        0 => call(&claim(0xdd, u32::MAX as usize), &[], 0),
        1 => call(&[], &[0x91], 1_000_000),
        2 => call(&claim(0xdd, most), &[0xc0], most),
        3 => call(&claim(0xdd, most), &[0xa0], most),
        4 => call(&claim(0xdd, most), &[0x80], most),
        5 => call(&claim(0xdd, most / 2), &[0x91, 0xc0], most / 2),
        6 => call(&claim(0xdd, most), &[0xa8, 1, 2, 3, 4, 5, 6, 7, 8], most),
        7 => call(&claim(0xdf, most / 2), &[0xa1, b'k', 1], most / 2),
        8 => {
            let metric = |i: usize| (format!("{i}").into(), 0.into());
            let info = map([("metrics", Value::Map((0..most / 2 - 20).map(metric).collect()))]);
            let reset = map([("obs", obs(0)), ("info", info)]);
            Some((Op::Reset, framed(&bytes(&map([("id", 1.into()), ("ok", reset)])))))
        }
        9 => call(&claim(0xdd, MAX_BODY - 64), &[0xc0], MAX_BODY - 64),
        10 => call(&claim(0xdb, MAX_BODY - 64), b"x", MAX_BODY - 64),
        11 => call(&claim(0xdd, most), &[&[0xd9, 59][..], &[b'x'; 59]].concat(), most),
        _ => None,
    }
}

#[test]
fn malformed_frames_give_named_errors_in_bounded_memory() {
    let rounds = std::env::var("SIMLOOP_FUZZ_FRAMES").map_or(100_000, |n| n.parse().unwrap());
    let mut session = session();
    let replies = replies();
    for (op, stream) in &replies[..5] {
        assert!(receive(&mut session, *op, stream).unwrap());
    }
    assert_eq!(receive(&mut session, Op::Step, &replies[5].1).unwrap_err().class(), "simulator");
    let before = peak_bytes();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..rounds {
        let (op, stream) = &replies[rng.random_range(0..replies.len())];
        let mut stream = stream.clone();
        mutate(&mut stream, &mut rng);
        let outcome = match receive(&mut session, *op, &stream) {
            Ok(true) => "accepted",
            Ok(false) => "incomplete",
            Err(error) => {
                assert!(error.to_string().len() < 4096, "{}", error.to_string().len());
                error.class()
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
        // A mutated spec may have been accepted: start from a sound one.
        if matches!(op, Op::Reset) && outcome == "accepted" {
            session = self::session();
        }
    }
    let rise = peak_bytes() - before;
    println!("{rounds} frames: {outcomes:?}, peak memory rose by {rise} bytes");
    assert!(outcomes["protocol"] > rounds / 2);
    for class in outcomes.keys() {
        let expected = ["accepted", "incomplete", "protocol", "handshake", "simulator"];
        let own = ["config", "unavailable", "invalid_action", "needs_reset", "panicked"];
        assert!(expected.contains(class) || own.contains(class), "{class}");
    }
    let start = peak_bytes();
    for i in 0.. {
        let Some((op, stream)) = bomb(i) else { break };
        let outcome = receive(&mut session, op, &stream);
        let accepted = outcome.map_err(|error| error.to_string());
        println!(
            "bomb {i}, {} bytes: {accepted:?}; peak memory rose by {} bytes since the first",
            stream.len(),
            peak_bytes() - start
        );
    }
    // The test's own copy of the stream is not the decoder's.
    assert!(peak_bytes() - start <= ALLOWED + MAX_BODY as u64);
}

#[test]
fn claims_are_checked_against_what_was_asked_for() {
    let mut session = session();
    let ok = |value: Value| bytes(&value);
    let refused = |result: Result<(), EnvError>, words: &str| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    let steps = ok(steps());
    let count = |n| session_steps(&steps, n, FrameRequest::Every);
    assert!(count(3).is_ok());
    refused(count(2), "3 steps answer a chunk of 2");
    refused(count(4), "does not end the episode in a chunk of 4");
    let reset = |key: &str, value: Value| {
        let mut reply = vec![("obs".into(), obs(0)), ("info".into(), info())];
        let place: &mut Value =
            if key == "layout" || key == "privileged" { &mut reply[1].1 } else { &mut reply[0].1 };
        let Value::Map(pairs) = place else { unreachable!() };
        pairs.retain(|(k, _)| k.as_str() != Some(key));
        pairs.push((key.into(), value));
        bytes(&Value::Map(reply))
    };
    let mut check = |key, value, words| {
        refused(session.reset(&reset(key, value)).map(drop), words);
    };
    check("proprio", Value::Binary(vec![0; 12]), "12 bytes, the spec says 2 f32");
    check("proprio", Value::Binary(vec![0xff; 8]), "`a` is NaN");
    check("images", map([]), "shows [], the spec says [camera]");
    let image = |offset: u64, h: u64, w: u64| {
        let shape = Value::Array(vec![h.into(), w.into(), 3.into()]);
        map([("camera", map([("offset", offset.into()), ("shape", shape)]))])
    };
    check("images", image(u64::MAX - 3, 4, 6), "outside the 1048576 shared bytes");
    check("images", image((1 << 20) - 71, 4, 6), "outside");
    check("images", image(0, u64::MAX, u64::MAX), "the spec says [4, 6, 3]");
    let field = |len: u64| Value::Array(vec![Value::Array(vec!["huge".into(), len.into()])]);
    check("layout", field(u64::MAX), "layout of more than");
    check("layout", field(2), "24 bytes, its layout says 2 f64");
    check("privileged", Value::Binary(vec![0; 23]), "23 bytes");
}

fn session_steps(ok: &[u8], n: usize, frames: FrameRequest) -> Result<(), EnvError> {
    session().steps(ok, n, frames).map(drop)
}
