//! Frames of the episodes used last, up to a bound in bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DataError, DemoSource, Frames};

/// An episode's frames, by camera.
pub(super) type EpisodeFrames = Arc<BTreeMap<String, Frames>>;

/// Least-recently-used episodes of one source. Threads that ask for different episodes read at the same time; threads
/// that ask for the same one wait for the first.
pub(super) struct EpisodeCache {
    source: Arc<dyn DemoSource>,
    limit: usize,
    slots: Vec<Mutex<Option<EpisodeFrames>>>,
    order: Mutex<Order>,
}

#[derive(Default)]
struct Order {
    clock: u64,
    bytes: usize,
    /// Last use to episode.
    by_use: BTreeMap<u64, usize>,
    /// Episode to its last use and its size.
    used: BTreeMap<usize, (u64, usize)>,
}

impl Order {
    fn touch(&mut self, episode: usize, bytes: usize) {
        self.clock += 1;
        if let Some((last, old)) = self.used.insert(episode, (self.clock, bytes)) {
            self.by_use.remove(&last);
            self.bytes -= old;
        }
        self.by_use.insert(self.clock, episode);
        self.bytes += bytes;
    }

    /// Takes the episode that was not used for the longest, but never the last one that is left.
    fn pop(&mut self, limit: usize) -> Option<usize> {
        if self.bytes <= limit || self.by_use.len() < 2 {
            return None;
        }
        let (_, episode) = self.by_use.pop_first()?;
        let (_, bytes) = self.used.remove(&episode)?;
        self.bytes -= bytes;
        Some(episode)
    }
}

impl EpisodeCache {
    pub(super) fn new(source: Arc<dyn DemoSource>, limit: usize) -> Self {
        let slots = source.episodes().iter().map(|_| Mutex::default()).collect();
        Self { source, limit, slots, order: Mutex::default() }
    }

    /// The frames of `episode`, read if they are not here.
    pub(super) fn get(&self, episode: usize) -> Result<EpisodeFrames, DataError> {
        let frames = {
            let mut slot = lock(&self.slots[episode]);
            if let Some(frames) = &*slot {
                Arc::clone(frames)
            } else {
                let frames = Arc::new(self.source.read(episode, true)?.images);
                Arc::clone(slot.insert(frames))
            }
        };
        let bytes = frames.values().map(Frames::bytes).sum();
        let mut order = lock(&self.order);
        order.touch(episode, bytes);
        while let Some(old) = order.pop(self.limit) {
            // A slot is only ever held while its own episode is read, and that thread does not hold `order`.
            match self.slots[old].try_lock() {
                Ok(mut slot) => *slot = None,
                // Somebody is using it right now; it comes back into the order when they are done.
                Err(_) => break,
            }
        }
        Ok(frames)
    }

    /// Bytes held.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.slots
            .iter()
            .filter_map(|s| lock(s).as_ref().map(|f| f.values().map(Frames::bytes).sum::<usize>()))
            .sum()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
