//! DAgger: labels pile up, and an interrupted run goes on exactly.

use std::path::Path;

use simloop_policies::vla::VlaPolicy;
use simloop_trainers::data::collect::spec_of_env;
use simloop_trainers::data::{OpenOptions, open_source};
use simloop_trainers::expert_rollout::Experts;
use simloop_trainers::interactive::{Interactive, Learner};
use simloop_trainers::labels::LabelStore;
use simloop_trainers::observer::Observers;
use simloop_trainers::on_policy::Schedule;
use simloop_trainers::rl_build::surroundings;
use simloop_trainers::rl_config::RlConfig;
use simloop_trainers::rl_state::RlState;
use simloop_trainers::rollout::{RolloutOptions, Rollouts};
use simloop_trainers::round::{Around, Rhythm};
use simloop_trainers::run::Existing;
use simloop_trainers::stop::StopFlag;

use super::{OrResume as _, config, program, run_folder, weights};

fn train(config: &RlConfig, root: &Path) -> (VlaPolicyWeights, RlState) {
    let around = surroundings(config, true).unwrap();
    let schedule = Schedule::new(config.seed, around.place.tasks.clone());
    let options = RolloutOptions {
        n_obs_steps: 2,
        frames: simloop_envs::FrameRequest::None,
        gamma: 1.0,
        reward: config.reward.clone(),
        max_attempts: 3,
        clip: None,
    };
    let vec = around.place.vec(config.rollout.envs, config.rollout.workers).unwrap();
    let mut rollouts = Rollouts::new(vec, options);
    let loops = Interactive {
        labels: LabelStore {
            config: &config.dagger,
            spec: spec_of_env(&around.spec),
            schedule: &schedule,
            seed: config.seed,
            cloned: false,
        },
        rhythm: Rhythm {
            total: u64::from(config.dagger.iterations),
            evaluate_every: 0,
            ..config.rhythm()
        },
        model: config.policy.model.clone(),
        device: tch::Device::Cpu,
    };
    let run = run_folder(root, Existing::Overwrite.or_resume(root));
    let (mut learner, mut state): (Learner, _) = (None, RlState::default());
    if let Some((_, path)) = run.newest().unwrap() {
        state = loops.load(&path, &mut learner).unwrap();
    }
    let mut experts = Experts::new(&around.place).unwrap();
    let (mut observers, stop) = (Observers::default(), StopFlag::default());
    let mut around =
        Around { acting: None, judge: None, run: &run, observers: &mut observers, stop: &stop };
    loops
        .train(u64::MAX, &mut learner, &mut rollouts, &mut experts, &mut state, &mut around)
        .unwrap();
    let bc = learner.unwrap();
    let policy: &VlaPolicy = bc.model();
    (weights(policy), state)
}

type VlaPolicyWeights = Vec<Vec<u32>>;

fn settings(iterations: u32) -> RlConfig {
    let mut config = config(&["dagger.episodes=4", "dagger.updates=5", "dagger.batch_size=16"]);
    config.dagger.iterations = iterations;
    config.dagger.max_lead = 4;
    config.dagger.optim.schedule = simloop_policies::optim::Schedule::Constant { warmup: 0 };
    config
}

#[test]
fn labels_pile_up_and_a_resumed_run_is_the_uninterrupted_one() {
    let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(&settings(3), whole.path());
    let episodes = |root: &Path, round: &str| {
        let path = root.join("data").join(round);
        let source = open_source(&path, &OpenOptions::default()).unwrap();
        source.episodes().iter().map(|e| e.len).collect::<Vec<_>>()
    };
    // The first round is the expert's alone; in later ones the learner takes the first decisions.
    let (first, second) = (episodes(whole.path(), "0000"), episodes(whole.path(), "0001"));
    assert_eq!(first, [20, 20, 20, 20]);
    assert!(second.iter().all(|&len| (12..20).contains(&len)), "{second:?}");

    train(&settings(1), halves.path());
    let resumed = train(&settings(3), halves.path());
    assert_eq!(resumed.1.update, 3);
    assert!(resumed.0 == expected.0);
    // Without the first round's labels it is another run.
    let without = tempfile::tempdir().unwrap();
    train(&settings(1), without.path());
    std::fs::remove_dir_all(without.path().join("data/0000")).unwrap();
    let other = settings(1);
    let copy = tempfile::tempdir().unwrap();
    train(&RlConfig { seed: 5, ..other }, copy.path());
    std::fs::rename(copy.path().join("data/0000"), without.path().join("data/0000")).unwrap();
    assert!(train(&settings(3), without.path()).0 != expected.0);
}

#[test]
fn a_run_from_nothing_is_compared_with_the_clone_that_its_first_round_made() {
    let dir = tempfile::tempdir().unwrap();
    let sets =
        ["dagger.episodes=2", "dagger.updates=2", "dagger.batch_size=8", "dagger.iterations=2"];
    let sets: Vec<String> =
        sets.iter().chain(&["eval.final_episodes=3"]).map(|s| (*s).to_owned()).collect();
    program(dir.path(), "dagger", &sets);
    let read = |file: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(dir.path().join("run").join(file)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let outcome = read("evaluation.json");
    assert_eq!(outcome["before"]["episodes"], 3);
    assert_eq!(outcome["after"]["episodes"], 3);
    let about = read("run.json");
    assert!(about["parameters"].as_u64().unwrap() > 0 && about["updates"] == 2, "{about}");
}

#[test]
fn who_begins_as_a_clone_drives_from_the_first_round() {
    let dir = tempfile::tempdir().unwrap();
    let sets =
        ["dagger.episodes=4", "dagger.updates=2", "dagger.batch_size=8", "dagger.max_lead=4"];
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let lengths = |root: &Path| {
        let source = open_source(&root.join("run/data/0000"), &OpenOptions::default()).unwrap();
        source.episodes().iter().map(|e| e.len).collect::<Vec<_>>()
    };
    program(dir.path(), "dagger", &[&sets[..], &["dagger.iterations=1".to_owned()]].concat());
    // Nobody has learned anything yet: the expert does it all.
    assert_eq!(lengths(dir.path()), [20; 4]);
    let next = tempfile::tempdir().unwrap();
    let clone = format!("policy.init={:?}", dir.path().join("run/final"));
    super::program_from(next.path(), "dagger", &[&sets[..], &[clone]].concat());
    assert!(lengths(next.path()).iter().all(|&len| len < 20));
}

#[test]
fn a_round_without_a_label_costs_its_labels_only() {
    let (dir, next) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Episodes have ten decisions; the expert would come much later.
    let sets = ["dagger.episodes=2", "dagger.updates=2", "dagger.batch_size=8"];
    let mut sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    sets.extend(["dagger.max_lead=100000", "dagger.iterations=2"].map(str::to_owned));
    program(dir.path(), "dagger", &sets);
    let rounds = dir.path().join("run/data");
    assert!(rounds.join("0000/meta").exists());
    assert_eq!(std::fs::read_dir(rounds.join("0001")).unwrap().count(), 0);
    // With nothing at all to learn from, the remedy is named.
    sets.push(format!("policy.init={:?}", dir.path().join("run/final")));
    let output = super::try_program(next.path(), "dagger", &sets, &super::settings_without_model());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("lower `dagger.max_lead`"), "{said}");
}
