//! Letting a policy act while it is being trained: the same episodes every time, through [`crate::evaluate()`].

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::Array2;
use simloop_algos::Metrics;
use simloop_envs::pusht::{PushtGoals, PushtObs};
use simloop_envs::{Env, EnvFactory, EnvId, ResetRequest, VecEnv};
use simloop_policies::Policy;
use simloop_policies::vla::PolicyIo;

use crate::config::{EvalConfig, EvalEnv};
use crate::cpu::TorchThreads;
use crate::evaluate::Finished;
use crate::heartbeat::Heartbeat;
use crate::place::{Place, PlaceConfig, PlaceTask};
use crate::stats::proportion::wilson;
use crate::stats::{Alpha, Rate};
use crate::stop::StopFlag;
use crate::video::{VideoError, VideoFormat, VideoWriter, film};
use crate::{Episode, EpisodeRecord, EvaluateOptions, Status, TrainerError, evaluate};

/// A place to act in.
pub struct Acting {
    vec: Box<dyn VecEnv>,
    tasks: Vec<PlaceTask>,
    config: EvalConfig,
    /// Builds an environment that shows something to people.
    viewer: EnvFactory,
    films: Option<Films>,
    torch_threads: Option<i32>,
}

/// Where films go.
struct Films {
    folder: PathBuf,
    /// What films, once something was filmed.
    env: Option<Box<dyn Env>>,
}

impl Films {
    fn write(
        &mut self,
        request: &ResetRequest,
        record: &EpisodeRecord,
        actions: &Array2<f32>,
        stem: &str,
    ) -> Result<(), VideoError> {
        let Some(env) = &mut self.env else { return Ok(()) };
        let fps = env.spec().control_hz;
        let mut writer = VideoWriter::create(&self.folder, fps, VideoFormat::default())?;
        film(env.as_mut(), request, actions.view(), &record.trace, &mut writer)?;
        writer.finish(stem).map(drop)
    }
}

impl Acting {
    /// The place that `config` names; `obs` is what a PushT policy sees. `None` where it names none.
    ///
    /// # Errors
    /// What building the place answers.
    pub fn new(config: &EvalConfig, obs: PushtObs) -> Result<Option<Self>, TrainerError> {
        let goals = match config.env {
            EvalEnv::None => return Ok(None),
            EvalEnv::Pusht => PushtGoals::One,
            EvalEnv::PushtTwoGoals => PushtGoals::Two,
        };
        let max_steps = config.max_steps;
        let place = PlaceConfig::Pusht { obs, goals, max_steps, processes: false };
        Self::at(&Place::new(&place, false)?, config).map(Some)
    }

    /// At `place`.
    ///
    /// # Errors
    /// [`TrainerError::Env`] if the system refuses a thread.
    pub fn at(place: &Place, config: &EvalConfig) -> Result<Self, TrainerError> {
        let vec = place.vec(config.envs, 0)?;
        let (tasks, viewer) = (place.tasks.clone(), Arc::clone(&place.viewer));
        Ok(Self { vec, tasks, config: config.clone(), viewer, films: None, torch_threads: None })
    }

    /// Computes on so many threads of libtorch while it acts; `None` leaves them as they are.
    #[must_use]
    pub fn with_torch_threads(mut self, threads: Option<i32>) -> Self {
        self.torch_threads = threads;
        self
    }

    /// Films episodes of [`Acting::judge`] into `folder`, as many as the settings say.
    pub fn film_into(&mut self, folder: &Path) {
        self.films = Some(Films { folder: folder.to_owned(), env: None });
    }

