//! Letting a policy act while it is being trained: the same episodes every time, through [`crate::evaluate()`].

use std::ops::ControlFlow;
use std::sync::Arc;

use simloop_algos::bc::Metrics;
use simloop_envs::pusht::{PushtConfig, PushtEnv, PushtObs};
use simloop_envs::seeding::episode_seed;
use simloop_envs::vec::SyncVecEnv;
use simloop_envs::wrappers::TimeLimit;
use simloop_envs::{Env, EnvFactory, FrameRequest, ResetOptions, ResetRequest, VecEnv as _};
use simloop_policies::Policy;

use crate::config::{EvalConfig, EvalEnv};
use crate::stop::StopFlag;
use crate::{Episode, EpisodeRecord, EvaluateOptions, Status, TrainerError, evaluate};

/// A place to act in.
pub struct Acting {
    vec: SyncVecEnv,
    task: &'static str,
    config: EvalConfig,
}

impl Acting {
    /// The place that `config` names; `obs` is what a PushT policy sees. `None` where it names none.
    pub fn new(config: &EvalConfig, obs: PushtObs) -> Option<Self> {
        let (factory, task): (EnvFactory, _) = match config.env {
            EvalEnv::None => return None,
            EvalEnv::Pusht => {
                let (env, limit) =
                    (PushtConfig { obs, ..PushtConfig::default() }, config.max_steps);
                let build = move |_| {
                    let env = TimeLimit::new(PushtEnv::new(env.clone())?, limit)?;
                    Ok(Box::new(env) as Box<dyn Env>)
                };
                (Arc::new(build), "pusht")
            }
        };
        Some(Self { vec: SyncVecEnv::new(&factory, config.envs), task, config: config.clone() })
    }

    /// Runs `episodes` episodes of the set called `set`; `None` if it was interrupted.
    ///
    /// # Errors
    /// What the environment or the policy answers; a policy whose actions mean something else.
    pub fn run(
        &mut self,
        policy: &mut dyn Policy,
        set: &str,
        episodes: u32,
        stop: &StopFlag,
    ) -> Result<Option<Metrics>, TrainerError> {
        if let Some(convention) = policy.convention() {
            convention.check_matches(&self.vec.spec()?.convention)?;
        }
        let episodes: Vec<Episode> = (0..episodes).map(|trial| self.episode(set, trial)).collect();
        let planned = episodes.len();
        let needs = policy.needs();
        let options = EvaluateOptions {
            frames: if needs.images { FrameRequest::Last } else { FrameRequest::None },
            ..EvaluateOptions::default()
        };
        let started = std::time::Instant::now();
        let mut records = Vec::with_capacity(planned);
        evaluate(&mut self.vec, policy, episodes, &options, stop, &mut |(record, _)| {
            records.push(record);
            Ok(ControlFlow::Continue(()))
        })?;
        if records.len() < planned {
            return Ok(None);
        }
        let mut metrics = summary(&records);
        metrics.insert("eval/secs", started.elapsed().as_secs_f64());
        Ok(Some(metrics))
    }

    fn episode(&self, set: &str, trial: u32) -> Episode {
        let node = episode_seed(self.config.seed, set, self.task, trial);
        Episode {
            task: self.task.to_owned(),
            trial,
            request: ResetRequest { seed: Some(node.seed()), options: ResetOptions::default() },
            noise: node.child("noise"),
        }
    }
}

/// Means over the episodes that ran to their end.
fn summary(records: &[EpisodeRecord]) -> Metrics {
    let ran: Vec<_> = records.iter().filter(|r| r.status != Status::Error).collect();
    let mean = |value: &dyn Fn(&EpisodeRecord) -> f64| {
        ran.iter().map(|r| value(r)).sum::<f64>() / ran.len().max(1) as f64
    };
    let mut metrics = Metrics::from([
        ("eval/episodes", ran.len() as f64),
        ("eval/errors", (records.len() - ran.len()) as f64),
    ]);
    if ran.is_empty() {
        return metrics;
    }
    metrics
        .insert("eval/success_rate", mean(&|r| f64::from(u8::from(r.status == Status::Success))));
    metrics.insert("eval/mean_score", mean(&|r| r.max_reward));
    metrics.insert("eval/mean_steps", mean(&|r| f64::from(r.steps)));
    let decisions = mean(&|r| f64::from(r.decisions));
    if decisions > 0.0 {
        metrics.insert("eval/secs_per_decision", mean(&|r| r.policy_secs) / decisions);
    }
    if ran.iter().all(|r| r.metrics.contains_key("coverage")) {
        let coverage = |r: &EpisodeRecord| r.metrics.get("coverage").map_or(0.0, |c| c.max);
        metrics.insert("eval/mean_max_coverage", mean(&coverage));
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_envs::ActionChunk;
    use simloop_policies::scripted::PushtExpert;
    use simloop_policies::{ExpertPolicy, RandomPolicy};

    #[test]
    fn the_same_policy_on_the_same_set_gives_the_same_numbers() {
        let config = EvalConfig { env: EvalEnv::Pusht, max_steps: 60, ..EvalConfig::default() };
        let run = |set: &str| {
            let mut acting = Acting::new(&config, PushtObs::State).unwrap();
            let space = acting.vec.spec().unwrap().action;
            let mut policy = RandomPolicy::new(space, 1);
            let metrics = acting.run(&mut policy, set, 4, &StopFlag::default()).unwrap().unwrap();
            (
                metrics["eval/mean_score"],
                metrics["eval/mean_max_coverage"],
                metrics["eval/episodes"],
            )
        };
        assert_eq!(run("a"), run("a"));
        assert_ne!(run("a"), run("b"));
        assert_eq!(run("a").2, 4.0);
        assert!(Acting::new(&EvalConfig::default(), PushtObs::State).is_none());
    }

    #[test]
    fn an_interrupted_evaluation_claims_nothing() {
        let config = EvalConfig { env: EvalEnv::Pusht, ..EvalConfig::default() };
        let mut acting = Acting::new(&config, PushtObs::State).unwrap();
        let hold = ActionChunk::single(&[256.0, 256.0]).unwrap();
        let mut policy = ExpertPolicy::new("scripted", hold, || Box::new(PushtExpert::new()));
        let stop = StopFlag::default();
        stop.set();
        assert_eq!(acting.run(&mut policy, "a", 4, &stop).unwrap(), None);
    }
}
