//! Vector environments, with toys whose every step is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ResetOptions;
use crate::testing::CountingEnv;
use crate::wrappers::{FaultInjector, FaultKind, FaultPlan};

fn factory(plan: &FaultPlan) -> EnvFactory {
    let plan = plan.clone();
    Arc::new(move |_| {
        Ok(Box::new(FaultInjector::new(CountingEnv::new(6), plan.clone())) as Box<dyn Env>)
    })
}

fn reset(seed: u64) -> Request {
    Request::Reset(ResetRequest { seed: Some(seed), options: ResetOptions::default() })
}

fn chunk(len: usize) -> Request {
    Request::Step(ActionChunk::new(ndarray::Array2::zeros((len, 1))).unwrap(), FrameRequest::Last)
}

fn all(n: usize, request: impl Fn(usize) -> Request) -> Vec<(EnvId, Request)> {
    (0..n).map(|i| (EnvId(i), request(i))).collect()
}

/// `[proprio..., reward]` of every step of two chunks in every env.
fn rollout(vec: &mut dyn VecEnv) -> Vec<f32> {
    let n = vec.num_envs();
    let mut numbers = Vec::new();
    vec.send(all(n, |i| reset(i as u64))).unwrap();
    for _ in 0..2 {
        let mut replies = Vec::new();
        while vec.in_flight() > 0 {
            replies.extend(vec.recv(1));
        }
        replies.sort_by_key(|(id, _)| *id);
        for (_, reply) in replies {
            if let Reply::Step(outcome) = reply.unwrap() {
                for step in outcome.steps {
                    numbers.extend(step.obs.proprio.iter());
                    numbers.push(step.reward);
                }
            }
        }
        vec.send(all(n, |_| chunk(4))).unwrap();
    }
    numbers
}

#[test]
fn threads_and_one_thread_give_the_same_numbers() {
    let factory = factory(&FaultPlan::default());
    let sync = rollout(&mut SyncVecEnv::new(&factory, 5));
    assert_eq!(sync.len(), 5 * 4 * 3);
    for threads in [1, 2, 3, 8] {
        assert_eq!(sync, rollout(&mut ThreadedVecEnv::new(&factory, 5, threads).unwrap()));
    }
}

#[test]
fn a_chunk_stops_where_the_episode_ends() {
    let mut vec = SyncVecEnv::new(&factory(&FaultPlan::default()), 1);
    vec.send(all(1, |_| reset(0))).unwrap();
    vec.recv(1);
    vec.send(all(1, |_| chunk(100))).unwrap();
    let Ok(Reply::Step(outcome)) = vec.recv(1).remove(0).1 else { panic!("a step was asked for") };
    assert_eq!(outcome.steps.len(), 6);
    assert!(outcome.last().terminated);
}

#[test]
fn a_panicking_env_is_one_fault_and_is_built_anew() {
    let plan = FaultPlan::default().fail(1, FaultKind::Panic, 2, 1);
    let built = Arc::new(AtomicUsize::new(0));
    let inner = factory(&plan);
    let counter = Arc::clone(&built);
    let counting: EnvFactory = Arc::new(move |id| {
        counter.fetch_add(1, Ordering::Relaxed);
        inner(id)
    });
    let mut vec = ThreadedVecEnv::new(&counting, 3, 2).unwrap();
    vec.send(all(3, |i| reset(i as u64))).unwrap();
    vec.recv(3);
    vec.send(all(3, |_| chunk(4))).unwrap();
    let replies = vec.recv(3);
    let classes: Vec<_> =
        replies.iter().map(|(_, r)| r.as_ref().map_err(EnvError::class).err()).collect();
    assert_eq!(classes, [None, Some("panicked"), None]);

    vec.send(vec![(EnvId(1), chunk(1))]).unwrap();
    assert_eq!(vec.recv(1)[0].1.as_ref().unwrap_err().class(), "needs_reset");
    vec.send(vec![(EnvId(1), reset(1))]).unwrap();
    assert!(vec.recv(1)[0].1.is_ok());
    vec.send(vec![(EnvId(1), chunk(4))]).unwrap();
    assert!(vec.recv(1)[0].1.is_ok());
    assert_eq!(built.load(Ordering::Relaxed), 4);
}

#[test]
fn an_env_that_cannot_be_built_is_an_error_of_its_own() {
    let failing: EnvFactory = Arc::new(|id: EnvId| {
        if id.0 == 0 {
            return Err(EnvError::Unavailable {
                what: "assets".into(),
                remedy: "make libero".into(),
            });
        }
        Ok(Box::new(CountingEnv::new(6)))
    });
    let mut vec = ThreadedVecEnv::new(&failing, 2, 2).unwrap();
    assert_eq!(vec.spec().unwrap_err().class(), "unavailable");
    vec.send(all(2, |i| reset(i as u64))).unwrap();
    let replies = vec.recv(2);
    assert!(replies[0].1.is_err() && replies[1].1.is_ok());
}

#[test]
fn a_second_request_before_the_reply_is_refused() {
    let mut vec = ThreadedVecEnv::new(&factory(&FaultPlan::default()), 1, 1).unwrap();
    vec.send(all(1, |_| reset(0))).unwrap();
    assert_eq!(vec.send(all(1, |_| reset(0))).unwrap_err().class(), "config");
    assert_eq!(vec.recv(1).len(), 1);
    assert_eq!(vec.send(vec![(EnvId(9), reset(0))]).unwrap_err().class(), "config");
}

#[test]
fn dropping_a_busy_vector_joins_its_threads() {
    for _ in 0..100 {
        let mut vec = ThreadedVecEnv::new(&factory(&FaultPlan::default()), 4, 2).unwrap();
        vec.send(all(4, |i| reset(i as u64))).unwrap();
        drop(vec);
    }
}
