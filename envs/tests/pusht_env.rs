//! PushT behind the contract.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use ndarray::ArrayView1;
use simloop_envs::pusht::{CAMERA, PushtConfig, PushtEnv, PushtGoals, PushtObs, PushtSeeding};
use simloop_envs::{Env, EnvError, ResetOptions, Step};

fn env(obs: PushtObs) -> PushtEnv {
    PushtEnv::new(PushtConfig { obs, ..PushtConfig::default() }).unwrap()
}

fn step(env: &mut dyn Env, target: [f32; 2]) -> Step {
    env.step(ArrayView1::from(&target), true).unwrap()
}

fn with_state(state: &[f64]) -> ResetOptions {
    ResetOptions { state: Some(state.to_vec()), ..ResetOptions::default() }
}

#[test]
fn observation_types_show_what_gym_pusht_shows() {
    // gym_pusht 0.1.8, `PushTEnv(obs_type="state").reset(seed=0)`.
    let (obs, info) = env(PushtObs::State).reset(Some(0), &ResetOptions::default()).unwrap();
    let expected = [390.0, 304.0, 241.542_56, 268.516_97, 3.399_037];
    assert_eq!(obs.proprio.as_slice().unwrap(), expected);
    assert!(obs.images.is_empty());
    assert_eq!(info.success, Some(false));

    let (obs, _) =
        env(PushtObs::EnvironmentStateAgentPos).reset(Some(0), &ResetOptions::default()).unwrap();
    assert_eq!(obs.proprio.len(), 18);
    assert_eq!(obs.proprio.as_slice().unwrap()[16..], [390.0, 304.0]);

    let (obs, _) = env(PushtObs::Pixels).reset(Some(0), &ResetOptions::default()).unwrap();
    assert_eq!(obs.proprio.len(), 0);
    assert_eq!(obs.images[CAMERA].shape(), [96, 96, 3]);
}

#[test]
fn success_ends_the_episode_above_95_percent_and_not_at_the_reset() {
    let mut env = env(PushtObs::State);
    // The goal pose itself, exactly, with the agent far away.
    let on_goal = [50.0, 450.0, 0.0, 0.0, 256.0, 256.0, std::f64::consts::FRAC_PI_4];
    let (_, info) = env.reset(Some(0), &with_state(&on_goal)).unwrap();
    assert_eq!(info.success, Some(false));
    let solved = step(&mut env, [50.0, 450.0]);
    assert!(solved.terminated && !solved.truncated);
    assert_eq!((solved.reward, solved.info.success), (1.0, Some(true)));
    assert!((solved.info.metrics["coverage"] - 1.0).abs() < 1e-9);

    // 12 px along x: coverage 0.77, reward coverage / 0.95, no end.
    let off = [50.0, 450.0, 0.0, 0.0, 268.0, 256.0, std::f64::consts::FRAC_PI_4];
    env.reset(Some(0), &with_state(&off)).unwrap();
    let open = step(&mut env, [50.0, 450.0]);
    let coverage = open.info.metrics["coverage"];
    assert!(!open.terminated && (0.5..0.95).contains(&coverage));
    assert_eq!(open.reward, (coverage / 0.95) as f32);
}

#[test]
fn the_agent_follows_the_damped_spring_to_its_target() {
    let mut env = env(PushtObs::State);
    env.reset(None, &with_state(&[100.0, 100.0, 0.0, 0.0, 400.0, 300.0, 0.0])).unwrap();
    // One sub-step by hand: v = 100 * 50 * 0.01 = 50 px/s, x = 100.5 px; after ten the error is 0.736 of the start.
    let first = step(&mut env, [150.0, 100.0]);
    let moved = first.obs.proprio[0] - 100.0;
    assert!((10.0..20.0).contains(&moved), "{moved}");
    for _ in 0..30 {
        step(&mut env, [150.0, 100.0]);
    }
    let rest = step(&mut env, [150.0, 100.0]);
    assert!((rest.obs.proprio[0] - 150.0).abs() < 1e-3 && rest.obs.proprio[1] == 100.0);
}

