//! The loop of on-policy learning: roll out, update, and in between evaluation and checkpoints. PPO and GRPO differ in
//! what a rollout is, see [`Supply`].

use std::collections::VecDeque;
use std::time::Instant;

use simloop_algos::{Metrics, OnPolicy, Update};
use simloop_envs::{EnvId, SeedTree};
use simloop_policies::checkpoint::save_policy;
use simloop_policies::vla::VlaPolicy;
use simloop_policies::{ActMode, Decision, StochasticActor as _};

use crate::TrainerError;
use crate::acting::Acting;
use crate::checkpoint::Best;
use crate::cpu::tree_secs;
use crate::observer::{Observers, TrainEvent};
use crate::offline::End;
use crate::place::PlaceTask;
use crate::rl_state::{self, RlState};
use crate::rollout::{Decider, Job, Plan, Rollout, Rollouts, Seen};
use crate::run::RunFolder;
use crate::stop::StopFlag;

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

/// How often what happens, in updates; 0 is never.
#[derive(Clone, Debug)]
pub struct OnPolicyOptions {
    /// The run's name.
    pub name: String,
    /// Updates planned.
    pub total: u64,
    /// What an update learns from.
    pub supply: Supply,
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
        let seed = start.seed();
        let (mut request, _) = task.trial(seed, "rollouts", 0);
        request.options.init_state = task.init_states.map(|n| (seed % u64::from(n)) as u32);
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
#[expect(clippy::too_many_arguments, reason = "the parts of a run, each used as it is")]
pub fn train_on_policy(
    algo: &mut dyn OnPolicy<Actor = VlaPolicy>,
    rollouts: &mut Rollouts,
    schedule: &Schedule,
    mut acting: Option<&mut Acting>,
    run: &RunFolder,
    state: &mut RlState,
    options: &OnPolicyOptions,
    observers: &mut Observers,
    stop: &StopFlag,
) -> Result<End, TrainerError> {
    let start =
        TrainEvent::Started { update: state.update, total: options.total, name: &options.name };
    observers.notify(&start);
    let mut log = Log::default();
    while state.update < options.total {
        let started = Instant::now();
        let cpu = tree_secs().unwrap_or(0.0);
        state.rollouts = rollouts.state();
        let plan = match options.supply {
            Supply::Decisions(each) => {
                Plan::Decisions { each, next: &|env, k| schedule.of_env(env, k) }
            }
            Supply::Groups { groups, size } => {
                Plan::Episodes(schedule.groups(state.update, groups, size))
            }
        };
        let rollout = rollouts.collect(&mut Explorer(algo.actor()), plan, stop)?;
        if rollout.stopped {
            // Nothing was learned since the last update: the state from before this rollout goes on exactly.
            save(algo, run, state, options)?;
            observers.notify(&TrainEvent::Saved { update: state.update, path: run.root() });
            return Ok(End::Interrupted);
        }
        let acted = started.elapsed().as_secs_f64();
        let update = algo.update(&rollout.trajectories)?;
        state.update = algo.updates();
        state.rollouts = rollouts.state();
        state.env_steps += rollout.steps;
        state.episodes += rollout.episodes.len() as u64;
        state.faults += rollout.faults;
        state.lost += rollout.lost;
        state.trained_secs += started.elapsed().as_secs_f64();
        log.rollout(&rollout, acted, started.elapsed().as_secs_f64());
        judge_update(update, state, options.max_dropped, &mut log, observers)?;

        let done = state.update;
        let last = done == options.total;
        let due = |every: u64| every > 0 && (done.is_multiple_of(every) || last);
        if due(options.log_every) {
            let metrics = log.take(state);
            observers.notify(&TrainEvent::Updated { update: done, metrics: &metrics });
        }
        if due(options.evaluate_every)
            && !stop.is_set()
            && let Some(acting) = acting.as_deref_mut()
            && let Some(metrics) =
                acting.run(algo.actor_mut(), "training", options.episodes, stop)?
        {
            observers.notify(&TrainEvent::Evaluated { update: done, metrics: &metrics });
            if is_best(state, &metrics) {
                run.publish("best", |dir| Ok(save_policy(algo.actor(), dir)?))?;
            }
        }
        state.cpu_secs += tree_secs().unwrap_or(0.0) - cpu;
        let interrupted = stop.is_set() && !last;
        if due(options.save_every) || last || interrupted {
            save(algo, run, state, options)?;
            observers.notify(&TrainEvent::Saved { update: done, path: run.root() });
        }
        if interrupted {
            return Ok(End::Interrupted);
        }
    }
    Ok(End::Complete)
}

fn save(
    algo: &dyn OnPolicy<Actor = VlaPolicy>,
    run: &RunFolder,
    state: &RlState,
    options: &OnPolicyOptions,
) -> Result<(), TrainerError> {
    run.save(state.update, options.keep_last, |dir| {
        save_policy(algo.actor(), dir)?;
        rl_state::save(dir, &algo.state(), state)
    })?;
    Ok(())
}

/// Counts dropped updates; too many in a row end the run.
pub(crate) fn judge_update(
    update: Update,
    state: &mut RlState,
    max_dropped: u32,
    log: &mut Log,
    observers: &mut Observers,
) -> Result<(), TrainerError> {
    match update {
        Update::Applied(metrics) => {
            state.dropped_in_a_row = 0;
            log.add(&metrics);
        }
        Update::Dropped { tensor } => {
            state.dropped_in_a_row += 1;
            observers.notify(&TrainEvent::Dropped { update: state.update, tensor: &tensor });
            if state.dropped_in_a_row >= max_dropped {
                return Err(TrainerError::Diverged {
                    detail: format!(
                        "{} updates in a row had to be dropped, the last one because {tensor} is not finite; lower the \
                         learning rate or look at the environment",
                        state.dropped_in_a_row
                    ),
                });
            }
        }
    }
    Ok(())
}

/// Whether an evaluation is the best so far: more successes, or as many with a higher score.
pub(crate) fn is_best(state: &mut RlState, metrics: &Metrics) -> bool {
    let (Some(success), score) =
        (metrics.get("eval/success_rate"), metrics.get("eval/mean_score").copied().unwrap_or(0.0))
    else {
        return false;
    };
    let value = success + 1e-3 * score;
    let better = state.best.as_ref().is_none_or(|best| value > best.value);
    if better {
        let metric = "eval/success_rate".to_owned();
        state.best = Some(Best { metric, value, update: state.update });
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
