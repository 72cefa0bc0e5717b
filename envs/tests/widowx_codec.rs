//! The robot's wire format against recorded bytes of the real client and server, and against damage.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

#[path = "widowx_common/python.rs"]
mod python;

use std::path::PathBuf;
use std::time::Instant;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use simloop_envs::testing::alloc;
use simloop_envs::widowx::messages::{self, EnvParams};
use simloop_envs::widowx::pickle::{self, Bounds, DType, Value};
use simloop_envs::widowx::{FaultKind, Pose, RobotObs, zmtp};

#[global_allocator]
static ALLOCATOR: alloc::Largest = alloc::Largest;

/// Each request and how we make it, by the name of its capture.
fn requests() -> Vec<(&'static str, Value<'static>)> {
    let params: &'static EnvParams = Box::leak(Box::new(EnvParams::openvla()));
    vec![
        ("hash_req", messages::hash()),
        ("obs_req", messages::obs()),
        ("init_req", messages::init(params)),
        ("reset_req", messages::reset()),
        ("move_req", messages::move_to(&Pose::openvla_start([0.3, -0.09, 0.26]).matrix, 0.8)),
        ("step_action_req", messages::step_action(&[0.01, 0.0, -0.005, 0.0, 0.0, 0.02, 1.0])),
        ("gripper_req", messages::gripper(1.0)),
        ("reboot_motor_req", messages::reboot_motor("wrist_angle")),
    ]
}

fn captures() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/widowx");
    if folder.join("obs_rep.pickle").exists() {
        return Some(folder);
    }
    println!("skipped: no recorded bytes of the robot server beside the repository");
    None
}

/// The body of a message as captured: one frame.
fn body(frame: &[u8]) -> &[u8] {
    let (flags, len, used) = zmtp::header(frame).unwrap().unwrap();
    assert_eq!((flags & !0x02, frame.len()), (0, used + len));
    &frame[used..]
}

#[test]
fn every_capture_is_read_and_our_handshake_is_the_captured_one() {
    let Some(folder) = captures() else { return };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert_eq!(zmtp::greeting().to_vec(), read("zmtp_greeting.bin"));
    assert_eq!(zmtp::ready(), read("zmtp_ready_req.bin"));
    let rep = read("zmtp_ready_rep.bin");
    assert_eq!(zmtp::socket_type(&rep[2..]).unwrap(), "REP");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".zmtp.bin") else { continue };
        let frame = read(&name);
        let unpacked = messages::decompress(body(&frame)).unwrap();
        let pickled = read(&format!("{stem}.pickle"));
        let (wire, file) =
            (messages::decode(&unpacked).unwrap(), messages::decode(&pickled).unwrap());
        if stem != "obs_req" {
            assert_eq!(unpacked, pickled, "{stem}"); // a set's order varies between captures
        }
        assert_eq!(sorted(wire), sorted(file), "{stem}");
        // What is written again reads the same.
        let again = pickle::write(&messages::decode(&unpacked).unwrap());
        assert_eq!(messages::decode(&again).unwrap(), messages::decode(&unpacked).unwrap());
        seen += 1;
    }
    assert_eq!(seen, 11, "all recorded messages");
    let (obs, hash) = (read("obs_rep.pickle"), read("hash_rep.pickle"));
    assert_eq!(messages::image_side(&messages::decode(&obs).unwrap()), Some(256));
    assert_eq!(messages::image_side(&messages::decode(&hash).unwrap()), None);
}

