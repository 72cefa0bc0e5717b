//! The phases of a pick and place, and the memory between steps.

use nalgebra::{Vector2, Vector3};
use simloop_envs::{ActionChunk, Info, Observation};

use super::grasp::{Grasp, GraspId, plan, reached};
use super::hand::{
    BASE_X, EMPTY, PALM, PALM_RADIUS, TIP, in_hand, nearer_yaw, pointing_down, rotation_vector,
    wrap_half_turn, yaw_of,
};
use super::scene::{Body, Scene};
use super::task::{Goal, Task};
use crate::{Expert, PolicyError};

/// Metres per unit of action: robosuite 1.4.1 `controllers/config/osc_pose.json`, `output_max`.
const TRANSLATION_M: f64 = 0.05;
/// Radians per unit of action, same file.
const ROTATION_RAD: f64 = 0.5;
/// The controller chases `position + action` anew every step, so a gain above 1 speeds it up; 1.6 overshoots by a
/// centimetre, which at the edge of the workspace (the bowl on the cabinet) drives the arm into its joint limits.
const POSITION_GAIN: f64 = 1.25;
const ROTATION_GAIN: f64 = 1.2;

/// Above the grasp until position, yaw and opening are right: fingertips clear of the top of any object here.
const HOVER: f64 = 0.035;
/// Within this distance in the plane the way is down, not across.
const ABOVE: f64 = 0.03;
/// Deviation that still lets the fingers pass the object, for two steps in a row: once may be on the way past.
const ALIGNED: f64 = 0.008;
const ALIGNED_RAD: f64 = 0.08;
/// The same once the fingertips are beside it.
const ALIGNED_LOW: f64 = 0.012;
/// One control step moves a finger by 5 mm, so the pre-shape is met to this.
const OPENING_STEP: f64 = 0.0035;
const OPENING_MET: f64 = 0.006;
/// Half the width of what must be free for the fingers and the held object.
const FINGERS_RADIUS: f64 = 0.075;
const OBJECT_RADIUS: f64 = 0.065;
/// A grip that slipped further than this is lost.
const SLIP: f64 = 0.03;
/// Steps for one phase; official limits are 220 (spatial) and 280 (object) for all of them.
const REACH_STEPS: u32 = 70;
const CARRY_STEPS: u32 = 140;
/// Eight steps take a finger from one end to the other.
const CLOSE_STEPS: u32 = 14;
/// Time to pull the object out from under something before it is lifted.
const PULL_STEPS: u32 = 12;
const OPEN_STEPS: u32 = 10;

/// What the expert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// To the grasp: across at a safe height while pre-shaping the fingers, then down.
    Reach,
    /// Closing the fingers round the object.
    Close,
    /// Up, across to the goal, and down.
    Carry,
    /// Opening the fingers over the goal.
    Release,
    /// Up with open fingers after a failure, then a new plan.
    Retreat,
}

/// A pick-and-place expert for `libero_spatial` and `libero_object`, as Cartesian deltas with gripper sign.
///
/// A label is `[1, 7]` in LIBERO's action space: translation and axis-angle in the world frame, `[-1, 1]`, and a gripper
/// sign (-1 opens, +1 closes, 0 holds, which keeps a half-closed pre-shape).
///
/// It reads the privileged state (poses and collision boxes, see the module) and the instruction. Its memory is a phase,
/// a grasp in the object's frame, and the grasps that failed; after [`reset`](Expert::reset) it is rebuilt from the state
/// it sees, whatever the hand is doing there. An object in the hand where the memory says otherwise, or the reverse,
/// changes the phase, so that it labels other policies' states.
#[derive(Clone, Debug, Default)]
pub struct LiberoExpert {
    memory: Option<Memory>,
    tried: Vec<GraspId>,
}

/// What is kept between steps.
#[derive(Clone, Debug)]
struct Memory {
    phase: Phase,
    grasp: Grasp,
    /// Steps in this phase.
    steps: u32,
    /// The least error of this phase and the step at which it was met.
    best: Option<(f64, u32)>,
    /// Where the hand closes.
    hold: Vector3<f64>,
    /// The hand's yaw while carrying.
    yaw: f64,
    /// Steps in a row in which the hand was right above the grasp.
    steady: u32,
    /// Steps in which the object was not between the pads while carrying.
    loose: u32,
}

