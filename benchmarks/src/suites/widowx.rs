//! The real WidowX as a benchmark: one task, trials judged by a person.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use simloop_envs::widowx::{
    Arm, CAMERA, Deadlines, EmergencyStop, Fault, FaultKind, GripperMode, MockArm, RobotClient,
    RobotObs, Session, WidowXConfig, WidowXEnv,
};
use simloop_envs::{
    ActionChunk, ActionConvention, Env, EnvError, EnvFactory, EnvId, FrameRequest, Info,
    Observation, ResetOptions,
};
use simloop_policies::scripted::WidowXExpert;
use simloop_policies::{
    ActMode, ActRequest, ExpertPolicy, Needs, Policy, PolicyError, PolicyStep, RandomPolicy,
};

use super::policy::{self, Checkpoint, Foreign, Inference, Named};
use super::pusht::{adapted, camera_of};
use super::{SuiteRun, episode, fingerprint};
use crate::BenchError;
use crate::ledger::{ProtocolLine, TaskEntry};
use crate::operator::{Answer, OperatedEnv, OperatedOptions, Station};

/// The name of a policy that asks for nothing: to try a set-up.
pub const HOLD: &str = "hold";

/// Which arm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Robot {
    /// The robot server at a host and port.
    Server {
        /// A name or an address.
        host: String,
        /// The port, 5556 unless it is forwarded.
        port: u16,
    },
    /// A simulated arm.
    Mock,
    /// A simulated arm in the place of the real one: everything is done but sending.
    DryRun,
}

