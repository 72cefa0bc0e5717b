//! From settings to the parts of a run.

use std::path::Path;
use std::sync::Arc;

use simloop_algos::bc::{Bc, Metrics};
use simloop_envs::SeedTree;
use simloop_policies::checkpoint::{WEIGHTS_FILE, save_policy};
use simloop_policies::encoders::VisionConfig;
use simloop_policies::optim::matches;
use simloop_policies::text::{TextConfig, Tokenizer};
use simloop_policies::vla::{self, Normalizers, PolicyIo, VlaPolicy};
use simloop_policies::{ImitationModel as _, safetensors_io};
use tch::Device;

use crate::TrainerError;
use crate::acting::Acting;
use crate::config::{DataConfig, DeviceChoice, RunConfig};
use crate::data::{
    self, Align, DataStatistics, Dataset as _, DemoSource, LoaderConfig, OpenOptions, SourceSpec,
    WindowDataset, WindowOptions, split,
};
use crate::offline::{LoopOptions, Surroundings};
use crate::stop::StopFlag;
use crate::validate::Validation;

/// A run before its first update.
pub struct Parts {
    /// The learner with initial weights.
    pub bc: Bc<VlaPolicy>,
    /// What to learn from.
    pub train: Arc<WindowDataset>,
    /// How batches are made.
    pub loader: LoaderConfig,
    /// What to measure on.
    pub validation: Option<Validation>,
    /// Where the policy acts and how it is saved.
    pub around: PolicySurroundings,
    /// The loop.
    pub options: LoopOptions,
}

/// The device that `choice` means here.
///
/// # Errors
/// [`TrainerError::Config`] if CUDA is asked for and not there.
pub fn device(choice: DeviceChoice) -> Result<Device, TrainerError> {
    match (choice, tch::Cuda::is_available()) {
        (DeviceChoice::Cpu, _) | (DeviceChoice::Auto, false) => Ok(Device::Cpu),
        (_, true) => Ok(Device::Cuda(0)),
        (DeviceChoice::Cuda, false) => Err(TrainerError::config(
            "use `device = \"cuda\"`: libtorch sees no GPU here (see `bench doctor`)",
        )),
    }
}

/// Opens the demonstrations.
///
/// # Errors
/// [`TrainerError::Data`] naming what is missing or broken.
pub fn open_source(config: &DataConfig) -> Result<Arc<dyn DemoSource>, TrainerError> {
    let options = OpenOptions { pusht_obs: config.obs, ..config.read.clone() };
    Ok(data::open_source(&config.path, &options)?)
}

/// Puts the parts of a run together.
///
/// # Errors
/// [`TrainerError`] naming the setting or the file at fault.
pub fn build(config: &RunConfig) -> Result<Parts, TrainerError> {
    let device = device(config.device)?;
    if config.threads > 0 {
        tch::set_num_threads(config.threads);
    }
    let source = open_source(&config.data)?;
    let parts = split(source.episodes(), config.data.validation_fraction, config.data.split_seed);
    let mut learn = parts.train;
    learn.truncate(config.data.max_episodes.unwrap_or(usize::MAX));
    let windows = window_options(config, source.spec());
    let train = Arc::new(WindowDataset::new(Arc::clone(&source), learn, windows.clone())?);
    let spec = source.spec().clone();
    if train.epoch_len() < config.train.batch_size {
        return Err(TrainerError::config(format!(
            "fill a batch of {} windows: `{}` has {}; lower `train.batch_size`",
            config.train.batch_size,
            spec.location,
            train.epoch_len()
        )));
    }

    let statistics = DataStatistics::of(&train)?;
    let normalizers = Normalizers::fit(&config.policy, statistics.proprio, statistics.action)?;
    let seed = SeedTree::new(config.seed).child("weights").seed();
    let tokenizer = tokenizer(&config.policy, config.data.vocabulary, source.as_ref())?;
    let policy = VlaPolicy::with_tokenizer(
        config.policy.clone(),
        policy_io(&spec),
        normalizers,
        tokenizer,
        device,
        seed,
    )?;

    if let Some(folder) = &config.vision_from {
        policy.begin_vision(folder)?;
    }
    if let Some(path) = &config.init_from {
        let file = if path.is_dir() { path.join(WEIGHTS_FILE) } else { path.clone() };
        let mut weights = safetensors_io::load(&file)?;
        for (name, value) in policy.params().all() {
            if !weights.contains_key(&name) && config.init_new.iter().any(|p| matches(p, &name)) {
                weights.insert(name, value.detach().copy());
            }
        }
        policy.params().load(&weights).map_err(|e| {
            TrainerError::config(format!("begin with the weights `{}`: {e}", file.display()))
        })?;
    }

    train.preload()?;
    let loader = LoaderConfig {
        batch_size: config.train.batch_size,
        threads: config.data.workers,
        prefetch: config.data.prefetch,
        seed: config.seed,
        augment: config.augment.clone(),
        ..LoaderConfig::default()
    };
    let total = match config.train.updates {
        0 => {
            let per_update = config.train.batch_size * config.train.accumulate;
            config.train.epochs * (train.epoch_len() / per_update).max(1) as u64
        }
        updates => updates,
    };
    let bc = Bc::new(policy, config.bc(total), config.seed)?;

    let validation = if config.validates() {
        let data = Arc::new(WindowDataset::new(source, parts.validation, windows)?);
        let t = &config.train;
        let validation =
            Validation::new(data, spec.action.clone(), spec.absolute_action.clone(), config.seed)
                .sizes(t.batch_size, t.validate_windows, t.predict_windows, t.examples);
        Some(validation)
    } else {
        None
    };
    let around = PolicySurroundings::new(Acting::new(&config.eval, config.data.obs)?);
    let options = LoopOptions {
        name: config.name.clone(),
        total,
        accumulate: config.train.accumulate,
        log_every: config.train.log_every,
        validate_every: config.train.validate_every,
        evaluate_every: config.eval.every,
        save_every: config.train.save_every,
        keep_last: config.train.keep_last,
        best_metric: config.best_metric().map(str::to_owned),
        patience: config.train.patience,
        max_dropped: config.train.max_dropped,
    };
    Ok(Parts { bc, train, loader, validation, around, options })
}

