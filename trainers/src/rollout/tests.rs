//! What rollouts promise: nothing but seeds decides, and faults change nothing.

use std::sync::Arc;

use ndarray::Array2;
use simloop_envs::pusht::{PushtConfig, PushtEnv};
use simloop_envs::vec::{SyncVecEnv, ThreadedVecEnv};
use simloop_envs::wrappers::{FaultInjector, FaultKind, FaultPlan, TimeLimit};
use simloop_envs::{Env, EnvFactory, EpisodeEnd, ResetOptions};
use simloop_policies::NoiseStream;

use super::*;

/// Two actions per decision, drawn from the decision's own noise around the agent.
struct Wanderer {
    batch: usize,
}

impl Decider for Wanderer {
    fn decide(&mut self, seen: &[Seen<'_>]) -> Result<Vec<Decision>, TrainerError> {
        seen.iter()
            .map(|one| {
                let noise = NoiseStream::new(one.seed).normal(&[4], tch::Device::Cpu) * 60.0;
                let at = &one.window.last().unwrap().proprio;
                let action =
                    |t: usize, d: usize| at[d] + noise.double_value(&[(2 * t + d) as i64]) as f32;
                let chunk = Array2::from_shape_fn((2, 2), |(t, d)| action(t, d));
                Ok(Decision {
                    latent: chunk.iter().copied().collect(),
                    chunk: ActionChunk::new(chunk).unwrap(),
                    log_prob: vec![-1.0],
                })
            })
            .collect()
    }

    fn batch(&self) -> usize {
        self.batch
    }
}

fn factory(plan: &FaultPlan) -> EnvFactory {
    let plan = plan.clone();
    Arc::new(move |_| {
        let env = PushtEnv::new(PushtConfig { privileged: true, ..PushtConfig::default() })?;
        let env = TimeLimit::new(FaultInjector::new(env, plan.clone()), 13)?;
        Ok(Box::new(env) as Box<dyn Env>)
    })
}

fn options() -> RolloutOptions {
    let reward =
        RewardConfig { success: 1.0, progress: 1.0, approach: 1.0, ..RewardConfig::default() };
    RolloutOptions {
        n_obs_steps: 2,
        frames: FrameRequest::None,
        gamma: 0.9,
        reward,
        max_attempts: 3,
        clip: None,
    }
}

fn rollouts(workers: usize, plan: &FaultPlan) -> Rollouts {
    let factory = factory(plan);
    let vec: Box<dyn VecEnv> = match workers {
        0 => Box::new(SyncVecEnv::new(&factory, 6)),
        n => Box::new(ThreadedVecEnv::new(&factory, 6, n).unwrap()),
    };
    Rollouts::new(vec, options())
}

fn job(number: u64, seed: u64) -> Job {
    let request = ResetRequest { seed: Some(seed), options: ResetOptions::default() };
    Job { number, group: number / 2, request, noise: SeedTree::new(number) }
}

fn next(env: EnvId, k: u64) -> Job {
    job((env.0 as u64) << 32 | k, 100 * env.0 as u64 + k)
}

fn steps(rollouts: &mut Rollouts, each: usize, batch: usize) -> Rollout {
    let plan = Plan::Decisions { each, next: &next };
    rollouts.collect(&mut Wanderer { batch }, plan, &StopFlag::default()).unwrap()
}

#[test]
fn neither_workers_nor_batches_decide_what_is_rolled_out() {
    let run = |workers, batch| {
        let mut rollouts = rollouts(workers, &FaultPlan::default());
        let first = steps(&mut rollouts, 5, batch).trajectories;
        (first, steps(&mut rollouts, 6, batch).trajectories)
    };
    let alone = run(0, 1);
    assert_eq!(alone.0.iter().map(|t| t.transitions.len()).sum::<usize>(), 30);
    for (workers, batch) in [(1, 6), (2, 3), (4, 4)] {
        assert!(run(workers, batch) == alone, "{workers} workers, batches of {batch}");
    }
}

#[test]
fn episodes_go_on_where_the_budget_cut_them() {
    let mut rollouts = rollouts(0, &FaultPlan::default());
    // 13 steps are 7 decisions of two actions, the last of one.
    let (a, b) = (steps(&mut rollouts, 5, 6), steps(&mut rollouts, 6, 6));
    let first = &a.trajectories[0];
    assert_eq!((&first.end, first.transitions.len()), (&EpisodeEnd::Cut, 5));
    let (rest, after) = (&b.trajectories[0], &b.trajectories[1]);
    assert_eq!(first.start, rest.start);
    assert_eq!(first.after, rest.transitions[0].window);
    let counts: Vec<u32> = rest.transitions.iter().map(|t| t.steps).collect();
    assert_eq!((&rest.end, counts), (&EpisodeEnd::Truncated, vec![2, 1]));
    assert_eq!(rest.episode_steps, 13);
    assert_ne!(after.start, rest.start);
    assert_eq!(after.transitions[0].window[0], after.transitions[0].window[1]);
}

#[test]
fn faults_change_nothing_but_their_count() {
    let undisturbed = {
        let mut rollouts = rollouts(0, &FaultPlan::default());
        (steps(&mut rollouts, 5, 6).trajectories, steps(&mut rollouts, 6, 6).trajectories)
    };
    // At a reset, in the middle, twice in the same episode, and in the second rollout of an episode.
    let plan = FaultPlan::default()
        .fail(0, FaultKind::Error, 0, 1)
        .fail(100, FaultKind::Panic, 5, 1)
        .fail(200, FaultKind::Error, 3, 2)
        .fail(300, FaultKind::Panic, 12, 1);
    for workers in [0, 3] {
        let mut rollouts = rollouts(workers, &plan.clone());
        let (a, b) = (steps(&mut rollouts, 5, 6), steps(&mut rollouts, 6, 6));
        if workers == 0 {
            assert_eq!((a.faults, b.faults, a.lost + b.lost), (4, 1, 0));
        }
        assert!((a.trajectories, b.trajectories) == undisturbed);
    }
}

#[test]
fn an_episode_that_always_fails_is_given_up_and_not_learned_from() {
    let plan = FaultPlan::default().fail(200, FaultKind::Error, 4, 99);
    let mut rollouts = rollouts(0, &plan);
    let rollout = steps(&mut rollouts, 5, 6);
    assert_eq!((rollout.faults, rollout.lost), (3, 1));
    assert!(rollout.trajectories.iter().all(|t| t.start.seed != Some(200)));
    // Its decisions were made in the next episode instead.
    assert_eq!(rollout.trajectories.iter().map(|t| t.transitions.len()).sum::<usize>(), 30);
}

#[test]
fn a_resumed_rollout_is_the_uninterrupted_one() {
    let mut whole = rollouts(2, &FaultPlan::default());
    let _ = steps(&mut whole, 5, 6);
    let state = whole.state();
    let text = serde_json::to_string(&state).unwrap();
    let expected = steps(&mut whole, 6, 6).trajectories;
    let resumed = |state: &RolloutState| {
        let mut fresh = rollouts(0, &FaultPlan::default());
        fresh.load_state(state).unwrap();
        assert_eq!(&fresh.state(), state);
        steps(&mut fresh, 6, 6).trajectories
    };
    assert!(resumed(&serde_json::from_str(&text).unwrap()) == expected);
    // Without the actions so far it is another rollout.
    let mut without = state;
    without.seats[2].chunks = Some(Vec::new());
    assert!(resumed(&without) != expected);
}

#[test]
fn jobs_come_back_in_their_order_and_groups_share_their_beginning() {
    let run = |workers| {
        let jobs = (0..10).map(|n| job(n, 7 + n / 2)).collect();
        let mut rollouts = rollouts(workers, &FaultPlan::default());
        let stop = StopFlag::default();
        rollouts.collect(&mut Wanderer { batch: 3 }, Plan::Episodes(jobs), &stop).unwrap()
    };
    let one = run(1);
    assert_eq!(one.trajectories.len(), 10);
    for pair in one.trajectories.chunks(2) {
        assert_eq!(pair[0].group, pair[1].group);
        assert_eq!(pair[0].transitions[0].window, pair[1].transitions[0].window);
        assert_ne!(pair[0].transitions[0].latent, pair[1].transitions[0].latent);
    }
    let strip = |rollout: &Rollout| -> Vec<Trajectory> {
        rollout.trajectories.iter().map(|t| Trajectory { env: EnvId(0), ..t.clone() }).collect()
    };
    assert!(strip(&run(4)) == strip(&one));
}

#[test]
fn shaping_adds_up_to_the_change_of_the_potential() {
    let options = RolloutOptions { gamma: 1.0, ..options() };
    let vec = Box::new(SyncVecEnv::new(&factory(&FaultPlan::default()), 1));
    let mut shaped = Rollouts::new(vec, options);
    // The agent begins inside the block, which is pushed away.
    let mut pushed = job(0, 5);
    pushed.request.options.state = Some(vec![250.0, 300.0, 256.0, 256.0, 0.5]);
    let jobs = || VecDeque::from([pushed.clone()]);
    let stop = StopFlag::default();
    let run = |rollouts: &mut Rollouts| {
        rollouts.collect(&mut Wanderer { batch: 1 }, Plan::Episodes(jobs()), &stop).unwrap()
    };
    let with = run(&mut shaped).trajectories[0].ret;
    let plain = RewardConfig { success: 1.0, ..RewardConfig::default() };
    shaped.options.reward = plain;
    let without = run(&mut shaped).trajectories[0].ret;
    shaped.options.reward =
        RewardConfig { env: 0.0, progress: 1.0, approach: 1.0, ..RewardConfig::default() };
    let potential = run(&mut shaped).trajectories[0].ret;
    assert!((with - without - potential).abs() < 1e-4, "{with} {without} {potential}");
    assert!(potential.abs() > 1e-3);
}

#[test]
fn a_stopped_rollout_says_so() {
    let stop = StopFlag::default();
    stop.set();
    let mut rollouts = rollouts(1, &FaultPlan::default());
    let plan = Plan::Decisions { each: 5, next: &next };
    let rollout = rollouts.collect(&mut Wanderer { batch: 6 }, plan, &stop).unwrap();
    assert!(rollout.stopped && rollout.trajectories.is_empty());
}

/// Asks for targets far outside of PushT's arena.
struct Far;
impl Decider for Far {
    fn decide(&mut self, seen: &[Seen<'_>]) -> Result<Vec<Decision>, TrainerError> {
        let far = |_: &Seen<'_>| Decision {
            latent: vec![5000.0, -5000.0],
            chunk: ActionChunk::single(&[5000.0, -5000.0]).unwrap(),
            log_prob: vec![0.0],
        };
        Ok(seen.iter().map(far).collect())
    }

