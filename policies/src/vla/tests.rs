//! How a composed policy acts, learns and is stored.

use std::sync::Arc;

use ndarray::{Array2, Array3};
use simloop_envs::{ImageSpace, Info};
use tch::Kind;

use super::*;
use crate::chunk::Receding;
use crate::encoders::cnn::CnnConfig;
use crate::encoders::{StateConfig, VisionConfig};
use crate::heads::HeadConfig;
use crate::heads::diffusion::DiffusionConfig;
use crate::heads::flow::FlowConfig;
use crate::nn::Scope;
use crate::normalize::{NormMode, Stats};
use crate::{ActRequest, Policy as _, StochasticActor as _, checkpoint, fusion::Context};

fn io(cameras: bool) -> PolicyIo {
    let size = ImageSpace { height: 40, width: 40 };
    PolicyIo {
        cameras: cameras.then(|| ("cam".to_owned(), size)).into_iter().collect(),
        proprio: ["x", "y", "z"].map(str::to_owned).to_vec(),
        action: ["x", "y"].map(str::to_owned).to_vec(),
        convention: None,
        control_hz: Some(10.0),
    }
}

fn normalizers(config: &VlaConfig) -> Normalizers {
    let rows = |d: usize| Array2::from_shape_fn((50, d), |(i, j)| (i * (j + 1)) as f32);
    let stats = |d| Stats::of(rows(d).view()).unwrap();
    Normalizers::fit(config, stats(3), stats(2)).unwrap()
}

fn policy(config: VlaConfig, seed: u64) -> VlaPolicy {
    let cameras = !matches!(config.vision, VisionConfig::None);
    let normalizers = normalizers(&config);
    let policy = VlaPolicy::new(config, io(cameras), normalizers, Device::Cpu, seed).unwrap();
    // Output layers that begin at zero would hide everything before them.
    let noise = NoiseStream::new(1).normal(&[1_000_000], Device::Cpu) * 0.05;
    let _guard = tch::no_grad_guard();
    for (_, mut tensor) in ImitationModel::params(&policy).all() {
        if tensor.abs().max().double_value(&[]) == 0.0 {
            let n = tensor.numel() as i64;
            tensor.copy_(&noise.narrow(0, 0, n).reshape(tensor.size()));
        }
    }
    policy
}

fn flow() -> VlaConfig {
    VlaConfig { head: HeadConfig::Flow(FlowConfig::default()), ..VlaConfig::default() }
}

fn obs(i: usize) -> Observation {
    let pixels = Array3::from_shape_fn((40, 40, 3), |(y, x, c)| (i * 7 + y * 3 + x + c) as u8);
    Observation {
        images: BTreeMap::from([("cam".to_owned(), pixels.into_shared())]),
        proprio: vec![i as f32, 2.0 * i as f32, 30.0].into(),
        instruction: Arc::from("go"),
    }
}

