//! The loop of offline learning: batches of demonstrations in, updates, and in between validation, acting, checkpoints.

use std::path::Path;
use std::time::Instant;

use simloop_algos::bc::{Bc, Metrics, Update};
use simloop_policies::ImitationModel;

use crate::TrainerError;
use crate::checkpoint::{Best, TrainState, save_state};
use crate::observer::{Observers, TrainEvent};
use crate::run::RunFolder;
use crate::stop::StopFlag;
use crate::tensors::Feed;
use crate::validate::Validation;

/// How often what happens, in updates; 0 is never.
#[derive(Clone, Debug)]
pub struct LoopOptions {
    /// The run's name.
    pub name: String,
    /// Updates planned.
    pub total: u64,
    /// Micro-batches per update.
    pub accumulate: usize,
    /// Between two log lines.
    pub log_every: u64,
    /// Between two validations.
    pub validate_every: u64,
    /// Between two evaluations.
    pub evaluate_every: u64,
    /// Between two checkpoints.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// What `best` means; larger is better for `eval/…`, smaller for the rest.
    pub best_metric: Option<String>,
    /// Measurements without a better one before the run ends; 0 for never.
    pub patience: u32,
    /// Dropped updates in a row before the run fails.
    pub max_dropped: u32,
}

/// What the loop asks of the world around it.
pub trait Surroundings<M> {
    /// Writes the policy's files into a folder.
    ///
    /// # Errors
    /// What the policy answers.
    fn save_policy(&self, model: &M, dir: &Path) -> Result<(), TrainerError>;

    /// Lets the policy of after `update` updates act and measures how well, `eval/…`; empty where it does not act, or was interrupted.
    ///
    /// # Errors
    /// What the environment or the policy answers.
    fn evaluate(
        &mut self,
        model: &mut M,
        update: u64,
        stop: &StopFlag,
    ) -> Result<Metrics, TrainerError>;
}

/// Why a loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All updates are done.
    Complete,
    /// No better score for too long.
    Patience,
    /// Somebody asked; a checkpoint was saved.
    Interrupted,
}

/// Learns from update `state.update` on; see the module. Ends with a checkpoint of the last update.
///
/// # Errors
/// [`TrainerError::Diverged`] after too many dropped updates in a row; whatever data, model, environment or disk answer.
#[expect(clippy::too_many_arguments, reason = "the parts of a run, each used as it is")]
pub fn train_offline<M: ImitationModel>(
    bc: &mut Bc<M>,
    feed: &mut Feed,
    validation: Option<&Validation>,
    around: &mut dyn Surroundings<M>,
    run: &RunFolder,
    mut state: TrainState,
    options: &LoopOptions,
    observers: &mut Observers,
    stop: &StopFlag,
) -> Result<End, TrainerError> {
    let start =
        TrainEvent::Started { update: state.update, total: options.total, name: &options.name };
    observers.notify(&start);
    let mut log = Log::new();
    let mut end = End::Complete;
    while state.update < options.total {
        let micro_batches = (0..options.accumulate)
            .map(|_| log.waiting(|| feed.next_batch()))
            .collect::<Result<Vec<_>, TrainerError>>()?;
        let update = bc.update(&micro_batches)?;
        state.update = bc.updates();
        state.loader = feed.position();
        match update {
            Update::Applied(metrics) => {
                state.dropped_in_a_row = 0;
                log.add(&metrics);
            }
            Update::Dropped { tensor } => {
                state.dropped_in_a_row += 1;
                observers.notify(&TrainEvent::Dropped { update: state.update, tensor: &tensor });
                if state.dropped_in_a_row >= options.max_dropped {
                    let dropped = state.dropped_in_a_row;
                    return Err(TrainerError::diverged(dropped, &tensor, "data"));
                }
            }
        }

        let done = state.update;
        let last = done == options.total;
        let due = |every: u64| every > 0 && (done.is_multiple_of(every) || last);
        if due(options.log_every) {
            let metrics = log.take(&mut state, feed);
            observers.notify(&TrainEvent::Updated { update: state.update, metrics: &metrics });
        }
        let mut measured = Metrics::new();
        if let Some(validation) = validation
            && due(options.validate_every)
        {
            let (metrics, examples) =
                log.apart(|| bc.averaged(|model| validation.measure(model)))?;
            let event = TrainEvent::Validated {
                update: state.update,
                metrics: &metrics,
                examples: &examples,
            };
            observers.notify(&event);
            measured.extend(metrics);
        }
        if due(options.evaluate_every) && !stop.is_set() {
            let metrics = log.apart(|| bc.averaged(|model| around.evaluate(model, done, stop)))?;
            observers.notify(&TrainEvent::Evaluated { update: state.update, metrics: &metrics });
            measured.extend(metrics);
        }
        if judge(&mut state, &measured, options) {
            log.apart(|| run.publish("best", |dir| save_checkpoint(bc, around, &state, dir)))?;
        }
        if options.patience > 0 && state.stale >= options.patience {
            end = End::Patience;
        }
        if stop.is_set() && !last {
            end = End::Interrupted;
        }
        if due(options.save_every) || last || end != End::Complete {
            log.apart(|| {
                run.save(state.update, options.keep_last, |dir| {
                    save_checkpoint(bc, around, &state, dir)
                })
            })?;
            observers.notify(&TrainEvent::Saved { update: state.update, path: run.root() });
        }
        if end != End::Complete {
            break;
        }
    }
    Ok(end)
}

