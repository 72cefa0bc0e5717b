//! The evaluation loop, with environments and policies whose outcome is known.

use std::sync::Arc;
use std::time::Duration;

use simloop_envs::seeding::episode_seed;
use simloop_envs::testing::CountingEnv;
use simloop_envs::vec::{SyncVecEnv, ThreadedVecEnv};
use simloop_envs::wrappers::{FaultInjector, FaultKind, FaultPlan, TimeLimit};
use simloop_envs::{Env, EnvFactory, ResetOptions};
use simloop_policies::{Needs, PolicyError, PolicyStep, RandomPolicy};

use super::*;

const EPISODES: u32 = 40;

fn seed(trial: u32) -> u64 {
    episode_seed(3, "toy", "count", trial).seed()
}

fn episodes() -> Vec<Episode> {
    let episode = |trial| {
        let node = episode_seed(3, "toy", "count", trial);
        Episode {
            task: format!("count/{}", trial % 2),
            trial,
            request: ResetRequest { seed: Some(node.seed()), options: ResetOptions::default() },
            noise: node.child("noise"),
        }
    };
    (0..EPISODES).map(episode).collect()
}

/// Episodes of 9 steps under a limit of 12, so that all succeed.
fn factory(plan: &FaultPlan) -> EnvFactory {
    let plan = plan.clone();
    Arc::new(move |_| {
        let env = FaultInjector::new(CountingEnv::new(9), plan.clone());
        Ok(Box::new(TimeLimit::new(env, 12)?) as Box<dyn Env>)
    })
}

fn run(vec: &mut dyn VecEnv, options: &EvaluateOptions) -> Vec<EpisodeRecord> {
    let space = vec.spec().unwrap().action;
    let mut policy = RandomPolicy::new(space, 4);
    let mut records = Vec::new();
    let mut sink = |(record, _): Finished| {
        records.push(record);
        Ok(ControlFlow::Continue(()))
    };
    evaluate(vec, &mut policy, episodes(), options, &StopFlag::default(), &mut sink).unwrap();
    records.sort_by_key(|record| record.trial);
    records
}

/// What must not depend on the machine.
fn traces(records: &[EpisodeRecord]) -> Vec<(u32, Status, u32, String)> {
    records.iter().map(|r| (r.trial, r.status, r.steps, r.trace.clone())).collect()
}

#[test]
fn results_are_the_same_for_any_number_of_workers_and_any_batch() {
    let factory = factory(&FaultPlan::default());
    let expected = traces(&run(&mut SyncVecEnv::new(&factory, 1), &EvaluateOptions::default()));
    assert_eq!(expected.len(), EPISODES as usize);
    assert!(expected.iter().all(|(_, status, steps, _)| *status == Status::Success && *steps == 9));
    for (envs, threads, min_ready) in [(1, 1, 1), (4, 2, 1), (7, 3, 4), (16, 4, 16)] {
        let mut vec = ThreadedVecEnv::new(&factory, envs, threads).unwrap();
        let options = EvaluateOptions { min_ready, ..EvaluateOptions::default() };
        assert_eq!(expected, traces(&run(&mut vec, &options)), "{envs} envs, {threads} threads");
    }
}

#[test]
fn faults_are_run_again_and_leave_no_trace_in_the_result() {
    let quiet =
        run(&mut SyncVecEnv::new(&factory(&FaultPlan::default()), 2), &EvaluateOptions::default());
    let plan = FaultPlan::default()
        .fail(seed(3), FaultKind::Panic, 5, 1)
        .fail(seed(4), FaultKind::Error, 0, 2)
        .fail(seed(5), FaultKind::Hang(Duration::from_millis(5)), 2, 1);
    let mut vec = ThreadedVecEnv::new(&factory(&plan), 4, 2).unwrap();
    let records = run(&mut vec, &EvaluateOptions::default());
    assert_eq!(traces(&quiet), traces(&records));
    let attempts: Vec<_> = records.iter().map(|r| r.attempts).collect();
    assert_eq!(attempts[3..6], [2, 3, 1]);
    assert_eq!(records[3].faults[0].class, "panicked");
}

#[test]
fn three_faults_are_an_error_and_never_a_failure() {
    let plan = FaultPlan::default().fail(seed(7), FaultKind::Error, 2, 99);
    let records = run(&mut SyncVecEnv::new(&factory(&plan), 3), &EvaluateOptions::default());
    assert_eq!(records.len(), EPISODES as usize);
    let errors: Vec<_> = records.iter().filter(|r| r.status != Status::Success).collect();
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].trial, errors[0].status, errors[0].attempts), (7, Status::Error, 3));
    assert_eq!(errors[0].faults.len(), 3);
}

