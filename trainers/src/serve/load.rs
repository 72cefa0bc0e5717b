//! The policy of a checkpoint folder.

use std::path::PathBuf;

use simloop_policies::chunk::ChunkExecution;
use simloop_policies::remote::Description;
use simloop_policies::{Policy as _, checkpoint, device};

use super::engine::Loaded;
use crate::TrainerError;

/// Which policy, and how it computes.
#[derive(Clone, Debug)]
pub struct PolicySettings {
    /// The checkpoint folder.
    pub folder: PathBuf,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// libtorch's threads inside one operation.
    pub torch_threads: i32,
    /// Rows computed at once, if not the policy's own number.
    pub inference_batch: Option<usize>,
    /// Actions of a chunk that are answered, if not the policy's own number.
    pub n_action_steps: Option<usize>,
}

impl PolicySettings {
    /// The folder with everything at its default, on one CPU thread.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            device: "cpu".to_owned(),
            torch_threads: 1,
            inference_batch: None,
            n_action_steps: None,
        }
    }

    /// Loads the policy on this thread.
    ///
    /// # Errors
    /// [`TrainerError::Policy`] for a folder that is no policy; [`TrainerError::Config`] for a device that is not there.
    pub fn load(self) -> Result<Loaded, TrainerError> {
        let target = device::device_called(&self.device)?;
        tch::set_num_threads(self.torch_threads);
        let mut policy = checkpoint::load_policy(&self.folder, target)?;
        if let Some(n) = self.n_action_steps {
            policy.set_n_action_steps(n)?;
        }
        match self.inference_batch {
            None => {}
            Some(0) => return Err(TrainerError::config("compute no row at once: give at least 1")),
            Some(rows) => policy.set_inference_batch(rows),
        }
        let sha256 = checkpoint::fingerprint(&self.folder)?;
        let description = Description {
            label: format!("{}@{}", checkpoint::short_name(&self.folder), &sha256[..12]),
            sha256,
            io: policy.io().clone(),
            cameras: policy.cameras().to_vec(),
            n_obs_steps: policy.needs().n_obs_steps,
            inference_batch: policy.config().inference_batch,
            ensemble: !matches!(policy.config().execution, ChunkExecution::Receding(_)),
            device: self.device,
            torch_threads: self.torch_threads,
            libtorch: device::TORCH_VERSION.to_owned(),
        };
        let reads = policy.tokenizer().is_some();
        Ok(Loaded { policy: Box::new(policy), description, reads })
    }
}