/// Sets in one order.
fn sorted(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Set(mut items) => {
            items.sort_by_key(|item| item.as_str().unwrap_or_default().to_owned());
            Value::Set(items)
        }
        Value::Dict(entries) => {
            Value::Dict(entries.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        other => other,
    }
}

#[test]
fn our_requests_are_the_captured_ones() {
    let Some(folder) = captures() else { return };
    for (name, ours) in requests() {
        let theirs = std::fs::read(folder.join(format!("{name}.pickle"))).unwrap();
        assert_eq!(sorted(ours), sorted(messages::decode(&theirs).unwrap()), "{name}");
    }
}

#[test]
fn python_unpickles_our_requests_to_the_captured_objects() {
    let (Some(folder), Some(python)) = (captures(), python::python()) else { return };
    let scratch = tempfile::tempdir().unwrap();
    for (name, ours) in requests() {
        std::fs::write(scratch.path().join(name), messages::encode(&ours)).unwrap();
    }
    let script = r#"
import pickle, pathlib, sys
import lz4.frame, numpy as np

def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) and a.flags.c_contiguous
    return a == b

ours, theirs = map(pathlib.Path, sys.argv[1:])
names = sorted(p.name for p in ours.iterdir())
for name in names:
    mine = pickle.loads(lz4.frame.decompress((ours / name).read_bytes()))
    captured = pickle.loads((theirs / (name + ".pickle")).read_bytes())
    assert same(mine, captured), (name, mine, captured)
print("equal:", *names)
"#;
    let output = std::process::Command::new(python)
        .args(["-c", script])
        .arg(scratch.path())
        .arg(&folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.split_whitespace().count(), 1 + requests().len(), "{said}");
    println!("{said}");
}