/// Where the hand should be, and what the gripper does.
struct Command {
    point: Vector3<f64>,
    yaw: f64,
    gripper: f64,
}

/// What follows a command.
enum Next {
    Stay,
    Go(Phase),
    /// This grasp did not work.
    Failed(&'static str),
    /// Forget everything but the failures.
    Replan,
}

impl LiberoExpert {
    /// An expert at the start of an episode.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it is about; `None` before the first label and between attempts.
    pub fn phase(&self) -> Option<Phase> {
        self.memory.as_ref().map(|memory| memory.phase)
    }

    /// Grasps that failed in this episode.
    pub fn failures(&self) -> usize {
        self.tried.len()
    }
}

impl Expert for LiberoExpert {
    fn reset(&mut self) {
        *self = Self::default();
    }

    /// `None` when nothing of the object fits between the fingers.
    fn label(
        &mut self,
        obs: &Observation,
        info: &Info,
    ) -> Result<Option<ActionChunk>, PolicyError> {
        let task = Task::parse(&obs.instruction)?;
        let state = info.privileged.as_ref().ok_or_else(|| PolicyError::Missing {
            what: "privileged state".to_owned(),
            remedy: "make the environment with the privileged state switched on".to_owned(),
        })?;
        let scene = Scene::read(state)?;
        let situation = Situation::new(&scene, &task)?;

        let Some(mut memory) = self
            .memory
            .take()
            .map_or_else(|| Memory::rebuild(&situation, &self.tried), |memory| Ok(Some(memory)))?
        else {
            return Ok(None);
        };
        if memory.phase == Phase::Reach && in_hand(&scene, situation.body) {
            memory.take_up(&situation);
        }
        let (command, next) = memory.act(&situation);
        match next {
            Next::Stay => {}
            Next::Go(phase) => memory.enter(phase),
            Next::Failed(reason) => {
                tracing::debug!(phase = ?memory.phase, steps = memory.steps, reason, "the grasp failed");
                self.tried.extend(memory.grasp.id);
                memory.enter(Phase::Retreat);
            }
            Next::Replan => return Ok(Some(action(&scene, &command))),
        }
        self.memory = Some(memory);
        Ok(Some(action(&scene, &command)))
    }
}

/// The scene as the task sees it.
struct Situation<'a> {
    scene: &'a Scene<'a>,
    task: &'a Task,
    /// The object to pick up.
    body: &'a Body,
    goal_body: &'a Body,
    /// Where the object's origin should be.
    goal: Vector3<f64>,
    /// Half the height of the goal region; `None` when the goal is a surface.
    goal_half_height: Option<f64>,
}

impl<'a> Situation<'a> {
    fn new(scene: &'a Scene<'a>, task: &'a Task) -> Result<Self, PolicyError> {
        let goal_body = scene.body(task.goal_body())?;
        let (goal, goal_half_height) = match task.goal {
            Goal::On(_) => (goal_body.pos, None),
            Goal::In { region, .. } => {
                let region = scene.region(region)?;
                (region.pos, Some(region.half_height))
            }
        };
        let body = scene.body(&task.target)?;
        Ok(Self { scene, task, body, goal_body, goal, goal_half_height })
    }
}

impl Memory {
    fn new(phase: Phase, grasp: Grasp, situation: &Situation<'_>) -> Self {
        let Situation { scene, .. } = situation;
        let (hold, yaw) = (scene.eef, yaw_of(&scene.hand));
        Self { phase, grasp, steps: 0, best: None, hold, yaw, steady: 0, loose: 0 }
    }

    /// The memory that an expert would have here, from the state alone; `None` if there is nothing to grasp.
    fn rebuild(s: &Situation<'_>, tried: &[GraspId]) -> Result<Option<Self>, PolicyError> {
        if in_hand(s.scene, s.body) {
            return Ok(Some(Self::new(Phase::Carry, Grasp::as_it_is(s.scene, s.body), s)));
        }
        let planned = plan(s.scene, s.task, s.goal, tried)?;
        if let Some(grasp) = reached(s.scene, s.body, &planned) {
            return Ok(Some(Self::new(Phase::Close, grasp.clone(), s)));
        }
        Ok(planned.into_iter().next().map(|best| {
            tracing::debug!(score = best.score, room = best.room, grasp = ?best.grasp.id, "planned");
            Self::new(Phase::Reach, best.grasp, s)
        }))
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.steps = 0;
        self.best = None;
        self.steady = 0;
        self.loose = 0;
    }

