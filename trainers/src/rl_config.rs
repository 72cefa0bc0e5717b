//! The settings of a run that learns by acting.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use simloop_algos::dagger::{Beta, Labels};
use simloop_algos::{GrpoConfig, PpoConfig, SacConfig};
use simloop_policies::critic::CriticConfig;
use simloop_policies::optim::{AdamWConfig, EmaConfig};
use simloop_policies::vla::VlaConfig;

use crate::TrainerError;
use crate::config::{DeviceChoice, EvalConfig, at_least_one, differences, folder_name, merged};
use crate::place::PlaceConfig;
use crate::rollout::RewardConfig;
use crate::round::Rhythm;

/// Everything that decides a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RlConfig {
    /// The run's name, and its folder below `runs/`.
    pub name: String,
    /// What all randomness is drawn from.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Threads inside one operation of libtorch; 0 leaves its own choice.
    pub threads: i32,
    /// Where to act.
    pub env: PlaceConfig,
    /// Who acts.
    pub policy: PolicyConfig,
    /// How much to act.
    pub rollout: RolloutConfig,
    /// What is rewarded.
    pub reward: RewardConfig,
    /// The critic's network.
    pub critic: CriticConfig,
    /// PPO's own settings.
    pub ppo: PpoConfig,
    /// GRPO's own settings.
    pub grpo: GrpoConfig,
    /// SAC's own settings.
    pub sac: SacConfig,
    /// DAgger's own settings.
    pub dagger: DaggerConfig,
    /// The loop.
    pub train: LoopConfig,
    /// Acting to be judged.
    pub eval: JudgeConfig,
}

impl Default for RlConfig {
    fn default() -> Self {
        Self {
            name: "run".to_owned(),
            seed: 0,
            device: DeviceChoice::default(),
            threads: 0,
            env: PlaceConfig::default(),
            policy: PolicyConfig::default(),
            rollout: RolloutConfig::default(),
            reward: RewardConfig::default(),
            critic: CriticConfig::default(),
            ppo: PpoConfig::default(),
            grpo: GrpoConfig::default(),
            sac: SacConfig::default(),
            dagger: DaggerConfig::default(),
            train: LoopConfig::default(),
            eval: JudgeConfig::default(),
        }
    }
}

/// Who acts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// A policy's folder to begin with.
    pub init: Option<PathBuf>,
    /// The architecture of a policy that begins from nothing; its normalisers must be `bounds` or `identity`.
    pub model: Option<VlaConfig>,
    /// Another `T_a` than the policy's own.
    pub n_action_steps: Option<usize>,
    /// Rows of a batch of decisions; the policy's own when left out.
    pub inference_batch: Option<usize>,
    /// How much it explores; see `VlaPolicy::set_explore_std`.
    pub explore_std: Option<f64>,
    /// Steer a flow by its noise (DSRL) instead of moving its weights: the widths of the hidden layers of what chooses the
    /// noise.
    pub steer: Option<Vec<i64>>,
}

/// How much to act.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Environments at once. They decide the result; threads do not.
    pub envs: usize,
    /// Threads that step them; 0 steps them on the learner's. Environments that are processes always get one each.
    pub workers: usize,
    /// PPO: decisions per environment and update.
    pub decisions: usize,
    /// GRPO: groups per update.
    pub groups: usize,
    /// GRPO: episodes per group.
    pub group_size: usize,
    /// SAC: gradient updates per decision.
    pub updates_per_decision: f64,
    /// SAC: episodes of the scripted expert that are learned from in every batch; 0 for none.
    pub demos: u32,
    /// SAC: decisions before the first update.
    pub warmup: usize,
    /// Starts per episode before it is given up.
    pub max_attempts: u32,
    /// PPO, GRPO, SAC: actions are executed within the environment's action space, as Stable-Baselines3 does; what was drawn is
    /// learned from as it was drawn. PushT itself takes targets anywhere.
    pub clip_actions: bool,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            envs: 16,
            workers: 1,
            decisions: 64,
            groups: 16,
            group_size: 8,
            updates_per_decision: 1.0, // SAC, table 1
            demos: 0,
            warmup: 1000,
            max_attempts: 3, // bar of `reliability`, R3
            clip_actions: false,
        }
    }
}

/// DAgger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaggerConfig {
    /// Rounds of acting and learning; the first one is the expert's.
    pub iterations: u32,
    /// Episodes per round.
    pub episodes: u32,
    /// How often the expert acts.
    pub beta: Beta,
    /// Which states get labels.
    pub labels: Labels,
    /// Takeover: the learner drives for at most so many decisions.
    pub max_lead: u32,
    /// Demonstrations that are learned from besides, whatever their format.
    pub data: Option<PathBuf>,
    /// Gradient updates per round.
    pub updates: u64,
    /// Windows per update.
    pub batch_size: usize,
    /// The optimizer; its schedule runs over all rounds.
    pub optim: AdamWConfig,
    /// The moving average of the weights, which acts; none acts by the raw weights.
    pub ema: Option<EmaConfig>,
    /// How many threads make batches ahead.
    pub workers: usize,
}

