//! Running a suite: workers, progress, ledger, resume.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::Array2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use simloop_envs::vec::{SyncVecEnv, ThreadedVecEnv};
use simloop_envs::{EnvFactory, VecEnv};
use simloop_trainers::stop::StopFlag;
use simloop_trainers::{EpisodeRecord, EvaluateOptions, TrainerError, evaluate};

use crate::BenchError;
use crate::ledger::{Ledger, RunManifest};
use crate::progress::EvalProgress;
use crate::sequential::Monitor;
use crate::suites::SuiteRun;
use crate::timing::{DecisionTimes, Timed};

/// What to do with a result folder that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderMode {
    /// Refuse.
    New,
    /// Go on with it.
    Resume,
    /// Delete the run in it first.
    Overwrite,
}

/// Where environments live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WorkerKind {
    /// All on one thread.
    Sync,
    /// Worker threads of this process.
    Threads,
    /// Child processes.
    Processes,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The result folder.
    pub dir: PathBuf,
    /// What to do if it exists.
    pub mode: FolderMode,
    /// How many environments run at once.
    pub workers: usize,
    /// Whether `workers` threads share them or everything stays on one.
    pub sync: bool,
    /// Run only episodes `i` with `i % n == k`, as `(k, n)`.
    pub shard: Option<(u32, u32)>,
    /// Run the episodes in an order shuffled by this seed (proves that order decides nothing).
    pub shuffle: Option<u64>,
    /// Starts per episode before it counts as an error.
    pub max_attempts: u32,
    /// Rebuild a worker whose process uses more memory.
    pub memory_limit_bytes: Option<u64>,
    /// Rebuild a worker after so many episodes.
    pub recycle_after: Option<u32>,
    /// The command line, for the manifest.
    pub command: String,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct RunResult {
    /// What was asked for.
    pub manifest: RunManifest,
    /// All episodes recorded, also by earlier runs.
    pub records: Vec<EpisodeRecord>,
    /// Wall time of this run's rollouts, seconds.
    pub wall_secs: f64,
    /// How long this run's decisions took; `None` without one.
    pub decision_times: Option<DecisionTimes>,
    /// Episodes that were left to do when this run began.
    pub fresh: usize,
    /// Episodes that earlier runs had recorded.
    pub known: usize,
    /// Whether Ctrl-C or SIGTERM cut it short.
    pub interrupted: bool,
    /// What the sequential monitor decided, and after how many episodes.
    pub decided: Option<(String, usize)>,
}