/// One decision per environment: `(env, observations since the last decision)`.
fn act(policy: &mut VlaPolicy, requests: &[(usize, &[Observation], u64)]) -> Vec<Vec<u32>> {
    let info = Info::default();
    let requests: Vec<_> = requests
        .iter()
        .map(|(env, recent, noise_seed)| ActRequest {
            env: EnvId(*env),
            obs: recent.last().unwrap(),
            recent,
            info: &info,
            noise_seed: *noise_seed,
        })
        .collect();
    let steps = policy.act(&requests, ActMode::Deterministic).unwrap();
    steps.iter().map(|s| s.chunk.view().iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn a_decision_does_not_depend_on_who_else_waits() {
    let vision = VisionConfig::Cnn(CnnConfig::default());
    let diffusion = HeadConfig::Diffusion(DiffusionConfig::default());
    for config in [flow(), VlaConfig { head: diffusion, vision, ..VlaConfig::default() }] {
        let mut policy = policy(config, 0);
        let seen: Vec<_> = (0..11).map(|i| [obs(i)]).collect();
        let alone = act(&mut policy, &[(5, &seen[5], 50)]);
        policy.reset(&[EnvId(5)]);
        let requests: Vec<_> = (0..11).map(|i| (i, &seen[i][..], 10 * i as u64)).collect();
        let together = act(&mut policy, &requests);
        assert_eq!(alone[0], together[5]);
        assert_ne!(together[4], together[5]);
    }
}

#[test]
fn the_window_is_the_last_observations_and_begins_with_copies_of_the_first() {
    let mut policy = policy(flow(), 0);
    let (a, b, c) = (obs(1), obs(2), obs(3));
    let first = act(&mut policy, &[(0, std::slice::from_ref(&a), 9)]);
    let same = act(&mut policy, &[(1, &[a.clone(), a.clone()], 9)]);
    assert_eq!(first, same, "one observation counts as two equal ones");
    // Env 0 has seen `a`; then `b` and `c` pass: the window is (b, c), whatever came before.
    let after = act(&mut policy, &[(0, &[b.clone(), c.clone()], 9)]);
    assert_eq!(after, act(&mut policy, &[(2, &[b, c.clone()], 9)]));
    // After a reset nothing is left of it.
    policy.reset(&[EnvId(0)]);
    assert_ne!(after, act(&mut policy, &[(0, &[c], 9)]));
}

#[test]
fn a_chunk_aligned_to_the_window_is_executed_from_the_present_on() {
    let window = VlaConfig {
        align: Align::Window,
        execution: ChunkExecution::Receding(Receding { n_action_steps: 3 }),
        ..flow()
    };
    let current = VlaConfig { align: Align::Current, ..window.clone() };
    let seen = [obs(3)];
    let rows = |config, n| {
        let mut policy = policy(config, 0);
        policy.set_n_action_steps(n).unwrap();
        act(&mut policy, &[(0, &seen, 1)])[0].clone()
    };
    // The same weights and noise: with T_o = 2 the window's chunk starts one row later.
    assert_eq!(rows(window.clone(), 3), rows(current.clone(), 4)[2..]);
    let mut policy = policy(window, 0);
    assert!(policy.set_n_action_steps(16).is_err(), "15 rows are left of 16");
    assert!(policy.set_n_action_steps(15).is_ok());
}

#[test]
fn relative_actions_come_back_in_raw_units() {
    let relative = RelativeAction { proprio: vec![0, 1], scale: 64.0 };
    let config = VlaConfig { relative: Some(relative), ..flow() };
    let policy = policy(config, 0);
    let windows = vec![vec![obs(4), obs(5)]];
    let batch = ObsBatch::stack(&windows, &[], Device::Cpu).unwrap();
    let actions = Tensor::from_slice(&[69f32, 10.0]).reshape([1, 1, 2]);
    let normalised = policy.normalize_actions(&batch, &actions);
    assert_eq!(normalised.double_value(&[0, 0, 0]), 1.0, "(69 - 5) / 64");
    assert_eq!(policy.denormalize_actions(&batch, &normalised), actions);
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let fails = |config: VlaConfig, io: PolicyIo| {
        let normalizers = normalizers(&VlaConfig::default());
        VlaPolicy::new(config, io, normalizers, Device::Cpu, 0).err().unwrap().to_string()
    };
    let relative = Some(RelativeAction { proprio: vec![0, 7], scale: 1.0 });
    assert!(fails(VlaConfig { relative, ..flow() }, io(false)).contains("index below 3"));
    let crop = VlaConfig { crop: Some(41), ..flow() };
    assert!(fails(crop, io(true)).contains("crop `cam`"));
    let blind = VlaConfig { state: StateConfig::None, ..flow() };
    assert!(fails(blind, io(false)).contains("sees nothing"));
    let wide = PolicyIo { proprio: vec!["x".to_owned()], ..io(false) };
    assert!(fails(flow(), wide).contains("normaliser of proprio"));
    let bounds = VlaConfig { action_norm: NormMode::Bounds, ..flow() };
    let stats = normalizers(&flow()).action.stats;
    let error = Normalizers::fit(&bounds, stats.clone(), stats).unwrap_err().to_string();
    assert!(error.contains("policy.action_bounds"), "{error}");
}

#[test]
fn a_saved_policy_acts_as_before_and_a_damaged_one_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = policy(flow(), 3);
    checkpoint::save_policy(&before, dir.path()).unwrap();
    let print = checkpoint::fingerprint(dir.path()).unwrap();
    let mut after = checkpoint::load_policy(dir.path(), Device::Cpu).unwrap();
    let seen = [obs(2), obs(3)];
    assert_eq!(act(&mut before, &[(0, &seen, 1)]), act(&mut after, &[(0, &seen, 1)]));

    let config = dir.path().join(checkpoint::CONFIG_FILE);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"width\": 512", "\"width\": 256")).unwrap();
    let error = checkpoint::load_policy(dir.path(), Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("model.safetensors") && error.contains("shape"), "{error}");
    assert_ne!(print, checkpoint::fingerprint(dir.path()).unwrap());
    std::fs::write(&config, text.replace("policy-v1", "policy-v9")).unwrap();
    let error = checkpoint::load_policy(dir.path(), Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("policy-v9"), "{error}");
}

