//! The loop of on-policy learning: roll out, update, and in between evaluation and checkpoints. PPO and GRPO differ in
//! what a rollout is, see [`Supply`].

use std::collections::VecDeque;
use std::time::Instant;

use simloop_algos::OnPolicy;
use simloop_envs::{EnvId, SeedTree};
use simloop_policies::vla::VlaPolicy;
use simloop_policies::{ActMode, Decision, StochasticActor as _};

use crate::TrainerError;
use crate::cpu::tree_secs;
use crate::offline::End;
use crate::place::PlaceTask;
use crate::rl_state::RlState;
use crate::rollout::{Decider, Job, Plan, Rollouts, Seen};
use crate::round::{Around, Log, Rhythm};

/// What an update learns from.
#[derive(Clone, Debug)]
pub enum Supply {
    /// So many decisions in each environment, which goes from episode to episode.
    Decisions(usize),
    /// Groups of whole episodes that begin in the same state.
    Groups {
        /// Groups per update.
        groups: usize,
        /// Episodes per group.
        size: usize,
    },
}

/// A policy that explores.
pub struct Explorer<'a>(pub &'a VlaPolicy);

impl Decider for Explorer<'_> {
    fn decide(&mut self, seen: &[Seen<'_>]) -> Result<Vec<Decision>, TrainerError> {
        let windows: Vec<_> = seen.iter().map(|s| s.window.to_vec()).collect();
        let seeds: Vec<_> = seen.iter().map(|s| s.seed).collect();
        Ok(self.0.decide(&windows, &seeds, ActMode::Stochastic)?)
    }

    fn batch(&self) -> usize {
        self.0.config().inference_batch
    }
}

/// Which episode comes when: a function of the run's seed alone.
#[derive(Clone, Debug)]
pub struct Schedule {
    seeds: SeedTree,
    tasks: Vec<PlaceTask>,
}

impl Schedule {
    /// Of the run `seed`, dealt to `tasks` in turn.
    pub fn new(seed: u64, tasks: Vec<PlaceTask>) -> Self {
        Self { seeds: SeedTree::new(seed).child("rollouts"), tasks }
    }

    fn job(&self, number: u64, group: u64, start: SeedTree, noise: SeedTree) -> Job {
        let task = &self.tasks[(group % self.tasks.len() as u64) as usize];
        let request = task.learned(start.seed());
        Job { number, group, request, noise: noise.child("noise") }
    }

    /// The `k`-th episode of environment `env`.
    pub fn of_env(&self, env: EnvId, k: u64) -> Job {
        let node = self.seeds.child("env").index(env.0 as u64).index(k);
        // Neighbours in time and space get different tasks.
        let group = env.0 as u64 + k;
        self.job((env.0 as u64) << 32 | k, group, node.child("start"), node)
    }

    /// The episodes of update `update`: `groups` groups of `size`.
    pub fn groups(&self, update: u64, groups: usize, size: usize) -> VecDeque<Job> {
        let node = self.seeds.child("group").index(update);
        (0..groups as u64)
            .flat_map(|group| {
                let node = node.index(group);
                (0..size as u64).map(move |member| (group, member, node))
            })
            .map(|(group, member, node)| {
                let number = group * size as u64 + member;
                self.job(number, group, node.child("start"), node.index(member))
            })
            .collect()
    }

    /// The tasks.
    pub fn tasks(&self) -> &[PlaceTask] {
        &self.tasks
    }
}

/// Learns from update `state.update` on; see the module. Ends with a checkpoint of the last update.
///
/// # Errors
/// [`TrainerError::Diverged`] after too many dropped updates in a row; whatever policy, environment or disk answer.
pub fn train_on_policy(
    algo: &mut dyn OnPolicy<Actor = VlaPolicy>,
    rollouts: &mut Rollouts,
    schedule: &Schedule,
    supply: &Supply,
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
        let plan = match *supply {
            Supply::Decisions(each) => {
                Plan::Decisions { each, next: &|env, k| schedule.of_env(env, k) }
            }
            Supply::Groups { groups, size } => {
                Plan::Episodes(schedule.groups(before, groups, size))
            }
        };
        let rollout = rollouts.collect(&mut Explorer(algo.actor()), plan, around.stop)?;
        if rollout.stopped {
            // Nothing was learned since the last update: the state from before this rollout goes on exactly.
            around.save(algo.actor(), &algo.state(), state, rhythm)?;
            return Ok(End::Interrupted);
        }
        let acted = started.elapsed().as_secs_f64();
        let update = algo.update(&rollout.trajectories)?;
        state.update = algo.updates();
        state.count(&rollout, rollouts.state());
        let secs = started.elapsed().as_secs_f64();
        state.trained_secs += secs;
        log.rollout(&rollout, acted, secs);
        around.judge_update(update, state, &mut log, rhythm.max_dropped)?;
        if around.after_round(algo, state, &mut log, rhythm, before, cpu)? {
            return Ok(End::Interrupted);
        }
    }
    Ok(End::Complete)
}
