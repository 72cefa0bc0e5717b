//! `bench widowx`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use simloop_envs::widowx::safety::{Limits, Workspace};
use simloop_envs::widowx::{
    ActionUnits, Deadlines, EmergencyStop, GripperMode, MAX_EPISODE_STEPS, PORT, Pose, Profile,
    WidowXConfig,
};
use simloop_trainers::TrainerError;
use simloop_trainers::stop::StopFlag;

use super::common::{InferenceArgs, command_line, default_dir};
use super::finish::{exit_code, label, print_summary, write_results};
use crate::BenchError;
use crate::ledger::Ledger;
use crate::operator::{Keys, QUIT, Station, label as labels};
use crate::outcome::{Session, append_session};
use crate::runner::{self, FolderMode, RunOptions, RunResult};
use crate::suites::widowx::{Robot, WidowXSuite};
use crate::videos::Video;

/// Whose evaluation is followed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileArg {
    /// OpenVLA's: pitched start pose, continuous gripper.
    Openvla,
    /// Octo's and BridgeData V2's: the server's start state, sticky gripper.
    Octo,
}

/// What the gripper number means.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum GripperArg {
    /// Sent as it is.
    Continuous,
    /// Below 0.5 closes.
    Binary,
    /// Binary, and only after --sticky-steps in a row.
    Sticky,
}

/// What a policy's first six numbers are.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "kebab-case")]
enum UnitsArg {
    /// Metres and radians.
    Metric,
    /// In [-1, 1]; un-normalised here with bridge_orig's quantiles.
    BridgeOrig,
}

/// Benchmark a policy on the real WidowX, judged by you.
#[derive(Debug, Args)]
pub(super) struct WidowXArgs {
    /// The robot server's host: this machine's end of an SSH tunnel, or the robot's computer.
    #[arg(long, required_unless_present_any = ["mock", "dry_run"])]
    host: Option<String>,
    /// Its port.
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// What the policy is told to do.
    #[arg(long)]
    task: String,
    /// A checkpoint folder, `hold` (asks for nothing), or with --mock `scripted` or `random`.
    #[arg(long, alias = "policy.path")]
    policy: String,
    /// How many trials.
    #[arg(long, default_value_t = 10, alias = "eval.n_episodes", value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// The box for the hand, metres in the base frame: x0,y0,z0,x1,y1,z1. There is no default: only you see the table.
    #[arg(long, value_name = "BOX", value_parser = parse_box, allow_hyphen_values = true)]
    workspace: Workspace,
    /// Drive a simulated arm.
    #[arg(long, conflicts_with = "dry_run")]
    mock: bool,
    /// Do everything but send: a simulated arm stands in, no connection is made.
    #[arg(long)]
    dry_run: bool,
    /// Ask nobody: the simulated scene judges. Only with --mock or --dry-run.
    #[arg(long)]
    unattended: bool,
    /// Whose evaluation is followed.
    #[arg(long, value_enum, default_value_t = ProfileArg::Openvla)]
    profile: ProfileArg,
    /// Where trials start, metres: x,y,z [default: the profile's].
    #[arg(long, value_name = "X,Y,Z", value_parser = parse_point, allow_hyphen_values = true)]
    start: Option<[f64; 3]>,
    /// What the gripper number means [default: the profile's].
    #[arg(long, value_enum)]
    gripper: Option<GripperArg>,
    /// Steps in a row that move a sticky gripper.
    #[arg(long, default_value_t = 1)]
    sticky_steps: u32,
    /// What the policy's first six numbers are.
    #[arg(long, value_enum, default_value_t = UnitsArg::Metric)]
    action_units: UnitsArg,
    /// Side of the observed image, pixels [default: what a checkpoint was trained on; 256 for others].
    #[arg(long)]
    image_size: Option<u32>,
    /// The robot's camera, as a ROS topic.
    #[arg(long, default_value = "/blue/image_raw")]
    camera_topic: String,
    /// Steps of a trial.
    #[arg(long, default_value_t = MAX_EPISODE_STEPS, value_parser = clap::value_parser!(u32).range(1..))]
    max_steps: u32,
    /// An action on an older observation is not sent, milliseconds.
    #[arg(long, default_value_t = 300)]
    max_obs_age_ms: u64,
    /// Largest speed of the hand along each axis, m/s.
    #[arg(long)]
    max_speed: Option<f64>,
    /// Largest acceleration along each axis, m/s².
    #[arg(long)]
    max_acceleration: Option<f64>,
    /// Who judges [default: $USER].
    #[arg(long)]
    operator: Option<String>,
    /// Attempts at a trial that ends void, before it counts as an error.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: u32,
    /// Exit with 0 although trials ended void or with faults.
    #[arg(long)]
    allow_errors: bool,
    /// Make no videos.
    #[arg(long)]
    no_videos: bool,
    #[command(flatten)]
    inference: InferenceArgs,
    /// Execute at most N actions of each chunk before deciding again [default: the policy's own number].
    #[arg(long, alias = "replan")]
    n_action_steps: Option<usize>,
    /// The run's seed: the policy's noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The result folder [default: outputs/eval/DATE/TIME_SUITE_POLICY].
    #[arg(long, alias = "output_dir", alias = "out")]
    output_dir: Option<PathBuf>,
    /// Go on with the run in the result folder.
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Replace the run in the result folder.
    #[arg(long)]
    overwrite: bool,
}

