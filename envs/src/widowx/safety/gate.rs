//! What a command may be now, and why it was changed or refused.
//!
//! # Details
//! 1. States: disarmed, armed, holding, latched. Only an armed gate lets a command pass. A hold ends with the next fresh
//!    observation; a latch ends with a new consent, and nothing else.
//! 2. The gate keeps the server's goal itself: `goal' = p + R (goal - p) + d`, with p the measured hand, R the action's
//!    rotation, d its translation (the server's rule). Position limits hold for the goal, as a whole: rotation's share
//!    included. Where rotation leaves no admissible translation, the rotation is dropped.
//! 3. Per axis the goal's displacement keeps step, speed and acceleration limits and leaves room to brake before the wall
//!    of the box, so there is always an admissible command (see `envelope`). After anything but a sent command the goal
//!    counts as at rest.
//! 4. A number that is not finite refuses the whole action and latches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::envelope::Axis;
use super::limits::Limits;
use crate::widowx::arm::{Pose, rotate, rotation_from_rpy};
use crate::widowx::fault::{Fault, FaultKind};
use crate::widowx::observation::RobotObs;
use crate::widowx::stop::Consent;

const AXES: [&str; 7] = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"];
/// Where the server's `init` leaves the hand (recorded).
const NEUTRAL: [f64; 3] = [0.1202, -0.0191, 0.2467];
/// A hand this near to the neutral pose, while its goal is `REINIT_FAR` away, was initialised again.
const REINIT_NEAR: f64 = 0.03;
const REINIT_FAR: f64 = 0.10;
/// Faster than any motion of the 5 Hz loop (0.43 m/s along a diagonal, plus lag catching up), metres per second, and
/// metres that measurements may jump by.
const JUMP_SPEED: f64 = 0.9;
const JUMP_SLACK: f64 = 0.06;
/// The time that counts for it, periods at most: however long the server was silent, its goal was one step ahead.
const JUMP_PERIODS: f64 = 2.0;
/// A gripper that is told to be below the first and measured above the second does not follow.
const GRIPPER_CLOSED: f64 = 0.1;
const GRIPPER_OPEN: f64 = 0.9;
/// Neither does one that opens again by so much although it has been told to close so many times in a row. A closing gripper
/// only narrows, also on an object; two controllers in one server opened it by 0.2 to 0.8 (recorded).
const GRIPPER_REOPENS: f64 = 0.15;
const GRIPPER_CLOSING: u32 = 3;
/// Events kept until somebody takes them.
const MAX_EVENTS: usize = 10_000;

/// Whether commands pass.
#[derive(Clone, Debug, PartialEq)]
pub enum GateState {
    /// Nobody has consented to motion, or no trial runs.
    Disarmed,
    /// Commands pass.
    Armed,
    /// Nothing is sent until a fresh observation arrives.
    Holding(Fault),
    /// Nothing is sent until somebody arms again.
    Latched(Fault),
}

/// One limit that changed a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which number.
    pub axis: &'static str,
    /// What was asked for, and what is sent instead.
    pub asked: f64,
    /// See above.
    pub sent: f64,
    /// Which limit: `step`, `speed`, `acceleration`, `workspace`, `rotation`, `range`.
    pub limit: &'static str,
}

/// Why nothing is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// What stands against it.
    pub fault: Fault,
    /// Whether the trial is over: the gate is latched.
    pub latched: bool,
}

/// What becomes of an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Send this: the goal it leads to lies inside of every limit.
    Send {
        /// dx, dy, dz, droll, dpitch, dyaw, gripper.
        command: [f64; 7],
        /// What was changed; empty if nothing.
        changes: Vec<Change>,
    },
    /// Send nothing.
    Refuse(Refusal),
}

/// One line of the gate's log.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What and why, in words.
    pub what: String,
}

