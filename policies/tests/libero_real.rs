//! The expert in the real simulator: from an initial state to success, in one task of either suite.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use simloop_envs::libero::{LiberoConfig, LiberoEnv, LocateOptions, locate};
use simloop_envs::{Env, EnvError, ResetOptions};
use simloop_policies::Expert;
use simloop_policies::scripted::LiberoExpert;

/// Steps to success within the limit, `None` on failure.
fn episode(env: &mut LiberoEnv, expert: &mut LiberoExpert, task: &str, limit: u32) -> Option<u32> {
    let options =
        ResetOptions { task: Some(task.to_owned()), init_state: Some(7), ..Default::default() };
    let (mut obs, mut info) = env.reset(Some(11), &options).expect("the reset succeeds");
    expert.reset();
    for steps in 1..=limit {
        let chunk = expert.label(&obs, &info).expect("the state is complete").expect("a label");
        let action = chunk.actions().next().expect("one action");
        let step = env.step(action, false).expect("the step succeeds");
        if step.terminated {
            return Some(steps);
        }
        (obs, info) = (step.obs, step.info);
    }
    None
}

#[test]
fn it_solves_one_task_of_either_suite_within_the_official_limit() {
    let install = match locate(&LocateOptions::default()) {
        Ok(install) => install,
        Err(EnvError::Unavailable { what, .. }) => {
            println!("skipped: {what} is not there");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mut env = LiberoEnv::start(&install, &LiberoConfig::blind("libero_spatial/4")).unwrap();
    let mut expert = LiberoExpert::new();
    // The drawer is the hardest of spatial; the two suites have other scenes, grips and goals.
    for (task, limit) in [("libero_spatial/4", 220), ("libero_object/9", 280)] {
        let first = episode(&mut env, &mut expert, task, limit);
        assert!(first.is_some(), "{task} within {limit} steps");
    }
}
