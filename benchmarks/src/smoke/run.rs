//! Running it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use serde::Serialize;
use simloop_trainers::stop::StopFlag;

use super::judge::{Change, judge, pair};
use super::plan::{DEMONSTRATIONS, SETTINGS, STAGES, Stage};
use crate::BenchError;

/// How to run it.
#[derive(Clone, Debug)]
pub struct SmokeOptions {
    /// Everything that is written; must be empty or missing.
    pub out: PathBuf,
    /// The folder that holds the programs `data` and `train`.
    pub programs: PathBuf,
    /// Episodes to judge each policy by.
    pub episodes: u32,
}

/// What came of a stage.
#[derive(Clone, Debug, Serialize)]
pub struct StageReport {
    /// The algorithm.
    pub algorithm: &'static str,
    /// Seconds of training, from the program's start to its end.
    pub train_secs: f64,
    /// Seconds of judging.
    pub judge_secs: f64,
    /// Before and after.
    pub change: Change,
}

/// What came of everything.
#[derive(Clone, Debug, Serialize)]
pub struct SmokeReport {
    /// Seconds from beginning to end.
    pub secs: f64,
    /// In the order of [`STAGES`].
    pub stages: Vec<StageReport>,
    /// Whether a resumed PPO run ended in the weights of an uninterrupted one.
    pub resumes: bool,
}

impl SmokeReport {
    /// Whether everything learned and resumed.
    pub fn passed(&self) -> bool {
        self.resumes && self.stages.iter().all(|s| s.change.learned)
    }
}

/// Runs everything; see the module.
///
/// # Errors
/// [`BenchError::Usage`] for a program that failed, with the end of what it said.
pub fn smoke(options: &SmokeOptions, stop: &StopFlag) -> Result<SmokeReport, BenchError> {
    let started = Instant::now();
    let out = &options.out;
    fs::create_dir_all(out).map_err(|e| BenchError::io(out, &e))?;
    if fs::read_dir(out).map_err(|e| BenchError::io(out, &e))?.next().is_some() {
        return Err(BenchError::folder(out, "it is not empty; give another folder"));
    }
    for (name, text) in SETTINGS {
        let path = out.join(name);
        fs::write(&path, text).map_err(|e| BenchError::io(&path, &e))?;
    }
    // libtorch's own threads would only wait for each other: the lanes below are the parallelism.
    tch::set_num_threads(1);
    let runner = Runner { options, stop };
    let demonstrations = DEMONSTRATIONS.to_string();
    let collect = ["collect", "pusht", "--obs", "environment_state_agent_pos", "--out", "demos"];
    runner.program(
        "data",
        &[&collect[..], &["--episodes", &demonstrations]].concat(),
        "collect",
    )?;
    let [first, rest @ ..] = &STAGES[..] else { return Err(BenchError::usage("run no stage")) };
    let first_secs = runner.train(first)?;

    // Two lanes take jobs from the front until none is left; the dearest come first.
    let mut jobs: Vec<Job<'_>> = rest.iter().map(Job::Stage).collect();
    jobs.push(Job::Judge(first, first_secs));
    jobs.push(Job::Resume);
    jobs.reverse();
    let jobs = Mutex::new(jobs);
    let lane = || -> Result<Vec<Done>, BenchError> {
        let mut done = Vec::new();
        loop {
            let job = jobs.lock().ok().and_then(|mut jobs| jobs.pop());
            let Some(job) = job else { return Ok(done) };
            done.push(match job {
                Job::Stage(stage) => {
                    let secs = runner.train(stage)?;
                    Done::Stage(runner.judged(stage, secs)?)
                }
                Job::Judge(stage, secs) => Done::Stage(runner.judged(stage, secs)?),
                Job::Resume => Done::Resume(runner.resumes()?),
            });
        }
    };
    let done = thread::scope(|scope| {
        let other = scope.spawn(lane);
        let mut done = lane()?;
        let theirs = other.join().map_err(|_| BenchError::usage("finish: a lane panicked"))?;
        done.extend(theirs?);
        Ok::<_, BenchError>(done)
    })?;
    let mut report = SmokeReport { secs: 0.0, stages: Vec::new(), resumes: false };
    for one in done {
        match one {
            Done::Stage(stage) => report.stages.push(stage),
            Done::Resume(same) => report.resumes = same,
        }
    }
    let place = |s: &StageReport| STAGES.iter().position(|known| known.algorithm == s.algorithm);
    report.stages.sort_by_key(place);
    report.secs = started.elapsed().as_secs_f64();
    Ok(report)
}

