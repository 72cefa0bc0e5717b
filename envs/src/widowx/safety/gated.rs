//! The only way to an arm.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::gate::{Change, Event, Gate, GateState, Refusal, Verdict};
use super::limits::Limits;
use super::watchdog::Watchdog;
use crate::EnvError;
use crate::widowx::arm::{Arm, Pose};
use crate::widowx::fault::{Fault, FaultKind};
use crate::widowx::mock::Scene;
use crate::widowx::observation::RobotObs;
use crate::widowx::stop::{Consent, EmergencyStop};

/// An arm behind its gate. The arm itself cannot be reached.
pub struct GatedArm {
    arm: Box<dyn Arm>,
    gate: Arc<Mutex<Gate>>,
    stop: EmergencyStop,
    waiting: Arc<AtomicBool>,
    hand: Option<[f64; 3]>,
    _watchdog: Watchdog,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Stepped {
    /// This was sent, and carried out as far as the server tells.
    Sent {
        /// The command.
        command: [f64; 7],
        /// What the gate changed.
        changes: Vec<Change>,
    },
    /// Nothing was sent; the trial goes on.
    Held(Fault),
}

impl GatedArm {
    /// Puts `arm` behind a disarmed gate, and starts the watchdog.
    ///
    /// # Errors
    /// [`EnvError::Config`] for limits that cannot be; [`EnvError::Spawn`] without a thread.
    pub fn new(arm: Box<dyn Arm>, limits: Limits, stop: EmergencyStop) -> Result<Self, EnvError> {
        let gate = Arc::new(Mutex::new(Gate::new(limits)?));
        let waiting = Arc::new(AtomicBool::new(false));
        let watchdog = Watchdog::start(Arc::clone(&gate), stop.clone(), Arc::clone(&waiting))
            .map_err(|e| EnvError::Spawn {
                program: "the watchdog's thread".to_owned(),
                detail: e.to_string(),
            })?;
        Ok(Self { arm, gate, stop, waiting, hand: None, _watchdog: watchdog })
    }

    /// What the arm is.
    pub fn describe(&self) -> String {
        self.arm.describe()
    }

    /// The gate's state.
    pub fn state(&self) -> GateState {
        self.gate().state().clone()
    }

    /// The gate, for those who only look at it and for the watchdog's tests.
    pub fn shared_gate(&self) -> Arc<Mutex<Gate>> {
        Arc::clone(&self.gate)
    }

    /// The gate's log since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.gate().take_events()
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // A poisoned gate still decides by the same rules; its state is plain data.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Arms the gate, by consent. The emergency stop must have been released first.
    ///
    /// # Errors
    /// [`FaultKind::EmergencyStop`] while it is pressed.
    pub fn arm(&mut self, consent: &Consent) -> Result<(), Fault> {
        self.check_stop()?;
        self.hand = None;
        self.gate().arm(consent);
        Ok(())
    }

    /// Ends a trial.
    pub fn disarm(&mut self) {
        self.gate().disarm();
    }

    /// Ends a trial by a fault of somebody else.
    pub fn latch(&mut self, fault: Fault) {
        self.gate().latch(fault);
    }

    fn check_stop(&self) -> Result<(), Fault> {
        if !self.stop.is_pressed() {
            return Ok(());
        }
        let fault = Fault::new(FaultKind::EmergencyStop, format!("pressed by {}", self.stop.by()));
        self.gate().latch(fault.clone());
        Err(fault)
    }

    fn check(&self) -> Result<(), Fault> {
        self.check_stop()?;
        self.gate().check_armed().map_err(|refusal| refusal.fault)
    }

    /// Runs a request; any fault of it latches.
    fn run<T>(
        &mut self,
        request: impl FnOnce(&mut dyn Arm) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.waiting.store(true, Ordering::SeqCst);
        let result = request(self.arm.as_mut());
        self.waiting.store(false, Ordering::SeqCst);
        result.inspect_err(|fault| self.gate().latch(fault.clone()))
    }

