//! [`WidowXEnv`]: the robot as an [`Env`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::{ArrayView1, arr1};
use serde::{Deserialize, Serialize};

use super::actions::{ActionUnits, Gripper, GripperMode, unnormalise};
use super::arm::{Arm, Pose};
use super::fault::{Fault, FaultKind};
use super::messages::EnvParams;
use super::observation::RobotObs;
use super::safety::{Change, Event, GatedArm, Limits, Stepped};
use super::session::{MAY_MOVE, Session};
use super::stop::{Consent, EmergencyStop};
use crate::{
    ActionConvention, BoxSpace, ControlMode, Env, EnvError, EnvSpec, Frame, GripperConvention,
    ImageSpace, Info, Observation, ObservationSpace, Privileged, PrivilegedLayout, ReferenceFrame,
    ResetOptions, Step,
};

/// The name of the camera: BridgeData V2's.
pub const CAMERA: &str = "image_0";
/// The name of the environment.
pub const WIDOWX: &str = "widowx";
/// Steps of an episode (openvla `run_bridgev2_eval.py`, `max_steps`).
pub const MAX_EPISODE_STEPS: u32 = 60;
/// So many actions in a row that come too late end a trial.
const MAX_HELD: u32 = 5;
/// What no unpaced step takes.
const UNPACED: Duration = Duration::from_hours(1);
/// How often the scene is shown to whom prepares it.
const LOOK_AT_SCENE: Duration = Duration::from_millis(200);
/// How often a wait looks at the emergency stop.
const LOOK: Duration = Duration::from_millis(5);

/// Whose evaluation is followed: the server's parameters and the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// OpenVLA's: a pitched start pose, reached by `move`.
    #[default]
    Openvla,
    /// Octo's and BridgeData V2's: the start state that `reset` reaches.
    Octo,
}

impl Profile {
    /// The `init` parameters.
    pub fn params(self) -> EnvParams {
        match self {
            Self::Openvla => EnvParams::openvla(),
            Self::Octo => EnvParams::octo(),
        }
    }
}

/// How the robot is run.
#[derive(Clone, Debug)]
pub struct WidowXConfig {
    /// What the policy is told to do.
    pub instruction: String,
    /// Whose evaluation is followed.
    pub profile: Profile,
    /// The server's camera topics, the policy's camera first.
    pub camera_topics: Vec<String>,
    /// The gate's limits, the workspace among them.
    pub limits: Limits,
    /// Where to `move` before an episode, and within which time; `None` stays where `reset` ends.
    pub start: Option<(Pose, Duration)>,
    /// Height and width of the observed image, pixels.
    pub image_size: [u32; 2],
    /// What the policy's numbers mean.
    pub units: ActionUnits,
    /// What its gripper number means.
    pub gripper: GripperMode,
    /// Steps after which an episode is truncated.
    pub max_steps: u32,
    /// Keep to the clock. A simulated arm may run as fast as it can.
    pub paced: bool,
    /// Show a simulated arm's true scene.
    pub privileged: bool,
}

impl WidowXConfig {
    /// A task in a workspace, as OpenVLA evaluates it: 256 x 256 images, 60 steps, start at (0.3, -0.09, 0.26).
    pub fn openvla(instruction: &str, limits: Limits) -> Self {
        let params = EnvParams::openvla();
        let [x, y, z, ..] = params.start_state;
        Self {
            instruction: instruction.to_owned(),
            profile: Profile::Openvla,
            camera_topics: params.camera_topics,
            limits,
            start: Some((Pose::openvla_start([x, y, z]), Duration::from_millis(800))),
            image_size: [256, 256],
            units: ActionUnits::Metric,
            gripper: GripperMode::Continuous,
            max_steps: MAX_EPISODE_STEPS,
            paced: true,
            privileged: false,
        }
    }

    /// A task in a workspace, as Octo evaluates it: a sticky gripper, no start pose beside the server's.
    pub fn octo(instruction: &str, limits: Limits) -> Self {
        Self {
            profile: Profile::Octo,
            start: None,
            gripper: GripperMode::Sticky { steps: 1 },
            ..Self::openvla(instruction, limits)
        }
    }

