//! A policy that answers with what it was asked, and clients that speak by hand.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "test helpers fail by panicking; not every test uses all of them"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ndarray::Array2;
use serde_json::{Value, json};
use simloop_envs::ActionChunk;
use simloop_policies::remote::{Description, Node, msgpack};
use simloop_policies::{ActMode, ActRequest, Needs, Policy, PolicyError, PolicyStep};
use simloop_trainers::serve::{Loaded, Loader, ServeConfig, Server};
use tungstenite::{Message, WebSocket};

/// `T_a`.
pub(crate) const STEPS: usize = 3;
/// As the second number of `state`: what the policy then does.
pub(crate) const NAN: f64 = 666.0;
pub(crate) const PANIC: f64 = 667.0;
/// Half a second.
pub(crate) const SLOW: f64 = 668.0;

/// Row `t` of its chunk is `[newest state[0], oldest state[0], t, noise_seed mod 1000003, first pixel]`.
pub(crate) struct Echo {
    pub(crate) cost: Duration,
}

impl Policy for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn needs(&self) -> Needs {
        Needs { images: true, privileged: false, n_obs_steps: 2 }
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        _mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        assert!(requests.len() <= 8, "a batch of {}", requests.len());
        std::thread::sleep(self.cost);
        let asks = |what: f64| requests.iter().any(|r| f64::from(r.obs.proprio[1]) == what);
        assert!(!asks(PANIC), "as asked");
        if asks(NAN) {
            return Err(PolicyError::NonFinite { tensor: "chunk".to_owned() });
        }
        if asks(SLOW) {
            std::thread::sleep(Duration::from_millis(500));
        }
        requests
            .iter()
            .map(|r| {
                assert_eq!(r.recent.len(), 2, "always the whole window");
                let row = [
                    r.obs.proprio[0],
                    r.recent[0].proprio[0],
                    0.0,
                    (r.noise_seed % 1_000_003) as f32,
                    f32::from(r.obs.images["top"][[0, 0, 0]]),
                ];
                let chunk =
                    Array2::from_shape_fn(
                        (STEPS, 5),
                        |(t, d)| {
                            if d == 2 { t as f32 } else { row[d] }
                        },
                    );
                Ok(PolicyStep { chunk: ActionChunk::new(chunk).unwrap(), stats: None })
            })
            .collect()
    }
}

/// The echo behind a server.
pub(crate) fn echo(cost: Duration) -> Loader {
    Box::new(move || {
        let description: Description = serde_json::from_value(json!({
            "label": "test/echo", "sha256": "00", "n_obs_steps": 2, "inference_batch": 8, "ensemble": false,
            "device": "cpu", "torch_threads": 1, "libtorch": "none", "cameras": ["top"],
            "io": {
                "cameras": { "top": { "height": 2, "width": 3 } },
                "proprio": ["a", "b"],
                "action": ["newest", "oldest", "t", "seed", "pixel"],
                "convention": null, "control_hz": null,
            },
        }))
        .unwrap();
        Ok(Loaded { policy: Box::new(Echo { cost }), description, reads: false })
    })
}

pub(crate) fn config() -> ServeConfig {
    ServeConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..ServeConfig::default() }
}

pub(crate) fn start(config: ServeConfig) -> Server {
    Server::start(config, echo(Duration::ZERO)).unwrap()
}

/// A request in OpenVLA's form.
pub(crate) fn request(a: f64, b: f64) -> Value {
    json!({ "image": image(7), "state": [a, b], "instruction": "go" })
}

/// A 2 × 3 image of one colour, as json_numpy writes it.
pub(crate) fn image(colour: u8) -> Value {
    // 18 times the same byte: base64 of three equal bytes, six times.
    let three = [
        colour >> 2,
        (colour & 3) << 4 | colour >> 4,
        (colour & 15) << 2 | colour >> 6,
        colour & 63,
    ];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text: String = three.iter().map(|i| char::from(alphabet[usize::from(*i)])).collect();
    json!({ "__numpy__": text.repeat(6), "dtype": "|u1", "shape": [2, 3, 3] })
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Writes `raw` and reads until the server closes; `None` if it answers nothing.
pub(crate) fn raw(address: SocketAddr, raw: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may have closed already: what it said is read below.
    let _ = stream.write_all(raw);
    read_answer(&mut stream)
}

pub(crate) fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    loop {
        match stream.read(&mut block) {
            Ok(0) | Err(_) => break,
            Ok(n) => bytes.extend(&block[..n]),
        }
        if complete(&bytes) {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// Whether as many bytes as the head says are there.
fn complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        line.to_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
    });
    length.is_some_and(|n| body.len() >= n)
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    raw(address, format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .unwrap()
}

pub(crate) fn post(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut bytes = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    raw(address, &bytes).unwrap()
}

/// `POST /act` in a session or without one; the numbers of the answer.
pub(crate) fn act(address: SocketAddr, session: &str, query: &str, body: &Value) -> Vec<f32> {
    let header =
        if session.is_empty() { String::new() } else { format!("x-session-id: {session}\r\n") };
    let answer = post(address, &format!("/act{query}"), &header, body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    simloop_policies::remote::json::read(answer.body.as_bytes()).unwrap().numbers().unwrap().1
}

/// A websocket, greeted; with it the metadata.
pub(crate) fn websocket(
    address: SocketAddr,
) -> (WebSocket<TcpStream>, std::collections::BTreeMap<String, String>) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{address}/"), stream).unwrap();
    let Message::Binary(bytes) = socket.read().unwrap() else { panic!("no metadata") };
    let Node::Map(entries) = msgpack::read(&bytes).unwrap() else { panic!("no map") };
    let words = entries.iter().map(|(k, v)| (k.to_string(), v.as_str().unwrap_or("").to_owned()));
    (socket, words.collect())
}

/// openpi's form of an observation.
pub(crate) fn observation(a: f32, b: f32) -> Vec<u8> {
    use simloop_policies::remote::{Array, Dtype};
    let image = Array::new(Dtype::U8, vec![2, 3, 3], vec![7; 18].into()).unwrap();
    msgpack::write(&Node::map([
        ("observation/image", Node::Array(image)),
        ("observation/state", Node::Array(Array::f32(&[2], [a, b].into_iter()).unwrap())),
        ("prompt", Node::Text("go".into())),
    ]))
}

/// Sends one message and waits for its answer: the numbers, or the text of an error.
pub(crate) fn ask(socket: &mut WebSocket<TcpStream>, bytes: Vec<u8>) -> Result<Vec<f32>, String> {
    socket.send(Message::Binary(bytes.into())).map_err(|e| e.to_string())?;
    loop {
        match socket.read().map_err(|e| e.to_string())? {
            Message::Binary(bytes) => {
                let node = msgpack::read(&bytes).unwrap();
                assert!(node.find("server_timing/infer_ms").is_some(), "{node:?}");
                return Ok(node.get("actions").unwrap().numbers().unwrap().1);
            }
            Message::Text(text) => return Err(text.to_string()),
            Message::Close(frame) => return Err(format!("closed: {frame:?}")),
            _ => {}
        }
    }
}

/// The value below which `part` of the values lie, which are sorted here.
pub(crate) fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * part) as usize).min(values.len() - 1)]
}

/// A count from the environment, for a long run by hand.
pub(crate) fn count(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}