/// How often the ledger is forced to the disk.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// Runs a suite into a result folder.
///
/// # Errors
/// [`BenchError`]; what was recorded until then stays in the folder for `--resume`.
pub fn run(
    suite: &mut SuiteRun,
    options: &RunOptions,
    monitor: Option<&mut Monitor>,
    stop: &StopFlag,
) -> Result<RunResult, BenchError> {
    let manifest = manifest(suite, options);
    let mut ledger = open_ledger(&options.dir, options.mode, &manifest)?;
    let mut todo: Vec<_> = suite.episodes.clone();
    if let Some((k, n)) = options.shard {
        todo = todo
            .into_iter()
            .enumerate()
            .filter(|(i, _)| *i as u32 % n == k)
            .map(|(_, e)| e)
            .collect();
    }
    let planned = todo.len() as u64;
    let order: Vec<_> = todo.iter().map(|e| (e.task.clone(), e.trial)).collect();
    todo.retain(|e| !ledger.contains(&e.task, e.trial));
    if let Some(seed) = options.shuffle {
        todo.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    }
    let mut ordered =
        monitor.map(|monitor| Ordered { monitor, order, next: 0, early: BTreeMap::new() });
    if let Some(ordered) = &mut ordered {
        ordered.monitor.check(&manifest)?;
        ordered.catch_up(&ledger);
    }
    let (fresh, known) = (todo.len(), ledger.records().len());
    let mut progress = EvalProgress::new(&suite.suite, planned, ledger.records());
    let started = Instant::now();
    let mut last_sync = Instant::now();
    let decided_already = ordered.as_ref().is_some_and(|o| o.monitor.verdict().is_some());
    let (mut outcome, mut decision_times) = (Ok(()), None);
    if !todo.is_empty() && !decided_already {
        let mut vec = vectorise(&suite.factory, options, todo.len())?;
        let evaluate_options = EvaluateOptions {
            frames: suite.frames,
            n_action_steps: suite.n_action_steps,
            min_ready: suite.min_ready.clamp(1, vec.num_envs()),
            max_attempts: options.max_attempts,
            memory_limit_bytes: options.memory_limit_bytes,
            recycle_after: options.recycle_after,
        };
        let mut sink = |(record, actions): (EpisodeRecord, Array2<f32>)| {
            let sink_error = |e: BenchError| TrainerError::Sink { detail: e.to_string() };
            let finished = match &mut ordered {
                Some(ordered) => ordered.in_order(record, actions),
                None => vec![(record, actions)],
            };
            for (record, actions) in finished {
                progress.episode(&record);
                ledger.append(record, &actions).map_err(sink_error)?;
            }
            if last_sync.elapsed() >= SYNC_EVERY {
                ledger.sync().map_err(sink_error)?;
                last_sync = Instant::now();
            }
            let decided =
                ordered.as_ref().is_some_and(|ordered| ordered.monitor.verdict().is_some());
            Ok(if decided { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let mut policy = Timed::new(suite.policy.as_mut());
        outcome = evaluate(vec.as_mut(), &mut policy, todo, &evaluate_options, stop, &mut sink);
        decision_times = policy.times();
    }
    progress.finish();
    ledger.sync()?;
    outcome?;
    let decided = ordered.and_then(|o| o.monitor.verdict().map(|verdict| (verdict, o.next)));
    Ok(RunResult {
        manifest,
        records: ledger.records().to_vec(),
        wall_secs: started.elapsed().as_secs_f64(),
        decision_times,
        fresh,
        known,
        interrupted: stop.is_set(),
        decided,
    })
}

/// Feeds a monitor in the protocol's order, whatever order episodes finish in, and lets go of an episode only when it is
/// its turn: what is recorded when the monitor decides is the same for any number of workers.
struct Ordered<'a> {
    monitor: &'a mut Monitor,
    order: Vec<(String, u32)>,
    next: usize,
    early: BTreeMap<(String, u32), (EpisodeRecord, Array2<f32>)>,
}

impl Ordered<'_> {
    /// Hands over every recorded episode that is next in order.
    fn catch_up(&mut self, ledger: &Ledger) {
        while self.monitor.verdict().is_none()
            && let Some((task, trial)) = self.order.get(self.next)
            && let Some(record) = ledger.get(task, *trial)
        {
            self.monitor.observe(record);
            self.next += 1;
        }
    }

    /// Takes in an episode and returns those whose turn it is now, up to the decision.
    fn in_order(
        &mut self,
        record: EpisodeRecord,
        actions: Array2<f32>,
    ) -> Vec<(EpisodeRecord, Array2<f32>)> {
        self.early.insert((record.task.clone(), record.trial), (record, actions));
        let mut ready = Vec::new();
        while self.monitor.verdict().is_none()
            && let Some(finished) = self.order.get(self.next).and_then(|key| self.early.remove(key))
        {
            self.monitor.observe(&finished.0);
            self.next += 1;
            ready.push(finished);
        }
        ready
    }
}

fn manifest(suite: &SuiteRun, options: &RunOptions) -> RunManifest {
    RunManifest {
        format: RunManifest::current_format(),
        suite: suite.suite.clone(),
        protocol: suite.protocol.clone(),
        protocol_lines: suite.protocol_lines.clone(),
        policy: suite.policy_label.clone(),
        seed: suite.seed,
        tasks: suite.tasks.clone(),
        trials: suite.trials,
        fingerprint: suite.fingerprint.clone(),
        command: options.command.clone(),
    }
}

fn open_ledger(dir: &Path, mode: FolderMode, manifest: &RunManifest) -> Result<Ledger, BenchError> {
    match mode {
        FolderMode::New => Ledger::create(dir, manifest),
        FolderMode::Overwrite => {
            Ledger::delete(dir)?;
            Ledger::create(dir, manifest)
        }
        FolderMode::Resume if !dir.join(crate::ledger::MANIFEST_FILE).exists() => {
            Ledger::create(dir, manifest)
        }
        FolderMode::Resume => {
            let (ledger, theirs) = Ledger::open(dir)?;
            let differences = theirs.differences(manifest, true);
            if differences.is_empty() {
                return Ok(ledger);
            }
            let list = differences.join("\n  ");
            Err(BenchError::folder(
                dir,
                format!("holds another run; it cannot be resumed with these changes:\n  {list}"),
            ))
        }
    }
}

fn vectorise(
    factory: &EnvFactory,
    options: &RunOptions,
    episodes: usize,
) -> Result<Box<dyn VecEnv>, BenchError> {
    let envs = options.workers.clamp(1, episodes);
    if options.sync {
        return Ok(Box::new(SyncVecEnv::new(factory, envs)));
    }
    Ok(Box::new(ThreadedVecEnv::new(&Arc::clone(factory), envs, envs)?))
}
