//! Acting in the real LIBERO while a policy is being trained.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use simloop_envs::libero::{LiberoConfig, LiberoEnv, LocateOptions, Suite, locate};
use simloop_policies::RandomPolicy;
use simloop_trainers::acting::Acting;
use simloop_trainers::config::EvalConfig;
use simloop_trainers::place::{Place, PlaceConfig};
use simloop_trainers::stop::StopFlag;

/// Whether LIBERO is here and renders; says why not.
fn renders() -> bool {
    let view = LiberoConfig::default().viewer();
    let started = locate(&LocateOptions::default()).and_then(|at| LiberoEnv::start(&at, &view));
    if let Err(reason) = &started {
        println!("skipped: could not {reason}");
    }
    started.is_ok()
}

#[test]
fn a_judgement_of_a_policy_that_sees_no_picture_leaves_a_film_for_people() {
    if !renders() {
        return;
    }
    let fields = ["eef_pos", "gripper_qpos", "akita_black_bowl_1_pos"];
    let place = PlaceConfig::Libero {
        suite: Suite::Spatial,
        tasks: vec![2],
        cameras: Vec::new(),
        image_size: 128,
        max_steps: 12,
        true_state: fields.map(str::to_owned).to_vec(),
        learn_init_states: None,
        python: None,
        assets: None,
    };
    let config = EvalConfig { episodes: 2, envs: 1, ..EvalConfig::default() };
    let place = Place::new(&place, false).unwrap();
    let mut acting = Acting::at(&place, &config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    acting.film_into(folder.path());
    let mut policy = RandomPolicy::new(place.vec(1, 0).unwrap().spec().unwrap().action, 1);
    let metrics = acting.judge(&mut policy, 3, &StopFlag::default()).unwrap().unwrap();
    assert_eq!((metrics["eval/episodes"], metrics["eval/success_rate"]), (2.0, 0.0));
    // It is only kept if the second simulation went the way of the first.
    let films: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap()).collect();
    assert_eq!(films.len(), 1, "{films:?}");
    assert!(films[0].file_name().to_string_lossy().starts_with("update00000003_ep0000_failure"));
    assert!(films[0].metadata().unwrap().len() > 2_000);
}
