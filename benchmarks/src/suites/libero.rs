//! LIBERO as a benchmark.

use std::collections::BTreeMap;
use std::sync::Arc;

use simloop_envs::libero::preflight::fingerprint;
use simloop_envs::libero::{INIT_STATES, LiberoConfig, LiberoEnv, LiberoInstall, Suite};
use simloop_envs::{ActionChunk, Env, EnvFactory, FrameRequest, ResetOptions};
use simloop_policies::scripted::LiberoExpert;
use simloop_policies::{ExpertPolicy, Policy, RandomPolicy};

use super::policy::{self, Checkpoint, Foreign, Inference, Named};
use super::{SuiteRun, episode};
use crate::BenchError;
use crate::ledger::{ProtocolLine, TaskEntry};
use crate::protocol::LiberoProtocol;

/// What to run.
#[derive(Clone, Debug)]
pub struct LiberoSuite {
    /// Which suite.
    pub suite: Suite,
    /// By which rules.
    pub protocol: LiberoProtocol,
    /// Task numbers; all when empty.
    pub tasks: Vec<u32>,
    /// Trials; trial k starts from the protocol's initial state for k.
    pub trials: Vec<u32>,
    /// The run's seed.
    pub seed: u64,
    /// `scripted`, `random`, a checkpoint folder or an address.
    pub policy: String,
    /// How a checkpoint computes.
    pub inference: Inference,
    /// Execute at most so many actions of each chunk; the protocol's number if `None`.
    pub n_action_steps: Option<usize>,
    /// Show images although the policy does not ask for them (to measure what they cost).
    pub force_images: bool,
}

impl LiberoSuite {
    /// Starts one worker to learn the tasks and the fingerprint, and puts the suite together.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for a task, trial or policy that does not exist, or a policy that does not fit;
    /// [`BenchError::Policy`] for a damaged checkpoint; [`BenchError::Env`] for whatever keeps LIBERO from running here.
    pub fn build(self, install: LiberoInstall) -> Result<SuiteRun, BenchError> {
        if let Some(trial) =
            self.trials.iter().find(|trial| self.protocol.init_state(**trial) >= INIT_STATES)
        {
            return Err(BenchError::usage(format!(
                "run trial {trial}: each task has {INIT_STATES} initial states, 0 to {}",
                INIT_STATES - 1
            )));
        }
        let ids: Vec<u32> = if self.tasks.is_empty() {
            (0..self.suite.tasks()).collect()
        } else {
            self.tasks.clone()
        };
        let keys: Vec<String> =
            ids.iter().map(|id| self.suite.task(*id)).collect::<Result<_, _>>()?;
        let mut config = self.protocol.env_config(self.suite);
        config
            .task
            .clone_from(keys.first().ok_or_else(|| BenchError::usage("run no task at all"))?);
        let found = policy::find(&self.policy, &self.inference, self.n_action_steps)?;
        match &found {
            Named::Checkpoint(checkpoint) => {
                let looks = &checkpoint.shape.cameras;
                config.cameras.retain(|camera| self.force_images || looks.contains(camera));
                let sizes =
                    looks.iter().filter_map(|camera| checkpoint.shape.io.cameras.get(camera));
                if let Some(size) = sizes.min_by_key(|size| (size.height, size.width)) {
                    config.image_size = [size.height, size.width];
                }
            }
            Named::Scripted | Named::Random if !self.force_images => config.cameras.clear(),
            Named::Scripted | Named::Random | Named::Foreign(_) => {}
        }
        let images = !config.cameras.is_empty();
        config.privileged = matches!(found, Named::Scripted);

        let mut probe = LiberoEnv::start(&install, &config)?;
        let instructions = probe.tasks(self.suite)?;
        let print = fingerprint(&mut probe, &install, &config.task)?;
        let spec = probe.spec().clone();
        drop(probe);
        let (mut label, mut min_ready, mut traits) = (self.policy.clone(), 1, BTreeMap::new());
        let policy: Box<dyn Policy> = match found {
            Named::Scripted => {
                let hold = ActionChunk::single(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])?;
                Box::new(ExpertPolicy::new("scripted", hold, || Box::new(LiberoExpert::default())))
            }
            Named::Random => Box::new(RandomPolicy::new(spec.action.clone(), 1)),
            Named::Checkpoint(found) => {
                let Checkpoint { policy, shape, label: name, fingerprint } = *found;
                policy::check_io(&shape, None, &spec)?;
                (label, traits) = (name, fingerprint);
                min_ready = shape.inference_batch;
                policy
            }
            Named::Foreign(found) => {
                let Foreign { mut policy, label: name, fingerprint } = *found;
                (label, traits) = (name, fingerprint);
                policy.present(&config.cameras, spec.action.len())?;
                Box::new(policy)
            }
        };
        if let Some(convention) = policy.convention() {
            convention.check_matches(&spec.convention)?;
        }
        let mut fingerprint = print.lines();
        fingerprint.append(&mut traits);
        fingerprint.insert("env".to_owned(), spec.id.clone());
        fingerprint.insert("simloop".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let instruction = |id: u32| {
            instructions.get(id as usize).map_or_else(String::new, |t| t.instruction.clone())
        };
        let tasks: Vec<TaskEntry> = ids
            .iter()
            .zip(&keys)
            .map(|(&id, key)| TaskEntry { key: key.clone(), id, instruction: instruction(id) })
            .collect();
        let mut episodes = Vec::new();
        for key in &keys {
            for &trial in &self.trials {
                let init_state = Some(self.protocol.init_state(trial));
                let options = ResetOptions { task: Some(key.clone()), init_state, state: None };
                episodes.push(episode(self.seed, self.suite.name(), key, trial, options));
            }
        }
        let n_action_steps = self
            .n_action_steps
            .or_else(|| self.protocol.episodes.n_action_steps.as_ref().map(|n| n.value as usize));
        let mut protocol_lines = self.protocol.lines(self.suite);
        if let Some(n) = self.n_action_steps {
            protocol_lines.retain(|line| line.name != "episodes.n_action_steps");
            protocol_lines.push(ProtocolLine {
                name: "episodes.n_action_steps".to_owned(),
                value: n.to_string(),
                source: "--n-action-steps".to_owned(),
            });
        }
        let [height, width] = config.image_size;
        if images && config.image_size != self.protocol.images.size.value {
            protocol_lines.retain(|line| line.name != "images.size");
            protocol_lines.push(ProtocolLine {
                name: "images.size".to_owned(),
                value: format!("[{height},{width}]"),
                source: "what the policy was trained on".to_owned(),
            });
        }
        let viewer = config.viewer();
        Ok(SuiteRun {
            suite: self.suite.name().to_owned(),
            seed: self.seed,
            protocol: self.protocol.label(),
            protocol_lines,
            tasks,
            episodes,
            trials: (
                self.trials.iter().copied().min().unwrap_or(0),
                self.trials.iter().copied().max().map_or(0, |last| last + 1),
            ),
            factory: factory(install.clone(), config),
            viewer: factory(install, viewer),
            video_fps: spec.control_hz,
            frames: match policy.needs().frames() {
                FrameRequest::None if images => FrameRequest::Last,
                frames => frames,
            },
            n_action_steps,
            min_ready,
            fingerprint,
            policy_label: label,
            policy,
        })
    }
}

fn factory(install: LiberoInstall, config: LiberoConfig) -> EnvFactory {
    Arc::new(move |_| Ok(Box::new(LiberoEnv::start(&install, &config)?) as Box<dyn Env>))
}
