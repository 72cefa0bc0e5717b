//! The loop of interactive imitation: act, let the expert label, learn from everything labelled so far.
//!
//! Labels lie in `data/<round>` of the run's folder, as LeRobot data sets that `data inspect` shows and `train bc` reads.
//! A round that was interrupted is done again from its beginning, which leads to the same weights.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use simloop_algos::dagger::Turns;
use simloop_algos::{Bc, BcConfig, Metrics, Update};
use simloop_envs::SeedTree;
use simloop_policies::ImitationModel as _;
use simloop_policies::checkpoint::save_policy;
use simloop_policies::vla::{Align as PolicyAlign, Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use tch::Device;

use crate::TrainerError;
use crate::acting::Acting;
use crate::checkpoint::{self, Best};
use crate::cpu::tree_secs;
use crate::data::lerobot::LerobotWriter;
use crate::data::{
    Align, Concat, DataStatistics, Dataset as _, DemoSource, Loader, LoaderConfig, LoaderPosition,
    OpenOptions, SourceSpec, WindowDataset, WindowOptions, open_source,
};
use crate::expert_rollout::{Experts, Mixed};
use crate::observer::{Observers, TrainEvent};
use crate::offline::End;
use crate::on_policy::Schedule;
use crate::place::Place;
use crate::rl_config::DaggerConfig;
use crate::rl_state::RlState;
use crate::rollout::{Plan, RolloutState, Rollouts};
use crate::run::RunFolder;
use crate::stop::StopFlag;
use crate::tensors::Feed;

/// The parts of a run.
pub struct Interactive<'a> {
    /// What DAgger is told.
    pub config: &'a DaggerConfig,
    /// The run's seed.
    pub seed: u64,
    /// Where to act.
    pub place: &'a Place,
    /// What the environments show.
    pub spec: SourceSpec,
    /// Which episode comes when.
    pub schedule: &'a Schedule,
    /// Episodes to be judged by; 0 for none.
    pub episodes: u32,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// Dropped updates in a row before the run fails.
    pub max_dropped: u32,
    /// The architecture of a policy that begins from nothing.
    pub model: Option<VlaConfig>,
    /// Where to compute.
    pub device: Device,
}

/// The learner, as soon as there is something to learn from.
pub type Learner = Option<Bc<VlaPolicy>>;

