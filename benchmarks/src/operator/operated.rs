//! A trial from consent to verdict, as an environment: what the runner of simulated suites can run.
//!
//! # Details
//! 1. `reset` asks for consent (the arm moves), then for the scene (the clock starts). After a fault it first tells what was
//!    seen and what to do; after an emergency stop only the key to arm again releases it.
//! 2. The verdict ends the episode: by a key while it runs, or asked for at its last step. A partial success counts as a
//!    failure with credit (`credit` among the metrics).
//! 3. Void and fault are errors of the attempt: the runner starts the trial again, up to its number of attempts. A server that
//!    is not there, was not restarted or has no robot is no attempt: nothing moved, and the operator is asked again.
//! 4. Everything is written before the runner hears of it: video, trajectory, gate log, label.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::ArrayView1;
use simloop_envs::widowx::{Consent, Fault, FaultKind, Session, StepTrace, WidowXEnv};
use simloop_envs::{Env, EnvError, EnvSpec, Frame, Info, Observation, ResetOptions, Step};

use super::label::{self, Label, Verdict};
use super::recorder::Recorder;
use super::station::{Answer, Station};
use crate::BenchError;
use crate::ledger::file_stem;
use crate::video::video_stem;

/// The faults of a `reset` that moved nothing, and that the operator can mend.
const NOT_BEGUN: [&str; 3] = ["no_connection", "not_restarted", "test_mode"];

/// The name of the error by which an operator ends the run.
pub const QUIT: &str = "quit";

/// How trials are operated.
#[derive(Clone, Debug)]
pub struct OperatedOptions {
    /// The result folder.
    pub dir: PathBuf,
    /// The task's key.
    pub task: String,
    /// How many trials there are.
    pub trials: u32,
    /// Nobody is asked: consent is given by the command line and the simulated scene judges. Simulated arms only.
    pub unattended: bool,
    /// Whether videos are made.
    pub videos: bool,
    /// Seeds of the trials, so that a trial knows its number.
    pub seeds: BTreeMap<u64, u32>,
}

/// Attempts so far, by trial. Shared, because a faulted environment is built anew.
pub type Attempts = Arc<Mutex<BTreeMap<u32, u32>>>;

/// The robot with a person beside it.
pub struct OperatedEnv {
    env: WidowXEnv,
    options: OperatedOptions,
    station: Arc<Station>,
    session: Session,
    attempts: Attempts,
    trial: Option<Trial>,
}

struct Trial {
    number: u32,
    attempt: u32,
    steps: u32,
    max_steps: u32,
    solved: Option<bool>,
    last: Option<Observation>,
    traces: Vec<StepTrace>,
    events: Vec<String>,
    recorder: Option<Recorder>,
}

fn robot(kind: &'static str, detail: impl Into<String>) -> EnvError {
    EnvError::Robot { kind, detail: detail.into() }
}

impl OperatedEnv {
    /// Puts a person beside `env`.
    pub fn new(
        env: WidowXEnv,
        options: OperatedOptions,
        station: Arc<Station>,
        session: Session,
        attempts: Attempts,
    ) -> Self {
        Self { env, options, station, session, attempts, trial: None }
    }

    fn quit(&self) -> EnvError {
        self.station.run().set();
        robot(QUIT, "the operator ended the run")
    }

