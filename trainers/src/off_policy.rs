//! The loop of off-policy learning: act a little, learn a little, from everything remembered.

use std::time::Instant;

use simloop_algos::{Learner as _, Sac};

use crate::TrainerError;
use crate::cpu::tree_secs;
use crate::offline::End;
use crate::on_policy::{Explorer, Schedule};
use crate::rl_state::RlState;
use crate::rollout::{Plan, Rollouts};
use crate::round::{Around, Log, Rhythm};

/// How acting and learning take turns.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// Decisions per environment between two rounds of updates.
    pub decisions: usize,
    /// Updates per decision.
    pub updates_per_decision: f64,
    /// Decisions before the first update.
    pub warmup: usize,
}

/// Learns from update `state.update` on; see the module. Ends with a checkpoint of the last update.
///
/// # Errors
/// [`TrainerError::Diverged`] after too many dropped updates in a row; whatever policy, environment or disk answer.
pub fn train_off_policy(
    sac: &mut Sac,
    rollouts: &mut Rollouts,
    schedule: &Schedule,
    turns: Turns,
    state: &mut RlState,
    rhythm: &Rhythm,
    around: &mut Around<'_>,
) -> Result<End, TrainerError> {
    around.started(state, rhythm)?;
    let mut log = Log::default();
    while state.update < rhythm.total {
        let (started, cpu) = (Instant::now(), tree_secs().unwrap_or(0.0));
        let before = state.update;
        state.rollouts = rollouts.state();
        let plan =
            Plan::Decisions { each: turns.decisions, next: &|env, k| schedule.of_env(env, k) };
        let rollout = rollouts.collect(&mut Explorer(sac.actor()), plan, around.stop)?;
        if rollout.stopped {
            around.save(sac.actor(), &sac.state(), state, rhythm)?;
            return Ok(End::Interrupted);
        }
        let acted = started.elapsed().as_secs_f64();
        let left_out = sac.observe(&rollout.trajectories)?;
        if left_out > 0 {
            tracing::warn!(left_out, "decisions with numbers that are not finite were left out");
        }
        state.count(&rollout, rollouts.state());
        if sac.experience().0 >= turns.warmup {
            let decisions: usize = rollout.trajectories.iter().map(|t| t.transitions.len()).sum();
            let n = ((decisions as f64 * turns.updates_per_decision) as u64).max(1);
            for _ in 0..n.min(rhythm.total - before) {
                let update = sac.update()?;
                state.update = sac.updates();
                around.judge_update(update, state, &mut log, rhythm.max_dropped)?;
            }
        }
        let secs = started.elapsed().as_secs_f64();
        state.trained_secs += secs;
        log.rollout(&rollout, acted, secs);
        if around.after_round(sac, state, &mut log, rhythm, before, cpu)? {
            return Ok(End::Interrupted);
        }
    }
    Ok(End::Complete)
}
