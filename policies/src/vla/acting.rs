//! Acting: what was seen is remembered, decisions are made in batches of one size.

use simloop_envs::{ActionChunk, ActionConvention, EnvId, Observation};
use tch::Device;

use super::VlaPolicy;
use crate::{
    ActMode, ActRequest, ImitationModel as _, Needs, NoiseStream, ObsBatch, Policy, PolicyError,
    PolicyStep,
};

impl VlaPolicy {
    /// What environment `env` showed last, oldest first, `T_o` observations.
    fn remember(&mut self, request: &ActRequest<'_>) -> Vec<Observation> {
        let keep = self.config.n_obs_steps;
        let history = self.histories.entry(request.env).or_default();
        for obs in request.recent {
            if history.len() == keep {
                history.pop_front();
            }
            history.push_back(obs.clone());
        }
        let missing = keep - history.len();
        let first = history.front().unwrap_or(request.obs);
        std::iter::repeat_n(first, missing).chain(history.iter()).cloned().collect()
    }

    /// Rows `first_action ..` of each chunk, `[T_p - first, D]`.
    pub(super) fn chunks(
        &self,
        windows: &[Vec<Observation>],
        seeds: &[u64],
        mode: ActMode,
    ) -> Result<Vec<ndarray::Array2<f32>>, PolicyError> {
        let (t, d) = (self.config.chunk_size, self.io.action.len());
        let first = self.config.first_action();
        let mut chunks = Vec::with_capacity(windows.len());
        for (windows, seeds) in windows
            .chunks(self.config.inference_batch)
            .zip(seeds.chunks(self.config.inference_batch))
        {
            let pad = self.config.inference_batch - windows.len();
            let padded: Vec<_> =
                windows.iter().chain(std::iter::repeat_n(&windows[0], pad)).cloned().collect();
            let mut noise: Vec<_> = seeds
                .iter()
                .chain(std::iter::repeat_n(&seeds[0], pad))
                .map(|&seed| NoiseStream::new(seed))
                .collect();
            let obs = ObsBatch::stack(&padded, self.cameras(), self.params.device())?;
            let out = self.predict(&obs, &mut noise, mode)?.to_device(Device::Cpu).contiguous();
            let mut values = vec![0f32; self.config.inference_batch * t * d];
            let n = values.len();
            out.copy_data(&mut values, n);
            if values[..windows.len() * t * d].iter().any(|v| !v.is_finite()) {
                return Err(PolicyError::NonFinite { tensor: "chunk".to_owned() });
            }
            for row in values.chunks(t * d).take(windows.len()) {
                let chunk = ndarray::ArrayView2::from_shape((t, d), row)
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                chunks.push(chunk.slice(ndarray::s![first.., ..]).to_owned());
            }
        }
        Ok(chunks)
    }
}

impl Policy for VlaPolicy {
    fn name(&self) -> &str {
        &self.name
    }

    fn needs(&self) -> Needs {
        Needs {
            images: !self.cameras().is_empty(),
            privileged: false,
            n_obs_steps: self.config.n_obs_steps,
        }
    }

    fn convention(&self) -> Option<&ActionConvention> {
        self.io.convention.as_ref()
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        let windows: Vec<_> = requests.iter().map(|request| self.remember(request)).collect();
        let seeds: Vec<_> = requests.iter().map(|request| request.noise_seed).collect();
        let chunks = self.chunks(&windows, &seeds, mode)?;
        requests
            .iter()
            .zip(chunks)
            .map(|(request, chunk)| {
                let actions = self.executor.execute(request.env, chunk.view())?;
                let chunk = ActionChunk::new(actions)
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                Ok(PolicyStep { chunk, stats: None })
            })
            .collect()
    }

    fn reset(&mut self, envs: &[EnvId]) {
        for env in envs {
            self.histories.remove(env);
        }
        self.executor.reset(envs);
    }
}
