//! 200 updates equal 100, a new process's objects, and 100 more: bit for bit, and only if nothing is left out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::Array2;
use simloop_algos::bc::{Bc, BcConfig};
use simloop_policies::optim::{AdamWConfig, Schedule};
use simloop_policies::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use simloop_policies::{ActMode, ImitationModel as _, NoiseStream};
use simloop_trainers::build::PolicySurroundings;
use simloop_trainers::checkpoint::{Origin, load_state};
use simloop_trainers::data::{
    DataError, DataStatistics, Dataset as _, DemoEpisode, DemoSource, EpisodeMeta, Loader,
    LoaderConfig, LoaderPosition, SourceSpec, WindowDataset, WindowOptions,
};
use simloop_trainers::observer::Observers;
use simloop_trainers::offline::{LoopOptions, train_offline};
use simloop_trainers::run::{Existing, RunFolder};
use simloop_trainers::stop::StopFlag;
use simloop_trainers::tensors::{Feed, to_tensors};
use tch::{Device, Tensor};

use super::offline::Recorder;
use super::toy::{fresh_state, options};

const TOTAL: u64 = 200;
const HALF: u64 = 100;

/// Eight episodes of two numbers that go round in circles; the action is where to be next.
struct Circles {
    spec: SourceSpec,
    episodes: Vec<EpisodeMeta>,
}

impl Circles {
    fn new() -> Self {
        let names = || vec!["x".to_owned(), "y".to_owned()];
        let spec = SourceSpec {
            format: "circles".to_owned(),
            location: "nowhere".to_owned(),
            cameras: BTreeMap::new(),
            proprio: names(),
            action: names(),
            absolute_action: vec![true, true],
            convention: None,
            control_hz: None,
        };
        let meta = |e: usize| EpisodeMeta {
            len: 20 + e,
            instruction: Arc::from("go round"),
            id: format!("{e}"),
        };
        Self { spec, episodes: (0..8).map(meta).collect() }
    }
}

impl DemoSource for Circles {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.episodes
    }

    fn read(&self, episode: usize, _: bool) -> Result<DemoEpisode, DataError> {
        let len = self.episodes[episode].len;
        let place = |t: usize, d: usize| {
            let angle = 0.3 * t as f32 + episode as f32;
            10.0 * if d == 0 { angle.cos() } else { angle.sin() }
        };
        Ok(DemoEpisode {
            instruction: Arc::clone(&self.episodes[episode].instruction),
            proprio: Array2::from_shape_fn((len, 2), |(t, d)| place(t, d)),
            actions: Array2::from_shape_fn((len, 2), |(t, d)| place(t + 1, d)),
            images: BTreeMap::new(),
        })
    }
}

/// Everything that decides what comes next.
#[derive(Debug, PartialEq)]
struct Outcome {
    weights: BTreeMap<String, Tensor>,
    optimizer: BTreeMap<String, Tensor>,
    ema: Option<BTreeMap<String, Tensor>>,
    updates: u64,
    loader: LoaderPosition,
    next_actions: Tensor,
}

/// What is taken out of the saved state.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Without {
    Nothing,
    Weights,
    Moments,
    Average,
    Counter,
    LoaderPosition,
}

struct Learner {
    bc: Bc<VlaPolicy>,
    data: Arc<WindowDataset>,
}

fn learner(head: &str, seed: u64) -> Learner {
    let config: VlaConfig = toml::from_str(&format!(
        "n_obs_steps = 2\nchunk_size = 8\nstate = {{ kind = 'mlp', width = 16 }}\n{head}"
    ))
    .unwrap();
    let source: Arc<dyn DemoSource> = Arc::new(Circles::new());
    let windows = WindowOptions { n_obs_steps: 2, chunk_size: 8, ..WindowOptions::default() };
    let data =
        Arc::new(WindowDataset::new(Arc::clone(&source), (0..8).collect(), windows).unwrap());
    let statistics = DataStatistics::of(&data).unwrap();
    let normalizers = Normalizers::fit(&config, statistics.proprio, statistics.action).unwrap();
    let io = PolicyIo {
        cameras: BTreeMap::new(),
        proprio: source.spec().proprio.clone(),
        action: source.spec().action.clone(),
        convention: None,
        control_hz: None,
    };
    let policy = VlaPolicy::new(config, io, normalizers, Device::Cpu, seed).unwrap();
    let config = BcConfig {
        optim: AdamWConfig {
            learning_rate: 1e-3,
            schedule: Schedule::Cosine { warmup: 20, floor: 0.0 },
            ..AdamWConfig::default()
        },
        total_updates: TOTAL,
        ..BcConfig::default()
    };
    Learner { bc: Bc::new(policy, config, 3).unwrap(), data }
}