    /// What the server is told at `init`.
    pub fn params(&self) -> EnvParams {
        EnvParams { camera_topics: self.camera_topics.clone(), ..self.profile.params() }
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// [`EnvError::Config`].
    pub fn validate(&self) -> Result<(), EnvError> {
        let wrong = |detail: String| Err(EnvError::Config { detail });
        self.limits.validate()?;
        let params = self.params();
        for i in 0..3 {
            let (low, high) = (self.limits.workspace.low[i], self.limits.workspace.high[i]);
            if low < params.low[i] || high > params.high[i] {
                return wrong(format!(
                    "use the workspace {:?} to {:?}: the server itself clips goals to {:?} to {:?}, and its bounds win; \
                     give a box inside of them",
                    self.limits.workspace.low,
                    self.limits.workspace.high,
                    &params.low[..3],
                    &params.high[..3]
                ));
            }
        }
        let [x, y, z, ..] = params.start_state;
        if !self.limits.workspace.contains([x, y, z]) {
            return wrong(format!(
                "use the workspace {:?} to {:?}: `reset` goes to the start state ({x}, {y}, {z}), which lies outside",
                self.limits.workspace.low, self.limits.workspace.high
            ));
        }
        if let Some((pose, _)) = &self.start
            && let Some(defect) = pose.defect()
        {
            return wrong(format!("use the start pose: {defect}"));
        }
        if let Some((pose, _)) = &self.start
            && !self.limits.workspace.contains(pose.position())
        {
            return wrong(format!(
                "use the start pose {:?}: it lies outside of the workspace {:?} to {:?}",
                pose.position(),
                self.limits.workspace.low,
                self.limits.workspace.high
            ));
        }
        if self.image_size.iter().any(|side| !(16..=1024).contains(side)) {
            return wrong(format!(
                "use images of {:?} pixels: sides are 16 to 1024",
                self.image_size
            ));
        }
        if self.max_steps == 0 || self.instruction.trim().is_empty() {
            return wrong("run an episode without a step or without an instruction".to_owned());
        }
        if self.camera_topics.is_empty() {
            return wrong("use a robot without a camera".to_owned());
        }
        Ok(())
    }
}

/// What happened in one step, for the trajectory on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTrace {
    /// Seconds since the episode's first observation.
    pub at_secs: f64,
    /// What the policy asked for, in its own units.
    pub asked: [f64; 7],
    /// What was sent; `None` if nothing was.
    pub sent: Option<[f64; 7]>,
    /// Why it was changed, one line per number.
    pub changed: Vec<String>,
    /// Why nothing was sent.
    pub held: Option<String>,
    /// Age of the observation at that moment, seconds.
    pub obs_age_secs: f64,
    /// How long the server took to answer the command.
    pub step_secs: f64,
    /// How long the next observation took.
    pub obs_secs: f64,
    /// Seconds between the last two observations.
    pub period_secs: f64,
    /// The measured state after it: x, y, z, roll, pitch, yaw, gripper.
    pub state: [f64; 7],
}

/// Called with a new observation five times a second while the arm stands at its start and a person prepares the scene; the
/// clock starts when it answers `true`.
pub type Ready = Arc<dyn Fn(&RobotObs) -> Result<bool, Fault> + Send + Sync>;

/// The robot as an environment.
///
/// # Description
/// BridgeData V2's WidowX behind `widowx_env_service --server`, or a simulated arm. 5 Hz, one command and one observation per
/// step.
///
/// # Action space
/// 7: dx, dy, dz \[m\], droll, dpitch, dyaw \[rad\] in the base frame, gripper absolute (0 closed, 1 open). With
/// [`ActionUnits::BridgeOrig`] the first six are in \[-1, 1\] and un-normalised here. The safety gate may change or refuse it.
///
/// # Observation space
/// `image_0` RGB, squeezed to the configured size; proprio 8: x, y, z \[m\], roll, pitch, yaw \[rad\], 0, gripper.
///
/// # Reward, success
/// None: a person judges. The reward is 0 and `success` is `None`, except for a simulated arm, which knows.
///
/// # Starting state
/// OpenVLA's order: `init` (once), `reset`, `move` to the start, one zero step (once, it pays for the server's compilation),
/// [`Ready`], first observation.
///
/// # Episode end
/// Truncated after `max_steps`. Every [`Fault`] ends it as void.
///
/// # References
/// openvla `experiments/robot/bridge/run_bridgev2_eval.py` (c8f03f4); bridge_data_robot `widowx_env_service.py` (a902e5b).
pub struct WidowXEnv {
    config: WidowXConfig,
    spec: EnvSpec,
    arm: GatedArm,
    stop: EmergencyStop,
    session: Session,
    ready: Option<Ready>,
    gripper: Gripper,
    layout: Arc<PrivilegedLayout>,
    episode: Option<Episode>,
    trace: Option<StepTrace>,
}