/// The gate. It holds no arm; [`GatedArm`](super::GatedArm) does.
#[derive(Debug)]
pub struct Gate {
    limits: Limits,
    axes: [Axis; 6],
    state: GateState,
    /// The server's goal, metres; `None` before a trial's first pose.
    goal: Option<[f64; 3]>,
    /// The goal's last displacement, and the last rotation.
    moved: [f64; 6],
    gripper: f64,
    /// Commands to close in a row, and the narrowest opening measured since the first of them.
    closing: u32,
    narrowest: f64,
    obs: Option<Seen>,
    equal_frames: u32,
    lagging: u32,
    gripper_lagging: u32,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Seen {
    asked_at: Instant,
    state: [f64; 7],
    full_image: Arc<[u8]>,
}

impl Gate {
    /// A disarmed gate.
    ///
    /// # Errors
    /// [`EnvError::Config`](crate::EnvError::Config) for limits that cannot be.
    pub fn new(limits: Limits) -> Result<Self, crate::EnvError> {
        limits.validate()?;
        let axis = |i: usize| {
            Axis::new(limits.step[i], limits.speed[i], limits.acceleration[i], limits.period_secs)
        };
        Ok(Self {
            axes: [axis(0), axis(1), axis(2), axis(3), axis(4), axis(5)],
            limits,
            state: GateState::Disarmed,
            goal: None,
            moved: [0.0; 6],
            gripper: 1.0,
            closing: 0,
            narrowest: f64::INFINITY,
            obs: None,
            equal_frames: 0,
            lagging: 0,
            gripper_lagging: 0,
            events: Vec::new(),
        })
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether commands pass.
    pub fn state(&self) -> &GateState {
        &self.state
    }

    /// The server's goal as kept here, metres.
    pub fn goal(&self) -> Option<[f64; 3]> {
        self.goal
    }

    /// When the newest observation was asked for.
    pub fn seen_at(&self) -> Option<Instant> {
        self.obs.as_ref().map(|obs| obs.asked_at)
    }

    /// What happened since the last call, oldest first.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn log(&mut self, what: String) {
        tracing::debug!(target: "widowx::gate", "{what}");
        if self.events.len() < MAX_EVENTS {
            self.events.push(Event { at: Instant::now(), what });
        }
    }

    /// Arms the gate for a trial, by somebody's consent. Ends a latch. What was seen and where the goal was is forgotten.
    pub fn arm(&mut self, consent: &Consent) {
        self.state = GateState::Armed;
        self.goal = None;
        self.obs = None;
        self.at_rest();
        (self.equal_frames, self.lagging, self.gripper_lagging) = (0, 0, 0);
        self.grip(1.0);
        self.log(format!("armed by {}", consent.operator()));
    }

    /// Ends a trial: nothing passes until somebody arms again. A latch stays.
    pub fn disarm(&mut self) {
        if !matches!(self.state, GateState::Latched(_) | GateState::Disarmed) {
            self.state = GateState::Disarmed;
            self.log("disarmed".to_owned());
        }
    }

    /// Nothing passes until somebody arms again.
    pub fn latch(&mut self, fault: Fault) {
        self.at_rest();
        if !matches!(self.state, GateState::Latched(_)) {
            self.log(format!("latched: {}: {}", fault.kind, fault.detail));
            self.state = GateState::Latched(fault);
        }
    }

    /// Gives the fault behind a latch the name that a closer look found. An emergency stop keeps its own.
    pub fn name_latch(&mut self, named: &Fault) {
        match &mut self.state {
            GateState::Latched(fault)
                if fault.kind != FaultKind::EmergencyStop && fault != named =>
            {
                *fault = named.clone();
                self.log(format!("found: {}: {}", named.kind, named.detail));
            }
            _ => {}
        }
    }

    /// Nothing passes until the next fresh observation.
    pub fn hold(&mut self, fault: Fault) {
        if self.state == GateState::Armed {
            self.at_rest();
            self.log(format!("holding: {}: {}", fault.kind, fault.detail));
            self.state = GateState::Holding(fault);
        }
    }

    fn at_rest(&mut self) {
        self.moved = [0.0; 6];
    }

    /// Remembers what the gripper is told.
    fn grip(&mut self, opening: f64) {
        self.gripper = opening;
        if opening < GRIPPER_CLOSED {
            self.closing += 1;
        } else {
            (self.closing, self.narrowest) = (0, f64::INFINITY);
        }
    }

    /// Whether anything may be sent at all.
    ///
    /// # Errors
    /// [`Refusal`] with the reason.
    pub fn check_armed(&self) -> Result<(), Refusal> {
        match &self.state {
            GateState::Armed => Ok(()),
            GateState::Disarmed => Err(Refusal {
                fault: Fault::new(FaultKind::Disarmed, "the gate is not armed"),
                latched: false,
            }),
            GateState::Holding(fault) => Err(Refusal { fault: fault.clone(), latched: false }),
            GateState::Latched(fault) => Err(Refusal { fault: fault.clone(), latched: true }),
        }
    }

