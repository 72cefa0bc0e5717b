//! `bench pusht --policy ws://…` and `http://…`: the ledger of the policy in this process, and servers of other projects.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

#[path = "checkpoints/mod.rs"]
mod checkpoints;
mod said;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use checkpoints::{image_policy, state_policy};
use said::{digest, text};
use simloop_policies::remote::{Array, Node, json, msgpack};
use simloop_trainers::serve::{PolicySettings, ServeConfig, Server};
use tungstenite::Message;

const TOKEN: &str = "a-token-of-this-test";

fn serve(folder: &Path, listen: SocketAddr, token: Option<&str>) -> Server {
    let config = ServeConfig { listen, token: token.map(str::to_owned), ..ServeConfig::default() };
    let settings = PolicySettings::new(folder);
    Server::start(config, Box::new(move || settings.load())).unwrap()
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn bench(policy: &str, dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["pusht", "--videos", "0", "--max-steps", "40", "--episodes", "8", "--policy"])
        .arg(policy)
        .arg("--output-dir")
        .arg(dir)
        .args(args)
        .env_remove("SIMLOOP_TOKEN")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn run_json(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("run.json")).unwrap()).unwrap()
}

/// Schemes, and further arguments of each run.
type Runs = [(&'static str, &'static [&'static str]); 2];

#[test]
fn a_served_policy_gives_the_ledger_of_the_policy_in_this_process() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(_, Runs); 2] = [
        (
            state_policy(dir.path(), "state", 3),
            [
                ("ws", &["--workers", "1", "--shuffle", "5"]),
                ("http", &["--workers", "3", "--worker-kind", "processes"]),
            ],
        ),
        (image_policy(dir.path(), 4), [("ws", &[]), ("http", &[])]),
    ];
    for (policy, runs) in &cases {
        let at = |run: &str| policy.join("runs").join(run);
        let folder = policy.to_str().unwrap();
        let expected = digest(&bench(folder, &at("here"), &[]));
        let server = serve(policy, anywhere(), None);
        for (scheme, args) in runs {
            let url = format!("{scheme}://{}", server.address());
            assert_eq!(expected, digest(&bench(&url, &at(scheme), args)), "{url}");
        }
        let (here, there) = (run_json(&at("here")), run_json(&at("ws")));
        for key in ["policy", "fingerprint", "protocol_lines"] {
            assert_eq!(here[key], there[key], "{key}");
        }
        server.stop();
    }
    // So a run that began here goes on there; and either cuts chunks short alike.
    let policy = &cases[0].0;
    let at = |run: &str| policy.join("runs").join(run);
    let server = serve(policy, anywhere(), None);
    let url = format!("ws://{}", server.address());
    digest(&bench(&url, &at("here"), &["--resume"]));
    let cut = ["--n-action-steps", "2"];
    let fewer = digest(&bench(policy.to_str().unwrap(), &at("fewer here"), &cut));
    assert_eq!(fewer, digest(&bench(&url, &at("fewer"), &cut)));
    server.stop();
}

#[test]
fn a_server_that_comes_back_is_asked_again_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let policy = state_policy(dir.path(), "state", 3);
    let expected = digest(&bench(policy.to_str().unwrap(), &dir.path().join("here"), &[]));
    let first = serve(&policy, anywhere(), None);
    let address = first.address();
    let folder = policy.clone();
    let restarts = std::thread::spawn(move || {
        let mut server = first;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(150));
            server.stop();
            server = serve(&folder, address, None);
        }
        server
    });
    let output = bench(&format!("ws://{address}"), &dir.path().join("there"), &[]);
    assert_eq!(expected, digest(&output));
    restarts.join().unwrap().stop();
}

#[test]
fn what_cannot_be_reached_or_does_not_fit_is_refused_with_2_and_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("result");
    let closed = {
        let listener = TcpListener::bind(anywhere()).unwrap();
        listener.local_addr().unwrap()
    };
    // Takes connections and hangs up.
    let rude = TcpListener::bind(anywhere()).unwrap();
    let rude_at = rude.local_addr().unwrap();
    std::thread::spawn(move || rude.incoming().for_each(drop));
    let server = serve(&state_policy(dir.path(), "state", 3), anywhere(), Some(TOKEN));
    let robot = serve(&checkpoints::robot_policy(dir.path()), anywhere(), None);
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "another-token-of-16").unwrap();
    let wrong = wrong.to_str().unwrap();
    for (url, args, why) in [
        (format!("ws://{closed}"), &[][..], "refused"),
        (format!("http://{closed}"), &[], "refused"),
        (format!("ws://{rude_at}"), &[], "use the policy at"),
        (format!("http://{rude_at}"), &[], "use the policy at"),
        ("ws://no-such-host.invalid:1".to_owned(), &[], "no-such-host.invalid"),
        ("wss://127.0.0.1:1".to_owned(), &[], "tunnel"),
        (format!("ws://{}", server.address()), &[], "401"),
        (format!("http://{}", server.address()), &[], "401"),
        (format!("ws://{}", server.address()), &["--remote-token-file", wrong], "401"),
        (format!("ws://{}", robot.address()), &[], "joint_0_rad"),
        (format!("ws://{}", robot.address()), &["--remote-key", "image.top=x"], "image.top"),
    ] {
        let output = bench(&url, &at, args);
        let words = text(&output);
        assert_eq!(output.status.code(), Some(2), "{url} {args:?}: {words}");
        assert!(words.contains(why), "{url} {args:?}: {words}");
        assert!(!at.exists(), "a refused run leaves no folder");
    }
    let right = dir.path().join("right");
    std::fs::write(&right, format!("{TOKEN}\n")).unwrap();
    for url in [format!("ws://{}", server.address()), format!("http://{}", server.address())] {
        let args = ["--remote-token-file", right.to_str().unwrap(), "--overwrite"];
        digest(&bench(&url, &at, &args));
    }
    server.stop();
    robot.stop();
}