struct Episode {
    started: Instant,
    tick: Instant,
    steps: u32,
    held: u32,
    obs: RobotObs,
    over: bool,
}

impl WidowXEnv {
    /// Puts `arm` behind its gate. Nothing is sent before the first `reset`.
    ///
    /// # Errors
    /// [`EnvError::Config`] for settings that cannot be.
    pub fn new(
        config: WidowXConfig,
        arm: Box<dyn Arm>,
        stop: EmergencyStop,
        session: Session,
        ready: Option<Ready>,
    ) -> Result<Self, EnvError> {
        config.validate()?;
        let mut limits = config.limits.clone();
        if !config.paced {
            // Time passes with steps here: the clock must decide nothing.
            (limits.max_obs_age, limits.hold_after) = (UNPACED, UNPACED);
        }
        let arm = GatedArm::new(arm, limits, stop.clone())?;
        let layout = [("hand", 3), ("opening", 1), ("carrot", 3), ("plate", 3)];
        Ok(Self {
            spec: spec(&config),
            gripper: Gripper::new(config.gripper),
            config,
            arm,
            stop,
            session,
            ready,
            layout: Arc::new(PrivilegedLayout::new(layout)),
            episode: None,
            trace: None,
        })
    }

    /// The robot's newest observation in this episode.
    pub fn robot_obs(&self) -> Option<&RobotObs> {
        self.episode.as_ref().map(|episode| &episode.obs)
    }

    /// What happened in the last step, once.
    pub fn take_trace(&mut self) -> Option<StepTrace> {
        self.trace.take()
    }