    /// Asks for everything that must be answered before the arm may move. `refused` is why it did not, at the last consent.
    fn consent(
        &mut self,
        number: u32,
        attempt: u32,
        refused: Option<&str>,
    ) -> Result<(), EnvError> {
        let operator = self.station.operator().to_owned();
        if self.options.unattended {
            self.session.consent(Consent::of(&operator));
            return Ok(());
        }
        let again = if attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
        self.station.update(|screen| {
            screen.heading = format!("trial {} of {}{again}", number + 1, self.options.trials);
            screen.live = false;
            screen.facts.clear();
        });
        let mut refused = refused.map(|why| format!("Nothing moved: {why} ")).unwrap_or_default();
        if let Some(fault) = self.session.unclean() {
            let words = format!("{refused}The last trial is void: {fault}");
            refused.clear();
            if self.station.ask(&words, &[('r', "the server was restarted")]) == Answer::Quit {
                return Err(self.quit());
            }
        }
        let stopped = self.station.stop().is_pressed();
        let words = if stopped {
            format!(
                "{refused}Emergency stop, pressed by {}. {} Arming releases it: the arm moves by itself, gripper open, to \
                 neutral and to the start.",
                self.station.stop().by(),
                FaultKind::EmergencyStop.remedy()
            )
        } else {
            format!(
                "{refused}The arm will move by itself: gripper open, to neutral and to the start. No limit holds for these \
                 motions of the server. Keep clear."
            )
        };
        match self.station.ask(&words, &[('a', "arm")]) {
            Answer::Key('a') => {
                let consent = Consent::of(&operator);
                // Also if it was pressed while the question stood: 'a' came after it, or the next check stops again.
                if stopped {
                    self.station.stop().release(&consent);
                }
                self.session.consent(consent);
                self.station.update(|screen| screen.live = true);
                Ok(())
            }
            _ => Err(self.quit()),
        }
    }

    /// Takes what the environment noted.
    fn collect(&mut self) {
        let events = self.env.take_events();
        let trace = self.env.take_trace();
        let Some(trial) = &mut self.trial else { return };
        if let Some(event) = events.last() {
            let what = event.what.clone();
            self.station.update(|screen| screen.gate = what);
        }
        trial.events.extend(events.into_iter().map(|event| event.what));
        if let Some(trace) = trace {
            let (steps, max) = (trial.steps, trial.max_steps);
            let [x, y, z, .., gripper] = trace.state;
            let facts = vec![
                ("step".to_owned(), format!("{steps} of {max}")),
                ("period".to_owned(), format!("{:.0} ms", 1e3 * trace.period_secs)),
                (
                    "image age".to_owned(),
                    format!("{:.0} ms at the command", 1e3 * trace.obs_age_secs),
                ),
                ("hand".to_owned(), format!("{x:+.3} {y:+.3} {z:+.3} m")),
                ("gripper".to_owned(), format!("{gripper:.2} (1 is open)")),
            ];
            self.station.update(|screen| screen.facts = facts);
            trial.traces.push(trace);
        }
        if let (Some(recorder), Some(obs)) = (&mut trial.recorder, self.env.robot_obs()) {
            recorder.push(obs);
        }
    }

    /// Writes everything about the attempt and tells what the runner needs: credit where it counts.
    fn close(
        &mut self,
        verdict: Verdict,
        credit: Option<f64>,
        fault: Option<&str>,
    ) -> Result<(), EnvError> {
        self.collect();
        let Some(trial) = self.trial.take() else { return Ok(()) };
        self.station.update(|screen| screen.live = false);
        let outcome = match verdict {
            Verdict::Success => "success".to_owned(),
            Verdict::Partial | Verdict::Failure => "failure".to_owned(),
            Verdict::Void | Verdict::Fault => format!("void{}", trial.attempt),
        };
        let stem = video_stem(0, trial.number as usize, &outcome);
        let recorded = trial.recorder.map(|recorder| recorder.finish(&stem)).unwrap_or_default();
        if let Some(note) = &recorded.note {
            tracing::warn!(trial = trial.number, "{note}");
        }
        let labeller = match (verdict, self.options.unattended) {
            (Verdict::Fault, _) => "simloop".to_owned(),
            (_, true) => "simulated scene".to_owned(),
            (_, false) => self.station.operator().to_owned(),
        };
        let write = || -> Result<(), BenchError> {
            let name = format!(
                "{}_ep{:04}_{}",
                file_stem(&self.options.task),
                trial.number,
                trial.attempt
            );
            let trajectory = format!("trajectories/{name}.jsonl");
            write_trajectory(&self.options.dir.join(&trajectory), &trial.traces, &trial.events)?;
            label::append(
                &self.options.dir,
                &Label {
                    task: self.options.task.clone(),
                    trial: trial.number,
                    attempt: trial.attempt,
                    verdict,
                    credit,
                    labeller,
                    at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    fault: fault.map(str::to_owned),
                    steps: trial.steps,
                    video: recorded.video.clone(),
                    trajectory: Some(trajectory.clone()),
                },
            )
        };
        write()
            .map_err(|e| EnvError::File { path: self.options.dir.clone(), detail: e.to_string() })
    }