    /// The server's own initialisation. Its motions are its own: neutral pose, 3 s.
    ///
    /// # Errors
    /// A [`Fault`], latched.
    pub fn init(&mut self) -> Result<(), Fault> {
        self.check()?;
        self.run(|arm| arm.init())
    }

    /// The server's own reset: gripper open, neutral pose, start state at `start`.
    ///
    /// # Errors
    /// A [`Fault`], latched.
    pub fn reset(&mut self, start: [f64; 3]) -> Result<(), Fault> {
        self.check()?;
        let inside = self.gate().limits().workspace.contains(start);
        if !inside {
            return Err(Fault::new(
                FaultKind::MoveRefused,
                format!("the server's start state {start:?} lies outside of the workspace"),
            ));
        }
        self.run(|arm| arm.reset())?;
        self.gate().set_goal(start).map_err(|refusal| refusal.fault)
    }

    /// Moves to a pose and waits, if the pose, the way and the speed are inside of the limits.
    ///
    /// # Errors
    /// [`FaultKind::MoveRefused`]; a [`Fault`] of the arm, latched.
    pub fn move_to(&mut self, pose: &Pose, duration: Duration) -> Result<(), Fault> {
        self.check()?;
        let from = self.hand.or_else(|| self.gate().goal());
        self.gate().check_move(pose, duration, from).map_err(|refusal| refusal.fault)?;
        self.run(|arm| arm.move_to(pose, duration))?;
        self.gate().set_goal(pose.position()).map_err(|refusal| refusal.fault)
    }

    /// Sends an action as far as the gate lets it.
    ///
    /// # Errors
    /// A [`Fault`], latched: the trial is void.
    pub fn step(&mut self, action: &[f64; 7]) -> Result<Stepped, Fault> {
        self.check_stop()?;
        let verdict = self.gate().command(action, Instant::now());
        match verdict {
            Verdict::Send { command, changes } => {
                self.run(|arm| arm.step(&command))?;
                Ok(Stepped::Sent { command, changes })
            }
            Verdict::Refuse(Refusal { fault, latched: true }) => Err(fault),
            Verdict::Refuse(Refusal { fault, latched: false }) => match fault.kind {
                FaultKind::Disarmed => Err(fault),
                _ => Ok(Stepped::Held(fault)),
            },
        }
    }

    /// Whether the server has forgotten the robot.
    ///
    /// # Errors
    /// As [`Arm::is_fresh`].
    pub fn is_fresh(&mut self) -> Result<bool, Fault> {
        self.arm.is_fresh()
    }

    /// As [`Arm::known_before`].
    pub fn known_before(&self) -> bool {
        self.arm.known_before()
    }

    /// As [`Arm::must_wait`].
    pub fn must_wait(&self) -> bool {
        self.arm.must_wait()
    }

    /// Latches `fault` first and looks closer then, as [`Arm::diagnose`].
    pub fn diagnose(&mut self, fault: Fault) -> Fault {
        self.gate().latch(fault.clone());
        let named = self.arm.diagnose(fault);
        self.gate().name_latch(&named);
        named
    }

    /// As [`Arm::compiles`].
    pub fn compiles(&self) -> bool {
        self.arm.compiles()
    }

    /// Seeds a simulated arm.
    pub fn seed(&mut self, seed: u64) {
        self.arm.seed(seed);
    }

    /// The true scene of a simulated arm.
    pub fn scene(&self) -> Option<Scene> {
        self.arm.scene()
    }

    /// Looks, and shows the gate what was seen.
    ///
    /// # Errors
    /// A [`Fault`] of the link, or what the gate makes of the observation; latched.
    pub fn observe(&mut self) -> Result<RobotObs, Fault> {
        self.check_stop()?;
        let obs = self.run(|arm| arm.observe())?;
        self.hand = Some([obs.state[0], obs.state[1], obs.state[2]]);
        let mut gate = self.gate();
        gate.observe(&obs, Instant::now());
        match gate.state() {
            GateState::Latched(fault) => Err(fault.clone()),
            _ => Ok(obs),
        }
    }
}
