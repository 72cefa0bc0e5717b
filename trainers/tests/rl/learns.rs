//! Each algorithm moves towards what is rewarded: one decision in one state, worth less the further the action lies from a
//! target. With the sign of an advantage, a loss or a Q turned round it moves away.

use std::sync::Arc;

use ndarray::Array2;
use simloop_algos::{
    Grpo, GrpoConfig, Learner as _, OnPolicy, Ppo, PpoConfig, Sac, SacConfig, Trajectory,
    Transition, Update,
};
use simloop_envs::{EnvId, EpisodeEnd, Observation, ResetRequest, SeedTree};
use simloop_policies::critic::{CriticConfig, ValueNet};
use simloop_policies::heads::HeadConfig;
use simloop_policies::heads::flow::FlowConfig;
use simloop_policies::heads::gaussian::GaussianConfig;
use simloop_policies::normalize::{NormMode, Stats};
use simloop_policies::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use simloop_policies::{ActMode, Decision, StochasticActor};
use tch::Device;

/// The best action, of numbers in `[-1, 1]`.
const TARGET: f32 = 0.6;

fn policy(head: HeadConfig) -> VlaPolicy {
    let config = VlaConfig {
        n_obs_steps: 1,
        chunk_size: 1,
        execution: serde_json::from_str(r#"{"kind": "receding", "n_action_steps": 1}"#).unwrap(),
        inference_batch: 32,
        proprio_norm: NormMode::Identity,
        action_norm: NormMode::Identity,
        head,
        ..VlaConfig::default()
    };
    let stats = Stats::of(Array2::zeros((2, 1)).view()).unwrap();
    let normalizers = Normalizers::fit(&config, stats.clone(), stats).unwrap();
    let io = PolicyIo {
        cameras: std::collections::BTreeMap::new(),
        proprio: vec!["x".to_owned()],
        action: vec!["y".to_owned()],
        convention: None,
        control_hz: None,
    };
    VlaPolicy::new(config, io, normalizers, Device::Cpu, 0).unwrap()
}

fn gaussian(squash: bool) -> HeadConfig {
    HeadConfig::Gaussian(GaussianConfig {
        hidden: vec![16],
        state_dependent_std: false,
        init_std: 0.3,
        squash,
        ..GaussianConfig::default()
    })
}

fn seen() -> Vec<Observation> {
    vec![Observation {
        images: std::collections::BTreeMap::new(),
        proprio: vec![1.0].into(),
        instruction: Arc::from("go"),
    }]
}

fn decide(actor: &VlaPolicy, n: usize, round: u64, mode: ActMode) -> Vec<Decision> {
    let seeds: Vec<u64> =
        (0..n as u64).map(|i| SeedTree::new(7).index(round).index(i).seed()).collect();
    actor.decide(&vec![seen(); n], &seeds, mode).unwrap()
}

/// `n` episodes of one decision, in groups of eight.
fn episodes(actor: &VlaPolicy, n: usize, round: u64) -> Vec<Trajectory> {
    decide(actor, n, round, ActMode::Stochastic)
        .into_iter()
        .enumerate()
        .map(|(i, decision)| {
            let reward = -(decision.chunk.view()[[0, 0]] - TARGET).powi(2);
            Trajectory {
                env: EnvId(i),
                group: i as u64 / 8,
                start: ResetRequest::default(),
                transitions: vec![Transition {
                    window: seen(),
                    latent: decision.latent,
                    log_prob: decision.log_prob,
                    reward,
                    steps: 1,
                }],
                after: seen(),
                end: EpisodeEnd::Terminated,
                ret: reward,
                episode_steps: 1,
                success: false,
            }
        })
        .collect()
}

/// Mean distance of the judged action from the target.
fn distance(actor: &VlaPolicy) -> f32 {
    let decisions = decide(actor, 64, u64::MAX, ActMode::Deterministic);
    decisions.iter().map(|d| (d.chunk.view()[[0, 0]] - TARGET).abs()).sum::<f32>() / 64.0
}

fn approaches(algo: &mut dyn OnPolicy<Actor = VlaPolicy>, rounds: u64, share: f32) {
    let before = distance(algo.actor());
    for round in 0..rounds {
        let data = episodes(algo.actor(), 64, round);
        assert!(matches!(algo.update(&data).unwrap(), Update::Applied(_)));
    }
    let after = distance(algo.actor());
    assert!(after < share * before, "{before} before, {after} after");
}

fn ppo(actor: VlaPolicy, learning_rate: f64) -> Ppo<VlaPolicy> {
    let critic = CriticConfig { hidden: vec![16], ..CriticConfig::default() };
    let critic = ValueNet::new(&critic, &actor, 0).unwrap();
    let mut config = PpoConfig::default();
    config.actor.learning_rate = learning_rate;
    config.critic.learning_rate = 1e-2;
    config.surrogate.epochs = 4;
    Ppo::new(actor, None, critic, config, 0).unwrap()
}

#[test]
fn ppo_approaches_what_is_rewarded() {
    approaches(&mut ppo(policy(gaussian(false)), 1e-2), 30, 0.3);
}

#[test]
fn ppo_moves_a_flow_through_its_denoising_steps() {
    let mut actor = policy(HeadConfig::Flow(FlowConfig { steps: 2, ..FlowConfig::default() }));
    actor.set_explore_std(0.3);
    approaches(&mut ppo(actor, 1e-3), 30, 0.7);
}

#[test]
fn ppo_steers_a_flow_by_its_noise_alone() {
    let flow = policy(HeadConfig::Flow(FlowConfig { steps: 2, ..FlowConfig::default() }));
    let mut algo = ppo(flow.steered(&[16], 0).unwrap(), 1e-2);
    let frozen = |algo: &Ppo<VlaPolicy>| -> Vec<_> {
        let all = StochasticActor::params(algo.actor()).snapshot();
        all.into_iter().filter(|(name, _)| !name.starts_with("head.noise")).collect()
    };
    let before = frozen(&algo);
    approaches(&mut algo, 30, 0.5);
    assert_eq!(frozen(&algo), before);
}

#[test]
fn grpo_approaches_what_is_rewarded() {
    let mut config = GrpoConfig::default();
    config.actor.learning_rate = 1e-2;
    config.surrogate.epochs = 2;
    let mut algo = Grpo::new(policy(gaussian(false)), None, config, 0).unwrap();
    approaches(&mut algo, 30, 0.3);
}

#[test]
fn sac_approaches_what_is_rewarded() {
    let critic = CriticConfig { hidden: vec![32], ..CriticConfig::default() };
    let mut config =
        SacConfig { batch_size: 64, capacity: 2000, alpha: 0.01, ..SacConfig::default() };
    config.actor.learning_rate = 3e-3;
    config.critic.learning_rate = 1e-2;
    let mut sac = Sac::new(policy(gaussian(true)), &critic, config, 0).unwrap();
    let before = distance(sac.actor());
    for round in 0..150 {
        let data = episodes(sac.actor(), 8, round);
        sac.observe(&data).unwrap();
        for _ in 0..3 {
            assert!(matches!(sac.update().unwrap(), Update::Applied(_)));
        }
    }
    let after = distance(sac.actor());
    assert!(after < 0.4 * before, "{before} before, {after} after");
}
