//! What the policy server answers: both wire forms, sessions, metadata, metrics, tokens.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod serve_support;

use serde_json::{Value, json};
use serve_support::{
    NAN, PANIC, STEPS, act, ask, config, get, observation, post, raw, request, start, websocket,
};
use simloop_trainers::serve::ServeConfig;
use tungstenite::Message;

#[test]
fn openpis_form_is_metadata_then_a_chunk_for_each_observation() {
    let server = start(config());
    let (mut socket, about) = websocket(server.address());
    assert_eq!(about["server"], "simloop");
    let first = ask(&mut socket, observation(1.0, 0.0)).unwrap();
    assert_eq!(first.len(), STEPS * 5);
    let second = ask(&mut socket, observation(2.0, 0.0)).unwrap();
    // [newest, oldest, t, seed, pixel]
    assert_eq!((first[0], first[1], first[2], first[4]), (1.0, 1.0, 0.0, 7.0));
    assert_eq!((second[0], second[1], second[5 + 2]), (2.0, 1.0, 1.0));
    assert_ne!(first[3], second[3], "every decision has noise of its own");
    // Another connection is another session; its noise does not depend on who was there before.
    let (mut other, _) = websocket(server.address());
    assert_eq!(ask(&mut other, observation(1.0, 0.0)).unwrap(), first);
    server.stop();
}

#[test]
fn a_request_brings_its_noise_its_past_and_its_reset() {
    use simloop_policies::remote::{NOISE_SEED, Node, RECENT, RESET, msgpack};
    let server = start(config());
    let (mut socket, _) = websocket(server.address());
    let with = |a: f32, extra: Vec<(&'static str, Node<'static>)>| {
        let bytes = observation(a, 0.0);
        let Node::Map(mut entries) = msgpack::read(&bytes).unwrap() else { panic!() };
        entries.extend(extra.into_iter().map(|(k, v)| (k.into(), v)));
        msgpack::write(&Node::Map(entries))
    };
    let seeded = |n: u64| (NOISE_SEED, Node::Uint(n));
    let answer = ask(&mut socket, with(1.0, vec![seeded(u64::MAX)])).unwrap();
    assert_eq!(answer[3], (u64::MAX % 1_000_003) as f32);
    let older = observation(5.0, 0.0);
    let Node::Map(entries) = msgpack::read(&older).unwrap() else { panic!() };
    let older: Vec<_> = entries.into_iter().filter(|(k, _)| k != "prompt").collect();
    let past = Node::List(vec![Node::Map(older)]);
    let message = {
        let bytes = observation(6.0, 0.0);
        let Node::Map(mut entries) = msgpack::read(&bytes).unwrap() else { panic!() };
        entries.push((RECENT.into(), past.clone()));
        msgpack::write(&Node::Map(entries))
    };
    let answer = ask(&mut socket, message).unwrap();
    assert_eq!((answer[0], answer[1]), (6.0, 5.0), "newest and oldest of the window");
    let answer = ask(&mut socket, with(9.0, vec![(RESET, Node::Bool(true))])).unwrap();
    assert_eq!((answer[0], answer[1]), (9.0, 9.0), "nothing is left of the last episode");
    for (extra, why) in [
        (vec![(NOISE_SEED, Node::Int(-1))], "noise_seed"),
        (vec![(RESET, Node::Text("yes".into()))], "reset"),
        (vec![(RECENT, Node::List(vec![Node::Nil, Node::Nil]))], "at most 1"),
        (vec![(RECENT, Node::List(vec![Node::Nil]))], "missing"),
        (vec![(RECENT, Node::Nil)], "recent"),
    ] {
        let error = ask(&mut socket, with(1.0, extra)).unwrap_err();
        assert!(error.contains(why) && error.contains("status 422"), "{error}");
    }
    assert!(ask(&mut socket, observation(1.0, 0.0)).is_ok(), "the connection is still good");
    server.stop();
}