    /// Takes in an observation. A fresh one ends a hold; one that cannot be true latches.
    pub fn observe(&mut self, obs: &RobotObs, now: Instant) {
        let equal = self.obs.as_ref().is_some_and(|seen| seen.full_image == obs.full_image);
        self.equal_frames = if equal { self.equal_frames + 1 } else { 1 };
        let previous = self.obs.replace(Seen {
            asked_at: obs.asked_at,
            state: obs.state,
            full_image: Arc::clone(&obs.full_image),
        });
        if matches!(self.state, GateState::Latched(_) | GateState::Disarmed) {
            return;
        }
        let hand = [obs.state[0], obs.state[1], obs.state[2]];
        if self.equal_frames >= self.limits.max_equal_frames {
            let detail = format!("the last {} camera frames are the same", self.equal_frames);
            return self.latch(Fault::new(FaultKind::CameraFrozen, detail));
        }
        if let Some(goal) = self.goal {
            if let Some(previous) = &previous {
                let before = [previous.state[0], previous.state[1], previous.state[2]];
                // At least a period: a simulated arm's time passes with its steps, however fast they follow each other. At
                // most two: a silent server must not allow a way of metres.
                let apart = obs.asked_at.saturating_duration_since(previous.asked_at).as_secs_f64();
                let period = self.limits.period_secs;
                let secs = apart.clamp(period, JUMP_PERIODS * period);
                let jumped = distance(before, hand);
                if jumped > JUMP_SLACK + JUMP_SPEED * secs {
                    let detail =
                        format!("the hand went {jumped:.3} m in {apart:.2} s, to {}", point(hand));
                    return self.latch(Fault::new(FaultKind::Reinitialised, detail));
                }
            }
            if distance(hand, NEUTRAL) < REINIT_NEAR && distance(goal, NEUTRAL) > REINIT_FAR {
                let detail = format!(
                    "the hand is at the neutral pose {}, its goal at {}",
                    point(hand),
                    point(goal)
                );
                return self.latch(Fault::new(FaultKind::Reinitialised, detail));
            }
            let excess = self.limits.workspace.excess(hand);
            if excess > self.limits.outside_tolerance {
                let detail =
                    format!("the hand is at {}, {excess:.3} m outside of the box", point(hand));
                return self.latch(Fault::new(FaultKind::OutsideWorkspace, detail));
            }
            let lead = distance(goal, hand);
            self.lagging = if lead > self.limits.max_lead { self.lagging + 1 } else { 0 };
            if self.lagging >= self.limits.max_lagging {
                let detail = format!(
                    "the goal {} has been more than {} m ahead of the hand {} for {} steps",
                    point(goal),
                    self.limits.max_lead,
                    point(hand),
                    self.lagging
                );
                return self.latch(Fault::new(FaultKind::NotFollowing, detail));
            }
            let open = self.gripper < GRIPPER_CLOSED && obs.state[6] > GRIPPER_OPEN;
            self.gripper_lagging = if open { self.gripper_lagging + 1 } else { 0 };
            if self.gripper_lagging >= self.limits.max_lagging {
                let detail = format!(
                    "it was told to close ({:.2}) and is measured open ({:.2}) for {} steps",
                    self.gripper, obs.state[6], self.gripper_lagging
                );
                return self.latch(Fault::new(FaultKind::GripperNotFollowing, detail));
            }
            if self.closing > 0 {
                let opened = obs.state[6] - self.narrowest;
                if self.closing >= GRIPPER_CLOSING && opened > GRIPPER_REOPENS {
                    let detail = format!(
                        "it was told to close {} times in a row and opened again, from {:.2} to {:.2}",
                        self.closing, self.narrowest, obs.state[6]
                    );
                    return self.latch(Fault::new(FaultKind::GripperNotFollowing, detail));
                }
                self.narrowest = self.narrowest.min(obs.state[6]);
            }
        }
        let fresh = now.saturating_duration_since(obs.asked_at) <= self.limits.max_obs_age;
        if fresh && matches!(self.state, GateState::Holding(_)) {
            self.state = GateState::Armed;
            self.log("a fresh observation ends the hold".to_owned());
        }
    }