#[test]
fn a_block_stops_the_moment_it_is_no_longer_pushed() {
    let mut env = env(PushtObs::State);
    env.reset(None, &with_state(&[256.0, 100.0, 0.0, 0.0, 256.0, 150.0, 0.0])).unwrap();
    for _ in 0..3 {
        step(&mut env, [256.0, 180.0]);
    }
    let pushed = env.state().unwrap().block;
    assert!(pushed.y > 155.0, "{pushed:?}");
    for _ in 0..5 {
        step(&mut env, [256.0, 50.0]);
    }
    let left = env.state().unwrap().block;
    step(&mut env, [256.0, 50.0]);
    assert_eq!(env.state().unwrap().block, left, "no sliding after contact");
}

#[test]
fn seeds_continue_as_each_rule_says() {
    let options = ResetOptions::default();
    let first = |env: &mut PushtEnv, seed| env.reset(seed, &options).unwrap().0;
    let mut gym = env(PushtObs::State);
    let (a, b) = (first(&mut gym, Some(3)), first(&mut gym, None));
    assert_ne!(a, b);
    assert_eq!((first(&mut gym, Some(3)), first(&mut gym, None)), (a, b));

    let config = PushtConfig { seeding: PushtSeeding::DiffusionPolicy, ..PushtConfig::default() };
    let mut original = PushtEnv::new(config).unwrap();
    let state = first(&mut original, Some(100_000));
    assert_eq!(state.proprio.as_slice().unwrap()[..2], [235.0, 124.0]);
    assert_eq!(first(&mut original, None), state);
}

#[test]
fn privileged_state_is_named_and_only_there_on_request() {
    let config = PushtConfig { privileged: true, ..PushtConfig::default() };
    let mut env = PushtEnv::new(config).unwrap();
    let state = [90.0, 80.0, 5.0, -6.0, 300.0, 280.0, 7.5];
    let (_, info) = env.reset(None, &with_state(&state)).unwrap();
    let truth = info.privileged.unwrap();
    assert_eq!(truth.array("agent_pos_px"), Some([90.0, 80.0]));
    assert_eq!(truth.array("agent_vel_px_per_s"), Some([5.0, -6.0]));
    assert_eq!(truth.array("block_pose"), Some([300.0, 280.0, 7.5]));
    assert_eq!(truth.array("goal_pose"), Some([256.0, 256.0, std::f64::consts::FRAC_PI_4]));
    let (_, info) = self::env(PushtObs::State).reset(None, &with_state(&state)).unwrap();
    assert!(info.privileged.is_none());
}

#[test]
fn impossible_reset_options_are_refused_by_name() {
    let mut env = env(PushtObs::State);
    let mut refused = |options: ResetOptions| match env.reset(None, &options) {
        Err(error @ EnvError::Config { .. }) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    };
    let task = ResetOptions { task: Some("libero".into()), ..ResetOptions::default() };
    assert!(refused(task).contains("`libero`"));
    let index = ResetOptions { init_state: Some(4), ..ResetOptions::default() };
    assert!(refused(index).contains("no number 4"));
    assert!(refused(with_state(&[1.0, 2.0])).contains("2 numbers"));
    assert!(refused(with_state(&[1.0, 2.0, f64::NAN, 0.0, 0.0])).contains("not finite"));
    let config = PushtConfig { image_size: 0, ..PushtConfig::default() };
    assert!(matches!(PushtEnv::new(config), Err(EnvError::Config { .. })));
}

#[test]
fn people_see_a_picture_of_the_asked_size_with_the_last_target() {
    for side in [64_u32, 96, 512, 680] {
        let config = PushtConfig { render_size: side, ..PushtConfig::default() };
        let mut env = PushtEnv::new(config).unwrap();
        assert!(matches!(env.render(), Err(EnvError::NeedsReset { .. })));
        env.reset(Some(0), &ResetOptions::default()).unwrap();
        let before = env.render().unwrap().unwrap();
        assert_eq!(before.shape(), [side as usize, side as usize, 3]);
        step(&mut env, [100.0, 100.0]);
        let after = env.render().unwrap().unwrap();
        let at = (100.0 / 512.0 * f64::from(side)) as usize;
        assert_eq!(after.slice(ndarray::s![at, at, ..]).to_vec(), [255, 0, 0]);
        assert_ne!(before.slice(ndarray::s![at, at, ..]).to_vec(), [255, 0, 0]);
    }
}

fn two_goals(obs: PushtObs) -> PushtEnv {
    let config =
        PushtConfig { obs, goals: PushtGoals::Two, privileged: true, ..PushtConfig::default() };
    PushtEnv::new(config).unwrap()
}

