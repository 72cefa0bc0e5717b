//! Learning by acting as a whole: what decides its weights, how it resumes, and what it refuses.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod dagger;
mod guards;
mod judge;
mod learns;
mod libero;
mod presets;
mod resume;
mod workers;

use std::path::Path;

use simloop_algos::{Learner, OnPolicy, Sac};
use simloop_policies::ImitationModel as _;
use simloop_policies::vla::VlaPolicy;
use simloop_trainers::TrainerError;
use simloop_trainers::checkpoint::Origin;
use simloop_trainers::observer::Observers;
use simloop_trainers::off_policy::{Turns, train_off_policy};
use simloop_trainers::offline::End;
use simloop_trainers::on_policy::{Schedule, Supply, train_on_policy};
use simloop_trainers::rl_build::{grpo, policy, ppo, rollouts, surroundings};
use simloop_trainers::rl_config::RlConfig;
use simloop_trainers::rl_state::{self, RlState};
use simloop_trainers::rollout::Rollouts;
use simloop_trainers::round::{Around, Rhythm};
use simloop_trainers::run::{Existing, RunFolder};
use simloop_trainers::stop::StopFlag;

/// A tiny run on short episodes of PushT.
const SETTINGS: &str = r#"
device = "cpu"
threads = 1
[env]
kind = "pusht"
max_steps = 20
[policy.model]
n_obs_steps = 2
chunk_size = 3
proprio_norm = "bounds"
proprio_bounds = [0.0, 512.0]
relative = { proprio = [0, 1], scale = 200.0 }
execution = { kind = "receding", n_action_steps = 2 }
inference_batch = 4
[policy.model.head]
kind = "gaussian"
hidden = [16]
squash = SQUASH
[rollout]
envs = 6
workers = 2
decisions = 4
groups = 2
group_size = 3
warmup = 20
[reward]
env = 1.0
approach = 1.0
[critic]
hidden = [16]
[ppo.surrogate]
epochs = 2
minibatch = 8
[grpo.surrogate]
epochs = 2
minibatch = 8
[sac]
batch_size = 16
capacity = 200
[train]
updates = 6
"#;

fn config(sets: &[&str]) -> RlConfig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("settings.toml");
    let squash = sets.contains(&"squash").to_string();
    std::fs::write(&path, SETTINGS.replace("SQUASH", &squash)).unwrap();
    let sets: Vec<String> =
        sets.iter().filter(|s| **s != "squash").map(|s| (*s).to_owned()).collect();
    RlConfig::load(&path, &sets).unwrap()
}

/// Runs the program `train` on the tiny settings, into `root/run`.
fn program(root: &Path, algorithm: &str, sets: &[String]) {
    run_program(root, algorithm, sets, &SETTINGS.replace("SQUASH", "false"));
}

/// [`program`] of a policy that `sets` name, instead of a new one.
fn program_from(root: &Path, algorithm: &str, sets: &[String]) {
    run_program(root, algorithm, sets, &settings_without_model());
}

fn settings_without_model() -> String {
    let (before, model) = SETTINGS.split_once("[policy.model]").unwrap();
    let (_, after) = model.split_once("[rollout]").unwrap();
    format!("{before}[rollout]{after}")
}

fn run_program(root: &Path, algorithm: &str, sets: &[String], settings: &str) {
    let output = try_program(root, algorithm, sets, settings);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn try_program(
    root: &Path,
    algorithm: &str,
    sets: &[String],
    settings: &str,
) -> std::process::Output {
    let path = root.join("settings.toml");
    std::fs::write(&path, settings).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_train"));
    command.arg(algorithm).arg("--config").arg(&path).arg("--output-dir").arg(root.join("run"));
    // What is set later counts.
    command.args(["--set", "eval.every=0", "--set", "eval.final_episodes=0"]);
    for set in sets {
        command.args(["--set", set]);
    }
    command.output().unwrap()
}

/// Which on-policy algorithm.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Ppo,
    Grpo,
}

type Boxed = Box<dyn OnPolicy<Actor = VlaPolicy>>;

fn parts(kind: Kind, config: &RlConfig) -> (Boxed, Rollouts, Schedule) {
    let around = surroundings(config, false).unwrap();
    let policy = policy(config, &around.spec).unwrap();
    let rollouts = rollouts(config, &around.place, &policy, 0.99).unwrap();
    let algo = match kind {
        Kind::Ppo => ppo(config, &around.spec, policy).unwrap(),
        Kind::Grpo => grpo(config, &around.spec, policy).unwrap(),
    };
    (algo, rollouts, Schedule::new(config.seed, around.place.tasks.clone()))
}

