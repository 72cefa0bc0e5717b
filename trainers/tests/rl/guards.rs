//! Numbers that are none: the update is dropped, the weights stay, the tensor is named; three in a row end the run.

use simloop_algos::{Learner as _, Update};
use simloop_envs::EnvId;
use simloop_trainers::TrainerError;
use simloop_trainers::on_policy::Explorer;
use simloop_trainers::rollout::Plan;
use simloop_trainers::stop::StopFlag;

use super::{Kind, bits, config, parts, sac_parts, train};

#[test]
fn a_broken_rollout_is_dropped_with_the_weights_as_they_were() {
    for kind in [Kind::Ppo, Kind::Grpo] {
        let (mut algo, mut rollouts, schedule) = parts(kind, &config(&[]));
        let next = |env: EnvId, k| schedule.of_env(env, k);
        let plan = match kind {
            Kind::Ppo => Plan::Decisions { each: 4, next: &next },
            Kind::Grpo => Plan::Episodes(schedule.groups(0, 2, 3)),
        };
        let good = rollouts
            .collect(&mut Explorer(algo.actor()), plan, &StopFlag::default())
            .unwrap()
            .trajectories;
        let before = bits(&algo.state());
        for part in ["reward", "proprio", "log_prob", "latent"] {
            let mut bad = good.clone();
            let transition = &mut bad[1].transitions[0];
            match part {
                "reward" => {
                    transition.reward = f32::NAN;
                    bad[1].ret = f32::NAN;
                }
                "proprio" => transition.window[1].proprio = vec![f32::INFINITY; 5].into(),
                "log_prob" => transition.log_prob[0] = f32::NAN,
                _ => transition.latent[0] = f32::NEG_INFINITY,
            }
            let Update::Dropped { tensor } = algo.update(&bad).unwrap() else {
                panic!("{kind:?} learned from a broken {part}");
            };
            assert!(!tensor.is_empty());
            assert!(bits(&algo.state()) == before, "{kind:?}: {part} ({tensor})");
        }
        assert!(matches!(algo.update(&good).unwrap(), Update::Applied(_)));
        assert!(bits(&algo.state()) != before);
    }
}

#[test]
fn a_learning_rate_that_explodes_ends_the_run_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    // Weights of 1e30 give values that overflow in the next update, and in the one after it.
    let config = config(&["ppo.critic.learning_rate=1e30", "train.updates=50"]);
    let error = train(Kind::Ppo, &config, dir.path(), &StopFlag::default()).err().unwrap();
    assert!(matches!(error, TrainerError::Diverged { .. }), "{error}");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("3 updates in a row"), "{error}");
}

#[test]
fn a_policy_that_runs_away_is_stopped_by_its_divergence() {
    let run = |sets: &[&str]| {
        let (mut algo, mut rollouts, schedule) = parts(Kind::Ppo, &config(sets));
        let next = |env: EnvId, k| schedule.of_env(env, k);
        let plan = Plan::Decisions { each: 8, next: &next };
        let data = rollouts
            .collect(&mut Explorer(algo.actor()), plan, &StopFlag::default())
            .unwrap()
            .trajectories;
        match algo.update(&data).unwrap() {
            Update::Applied(metrics) => metrics,
            Update::Dropped { tensor } => panic!("{tensor}"),
        }
    };
    let wild = ["ppo.actor.learning_rate=0.03", "ppo.surrogate.target_kl=0.01"];
    assert_eq!(run(&wild).get("train/kl_stop"), Some(&1.0));
    assert_eq!(run(&["ppo.surrogate.target_kl=10.0"]).get("train/kl_stop"), None);
}

#[test]
fn sac_takes_no_broken_decision_into_its_memory() {
    let (mut sac, mut rollouts, schedule) = sac_parts(&config(&["squash"]));
    let next = |env: EnvId, k| schedule.of_env(env, k);
    let plan = Plan::Decisions { each: 4, next: &next };
    let mut data = rollouts
        .collect(&mut Explorer(sac.actor()), plan, &StopFlag::default())
        .unwrap()
        .trajectories;
    data[0].transitions[1].reward = f32::NAN;
    assert_eq!(sac.observe(&data).unwrap(), 1);
    assert_eq!(sac.experience().0, 23);
    assert!(matches!(sac.update().unwrap(), Update::Applied(_)));
}

#[test]
fn a_broken_actors_loss_drops_the_critics_gradient_too() {
    // The actor moves in every second update, and its loss is infinite then.
    let overrides = ["squash", "sac.bc_coef=inf", "sac.actor_every=2"];
    let (mut sac, mut rollouts, schedule) = sac_parts(&config(&overrides));
    let next = |env: EnvId, k| schedule.of_env(env, k);
    let plan = Plan::Decisions { each: 4, next: &next };
    let data = rollouts
        .collect(&mut Explorer(sac.actor()), plan, &StopFlag::default())
        .unwrap()
        .trajectories;
    sac.observe(&data).unwrap();
    // A demonstration's latent is what was executed: two actions of two numbers.
    let mut shown = data;
    for transition in shown.iter_mut().flat_map(|trajectory| &mut trajectory.transitions) {
        transition.latent.truncate(4);
    }
    sac.demonstrate(&shown).unwrap();
    assert!(matches!(sac.update().unwrap(), Update::Applied(_)));
    let mut before = sac.state();
    let Update::Dropped { tensor } = sac.update().unwrap() else { panic!("it was applied") };
    assert_eq!(tensor, "the actor's loss");
    assert_eq!(bits(&sac.state()), bits(&before));
    assert!(matches!(sac.update().unwrap(), Update::Applied(_)));
    // One that never took the second gradient goes the same way.
    let (mut other, ..) = sac_parts(&config(&overrides));
    before.counters.insert("updates".to_owned(), 2);
    other.load_state(&before).unwrap();
    assert!(matches!(other.update().unwrap(), Update::Applied(_)));
    assert_eq!(bits(&sac.state()), bits(&other.state()));
}