#[test]
fn an_error_that_no_retry_can_mend_ends_the_run() {
    let factory: EnvFactory = Arc::new(|_| {
        Err(EnvError::Unavailable { what: "LIBERO".into(), remedy: "make libero".into() })
    });
    let mut vec = SyncVecEnv::new(&factory, 1);
    let mut policy = RandomPolicy::new(CountingEnv::new(1).spec().action.clone(), 1);
    let mut sink = |_: Finished| Ok(ControlFlow::Continue(()));
    let stop = StopFlag::default();
    let result =
        evaluate(&mut vec, &mut policy, episodes(), &EvaluateOptions::default(), &stop, &mut sink);
    assert!(result.unwrap_err().to_string().contains("make libero"));
}

#[test]
fn a_sink_that_breaks_and_a_stop_flag_end_the_run_early() {
    let factory = factory(&FaultPlan::default());
    let mut vec = SyncVecEnv::new(&factory, 2);
    let mut policy = RandomPolicy::new(vec.spec().unwrap().action, 4);
    let stop = StopFlag::default();
    let mut seen = 0;
    let mut sink = |_: Finished| {
        seen += 1;
        Ok(if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    evaluate(&mut vec, &mut policy, episodes(), &EvaluateOptions::default(), &stop, &mut sink)
        .unwrap();
    assert_eq!(seen, 5);
    stop.set();
    let mut sink = |_: Finished| panic!("nothing runs after the flag is set");
    let mut vec = SyncVecEnv::new(&factory, 2);
    evaluate(&mut vec, &mut policy, episodes(), &EvaluateOptions::default(), &stop, &mut sink)
        .unwrap();
}

#[test]
fn recycling_changes_nothing() {
    let expected = traces(&run(
        &mut SyncVecEnv::new(&factory(&FaultPlan::default()), 2),
        &EvaluateOptions::default(),
    ));
    for every in [1, 10] {
        let options = EvaluateOptions { recycle_after: Some(every), ..EvaluateOptions::default() };
        let mut vec = ThreadedVecEnv::new(&factory(&FaultPlan::default()), 3, 3).unwrap();
        assert_eq!(expected, traces(&run(&mut vec, &options)));
    }
}

/// Notes the `t` and the number of frames of every observation it is shown; chunks of four.
struct Witness {
    needs: Needs,
    seen: Vec<Vec<(u32, usize)>>,
}

impl Policy for Witness {
    fn name(&self) -> &'static str {
        "witness"
    }

    fn needs(&self) -> Needs {
        self.needs
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        _mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        let decide = |request: &ActRequest<'_>| {
            assert_eq!(request.recent.last(), Some(request.obs));
            let note = |obs: &Observation| (obs.proprio[1] as u32, obs.images.len());
            self.seen.push(request.recent.iter().map(note).collect());
            PolicyStep { chunk: ActionChunk::new(Array2::zeros((4, 1))).unwrap(), stats: None }
        };
        Ok(requests.iter().map(decide).collect())
    }
}

#[test]
fn a_policy_that_looks_back_is_shown_the_steps_inside_of_a_chunk() {
    let factory = factory(&FaultPlan::default());
    let show = |images: bool, n_obs_steps: usize, n_action_steps: Option<usize>| {
        let needs = Needs { images, n_obs_steps, ..Needs::default() };
        let mut policy = Witness { needs, seen: Vec::new() };
        let options = EvaluateOptions {
            frames: needs.frames(),
            n_action_steps,
            ..EvaluateOptions::default()
        };
        let mut vec = SyncVecEnv::new(&factory, 1);
        let mut sink = |_: Finished| Ok(ControlFlow::Continue(()));
        let (one, stop) = (episodes().drain(..1).collect(), StopFlag::default());
        evaluate(&mut vec, &mut policy, one, &options, &stop, &mut sink).unwrap();
        policy.seen
    };
    assert_eq!(show(true, 1, None), [[(0, 1)], [(4, 1)], [(8, 1)]]);
    assert_eq!(
        show(true, 3, None),
        [vec![(0, 1)], vec![(2, 1), (3, 1), (4, 1)], vec![(6, 1), (7, 1), (8, 1)]]
    );
    assert_eq!(show(false, 2, None)[1], [(3, 0), (4, 0)]);
    // A chunk shorter than the window brings what it has; the policy remembers the rest.
    assert_eq!(show(true, 3, Some(2))[1..3], [[(1, 1), (2, 1)], [(3, 1), (4, 1)]]);
}
