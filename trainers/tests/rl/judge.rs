//! Judging while learning goes on gives the numbers of judging in between.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;
use simloop_policies::checkpoint::save_policy;
use simloop_trainers::observer::{Observers, TrainEvent, TrainObserver};
use simloop_trainers::offline::End;
use simloop_trainers::on_policy::{Supply, train_on_policy};
use simloop_trainers::rl_build::{judge, surroundings};
use simloop_trainers::rl_state::RlState;
use simloop_trainers::round::{Around, Rhythm};
use simloop_trainers::run::Existing;
use simloop_trainers::stop::StopFlag;

use super::{Kind, OrResume as _, config, parts, program, resume, run_folder};

/// Update to (success rate, score), as the metrics file has them.
fn verdicts(run: &Path) -> BTreeMap<u64, (f64, f64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let number = |line: &Value, name: &str| line[name].as_f64();
    lines
        .filter_map(|line| {
            let rate = number(&line, "eval/success_rate")?;
            Some((line["update"].as_u64()?, (rate, number(&line, "eval/mean_score")?)))
        })
        .collect()
}

#[test]
fn in_the_background_the_verdicts_and_the_best_policy_are_the_same() {
    agree("ppo", &["train.updates=5"]);
}

#[test]
fn in_the_background_daggers_verdicts_and_best_policy_are_the_same() {
    let rounds = ["dagger.iterations=5", "dagger.episodes=2", "dagger.updates=2"];
    agree("dagger", &[&rounds[..], &["dagger.batch_size=8", "dagger.max_lead=4"]].concat());
}

/// Runs `algorithm` with judgements after 2, 4 and 5 updates, in between and in the background.
fn agree(algorithm: &str, settings: &[&str]) {
    let runs = [false, true].map(|background| {
        let root = tempfile::tempdir().unwrap();
        let mut sets: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        sets.extend(["eval.every=2", "eval.episodes=4"].map(str::to_owned));
        sets.push(format!("eval.background={background}"));
        program(root.path(), algorithm, &sets);
        root
    });
    let [there, aside] = runs.each_ref().map(|root| root.path().join("run"));
    let expected = verdicts(&there);
    assert_eq!(expected.keys().copied().collect::<Vec<_>>(), [2, 4, 5]);
    assert_eq!(verdicts(&aside), expected);
    for folder in ["best", "final"] {
        let weights =
            |run: &Path| std::fs::read(run.join(folder).join("model.safetensors")).unwrap();
        assert!(weights(&there) == weights(&aside), "{folder}");
    }
    for run in [&there, &aside] {
        let names = std::fs::read_dir(run).unwrap().map(|f| f.unwrap().file_name());
        let left: Vec<_> =
            names.filter(|name| name.to_string_lossy().starts_with("judged-")).collect();
        assert!(left.is_empty(), "{left:?}");
        // Three judgements, a film of a failure each: nobody solves PushT in twenty steps.
        assert_eq!(std::fs::read_dir(run.join("videos")).unwrap().count(), 3);
    }
}

/// Remembers verdicts, and asks to stop when an update is told, just before its policy is to be judged.
struct Watch {
    seen: Rc<RefCell<Vec<(u64, f64)>>>,
    stop_at: Option<(u64, StopFlag)>,
}