    /// The verdict of a key; a part is asked for in tenths.
    fn verdict(&self, key: char) -> (Verdict, Option<f64>) {
        match key {
            's' => (Verdict::Success, Some(1.0)),
            'f' => (Verdict::Failure, Some(0.0)),
            'p' => {
                let tenths: Vec<(char, String)> =
                    ('1'..='9').map(|digit| (digit, format!("0.{digit}"))).collect();
                let keys: Vec<(char, &str)> =
                    tenths.iter().map(|(key, does)| (*key, does.as_str())).collect();
                match self.station.ask("How much of it was done, in tenths?", &keys) {
                    Answer::Key(digit) => {
                        (Verdict::Partial, digit.to_digit(10).map(|d| f64::from(d) / 10.0))
                    }
                    Answer::Quit => (Verdict::Void, None),
                }
            }
            _ => (Verdict::Void, None),
        }
    }

    /// Asks how the trial ended.
    fn judge(&self) -> Result<(Verdict, Option<f64>), EnvError> {
        if self.options.unattended {
            let solved = self.trial.as_ref().and_then(|trial| trial.solved) == Some(true);
            return Ok(self.verdict(if solved { 's' } else { 'f' }));
        }
        match self.station.ask("The trial is over. How did it end?", &VERDICTS) {
            Answer::Key(key) => Ok(self.verdict(key)),
            Answer::Quit => Err(self.quit()),
        }
    }

    /// After an emergency stop: whoever pressed it because of the policy says so, and it is a failure; otherwise the trial is
    /// void.
    fn stopped(&mut self, detail: String) -> Result<Step, EnvError> {
        let last = self.trial.as_mut().and_then(|trial| trial.last.take());
        let ask = !self.options.unattended && !self.station.run().is_set();
        if let (Some(obs), true) = (last, ask) {
            let words = "Emergency stop: nothing is sent. Did the policy make it necessary?";
            let keys = [('f', "yes: a failure"), ('v', "no: void")];
            if self.station.ask(words, &keys) == Answer::Key('f') {
                let why = format!("emergency_stop: {detail}");
                self.close(Verdict::Failure, Some(0.0), Some(&why))?;
                let metrics = BTreeMap::from([("credit".to_owned(), 0.0)]);
                let info = Info { success: Some(false), metrics, privileged: None };
                return Ok(Step { obs, reward: 0.0, terminated: true, truncated: false, info });
            }
        }
        Err(self.failed(EnvError::Robot { kind: "emergency_stop", detail }))
    }

    /// Ends the attempt by an error of the environment.
    fn failed(&mut self, error: EnvError) -> EnvError {
        let words = error.to_string();
        self.station.say(&words);
        let written = self.close(Verdict::Fault, None, Some(&words));
        written.err().unwrap_or(error)
    }
}

const VERDICTS: [(char, &str); 4] =
    [('s', "success"), ('p', "partial"), ('f', "failure"), ('v', "void")];

fn write_trajectory(
    path: &Path,
    traces: &[StepTrace],
    events: &[String],
) -> Result<(), BenchError> {
    let io = |e: std::io::Error| BenchError::io(path, &e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(io)?);
    let json = |e: serde_json::Error| BenchError::folder(path, e.to_string());
    for trace in traces {
        serde_json::to_writer(&mut file, trace).map_err(json)?;
        file.write_all(b"\n").map_err(io)?;
    }
    serde_json::to_writer(&mut file, &serde_json::json!({ "gate": events })).map_err(json)?;
    file.write_all(b"\n").and_then(|()| file.flush()).map_err(io)
}

