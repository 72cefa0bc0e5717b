//! A small model and data set without files, and one call that trains them.

use std::path::Path;
use std::sync::Arc;

use ndarray::Array2;
use simloop_algos::bc::{Bc, BcConfig, Metrics};
use simloop_envs::{ActionChunk, Observation, SeedTree};
use simloop_policies::nn::{Activation, Mlp, Params};
use simloop_policies::optim::{AdamWConfig, Schedule};
use simloop_policies::{
    ActMode, ActRequest, ImitationBatch, ImitationModel, Needs, NoiseStream, ObsBatch, Policy,
    PolicyError, PolicyStep, safetensors_io,
};
use simloop_trainers::TrainerError;
use simloop_trainers::checkpoint::{Origin, TrainState, load_state};
use simloop_trainers::data::{
    DataError, Dataset, DemoSample, Loader, LoaderConfig, LoaderPosition,
};
use simloop_trainers::observer::Observers;
use simloop_trainers::offline::{End, LoopOptions, Surroundings, train_offline};
use simloop_trainers::run::{Existing, RunFolder};
use simloop_trainers::stop::StopFlag;
use simloop_trainers::tensors::Feed;
use simloop_trainers::validate::Validation;
use tch::{Device, Kind, Tensor};

/// `[B, 1, 3]` proprio to `[B, 2, 2]` actions, with noise on the input so that the streams matter.
pub(crate) struct Toy {
    params: Params,
    net: Mlp,
}

impl Toy {
    pub(crate) fn new(seed: u64) -> Self {
        let params = Params::new(Device::Cpu, seed);
        let net = Mlp::new(&params.root().sub("net"), &[3, 64, 64, 4], Activation::Tanh);
        Self { params, net }
    }
}

impl Policy for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn act(&mut self, _: &[ActRequest<'_>], _: ActMode) -> Result<Vec<PolicyStep>, PolicyError> {
        Err(PolicyError::Config { detail: "the toy does not act".to_owned() })
    }
}

impl ImitationModel for Toy {
    fn imitation_loss(
        &self,
        batch: &ImitationBatch,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let jitter = noise.normal(&batch.obs.proprio.size(), Device::Cpu) * 0.1;
        let proprio = &batch.obs.proprio + jitter;
        let predicted = self.net.forward(&proprio.squeeze_dim(1)).reshape([-1, 2, 2]);
        let error = predicted - &batch.actions;
        Ok(error.square().mean_dim([-1i64].as_slice(), false, Kind::Float))
    }

    fn predict(
        &self,
        obs: &ObsBatch,
        _: &mut [NoiseStream],
        _: ActMode,
    ) -> Result<Tensor, PolicyError> {
        Ok(self.net.forward(&obs.proprio.squeeze_dim(1)).reshape([-1, 2, 2]))
    }

    fn params(&self) -> &Params {
        &self.params
    }
}

/// 64 windows whose actions are a function of the state; `poison` makes the proprio of those from there on NaN.
pub(crate) struct ToyData {
    pub(crate) poison: usize,
}

impl Dataset for ToyData {
    fn len(&self) -> usize {
        64
    }

    fn get(&self, index: usize) -> Result<DemoSample, DataError> {
        let node = SeedTree::new(1).index(index as u64);
        let mut x: Vec<f32> =
            Vec::try_from(NoiseStream::new(node.seed()).normal(&[3], Device::Cpu)).unwrap();
        let actions = vec![x[0] * 0.5, x[1].sin(), x[1], x[2] * x[0]];
        if index >= self.poison {
            x[0] = f32::NAN;
        }
        let obs = Observation {
            images: std::collections::BTreeMap::new(),
            proprio: ndarray::Array1::from_vec(x).into_shared(),
            instruction: Arc::from("push"),
        };
        Ok(DemoSample {
            obs: vec![obs],
            chunk: ActionChunk::new(Array2::from_shape_vec((2, 2), actions).unwrap()).unwrap(),
            valid: vec![true, !index.is_multiple_of(4)],
            episode: index / 8,
            step: index % 8,
        })
    }
}

/// Saves the toy's weights; its score is what the test says.
pub(crate) struct ToyWorld {
    pub(crate) score: Box<dyn FnMut() -> f64>,
}

impl Default for ToyWorld {
    fn default() -> Self {
        Self { score: Box::new(|| 0.0) }
    }
}

impl Surroundings<Toy> for ToyWorld {
    fn save_policy(&self, model: &Toy, dir: &Path) -> Result<(), TrainerError> {
        Ok(safetensors_io::save(&dir.join("model.safetensors"), &model.params().snapshot())?)
    }

    fn evaluate(&mut self, _: &mut Toy, _: u64, _: &StopFlag) -> Result<Metrics, TrainerError> {
        Ok(Metrics::from([("eval/mean_score", (self.score)())]))
    }
}

pub(crate) fn config(total: u64) -> BcConfig {
    BcConfig {
        optim: AdamWConfig {
            learning_rate: 3e-3,
            schedule: Schedule::Cosine { warmup: 10, floor: 0.0 },
            ..AdamWConfig::default()
        },
        total_updates: total,
        ..BcConfig::default()
    }
}

pub(crate) fn options(total: u64) -> LoopOptions {
    LoopOptions {
        name: "toy".to_owned(),
        total,
        accumulate: 1,
        log_every: 1,
        validate_every: 0,
        evaluate_every: 0,
        save_every: 0,
        keep_last: 2,
        best_metric: None,
        patience: 0,
        max_dropped: 3,
    }
}

pub(crate) fn fresh_state() -> TrainState {
    TrainState {
        update: 0,
        loader: LoaderPosition::default(),
        best: None,
        stale: 0,
        dropped_in_a_row: 0,
        trained_secs: 0.0,
    }
}

/// Trains in `root`, going on from what is there, and returns how it ended, the learner and the loader's place.
pub(crate) fn train(
    root: &Path,
    options: &LoopOptions,
    data: ToyData,
    world: &mut ToyWorld,
    observers: &mut Observers,
    stop: &StopFlag,
) -> (Result<End, TrainerError>, Bc<Toy>, LoaderPosition) {
    let resume = root.join("checkpoints").exists();
    let existing = if resume { Existing::Resume } else { Existing::Refuse };
    let run = RunFolder::open(root, existing, Origin::default()).unwrap();
    // Another seed than the first process had: all weights must come from the checkpoint.
    let mut bc = Bc::new(Toy::new(u64::from(resume)), config(options.total), 5).unwrap();
    let mut state = fresh_state();
    if let Some((_, path)) = run.newest().unwrap() {
        let (learner, found) = load_state(&path).unwrap();
        bc.load_state(&learner).unwrap();
        state = found;
    }
    let data: Arc<dyn Dataset> = Arc::new(data);
    let validation = Validation::new(
        Arc::clone(&data),
        vec!["x".to_owned(), "y".to_owned()],
        vec![true, true],
        0,
    );
    let loader = LoaderConfig { batch_size: 8, threads: 1, ..LoaderConfig::default() };
    let loader = Loader::new(data, loader, state.loader).unwrap();
    let mut feed = Feed::new(loader, Device::Cpu).unwrap();
    let end = train_offline(
        &mut bc,
        &mut feed,
        Some(&validation),
        world,
        &run,
        state,
        options,
        observers,
        stop,
    );
    let position = feed.position();
    (end, bc, position)
}