    /// Checks a `move` before it is sent: a finite rigid pose inside of the box, reached at no more than the allowed speed.
    /// `from` is the hand where it is known.
    ///
    /// # Errors
    /// [`Refusal`] with the reason.
    pub fn check_move(
        &mut self,
        pose: &Pose,
        duration: Duration,
        from: Option<[f64; 3]>,
    ) -> Result<(), Refusal> {
        self.check_armed()?;
        let refuse = |gate: &mut Self, detail: String| {
            let fault = Fault::new(FaultKind::MoveRefused, detail);
            gate.log(format!("refused: {}: {}", fault.kind, fault.detail));
            Err(Refusal { fault, latched: false })
        };
        if let Some(defect) = pose.defect() {
            return refuse(self, format!("the pose is no pose: {defect}"));
        }
        let to = pose.position();
        if !self.limits.workspace.contains(to) {
            let w = self.limits.workspace;
            let detail = format!(
                "the pose {} lies outside of the workspace {} to {}",
                point(to),
                point(w.low),
                point(w.high)
            );
            return refuse(self, detail);
        }
        if let Some(from) = from {
            let speed = distance(from, to) / duration.as_secs_f64().max(1e-9);
            if speed > self.limits.move_speed {
                let detail = format!(
                    "from {} to {} in {:.2} s is {speed:.2} m/s, more than {}",
                    point(from),
                    point(to),
                    duration.as_secs_f64(),
                    self.limits.move_speed
                );
                return refuse(self, detail);
            }
        }
        Ok(())
    }

    /// Tells where the server's goal is now: after `reset` or `move`.
    ///
    /// # Errors
    /// [`FaultKind::OutsideWorkspace`], latched, if it is not inside of the box.
    pub fn set_goal(&mut self, goal: [f64; 3]) -> Result<(), Refusal> {
        self.at_rest();
        self.grip(1.0);
        if !self.limits.workspace.contains(goal) {
            let detail = format!("the goal {} lies outside of the box", point(goal));
            let fault = Fault::new(FaultKind::OutsideWorkspace, detail);
            self.latch(fault.clone());
            return Err(Refusal { fault, latched: true });
        }
        self.goal = Some(goal);
        Ok(())
    }

    /// Decides on one action: dx, dy, dz, droll, dpitch, dyaw, gripper. `Send` moves the goal kept here, so the command must
    /// be sent, once; if sending fails, [`latch`](Self::latch).
    pub fn command(&mut self, action: &[f64; 7], now: Instant) -> Verdict {
        match self.decide(action, now) {
            Ok((command, changes)) => {
                if !changes.is_empty() {
                    let list: Vec<String> = changes
                        .iter()
                        .map(|c| {
                            format!("{} {:.4} -> {:.4} ({})", c.axis, c.asked, c.sent, c.limit)
                        })
                        .collect();
                    self.log(format!("changed: {}", list.join(", ")));
                }
                Verdict::Send { command, changes }
            }
            Err(refusal) => {
                self.at_rest();
                self.log(format!("refused: {}: {}", refusal.fault.kind, refusal.fault.detail));
                Verdict::Refuse(refusal)
            }
        }
    }