    /// The object is in the hand, planned or not: carry it as it is.
    fn take_up(&mut self, s: &Situation<'_>) {
        *self = Self::new(Phase::Carry, Grasp::as_it_is(s.scene, s.body), s);
    }

    fn act(&mut self, s: &Situation<'_>) -> (Command, Next) {
        self.steps += 1;
        match self.phase {
            Phase::Reach => self.reach(s),
            Phase::Close => self.close(s),
            Phase::Carry => self.carry(s),
            Phase::Release => {
                self.wait(s, Vector3::zeros(), Next::Failed("released without success"))
            }
            Phase::Retreat => {
                let mut away = Vector3::z() * TRANSLATION_M;
                // Then towards the base too: an arm that is stretched out does not follow its controller any more.
                if self.steps > OPEN_STEPS / 2 {
                    let back = Vector2::new(BASE_X, 0.0) - s.scene.eef.xy();
                    set_xy(&mut away, TRANSLATION_M * back.normalize());
                }
                self.wait(s, away, Next::Replan)
            }
        }
    }

    fn reach(&mut self, s: &Situation<'_>) -> (Command, Next) {
        let scene = s.scene;
        let yaw_now = yaw_of(&scene.hand);
        let (grasp, yaw) = self.grasp.pose(s.body);
        let yaw = nearer_yaw(yaw, yaw_now);
        let (here, there) = (scene.eef.xy(), grasp.xy());
        let away = (there - here).norm();
        let excess = scene.opening - self.grasp.opening;
        let mut point = grasp;
        let mut down = false;
        if away > ABOVE {
            let over_fingers = scene.corridor_top(here, there, FINGERS_RADIUS, &[]) + TIP + 0.015;
            // 12 cm: the palm's half width and the deviation that is allowed here.
            let over_palm = scene.corridor_top(here, there, 0.12, &[]) - PALM + 0.015;
            point.z = (grasp.z + HOVER).max(over_fingers).max(over_palm);
            let across = height_permits(scene.eef.z, point.z - 0.01, 0.03);
            set_xy(&mut point, here + across * (there - here));
        } else {
            let ready = away < ALIGNED
                && wrap_half_turn(yaw - yaw_now).abs() < ALIGNED_RAD
                && excess.abs() < OPENING_MET;
            let beside = scene.eef.z < grasp.z + 0.025;
            self.steady = if ready { self.steady + 1 } else { 0 };
            down = self.steady >= 2 || (beside && away < ALIGNED_LOW);
            if !down {
                point.z += HOVER;
                self.best = None;
            }
        }
        let gripper = if excess.abs() > OPENING_STEP { excess.signum() } else { 0.0 };
        let above = (scene.eef.z - grasp.z).abs();
        let next = if down {
            let stalled = self.stalled(above, 6);
            if above < 0.004 || (stalled && above < 0.02) {
                self.hold = grasp;
                Next::Go(Phase::Close)
            } else if stalled {
                Next::Failed("something is in the way")
            } else {
                Next::Stay
            }
        } else if self.steps > REACH_STEPS {
            Next::Failed("the grasp was not reached")
        } else {
            Next::Stay
        };
        (Command { point, yaw, gripper }, next)
    }

    fn close(&mut self, s: &Situation<'_>) -> (Command, Next) {
        let (grasp, yaw) = self.grasp.pose(s.body);
        self.yaw = nearer_yaw(yaw, yaw_of(&s.scene.hand));
        if self.steps <= 2 {
            self.hold = grasp;
        }
        let opening = s.scene.opening;
        if self.best.is_none_or(|(least, _)| opening < least - 0.0007) {
            self.best = Some((opening, self.steps));
        }
        let still = self.best.map_or(0, |(_, since)| self.steps - since);
        let mut next = Next::Stay;
        if self.steps >= 4 && still >= 2 {
            if in_hand(s.scene, s.body) {
                self.enter(Phase::Carry);
                return self.carry(s);
            }
            if self.steps >= CLOSE_STEPS || opening < EMPTY {
                next = Next::Failed("the fingers closed on nothing");
            }
        }
        (Command { point: self.hold, yaw: self.yaw, gripper: 1.0 }, next)
    }

