//! Batches, made ahead of the learner by threads.
//!
//! What comes out is a function of the data set, the seed and the position alone: the order of an epoch is drawn from
//! `(seed, epoch)`, a sample's augmentation from `(seed, epoch, sample)`. Thread `w` of `n` makes batches `w, w + n, …`
//! into a bounded channel of its own and the learner takes from the channels in turn, so batches come strictly in order
//! and a loader that is dropped wakes every thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;

use super::{Augment, DataError, Dataset, DemoBatch};

/// How batches are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// `B`.
    pub batch_size: usize,
    /// Threads; with none a batch is made when it is asked for, on the caller's thread.
    pub threads: usize,
    /// Batches made ahead, over all threads; at least one per thread.
    pub prefetch: usize,
    /// What the order and the augmentation are drawn from.
    pub seed: u64,
    /// Whether an epoch has an order of its own; otherwise samples come as they are numbered.
    pub shuffle: bool,
    /// Whether the last samples of an epoch are left out where they do not fill a batch.
    pub drop_last: bool,
    /// What is done to each sample.
    pub augment: Augment,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch_size: 64,
            threads: 0,
            prefetch: 8,
            seed: 0,
            shuffle: true,
            drop_last: true,
            augment: Augment::default(),
        }
    }
}

/// Where a loader stands: the batch that comes next. Saved with a checkpoint, it continues exactly there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderPosition {
    /// Epochs finished.
    pub epoch: u64,
    /// Batches of this epoch that were delivered.
    pub batch: u64,
}

/// Batches without end, epoch after epoch.
pub struct Loader {
    plan: Arc<Plan>,
    /// The number of the next batch, counted from the first epoch.
    next: u64,
    /// One channel per thread; the one that comes next.
    receivers: Vec<Receiver<Result<DemoBatch, DataError>>>,
    turn: usize,
    threads: Vec<JoinHandle<()>>,
    starved: Duration,
}

/// What every thread knows.
struct Plan {
    data: Arc<dyn Dataset>,
    config: LoaderConfig,
    per_epoch: u64,
    /// The orders of the epochs in work, the newest last.
    orders: Mutex<Vec<(u64, Arc<[usize]>)>>,
}

impl Loader {
    /// Starts the threads, which begin with the batch at `position`.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] for a batch size of zero, a data set with less than one batch, a position past the end
    /// of its epoch or a thread that cannot be started.
    pub fn new(
        data: Arc<dyn Dataset>,
        config: LoaderConfig,
        position: LoaderPosition,
    ) -> Result<Self, DataError> {
        let n = data.epoch_len() as u64;
        let b = config.batch_size as u64;
        if b == 0 {
            return Err(DataError::unsupported("`batch_size` must be at least 1"));
        }
        let per_epoch = if config.drop_last { n / b } else { n.div_ceil(b) };
        if per_epoch == 0 {
            return Err(DataError::unsupported(format!(
                "{n} samples do not fill a batch of {b}; lower `batch_size`"
            )));
        }
        if position.batch >= per_epoch {
            return Err(DataError::unsupported(format!(
                "batch {} of an epoch of {per_epoch} batches does not exist; the data set or `batch_size` has changed",
                position.batch
            )));
        }
        let next = position.epoch * per_epoch + position.batch;
        let (count, ahead) =
            (config.threads, config.prefetch.div_ceil(config.threads.max(1)).max(1));
        let plan = Arc::new(Plan { data, config, per_epoch, orders: Mutex::default() });
        let (mut receivers, mut threads) = (Vec::new(), Vec::new());
        for w in 0..count as u64 {
            let (sender, receiver) = bounded(ahead);
            let plan = Arc::clone(&plan);
            let work = move || {
                for number in (next + w..).step_by(count) {
                    if sender.send(plan.make(number)).is_err() {
                        return; // the loader is gone
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("loader {w}")).spawn(work);
            threads.push(
                thread
                    .map_err(|e| DataError::unsupported(format!("start a loader thread: {e}")))?,
            );
            receivers.push(receiver);
        }
        Ok(Self { plan, next, receivers, turn: 0, threads, starved: Duration::ZERO })
    }

    /// The next batch. After an error the batch after the broken one follows.
    ///
    /// # Errors
    /// What the data set answered, in the place of the batch that has the broken sample.
    #[expect(clippy::should_implement_trait, reason = "there is no end, and an error is not one")]
    pub fn next(&mut self) -> Result<DemoBatch, DataError> {
        let made = match self.receivers.get(self.turn) {
            None => self.plan.make(self.next),
            Some(receiver) => {
                let made = match receiver.try_recv() {
                    Ok(made) => Ok(made),
                    Err(TryRecvError::Disconnected) => Err(()),
                    Err(TryRecvError::Empty) => {
                        let start = Instant::now();
                        let made = receiver.recv().map_err(|_| ());
                        self.starved += start.elapsed();
                        made
                    }
                };
                let thread = self.turn;
                self.turn = (thread + 1) % self.receivers.len();
                made.unwrap_or_else(|()| {
                    Err(DataError::unsupported(format!(
                        "make batch {:?}: loader thread {thread} died of a bug, its message is above",
                        self.position()
                    )))
                })
            }
        };
        self.next += 1;
        made
    }

    /// Where it stands.
    pub fn position(&self) -> LoaderPosition {
        let per_epoch = self.plan.per_epoch;
        LoaderPosition { epoch: self.next / per_epoch, batch: self.next % per_epoch }
    }

    /// Batches per epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.plan.per_epoch
    }

    /// How long the learner has waited for batches that were not ready. Without threads this stays zero.
    pub fn starved(&self) -> Duration {
        self.starved
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Without receivers every `send` fails, including those that wait for room.
        self.receivers.clear();
        for thread in self.threads.drain(..) {
            // A panic has been reported by its own thread and, as a missing batch, to the learner.
            let _ = thread.join();
        }
    }
}

impl Plan {
    /// Makes batch `number`.
    fn make(&self, number: u64) -> Result<DemoBatch, DataError> {
        let (epoch, batch) = (number / self.per_epoch, number % self.per_epoch);
        let order = self.order(epoch);
        let from = batch as usize * self.config.batch_size;
        let indices = &order[from..(from + self.config.batch_size).min(order.len())];
        let made = self.data.batch(indices)?;
        let node = SeedTree::new(self.config.seed).child("augment").index(epoch);
        self.config.augment.apply(made, indices.iter().map(|&i| node.index(i as u64)))
    }

    fn order(&self, epoch: u64) -> Arc<[usize]> {
        // Held while the order is drawn: the other threads need the same one.
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return Arc::clone(order);
        }
        let order: Arc<[usize]> = if self.config.shuffle {
            let node = SeedTree::new(self.config.seed).child("loader").index(epoch);
            self.data.epoch(&node).into()
        } else {
            (0..self.data.epoch_len()).collect()
        };
        if orders.len() >= 2 {
            orders.remove(0);
        }
        orders.push((epoch, Arc::clone(&order)));
        order
    }
}

#[cfg(test)]
mod tests;
