//! A trajectory is a function of seed and actions: bit for bit, in every build and after whatever ran before.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use ndarray::ArrayView1;
use sha2::{Digest, Sha256};
use simloop_envs::pusht::{InitialState, PushtConfig, PushtEnv, PushtObs, Scene};
use simloop_envs::{Env, ResetOptions};

/// SHA-256 over 20 seeds x 100 pushing steps; see [`trajectory`]. Recorded from a debug build on `x86_64`; a release build
/// gives the same.
const GOLDEN: &str = "ac6f5a8c5e0f8db0b8df095c6e39901238cf750f8be28fd08ea80a33567c6940";

/// Agent and block after each of `steps` control steps towards the block's origin, as bits.
fn trajectory(scene: &mut Scene, steps: usize) -> Vec<[u64; 7]> {
    (0..steps)
        .map(|_| {
            let block = scene.state().block;
            scene.control_step([block.x, block.y]);
            let s = scene.state();
            let [ax, ay] = s.agent;
            let [vx, vy] = s.agent_velocity;
            [ax, ay, vx, vy, s.block.x, s.block.y, s.block.angle].map(f64::to_bits)
        })
        .collect()
}

fn fresh(seed: u64) -> Scene {
    Scene::new(InitialState::gym_pusht(seed).placed())
}

#[test]
fn twenty_pushing_episodes_have_the_recorded_digest() {
    let mut digest = Sha256::new();
    for seed in 0..20 {
        for bits in trajectory(&mut fresh(seed), 100).as_flattened() {
            digest.update(bits.to_le_bytes());
        }
    }
    assert_eq!(format!("{:x}", digest.finalize()), GOLDEN);
}

#[test]
fn an_episode_does_not_remember_the_one_before() {
    let expected = trajectory(&mut fresh(1), 60);
    assert_eq!(trajectory(&mut fresh(1), 60), expected, "another instance");
    let mut used = fresh(2);
    for before in [3, 4, 5] {
        // Ends squeezed against a wall, with contacts in every cache.
        trajectory(&mut used, 80);
        used.set_state(InitialState::gym_pusht(1).placed());
        assert_eq!(trajectory(&mut used, 60), expected, "after episode {before}");
        used.set_state(InitialState::gym_pusht(before).placed());
    }
}

#[test]
fn a_state_decides_its_next_step_alone() {
    // A world restored in the middle of a push has no contact history. It goes on like the one that has, up to the f32
    // rounding of the pose that rapier holds and, with several contacts, the order in which they are solved.
    let mut errors = Vec::new();
    for seed in 0..20 {
        let mut running = fresh(seed);
        for _ in 0..12 {
            let mut restored = Scene::new(*running.state());
            let block = running.state().block;
            running.control_step([block.x, block.y]);
            restored.control_step([block.x, block.y]);
            if running.state().block != block {
                let (a, b) =
                    (running.state().block.keypoints(), restored.state().block.keypoints());
                let gaps =
                    a.as_flattened().iter().zip(b.as_flattened()).map(|(p, q)| (p - q).abs());
                errors.push(gaps.fold(0.0, f64::max));
            }
        }
    }
    errors.sort_by(f64::total_cmp);
    let quantile = |q: f64| errors[(q * (errors.len() - 1) as f64) as usize];
    assert!(errors.len() > 100, "{} pushing steps", errors.len());
    println!(
        "median {:.1e}, p90 {:.1e}, max {:.1e} px",
        quantile(0.5),
        quantile(0.9),
        quantile(1.0)
    );
    assert!(quantile(0.5) < 1e-3 && quantile(0.9) < 0.1, "{errors:?}");
}

#[test]
fn pictures_do_not_remember_the_one_before() {
    let config = PushtConfig { obs: PushtObs::Pixels, ..PushtConfig::default() };
    let frame = |env: &mut PushtEnv, seed| {
        env.reset(Some(seed), &ResetOptions::default()).unwrap();
        let target = [300.0, 200.0];
        env.step(ArrayView1::from(&target), true).unwrap().obs.images["pixels"].clone()
    };
    let mut used = PushtEnv::new(config.clone()).unwrap();
    for seed in 0..30 {
        frame(&mut used, seed);
    }
    let mut fresh = PushtEnv::new(config).unwrap();
    assert_eq!(frame(&mut used, 99), frame(&mut fresh, 99));
}