fn parse_numbers<const N: usize>(text: &str) -> Result<[f64; N], String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    let numbers: Vec<f64> = numbers.map_err(|e| format!("`{text}`: {e}"))?;
    numbers.try_into().map_err(|n: Vec<f64>| format!("{} numbers, expected {N}", n.len()))
}

fn parse_box(text: &str) -> Result<Workspace, String> {
    let [a, b, c, d, e, f] = parse_numbers::<6>(text)?;
    Workspace::new([a, b, c], [d, e, f]).map_err(|e| e.to_string())
}

fn parse_point(text: &str) -> Result<[f64; 3], String> {
    parse_numbers::<3>(text)
}

impl WidowXArgs {
    fn config(&self) -> WidowXConfig {
        let mut limits = Limits::at_5_hz(self.workspace);
        limits.max_obs_age = Duration::from_millis(self.max_obs_age_ms);
        // Whoever allows older observations allows longer silence and later answers; never less than the defaults.
        limits.hold_after = limits.hold_after.max(limits.max_obs_age);
        limits.max_answer = limits.max_answer.max(limits.max_obs_age);
        for (limit, given) in
            [(&mut limits.speed, self.max_speed), (&mut limits.acceleration, self.max_acceleration)]
        {
            if let Some(value) = given {
                limit[..3].fill(value);
            }
        }
        let mut config = match self.profile {
            ProfileArg::Openvla => WidowXConfig::openvla(&self.task, limits),
            ProfileArg::Octo => WidowXConfig::octo(&self.task, limits),
        };
        if let Some(position) = self.start {
            config.start = Some((Pose::openvla_start(position), Duration::from_millis(800)));
        }
        if let Some(gripper) = self.gripper {
            config.gripper = match gripper {
                GripperArg::Continuous => GripperMode::Continuous,
                GripperArg::Binary => GripperMode::Binary,
                GripperArg::Sticky => GripperMode::Sticky { steps: self.sticky_steps },
            };
        } else if config.profile == Profile::Octo {
            config.gripper = GripperMode::Sticky { steps: self.sticky_steps };
        }
        config.units = match self.action_units {
            UnitsArg::Metric => ActionUnits::Metric,
            UnitsArg::BridgeOrig => ActionUnits::BridgeOrig,
        };
        if let Some(side) = self.image_size {
            config.image_size = [side, side];
        }
        config.camera_topics = vec![self.camera_topic.clone()];
        config.max_steps = self.max_steps;
        // Nobody waits for a simulated arm that nobody looks at.
        config.paced = !(self.unattended && self.robot().is_simulated());
        config
    }

    fn robot(&self) -> Robot {
        match (&self.host, self.mock, self.dry_run) {
            (_, true, _) => Robot::Mock,
            (_, _, true) => Robot::DryRun,
            (host, ..) => Robot::Server { host: host.clone().unwrap_or_default(), port: self.port },
        }
    }

    fn folder(&self, suite: &str) -> PathBuf {
        let name = format!("{suite}_{}", label(&self.policy));
        self.output_dir.clone().unwrap_or_else(|| default_dir(&name))
    }
}

/// Runs `bench widowx`.
pub(super) fn run(args: &WidowXArgs) -> Result<ExitCode, BenchError> {
    let robot = args.robot();
    if args.unattended && !robot.is_simulated() {
        return Err(BenchError::usage(
            "drive a real robot unattended: somebody must sit beside it, arm it and judge",
        ));
    }
    let suite = WidowXSuite {
        env: args.config(),
        deadlines: Deadlines::default(),
        trials: args.trials,
        seed: args.seed,
        policy: args.policy.clone(),
        inference: args.inference.inference()?,
        n_action_steps: args.n_action_steps,
        fit_image_size: args.image_size.is_none(),
        dir: args.folder(if robot.is_simulated() { "widowx_simulated" } else { "widowx" }),
        unattended: args.unattended,
        videos: !args.no_videos,
        robot,
        session: simloop_envs::widowx::Session::default(),
    };
    suite.env.validate()?;
    let (stop, run) = stop_on_signals()?;
    suite.preflight(&stop)?;
    let person = args
        .operator
        .clone()
        .or_else(|| std::env::var("USER").ok())
        .filter(|name| !name.trim().is_empty());
    if person.is_none() && !args.unattended {
        return Err(BenchError::usage("know who judges: give --operator NAME"));
    }
    let operator = person.unwrap_or_else(|| "the command line".to_owned());
    let options = RunOptions {
        dir: suite.dir.clone(),
        mode: match (args.resume, args.overwrite) {
            (true, _) => FolderMode::Resume,
            (_, true) => FolderMode::Overwrite,
            _ => FolderMode::New,
        },
        workers: 1,
        sync: true,
        shard: None,
        shuffle: None,
        max_attempts: args.max_attempts,
        memory_limit_bytes: None,
        recycle_after: None,
        command: command_line(),
    };
    if args.overwrite {
        delete_trials(&suite)?;
    }
    let keys = Keys::listen(stop.clone());
    let station = Arc::new(Station::new(keys, stop, run.clone(), &operator));
    let (dry, session) = (suite.robot == Robot::DryRun, suite.session.clone());
    let mut built = suite.build(&station)?;
    let started = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let result = match runner::run(&mut built, &options, None, &run) {
        Ok(result) => result,
        // The operator left: what was recorded until then is the result.
        Err(BenchError::Run(TrainerError::Env(simloop_envs::EnvError::Robot {
            kind: QUIT,
            ..
        }))) => recorded(&options)?,
        Err(error) => return Err(error),
    };
    drop(station);
    let mut notes = Vec::new();
    if dry {
        notes.push(
            "A dry run: nothing was sent to a robot. It says nothing about the policy.".to_owned(),
        );
    }
    notes.extend(session.known_before().map(str::to_owned));
    finish(&options, &result, &started, args, &operator, notes)
}