impl Robot {
    fn suite(&self) -> &'static str {
        match self {
            Self::Server { .. } => "widowx",
            Self::Mock => "widowx_mock",
            Self::DryRun => "widowx_dry_run",
        }
    }

    /// Whether no real arm moves.
    pub fn is_simulated(&self) -> bool {
        !matches!(self, Self::Server { .. })
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct WidowXSuite {
    /// The robot's settings.
    pub env: WidowXConfig,
    /// Which arm.
    pub robot: Robot,
    /// How long each request may take.
    pub deadlines: Deadlines,
    /// How many trials.
    pub trials: u32,
    /// The run's seed.
    pub seed: u64,
    /// A checkpoint folder, `hold`, or with a simulated arm `scripted` or `random`.
    pub policy: String,
    /// How a checkpoint computes.
    pub inference: Inference,
    /// Execute at most so many actions of each chunk.
    pub n_action_steps: Option<usize>,
    /// Show a checkpoint images of the size that it was trained on.
    pub fit_image_size: bool,
    /// The result folder.
    pub dir: PathBuf,
    /// Nobody is asked (simulated arms only).
    pub unattended: bool,
    /// Whether videos are made.
    pub videos: bool,
    /// What is known of the robot server, for as long as the run lasts.
    pub session: Session,
}

impl WidowXSuite {
    /// Puts the suite together. Nothing is sent to the robot.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for a policy that does not exist or does not fit; [`BenchError::Policy`] for a damaged
    /// checkpoint; [`BenchError::Env`] for settings that cannot be.
    pub fn build(mut self, station: &Arc<Station>) -> Result<SuiteRun, BenchError> {
        if self.unattended && !self.robot.is_simulated() {
            return Err(BenchError::usage(
                "drive a real robot unattended: somebody must sit beside it, arm it and judge",
            ));
        }
        self.env.validate()?;
        let found = match self.policy.as_str() {
            HOLD => None,
            "scripted" | "random" if !self.robot.is_simulated() => {
                return Err(BenchError::usage(format!(
                    "use the policy `{}` on a real robot: give a checkpoint folder, `{HOLD}`, or add --mock",
                    self.policy
                )));
            }
            name => Some(policy::find(name, &self.inference, self.n_action_steps)?),
        };
        if self.fit_image_size
            && let Some(Named::Checkpoint(checkpoint)) = &found
        {
            let shape = &checkpoint.shape;
            let size = shape.cameras.first().and_then(|name| shape.io.cameras.get(name));
            if let Some(size) = size {
                self.env.image_size = [size.height, size.width];
            }
        }
        // A spec without a robot: the simulated arm has the same.
        let spec = self.spec()?;
        let (mut label, mut traits) = (self.policy.clone(), BTreeMap::new());
        let mut policy: Box<dyn Policy> = match found {
            None => Box::new(Hold),
            Some(Named::Scripted) => {
                let hold = ActionChunk::single(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])?;
                Box::new(ExpertPolicy::new("scripted", hold, || Box::new(WidowXExpert)))
            }
            Some(Named::Random) => Box::new(RandomPolicy::new(spec.action.clone(), 1)),
            Some(Named::Checkpoint(found)) => {
                let Checkpoint { policy, shape, label: name, fingerprint } = *found;
                (label, traits) = (name, fingerprint);
                let renamed = camera_of(&shape, &[CAMERA.to_owned()]);
                policy::check_io(&shape, renamed.as_ref(), &spec)?;
                adapted(policy, renamed)
            }
            Some(Named::Foreign(found)) => {
                let Foreign { mut policy, label: name, fingerprint } = *found;
                (label, traits) = (name, fingerprint);
                policy.present(&[CAMERA.to_owned()], spec.action.len())?;
                Box::new(policy)
            }
        };
        if let Some(convention) = policy.convention() {
            convention.check_matches(&spec.convention)?;
        }
        self.env.privileged = policy.needs().privileged;
        warm_up(policy.as_mut(), &spec, &self.env.instruction)?;
        let suite = self.robot.suite();
        let task = "widowx/0";
        let episodes: Vec<_> = (0..self.trials)
            .map(|trial| episode(self.seed, suite, task, trial, ResetOptions::default()))
            .collect();
        let seeds = episodes.iter().filter_map(|e| Some((e.request.seed?, e.trial))).collect();
        let options = OperatedOptions {
            dir: self.dir.clone(),
            task: task.to_owned(),
            trials: self.trials,
            unattended: self.unattended,
            videos: self.videos,
            seeds,
        };
        let mut lines = fingerprint(&spec);
        lines.append(&mut traits);
        lines.insert(
            "arm".to_owned(),
            match &self.robot {
                Robot::Server { .. } => "widowx_env_service".to_owned(),
                Robot::Mock => "simulated".to_owned(),
                Robot::DryRun => "none: a dry run".to_owned(),
            },
        );
        let factory = self.factory(options, Arc::clone(station));
        Ok(SuiteRun {
            suite: suite.to_owned(),
            seed: self.seed,
            protocol: format!("{}-v1", spec.id.trim_end_matches("-v1").replace('/', "-")),
            protocol_lines: self.protocol_lines(),
            tasks: vec![TaskEntry {
                key: task.to_owned(),
                id: 0,
                instruction: self.env.instruction.clone(),
            }],
            episodes,
            trials: (0, self.trials),
            viewer: Arc::clone(&factory),
            factory,
            video_fps: spec.control_hz,
            // The operator looks, whether the policy does or not; the policy's own image costs a resize.
            frames: match policy.needs().frames() {
                FrameRequest::None => FrameRequest::None,
                frames => frames,
            },
            n_action_steps: self.n_action_steps,
            min_ready: 1,
            fingerprint: lines,
            policy_label: label,
            policy,
        })
    }

    fn spec(&self) -> Result<simloop_envs::EnvSpec, BenchError> {
        let arm = Box::new(MockArm::new(self.env.params()));
        let (stop, session) = (EmergencyStop::default(), Session::default());
        Ok(WidowXEnv::new(self.env.clone(), arm, stop, session, None)?.spec().clone())
    }

    /// Shakes hands with the robot server and looks, without moving anything.
    ///
    /// # Errors
    /// [`BenchError::Env`] if it is not there, or is something else.
    pub fn preflight(&self, stop: &EmergencyStop) -> Result<(), BenchError> {
        let Robot::Server { host, port } = &self.robot else { return Ok(()) };
        let mut client = client(host, *port, self, stop).map_err(unavailable)?;
        client.hash().map_err(unavailable)
    }

    fn factory(&self, options: OperatedOptions, station: Arc<Station>) -> EnvFactory {
        let (session, attempts) = (self.session.clone(), Arc::default());
        let (told, known_told) = (Arc::downgrade(&station), Arc::new(AtomicBool::new(false)));
        session.on_warning(Arc::new(move |words: &str| {
            if let Some(station) = told.upgrade() {
                station.warn(words);
            }
        }));
        let this = self.clone();
        Arc::new(move |_: EnvId| {
            let stop = station.stop().clone();
            let arm: Box<dyn Arm> = match &this.robot {
                Robot::Server { host, port } => {
                    Box::new(client(host, *port, &this, &stop).map_err(EnvError::from)?)
                }
                Robot::Mock | Robot::DryRun => Box::new(MockArm::new(this.env.params())),
            };
            let asked = Arc::clone(&station);
            let unattended = this.unattended;
            let posed = AtomicBool::new(false);
            let (server, known_told) = (session.clone(), Arc::clone(&known_told));
            let ready = move |obs: &RobotObs| {
                const KEYS: [(char, &str); 1] = [('\n', "start")];
                if unattended {
                    return Ok(true);
                }
                if !posed.swap(true, Ordering::SeqCst) {
                    let known = server.known_before();
                    let known = known.filter(|_| !known_told.swap(true, Ordering::SeqCst));
                    let words = format!(
                        "{}{}The arm stands at its start. Set the scene, step back, and start the trial.",
                        known.unwrap_or_default(),
                        if known.is_some() { " " } else { "" }
                    );
                    asked.pose(&words, &KEYS);
                }
                asked.show(obs.frame(None)?);
                let Some(answer) = asked.answer(&KEYS) else { return Ok(false) };
                posed.store(false, Ordering::SeqCst);
                asked.answered();
                if answer == Answer::Quit {
                    asked.run().set();
                    return Err(Fault::new(FaultKind::Disarmed, "the operator ended the run"));
                }
                asked.update(|screen| {
                    let keys =
                        [('s', "success"), ('p', "partial"), ('f', "failure"), ('v', "void")];
                    screen.keys = keys.map(|(key, does)| (key, does.to_owned())).into();
                });
                Ok(true)
            };
            station.update(|screen| this.env.instruction.clone_into(&mut screen.task));
            let env = WidowXEnv::new(
                this.env.clone(),
                arm,
                stop,
                session.clone(),
                Some(Arc::new(ready)),
            )?;
            Ok(Box::new(OperatedEnv::new(
                env,
                options.clone(),
                Arc::clone(&station),
                session.clone(),
                Arc::clone(&attempts),
            )) as Box<dyn Env>)
        })
    }

    fn protocol_lines(&self) -> Vec<ProtocolLine> {
        let limits = &self.env.limits;
        let openvla = "openvla experiments/robot/bridge/run_bridgev2_eval.py (c8f03f4)";
        let given = "the command line";
        let ours = "simloop, envs/src/widowx/safety/limits.rs";
        let line = |name: &str, value: String, source: &str| ProtocolLine {
            name: name.to_owned(),
            value,
            source: source.to_owned(),
        };
        let gripper = match self.env.gripper {
            GripperMode::Continuous => "continuous".to_owned(),
            GripperMode::Binary => "binary".to_owned(),
            GripperMode::Sticky { steps } => format!("sticky, {steps} steps"),
        };
        let start = self.env.start.as_ref().map_or_else(
            || "where reset ends".to_owned(),
            |(pose, duration)| {
                format!("move to {:?} m in {} s", pose.position(), duration.as_secs_f64())
            },
        );
        vec![
            line("profile", format!("{:?}", self.env.profile).to_lowercase(), given),
            line("control_hz", format!("{}", 1.0 / limits.period_secs), openvla),
            line("max_steps", self.env.max_steps.to_string(), openvla),
            line(
                "success",
                "a person's verdict; partial counts as failure with credit".to_owned(),
                given,
            ),
            line("start", start, openvla),
            line("image_size", format!("{:?}", self.env.image_size), given),
            line("action_units", format!("{:?}", self.env.units).to_lowercase(), given),
            line("gripper", gripper, given),
            line("workspace_low_m", format!("{:?}", limits.workspace.low), given),
            line("workspace_high_m", format!("{:?}", limits.workspace.high), given),
            line(
                "step_limits",
                format!("{:?}", limits.step),
                "bridge_data_robot, the server's own clip",
            ),
            line("speed_limits", format!("{:?}", limits.speed), ours),
            line("acceleration_limits", format!("{:?}", limits.acceleration), ours),
            line("max_obs_age_ms", limits.max_obs_age.as_millis().to_string(), ours),
        ]
    }
}

