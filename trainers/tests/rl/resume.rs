//! `n` updates equal `k` updates, a new process, and `n - k` more; leaving any part of the state out shows.

use simloop_algos::Learner as _;
use simloop_trainers::rl_state;
use simloop_trainers::run::Existing;
use simloop_trainers::stop::StopFlag;

use super::{Kind, bits, config, parts, run_folder, sac_parts, train, train_sac};

#[test]
fn ppo_and_grpo_go_on_exactly() {
    for kind in [Kind::Ppo, Kind::Grpo] {
        let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let stop = StopFlag::default();
        let expected = train(kind, &config(&[]), whole.path(), &stop).unwrap();
        train(kind, &config(&["train.updates=3"]), halves.path(), &stop).unwrap();
        let resumed = train(kind, &config(&[]), halves.path(), &stop).unwrap();
        assert_eq!(resumed.1.update, 6);
        assert!(bits(&resumed.0.state()) == bits(&expected.0.state()), "{kind:?}");
        assert_eq!(resumed.1.rollouts, expected.1.rollouts);
        assert_eq!(resumed.1.env_steps, expected.1.env_steps);
    }
}

/// Trains three updates, damages the checkpoint's state by `damage`, trains on, and returns the learner's bits.
fn after_damage(
    kind: Kind,
    damage: impl Fn(&mut simloop_algos::LearnerState, &mut rl_state::RlState),
) -> Vec<(String, Vec<u64>)> {
    let dir = tempfile::tempdir().unwrap();
    let stop = StopFlag::default();
    train(kind, &config(&["train.updates=3"]), dir.path(), &stop).unwrap();
    {
        let run = run_folder(dir.path(), Existing::Resume);
        let (_, path) = run.newest().unwrap().unwrap();
        let (mut learner, mut state) = rl_state::load(&path).unwrap();
        damage(&mut learner, &mut state);
        let (algo, ..) = parts(kind, &config(&[]));
        run.save(3, 2, |dir| {
            simloop_policies::checkpoint::save_policy(algo.actor(), dir)?;
            rl_state::save(dir, &learner, &state)
        })
        .unwrap();
    }
    bits(&train(kind, &config(&[]), dir.path(), &stop).unwrap().0.state())
}

#[test]
fn without_any_one_part_of_the_state_it_is_another_run() {
    let sound = after_damage(Kind::Ppo, |_, _| {});
    let zero = |set: &'static str| {
        move |learner: &mut simloop_algos::LearnerState, _: &mut rl_state::RlState| {
            for tensor in learner.tensors.get_mut(set).unwrap().values_mut() {
                *tensor = tensor.zeros_like();
            }
        }
    };
    for set in ["actor", "actor_optimizer", "critic", "critic_optimizer"] {
        assert!(after_damage(Kind::Ppo, zero(set)) != sound, "{set}");
    }
    let counter = after_damage(Kind::Ppo, |learner, _| {
        learner.counters.insert("updates".to_owned(), 2);
    });
    assert!(counter != sound, "the counter of all noise");
    let places = after_damage(Kind::Ppo, |_, state| {
        for seat in &mut state.rollouts.seats {
            seat.chunks = None;
        }
    });
    assert!(places != sound, "where the environments stand");
    let grpo = after_damage(Kind::Grpo, |_, _| {});
    let other = after_damage(Kind::Grpo, |learner, _| {
        learner.counters.insert("updates".to_owned(), 2);
    });
    assert!(grpo != other, "the counter of groups");
}

#[test]
fn sac_goes_on_exactly_with_what_it_remembers() {
    let settings = |updates: &str| config(&["squash", &format!("train.updates={updates}")]);
    let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train_sac(&settings("24"), whole.path());
    train_sac(&settings("12"), halves.path());
    let resumed = train_sac(&settings("24"), halves.path());
    assert!(bits(&resumed.state()) == bits(&expected.state()));
    assert!(resumed.experience().0 >= 20);

    // Without its memory it is another run.
    let forgetful = tempfile::tempdir().unwrap();
    train_sac(&settings("12"), forgetful.path());
    {
        let run = run_folder(forgetful.path(), Existing::Resume);
        let (_, path) = run.newest().unwrap().unwrap();
        let (mut learner, state) = rl_state::load(&path).unwrap();
        let (fresh, ..) = sac_parts(&settings("12"));
        let empty = fresh.state().tensors.remove("replay").unwrap();
        learner.tensors.insert("replay".to_owned(), empty);
        run.save(12, 2, |dir| {
            simloop_policies::checkpoint::save_policy(fresh.actor(), dir)?;
            rl_state::save(dir, &learner, &state)
        })
        .unwrap();
    }
    let forgetful = train_sac(&settings("24"), forgetful.path());
    assert!(bits(&forgetful.state()) != bits(&expected.state()));
}

#[test]
fn a_run_that_was_stopped_saves_and_goes_on_exactly() {
    let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let go = StopFlag::default();
    let expected = train(Kind::Ppo, &config(&[]), whole.path(), &go).unwrap();
    train(Kind::Ppo, &config(&["train.updates=2"]), stopped.path(), &go).unwrap();
    let stop = StopFlag::default();
    stop.set();
    let (_, state, end) = train(Kind::Ppo, &config(&[]), stopped.path(), &stop).unwrap();
    assert_eq!((end, state.update), (simloop_trainers::offline::End::Interrupted, 2));
    let resumed = train(Kind::Ppo, &config(&[]), stopped.path(), &go).unwrap();
    assert!(bits(&resumed.0.state()) == bits(&expected.0.state()));
}