/// Trains until the end or update `stop_after`, from what is in `root`.
fn train(root: &Path, head: &str, stop_after: u64, without: Without) -> Outcome {
    let resume = root.join("checkpoints").exists();
    let existing = if resume { Existing::Resume } else { Existing::Refuse };
    let run = RunFolder::open(root, existing, Origin::default()).unwrap();
    // Other initial weights in the second process: what is not loaded shows.
    let Learner { mut bc, data } = learner(head, u64::from(resume));
    let mut state = fresh_state();
    if let Some((_, path)) = run.newest().unwrap() {
        let (mut saved, found) = load_state(&path).unwrap();
        state = found;
        let fresh = bc.state();
        match without {
            Without::Nothing => {}
            Without::Weights => saved.weights = fresh.weights,
            Without::Moments => saved.optimizer = fresh.optimizer,
            Without::Average => saved.ema = fresh.ema,
            Without::Counter => (saved.updates, state.update) = (0, 0),
            Without::LoaderPosition => state.loader = LoaderPosition::default(),
        }
        bc.load_state(&saved).unwrap();
    }
    let config = LoaderConfig { batch_size: 16, threads: 1, seed: 3, ..LoaderConfig::default() };
    let loader = Loader::new(Arc::clone(&data) as _, config, state.loader).unwrap();
    let mut feed = Feed::new(loader, Device::Cpu).unwrap();
    let stop = StopFlag::default();
    let mut observers = Observers::default();
    observers.push(Recorder { heard: std::rc::Rc::default(), stop_after, stop: stop.clone() });
    // A run that lost its counter has done as many updates as the others when it ends.
    let done = if without == Without::Counter { HALF } else { 0 };
    let options = LoopOptions { total: TOTAL - done, ..options(TOTAL) };
    let mut around = PolicySurroundings::new(None);
    train_offline(
        &mut bc,
        &mut feed,
        None,
        &mut around,
        &run,
        state,
        &options,
        &mut observers,
        &stop,
    )
    .unwrap();
    let state = bc.state();
    let indices: Vec<usize> = (0..10).map(|i| i * 7).collect();
    let batch = to_tensors(&data.batch(&indices).unwrap(), Device::Cpu).unwrap();
    let next_actions = bc.averaged(|policy| {
        let _guard = tch::no_grad_guard();
        let mut noise: Vec<_> = (0..10).map(NoiseStream::new).collect();
        policy.predict(&batch.obs, &mut noise, ActMode::Deterministic).unwrap()
    });
    Outcome {
        weights: state.weights,
        optimizer: state.optimizer,
        ema: state.ema,
        updates: state.updates + done,
        loader: feed.position(),
        next_actions,
    }
}

fn resumes_exactly(head: &str) {
    tch::set_num_threads(1);
    let straight = {
        let root = tempfile::tempdir().unwrap();
        train(root.path(), head, u64::MAX, Without::Nothing)
    };
    assert_eq!(straight.updates, TOTAL);
    let resumed = |without| {
        let root = tempfile::tempdir().unwrap();
        let half = train(root.path(), head, HALF, Without::Nothing);
        assert_eq!(half.updates, HALF);
        train(root.path(), head, u64::MAX, without)
    };
    assert!(resumed(Without::Nothing) == straight, "a resumed run differs");
    for without in [
        Without::Weights,
        Without::Moments,
        Without::Average,
        Without::Counter,
        Without::LoaderPosition,
    ] {
        let cut = resumed(without);
        assert!(cut != straight, "leaving out {without:?} goes unnoticed");
        assert!(cut.next_actions != straight.next_actions, "{without:?} does not show in actions");
    }
}

#[test]
fn an_mlp_head_resumes_bit_for_bit() {
    resumes_exactly("[head]\nkind = 'mlp'\nhidden = [32, 32]\n");
}

#[test]
fn a_diffusion_head_resumes_bit_for_bit() {
    resumes_exactly(
        "[head]\nkind = 'diffusion'\nsampling_steps = 5\n\
         [head.denoiser]\nkind = 'mlp'\nwidth = 32\nblocks = 2\n",
    );
}

#[test]
fn a_transformer_head_resumes_bit_for_bit() {
    resumes_exactly(
        "[head]\nkind = 'act'\nlatent_dim = 4\nn_vae_encoder_layers = 1\n\
         [head.decoder]\nn_encoder_layers = 1\nn_decoder_layers = 1\n\
         [head.decoder.transformer]\nwidth = 16\nheads = 2\nfeed_forward = 32\n",
    );
}