#[test]
fn openvlas_form_answers_one_action_and_deals_out_a_sessions_chunk() {
    let server = start(config());
    let at = server.address();
    let alone = act(at, "", "", &request(1.0, 0.0));
    assert_eq!((alone.len(), alone[0], alone[2]), (5, 1.0, 0.0));
    assert_eq!(alone, act(at, "", "", &request(1.0, 0.0)), "the same question, the same answer");
    let chunk = act(at, "", "?reply=chunk", &request(1.0, 0.0));
    assert_eq!((chunk.len(), &chunk[..5]), (STEPS * 5, &alone[..]));
    // A session: three actions of the first chunk, then a new decision that saw the last two observations.
    let dealt: Vec<Vec<f32>> =
        (0..4).map(|i| act(at, "robot-1", "", &request(f64::from(i), 0.0))).collect();
    let newest: Vec<f32> = dealt.iter().map(|action| action[0]).collect();
    let step: Vec<f32> = dealt.iter().map(|action| action[2]).collect();
    assert_eq!(newest, [0.0, 0.0, 0.0, 3.0]);
    assert_eq!(step, [0.0, 1.0, 2.0, 0.0]);
    assert_eq!(dealt[3][1], 2.0, "the window holds what was seen while the chunk was dealt out");
    let mut again = request(50.0, 0.0);
    again["simloop/reset"] = json!(true);
    let again = act(at, "robot-1", "", &again);
    assert_eq!((again[0], again[1], again[2]), (50.0, 50.0, 0.0), "a reset drops the plan");
    // Double-encoded, as for clients without json_numpy.
    let double = json!({ "encoded": request(4.0, 0.0).to_string() });
    let answer = post(at, "/act", "", double.to_string().as_bytes());
    let inner: String = serde_json::from_str(&answer.body).unwrap();
    let array: Value = serde_json::from_str(&inner).unwrap();
    assert_eq!(array["dtype"], "<f4");
    assert_eq!(array["shape"], json!([5]));
    server.stop();
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_nothing_of_the_inside_is_told() {
    let server = start(config());
    let at = server.address();
    let with = |key: &str, value: Value| {
        let mut body = request(1.0, 0.0);
        body[key] = value;
        body.to_string()
    };
    let array = |dtype: &str, shape: Value, text: &str| json!({ "__numpy__": text, "dtype": dtype, "shape": shape });
    let zeros = "AAAA".repeat(6);
    for (body, status, why) in [
        (String::new(), 400, "EOF"),
        ("[]".to_owned(), 400, "not a map"),
        ("{\"image\": NaN}".to_owned(), 400, "expected"),
        (with("image", array("|u1", json!([3, 3, 2]), &zeros)), 422, "`image`"),
        (with("image", array("<f4", json!([2, 3, 3]), &"AAAA".repeat(24))), 422, "float32"),
        (with("image", array("|O", json!([2, 3, 3]), &zeros)), 400, "|O"),
        (with("image", array("|u1", json!([1u64 << 40, 1u64 << 40]), &zeros)), 400, "array"),
        (with("image", json!("/etc/passwd")), 422, "`image`"),
        (with("state", json!([1.0])), 422, "`state`"),
        (with("state", json!([1.0, 1e39])), 422, "finite"),
        (with("state", array("<f8", json!([2]), "AAAAAAAA+H8AAAAAAAAAAA==")), 422, "finite"),
        (with("state", json!({})), 422, "`state`"),
        (with("instruction", json!(7)), 422, "`instruction`"),
        (with("instruction", json!("x".repeat(5000))), 422, "5000 bytes"),
        (with("simloop/noise_seed", json!(-1)), 422, "noise_seed"),
        (request(1.0, NAN).to_string(), 500, "not finite"),
        (request(1.0, PANIC).to_string(), 500, "failed to act"),
    ] {
        let answer = post(at, "/act", "", body.as_bytes());
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(answer.body.contains(why), "{body}: {answer:?}");
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        let id = error["error"]["request_id"].as_str().unwrap().to_owned();
        assert!(answer.head.contains(&format!("x-request-id: {id}")), "{answer:?}");
        for inside in ["panicked", ".rs", "thread", "src/", "backtrace"] {
            assert!(!answer.body.contains(inside), "{answer:?}");
        }
    }
    for (path, headers, status) in [
        ("/nothing", "", 404),
        ("/../../etc/passwd", "", 404),
        ("/metadata", "", 405),
        ("/act?reply=all", "", 400),
        ("/act", "x-session-id: ../../x\r\n", 400),
        ("/act", "content-encoding: gzip\r\n", 415),
        ("/act", "origin: https://example.org\r\n", 403),
    ] {
        let answer = post(at, path, headers, request(1.0, 0.0).to_string().as_bytes());
        assert_eq!(answer.status, status, "{path} {headers}: {answer:?}");
    }
    assert_eq!(raw(at, b"GARBAGE\r\n\r\n").unwrap().status, 400);
    assert_eq!(get(at, "/").status, 426);
    assert_eq!(get(at, "/healthz").status, 200);
    assert_eq!(act(at, "", "", &request(3.0, 0.0))[0], 3.0, "the server still works");
    server.stop();
}

#[test]
fn text_garbage_and_too_much_of_it_end_a_websocket_and_nothing_else() {
    let server = start(ServeConfig { max_body: Some(4096), ..config() });
    let (mut socket, _) = websocket(server.address());
    socket.send(Message::Text("hello".into())).unwrap();
    let Message::Text(text) = socket.read().unwrap() else { panic!() };
    assert!(text.contains("status 400"), "{text}");
    assert!(ask(&mut socket, vec![0xc1]).unwrap_err().contains("0xc1"));
    assert!(ask(&mut socket, observation(1.0, 0.0)).is_ok());
    let errors: Vec<_> = (0..40)
        .map_while(|_| {
            let error = ask(&mut socket, vec![0xc1]).unwrap_err();
            (!error.contains("closed")).then_some(error)
        })
        .collect();
    assert_eq!(errors.len(), 32, "patience ends");
    let (mut socket, _) = websocket(server.address());
    let large = ask(&mut socket, vec![0xc4; 8192]).unwrap_err();
    assert!(large.contains("too large"), "{large}");
    let (mut socket, _) = websocket(server.address());
    assert!(ask(&mut socket, observation(1.0, 0.0)).is_ok());
    server.stop();
}

#[test]
fn a_request_that_fails_does_not_fail_those_in_its_batch() {
    let server = start(ServeConfig { max_wait: std::time::Duration::from_millis(50), ..config() });
    let at = server.address();
    std::thread::scope(|scope| {
        for client in 0..6u16 {
            scope.spawn(move || {
                let (mut socket, _) = websocket(at);
                for round in 0..20u16 {
                    let bad = client == 0 && round % 2 == 1;
                    let state = f32::from(client * 100 + round);
                    let trouble = if !bad {
                        0.0
                    } else if round % 4 == 1 {
                        NAN
                    } else {
                        PANIC
                    };
                    let answer = ask(&mut socket, observation(state, trouble as f32));
                    if bad {
                        assert!(answer.unwrap_err().contains("status 500"));
                    } else {
                        assert_eq!(answer.unwrap()[0], state);
                    }
                }
            });
        }
    });
    server.stop();
}

#[test]
fn a_token_is_asked_for_everywhere_but_at_healthz() {
    let token = "0123456789abcdef-token";
    let server = start(ServeConfig { token: Some(token.to_owned()), ..config() });
    let at = server.address();
    let body = request(1.0, 0.0).to_string();
    for header in [
        "",
        "authorization: Bearer wrong\r\n",
        "authorization: Bearer \r\n",
        "authorization: Basic 0123456789abcdef-token\r\n",
    ] {
        for path in ["/act", "/", "/metadata", "/metrics", "/nothing"] {
            let answer = post(at, path, header, body.as_bytes());
            assert_eq!(answer.status, 401, "{path} {header}: {answer:?}");
            assert!(answer.head.contains("www-authenticate"), "{answer:?}");
        }
    }
    assert_eq!(get(at, "/healthz").status, 200);
    assert_eq!(get(at, "/metadata").status, 401);
    let stream = std::net::TcpStream::connect(at).unwrap();
    assert!(tungstenite::client(format!("ws://{at}/"), stream).is_err());
    for scheme in ["Bearer", "Api-Key"] {
        let header = format!("authorization: {scheme} {token}\r\n");
        assert_eq!(post(at, "/act", &header, body.as_bytes()).status, 200);
    }
    server.stop();
}

#[test]
fn metadata_and_metrics_say_what_happened() {
    let server = start(config());
    let at = server.address();
    let about: Value = serde_json::from_str(&get(at, "/metadata").body).unwrap();
    assert_eq!(about["policy"]["label"], "test/echo");
    assert_eq!(about["keys"]["cameras"][0]["names"][0], "observation/image");
    assert_eq!(about["limits"]["body_bytes"], 1 << 20);
    for i in 0..5 {
        act(at, "", "", &request(f64::from(i), 0.0));
    }
    post(at, "/act", "", b"{}");
    let metrics = get(at, "/metrics");
    assert!(metrics.head.contains("version=0.0.4"), "{metrics:?}");
    for line in [
        "simloop_requests_total{route=\"act\",status=\"2xx\"} 5",
        "simloop_requests_total{route=\"act\",status=\"4xx\"} 1",
        "simloop_decisions_total 5",
        "simloop_decision_seconds_count 5",
        "simloop_batch_size_sum 5",
        "simloop_panics_total 0",
    ] {
        assert!(metrics.body.lines().any(|l| l == line), "{line}\n{}", metrics.body);
    }
    server.stop();
}

#[test]
fn an_address_that_others_reach_or_that_is_taken_is_refused() {
    use simloop_trainers::serve::Server;
    use std::time::Duration;
    let open = ServeConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config() };
    let error = Server::start(open, serve_support::echo(Duration::ZERO)).err().unwrap().to_string();
    assert!(error.contains("token"), "{error}");
    let first = start(config());
    let taken = ServeConfig { listen: first.address(), ..config() };
    let error = Server::start(taken, serve_support::echo(Duration::ZERO)).err().unwrap();
    assert_eq!(error.exit_code(), 2, "{error}");
    first.stop();
}