impl Default for DaggerConfig {
    fn default() -> Self {
        Self {
            iterations: 5,
            episodes: 50,
            beta: Beta::default(),
            labels: Labels::default(),
            max_lead: 20,
            data: None,
            updates: 2000,
            batch_size: 256,
            optim: AdamWConfig::default(),
            ema: None,
            workers: 1,
        }
    }
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoopConfig {
    /// Updates.
    pub updates: u64,
    /// Updates between two log lines.
    pub log_every: u64,
    /// Updates between two checkpoints; 0 saves at the end only.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// Stop after so many updates in a row that were dropped because something was not finite.
    pub max_dropped: u32,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self { updates: 100, log_every: 1, save_every: 20, keep_last: 2, max_dropped: 3 }
    }
}

/// Acting to be judged: deterministic, on seeds that are never learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeConfig {
    /// Updates between two evaluations; 0 for none.
    pub every: u64,
    /// Episodes of each, always the same ones, dealt to the tasks in turn. `best` is chosen by them.
    pub episodes: u32,
    /// Episodes before the first and after the last update, on common seeds of a set of their own; 0 for none.
    pub final_episodes: u32,
    /// What the episodes' seeds are drawn from.
    pub seed: u64,
    /// Environments at once.
    pub envs: usize,
    /// Episodes of each evaluation in between that are filmed into the run's `videos/`: the first so many that were solved,
    /// and that were not.
    pub videos: u32,
    /// Whether evaluations in between run on a thread of their own while learning goes on. Left out: on PushT, where the
    /// machine has a second core. No number depends on it.
    pub background: Option<bool>,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self {
            every: 10,
            episodes: 50,
            final_episodes: 100,
            seed: 100_000,
            envs: 16,
            videos: 1,
            background: None,
        }
    }
}

/// Settings that may differ when a run goes on.
const FREE: [&str; 11] = [
    "threads",
    "device",
    "rollout.workers",
    "train.updates",
    "train.log_every",
    "train.save_every",
    "train.keep_last",
    "train.max_dropped",
    "eval.every",
    "eval.videos",
    "eval.background",
];

impl RlConfig {
    /// Reads `path`, applies `sets` and checks the result.
    ///
    /// # Errors
    /// [`TrainerError::Config`] naming the file or the setting, with what would be allowed.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, TrainerError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            TrainerError::config(format!("read the settings `{}`: {e}", path.display()))
        })?;
        Self::parse(&text, sets).map_err(|detail| {
            TrainerError::config(format!("read the settings `{}`: {detail}", path.display()))
        })
    }

    fn parse(text: &str, sets: &[String]) -> Result<Self, String> {
        let config: Self = toml::from_str(&merged(text, sets)?).map_err(|e| e.to_string())?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        folder_name(&self.name)?;
        match (&self.policy.init, &self.policy.model) {
            (None, None) => {
                return Err("say who acts: `policy.init` (a policy's folder) or `[policy.model]`"
                    .to_owned());
            }
            (Some(_), Some(_)) => {
                return Err("give `policy.init` or `[policy.model]`, not both".to_owned());
            }
            _ => {}
        }
        let (rollout, train, dagger) = (&self.rollout, &self.train, &self.dagger);
        at_least_one(&[
            ("rollout.envs", rollout.envs),
            ("rollout.decisions", rollout.decisions),
            ("rollout.groups", rollout.groups),
            ("rollout.max_attempts", rollout.max_attempts as usize),
            ("train.updates", train.updates as usize),
            ("train.log_every", train.log_every as usize),
            ("train.keep_last", train.keep_last),
            ("train.max_dropped", train.max_dropped as usize),
            ("dagger.iterations", dagger.iterations as usize),
            ("dagger.episodes", dagger.episodes as usize),
            ("dagger.updates", dagger.updates as usize),
            ("dagger.batch_size", dagger.batch_size),
            ("eval.envs", self.eval.envs),
        ])?;
        if self.rollout.group_size < 2 {
            return Err(
                "`rollout.group_size` must be at least 2: a group is compared within".into()
            );
        }
        dagger.beta.validate().map_err(|e| e.to_string())?;
        dagger.optim.validate().map_err(|e| e.to_string())?;
        if self.eval.every > 0 && self.eval.episodes == 0 {
            return Err("`eval.episodes` must be at least 1".to_owned());
        }
        Ok(())
    }

    /// How often what happens.
    pub fn rhythm(&self) -> Rhythm {
        Rhythm {
            name: self.name.clone(),
            total: self.train.updates,
            log_every: self.train.log_every,
            evaluate_every: self.eval.every,
            save_every: self.train.save_every,
            keep_last: self.train.keep_last,
            max_dropped: self.train.max_dropped,
        }
    }

    /// Every setting as TOML.
    ///
    /// # Errors
    /// [`TrainerError::Config`] for numbers that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, TrainerError> {
        toml::to_string(self).map_err(|e| TrainerError::config(format!("write the settings: {e}")))
    }

    /// What a resumed run must not change, as `key: old → new` lines; empty if nothing of it differs.
    ///
    /// # Errors
    /// [`TrainerError::Config`] if `earlier` is no TOML.
    pub fn differences(&self, earlier: &str) -> Result<Vec<String>, TrainerError> {
        differences::<Self>(earlier, &self.to_toml()?, |key| FREE.contains(&key))
    }
}

impl JudgeConfig {
    /// As the settings of [`Acting`](crate::acting::Acting).
    pub fn acting(&self) -> EvalConfig {
        EvalConfig {
            every: self.every,
            episodes: self.episodes,
            final_episodes: self.final_episodes,
            seed: self.seed,
            envs: self.envs,
            videos: self.videos,
            ..EvalConfig::default()
        }
    }
}
