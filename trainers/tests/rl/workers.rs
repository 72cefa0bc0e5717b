//! The number of workers decides nothing.

use simloop_trainers::stop::StopFlag;

use super::{Kind, bits, config, parts, program, train};

/// Updates compared: `SIMLOOP_RL_UPDATES`, 4 unless set.
fn updates() -> String {
    std::env::var("SIMLOOP_RL_UPDATES").unwrap_or_else(|_| "4".to_owned())
}

#[test]
fn one_two_and_four_workers_learn_the_same_weights() {
    for kind in [Kind::Ppo, Kind::Grpo] {
        let run = |workers: usize| {
            let dir = tempfile::tempdir().unwrap();
            let workers = format!("rollout.workers={workers}");
            let updates = format!("train.updates={}", updates());
            let config = config(&[&workers, &updates]);
            let (algo, state, _) = train(kind, &config, dir.path(), &StopFlag::default()).unwrap();
            (bits(&algo.state()), state.env_steps, state.rollouts)
        };
        let one = run(1);
        let (fresh, ..) = parts(kind, &config(&[]));
        assert!(one.1 > 0 && one.0 != bits(&fresh.state()), "{kind:?} learned nothing");
        for workers in [0, 2, 4] {
            assert!(run(workers) == one, "{kind:?} with {workers} workers");
        }
    }
}

#[test]
fn the_seed_decides() {
    let run = |seed: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&[seed, "train.updates=1"]);
        bits(&train(Kind::Ppo, &config, dir.path(), &StopFlag::default()).unwrap().0.state())
    };
    assert_ne!(run("seed=0"), run("seed=1"));
}

#[test]
fn an_environment_in_a_process_of_its_own_learns_the_same_weights() {
    let run = |processes: bool| {
        let dir = tempfile::tempdir().unwrap();
        let sets = [format!("env.processes={processes}"), "train.updates=2".to_owned()];
        program(dir.path(), "ppo", &sets);
        std::fs::read(dir.path().join("run/final/model.safetensors")).unwrap()
    };
    assert!(run(true) == run(false));
}