/// The policy as it is to act, and what training needs to go on.
fn save_checkpoint<M: ImitationModel>(
    bc: &mut Bc<M>,
    around: &dyn Surroundings<M>,
    state: &TrainState,
    dir: &Path,
) -> Result<(), TrainerError> {
    bc.averaged(|model| around.save_policy(model, dir))?;
    save_state(dir, &bc.state(), state)
}

/// Compares a measurement with the best so far; true if it is better.
fn judge(state: &mut TrainState, measured: &Metrics, options: &LoopOptions) -> bool {
    let Some(metric) = &options.best_metric else { return false };
    let Some(&value) = measured.get(metric.as_str()) else { return false };
    let better = match &state.best {
        _ if !value.is_finite() => false,
        None => true,
        Some(best) if metric.starts_with("eval/") => value > best.value,
        Some(best) => value < best.value,
    };
    if better {
        state.best = Some(Best { metric: metric.clone(), value, update: state.update });
        state.stale = 0;
    } else {
        state.stale += 1;
    }
    better
}

/// Means since the last log line.
struct Log {
    sums: Metrics,
    count: f64,
    since: Instant,
    waited: f64,
}

impl Log {
    fn new() -> Self {
        Self { sums: Metrics::new(), count: 0.0, since: Instant::now(), waited: 0.0 }
    }

    /// Counts the time of `f` as waiting for data.
    fn waiting<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = f();
        self.waited += start.elapsed().as_secs_f64();
        result
    }

    /// Leaves the time of `f` out of the pace of training.
    fn apart<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = f();
        self.since += start.elapsed();
        result
    }

    fn add(&mut self, metrics: &Metrics) {
        for (name, value) in metrics {
            *self.sums.entry(name).or_default() += value;
        }
        self.count += 1.0;
    }

    fn take(&mut self, state: &mut TrainState, feed: &Feed) -> Metrics {
        let secs = self.since.elapsed().as_secs_f64().max(1e-9);
        state.trained_secs += secs;
        let samples = self.sums.remove("train/samples").unwrap_or(0.0);
        let mut metrics: Metrics =
            self.sums.iter().map(|(name, sum)| (*name, sum / self.count.max(1.0))).collect();
        let at = feed.position();
        let epoch = at.epoch as f64 + at.batch as f64 / feed.batches_per_epoch() as f64;
        metrics.insert("train/epoch", epoch);
        metrics.insert("time/updates_per_sec", self.count / secs);
        metrics.insert("time/samples_per_sec", samples / secs);
        metrics.insert("time/data_wait", self.waited / secs);
        metrics.insert("time/trained_secs", state.trained_secs);
        *self = Self::new();
        metrics
    }
}