fn recorded(options: &RunOptions) -> Result<RunResult, BenchError> {
    let (ledger, manifest) = Ledger::open(&options.dir)?;
    Ok(RunResult {
        manifest,
        records: ledger.records().to_vec(),
        wall_secs: 0.0,
        decision_times: None,
        fresh: 0,
        known: 0,
        interrupted: true,
        decided: None,
    })
}

fn finish(
    options: &RunOptions,
    result: &RunResult,
    started: &str,
    args: &WidowXArgs,
    operator: &str,
    mut notes: Vec<String>,
) -> Result<ExitCode, BenchError> {
    if result.fresh > 0 {
        append_session(
            &options.dir,
            &Session {
                started: started.to_owned(),
                wall_secs: result.wall_secs,
                episodes: result.records.len().saturating_sub(result.known),
                workers: 1,
                decision_times: result.decision_times,
            },
        )?;
    }
    if result.interrupted {
        notes.push("The run was interrupted; --resume goes on with it.".to_owned());
    }
    let given = labels::read(&options.dir);
    let void = given.iter().filter(|label| !label.verdict.counts()).count();
    notes.push(if args.unattended {
        "Verdicts come from the simulated scene.".to_owned()
    } else {
        format!(
            "Verdicts are a person's ({operator}), given while watching the trial: not blind to the policy. A partial success \
             counts as a failure; its credit is among the metrics."
        )
    });
    if void > 0 {
        notes.push(format!(
            "{void} attempts were void (the operator's word, or a fault of the robot or its link) and count neither way."
        ));
    }
    let summary = write_results(
        &options.dir,
        &result.manifest,
        &result.records,
        &videos(&options.dir, &given),
        notes,
    )?;
    print_summary(&summary, &options.dir);
    Ok(exit_code(&summary.headline, result, args.allow_errors))
}

/// The videos of the attempts that count.
fn videos(dir: &std::path::Path, given: &[labels::Label]) -> BTreeMap<(String, u32), Video> {
    let counting = given.iter().filter(|label| label.verdict.counts());
    let named = counting.filter_map(|label| Some((label, label.video.clone()?)));
    named
        .map(|(label, path)| {
            let thumbnail = std::fs::read(dir.join(&path).with_extension("png")).ok();
            ((label.task.clone(), label.trial), Video { path, thumbnail })
        })
        .collect()
}

/// Deletes what a run of this suite leaves beside the ledger's own files.
fn delete_trials(suite: &WidowXSuite) -> Result<(), BenchError> {
    // Only in a folder that holds a run: the ledger refuses or replaces the rest.
    if !suite.dir.join(crate::ledger::MANIFEST_FILE).exists() {
        return Ok(());
    }
    for name in [labels::LABELS_FILE, "trajectories"] {
        let path = suite.dir.join(name);
        let result = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        match result {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(BenchError::io(&path, &e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Ctrl-C, SIGTERM and a lost terminal press the emergency stop and end the run. A second Ctrl-C ends the program at once.
fn stop_on_signals() -> Result<(EmergencyStop, StopFlag), BenchError> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let (stop, run) = (EmergencyStop::default(), StopFlag::default());
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Order matters: the shutdown looks at the flag before this signal sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 130, run.inner())
            .and_then(|_| signal_hook::flag::register(signal, stop.flag()))
            .and_then(|_| signal_hook::flag::register(signal, run.inner()))
            .map_err(|e| BenchError::usage(format!("watch for signals: {e}")))?;
    }
    Ok((stop, run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_and_points_are_checked() {
        assert_eq!(parse_point("0.3,-0.09, 0.26"), Ok([0.3, -0.09, 0.26]));
        let workspace = parse_box("0.15,-0.18,0.02,0.44,0.22,0.29").unwrap();
        assert_eq!(workspace.low, [0.15, -0.18, 0.02]);
        for wrong in ["0.1", "1,2,3,0,0,0", "a,b,c,d,e,f", "0,0,0,nan,1,1"] {
            assert!(parse_box(wrong).is_err(), "{wrong}");
        }
    }
}