    fn decide(
        &mut self,
        action: &[f64; 7],
        now: Instant,
    ) -> Result<([f64; 7], Vec<Change>), Refusal> {
        self.check_armed()?;
        if let Some(i) = action.iter().position(|v| !v.is_finite()) {
            let fault = Fault::new(FaultKind::NonFinite, format!("{} is {}", AXES[i], action[i]));
            self.latch(fault.clone());
            return Err(Refusal { fault, latched: true });
        }
        let (Some(goal), Some(obs)) = (self.goal, &self.obs) else {
            let fault = Fault::new(FaultKind::Disarmed, "no pose and no observation yet");
            return Err(Refusal { fault, latched: false });
        };
        let age = now.saturating_duration_since(obs.asked_at);
        if age > self.limits.max_obs_age {
            let detail = format!(
                "it is {} ms old, the limit is {} ms",
                age.as_millis(),
                self.limits.max_obs_age.as_millis()
            );
            let fault = Fault::new(FaultKind::StaleObservation, detail);
            return Err(Refusal { fault, latched: false });
        }
        let hand = [obs.state[0], obs.state[1], obs.state[2]];
        let asked = [action[0], action[1], action[2]];
        let mut rotation = [0.0; 3];
        for i in 0..3 {
            let (low, high) = self.axes[i + 3].free(self.moved[i + 3]);
            rotation[i] = action[i + 3].clamp(low, high);
        }
        let turned = self.translate(goal, hand, asked, rotation);
        let (shift, next) = if let Some(found) = turned {
            found
        } else {
            // Without rotation there always is an admissible displacement; but a rotation that is too fast to end at once
            // leaves none: then nothing is sent.
            rotation = [0.0; 3];
            let stops = (0..3).all(|i| self.moved[i + 3].abs() <= self.axes[i + 3].change);
            let found = if stops { self.translate(goal, hand, asked, rotation) } else { None };
            found.ok_or_else(|| Refusal {
                fault: Fault::new(
                    FaultKind::OutsideWorkspace,
                    "no command within the limits keeps the goal inside of the box",
                ),
                latched: false,
            })?
        };
        let gripper = action[6].clamp(0.0, 1.0);
        let command =
            [shift[0], shift[1], shift[2], rotation[0], rotation[1], rotation[2], gripper];
        let changes = self.changes(action, &command, goal, next);
        for i in 0..3 {
            self.moved[i] = next[i] - goal[i];
            self.moved[i + 3] = rotation[i];
        }
        self.goal = Some(next);
        self.grip(gripper);
        Ok((command, changes))
    }

    /// The translation nearest to `asked`, and the goal that it leads to with `rotation`; `None` if there is none.
    fn translate(
        &self,
        goal: [f64; 3],
        hand: [f64; 3],
        asked: [f64; 3],
        rotation: [f64; 3],
    ) -> Option<([f64; 3], [f64; 3])> {
        let lead = [goal[0] - hand[0], goal[1] - hand[1], goal[2] - hand[2]];
        let swung =
            if rotation == [0.0; 3] { lead } else { rotate(&rotation_from_rpy(rotation), lead) };
        let (mut shift, mut next) = ([0.0; 3], [0.0; 3]);
        for i in 0..3 {
            let (below, above) =
                (goal[i] - self.limits.workspace.low[i], self.limits.workspace.high[i] - goal[i]);
            let (low, high) = self.axes[i].between(self.moved[i], below, above);
            let swing = swung[i] - lead[i];
            // The goal's whole displacement is limited; the translation is what rotation leaves of it.
            let (low, high) =
                (low.max(swing - self.limits.step[i]), high.min(swing + self.limits.step[i]));
            if low > high {
                return None;
            }
            let displacement = (asked[i] + swing).clamp(low, high);
            shift[i] = displacement - swing;
            next[i] = (goal[i] + displacement)
                .clamp(self.limits.workspace.low[i], self.limits.workspace.high[i]);
        }
        Some((shift, next))
    }

    /// Names the limit behind every number that differs from what was asked for.
    fn changes(
        &self,
        asked: &[f64; 7],
        sent: &[f64; 7],
        goal: [f64; 3],
        next: [f64; 3],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for i in 0..7 {
            if (asked[i] - sent[i]).abs() <= 1e-9 {
                continue;
            }
            let limit = if i == 6 {
                "range"
            } else if i < 3
                && (next[i] - self.limits.workspace.low[i])
                    .min(self.limits.workspace.high[i] - next[i])
                    < 1e-6
            {
                "workspace"
            } else if i >= 3 && sent[3..6] == [0.0; 3] && asked[i].abs() <= self.axes[i].reach {
                "rotation"
            } else {
                let moved = if i < 3 { next[i] - goal[i] } else { sent[i] };
                let period = self.limits.period_secs;
                if (moved - self.moved[i]).abs() >= self.axes[i].change - 1e-9 {
                    "acceleration"
                } else if self.limits.speed[i] * period < self.limits.step[i] {
                    "speed"
                } else if moved.abs() >= self.axes[i].reach - 1e-9 {
                    "step"
                } else {
                    "workspace"
                }
            };
            changes.push(Change { axis: AXES[i], asked: asked[i], sent: sent[i], limit });
        }
        changes
    }
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

fn point(p: [f64; 3]) -> String {
    format!("({:.3}, {:.3}, {:.3})", p[0], p[1], p[2])
}
