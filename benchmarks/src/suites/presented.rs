//! A policy that is shown something else than the environment says.

use std::collections::BTreeMap;
use std::sync::Arc;

use simloop_envs::{ActionConvention, EnvId, Observation};
use simloop_policies::{ActMode, ActRequest, Needs, Policy, PolicyError, PolicyStep};

/// Changes instructions and a camera's name on the way to a policy; the environment, and what is recorded of it, stay
/// as they are.
pub struct Presented {
    inner: Box<dyn Policy>,
    /// What is told instead of what.
    words: BTreeMap<String, Arc<str>>,
    /// The environment's name of a camera and the policy's.
    camera: Option<(String, String)>,
}

impl Presented {
    /// `words` maps an instruction to the one that is told instead; others pass.
    pub fn reworded(inner: Box<dyn Policy>, words: BTreeMap<String, Arc<str>>) -> Self {
        Self { inner, words, camera: None }
    }

    /// The environment's camera `from` is shown as `to`.
    pub fn renamed(inner: Box<dyn Policy>, from: String, to: String) -> Self {
        Self { inner, words: BTreeMap::new(), camera: Some((from, to)) }
    }

    fn present(&self, obs: &Observation) -> Observation {
        let mut obs = obs.clone();
        if let Some(told) = self.words.get(&*obs.instruction) {
            obs.instruction = Arc::clone(told);
        }
        if let Some((from, to)) = &self.camera
            && let Some(frame) = obs.images.remove(from)
        {
            obs.images.insert(to.clone(), frame);
        }
        obs
    }
}

impl Policy for Presented {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn convention(&self) -> Option<&ActionConvention> {
        self.inner.convention()
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        let shown: Vec<Vec<Observation>> = requests
            .iter()
            .map(|request| request.recent.iter().map(|obs| self.present(obs)).collect())
            .collect();
        let last: Vec<Observation> =
            requests.iter().map(|request| self.present(request.obs)).collect();
        let requests: Vec<_> = requests
            .iter()
            .zip(shown.iter().zip(&last))
            .map(|(request, (recent, obs))| ActRequest { obs, recent, ..*request })
            .collect();
        self.inner.act(&requests, mode)
    }

    fn reset(&mut self, envs: &[EnvId]) {
        self.inner.reset(envs);
    }
}
