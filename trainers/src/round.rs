//! What every loop that learns by acting does after a round of acting and learning: write down, judge, save, stop.

use simloop_algos::{Learner, LearnerState, Metrics, Update};
use simloop_policies::checkpoint::{load_policy, save_policy};
use simloop_policies::vla::VlaPolicy;

use crate::TrainerError;
use crate::acting::Acting;
use crate::checkpoint::{Best, verify};
use crate::cpu::tree_secs;
use crate::judge::{Judge, Verdict};
use crate::observer::{Observers, TrainEvent};
use crate::rl_state::{self, RlState};
use crate::rollout::Rollout;
use crate::run::{RunFolder, judged};
use crate::stop::StopFlag;

/// How often what happens, in updates; 0 is never.
#[derive(Clone, Debug)]
pub struct Rhythm {
    /// The run's name.
    pub name: String,
    /// Updates planned.
    pub total: u64,
    /// Between two log lines.
    pub log_every: u64,
    /// Between two evaluations.
    pub evaluate_every: u64,
    /// Between two checkpoints.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// Dropped updates in a row before the run fails.
    pub max_dropped: u32,
}

impl Rhythm {
    /// Whether what happens every `every` updates fell due in a round that led from `before` updates to `done`: a round
    /// may be many updates, and what fell due inside of it happens after it, or after the last one.
    pub(crate) fn is_due(&self, every: u64, before: u64, done: u64) -> bool {
        every > 0 && (done / every > before / every || done == self.total)
    }
}

/// What is around a loop.
pub struct Around<'a> {
    /// Where the policy is judged; nowhere if `None`.
    pub acting: Option<&'a mut Acting>,
    /// Who judges it while it goes on learning; the loop waits for judgements if `None`.
    pub judge: Option<Judge>,
    /// Where results lie.
    pub run: &'a RunFolder,
    /// Who watches.
    pub observers: &'a mut Observers,
    /// Who may end it.
    pub stop: &'a StopFlag,
}

