//! The loop of off-policy learning: act a little, learn a little, from everything remembered.

use std::time::Instant;

use simloop_algos::{Sac, Update};
use simloop_policies::checkpoint::save_policy;

use crate::TrainerError;
use crate::acting::Acting;
use crate::cpu::tree_secs;
use crate::observer::{Observers, TrainEvent};
use crate::offline::End;
use crate::on_policy::{Explorer, Log, Schedule, is_best, judge_update};
use crate::rl_state::{self, RlState};
use crate::rollout::{Plan, Rollouts};
use crate::run::RunFolder;
use crate::stop::StopFlag;

/// How often what happens, in updates; 0 is never.
#[derive(Clone, Debug)]
pub struct OffPolicyOptions {
    /// The run's name.
    pub name: String,
    /// Updates planned.
    pub total: u64,
    /// Decisions per environment between two rounds of updates.
    pub decisions: usize,
    /// Updates per decision.
    pub updates_per_decision: f64,
    /// Decisions before the first update.
    pub warmup: usize,
    /// Between two log lines.
    pub log_every: u64,
    /// Between two evaluations.
    pub evaluate_every: u64,
    /// Episodes of each.
    pub episodes: u32,
    /// Between two checkpoints.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// Dropped updates in a row before the run fails.
    pub max_dropped: u32,
}

/// Learns from update `state.update` on; see the module. Things that are due happen after the round in which they fall.
///
/// # Errors
/// [`TrainerError::Diverged`] after too many dropped updates in a row; whatever policy, environment or disk answer.
#[expect(clippy::too_many_arguments, reason = "the parts of a run, each used as it is")]
pub fn train_off_policy(
    sac: &mut Sac,
    rollouts: &mut Rollouts,
    schedule: &Schedule,
    mut acting: Option<&mut Acting>,
    run: &RunFolder,
    state: &mut RlState,
    options: &OffPolicyOptions,
    observers: &mut Observers,
    stop: &StopFlag,
) -> Result<End, TrainerError> {
    let start =
        TrainEvent::Started { update: state.update, total: options.total, name: &options.name };
    observers.notify(&start);
    let mut log = Log::default();
    while state.update < options.total {
        let (started, cpu) = (Instant::now(), tree_secs().unwrap_or(0.0));
        state.rollouts = rollouts.state();
        let plan =
            Plan::Decisions { each: options.decisions, next: &|env, k| schedule.of_env(env, k) };
        let rollout = rollouts.collect(&mut Explorer(sac.actor()), plan, stop)?;
        if rollout.stopped {
            save(sac, run, state, options)?;
            observers.notify(&TrainEvent::Saved { update: state.update, path: run.root() });
            return Ok(End::Interrupted);
        }
        let acted = started.elapsed().as_secs_f64();
        let left_out = sac.observe(&rollout.trajectories)?;
        if left_out > 0 {
            tracing::warn!(left_out, "decisions with numbers that are not finite were left out");
        }
        state.rollouts = rollouts.state();
        state.env_steps += rollout.steps;
        state.episodes += rollout.episodes.len() as u64;
        state.faults += rollout.faults;
        state.lost += rollout.lost;

        let before = state.update;
        if sac.experience().0 >= options.warmup {
            let decisions: usize = rollout.trajectories.iter().map(|t| t.transitions.len()).sum();
            let n = ((decisions as f64 * options.updates_per_decision) as u64).max(1);
            for _ in 0..n.min(options.total - before) {
                let update: Update = sac.update()?;
                state.update = sac.updates();
                judge_update(update, state, options.max_dropped, &mut log, observers)?;
            }
        }
        let secs = started.elapsed().as_secs_f64();
        state.trained_secs += secs;
        log.rollout(&rollout, acted, secs);

        let done = state.update;
        let last = done == options.total;
        let due = |every: u64| every > 0 && (done / every > before / every || last);
        if due(options.log_every) {
            let metrics = log.take(state);
            observers.notify(&TrainEvent::Updated { update: done, metrics: &metrics });
        }
        if due(options.evaluate_every)
            && !stop.is_set()
            && let Some(acting) = acting.as_deref_mut()
            && let Some(metrics) =
                acting.run(sac.actor_mut(), "training", options.episodes, stop)?
        {
            observers.notify(&TrainEvent::Evaluated { update: done, metrics: &metrics });
            if is_best(state, &metrics) {
                run.publish("best", |dir| Ok(save_policy(sac.actor(), dir)?))?;
            }
        }
        state.cpu_secs += tree_secs().unwrap_or(0.0) - cpu;
        let interrupted = stop.is_set() && !last;
        if due(options.save_every) || last || interrupted {
            save(sac, run, state, options)?;
            observers.notify(&TrainEvent::Saved { update: done, path: run.root() });
        }
        if interrupted {
            return Ok(End::Interrupted);
        }
    }
    Ok(End::Complete)
}

fn save(
    sac: &Sac,
    run: &RunFolder,
    state: &RlState,
    options: &OffPolicyOptions,
) -> Result<(), TrainerError> {
    run.save(state.update, options.keep_last, |dir| {
        save_policy(sac.actor(), dir)?;
        rl_state::save(dir, &sac.state(), state)
    })?;
    Ok(())
}
