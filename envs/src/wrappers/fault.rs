//! Injected faults, for tests of everything that must survive them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ndarray::ArrayView1;

use crate::{Env, EnvError, EnvSpec, Frame, Info, Observation, ResetOptions, Step};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The environment panics.
    Panic,
    /// The environment returns [`EnvError::Simulator`].
    Error,
    /// The environment sleeps for so long, then goes on.
    Hang(Duration),
    /// The whole process aborts: only for environments in a child process.
    Abort,
}

/// Which episodes fail, at which step, and how often: `seed -> (kind, step, times)`.
///
/// Counted across all environments that share the plan, so that a retried episode can succeed. In child processes each
/// restarted child counts anew.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan(Arc<Mutex<BTreeMap<u64, Planned>>>);

#[derive(Clone, Copy, Debug)]
struct Planned {
    kind: FaultKind,
    step: u32,
    times: u32,
}

impl FaultPlan {
    /// Lets the first `times` episodes with this seed fail with `kind` at `step` (0 is the reset).
    #[must_use]
    pub fn fail(self, seed: u64, kind: FaultKind, step: u32, times: u32) -> Self {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(seed, Planned { kind, step, times });
        self
    }

    fn due(&self, seed: u64, at: u32) -> Option<FaultKind> {
        let mut plan = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let planned = plan.get_mut(&seed)?;
        if planned.step != at || planned.times == 0 {
            return None;
        }
        planned.times -= 1;
        Some(planned.kind)
    }
}

/// An environment that fails by plan.
pub struct FaultInjector<E> {
    env: E,
    spec: EnvSpec,
    plan: FaultPlan,
    seed: u64,
    step: u32,
}

impl<E: Env> FaultInjector<E> {
    /// Wraps `env`. The spec stays as it is: an episode that survives its faults equals an undisturbed one.
    pub fn new(env: E, plan: FaultPlan) -> Self {
        let spec = env.spec().clone();
        Self { env, spec, plan, seed: 0, step: 0 }
    }

    fn strike(&self) -> Result<(), EnvError> {
        let Some(kind) = self.plan.due(self.seed, self.step) else { return Ok(()) };
        match kind {
            FaultKind::Panic => panic!("injected panic at step {}", self.step),
            FaultKind::Abort => std::process::abort(),
            FaultKind::Hang(time) => {
                std::thread::sleep(time);
                Ok(())
            }
            FaultKind::Error => Err(EnvError::Simulator {
                kind: "InjectedFault".to_owned(),
                message: format!("at step {}", self.step),
                trace: String::new(),
            }),
        }
    }
}

impl<E: Env> Env for FaultInjector<E> {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        self.seed = seed.unwrap_or(self.seed);
        self.step = 0;
        self.strike()?;
        self.env.reset(seed, options)
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        self.step += 1;
        self.strike()?;
        self.env.step(action, frames)
    }

    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        self.env.render()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.env.memory_bytes()
    }
}
