//! The loop of interactive imitation: act, let the expert label, learn from everything labelled so far.
//!
//! A round that was interrupted is done again from its beginning, which leads to the same weights.

use std::path::Path;
use std::time::Instant;

use simloop_algos::{Bc, BcConfig, Metrics, Update};
use simloop_policies::ImitationModel as _;
use simloop_policies::checkpoint::{load_policy, save_policy};
use simloop_policies::vla::{VlaConfig, VlaPolicy};
use tch::Device;

use crate::TrainerError;
use crate::checkpoint::{self, TrainState};
use crate::cpu::tree_secs;
use crate::data::{Loader, LoaderPosition};
use crate::expert_rollout::Experts;
use crate::heartbeat::Heartbeat;
use crate::labels::LabelStore;
use crate::observer::TrainEvent;
use crate::offline::End;
use crate::rl_state::RlState;
use crate::rollout::{RolloutState, Rollouts};
use crate::round::{Around, Rhythm};
use crate::tensors::Feed;

/// The file that holds the counters of a checkpoint.
const ROUND_FILE: &str = "round.json";

/// The parts of a run. Updates of its [`Rhythm`] are rounds; each is saved.
pub struct Interactive<'a> {
    /// The expert's labels.
    pub labels: LabelStore<'a>,
    /// How often what happens.
    pub rhythm: Rhythm,
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
        let dagger = self.labels.config;
        let config = BcConfig {
            optim: dagger.optim.clone(),
            ema: dagger.ema,
            mask_padding: true,
            total_updates: u64::from(dagger.iterations) * dagger.updates,
        };
        Ok(Bc::new(policy, config, self.labels.seed)?)
    }

    /// The rounds from `state.update` to `until` or the last one. The first one has no learner: it is behaviour cloning of the
    /// expert. Call [`Around::started`] before.
    ///
    /// # Errors
    /// [`TrainerError::Diverged`] after too many dropped updates in a row; whatever policy, environment or disk answer.
    pub fn train(
        &self,
        until: u64,
        learner: &mut Learner,
        rollouts: &mut Rollouts,
        experts: &mut Experts,
        state: &mut RlState,
        around: &mut Around<'_>,
    ) -> Result<End, TrainerError> {
        let total = self.rhythm.total;
        while state.update < total.min(until) {
            let (started, cpu) = (Instant::now(), tree_secs().unwrap_or(0.0));
            let (before, round) = (state.update, state.update as u32);
            let mut collect = |policy: Option<&VlaPolicy>| {
                self.labels.collect(round, policy, rollouts, experts, around.run, around.stop)
            };
            let rollout = match learner {
                Some(bc) => bc.averaged(|policy| collect(Some(policy)))?,
                None => collect(None)?,
            };
            if rollout.stopped {
                return Ok(End::Interrupted);
            }
            let source = self.labels.up_to(around.run, round)?;
            let bc = if let Some(bc) = learner {
                bc
            } else {
                let model = self.model.as_ref();
                let model = model
                    .ok_or_else(|| TrainerError::config("say who learns: `[policy.model]`"))?;
                let policy = self.labels.first_policy(model, &source, self.device)?;
                learner.insert(self.learner(policy)?)
            };
            let loader = self.labels.loader(&source, bc.model(), round)?;
            let Some(mut metrics) = self.learn(bc, loader, state, around)? else {
                return Ok(End::Interrupted);
            };
            // Rounds are whole episodes: nothing is under way between them.
            state.count(&rollout, RolloutState::default());
            state.update += 1;
            state.trained_secs += started.elapsed().as_secs_f64();
            let labels: u64 = source.episodes().iter().map(|e| e.len as u64).sum();
            metrics.extend([
                ("dagger/episodes", source.episodes().len() as f64),
                ("dagger/labels", labels as f64),
                ("dagger/beta", self.labels.beta(round)),
                ("rollout/env_steps", state.env_steps as f64),
                ("time/trained_secs", state.trained_secs),
            ]);
            let updated = TrainEvent::Updated { update: state.update, metrics: &metrics };
            around.observers.notify(&updated);
            if self.rhythm.is_due(self.rhythm.evaluate_every, before, state.update) {
                bc.averaged(|policy| around.evaluate(policy, state))?;
            }
            if state.update == total {
                around.await_verdict(state)?;
            }
            state.cpu_secs += tree_secs().unwrap_or(0.0) - cpu;
            self.save(bc, state, around)?;
            if around.stop.is_set() && state.update < total {
                return Ok(End::Interrupted);
            }
        }
        Ok(End::Complete)
    }

    /// The updates of a round; `None` if it was interrupted.
    fn learn(
        &self,
        bc: &mut Bc<VlaPolicy>,
        loader: Loader,
        state: &mut RlState,
        around: &mut Around<'_>,
    ) -> Result<Option<Metrics>, TrainerError> {
        let mut feed = Feed::new(loader, bc.model().params().device())?;
        let (mut loss, mut applied, mut metrics) = (0.0, 0u64, Metrics::new());
        let updates = self.labels.config.updates;
        let mut heart = Heartbeat::new("updates of this round", updates as usize);
        for done in 0..updates {
            heart.tick(|| done as usize);
            if around.stop.is_set() {
                return Ok(None);
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
                    let (update, dropped) = (state.update, state.dropped_in_a_row);
                    around.observers.notify(&TrainEvent::Dropped { update, tensor: &tensor });
                    if dropped >= self.rhythm.max_dropped {
                        return Err(TrainerError::diverged(dropped, &tensor, "labels"));
                    }
                }
            }
        }
        metrics.insert("train/loss", loss / applied.max(1) as f64);
        Ok(Some(metrics))
    }

    fn save(
        &self,
        bc: &mut Bc<VlaPolicy>,
        state: &RlState,
        around: &mut Around<'_>,
    ) -> Result<(), TrainerError> {
        around.run.save(state.update, self.rhythm.keep_last, |dir| {
            bc.averaged(|policy| save_policy(policy, dir))?;
            let learner = bc.state();
            let train = TrainState {
                update: learner.updates,
                loader: LoaderPosition::default(),
                best: state.best.clone(),
                stale: 0,
                dropped_in_a_row: state.dropped_in_a_row,
                trained_secs: state.trained_secs,
            };
            checkpoint::save_state(dir, &learner, &train)?;
            let path = dir.join(ROUND_FILE);
            let text = serde_json::to_string(state)
                .map_err(|e| TrainerError::checkpoint(&path, e.to_string()))?;
            std::fs::write(&path, text).map_err(TrainerError::io("write", &path))
        })?;
        around.saved(state)
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`], [`TrainerError::Policy`] naming the file.
    pub fn load(&self, folder: &Path, learner: &mut Learner) -> Result<RlState, TrainerError> {
        let (found, _) = checkpoint::load_state(folder)?;
        let mut bc = self.learner(load_policy(folder, self.device)?)?;
        bc.load_state(&found)?;
        *learner = Some(bc);
        let path = folder.join(ROUND_FILE);
        let text = std::fs::read_to_string(&path).map_err(TrainerError::io("read", &path))?;
        serde_json::from_str(&text).map_err(|e| TrainerError::checkpoint(&path, e.to_string()))
    }
}