enum Job<'a> {
    Stage(&'a Stage),
    /// The stage was trained already.
    Judge(&'a Stage, f64),
    Resume,
}

enum Done {
    Stage(StageReport),
    Resume(bool),
}

struct Runner<'a> {
    options: &'a SmokeOptions,
    stop: &'a StopFlag,
}

impl Runner<'_> {
    /// Trains a stage into the folder of its name; returns its seconds.
    fn train(&self, stage: &Stage) -> Result<f64, BenchError> {
        let started = Instant::now();
        let name = stage.algorithm;
        let config = format!("{name}.toml");
        self.program("train", &[name, "--config", &config, "--output-dir", name], name)?;
        Ok(started.elapsed().as_secs_f64())
    }

    fn judged(&self, stage: &Stage, train_secs: f64) -> Result<StageReport, BenchError> {
        let started = Instant::now();
        let final_of = |name: &str| self.options.out.join(name).join("final");
        let policies = pair(stage.start, &final_of("bc"), &final_of(stage.algorithm))?;
        let change = judge(policies, stage, self.options.episodes, self.stop)?;
        let judge_secs = started.elapsed().as_secs_f64();
        Ok(StageReport { algorithm: stage.algorithm, train_secs, judge_secs, change })
    }

    /// Four small PPO updates in one go, and two and two: are the weights the same, byte for byte?
    fn resumes(&self) -> Result<bool, BenchError> {
        let small = ["rollout.envs=8", "rollout.decisions=10", "ppo.critic_warmup=1"];
        let ppo = |folder: &str, updates: u32, resume: bool| {
            let updates = format!("train.updates={updates}");
            let mut args = vec!["ppo", "--config", "ppo.toml", "--output-dir", folder];
            for set in small.iter().copied().chain([updates.as_str()]) {
                args.extend(["--set", set]);
            }
            if resume {
                args.push("--resume");
            }
            self.program("train", &args, &format!("{folder}-{updates}"))
        };
        ppo("whole", 4, false)?;
        ppo("parts", 2, false)?;
        ppo("parts", 4, true)?;
        let weights = |folder: &str| {
            let path = self.options.out.join(folder).join("final").join("model.safetensors");
            fs::read(&path).map_err(|e| BenchError::io(&path, &e))
        };
        Ok(weights("whole")? == weights("parts")?)
    }

    /// Runs a program in the output folder; what it says goes to `<log>.log` there.
    fn program(&self, name: &str, args: &[&str], log: &str) -> Result<(), BenchError> {
        if self.stop.is_set() {
            return Err(BenchError::usage("finish: interrupted"));
        }
        let program = self.options.programs.join(name);
        let path = self.options.out.join(format!("{log}.log"));
        let file = File::create(&path).map_err(|e| BenchError::io(&path, &e))?;
        let copy = file.try_clone().map_err(|e| BenchError::io(&path, &e))?;
        let status = Command::new(&program)
            .args(args)
            .current_dir(&self.options.out)
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(file)
            .status()
            .map_err(|e| BenchError::io(&program, &e))?;
        if status.success() {
            return Ok(());
        }
        Err(BenchError::usage(format!(
            "run `{name} {}` ({status}): {}",
            args.join(" "),
            tail(&path)
        )))
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
