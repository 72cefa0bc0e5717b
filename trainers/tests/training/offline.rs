//! The loop on a toy.

use std::cell::RefCell;
use std::rc::Rc;

use simloop_policies::ImitationModel as _;
use simloop_trainers::TrainerError;
use simloop_trainers::checkpoint::{load_state, verify};
use simloop_trainers::observer::{Observers, TrainEvent, TrainObserver};
use simloop_trainers::offline::{End, LoopOptions};
use simloop_trainers::stop::StopFlag;

use super::toy::{ToyData, ToyWorld, options, train};

const CLEAN: ToyData = ToyData { poison: usize::MAX };

/// The kind of an event, its update, and its first number.
type Heard = (String, u64, Option<f64>);

/// Writes down what it hears, and asks to stop after an update.
pub(crate) struct Recorder {
    pub(crate) heard: Rc<RefCell<Vec<Heard>>>,
    pub(crate) stop_after: u64,
    pub(crate) stop: StopFlag,
}

impl TrainObserver for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
        let kind = format!("{event:?}");
        let kind = kind.split([' ', '{']).next().unwrap_or_default().to_owned();
        let loss = event.metrics().and_then(|m| m.values().next().copied());
        self.heard.borrow_mut().push((kind, event.update(), loss));
        if event.update() >= self.stop_after {
            self.stop.set();
        }
        Ok(())
    }
}

#[test]
fn a_run_leaves_its_newest_checkpoints_its_best_and_a_loss_that_fell() {
    let root = tempfile::tempdir().unwrap();
    let heard = Rc::default();
    let mut observers = Observers::default();
    let stop = StopFlag::default();
    observers.push(Recorder { heard: Rc::clone(&heard), stop_after: u64::MAX, stop: stop.clone() });
    let options = LoopOptions {
        validate_every: 20,
        save_every: 30,
        best_metric: Some("val/loss".to_owned()),
        ..options(100)
    };
    let mut world = ToyWorld::default();
    let (end, ..) = train(root.path(), &options, CLEAN, &mut world, &mut observers, &stop);
    assert_eq!(end.unwrap(), End::Complete);
    let names =
        simloop_trainers::checkpoint::entry_names(&root.path().join("checkpoints")).unwrap();
    assert_eq!(names, ["00000090", "00000100"]);
    verify(&root.path().join("last")).unwrap();
    verify(&root.path().join("best")).unwrap();
    let (_, state) = load_state(&root.path().join("last")).unwrap();
    let best = state.best.unwrap();
    assert_eq!((best.metric.as_str(), state.update), ("val/loss", 100));
    let heard = heard.borrow();
    let of = |kind: &str| heard.iter().filter(|(k, ..)| k == kind).cloned().collect::<Vec<_>>();
    assert_eq!((of("Updated").len(), of("Validated").len(), of("Saved").len()), (100, 5, 4));
    assert!(best.update >= 80, "the loss falls: {best:?}");
}

#[test]
fn patience_ends_a_run_that_stopped_getting_better() {
    let root = tempfile::tempdir().unwrap();
    let mut scores = vec![0.5, 0.7, 0.6, 0.7, 0.9].into_iter();
    let mut world = ToyWorld { score: Box::new(move || scores.next().unwrap()) };
    let options = LoopOptions {
        evaluate_every: 5,
        best_metric: Some("eval/mean_score".to_owned()),
        patience: 2,
        ..options(100)
    };
    let stop = StopFlag::default();
    let (end, bc, _) =
        train(root.path(), &options, CLEAN, &mut world, &mut Observers::default(), &stop);
    assert_eq!((end.unwrap(), bc.updates()), (End::Patience, 20));
    let (_, state) = load_state(&root.path().join("best")).unwrap();
    assert_eq!(state.best.unwrap().value, 0.7);
    assert_eq!(state.update, 10);
}

#[test]
fn three_broken_updates_in_a_row_stop_the_run_and_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let heard = Rc::default();
    let mut observers = Observers::default();
    let stop = StopFlag::default();
    observers.push(Recorder { heard: Rc::clone(&heard), stop_after: u64::MAX, stop: stop.clone() });
    let data = ToyData { poison: 0 };
    let mut world = ToyWorld::default();
    let (end, bc, _) = train(root.path(), &options(50), data, &mut world, &mut observers, &stop);
    let error = end.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(matches!(error, TrainerError::Diverged { .. }));
    assert!(
        error.to_string().contains("3 updates in a row") && error.to_string().contains("proprio")
    );
    let dropped: Vec<u64> =
        heard.borrow().iter().filter(|(k, ..)| k == "Dropped").map(|(_, u, _)| *u).collect();
    assert_eq!(dropped, [1, 2, 3]);
    let fresh = super::toy::Toy::new(0);
    assert_eq!(bc.model().params().snapshot(), fresh.params().snapshot());
}

#[test]
fn single_broken_batches_are_survived() {
    let root = tempfile::tempdir().unwrap();
    let heard = Rc::default();
    let mut observers = Observers::default();
    let stop = StopFlag::default();
    observers.push(Recorder { heard: Rc::clone(&heard), stop_after: u64::MAX, stop: stop.clone() });
    // One of 64 windows is broken: one batch of eight per epoch.
    let data = ToyData { poison: 63 };
    let mut world = ToyWorld::default();
    let (end, ..) = train(root.path(), &options(40), data, &mut world, &mut observers, &stop);
    assert_eq!(end.unwrap(), End::Complete);
    let dropped = heard.borrow().iter().filter(|(k, ..)| k == "Dropped").count();
    assert_eq!(dropped, 5);
}

#[test]
fn three_preemptions_end_in_the_weights_of_an_uninterrupted_run() {
    let run = |stops: &[u64]| {
        let root = tempfile::tempdir().unwrap();
        let mut world = ToyWorld::default();
        for &after in stops {
            let stop = StopFlag::default();
            let mut observers = Observers::default();
            observers.push(Recorder {
                heard: Rc::default(),
                stop_after: after,
                stop: stop.clone(),
            });
            let (end, bc, _) =
                train(root.path(), &options(60), CLEAN, &mut world, &mut observers, &stop);
            assert_eq!((end.unwrap(), bc.updates()), (End::Interrupted, after));
        }
        let stop = StopFlag::default();
        let (end, bc, position) =
            train(root.path(), &options(60), CLEAN, &mut world, &mut Observers::default(), &stop);
        assert_eq!(end.unwrap(), End::Complete);
        let state = bc.state();
        (state.weights, state.optimizer, state.ema, position)
    };
    assert_eq!(run(&[]), run(&[7, 23, 41]));
}
