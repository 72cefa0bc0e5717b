//! All environments on the caller's thread.

use super::slot::Slot;
use super::{EnvFactory, EnvId, PerEnv, Reply, Request, VecEnv};
use crate::{EnvError, EnvSpec};

/// N environments on the caller's thread: `send` runs them, `recv` hands over the replies.
pub struct SyncVecEnv {
    slots: Vec<Slot>,
    replies: PerEnv<Reply>,
}

impl SyncVecEnv {
    /// N places; environments are built at their first use.
    pub fn new(factory: &EnvFactory, num_envs: usize) -> Self {
        let slots =
            (0..num_envs).map(|i| Slot::new(EnvId(i), EnvFactory::clone(factory))).collect();
        Self { slots, replies: Vec::new() }
    }
}

impl VecEnv for SyncVecEnv {
    fn num_envs(&self) -> usize {
        self.slots.len()
    }

    fn spec(&mut self) -> Result<EnvSpec, EnvError> {
        let slot = self.slots.first_mut();
        slot.ok_or_else(|| EnvError::Config { detail: "a vector of zero environments".to_owned() })?
            .spec()
    }

    fn send(&mut self, requests: Vec<(EnvId, Request)>) -> Result<(), EnvError> {
        for (id, request) in requests {
            if self.replies.iter().any(|(busy, _)| *busy == id) {
                return Err(super::busy(id));
            }
            let slot = self.slots.get_mut(id.0).ok_or_else(|| super::unknown(id))?;
            let reply = slot.handle(request);
            self.replies.push((id, reply));
        }
        Ok(())
    }

    fn recv(&mut self, _min_ready: usize) -> PerEnv<Reply> {
        let mut replies = std::mem::take(&mut self.replies);
        replies.sort_by_key(|(id, _)| *id);
        replies
    }

    fn in_flight(&self) -> usize {
        self.replies.len()
    }
}