/// A vocabulary learned from every instruction of the data; `None` for a policy that does not read.
fn tokenizer(
    policy: &vla::VlaConfig,
    size: usize,
    source: &dyn DemoSource,
) -> Result<Option<Tokenizer>, TrainerError> {
    if policy.text == TextConfig::None {
        return Ok(None);
    }
    let texts = source.episodes().iter().map(|episode| episode.instruction.as_ref());
    Ok(Some(Tokenizer::train(texts, size)?))
}

fn window_options(config: &RunConfig, spec: &SourceSpec) -> WindowOptions {
    let policy = &config.policy;
    WindowOptions {
        n_obs_steps: policy.n_obs_steps,
        chunk_size: policy.chunk_size,
        align: match policy.align {
            vla::Align::Current => Align::Current,
            vla::Align::Window => Align::WindowStart,
        },
        pad_after: config.data.pad_after,
        cameras: match policy.vision {
            VisionConfig::None => Vec::new(),
            _ => spec.cameras.keys().cloned().collect(),
        },
        cache_bytes: config.data.cache_bytes,
        ..WindowOptions::default()
    }
}

fn policy_io(spec: &SourceSpec) -> PolicyIo {
    PolicyIo {
        cameras: spec.cameras.clone(),
        proprio: spec.proprio.clone(),
        action: spec.action.clone(),
        convention: spec.convention.clone(),
        control_hz: spec.control_hz,
    }
}

/// How a policy is saved and where it acts.
pub struct PolicySurroundings {
    acting: Option<Acting>,
}

impl PolicySurroundings {
    /// Acting in `acting`.
    pub fn new(acting: Option<Acting>) -> Self {
        Self { acting }
    }

    /// Films episodes of the evaluations in between into `folder`.
    pub fn film_into(&mut self, folder: &Path) {
        if let Some(acting) = &mut self.acting {
            acting.film_into(folder);
        }
    }

    /// The episodes of a set of their own, which no choice was made on; `None` where the policy does not act.
    ///
    /// # Errors
    /// What the environment or the policy answers.
    pub fn final_evaluation(
        &mut self,
        policy: &mut VlaPolicy,
        episodes: u32,
        stop: &StopFlag,
    ) -> Result<Option<Metrics>, TrainerError> {
        match &mut self.acting {
            Some(acting) if episodes > 0 => acting.run(policy, "final", episodes, stop),
            _ => Ok(None),
        }
    }
}

impl Surroundings<VlaPolicy> for PolicySurroundings {
    fn save_policy(&self, model: &VlaPolicy, dir: &Path) -> Result<(), TrainerError> {
        Ok(save_policy(model, dir)?)
    }

    fn evaluate(
        &mut self,
        model: &mut VlaPolicy,
        update: u64,
        stop: &StopFlag,
    ) -> Result<Metrics, TrainerError> {
        let Some(acting) = &mut self.acting else { return Ok(Metrics::new()) };
        Ok(acting.judge(model, update, stop)?.unwrap_or_default())
    }
}