    /// The gate's log since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.arm.take_events()
    }

    /// The arm behind its gate.
    pub fn arm(&self) -> &GatedArm {
        &self.arm
    }

    /// Ends the episode by a fault that the caller saw: nothing is sent until somebody arms again.
    pub fn abort(&mut self, fault: Fault) {
        self.episode = None;
        self.arm.latch(fault);
    }

    /// Ends the episode in order: nothing is sent until somebody arms again.
    pub fn finish(&mut self) {
        if let Some(episode) = &mut self.episode {
            episode.over = true;
        }
        self.arm.disarm();
    }

    /// Ends the episode by `fault`. It is latched at once; only its name may take longer.
    fn fail(&mut self, fault: Fault) -> EnvError {
        self.episode = None;
        self.arm.latch(fault.clone());
        self.mark_unclean(&fault);
        if !self.arm.must_wait() {
            return fault.into();
        }
        self.session.warn(MAY_MOVE);
        let named = self.arm.diagnose(fault);
        self.mark_unclean(&named);
        named.into()
    }

    fn mark_unclean(&self, fault: &Fault) {
        if fault.kind.needs_restart() {
            let mut session = self.session.state();
            session.unclean = Some(fault.clone());
            (session.initialised, session.primed) = (false, false);
        }
    }

    /// Looks; an answer that took too long is a fault.
    fn look(&mut self) -> Result<RobotObs, Fault> {
        let obs = self.arm.observe()?;
        self.check_answer("an observation", obs.asked_at.elapsed())?;
        Ok(obs)
    }

    fn check_answer(&self, what: &str, took: Duration) -> Result<(), Fault> {
        let limit = self.config.limits.max_answer;
        if !self.config.paced || took <= limit {
            return Ok(());
        }
        let detail = format!(
            "{what} was answered after {:.1} s, the limit is {:.1} s",
            took.as_secs_f64(),
            limit.as_secs_f64()
        );
        Err(Fault::new(FaultKind::ServerBusy, detail))
    }

    fn begin(&mut self, consent: &Consent) -> Result<RobotObs, Fault> {
        let unclean = self.session.state().unclean.clone();
        if let Some(fault) = unclean {
            if !self.arm.is_fresh()? {
                let detail = format!("the server still knows the robot after `{}`", fault.kind);
                return Err(Fault::new(FaultKind::NotRestarted, detail));
            }
            self.session.state().unclean = None;
        }
        self.arm.arm(consent)?;
        if !self.session.state().initialised {
            self.arm.init()?;
            let mut session = self.session.state();
            session.initialised = true;
            session.known_before |= self.arm.known_before();
        }
        let [x, y, z, ..] = self.config.params().start_state;
        self.arm.reset([x, y, z])?;
        if let Some((pose, duration)) = self.config.start.clone() {
            self.arm.move_to(&pose, duration)?;
        }
        if self.arm.compiles() && !self.session.state().primed {
            // The server compiles its kinematics at the first step: before anybody looks at the clock.
            self.arm.observe()?;
            self.arm.step(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])?;
            self.session.state().primed = true;
        }
        if let Some(ready) = self.ready.clone() {
            loop {
                let obs = self.look()?;
                if ready(&obs)? {
                    break;
                }
                self.wait(obs.asked_at + LOOK_AT_SCENE)?;
            }
        }
        self.look()
    }

    fn observation(&self, obs: &RobotObs, frames: bool) -> Result<Observation, Fault> {
        let mut images = BTreeMap::new();
        if frames {
            images.insert(CAMERA.to_owned(), obs.frame(Some(self.config.image_size))?);
        }
        Ok(Observation {
            images,
            proprio: arr1(&obs.proprio()).into_shared(),
            instruction: Arc::from(self.config.instruction.as_str()),
        })
    }

    fn info(&self) -> Info {
        let Some(scene) = self.arm.scene() else { return Info::default() };
        let values = [&scene.hand[..], &[scene.opening], &scene.carrot, &scene.plate].concat();
        let privileged = self
            .config
            .privileged
            .then(|| Privileged::new(Arc::clone(&self.layout), values.into()))
            .flatten();
        Info { success: Some(scene.solved), metrics: BTreeMap::new(), privileged }
    }

    /// Waits until `until`, or until the emergency stop.
    fn wait(&self, until: Instant) -> Result<(), Fault> {
        loop {
            if self.stop.is_pressed() {
                let detail = format!("pressed by {}", self.stop.by());
                return Err(Fault::new(FaultKind::EmergencyStop, detail));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    fn advance(&mut self, asked: &[f64; 7]) -> Result<StepTrace, Fault> {
        let Some(mut episode) = self.episode.take() else {
            return Err(Fault::new(FaultKind::Disarmed, "no episode runs"));
        };
        let mut action = match self.config.units {
            ActionUnits::Metric => *asked,
            ActionUnits::BridgeOrig => unnormalise(asked),
        };
        action[6] = self.gripper.command(action[6]);
        let began = Instant::now();
        let obs_age = began.saturating_duration_since(episode.obs.asked_at);
        let (sent, changes, held) = match self.arm.step(&action)? {
            Stepped::Sent { command, changes } => (Some(command), changes, None),
            Stepped::Held(fault) => (None, Vec::new(), Some(fault)),
        };
        let step_secs = began.elapsed().as_secs_f64();
        // Somebody else's request that came first may have moved the arm and its goal: what is known of both is void.
        self.check_answer("a step", began.elapsed())?;
        episode.held = if held.is_some() { episode.held + 1 } else { 0 };
        if let Some(fault) = &held
            && episode.held >= MAX_HELD
        {
            let detail = format!(
                "{} actions in a row were refused, the last one because {}: {}",
                episode.held, fault.kind, fault.detail
            );
            let kind = match fault.kind {
                FaultKind::StaleObservation => FaultKind::PolicyTooSlow,
                kind => kind,
            };
            return Err(Fault::new(kind, detail));
        }
        if self.config.paced {
            let period = Duration::from_secs_f64(self.config.limits.period_secs);
            let due = episode.tick + period;
            self.wait(due)?;
            // On time, the next period counts from when this one was due, so that errors do not add up; late, from now.
            let now = Instant::now();
            let late = now.saturating_duration_since(due) > Duration::from_millis(20);
            episode.tick = if late { now } else { due };
        }
        let before = episode.obs.asked_at;
        let obs = self.look()?;
        episode.steps += 1;
        let trace = StepTrace {
            at_secs: obs.asked_at.saturating_duration_since(episode.started).as_secs_f64(),
            asked: *asked,
            sent,
            changed: changes.iter().map(words).collect(),
            held: held.map(|fault| format!("{}: {}", fault.kind, fault.detail)),
            obs_age_secs: obs_age.as_secs_f64(),
            step_secs,
            obs_secs: obs.asked_at.elapsed().as_secs_f64(),
            period_secs: obs.asked_at.saturating_duration_since(before).as_secs_f64(),
            state: obs.state,
        };
        episode.obs = obs;
        self.episode = Some(episode);
        Ok(trace)
    }
}

fn words(change: &Change) -> String {
    format!("{} {:.5} -> {:.5} ({})", change.axis, change.asked, change.sent, change.limit)
}

impl Env for WidowXEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        if options.state.is_some() || options.init_state.is_some() {
            return Err(EnvError::Config {
                detail: "begin from a stored state: a real scene is set up by hand".to_owned(),
            });
        }
        (self.episode, self.trace) = (None, None);
        if let Some(seed) = seed {
            self.arm.seed(seed);
        }
        let consent = self.session.state().consent.take();
        let consent = consent.ok_or_else(|| {
            EnvError::from(Fault::new(FaultKind::Disarmed, "nobody consented to this trial"))
        })?;
        self.gripper = Gripper::new(self.config.gripper);
        let obs = self.begin(&consent).map_err(|fault| self.fail(fault))?;
        let shown = self.observation(&obs, true).map_err(|fault| self.fail(fault))?;
        let started = obs.asked_at;
        self.episode =
            Some(Episode { started, tick: started, steps: 0, held: 0, obs, over: false });
        Ok((shown, self.info()))
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        if self.episode.as_ref().is_none_or(|episode| episode.over) {
            return Err(EnvError::NeedsReset { since: "construction, its last fault or its end" });
        }
        self.spec.action.check_action(action)?;
        let mut asked = [0.0; 7];
        for (to, from) in asked.iter_mut().zip(action) {
            *to = f64::from(*from);
        }
        let trace = self.advance(&asked).map_err(|fault| self.fail(fault))?;
        self.trace = Some(trace);
        let Some(episode) = &self.episode else {
            return Err(EnvError::NeedsReset { since: "its last fault" });
        };
        let truncated = episode.steps >= self.config.max_steps;
        let obs = self.observation(&episode.obs, frames).map_err(|fault| self.fail(fault))?;
        let info = self.info();
        if truncated {
            self.finish();
        }
        Ok(Step { obs, reward: 0.0, terminated: false, truncated, info })
    }

    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        let Some(episode) = &self.episode else { return Ok(None) };
        Ok(Some(episode.obs.frame(None)?))
    }
}

