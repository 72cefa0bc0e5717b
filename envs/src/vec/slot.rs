//! One place in a vector: an environment that is built on demand and rebuilt after a fault.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{EnvFactory, EnvId, Reply, Request};
use crate::{Env, EnvError, EnvSpec};

pub(super) struct Slot {
    id: EnvId,
    factory: EnvFactory,
    env: Option<Box<dyn Env>>,
}

impl Slot {
    pub(super) fn new(id: EnvId, factory: EnvFactory) -> Self {
        Self { id, factory, env: None }
    }

    pub(super) fn spec(&mut self) -> Result<EnvSpec, EnvError> {
        guarded(|| self.built().map(|env| env.spec().clone()))
    }

    /// Runs one request; after any error but a refused action the environment is dropped.
    pub(super) fn handle(&mut self, request: Request) -> Result<Reply, EnvError> {
        let result = guarded(|| self.run(request));
        if result.as_ref().is_err_and(|error| !matches!(error, EnvError::InvalidAction { .. })) {
            self.discard();
        }
        result
    }

    fn run(&mut self, request: Request) -> Result<Reply, EnvError> {
        match request {
            Request::Reset(request) => {
                let env = self.built()?;
                let (obs, info) = env.reset(request.seed, &request.options)?;
                Ok(Reply::Reset { obs, info, memory_bytes: env.memory_bytes() })
            }
            Request::Step(chunk, frames) => {
                self.running()?.step_chunk(&chunk, frames).map(Reply::Step)
            }
            Request::Render => self.running()?.render().map(Reply::Frame),
            Request::Recycle => {
                self.discard();
                Ok(Reply::Recycled)
            }
        }
    }

    fn built(&mut self) -> Result<&mut Box<dyn Env>, EnvError> {
        if self.env.is_none() {
            self.env = Some((self.factory)(self.id)?);
        }
        Ok(self.env.as_mut().expect("built above"))
    }

    fn running(&mut self) -> Result<&mut Box<dyn Env>, EnvError> {
        self.env.as_mut().ok_or(EnvError::NeedsReset { since: "its last fault or construction" })
    }

    fn discard(&mut self) {
        // A destructor that panics must not take the worker thread with it.
        if let Some(env) = self.env.take()
            && catch_unwind(AssertUnwindSafe(|| drop(env))).is_err()
        {
            tracing::warn!(env = self.id.0, "an environment panicked while it was dropped");
        }
    }
}

fn guarded<T>(run: impl FnOnce() -> Result<T, EnvError>) -> Result<T, EnvError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Err(EnvError::Panicked { message })
    })
}
