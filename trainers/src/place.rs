//! Where a policy acts: an environment by its settings, with its tasks.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use simloop_envs::libero::{
    INIT_STATES, LiberoConfig, LiberoEnv, LiberoInstall, LocateOptions, Suite, locate,
};
use simloop_envs::pusht::{MAX_EPISODE_STEPS, PushtConfig, PushtGoals, PushtObs, worker};
use simloop_envs::seeding::episode_seed;
use simloop_envs::vec::{SyncVecEnv, ThreadedVecEnv};
use simloop_envs::wrappers::{TimeLimit, TrueState};
use simloop_envs::{ActionChunk, Env, EnvFactory, ResetOptions, ResetRequest, SeedTree, VecEnv};
use simloop_policies::Expert;
use simloop_policies::scripted::{LiberoExpert, PushtExpert};

use crate::TrainerError;

/// Which environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PlaceConfig {
    /// Our PushT.
    Pusht {
        /// What a policy sees.
        #[serde(default)]
        obs: PushtObs,
        /// Which targets there are.
        #[serde(default)]
        goals: PushtGoals,
        /// Steps after which an episode is truncated.
        #[serde(default = "pusht_steps")]
        max_steps: u32,
        /// Every environment in a process of its own: slower, but whatever kills one costs an episode and not the run.
        #[serde(default)]
        processes: bool,
    },
    /// LIBERO, through its Python.
    Libero {
        /// Which suite.
        #[serde(default = "spatial")]
        suite: Suite,
        /// Task numbers; all when empty.
        #[serde(default)]
        tasks: Vec<u32>,
        /// Cameras; none renders nothing.
        #[serde(default)]
        cameras: Vec<String>,
        /// Side of the images, pixels.
        #[serde(default = "libero_side")]
        image_size: u32,
        /// Steps after which an episode is truncated.
        #[serde(default = "libero_steps")]
        max_steps: u32,
        /// Fields of the true state that stand in for `proprio`: for policies without images.
        #[serde(default)]
        true_state: Vec<String>,
        /// Which of the stored initial states are learned from: the first and the end, excluded; all when left out. Judgements
        /// begin from the first ones, so `[20, 50]` leaves twenty of each task to be judged by alone.
        #[serde(default)]
        learn_init_states: Option<[u32; 2]>,
        /// The Python that has LIBERO; what `make libero` made when left out.
        #[serde(default)]
        python: Option<PathBuf>,
        /// LIBERO's assets.
        #[serde(default)]
        assets: Option<PathBuf>,
    },
}

fn pusht_steps() -> u32 {
    MAX_EPISODE_STEPS
}
fn spatial() -> Suite {
    Suite::Spatial
}
fn libero_side() -> u32 {
    128 // LIBERO's own demonstrations
}
fn libero_steps() -> u32 {
    220 // OpenVLA run_libero_eval.py: libero_spatial
}

impl Default for PlaceConfig {
    fn default() -> Self {
        Self::Pusht {
            obs: PushtObs::default(),
            goals: PushtGoals::default(),
            max_steps: pusht_steps(),
            processes: false,
        }
    }
}

/// A task and how its trials begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceTask {
    /// Its name in [`ResetOptions`].
    pub key: String,
    /// How many initial states are stored, where the simulator has such.
    pub init_states: Option<u32>,
    /// Those that are learned from, the end excluded; nothing is learned from the others.
    pub learn_init_states: Option<[u32; 2]>,
}

impl PlaceTask {
    /// How an episode begins that is learned from: from one of the states that may be, by its seed `seed`.
    pub fn learned(&self, seed: u64) -> ResetRequest {
        let (mut request, _) = self.trial(seed, "rollouts", 0);
        request.options.init_state = self
            .learn_init_states
            .map(|[first, end]| first + (seed % u64::from(end - first)) as u32);
        request
    }

    /// How trial `trial` of the episodes called `set` begins, and the root of its decisions' noise.
    pub fn trial(&self, seed: u64, set: &str, trial: u32) -> (ResetRequest, SeedTree) {
        let node = episode_seed(seed, set, &self.key, trial);
        let options = ResetOptions {
            task: Some(self.key.clone()),
            init_state: self.init_states.map(|n| trial % n),
            ..ResetOptions::default()
        };
        (ResetRequest { seed: Some(node.seed()), options }, node.child("noise"))
    }
}

/// A place to act in.
#[derive(Clone)]
pub struct Place {
    /// Builds its environments.
    pub factory: EnvFactory,
    /// Builds environments that render for people; the same simulation bit for bit.
    pub viewer: EnvFactory,
    /// Its tasks, at least one.
    pub tasks: Vec<PlaceTask>,
    /// Whether each environment is a process of its own.
    pub processes: bool,
    scripted: Scripted,
}

#[derive(Clone, Copy)]
enum Scripted {
    Pusht,
    Libero,
}

