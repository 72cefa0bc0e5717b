//! Who watches a run: progress bar, metrics file, TensorBoard, report, tests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::{Deserialize, Serialize};
use simloop_algos::Metrics;

use crate::outcome::Outcome;

/// A predicted chunk beside the demonstrated one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// What was to be done, in words.
    pub instruction: String,
    /// The episode and the step of the newest observation.
    pub episode: usize,
    /// See `episode`.
    pub step: usize,
    /// One name per number of an action.
    pub names: Vec<String>,
    /// `[T_p][D]`, the actions' own units.
    pub predicted: Vec<Vec<f32>>,
    /// `[T_p][D]`.
    pub demonstrated: Vec<Vec<f32>>,
    /// How many of the demonstrated actions are real.
    pub valid: usize,
}

/// Something that happened.
#[non_exhaustive]
#[derive(Debug)]
pub enum TrainEvent<'a> {
    /// Training begins, or goes on, after `update` updates.
    Started {
        /// Updates done.
        update: u64,
        /// Updates planned.
        total: u64,
        /// The run's name.
        name: &'a str,
    },
    /// Means since the last such event.
    Updated {
        /// Updates done.
        update: u64,
        /// `train/…` and `time/…`.
        metrics: &'a Metrics,
    },
    /// An update was dropped.
    Dropped {
        /// Its number.
        update: u64,
        /// What was not finite.
        tensor: &'a str,
    },
    /// The model was measured on episodes that it does not learn from.
    Validated {
        /// Updates done.
        update: u64,
        /// `val/…`.
        metrics: &'a Metrics,
        /// Some predictions.
        examples: &'a [Example],
    },
    /// The model acted.
    Evaluated {
        /// Updates done.
        update: u64,
        /// `eval/…`.
        metrics: &'a Metrics,
    },
    /// What was gained, at the end of a run that learned by acting.
    Compared {
        /// Updates done.
        update: u64,
        /// Before and after, on common seeds.
        outcome: &'a Outcome,
    },
    /// A checkpoint is complete.
    Saved {
        /// Updates done.
        update: u64,
        /// Where it lies.
        path: &'a Path,
    },
    /// Training ended.
    Finished {
        /// Updates done.
        update: u64,
        /// Why, in words.
        why: &'a str,
    },
}

impl TrainEvent<'_> {
    /// Updates done.
    pub fn update(&self) -> u64 {
        match *self {
            Self::Started { update, .. }
            | Self::Updated { update, .. }
            | Self::Dropped { update, .. }
            | Self::Validated { update, .. }
            | Self::Evaluated { update, .. }
            | Self::Compared { update, .. }
            | Self::Saved { update, .. }
            | Self::Finished { update, .. } => update,
        }
    }

    /// Its numbers, if it has any.
    pub fn metrics(&self) -> Option<&Metrics> {
        match self {
            Self::Updated { metrics, .. }
            | Self::Validated { metrics, .. }
            | Self::Evaluated { metrics, .. } => Some(metrics),
            _ => None,
        }
    }
}

/// Watches a run. What it does never changes what is learned.
pub trait TrainObserver {
    /// A short name for messages.
    fn name(&self) -> &'static str;

    /// Takes in an event.
    ///
    /// # Errors
    /// A message; the run goes on, and the observer is asked again at the next event.
    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String>;
}

/// All observers of a run. One that fails or panics is named in a warning, once, and the run goes on.
#[derive(Default)]
pub struct Observers(Vec<Watcher>);

struct Watcher {
    observer: Box<dyn TrainObserver>,
    failed: bool,
    /// A panic may have left it in any state: it is not asked again.
    gone: bool,
}

impl Observers {
    /// Adds one.
    pub fn push(&mut self, observer: impl TrainObserver + 'static) {
        self.0.push(Watcher { observer: Box::new(observer), failed: false, gone: false });
    }

    /// Tells everyone.
    pub fn notify(&mut self, event: &TrainEvent<'_>) {
        for watcher in self.0.iter_mut().filter(|w| !w.gone) {
            let outcome = catch_unwind(AssertUnwindSafe(|| watcher.observer.on_event(event)));
            let error = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => {
                    watcher.gone = true;
                    "it panicked and is switched off".to_owned()
                }
            };
            if !watcher.failed || watcher.gone {
                tracing::warn!(
                    observer = watcher.observer.name(),
                    error,
                    "an observer failed; training goes on"
                );
            }
            watcher.failed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    struct Bad(bool);

    impl TrainObserver for Bad {
        fn name(&self) -> &'static str {
            "bad"
        }

        fn on_event(&mut self, _: &TrainEvent<'_>) -> Result<(), String> {
            assert!(!self.0, "on purpose");
            Err("on purpose".to_owned())
        }
    }

    struct Count(Rc<RefCell<Vec<u64>>>);

    impl TrainObserver for Count {
        fn name(&self) -> &'static str {
            "count"
        }

        fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
            self.0.borrow_mut().push(event.update());
            Ok(())
        }
    }

    #[test]
    fn a_failing_observer_leaves_the_others_alive() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut observers = Observers::default();
        observers.push(Bad(false));
        observers.push(Bad(true));
        observers.push(Count(Rc::clone(&seen)));
        for update in 0..3 {
            observers.notify(&TrainEvent::Finished { update, why: "test" });
        }
        assert_eq!(*seen.borrow(), [0, 1, 2]);
    }
}