#[test]
fn every_denoiser_learns_a_constant_chunk() {
    for denoiser in [
        r#"{"kind":"mlp","width":64,"blocks":2,"bf16":true}"#,
        r#"{"kind":"unet1d","down_dims":[16,32],"step_embed_dim":16,"n_groups":4}"#,
        r#"{"kind":"transformer","width":32,"layers":2,"heads":2}"#,
    ] {
        let denoiser = serde_json::from_str(denoiser).unwrap();
        let head = HeadConfig::Flow(FlowConfig { denoiser, ..FlowConfig::default() });
        let config = VlaConfig { head, chunk_size: 8, ..VlaConfig::default() };
        let config = VlaConfig {
            execution: ChunkExecution::Receding(Receding { n_action_steps: 4 }),
            ..config
        };
        let normalizers = normalizers(&config);
        let policy = VlaPolicy::new(config, io(false), normalizers, Device::Cpu, 0).unwrap();
        let windows: Vec<_> = (0..16).map(|i| vec![obs(i), obs(i + 1)]).collect();
        let batch = ImitationBatch {
            obs: ObsBatch::stack(&windows, &[], Device::Cpu).unwrap(),
            actions: Tensor::full([16, 8, 2], 40.0, (Kind::Float, Device::Cpu)),
            valid: Tensor::ones([16, 8], (Kind::Float, Device::Cpu)),
        };
        let mut adam = crate::testing::Adam::new(3e-3);
        let mut noise = NoiseStream::new(0);
        let mut losses = Vec::new();
        for _ in 0..150 {
            let loss = policy.imitation_loss(&batch, &mut noise).unwrap().mean(Kind::Float);
            adam.minimise(ImitationModel::params(&policy), &loss);
            losses.push(loss.double_value(&[]));
        }
        let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
        let (first, last) = (mean(&losses[..10]), mean(&losses[140..]));
        assert!(last < 0.5 * first, "{first} to {last}");
        let mut streams: Vec<_> = (0..16).map(NoiseStream::new).collect();
        let chunk = policy.predict(&batch.obs, &mut streams, ActMode::Deterministic).unwrap();
        let error = (chunk - 40.0).abs().mean(Kind::Float).double_value(&[]);
        // Actions range over 0 to 98.
        assert!(error < 15.0, "off by {error}");
    }
}

/// A context of zeros, for heads built alone.
#[test]
fn flow_sampling_is_an_euler_integration_of_the_velocity() {
    use crate::heads::denoiser::DenoiserConfig;
    use crate::heads::flow::FlowHead;
    use crate::nn::Params;
    let params = Params::new(Device::Cpu, 0);
    let scope: Scope = params.root();
    let shape = HeadShape { pooled_width: 1, token_width: 1, chunk_size: 1, action_dim: 1 };
    let denoiser =
        DenoiserConfig::Mlp { width: 4, blocks: 1, expansion: 1, step_embed_dim: 4, bf16: false };
    let config = FlowConfig { denoiser, steps: 4, ..FlowConfig::default() };
    let head = FlowHead::new(&scope, &config, shape).unwrap();
    // The output layer begins at zero; a bias of 2 makes the velocity 2 everywhere.
    let _guard = tch::no_grad_guard();
    let _ = params.get("net.output.bias").unwrap().fill_(2.0);
    let zeros = Tensor::zeros([1, 1], (Kind::Float, Device::Cpu));
    let context = Context { tokens: zeros.unsqueeze(1), pooled: zeros };
    let start = NoiseStream::new(7).normal(&[1, 1], Device::Cpu).double_value(&[0, 0]);
    let end = head.sample(&context, &mut [NoiseStream::new(7)], ActMode::Deterministic).unwrap();
    assert!((end.double_value(&[0, 0, 0]) - (start + 2.0)).abs() < 1e-6);
}

