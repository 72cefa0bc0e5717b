//! Environments on worker threads.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::slot::Slot;
use super::{EnvFactory, EnvId, PerEnv, Reply, Request, VecEnv};
use crate::{EnvError, EnvSpec};

enum Command {
    Run(EnvId, Request),
    Spec(Sender<Result<EnvSpec, EnvError>>),
}

/// N environments on `num_threads` threads; place `i` lives on thread `i % num_threads`.
///
/// Channels are bounded by the number of places, so memory stays flat however slow the receiver is. Dropping the vector
/// closes the channels and joins the threads; a request under way is finished first.
pub struct ThreadedVecEnv {
    commands: Vec<Sender<Command>>,
    replies: Receiver<(EnvId, Result<Reply, EnvError>)>,
    threads: Vec<JoinHandle<()>>,
    busy: Vec<bool>,
    in_flight: usize,
}

impl ThreadedVecEnv {
    /// Starts the threads (at most one per place, at least one). Environments are built on their thread at first use.
    ///
    /// # Errors
    /// [`EnvError::Config`] for zero environments; [`EnvError::Spawn`] if the system refuses a thread.
    pub fn new(
        factory: &EnvFactory,
        num_envs: usize,
        num_threads: usize,
    ) -> Result<Self, EnvError> {
        if num_envs == 0 {
            return Err(EnvError::Config { detail: "a vector of zero environments".to_owned() });
        }
        let num_threads = num_threads.clamp(1, num_envs);
        let (reply_tx, replies) = bounded(num_envs);
        let (mut commands, mut threads) = (Vec::new(), Vec::new());
        for thread in 0..num_threads {
            let places = (thread..num_envs).step_by(num_threads);
            let slots: Vec<_> =
                places.map(|i| Slot::new(EnvId(i), EnvFactory::clone(factory))).collect();
            let (tx, rx) = bounded(slots.len() + 1);
            let reply_tx = reply_tx.clone();
            let handle = std::thread::Builder::new()
                .name(format!("env-worker-{thread}"))
                .spawn(move || serve(slots, num_threads, &rx, &reply_tx))
                .map_err(|e| EnvError::Spawn {
                    program: "env worker thread".to_owned(),
                    detail: e.to_string(),
                })?;
            commands.push(tx);
            threads.push(handle);
        }
        Ok(Self { commands, replies, threads, busy: vec![false; num_envs], in_flight: 0 })
    }

    fn thread_of(&self, id: EnvId) -> &Sender<Command> {
        &self.commands[id.0 % self.commands.len()]
    }
}

fn serve(
    mut slots: Vec<Slot>,
    stride: usize,
    commands: &Receiver<Command>,
    replies: &Sender<(EnvId, Result<Reply, EnvError>)>,
) {
    while let Ok(command) = commands.recv() {
        match command {
            Command::Run(id, request) => {
                let reply = slots[id.0 / stride].handle(request);
                if replies.send((id, reply)).is_err() {
                    return;
                }
            }
            // The asker may have gone away; there is nobody left to tell.
            Command::Spec(answer) => drop(answer.send(slots[0].spec())),
        }
    }
}

impl VecEnv for ThreadedVecEnv {
    fn num_envs(&self) -> usize {
        self.busy.len()
    }

    fn spec(&mut self) -> Result<EnvSpec, EnvError> {
        let (tx, rx) = bounded(1);
        self.thread_of(EnvId(0)).send(Command::Spec(tx)).map_err(|_| gone())?;
        rx.recv().map_err(|_| gone())?
    }

    fn send(&mut self, requests: Vec<(EnvId, Request)>) -> Result<(), EnvError> {
        for (id, request) in requests {
            if *self.busy.get(id.0).ok_or_else(|| super::unknown(id))? {
                return Err(super::busy(id));
            }
            self.thread_of(id).send(Command::Run(id, request)).map_err(|_| gone())?;
            self.busy[id.0] = true;
            self.in_flight += 1;
        }
        Ok(())
    }

    fn recv(&mut self, min_ready: usize) -> PerEnv<Reply> {
        let wanted = min_ready.min(self.in_flight);
        let mut ready: PerEnv<Reply> = Vec::with_capacity(wanted);
        while ready.len() < wanted {
            let Ok(reply) = self.replies.recv() else {
                // Every worker thread is gone: answer for the envs still under way instead of waiting for ever.
                let answered: Vec<EnvId> = ready.iter().map(|(id, _)| *id).collect();
                let busy = self.busy.iter().enumerate().filter(|(_, busy)| **busy);
                let lost = busy.map(|(i, _)| EnvId(i)).filter(|id| !answered.contains(id));
                ready.extend(lost.map(|id| (id, Err(gone()))));
                break;
            };
            ready.push(reply);
        }
        ready.extend(self.replies.try_iter());
        for (id, _) in &ready {
            self.busy[id.0] = false;
        }
        self.in_flight -= ready.len();
        ready.sort_by_key(|(id, _)| *id);
        ready
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for ThreadedVecEnv {
    fn drop(&mut self) {
        self.commands.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an env worker thread panicked outside its environments");
            }
        }
    }
}

fn gone() -> EnvError {
    EnvError::Disconnected { detail: "the worker thread has ended".to_owned() }
}
