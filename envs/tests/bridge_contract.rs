//! An environment behind the bridge keeps the contract and equals the same environment in this process.
#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

mod bridge_common;

use bridge_common::{ToyEnv, fake_worker, pattern, reset_ok, rust_worker, serve_if_started};
use ndarray::{Array2, array};
use serde_json::json;
use simloop_envs::bridge::BridgeEnv;
use simloop_envs::testing::check_env;
use simloop_envs::{ActionChunk, Env, FrameRequest, ResetOptions};

#[test]
fn worker_entry() {
    serve_if_started();
}

#[test]
fn a_rust_worker_keeps_the_contract() {
    let mut env = BridgeEnv::start(rust_worker(json!({}))).unwrap();
    assert_eq!(check_env(&mut env, &ResetOptions::default()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_python_worker_keeps_the_contract() {
    let Some(config) = fake_worker(json!({})) else { return };
    let mut env = BridgeEnv::start(config).unwrap();
    assert_eq!(check_env(&mut env, &ResetOptions::default()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_rust_worker_equals_the_same_env_in_this_process() {
    let config = json!({ "episode_len": 11 });
    let mut near = ToyEnv::new(&config);
    let mut far = BridgeEnv::start(rust_worker(config)).unwrap();
    assert_eq!(near.spec(), far.spec());
    assert_eq!(far.versions()["toy"], "1.2");
    let options = ResetOptions { task: Some("another".to_owned()), ..ResetOptions::default() };
    assert_eq!(near.reset(Some(9), &options).unwrap(), far.reset(Some(9), &options).unwrap());
    assert_eq!(far.spec().id, "toy/another-v1");
    assert_eq!(near.spec(), far.spec());
    let chunk = ActionChunk::new(Array2::zeros((4, 1))).unwrap();
    for frames in [FrameRequest::Every, FrameRequest::Last, FrameRequest::LastN(2)] {
        let expected = near.step_chunk(&chunk, frames).unwrap();
        assert_eq!(expected, far.step_chunk(&chunk, frames).unwrap());
    }
    let over = far.step(array![0.0].view(), true).unwrap_err();
    assert_eq!(over.class(), "needs_reset");
    assert_eq!(near.render().unwrap(), far.render().unwrap());
    assert!(far.memory_bytes().unwrap() > 100_000);
    assert_eq!(near.reset(None, &ResetOptions::default()).unwrap(), {
        far.reset(None, &ResetOptions::default()).unwrap()
    });
}

#[test]
fn frames_arrive_byte_for_byte_through_the_shared_memory() {
    let images = json!({ "front": [64, 48], "wrist": [33, 17] });
    let Some(config) = fake_worker(json!({ "images": images })) else { return };
    let mut env = BridgeEnv::start(config).unwrap();
    let (obs, _) = reset_ok(&mut env, 5);
    assert_eq!(&*obs.instruction, "count to the end");
    assert_eq!(obs.images["front"], pattern(5, 0, 5, 64, 48));
    assert_eq!(obs.images["wrist"], pattern(5, 0, 5, 33, 17));
    let chunk = ActionChunk::new(Array2::zeros((3, 1))).unwrap();
    let outcome = env.step_chunk(&chunk, FrameRequest::Every).unwrap();
    for (i, step) in outcome.steps.iter().enumerate() {
        assert_eq!(step.obs.images["front"], pattern(5, i + 1, 5, 64, 48));
        assert_eq!(step.obs.images["wrist"], pattern(5, i + 1, 5, 33, 17));
        assert_eq!(&*step.obs.instruction, "count to the end");
    }
    // A frame that was handed out is a copy: later replies do not write into it.
    let kept = obs.images["front"].clone();
    reset_ok(&mut env, 77);
    assert_eq!(kept, pattern(5, 0, 5, 64, 48));
}

#[test]
fn the_privileged_state_comes_with_its_layout() {
    let Some(config) = fake_worker(json!({})) else { return };
    let mut env = BridgeEnv::start(config).unwrap();
    let (_, info) = reset_ok(&mut env, 5);
    assert_eq!(info.privileged.unwrap().get("clock_s"), Some(&[0.0][..]));
    let info = env.step(array![0.5].view(), false).unwrap().info;
    let state = info.privileged.unwrap();
    assert_eq!(state.get("clock_s"), Some(&[1.0][..]));
    assert_eq!(state.get("sum"), Some(&[0.5, 5.0][..]));
    assert_eq!(info.metrics["count"], 1.0);
}

#[test]
fn an_adapter_answers_queries_of_its_own() {
    let Some(config) = fake_worker(json!({})) else { return };
    let mut env = BridgeEnv::start(config).unwrap();
    let args = rmpv::Value::Map(vec![("x".into(), rmpv::Value::from(vec![1_u8, 2]))]);
    assert_eq!(env.call("echo", &args, 5.0).unwrap(), args);
    let error = env.call("nonsense", &args, 5.0).unwrap_err();
    assert!(error.to_string().contains("nonsense"), "{error}");
    reset_ok(&mut env, 1);
}