/// An openpi server of another project: no word of itself, one connection after the other or at once, dies after `answers`.
fn openpi(answers: usize) -> SocketAddr {
    let listener = TcpListener::bind(anywhere()).unwrap();
    let address = listener.local_addr().unwrap();
    let left = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(answers));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let left = std::sync::Arc::clone(&left);
            std::thread::spawn(move || {
                let mut socket = tungstenite::accept(stream.unwrap()).unwrap();
                let about = msgpack::write(&Node::map([("robot", Node::Text("x".into()))]));
                socket.send(Message::Binary(about.into())).unwrap();
                while let Ok(Message::Binary(bytes)) = socket.read() {
                    let message = msgpack::read(&bytes).unwrap();
                    let Node::Map(entries) = &message else { panic!("no map") };
                    let keys: Vec<_> = entries.iter().map(|(k, _)| &**k).collect();
                    assert_eq!(
                        keys,
                        ["observation/state", "words"],
                        "nothing that it does not know"
                    );
                    let (_, state) = message.get("observation/state").unwrap().numbers().unwrap();
                    if left
                        .fetch_update(
                            std::sync::atomic::Ordering::SeqCst,
                            std::sync::atomic::Ordering::SeqCst,
                            |n| n.checked_sub(1),
                        )
                        .is_err()
                    {
                        return;
                    }
                    // Push towards the middle for five steps.
                    let rows =
                        (0..5).flat_map(|_| [state[0].midpoint(256.0), state[1].midpoint(256.0)]);
                    let array = Array::f32(&[5, 2], rows).unwrap();
                    let reply = msgpack::write(&Node::map([("actions", Node::Array(array))]));
                    socket.send(Message::Binary(reply.into())).unwrap();
                }
            });
        }
    });
    address
}

/// An OpenVLA server of another project.
fn openvla() -> SocketAddr {
    let listener = TcpListener::bind(anywhere()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut length, mut first) = (0, String::new());
            stream.read_line(&mut first).unwrap();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let (status, reply) = if first.starts_with("POST /act ") {
                let message = json::read(&body).unwrap();
                let Some(Node::Array(image)) = message.get("image") else { panic!("no image") };
                assert_eq!(image.shape(), [64, 64, 3]);
                assert!(message.get("instruction").unwrap().as_str().unwrap().contains("Push"));
                assert_eq!(message.get("unnorm_key").unwrap().as_str(), Some("pusht"));
                let action = Array::f32(&[2], [256.0, 200.0].into_iter()).unwrap();
                (200, json::write(&Node::Array(action)).unwrap())
            } else {
                (404, "{}".to_owned())
            };
            let head = format!(
                "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                reply.len()
            );
            stream.get_mut().write_all((head + &reply).as_bytes()).unwrap();
        }
    });
    address
}

#[test]
fn policies_that_other_projects_serve_are_benchmarked() {
    let dir = tempfile::tempdir().unwrap();
    let key = ["--remote-key", "prompt=words"];
    let url = format!("ws://{}", openpi(usize::MAX));
    let one =
        digest(&bench(&url, &dir.path().join("1"), &[&key[..], &["--workers", "1"]].concat()));
    let four =
        digest(&bench(&url, &dir.path().join("4"), &[&key[..], &["--workers", "4"]].concat()));
    assert_eq!(one, four);
    let run = run_json(&dir.path().join("1"));
    assert_eq!(
        (&run["policy"], &run["fingerprint"]["policy.url"]),
        (&url.clone().into(), &url.into())
    );
    let url = format!("http://{}", openvla());
    let args =
        ["--observation", "pixels", "--remote-image-size", "64", "--remote-unnorm-key", "pusht"];
    digest(&bench(&url, &dir.path().join("http"), &args));
}

#[test]
fn a_foreign_server_that_dies_ends_the_run_with_1_and_what_was_done_stays() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("result");
    // Eight decisions are an episode.
    let url = format!("ws://{}", openpi(20));
    let output = bench(&url, &at, &["--remote-key", "prompt=words", "--workers", "1"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("use the policy at ws://"), "{}", text(&output));
    let ledger = std::fs::read_to_string(at.join("ledger.jsonl")).unwrap();
    assert_eq!(ledger.lines().count(), 2);
}
