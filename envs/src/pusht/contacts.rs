//! Chipmunk's contact rules inside rapier's solver.
//!
//! Both engines ask of a contact that the bodies separate along the normal with at least some speed. They differ in which
//! contacts count and in that speed, and both can be said through the contact hook of rapier:
//!
//! * Chipmunk knows a contact only once shapes touch (`dist <= 0`); rapier also sees coming ones and would brake them.
//! * Chipmunk leaves a penetration of `collision_slop` standing and removes the rest at 6 % per sub-step.
//! * Chipmunk removes penetration by pseudo-velocities, solved apart from the real ones. An agent that draws back from
//!   an overlap therefore takes nothing off the correction. rapier solves both at once, where drawing back counts as
//!   correction; the retreat is added to the depth to make up for it. With one contact both problems have the same
//!   solution; with two (the inner corner) they can differ slightly.
//!
//! Measured on the recorded gym-pusht episodes: `bench replay pusht`, figures in [`super`].

use std::sync::atomic::{AtomicBool, Ordering};

use rapier3d::dynamics::SpringCoefficients;
use rapier3d::math::Vector;
use rapier3d::prelude::{
    ContactModificationContext, IntegrationParameters, PhysicsHooks, RigidBodyHandle,
};

use super::scene::DT;

/// Penetration that is left standing, m: Chipmunk's default `collision_slop` of 0.1 px.
const SLOP_M: f32 = 0.001;
/// Share of the remaining penetration removed per sub-step: `1 - 0.9^(60 dt)` with Chipmunk's default
/// `collision_bias = 0.9^60` per second.
const CORRECTION: f32 = 0.061_259_7;
/// Damping ratio of the contact spring. Large, so that the spring is rigid: what remains soft about it falls with the
/// square (compliance 4e-6 here), and Chipmunk has no compliance.
const DAMPING_RATIO: f32 = 1000.0;
/// How far ahead rapier looks for contacts, m; only to keep a contact of distance zero from rounding away.
const PREDICTION_M: f32 = 0.0005;

/// The contact hook for one sub-step.
pub(super) struct ChipmunkContacts {
    agent: RigidBodyHandle,
    /// The agent's velocity, m/s.
    velocity: Vector,
    /// Whether any contact was seen. Atomic because rapier asks its hooks to be `Sync`.
    touched: AtomicBool,
}

impl ChipmunkContacts {
    pub(super) fn new(agent: RigidBodyHandle, velocity: Vector) -> Self {
        Self { agent, velocity, touched: AtomicBool::new(false) }
    }

    /// Whether the step made any contact.
    pub(super) fn touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }
}

impl PhysicsHooks for ChipmunkContacts {
    fn modify_solver_contacts(&self, context: &mut ContactModificationContext) {
        let (first, second) = (context.rigid_body1, context.rigid_body2);
        let Some(manifold) = context.rigid_mut() else { return };
        // The normal points from the first body to the second.
        let approach = self.velocity.dot(*manifold.normal);
        let retreat = match (first, second) {
            (Some(body), _) if body == self.agent => (-approach).max(0.0),
            (_, Some(body)) if body == self.agent => approach.max(0.0),
            _ => 0.0,
        };
        manifold.solver_contacts.retain(|contact| contact.dist <= 0.0);
        if manifold.solver_contacts.is_empty() {
            return;
        }
        self.touched.store(true, Ordering::Relaxed);
        for contact in manifold.solver_contacts.iter_mut() {
            contact.dist = (contact.dist + SLOP_M).min(0.0) - retreat * (DT as f32 / CORRECTION);
        }
    }
}

/// Solver settings under which the hook's distances mean what Chipmunk means.
pub(super) fn integration_parameters() -> IntegrationParameters {
    // rapier corrects dt w / (dt w + 2 zeta) of a penetration per step; solved here for w.
    let angular = 2.0 * DAMPING_RATIO * CORRECTION / ((1.0 - CORRECTION) * DT as f32);
    let softness = SpringCoefficients::new(angular / std::f32::consts::TAU, DAMPING_RATIO);
    IntegrationParameters {
        dt: DT as f32,
        contact_softness: softness,
        static_contact_softness: softness,
        // The number of sweeps inside it is set before every step.
        num_solver_iterations: 1,
        // The pass that would strip the correction from the velocities; they are zeroed anyway.
        num_internal_stabilization_iterations: 0,
        // Without cached impulses a state decides its future alone. (Their effect in Chipmunk is below 1e-4 px unless
        // the block is squeezed against a wall.)
        warmstart_coefficient: 0.0,
        normalized_prediction_distance: PREDICTION_M,
        // A fast agent may be 18 px deep and draw back at 1,800 px/s; Chipmunk has no bound here.
        normalized_max_corrective_velocity: f32::MAX,
        // On by default: it reuses contacts over up to 5 cm of motion, which is 5 px here.
        contact_recycling: false,
        contact_clustering: false,
        max_ccd_substeps: 0,
        ..IntegrationParameters::default()
    }
}