    /// [`Acting::run`] between updates, on the set that choices are made on, with films.
    ///
    /// # Errors
    /// As [`Acting::run`]; what goes wrong while filming is only logged.
    pub fn judge(
        &mut self,
        policy: &mut dyn Policy,
        update: u64,
        stop: &StopFlag,
    ) -> Result<Option<Metrics>, TrainerError> {
        let started = std::time::Instant::now();
        let episodes = self.config.episodes;
        let Some(finished) = self.finished(policy, "training", episodes, stop)? else {
            return Ok(None);
        };
        self.film(&finished, update);
        let records: Vec<_> = finished.into_iter().map(|(record, _)| record).collect();
        let mut metrics = summary(&records);
        metrics.insert("eval/secs", started.elapsed().as_secs_f64());
        Ok(Some(metrics))
    }

    /// Films the first episodes that were solved and that were not. What cannot be filmed costs its film alone; where
    /// nothing renders, there are none from then on.
    fn film(&mut self, finished: &[Finished], update: u64) {
        let Some(mut films) = self.films.take() else { return };
        let first = |status| {
            let of = finished.iter().enumerate().filter(move |(_, (r, _))| r.status == status);
            of.take(self.config.videos as usize)
        };
        for (number, (record, actions)) in first(Status::Success).chain(first(Status::Failure)) {
            let outcome = if record.status == Status::Success { "success" } else { "failure" };
            let stem = format!("update{update:08}_ep{number:04}_{outcome}");
            let request = self.episode("training", number as u32).request;
            if films.env.is_none() {
                match (self.viewer)(EnvId(0)) {
                    Ok(env) => films.env = Some(env),
                    Err(e) => {
                        tracing::warn!("no videos in this run: {e}");
                        return;
                    }
                }
            }
            if let Err(e) = films.write(&request, record, actions, &stem) {
                tracing::warn!("no video `{stem}`: failed to {e}");
                films.env = None;
            }
        }
        self.films = Some(films);
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
        let started = std::time::Instant::now();
        let Some(records) = self.records(policy, set, episodes, stop)? else { return Ok(None) };
        let mut metrics = summary(&records);
        metrics.insert("eval/secs", started.elapsed().as_secs_f64());
        Ok(Some(metrics))
    }

    /// The records of `episodes` episodes of the set called `set`, in their order; `None` if it was interrupted. They
    /// are dealt to the tasks in turn.
    ///
    /// # Errors
    /// As [`Acting::run`].
    pub fn records(
        &mut self,
        policy: &mut dyn Policy,
        set: &str,
        episodes: u32,
        stop: &StopFlag,
    ) -> Result<Option<Vec<EpisodeRecord>>, TrainerError> {
        let finished = self.finished(policy, set, episodes, stop)?;
        Ok(finished.map(|all| all.into_iter().map(|(record, _)| record).collect()))
    }

    fn finished(
        &mut self,
        policy: &mut dyn Policy,
        set: &str,
        episodes: u32,
        stop: &StopFlag,
    ) -> Result<Option<Vec<Finished>>, TrainerError> {
        if let Some(convention) = policy.convention() {
            convention.check_matches(&self.vec.spec()?.convention)?;
        }
        let episodes: Vec<Episode> = (0..episodes).map(|trial| self.episode(set, trial)).collect();
        let planned = episodes.len();
        let options =
            EvaluateOptions { frames: policy.needs().frames(), ..EvaluateOptions::default() };
        let mut records = Vec::with_capacity(planned);
        let _threads = TorchThreads::hold(self.torch_threads);
        let mut heart = Heartbeat::new("episodes judged", planned);
        evaluate(self.vec.as_mut(), policy, episodes, &options, stop, &mut |finished| {
            records.push(finished);
            heart.tick(|| records.len());
            Ok(ControlFlow::Continue(()))
        })?;
        if records.len() < planned {
            return Ok(None);
        }
        let place = |task: &str| self.tasks.iter().position(|t| t.key == task);
        records.sort_by_key(|(r, _): &Finished| (r.trial, place(&r.task)));
        Ok(Some(records))
    }

    fn episode(&self, set: &str, number: u32) -> Episode {
        let n = self.tasks.len() as u32;
        let (task, trial) = (&self.tasks[(number % n) as usize], number / n);
        let (request, noise) = task.trial(self.config.seed, set, trial);
        Episode { task: task.key.clone(), trial, request, noise }
    }
}