fn spec(config: &WidowXConfig) -> EnvSpec {
    let metric = [0.05, 0.05, 0.05, 0.25, 0.25, 0.25];
    let bound = |i: usize| match config.units {
        ActionUnits::Metric => metric[i],
        ActionUnits::BridgeOrig => 1.0,
    };
    let names = ["dx_m", "dy_m", "dz_m", "droll_rad", "dpitch_rad", "dyaw_rad"];
    let mut action: Vec<(&str, f32, f32)> =
        names.iter().enumerate().map(|(i, name)| (*name, -bound(i), bound(i))).collect();
    action.push(("gripper_open", 0.0, 1.0));
    let free = (f32::NEG_INFINITY, f32::INFINITY);
    let proprio = ["x_m", "y_m", "z_m", "roll_rad", "pitch_rad", "yaw_rad", "pad", "gripper_open"];
    let [height, width] = config.image_size;
    EnvSpec {
        id: format!(
            "{WIDOWX}/{}-v1",
            match config.profile {
                Profile::Openvla => "openvla",
                Profile::Octo => "octo",
            }
        ),
        observation: ObservationSpace {
            images: BTreeMap::from([(CAMERA.to_owned(), ImageSpace { height, width })]),
            proprio: BoxSpace::new(proprio.map(|name| (name, free.0, free.1))),
        },
        action: BoxSpace::new(action),
        convention: ActionConvention {
            control: ControlMode::DeltaPoseMetric,
            frame: ReferenceFrame::Base,
            gripper: GripperConvention::OneIsOpen,
        },
        control_hz: 1.0 / config.limits.period_secs,
        max_episode_steps: Some(config.max_steps),
        wrappers: Vec::new(),
        versions: BTreeMap::from([("edgeml".to_owned(), super::messages::VERSION.to_owned())]),
    }
}
