//! Experts: labels from the simulator's true state.

use std::collections::BTreeMap;

use simloop_envs::{ActionChunk, EnvId, Info, Observation};

use crate::{ActMode, ActRequest, Needs, Policy, PolicyError, PolicyStep};

/// Labels any state with what an expert would do there: demonstrations, `DAgger` labels, and a ceiling for benchmarks.
pub trait Expert: Send {
    /// A new episode begins.
    fn reset(&mut self);

    /// What to do now; `None` where the expert has no opinion (the caller then holds still or skips the label).
    ///
    /// May keep memory between calls of one episode, but must recover when the state is not the one its last label would
    /// have led to.
    ///
    /// # Errors
    /// [`PolicyError::Missing`] without the true state; [`PolicyError::UnsupportedTask`] for a task it does not know.
    fn label(&mut self, obs: &Observation, info: &Info)
    -> Result<Option<ActionChunk>, PolicyError>;
}

/// Drives environments by an expert, one instance each.
pub struct ExpertPolicy {
    name: String,
    make: Box<dyn Fn() -> Box<dyn Expert>>,
    hold: ActionChunk,
    experts: BTreeMap<EnvId, Box<dyn Expert>>,
}

impl ExpertPolicy {
    /// `make` builds an expert per environment; `hold` is executed where the expert has no opinion.
    pub fn new(
        name: impl Into<String>,
        hold: ActionChunk,
        make: impl Fn() -> Box<dyn Expert> + 'static,
    ) -> Self {
        Self { name: name.into(), make: Box::new(make), hold, experts: BTreeMap::new() }
    }
}

impl Policy for ExpertPolicy {
    fn name(&self) -> &str {
        &self.name
    }

    fn needs(&self) -> Needs {
        Needs { privileged: true, ..Needs::default() }
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        _mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        requests
            .iter()
            .map(|request| {
                let expert = self.experts.entry(request.env).or_insert_with(&self.make);
                let label = expert.label(request.obs, request.info)?;
                Ok(PolicyStep { chunk: label.unwrap_or_else(|| self.hold.clone()), stats: None })
            })
            .collect()
    }

    fn reset(&mut self, envs: &[EnvId]) {
        for env in envs {
            if let Some(expert) = self.experts.get_mut(env) {
                expert.reset();
            }
        }
    }
}