/// The observation type that shows a policy what it was trained on, and the side of its image; `cameras` are those that it
/// looks through.
///
/// # Errors
/// [`TrainerError::Config`] where PushT has none.
pub fn pusht_observation_of(
    io: &PolicyIo,
    cameras: &[String],
) -> Result<(PushtObs, Option<u32>), TrainerError> {
    let obs = match (cameras.len(), io.proprio.len()) {
        (0, 5) => PushtObs::State,
        (0, 18) => PushtObs::EnvironmentStateAgentPos,
        (1, 0) => PushtObs::Pixels,
        (1, 2) => PushtObs::PixelsAgentPos,
        (looks, numbers) => {
            return Err(TrainerError::config(format!(
                "show PushT to this policy: it was trained on {looks} cameras and {numbers} numbers ({}); PushT shows 5 \
                 (state) or 18 (environment_state_agent_pos) without a camera, or none (pixels) or 2 (pixels_agent_pos) \
                 with one",
                io.proprio.join(", ")
            )));
        }
    };
    let side = cameras.first().and_then(|name| io.cameras.get(name)).map(|size| size.height);
    Ok((obs, side))
}

/// Means over the episodes that ran to their end.
pub fn summary(records: &[EpisodeRecord]) -> Metrics {
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
    let solved = ran.iter().filter(|r| r.status == Status::Success).count() as u64;
    let rate = Rate::from_parts(solved, ran.len() as u64 - solved);
    let interval = wilson(rate, Alpha::default());
    metrics.extend([
        ("eval/success_rate", rate.fraction().unwrap_or(0.0)),
        ("eval/success_low", interval.low),
        ("eval/success_high", interval.high),
    ]);
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
            let mut acting = Acting::new(&config, PushtObs::State).unwrap().unwrap();
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
        assert!(Acting::new(&EvalConfig::default(), PushtObs::State).unwrap().is_none());
    }

    #[test]
    fn a_judgement_leaves_a_film_of_a_success_and_of_a_failure() {
        let config =
            EvalConfig { env: EvalEnv::Pusht, episodes: 3, max_steps: 90, ..EvalConfig::default() };
        // The expert wants the true state.
        let (obs, goals) = (PushtObs::State, PushtGoals::One);
        let place = PlaceConfig::Pusht { obs, goals, max_steps: 90, processes: false };
        let mut acting = Acting::at(&Place::new(&place, true).unwrap(), &config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let hold = ActionChunk::single(&[256.0, 256.0]).unwrap();
        let mut policy = ExpertPolicy::new("scripted", hold, || Box::new(PushtExpert::new()));
        let stop = StopFlag::default();
        // Nobody asked for films yet.
        let quiet = acting.judge(&mut policy, 7, &stop).unwrap().unwrap();
        acting.film_into(folder.path());
        let filmed = acting.judge(&mut policy, 8, &stop).unwrap().unwrap();
        assert_eq!(quiet["eval/success_rate"], filmed["eval/success_rate"]);
        let names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        let solved = filmed["eval/success_rate"];
        assert_eq!(names.len(), usize::from(solved > 0.0) + usize::from(solved < 1.0), "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("update00000008_ep000")), "{names:?}");
        assert!(names.iter().any(|name| name.contains("_success.")), "{names:?}");
    }

    #[test]
    fn an_interrupted_evaluation_claims_nothing() {
        let config = EvalConfig { env: EvalEnv::Pusht, ..EvalConfig::default() };
        let mut acting = Acting::new(&config, PushtObs::State).unwrap().unwrap();
        let hold = ActionChunk::single(&[256.0, 256.0]).unwrap();
        let mut policy = ExpertPolicy::new("scripted", hold, || Box::new(PushtExpert::new()));
        let stop = StopFlag::default();
        stop.set();
        assert_eq!(acting.run(&mut policy, "a", 4, &stop).unwrap(), None);
    }
}