    fn carry(&mut self, s: &Situation<'_>) -> (Command, Next) {
        let (scene, body) = (s.scene, s.body);
        let target = s.task.target.as_str();
        let way = s.goal.xy() - body.pos.xy();
        let away = way.norm();
        let (here, there) = (scene.eef.xy(), scene.eef.xy() + way);

        // Over everything on the way, with the object below the hand and the palm beside it.
        let hanging = scene.eef.z - body.height_range().0;
        let over_object = scene.corridor_top(body.pos.xy(), s.goal.xy(), OBJECT_RADIUS, &[target])
            + hanging
            + 0.02;
        let over_palm = scene.corridor_top(here, there, PALM_RADIUS, &[target]) - PALM + 0.012;
        let cruise = over_object.max(over_palm);
        // How far the object's origin is below the grip site.
        let origin = scene.eef.z - body.pos.z;
        let (place, close_by) = match s.goal_half_height {
            // `On` wants 3 cm.
            None => (s.goal.z + 0.003 + origin, 0.018),
            // Well inside the region, but the palm stays above the walls.
            Some(half) => {
                let wall = s.goal_body.height_range().1;
                ((s.goal.z + 0.3 * half + origin).max(wall - PALM + 0.008), 0.03)
            }
        };

        let mut point = Vector3::new(there.x, there.y, place);
        if away >= close_by {
            point.z = cruise.max(place);
            let across = height_permits(scene.eef.z, cruise - 0.008, 0.04);
            let push = scene.way_out_from_under(body, target);
            set_xy(&mut point, here + across * way + push);
            if push.norm() > 0.004 && self.steps <= PULL_STEPS {
                point.z = scene.eef.z;
            }
        }
        self.loose = if in_hand(scene, body) { 0 } else { self.loose + 1 };
        let slip = (self.grasp.pose(body).0 - scene.eef).norm();
        let next = if slip > SLIP || scene.opening < EMPTY || self.loose >= 4 {
            Next::Failed("the object was dropped")
        } else if away < close_by {
            let above = scene.eef.z - place;
            if above < 0.004 || self.stalled(above, 8) {
                Next::Go(Phase::Release)
            } else {
                Next::Stay
            }
        } else if self.steps > CARRY_STEPS {
            Next::Failed("the goal was not reached")
        } else {
            Next::Stay
        };
        (Command { point, yaw: self.yaw, gripper: 1.0 }, next)
    }

    /// Opens the fingers, moving on by `shift` per step, until `then`.
    fn wait(&self, s: &Situation<'_>, shift: Vector3<f64>, then: Next) -> (Command, Next) {
        let point = s.scene.eef + shift;
        let command = Command { point, yaw: yaw_of(&s.scene.hand), gripper: -1.0 };
        (command, if self.steps >= OPEN_STEPS { then } else { Next::Stay })
    }

    /// Whether the error of this phase has not shrunk for this many steps.
    fn stalled(&mut self, error: f64, patience: u32) -> bool {
        match self.best {
            Some((least, since)) if error >= least - 0.0015 => self.steps - since >= patience,
            _ => {
                self.best = Some((error, self.steps));
                false
            }
        }
    }
}

/// How much of a sideways motion the height allows: all of it from `enough`, none of it `ramp` below.
fn height_permits(z: f64, enough: f64, ramp: f64) -> f64 {
    (1.0 - (enough - z) / ramp).clamp(0.0, 1.0)
}

fn set_xy(point: &mut Vector3<f64>, xy: Vector2<f64>) {
    point.x = xy.x;
    point.y = xy.y;
}

/// `[1, 7]`: the direction is kept where an axis saturates.
fn action(scene: &Scene<'_>, command: &Command) -> ActionChunk {
    let saturate = |v: Vector3<f64>| v / v.amax().max(1.0);
    let move_by = saturate(POSITION_GAIN * (command.point - scene.eef) / TRANSLATION_M);
    let turn = pointing_down(command.yaw) * scene.hand.transpose();
    let turn_by = saturate(ROTATION_GAIN * rotation_vector(&turn) / ROTATION_RAD);
    let numbers = move_by.iter().chain(turn_by.iter()).copied().chain([command.gripper]);
    let row: Vec<f32> = numbers.map(|v| v as f32).collect();
    ActionChunk::single(&row).expect("three, three and one make seven")
}
