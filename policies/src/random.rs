//! Uniformly random actions.

use ndarray::Array2;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use simloop_envs::{ActionChunk, BoxSpace};

use crate::{ActMode, ActRequest, Needs, Policy, PolicyError, PolicyStep};

/// Draws every action uniformly from the action space: the floor of a benchmark.
pub struct RandomPolicy {
    space: BoxSpace,
    chunk_size: usize,
}

impl RandomPolicy {
    /// Chunks of `chunk_size >= 1` independent actions.
    pub fn new(space: BoxSpace, chunk_size: usize) -> Self {
        Self { space, chunk_size: chunk_size.max(1) }
    }
}

impl Policy for RandomPolicy {
    fn name(&self) -> &'static str {
        "random"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        _mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        requests
            .iter()
            .map(|request| {
                let mut rng = ChaCha8Rng::seed_from_u64(request.noise_seed);
                let mut actions = Array2::zeros((self.chunk_size, self.space.len()));
                for mut row in actions.outer_iter_mut() {
                    row.assign(&self.space.sample(&mut rng));
                }
                let chunk = ActionChunk::new(actions)
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                Ok(PolicyStep { chunk, stats: None })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_envs::testing::CountingEnv;
    use simloop_envs::{Env, EnvId, Info, ResetOptions};

    #[test]
    fn a_decision_depends_on_its_seed_and_not_on_the_batch() {
        let mut env = CountingEnv::new(3);
        let (obs, _) = env.reset(Some(0), &ResetOptions::default()).unwrap();
        let mut policy = RandomPolicy::new(env.spec().action.clone(), 4);
        let info = Info::default();
        let request = |env, noise_seed| ActRequest {
            env: EnvId(env),
            obs: &obs,
            recent: std::slice::from_ref(&obs),
            info: &info,
            noise_seed,
        };
        let alone = policy.act(&[request(0, 5)], ActMode::Deterministic).unwrap();
        let batch = policy.act(&[request(3, 6), request(1, 5)], ActMode::Deterministic).unwrap();
        assert_eq!(alone[0].chunk, batch[1].chunk);
        assert_ne!(alone[0].chunk, batch[0].chunk);
    }
}