/// A policy of each head with a density, and windows to decide on.
fn actors() -> (Vec<VlaPolicy>, Vec<Vec<Observation>>) {
    let gaussian = HeadConfig::Gaussian(crate::heads::gaussian::GaussianConfig::default());
    let execution = ChunkExecution::Receding(Receding { n_action_steps: 8 });
    let config = |head| VlaConfig {
        head,
        execution: execution.clone(),
        align: Align::Window,
        ..VlaConfig::default()
    };
    let heads = [gaussian, HeadConfig::Flow(FlowConfig { steps: 4, ..FlowConfig::default() })];
    let windows = (0..11).map(|i| vec![obs(i), obs(i + 1)]).collect();
    (heads.map(|head| policy(config(head), 0)).into(), windows)
}

#[test]
fn the_density_of_a_decision_can_be_computed_again() {
    let (actors, windows) = actors();
    for actor in actors {
        let seeds: Vec<u64> = (0..11).collect();
        let decisions = actor.decide(&windows, &seeds, ActMode::Stochastic).unwrap();
        let stack = |row: &dyn Fn(&crate::Decision) -> &[f32]| {
            let rows: Vec<_> = decisions.iter().map(|d| Tensor::from_slice(row(d))).collect();
            Tensor::stack(&rows, 0)
        };
        let (latent, log_prob) = (stack(&|d| &d.latent), stack(&|d| &d.log_prob));
        let batch = ObsBatch::stack(&windows, &[], Device::Cpu).unwrap();
        let density = actor.density(&batch, &latent).unwrap();
        assert_eq!(density.log_prob.size(), log_prob.size());
        assert_eq!(density.log_prob.size()[1] as usize, actor.terms().len());
        crate::testing::assert_close(&density.log_prob, &log_prob, 1e-3);
        // Another path, another density; and a gradient flows to the network.
        let other = actor.density(&batch, &(&latent + 0.1)).unwrap();
        assert!((&other.log_prob - &log_prob).abs().max().double_value(&[]) > 0.1);
        assert!(density.log_prob.requires_grad());
    }
}

#[test]
fn without_exploration_a_decision_is_what_acting_does() {
    let (actors, windows) = actors();
    for mut actor in actors {
        let decision = actor.decide(&windows[3..4], &[30], ActMode::Deterministic).unwrap();
        let acted = act(&mut actor, &[(0, &windows[3], 30)]);
        let bits: Vec<u32> = decision[0].chunk.view().iter().map(|v| v.to_bits()).collect();
        assert_eq!(acted[0], bits);
        let explored = actor.decide(&windows[3..4], &[30], ActMode::Stochastic).unwrap();
        assert_ne!(explored[0].chunk, decision[0].chunk);
    }
}

#[test]
fn a_steered_flow_acts_as_before_until_its_noise_learns() {
    let (actors, windows) = actors();
    let seeds: Vec<u64> = (0..11).collect();
    let [gaussian, flow] = &actors[..] else { panic!("two actors") };
    assert!(gaussian.steered(&[16], 0).is_err());
    let steered = flow.steered(&[16], 0).unwrap();
    let far = |a: &VlaPolicy, b: &VlaPolicy| {
        let of = |p: &VlaPolicy| p.decide(&windows, &seeds, ActMode::Deterministic).unwrap();
        let pairs = of(a).into_iter().zip(of(b));
        pairs
            .flat_map(|(a, b)| (&a.chunk.view() - &b.chunk.view()).into_iter())
            .fold(0f32, |most, d| most.max(d.abs()))
    };
    assert!(far(flow, &steered) < 1e-3, "{}", far(flow, &steered));
    let learns = ImitationModel::params(&steered).trainable();
    assert!(!learns.is_empty() && learns.iter().all(|(name, _)| name.starts_with("head.noise.")));
    let _guard = tch::no_grad_guard();
    for (_, mut tensor) in learns {
        let _ = tensor.g_add_scalar_(0.3);
    }
    assert!(far(flow, &steered) > 1.0);
}
