//! The physics of PushT in rapier: a kinematic disc pushes a quasi-static T without friction.
//!
//! gym-pusht runs pymunk (Chipmunk 7.0.3) with ten sub-steps of 0.01 s per control step. Three of its habits shape
//! this file; what counts as a contact is in `contacts.rs`.
//!
//! * `space.damping = 0` means that *no* velocity survives a sub-step. The block moves only while it is touched and
//!   never slides on, so its velocity is zeroed before every rapier step.
//! * Chipmunk integrates first and solves afterwards; rapier detects, solves, integrates. The displacement of the
//!   block therefore answers to the agent's velocity of the sub-step before, while the agent itself already moves
//!   with its new velocity. The agent is kept in `f64` here and placed anew before each rapier step.
//! * friction is set on bodies, where pymunk ignores it: every contact is frictionless and inelastic.
//!
//! The walls are as thin as gym-pusht's (4 px), so the block can be forced through them here as there.
//!
//! Lengths handed to rapier are metres, 1 m = 100 px: its tolerances are meant for bodies of about that size.

use rapier3d::math::{Pose as Isometry, Rotation, Vector};
use rapier3d::prelude::{
    ActiveHooks, BroadPhaseBvh, BvhOptimizationStrategy, ColliderBuilder, LockedAxes,
    MassProperties, PhysicsWorld, RigidBodyBuilder, RigidBodyHandle,
};
use serde::{Deserialize, Serialize};

use super::contacts::{ChipmunkContacts, integration_parameters};
use super::geometry::{
    AGENT_RADIUS, CENTRE_OF_GRAVITY, Point, Pose, RECTANGLES, WALL_MAX, WALL_MIN, atan2,
    distances_in_body_frame, sin_cos, to_body,
};

/// Physics sub-steps per control step: 100 Hz over 10 Hz (gym-pusht `dt`, `control_hz`).
pub const SUB_STEPS: usize = 10;
/// Length of a sub-step, s (gym-pusht `dt`).
pub const DT: f64 = 0.01;
/// Gains of the agent's PD control, 1/s² and 1/s (gym-pusht `k_p, k_v`).
const K_P: f64 = 100.0;
const K_V: f64 = 20.0;
const METRES_PER_PX: f64 = 0.01;
/// Rapier steps are left out while agent and walls are at least this far from the block, px: contacts begin at 0.
const CLEARANCE: f64 = 0.05;
/// Gauss-Seidel sweeps over several contacts (Chipmunk's default `iterations`).
const SWEEPS: usize = 10;
/// Half thickness of block and walls along z, m: more than any depth in the plane, else z would become the axis
/// of least penetration, along which the block cannot move.
const HALF_DEPTH_M: f32 = 1.0;
/// Half the walls' thickness, px (gym-pusht `add_segment` radius).
const WALL_RADIUS: f64 = 2.0;

/// All that decides the future of a scene.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SceneState {
    /// Agent's centre, px.
    pub agent: Point,
    /// Agent's velocity, px/s.
    pub agent_velocity: Point,
    /// Block's pose, px and rad (true origin, no legacy offset).
    pub block: Pose,
}

impl SceneState {
    /// A state at rest.
    pub fn at_rest(agent: Point, block: Pose) -> Self {
        Self { agent, agent_velocity: [0.0; 2], block }
    }
}