impl Place {
    /// The place that `config` names; with `privileged`, information holds the true state.
    ///
    /// # Errors
    /// [`TrainerError::Env`] for an environment that is not installed, or a task that does not exist.
    pub fn new(config: &PlaceConfig, privileged: bool) -> Result<Self, TrainerError> {
        match config {
            PlaceConfig::Pusht { obs, goals, max_steps, processes } => {
                let env =
                    PushtConfig { obs: *obs, goals: *goals, privileged, ..PushtConfig::default() };
                let factory = if *processes {
                    worker::in_child(env, *max_steps)?
                } else {
                    worker::in_process(env, *max_steps)
                };
                let task = |key: &str| PlaceTask {
                    key: key.to_owned(),
                    init_states: None,
                    learn_init_states: None,
                };
                Ok(Self {
                    viewer: Arc::clone(&factory),
                    factory,
                    tasks: goals.all().iter().map(|goal| task(goal.task)).collect(),
                    processes: *processes,
                    scripted: Scripted::Pusht,
                })
            }
            PlaceConfig::Libero {
                suite,
                tasks,
                cameras,
                image_size,
                max_steps,
                true_state,
                learn_init_states,
                python,
                assets,
            } => {
                if let Some([first, end]) = learn_init_states
                    && (first >= end || *end > INIT_STATES)
                {
                    return Err(TrainerError::config(format!(
                        "learn from the initial states {first} to {end} (excluded): a task has those from 0 to \
                         {INIT_STATES} (excluded); set `env.learn_init_states`, e.g. to [20, 50]"
                    )));
                }
                let install =
                    locate(&LocateOptions { python: python.clone(), assets: assets.clone() })?;
                let ids: Vec<u32> =
                    if tasks.is_empty() { (0..suite.tasks()).collect() } else { tasks.clone() };
                let keys: Vec<String> =
                    ids.iter().map(|id| suite.task(*id)).collect::<Result<_, _>>()?;
                let env = LiberoConfig {
                    task: keys[0].clone(),
                    cameras: cameras.clone(),
                    image_size: [*image_size; 2],
                    privileged: privileged || !true_state.is_empty(),
                    ..LiberoConfig::default()
                };
                let viewer = env.viewer();
                let build = |env| libero_factory(install.clone(), env, true_state, *max_steps);
                let learned = learn_init_states.unwrap_or([0, INIT_STATES]);
                let task = |key: String| PlaceTask {
                    key,
                    init_states: Some(INIT_STATES),
                    learn_init_states: Some(learned),
                };
                Ok(Self {
                    factory: build(env),
                    viewer: build(viewer),
                    tasks: keys.into_iter().map(task).collect(),
                    processes: true,
                    scripted: Scripted::Libero,
                })
            }
        }
    }

    /// `envs` environments on `workers` threads (0: the caller's). Environments that are processes get a thread each.
    ///
    /// # Errors
    /// [`TrainerError::Env`] if the system refuses a thread.
    pub fn vec(&self, envs: usize, workers: usize) -> Result<Box<dyn VecEnv>, TrainerError> {
        let threads = if self.processes { envs } else { workers };
        Ok(match threads {
            0 => Box::new(SyncVecEnv::new(&self.factory, envs)),
            threads => Box::new(ThreadedVecEnv::new(&self.factory, envs, threads)?),
        })
    }

    /// The scripted expert of this place.
    pub fn expert(&self) -> Box<dyn Expert> {
        match self.scripted {
            Scripted::Pusht => Box::new(PushtExpert::new()),
            Scripted::Libero => Box::new(LiberoExpert::default()),
        }
    }

    /// What to do where the expert has no opinion.
    ///
    /// # Errors
    /// Never in practice.
    pub fn hold(&self) -> Result<ActionChunk, TrainerError> {
        Ok(match self.scripted {
            // The middle of the arena: where the goal is.
            Scripted::Pusht => ActionChunk::single(&[256.0, 256.0])?,
            Scripted::Libero => ActionChunk::single(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])?,
        })
    }
}

/// Builds LIBERO environments, truncated after `max_steps`; `true_state` stands in for `proprio` unless it is empty.
fn libero_factory(
    install: LiberoInstall,
    config: LiberoConfig,
    true_state: &[String],
    max_steps: u32,
) -> EnvFactory {
    let true_state = true_state.to_vec();
    Arc::new(move |_| {
        let env = LiberoEnv::start(&install, &config)?;
        Ok(if true_state.is_empty() {
            Box::new(TimeLimit::new(env, max_steps)?) as Box<dyn Env>
        } else {
            Box::new(TimeLimit::new(TrueState::new(env, &true_state)?, max_steps)?)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_not_learned_from_is_left_to_be_judged_by() {
        let states = |learned: [u32; 2]| -> BTreeSet<u32> {
            let task = PlaceTask {
                key: "libero_spatial/0".to_owned(),
                init_states: Some(50),
                learn_init_states: Some(learned),
            };
            let judged = task.trial(0, "final", 7).0.options.init_state;
            assert_eq!(judged, Some(7), "judgements begin from the first ones");
            (0..2_000).filter_map(|seed| task.learned(seed).options.init_state).collect()
        };
        assert_eq!(states([0, 50]), (0..50).collect());
        assert_eq!(states([20, 50]), (20..50).collect());
        assert_eq!(states([49, 50]), [49].into());
    }

    #[test]
    fn initial_states_that_do_not_exist_are_refused_with_the_remedy() {
        for range in ["[20, 51]", "[20, 20]", "[30, 20]"] {
            let settings = format!("kind = \"libero\"\nlearn_init_states = {range}");
            let config: PlaceConfig = toml::from_str(&settings).unwrap();
            let error = Place::new(&config, false).err().unwrap().to_string();
            assert!(error.contains("`env.learn_init_states`"), "{error}");
        }
    }
}