impl TrainObserver for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
        match event {
            TrainEvent::Evaluated { update, metrics } => {
                self.seen.borrow_mut().push((*update, metrics["eval/mean_score"]));
            }
            TrainEvent::Updated { update, .. } => {
                if let Some((at, stop)) = &self.stop_at
                    && at == update
                {
                    stop.set();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Trains on in `root`, judged in the background or in between; what was said, and how it ended.
fn judged(root: &Path, background: bool, stop_at: Option<u64>) -> (Vec<(u64, f64)>, End) {
    let config = config(&["eval.every=2", "eval.episodes=4", "train.updates=5"]);
    let (mut algo, mut rollouts, schedule) = parts(Kind::Ppo, &config);
    let run = run_folder(root, Existing::Overwrite.or_resume(root));
    let mut state = resume(&run, algo.as_mut(), &mut rollouts);
    let (stop, seen) = (StopFlag::default(), Rc::default());
    let mut observers = Observers::default();
    let stop_at = stop_at.map(|at| (at, stop.clone()));
    observers.push(Watch { seen: Rc::clone(&seen), stop_at });
    let mut acting = surroundings(&config, false).unwrap().acting;
    let judge = background
        .then(|| judge(&config, &root.join("videos"), tch::Device::Cpu, &stop).unwrap().unwrap());
    let mut around = Around {
        acting: Some(&mut acting),
        judge,
        run: &run,
        observers: &mut observers,
        stop: &stop,
    };
    let end = train_on_policy(
        algo.as_mut(),
        &mut rollouts,
        &schedule,
        &Supply::Decisions(config.rollout.decisions),
        &mut state,
        &Rhythm { save_every: 1, ..config.rhythm() },
        &mut around,
    )
    .unwrap();
    assert!(stop.is_set() || state.judging.is_empty());
    let seen = seen.borrow().clone();
    (seen, end)
}

#[test]
fn a_judgement_that_a_stop_interrupted_is_made_up_for() {
    let whole = tempfile::tempdir().unwrap();
    let (expected, _) = judged(whole.path(), true, None);
    assert_eq!(expected.iter().map(|v| v.0).collect::<Vec<_>>(), [2, 4, 5]);
    // At 4, the judge may still be at the policy of 2.
    for (background, stop_at) in [(true, 2), (true, 4), (false, 2), (false, 4)] {
        let cut = tempfile::tempdir().unwrap();
        let (mut seen, end) = judged(cut.path(), background, Some(stop_at));
        assert_eq!(end, End::Interrupted);
        assert!(seen.iter().all(|(update, _)| *update < 4), "{seen:?}");
        let (rest, end) = judged(cut.path(), background, None);
        assert_eq!(end, End::Complete);
        seen.extend(rest);
        seen.dedup();
        assert_eq!(seen, expected, "in the background: {background}, stopped at {stop_at}");
    }
}

#[test]
fn the_last_judgement_is_made_up_for_though_nothing_is_left_to_learn() {
    for background in [true, false] {
        let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (expected, _) = judged(whole.path(), background, None);
        let (mut seen, _) = judged(cut.path(), background, Some(5));
        assert!(seen.len() < 3, "{seen:?}");
        let (rest, end) = judged(cut.path(), background, None);
        assert_eq!(end, End::Complete);
        seen.extend(rest);
        assert_eq!(seen, expected, "in the background: {background}");
    }
}

#[test]
fn of_two_judgements_that_a_stop_left_open_none_is_forgotten() {
    let config = config(&["eval.every=2", "eval.episodes=4", "train.updates=4"]);
    let (algo, ..) = parts(Kind::Ppo, &config);
    for background in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let run = run_folder(root.path(), Existing::Refuse);
        for update in [2, 4] {
            let folder = format!("judged-{update:08}");
            run.publish(&folder, |dir| Ok(save_policy(algo.actor(), dir)?)).unwrap();
        }
        let (stop, seen) = (StopFlag::default(), Rc::default());
        let mut observers = Observers::default();
        observers.push(Watch { seen: Rc::clone(&seen), stop_at: None });
        let mut acting = surroundings(&config, false).unwrap().acting;
        let videos = root.path().join("videos");
        let judge =
            background.then(|| judge(&config, &videos, tch::Device::Cpu, &stop).unwrap().unwrap());
        let mut around = Around {
            acting: Some(&mut acting),
            judge,
            run: &run,
            observers: &mut observers,
            stop: &stop,
        };
        let mut state = RlState { update: 4, judging: vec![2, 4], ..RlState::default() };
        around.started(&mut state, &config.rhythm()).unwrap();
        assert_eq!(seen.borrow().iter().map(|v| v.0).collect::<Vec<_>>(), [2, 4]);
        assert!(state.judging.is_empty() && root.path().join("best").exists());
    }
}