/// One arena: the rapier world and the agent in `f64`.
pub struct Scene {
    world: PhysicsWorld,
    agent_body: RigidBodyHandle,
    block_body: RigidBodyHandle,
    state: SceneState,
    /// Sine and cosine of the block's angle, kept with `state.block`.
    sin_cos: (f64, f64),
    /// Whether the block can touch a wall, kept with `state.block`.
    at_wall: bool,
    touched: bool,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Scene {
    /// Builds a fresh world in the given state.
    pub fn new(state: SceneState) -> Self {
        let mut world = PhysicsWorld {
            gravity: Vector::ZERO,
            integration_parameters: integration_parameters(),
            // Seven shapes need no upkeep of the tree; left on, it is rebuilt in every step.
            broad_phase: BroadPhaseBvh::with_optimization_strategy(BvhOptimizationStrategy::None),
            ..PhysicsWorld::default()
        };
        let walls = RigidBodyBuilder::fixed();
        let walls = world.insert_body(walls);
        for [cx, cy, hx, hy] in wall_boxes().map(|wall| wall.map(metres)) {
            let wall = ColliderBuilder::cuboid(hx, hy, HALF_DEPTH_M);
            let wall = inelastic(wall).translation(Vector::new(cx, cy, 0.0));
            world.insert_collider(wall, Some(walls));
        }
        let block = RigidBodyBuilder::dynamic()
            .pose(isometry(&state.block))
            .locked_axes(
                LockedAxes::TRANSLATION_LOCKED_Z
                    | LockedAxes::ROTATION_LOCKED_X
                    | LockedAxes::ROTATION_LOCKED_Y,
            )
            .can_sleep(false)
            // Mass 1; moment 3000 px² = 0.3 m²: twice the *bar's* moment, as gym-pusht `add_tee` has it.
            .additional_mass_properties(MassProperties::new(
                Vector::new(metres(CENTRE_OF_GRAVITY[0]), metres(CENTRE_OF_GRAVITY[1]), 0.0),
                1.0,
                Vector::splat(0.3),
            ));
        let block_body = world.insert_body(block);
        for [a, _, c, _] in RECTANGLES {
            let half = [metres((c[0] - a[0]) / 2.0), metres((c[1] - a[1]) / 2.0)];
            let centre = [metres(f64::midpoint(a[0], c[0])), metres(f64::midpoint(a[1], c[1]))];
            let part = ColliderBuilder::cuboid(half[0], half[1], HALF_DEPTH_M).density(0.0);
            let part = inelastic(part).translation(Vector::new(centre[0], centre[1], 0.0));
            world.insert_collider(part, Some(block_body));
        }
        let agent = RigidBodyBuilder::kinematic_velocity_based().translation(planar(state.agent));
        let agent_body = world.insert_body(agent);
        let disc = ColliderBuilder::ball(metres(AGENT_RADIUS));
        world.insert_collider(inelastic(disc), Some(agent_body));
        Self {
            world,
            agent_body,
            block_body,
            state,
            sin_cos: sin_cos(state.block.angle),
            at_wall: reaches_wall(&state.block, sin_cos(state.block.angle)),
            touched: false,
        }
    }

    /// The present state.
    pub fn state(&self) -> &SceneState {
        &self.state
    }

    /// Replaces the state. The world is built anew: contact caches, tree shape and handle order of what ran before
    /// must not reach what runs after.
    pub fn set_state(&mut self, state: SceneState) {
        *self = Self::new(state);
    }

    /// Whether the block touched the agent or a wall during the last control step.
    pub fn touched(&self) -> bool {
        self.touched
    }

    /// One control step of 0.1 s towards `target`, px (not clipped, as in gym-pusht).
    pub fn control_step(&mut self, target: Point) {
        self.touched = false;
        for _ in 0..SUB_STEPS {
            self.sub_step(target);
        }
    }

    fn sub_step(&mut self, target: Point) {
        let SceneState { agent: p, agent_velocity: v, .. } = self.state;
        let accelerate = |i: usize| v[i] + (K_P * (target[i] - p[i]) + K_V * (0.0 - v[i])) * DT;
        let next_velocity = [accelerate(0), accelerate(1)];
        let sweeps = self.sweeps_needed();
        if sweeps > 0 {
            self.push(p, v, sweeps);
        }
        self.state.agent = [p[0] + next_velocity[0] * DT, p[1] + next_velocity[1] * DT];
        self.state.agent_velocity = next_velocity;
    }

    /// Solver sweeps that the next rapier step needs: none where nothing can touch the block (the step would do nothing
    /// and is left out), one for a single contact (which one sweep solves), else [`SWEEPS`].
    fn sweeps_needed(&self) -> usize {
        let (sin, cos) = self.sin_cos;
        let Pose { x, y, .. } = self.state.block;
        if self.at_wall {
            return SWEEPS;
        }
        let agent = to_body(self.state.agent, sin, cos, [x, y]);
        match distances_in_body_frame(agent).map(|d| d < AGENT_RADIUS + CLEARANCE) {
            [false, false] => 0,
            [true, true] => SWEEPS,
            _ => 1,
        }
    }

    /// One rapier step with the agent at `p` moving at `v`.
    fn push(&mut self, p: Point, v: Point, sweeps: usize) {
        self.world.integration_parameters.num_internal_pgs_iterations = sweeps;
        let agent = &mut self.world.bodies[self.agent_body];
        agent.set_translation(planar(p), false);
        agent.set_linvel(planar(v), false);
        let block = &mut self.world.bodies[self.block_body];
        block.set_linvel(Vector::ZERO, false);
        block.set_angvel(Vector::ZERO, false);
        let before = *block.position();
        let hooks = ChipmunkContacts::new(self.agent_body, planar(v));
        self.world.step_with_events(&hooks, &());
        self.touched |= hooks.touched();
        let after = *self.world.bodies[self.block_body].position();
        if after != before {
            self.read_block(&after);
        }
    }

    fn read_block(&mut self, pose: &Isometry) {
        let (z, w) = (f64::from(pose.rotation.z), f64::from(pose.rotation.w));
        let norm = z * z + w * w;
        self.sin_cos = (2.0 * z * w / norm, (w * w - z * z) / norm);
        let block = &mut self.state.block;
        block.x = f64::from(pose.translation.x) / METRES_PER_PX;
        block.y = f64::from(pose.translation.y) / METRES_PER_PX;
        // The turn count is continued: within a sub-step the block turns by far less than half a turn.
        let (sin, cos) = sin_cos(block.angle);
        let turn = atan2(
            self.sin_cos.0 * cos - self.sin_cos.1 * sin,
            self.sin_cos.1 * cos + self.sin_cos.0 * sin,
        );
        block.angle += turn;
        self.at_wall = reaches_wall(block, self.sin_cos);
    }
}

/// Whether a corner of the block lies at or beyond a wall's inner face.
fn reaches_wall(block: &Pose, (sin, cos): (f64, f64)) -> bool {
    RECTANGLES.as_flattened().iter().any(|&[u, v]| {
        let corner = [block.x + u * cos - v * sin, block.y + u * sin + v * cos];
        corner.iter().any(|c| !(WALL_MIN + CLEARANCE..=WALL_MAX - CLEARANCE).contains(c))
    })
}

/// A frictionless, inelastic shape whose contacts go through [`ChipmunkContacts`].
fn inelastic(shape: ColliderBuilder) -> ColliderBuilder {
    shape.friction(0.0).restitution(0.0).active_hooks(ActiveHooks::MODIFY_SOLVER_CONTACTS)
}

/// Centre and half extents of the four walls, px.
fn wall_boxes() -> [[f64; 4]; 4] {
    let (low, high) = (WALL_MIN - WALL_RADIUS, WALL_MAX + WALL_RADIUS);
    let (middle, half) = (f64::midpoint(low, high), (high - low) / 2.0 + WALL_RADIUS);
    [
        [low, middle, WALL_RADIUS, half],
        [high, middle, WALL_RADIUS, half],
        [middle, low, half, WALL_RADIUS],
        [middle, high, half, WALL_RADIUS],
    ]
}

fn metres(px: f64) -> f32 {
    (px * METRES_PER_PX) as f32
}

fn planar(p: Point) -> Vector {
    Vector::new(metres(p[0]), metres(p[1]), 0.0)
}

fn isometry(pose: &Pose) -> Isometry {
    let (sin, cos) = sin_cos(pose.angle / 2.0);
    Isometry::from_parts(
        planar([pose.x, pose.y]),
        Rotation::from_xyzw(0.0, 0.0, sin as f32, cos as f32),
    )
}