impl Interactive<'_> {
    /// A learner of `policy`.
    ///
    /// # Errors
    /// [`TrainerError::Algo`] for numbers out of range.
    pub fn learner(&self, policy: VlaPolicy) -> Result<Bc<VlaPolicy>, TrainerError> {
        let config = BcConfig {
            optim: self.config.optim.clone(),
            ema: self.config.ema,
            mask_padding: true,
            total_updates: u64::from(self.config.iterations) * self.config.updates,
        };
        Ok(Bc::new(policy, config, self.seed)?)
    }

    /// All rounds.
    pub fn rounds(&self) -> u64 {
        u64::from(self.config.iterations)
    }

    /// The rounds from `state.update` to `until` or the last one. The first one has no learner: it is behaviour cloning of the
    /// expert.
    ///
    /// # Errors
    /// [`TrainerError::Diverged`] after too many dropped updates in a row; whatever policy, environment or disk answer.
    #[expect(clippy::too_many_arguments, reason = "the parts of a run, each used as it is")]
    pub fn train(
        &self,
        until: u64,
        learner: &mut Learner,
        rollouts: &mut Rollouts,
        mut acting: Option<&mut Acting>,
        run: &RunFolder,
        state: &mut RlState,
        observers: &mut Observers,
        stop: &StopFlag,
    ) -> Result<End, TrainerError> {
        let total = self.rounds();
        let mut experts = Experts::new(self.place)?;
        while state.update < total.min(until) {
            let (started, cpu) = (Instant::now(), tree_secs().unwrap_or(0.0));
            let round = state.update as u32;
            if !self.collect(round, learner, rollouts, &mut experts, run, state, stop)? {
                return Ok(End::Interrupted);
            }
            let mut metrics = Metrics::new();
            let source = self.labelled(run, round)?;
            if learner.is_none() {
                *learner = Some(self.learner(self.first_policy(&source)?)?);
            }
            let bc = learner.as_mut().ok_or_else(|| TrainerError::config("no learner"))?;
            metrics.insert("dagger/episodes", source.episodes().len() as f64);
            metrics.insert(
                "dagger/labels",
                source.episodes().iter().map(|e| e.len as f64).sum::<f64>(),
            );
            metrics.insert("dagger/beta", self.config.beta.at(round));
            if !self.learn(bc, &source, round, state, &mut metrics, observers, stop)? {
                return Ok(End::Interrupted);
            }
            state.update += 1;
            state.trained_secs += started.elapsed().as_secs_f64();
            metrics.insert("rollout/env_steps", state.env_steps as f64);
            metrics.insert("time/trained_secs", state.trained_secs);
            observers.notify(&TrainEvent::Updated { update: state.update, metrics: &metrics });
            if let Some(acting) = acting.as_deref_mut().filter(|_| self.episodes > 0) {
                let judged = bc.averaged(|policy| acting.judge(policy, state.update, stop))?;
                let Some(judged) = judged else { return Ok(End::Interrupted) };
                observers.notify(&TrainEvent::Evaluated { update: state.update, metrics: &judged });
                let value = judged.get("eval/success_rate").copied().unwrap_or(0.0);
                // Of equal rounds the last one: it has seen the most.
                if state.best.as_ref().is_none_or(|best| value >= best.value) {
                    let metric = "eval/success_rate".to_owned();
                    state.best = Some(Best { metric, value, update: state.update });
                    bc.averaged(|policy| run.publish("best", |dir| Ok(save_policy(policy, dir)?)))?;
                }
            }
            state.cpu_secs += tree_secs().unwrap_or(0.0) - cpu;
            self.save(bc, run, state)?;
            observers.notify(&TrainEvent::Saved { update: state.update, path: run.root() });
            if stop.is_set() && state.update < total {
                return Ok(End::Interrupted);
            }
        }
        Ok(End::Complete)
    }

    fn folder(run: &RunFolder, round: u32) -> PathBuf {
        run.root().join("data").join(format!("{round:04}"))
    }

    /// Acts and labels; false if it was interrupted. Labels of an interrupted round are not kept.
    #[expect(clippy::too_many_arguments, reason = "the parts of a run, each used as it is")]
    fn collect(
        &self,
        round: u32,
        learner: &mut Learner,
        rollouts: &mut Rollouts,
        experts: &mut Experts,
        run: &RunFolder,
        state: &mut RlState,
        stop: &StopFlag,
    ) -> Result<bool, TrainerError> {
        let target = Self::folder(run, round);
        if target.exists() {
            std::fs::remove_dir_all(&target).map_err(TrainerError::io("remove", &target))?;
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(TrainerError::io("create", parent))?;
        }
        let jobs = self.schedule.groups(u64::from(round), self.config.episodes as usize, 1);
        let beta = self.config.beta.at(round);
        let acts = |policy: Option<&VlaPolicy>, rollouts: &mut Rollouts, experts: &mut Experts| {
            let mut mixed = Mixed::new(policy, experts, |seen| {
                Turns::new(self.config.labels, beta, self.config.max_lead, &seen.job.noise)
            });
            let rollout = rollouts.collect(&mut mixed, Plan::Episodes(jobs.clone()), stop)?;
            if rollout.stopped {
                return Ok::<_, TrainerError>((rollout, Vec::new()));
            }
            let ended: std::collections::BTreeSet<u64> =
                rollout.trajectories.iter().map(|t| t.start.seed.unwrap_or_default()).collect();
            let kept: std::collections::BTreeSet<u64> = jobs
                .iter()
                .filter(|job| ended.contains(&job.request.seed.unwrap_or_default()))
                .map(|job| job.number)
                .collect();
            let episodes = mixed.into_episodes(&|number| kept.contains(&number))?;
            Ok((rollout, episodes))
        };
        let (rollout, episodes) = match learner {
            Some(bc) => bc.averaged(|policy| acts(Some(policy), rollouts, experts))?,
            None => acts(None, rollouts, experts)?,
        };
        if rollout.stopped {
            return Ok(false);
        }
        // Rounds are whole episodes: nothing is under way between them.
        state.count(&rollout, RolloutState::default());
        let mut writer = LerobotWriter::create(&target, &self.spec, "simulated")?;
        for episode in &episodes {
            writer.push(episode)?;
        }
        writer.finish()?;
        Ok(true)
    }

    /// Everything labelled up to `round`, and the demonstrations given besides.
    fn labelled(&self, run: &RunFolder, round: u32) -> Result<Arc<dyn DemoSource>, TrainerError> {
        let options = OpenOptions::default();
        let mut parts = Vec::new();
        if let Some(path) = &self.config.data {
            parts.push(open_source(path, &options)?);
        }
        for round in 0..=round {
            parts.push(open_source(&Self::folder(run, round), &options)?);
        }
        Ok(Arc::new(Concat::new(parts)?))
    }

    fn windows(model: &VlaConfig, cameras: &[String]) -> WindowOptions {
        WindowOptions {
            n_obs_steps: model.n_obs_steps,
            chunk_size: model.chunk_size,
            align: match model.align {
                PolicyAlign::Current => Align::Current,
                PolicyAlign::Window => Align::WindowStart,
            },
            cameras: cameras.to_vec(),
            ..WindowOptions::default()
        }
    }

    /// A new policy whose normalisers know the labels of the first round.
    fn first_policy(&self, source: &Arc<dyn DemoSource>) -> Result<VlaPolicy, TrainerError> {
        let model = self
            .model
            .clone()
            .ok_or_else(|| TrainerError::config("say who learns: `[policy.model]`"))?;
        let all: Vec<usize> = (0..source.episodes().len()).collect();
        let data = WindowDataset::new(Arc::clone(source), all, Self::windows(&model, &[]))?;
        let statistics = DataStatistics::of(&data)?;
        let normalizers = Normalizers::fit(&model, statistics.proprio, statistics.action)?;
        let io = PolicyIo {
            cameras: self.spec.cameras.clone(),
            proprio: self.spec.proprio.clone(),
            action: self.spec.action.clone(),
            convention: self.spec.convention.clone(),
            control_hz: self.spec.control_hz,
        };
        let seed = SeedTree::new(self.seed).child("weights").seed();
        Ok(VlaPolicy::new(model, io, normalizers, self.device, seed)?)
    }

    /// The updates of a round; false if it was interrupted.
    #[expect(clippy::too_many_arguments, reason = "the parts of a run, each used as it is")]
    fn learn(
        &self,
        bc: &mut Bc<VlaPolicy>,
        source: &Arc<dyn DemoSource>,
        round: u32,
        state: &mut RlState,
        metrics: &mut Metrics,
        observers: &mut Observers,
        stop: &StopFlag,
    ) -> Result<bool, TrainerError> {
        let all: Vec<usize> = (0..source.episodes().len()).collect();
        let windows = Self::windows(bc.model().config(), bc.model().cameras());
        let data = Arc::new(WindowDataset::new(Arc::clone(source), all, windows)?);
        let loader = LoaderConfig {
            batch_size: self.config.batch_size.min(data.len()),
            threads: self.config.workers,
            seed: SeedTree::new(self.seed).child("dagger").index(u64::from(round)).seed(),
            ..LoaderConfig::default()
        };
        let loader = Loader::new(data, loader, LoaderPosition::default())?;
        let mut feed = Feed::new(loader, bc.model().params().device())?;
        let (mut loss, mut applied) = (0.0, 0u64);
        for _ in 0..self.config.updates {
            if stop.is_set() {
                return Ok(false);
            }
            match bc.update(&[feed.next_batch()?])? {
                Update::Applied(m) => {
                    loss += m.get("train/loss").copied().unwrap_or(0.0);
                    applied += 1;
                    state.dropped_in_a_row = 0;
                    metrics.extend(m);
                }
                Update::Dropped { tensor } => {
                    state.dropped_in_a_row += 1;
                    observers
                        .notify(&TrainEvent::Dropped { update: state.update, tensor: &tensor });
                    if state.dropped_in_a_row >= self.max_dropped {
                        let dropped = state.dropped_in_a_row;
                        return Err(TrainerError::diverged(dropped, &tensor, "labels"));
                    }
                }
            }
        }
        metrics.insert("train/loss", loss / applied.max(1) as f64);
        Ok(true)
    }

    fn save(
        &self,
        bc: &mut Bc<VlaPolicy>,
        run: &RunFolder,
        state: &RlState,
    ) -> Result<(), TrainerError> {
        run.save(state.update, self.keep_last, |dir| {
            bc.averaged(|policy| save_policy(policy, dir))?;
            let learner = bc.state();
            let train = checkpoint::TrainState {
                update: learner.updates,
                loader: LoaderPosition::default(),
                best: state.best.clone(),
                stale: 0,
                dropped_in_a_row: state.dropped_in_a_row,
                trained_secs: state.trained_secs,
            };
            checkpoint::save_state(dir, &learner, &train)?;
            let path = dir.join("round.json");
            let text = serde_json::to_string(state)
                .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
            std::fs::write(&path, text).map_err(TrainerError::io("write", &path))
        })?;
        Ok(())
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`], [`TrainerError::Policy`] naming the file.
    pub fn load(
        &self,
        folder: &std::path::Path,
        learner: &mut Learner,
    ) -> Result<RlState, TrainerError> {
        let (found, _) = checkpoint::load_state(folder)?;
        let policy = simloop_policies::checkpoint::load_policy(folder, self.device)?;
        let mut bc = self.learner(policy)?;
        bc.load_state(&found)?;
        *learner = Some(bc);
        let path = folder.join("round.json");
        let text = std::fs::read_to_string(&path).map_err(TrainerError::io("read", &path))?;
        serde_json::from_str(&text).map_err(|e| TrainerError::checkpoint(&path, e.to_string()))
    }
}