impl Env for OperatedEnv {
    fn spec(&self) -> &EnvSpec {
        self.env.spec()
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        let number = seed.and_then(|seed| self.options.seeds.get(&seed).copied()).unwrap_or(0);
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            let attempt = attempts.entry(number).or_default();
            *attempt += 1;
            *attempt
        };
        self.consent(number, attempt, None)?;
        // The robot's own tasks have no names: the instruction is the task.
        let options = ResetOptions { task: None, ..options.clone() };
        let max_steps = self.env.spec().max_episode_steps.unwrap_or(0);
        let fps = self.env.spec().control_hz;
        let recorder = self.options.videos.then(|| {
            Recorder::start(
                &self.options.dir,
                fps,
                Arc::clone(&self.station),
                self.options.unattended,
            )
        });
        self.trial = Some(Trial {
            number,
            attempt,
            steps: 0,
            max_steps,
            solved: None,
            last: None,
            traces: Vec::new(),
            events: Vec::new(),
            recorder,
        });
        let begun = loop {
            match self.env.reset(seed, &options) {
                Err(EnvError::Robot { kind, detail })
                    if NOT_BEGUN.contains(&kind) && !self.options.unattended =>
                {
                    let why = format!("{kind}: {detail}");
                    self.station.say(&why);
                    if let Err(quit) = self.consent(number, attempt, Some(&why)) {
                        self.trial = None;
                        return Err(quit);
                    }
                }
                begun => break begun,
            }
        };
        match begun {
            Ok((obs, info)) => {
                self.collect();
                if let Some(trial) = &mut self.trial {
                    trial.last = Some(obs.clone());
                }
                Ok((obs, Info { success: None, ..info }))
            }
            // The operator left at the question that `Ready` asks.
            Err(EnvError::Robot { kind: "disarmed", .. }) if self.station.run().is_set() => {
                self.trial = None;
                Err(self.quit())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        let mut step = match self.env.step(action, frames) {
            Ok(step) => step,
            Err(EnvError::InvalidAction { detail }) => {
                // A policy that is broken here ends this trial, not the run; nothing was sent.
                let fault = Fault::new(FaultKind::NonFinite, detail);
                self.env.abort(fault.clone());
                return Err(self.failed(fault.into()));
            }
            Err(EnvError::Robot { kind: "emergency_stop", detail }) => {
                return self.stopped(detail);
            }
            Err(error) => return Err(self.failed(error)),
        };
        if let Some(trial) = &mut self.trial {
            trial.last = Some(step.obs.clone());
            trial.steps += 1;
            trial.solved = step.info.success;
        }
        self.collect();
        let early = self.station.pressed("spfv");
        let solved = self.options.unattended && step.info.success == Some(true);
        step.info.success = None;
        if early.is_none() && !solved && !step.truncated {
            return Ok(step);
        }
        self.env.finish();
        let (verdict, credit) = match early {
            Some(key) => self.verdict(key),
            None => match self.judge() {
                Ok(verdict) => verdict,
                Err(quit) => {
                    let why = "the operator left before judging";
                    self.close(Verdict::Void, None, Some(why))?;
                    return Err(quit);
                }
            },
        };
        if !verdict.counts() {
            self.close(verdict, None, None)?;
            return Err(robot("void", "the operator called the trial void"));
        }
        self.close(verdict, credit, None)?;
        step.terminated = early.is_some() || solved;
        step.truncated = !step.terminated;
        step.info.success = Some(verdict == Verdict::Success);
        step.info.metrics.insert("credit".to_owned(), credit.unwrap_or_default());
        Ok(step)
    }

    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        self.env.render()
    }
}