    fn batch(&self) -> usize {
        1
    }
}

#[test]
fn what_is_executed_stays_within_the_space_and_what_was_drawn_is_kept() {
    let space = BoxSpace::new([("x", -1.0, 1.0), ("y", 0.0, 512.0)]);
    let chunk = ndarray::array![[-3.0f32, 600.0], [0.5, -1.0]];
    let clipped = clipped(&ActionChunk::new(chunk).unwrap(), &space).unwrap();
    assert_eq!(clipped.view(), ndarray::array![[-1.0f32, 512.0], [0.5, 0.0]]);

    let corner = |clip: Option<BoxSpace>| {
        let mut rollouts = rollouts(0, &FaultPlan::default());
        rollouts.options.clip = clip;
        let plan = Plan::Decisions { each: 8, next: &next };
        let data = rollouts.collect(&mut Far, plan, &StopFlag::default()).unwrap();
        let transition = data.trajectories[0].transitions.last().unwrap();
        assert_eq!(transition.latent, [5000.0, -5000.0]);
        let seen = &transition.window.last().unwrap().proprio;
        seen.iter().take(2).fold(0f32, |most, v| most.max(v.abs()))
    };
    let arena = BoxSpace::new([("x", 0.0, 512.0), ("y", 0.0, 512.0)]);
    assert!(corner(Some(arena)) <= 520.0);
    assert!(corner(None) > 1000.0);
}