#[test]
fn what_python_pickles_is_read_whatever_the_protocol() {
    let Some(python) = python::python() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let script = r#"
import pickle, sys, pathlib
import numpy as np
out = pathlib.Path(sys.argv[1])
shared = np.arange(6, dtype=np.uint8).reshape(2, 3)
value = {
    "none": None, "yes": True, "no": False, "small": 7, "negative": -70000, "large": 2**40, "float": 0.1,
    "text": "grüße", "bytes": bytes(range(256)), "list": [1, [2, []]], "tuple": (1, 2, 3, 4), "one": (1,), "empty": (),
    "set": {"a"}, "f8": np.array([1.5, -2.5]), "f4": np.array([[1, 2], [3, 4]], dtype=np.float32),
    "fortran": np.asfortranarray(np.array([[1.0, 2.0], [3.0, 4.0]])), "scalar": np.float64(0.25), "scalar32": np.float32(0.5),
    "here": shared, "there": shared, "bools": np.array([True, False]), "zero": np.zeros((0, 3)), "no_dims": np.array(3.0),
    "long_text": "x" * 300, "bytearray": bytearray(b"abc"), "frozen": frozenset([1]),
}
for protocol in (2, 3, 4, 5):
    (out / str(protocol)).write_bytes(pickle.dumps(value, protocol))
"#;
    let made = std::process::Command::new(python)
        .args(["-c", script])
        .arg(scratch.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let all: Vec<Vec<u8>> =
        ["2", "3", "4", "5"].map(|p| std::fs::read(scratch.path().join(p)).unwrap()).into();
    let bounds = Bounds::default();
    let first = pickle::read(&all[0], &bounds).unwrap();
    for other in &all[1..] {
        assert_eq!(pickle::read(other, &bounds).unwrap(), first);
    }
    assert_eq!(first.get("large"), Some(&Value::Int(1 << 40)));
    assert_eq!(first.get("negative"), Some(&Value::Int(-70000)));
    assert_eq!(first.get("text"), Some(&Value::str("grüße")));
    assert_eq!(first.get("here"), first.get("there"), "one array under two keys");
    let Some(Value::Bytes(bytes)) = first.get("bytes") else { panic!("bytes") };
    assert!(bytes.iter().copied().eq(0..=255));
    let Some(Value::Array(fortran)) = first.get("fortran") else { panic!("an array") };
    assert_eq!((fortran.fortran, fortran.to_f64().unwrap()), (true, vec![1.0, 3.0, 2.0, 4.0]));
    let Some(Value::Scalar(scalar)) = first.get("scalar") else { panic!("a scalar") };
    assert_eq!((scalar.dtype, scalar.to_f64().unwrap()), (DType::Float(8), vec![0.25]));
    let Some(Value::Array(empty)) = first.get("zero") else { panic!("an array") };
    assert_eq!(empty.shape, [0, 3]);
}

#[test]
fn a_pickle_that_calls_anything_else_is_refused_by_name() {
    // os.system("true"), protocol 4.
    let evil = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.";
    let refused = messages::decode(evil).unwrap_err();
    assert_eq!(refused.kind, FaultKind::BadReply);
    assert!(refused.detail.contains("posix.system"), "{}", refused.detail);
    // Numbers behind a bound: deep nesting, many objects, a list that holds itself, an explosion by shared references.
    let bounds = Bounds::default();
    let deep = [b"\x80\x04".to_vec(), vec![b']'; 100], vec![b'a'; 99], b".".to_vec()].concat();
    assert!(pickle::read(&deep, &bounds).unwrap_err().to_string().contains("levels"));
    let many = [b"\x80\x04(".to_vec(), vec![b'N'; 1 << 20], b"t.".to_vec()].concat();
    assert!(pickle::read(&many, &bounds).unwrap_err().to_string().contains("objects"));
    let own = b"\x80\x04]\x94h\x00a.";
    assert!(pickle::read(own, &bounds).is_err());
    let mut bomb = b"\x80\x04]\x94".to_vec();
    for level in 0..28u8 {
        bomb.extend([b']', 0x94, b'h', level, b'a', b'h', level, b'a']);
    }
    bomb.push(b'.');
    assert!(pickle::read(&bomb, &bounds).unwrap_err().to_string().contains("objects"));
}

#[test]
fn the_captured_observation_has_the_values_of_the_spec() {
    let Some(folder) = captures() else { return };
    let pickled = std::fs::read(folder.join("obs_rep.pickle")).unwrap();
    let value = messages::decode(&pickled).unwrap();
    let obs = RobotObs::from_reply(&value, Instant::now()).unwrap();
    let neutral = [0.1202, -0.0191, 0.2467, -0.0399, -0.1272, 0.0252, 1.0];
    for (seen, expected) in obs.state.iter().zip(neutral) {
        assert!((seen - expected).abs() < 2e-4, "{seen} {expected}");
    }
    assert_eq!(obs.proprio()[6], 0.0);
    let frame = obs.frame(None).unwrap();
    assert_eq!(frame.shape(), [480, 640, 3]);
    // The same frame, resized by the server without JPEG, is RGB: red and blue must agree with ours, not be exchanged.
    let Some(Value::Array(image)) = value.get("image") else { panic!("an image") };
    let image = image.to_f64().unwrap();
    let small = obs.frame(Some([256, 256])).unwrap();
    let (mut right, mut swapped) = (0.0, 0.0);
    for y in 0..256 {
        for x in 0..256 {
            let ours = |c: usize| f64::from(small[[y, x, c]]) / 255.0;
            let theirs = |c: usize| image[c * 65536 + y * 256 + x];
            right += (ours(0) - theirs(0)).abs() + (ours(2) - theirs(2)).abs();
            swapped += (ours(0) - theirs(2)).abs() + (ours(2) - theirs(0)).abs();
        }
    }
    println!("mean difference {:.5}, exchanged {:.5}", right / 131_072.0, swapped / 131_072.0);
    assert!(right / 131_072.0 < 0.02 && swapped > 3.0 * right, "{right} {swapped}");
}

/// `SIMLOOP_WIDOWX_FUZZ` mutated inputs, 20,000 by default.
fn rounds() -> usize {
    std::env::var("SIMLOOP_WIDOWX_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

#[test]
fn damaged_frames_and_pickles_cost_an_error_and_no_memory() {
    let mut seeds: Vec<Vec<u8>> = requests().iter().map(|(_, v)| pickle::write(v)).collect();
    let jpeg = [0xff, 0xd8, 0xff, 0xe0].repeat(20);
    let image = pickle::Array {
        dtype: DType::Float(4),
        shape: vec![1, 12],
        fortran: false,
        data: vec![1; 48].into(),
    };
    let state = pickle::Array::of_f64(&[7], &[0.1; 7]).unwrap();
    let obs = Value::dict([
        ("image", Value::Array(image)),
        ("state", Value::Array(state)),
        ("full_image", Value::Bytes(jpeg.into())),
    ]);
    seeds.push(pickle::write(&obs));
    if let Some(folder) = captures() {
        for name in ["obs_rep", "init_req", "step_action_req", "hash_rep", "obs_req"] {
            let pickle = std::fs::read(folder.join(format!("{name}.pickle"))).unwrap();
            // The large arrays' bytes say nothing: half of the rounds go into a short one.
            seeds.push(pickle);
        }
    }
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let _ = alloc::take_largest();
    let (mut read, mut refused, mut largest) = (0, 0, 0);
    for round in 0..rounds() {
        let mut bytes = seeds[round % seeds.len()].clone();
        if bytes.len() > 100_000 && !round.is_multiple_of(50) {
            // Cut the image out of the observation, so that damage meets what is parsed.
            let tail = bytes.split_off(bytes.len() - 400);
            bytes.truncate(400);
            bytes.extend(tail);
        }
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..6) {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes[at] = rng.random(),
                2 => bytes.truncate(at.max(1)),
                3 => bytes.insert(at, rng.random()),
                4 => {
                    let len = rng.random_range(1..9).min(bytes.len() - at);
                    bytes[at..at + len].fill(0xff);
                }
                _ => {
                    let len = rng.random_range(1..40).min(bytes.len() - at);
                    let copy = bytes[at..at + len].to_vec();
                    let to = rng.random_range(0..bytes.len());
                    bytes.splice(to..to, copy);
                }
            }
        }
        #[expect(clippy::single_match_else, reason = "two places of damage side by side")]
        let outcome = match round % 3 {
            // A damaged pickle behind a whole frame.
            0 => messages::decode(&bytes).map(|value| use_it(&value)),
            // A whole pickle behind a damaged frame, and ZMTP's own framing.
            _ => {
                let _ = zmtp::header(&bytes);
                let _ = zmtp::socket_type(&bytes);
                let mut frame = zmtp::frame(0, &compress(&bytes));
                let at = rng.random_range(0..frame.len());
                frame[at] ^= 1 << rng.random_range(0..8);
                match zmtp::header(&frame) {
                    Ok(Some((_, len, used))) if used + len <= frame.len() => {
                        messages::decompress(&frame[used..used + len])
                            .and_then(|p| messages::decode(&p).map(|value| use_it(&value)))
                    }
                    _ => messages::decompress(&frame)
                        .and_then(|p| messages::decode(&p).map(|value| use_it(&value))),
                }
            }
        };
        match outcome {
            Ok(()) => read += 1,
            Err(_) => refused += 1,
        }
        largest = largest.max(alloc::take_largest());
    }
    println!(
        "{} damaged inputs: {read} read, {refused} refused, largest allocation {largest} bytes",
        rounds()
    );
    assert_eq!(read + refused, rounds());
    assert!(refused > rounds() / 2, "{refused}");
    assert!(largest < 64_000_000, "{largest}");
}

fn use_it(value: &Value<'_>) {
    let _ = messages::check_hash(value);
    let _ = messages::check_status("step_action", value);
    if let Ok(obs) = RobotObs::from_reply(value, Instant::now()) {
        let _ = obs.frame(Some([64, 64]));
    }
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_lz4_bomb_stops_at_the_limit() {
    let body = compress(&vec![0; 100 << 20]);
    assert!(body.len() < 1 << 20);
    let _ = alloc::take_largest();
    let refused = messages::decompress(&body).unwrap_err();
    assert!(refused.detail.contains("more than"), "{}", refused.detail);
    assert!(alloc::take_largest() < 64_000_000);
}