fn task(name: &str, state: Option<Vec<f64>>) -> ResetOptions {
    ResetOptions { task: Some(name.to_owned()), state, ..ResetOptions::default() }
}

#[test]
fn of_two_targets_only_the_named_one_counts() {
    let mut env = two_goals(PushtObs::State);
    let [left, right] = PushtGoals::Two.all() else { panic!("two goals") };
    for (at, other) in [(left, right), (right, left)] {
        let pose = [at.pose.x, at.pose.y, at.pose.angle];
        let there = [&[50.0, 450.0, 0.0, 0.0][..], &pose].concat();
        for (asked, solved) in [(at, true), (other, false)] {
            let (_, info) = env.reset(None, &task(asked.task, Some(there.clone()))).unwrap();
            let goal = [asked.pose.x, asked.pose.y, asked.pose.angle];
            assert_eq!(info.privileged.unwrap().array::<3>("goal_pose"), Some(goal));
            let step = step(&mut env, [50.0, 450.0]);
            assert_eq!((step.terminated, step.info.success), (solved, Some(solved)));
            assert_eq!(step.reward, if solved { 1.0 } else { 0.0 });
        }
    }
}

#[test]
fn nothing_but_the_instruction_tells_which_target_counts() {
    let mut env = two_goals(PushtObs::PixelsAgentPos);
    let [left, right] = PushtGoals::Two.all() else { panic!("two goals") };
    let (a, _) = env.reset(Some(5), &task(left.task, None)).unwrap();
    let (b, _) = env.reset(Some(5), &task(right.task, None)).unwrap();
    assert_eq!((&a.images, &a.proprio), (&b.images, &b.proprio));
    assert_eq!((&*a.instruction, &*b.instruction), (left.instruction, right.instruction));
    // A reset without a task keeps the present one.
    let (c, _) = env.reset(Some(5), &ResetOptions::default()).unwrap();
    assert_eq!(c, b);
    let (first, _) = two_goals(PushtObs::State).reset(Some(5), &ResetOptions::default()).unwrap();
    assert_eq!(&*first.instruction, left.instruction);
}

#[test]
fn both_targets_are_painted_in_colours_of_their_own() {
    let middle = |frame: &simloop_envs::Frame, goal: &simloop_envs::pusht::Goal| {
        let [x, y] = goal.pose.transform([0.0, 60.0]).map(|v| (v * 96.0 / 512.0) as usize);
        [0, 1, 2].map(|c| frame[[y, x, c]])
    };
    let aside = vec![480.0, 480.0, 0.0, 0.0, 256.0, 380.0, std::f64::consts::FRAC_PI_2];
    let [left, right] = PushtGoals::Two.all() else { panic!("two goals") };
    let (obs, _) =
        two_goals(PushtObs::Pixels).reset(None, &task(left.task, Some(aside.clone()))).unwrap();
    let picture = &obs.images[CAMERA];
    assert_eq!(middle(picture, left), [144, 238, 144]);
    assert_eq!(middle(picture, right), [255, 160, 122]);
    let (obs, _) = env(PushtObs::Pixels).reset(None, &with_state(&aside)).unwrap();
    let picture = &obs.images[CAMERA];
    assert_eq!(middle(picture, right), [255; 3], "the standard picture has one target");
}

#[test]
fn a_task_of_the_other_variant_is_refused_with_the_tasks_there_are() {
    let refused = |env: &mut PushtEnv, name: &str| match env.reset(None, &task(name, None)) {
        Err(EnvError::Config { detail }) => detail,
        other => panic!("{other:?}"),
    };
    let detail = refused(&mut env(PushtObs::State), "pusht_two_goals/left");
    assert!(detail.contains("choose `pusht`"), "{detail}");
    let detail = refused(&mut two_goals(PushtObs::State), "pusht");
    assert!(detail.contains("`pusht_two_goals/left` or `pusht_two_goals/right`"), "{detail}");
    let (one, two) = (env(PushtObs::State), two_goals(PushtObs::State));
    assert_eq!(
        (one.spec().id.as_str(), two.spec().id.as_str()),
        ("pusht/state-v1", "pusht_two_goals/state-v1")
    );
    assert!(
        !one.spec().versions.contains_key("goals") && two.spec().versions.contains_key("goals")
    );
}