fn client(
    host: &str,
    port: u16,
    suite: &WidowXSuite,
    stop: &EmergencyStop,
) -> Result<RobotClient, Fault> {
    RobotClient::new(host, port, suite.env.params(), suite.deadlines, stop.clone())
}

fn unavailable(fault: Fault) -> BenchError {
    let error = match fault.kind {
        FaultKind::Handshake => EnvError::from(fault),
        kind => EnvError::Unavailable {
            what: format!("the robot server ({})", fault.detail),
            remedy: kind.remedy().to_owned(),
        },
    };
    BenchError::Env(error)
}

/// Decides twice on an empty picture and forgets it: what a first decision costs more (kernels, caches, a connection) must
/// not be paid while an arm waits.
fn warm_up(
    policy: &mut dyn Policy,
    spec: &simloop_envs::EnvSpec,
    instruction: &str,
) -> Result<(), BenchError> {
    if policy.needs().privileged {
        return Ok(());
    }
    let images = spec.observation.images.iter().map(|(name, size)| {
        let shape = (size.height as usize, size.width as usize, 3);
        (name.clone(), ndarray::Array3::from_elem(shape, 128).into_shared())
    });
    let obs = Observation {
        images: images.collect(),
        proprio: ndarray::Array1::zeros(spec.observation.proprio.len()).into_shared(),
        instruction: Arc::from(instruction),
    };
    let (info, recent) = (Info::default(), [obs.clone()]);
    for _ in 0..2 {
        let request =
            ActRequest { env: EnvId(0), obs: &obs, recent: &recent, info: &info, noise_seed: 0 };
        let decided = policy.act(&[request], ActMode::Deterministic)?;
        let width = decided.first().map(|step| step.chunk.actions().next().map_or(0, |a| a.len()));
        if width != Some(spec.action.len()) {
            return Err(BenchError::usage(format!(
                "drive the robot with {} numbers per action; it takes {}",
                width.unwrap_or(0),
                spec.action.len()
            )));
        }
    }
    policy.reset(&[EnvId(0)]);
    Ok(())
}

/// Asks for nothing, gripper open.
struct Hold;

impl Policy for Hold {
    fn name(&self) -> &'static str {
        HOLD
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn convention(&self) -> Option<&ActionConvention> {
        None
    }

    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        _mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        requests
            .iter()
            .map(|_| {
                let chunk = ActionChunk::single(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
                    .map_err(|e| PolicyError::Config { detail: e.to_string() })?;
                Ok(PolicyStep { chunk, stats: None })
            })
            .collect()
    }
}