fn run_folder(root: &Path, existing: Existing) -> RunFolder {
    RunFolder::open(root, existing, Origin::default()).unwrap()
}

/// Goes on from the folder's newest checkpoint, if it has one.
fn resume<L: Learner + ?Sized>(
    run: &RunFolder,
    learner: &mut L,
    rollouts: &mut Rollouts,
) -> RlState {
    let Some((_, path)) = run.newest().unwrap() else { return RlState::default() };
    let (found, state) = rl_state::load(&path).unwrap();
    learner.load_state(&found).unwrap();
    rollouts.load_state(&state.rollouts).unwrap();
    state
}

/// Saves at the end only and looks at nothing in between.
fn rhythm(config: &RlConfig) -> Rhythm {
    Rhythm { evaluate_every: 0, save_every: 0, ..config.rhythm() }
}

/// Trains to `config.train.updates`, from the folder's newest checkpoint if it has one.
fn train(
    kind: Kind,
    config: &RlConfig,
    root: &Path,
    stop: &StopFlag,
) -> Result<(Boxed, RlState, End), TrainerError> {
    let (mut algo, mut rollouts, schedule) = parts(kind, config);
    let run = run_folder(root, Existing::Overwrite.or_resume(root));
    let mut state = resume(&run, algo.as_mut(), &mut rollouts);
    let supply = match kind {
        Kind::Ppo => Supply::Decisions(config.rollout.decisions),
        Kind::Grpo => {
            Supply::Groups { groups: config.rollout.groups, size: config.rollout.group_size }
        }
    };
    let mut observers = Observers::default();
    let mut around =
        Around { acting: None, judge: None, run: &run, observers: &mut observers, stop };
    let end = train_on_policy(
        algo.as_mut(),
        &mut rollouts,
        &schedule,
        &supply,
        &mut state,
        &rhythm(config),
        &mut around,
    )?;
    Ok((algo, state, end))
}

trait OrResume {
    fn or_resume(self, root: &Path) -> Existing;
}

impl OrResume for Existing {
    fn or_resume(self, root: &Path) -> Existing {
        if root.join("checkpoints").exists() { Existing::Resume } else { self }
    }
}

/// All numbers of a learner's state, as bits.
fn bits(state: &simloop_algos::LearnerState) -> Vec<(String, Vec<u64>)> {
    let mut all = Vec::new();
    for (set, tensors) in &state.tensors {
        for (name, tensor) in tensors {
            let t = tensor.to_kind(tch::Kind::Double).contiguous();
            let mut values = vec![0f64; t.numel()];
            let n = values.len();
            t.copy_data(&mut values, n);
            all.push((format!("{set}/{name}"), values.iter().map(|v| v.to_bits()).collect()));
        }
    }
    all
}

fn sac_parts(config: &RlConfig) -> (Sac, Rollouts, Schedule) {
    let around = surroundings(config, false).unwrap();
    let policy = policy(config, &around.spec).unwrap();
    let rollouts = rollouts(config, &around.place, &policy, config.sac.gamma).unwrap();
    let sac = Sac::new(policy, &config.critic, config.sac.clone(), config.seed).unwrap();
    (sac, rollouts, Schedule::new(config.seed, around.place.tasks.clone()))
}

fn train_sac(config: &RlConfig, root: &Path) -> Sac {
    let (mut sac, mut rollouts, schedule) = sac_parts(config);
    let run = run_folder(root, Existing::Overwrite.or_resume(root));
    let mut state = resume(&run, &mut sac, &mut rollouts);
    let turns = Turns { decisions: 1, updates_per_decision: 1.0, warmup: config.rollout.warmup };
    let (mut observers, stop) = (Observers::default(), StopFlag::default());
    let mut around =
        Around { acting: None, judge: None, run: &run, observers: &mut observers, stop: &stop };
    let end = train_off_policy(
        &mut sac,
        &mut rollouts,
        &schedule,
        turns,
        &mut state,
        &rhythm(config),
        &mut around,
    )
    .unwrap();
    assert_eq!(end, End::Complete);
    sac
}

/// Weights of a policy, as bits.
fn weights(policy: &VlaPolicy) -> Vec<Vec<u32>> {
    policy
        .params()
        .snapshot()
        .values()
        .map(|t| {
            let mut values = vec![0f32; t.numel()];
            let n = values.len();
            t.contiguous().copy_data(&mut values, n);
            values.iter().map(|v| v.to_bits()).collect()
        })
        .collect()
}