impl Around<'_> {
    /// Says that a loop begins or goes on, with the judgements that were open.
    ///
    /// # Errors
    /// [`TrainerError::Policy`] for a damaged policy; whatever environment or disk answer.
    pub fn started(&mut self, state: &mut RlState, rhythm: &Rhythm) -> Result<(), TrainerError> {
        let (update, total, name) = (state.update, rhythm.total, &rhythm.name[..]);
        self.observers.notify(&TrainEvent::Started { update, total, name });
        for of in std::mem::take(&mut state.judging) {
            let folder = self.run.root().join(judged(of));
            if let Err(error) = verify(&folder) {
                tracing::warn!(update = of, %error, "a policy that was to be judged is lost");
                continue;
            }
            state.judging.push(of);
            if self.judge.is_some() {
                self.begin(of, state)?;
            } else if let Some(acting) = self.acting.as_deref_mut() {
                let mut policy = load_policy(&folder, tch::Device::Cpu)?;
                let verdict = acting.judge(&mut policy, of, self.stop);
                self.take_verdict(of, verdict, state)?;
            }
        }
        if update >= total { self.await_verdict(state) } else { Ok(()) }
    }

    /// Lets the policy be judged: by the judge, after the verdict before; or here and now. What a stop interrupts stays
    /// open for the run that goes on.
    pub(crate) fn evaluate(
        &mut self,
        policy: &mut VlaPolicy,
        state: &mut RlState,
    ) -> Result<(), TrainerError> {
        let update = state.update;
        if self.judge.is_none() {
            let Some(acting) = self.acting.as_deref_mut() else { return Ok(()) };
            if let Some(metrics) = acting.judge(policy, update, self.stop)? {
                self.observers.notify(&TrainEvent::Evaluated { update, metrics: &metrics });
                if is_best(state, update, &metrics) {
                    self.run.publish("best", |dir| Ok(save_policy(policy, dir)?))?;
                }
                return Ok(());
            }
        }
        self.run.publish(&judged(update), |dir| Ok(save_policy(policy, dir)?))?;
        state.judging.push(update);
        if self.judge.is_some() { self.begin(update, state) } else { Ok(()) }
    }

    /// Gives the judge the policy of after `of` updates.
    fn begin(&mut self, of: u64, state: &mut RlState) -> Result<(), TrainerError> {
        self.await_verdict(state)?;
        if let Some(judge) = &mut self.judge {
            judge.begin(of, &self.run.root().join(judged(of)));
        }
        Ok(())
    }

    /// Takes the verdict on what is being judged, if something is.
    pub(crate) fn await_verdict(&mut self, state: &mut RlState) -> Result<(), TrainerError> {
        match self.judge.as_mut().and_then(Judge::wait) {
            Some((of, verdict)) => self.take_verdict(of, verdict, state),
            None => Ok(()),
        }
    }

    /// What follows from a verdict on the policy of after `of` updates. An interrupted judgement stays open.
    fn take_verdict(
        &mut self,
        of: u64,
        verdict: Verdict,
        state: &mut RlState,
    ) -> Result<(), TrainerError> {
        let Some(metrics) = verdict? else { return Ok(()) };
        self.observers.notify(&TrainEvent::Evaluated { update: of, metrics: &metrics });
        if is_best(state, of, &metrics) {
            let folder = self.run.root().join(judged(of));
            let policy = load_policy(&folder, tch::Device::Cpu)?;
            self.run.publish("best", |dir| Ok(save_policy(&policy, dir)?))?;
        }
        state.judging.retain(|open| *open != of);
        Ok(())
    }

    /// What falls due after a round that began after `before` updates, when the program had used `cpu` CPU-seconds; true
    /// if somebody asked to stop and the state is saved.
    pub(crate) fn after_round<L: Learner<Actor = VlaPolicy> + ?Sized>(
        &mut self,
        learner: &mut L,
        state: &mut RlState,
        log: &mut Log,
        rhythm: &Rhythm,
        before: u64,
        cpu: f64,
    ) -> Result<bool, TrainerError> {
        let done = state.update;
        let last = done == rhythm.total;
        let due = |every: u64| rhythm.is_due(every, before, done);
        if due(rhythm.log_every) {
            let metrics = log.take(state);
            self.observers.notify(&TrainEvent::Updated { update: done, metrics: &metrics });
        }
        if due(rhythm.evaluate_every) {
            self.evaluate(learner.actor_mut(), state)?;
        } else if let Some((of, verdict)) = self.judge.as_mut().and_then(Judge::poll) {
            self.take_verdict(of, verdict, state)?;
        }
        if last {
            self.await_verdict(state)?;
        }
        state.cpu_secs += tree_secs().unwrap_or(0.0) - cpu;
        let interrupted = self.stop.is_set() && !last;
        if due(rhythm.save_every) || last || interrupted {
            self.save(learner.actor(), &learner.state(), state, rhythm)?;
        }
        Ok(interrupted)
    }

    /// Saves a checkpoint and says so.
    pub(crate) fn save(
        &mut self,
        policy: &VlaPolicy,
        learner: &LearnerState,
        state: &RlState,
        rhythm: &Rhythm,
    ) -> Result<(), TrainerError> {
        self.run.save(state.update, rhythm.keep_last, |dir| {
            save_policy(policy, dir)?;
            rl_state::save(dir, learner, state)
        })?;
        self.saved(state)
    }

    /// Says that a checkpoint of `state` is saved.
    pub(crate) fn saved(&mut self, state: &RlState) -> Result<(), TrainerError> {
        // Of those judged before, the checkpoint names none any more.
        self.run.forget_judged(&state.judging)?;
        let saved = TrainEvent::Saved { update: state.update, path: self.run.root() };
        self.observers.notify(&saved);
        Ok(())
    }

    /// Counts dropped updates; too many in a row end the run.
    pub(crate) fn judge_update(
        &mut self,
        update: Update,
        state: &mut RlState,
        log: &mut Log,
        max_dropped: u32,
    ) -> Result<(), TrainerError> {
        match update {
            Update::Applied(metrics) => {
                state.dropped_in_a_row = 0;
                log.add(&metrics);
            }
            Update::Dropped { tensor } => {
                state.dropped_in_a_row += 1;
                let update = state.update;
                self.observers.notify(&TrainEvent::Dropped { update, tensor: &tensor });
                if state.dropped_in_a_row >= max_dropped {
                    return Err(TrainerError::diverged(
                        state.dropped_in_a_row,
                        &tensor,
                        "environment",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether an evaluation is the best so far: more successes, or as many with a score that is no lower. Of equal ones the
/// last one: it has seen the most.
fn is_best(state: &mut RlState, update: u64, metrics: &Metrics) -> bool {
    let (Some(success), score) =
        (metrics.get("eval/success_rate"), metrics.get("eval/mean_score").copied().unwrap_or(0.0))
    else {
        return false;
    };
    let value = success + 1e-3 * score;
    let better = state.best.as_ref().is_none_or(|best| value >= best.value);
    if better {
        let metric = "eval/success_rate".to_owned();
        state.best = Some(Best { metric, value, update });
    }
    better
}

/// Means since the last log line.
#[derive(Default)]
pub(crate) struct Log {
    sums: std::collections::BTreeMap<&'static str, (f64, f64)>,
    steps: f64,
    secs: f64,
    acting: f64,
    deciding: f64,
}

impl Log {
    pub(crate) fn add(&mut self, metrics: &Metrics) {
        for (name, value) in metrics {
            let (sum, count) = self.sums.entry(name).or_default();
            *sum += value;
            *count += 1.0;
        }
    }

    /// Takes in a rollout: `acted` of its `secs` were spent acting, the rest learning.
    pub(crate) fn rollout(&mut self, rollout: &Rollout, acted: f64, secs: f64) {
        self.steps += rollout.steps as f64;
        self.secs += secs;
        self.acting += acted;
        self.deciding += rollout.deciding.as_secs_f64();
        for episode in &rollout.episodes {
            let success = f64::from(u8::from(episode.success));
            for (name, value) in [
                ("rollout/success_rate", success),
                ("rollout/return", f64::from(episode.ret)),
                ("rollout/episode_steps", f64::from(episode.steps)),
            ] {
                let (sum, count) = self.sums.entry(name).or_default();
                *sum += value;
                *count += 1.0;
            }
        }
    }

    pub(crate) fn take(&mut self, state: &RlState) -> Metrics {
        let mut metrics: Metrics =
            self.sums.iter().map(|(name, (sum, count))| (*name, sum / count)).collect();
        let secs = self.secs.max(1e-9);
        metrics.insert("rollout/env_steps", state.env_steps as f64);
        metrics.insert("rollout/episodes", state.episodes as f64);
        metrics.insert("rollout/faults", state.faults as f64);
        metrics.insert("rollout/lost", state.lost as f64);
        metrics.insert("time/env_steps_per_sec", self.steps / secs);
        metrics.insert("time/acting", self.acting / secs);
        metrics.insert("time/deciding", self.deciding / secs);
        metrics.insert("time/trained_secs", state.trained_secs);
        *self = Self::default();
        metrics
    }
}
