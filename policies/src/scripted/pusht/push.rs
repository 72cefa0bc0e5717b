//! The quasi-static push: how the block moves while the agent holds one contact point.
//!
//! The block has no momentum and no friction (gym-pusht sets damping 0 and leaves every shape's friction at 0), so the
//! contact can only give an impulse along its normal. With arm `d` about the centre of gravity and inertia `I` per
//! mass, a contact that advances at unit speed moves the centre of gravity at `j = 1 / (1 + d²/I)` along the normal and
//! turns the block at `j·d/I`: a constant twist in the body frame, whose exponential is an arc.

use simloop_envs::pusht::{AGENT_RADIUS, sin_cos};

use super::geometry::{COG, INERTIA, Pose, Vec2};

/// A place on the T's outline where the agent may push.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    /// Which of the eight edges.
    pub(super) edge: usize,
    /// On the outline, body frame.
    pub(super) point: Vec2,
    /// Outward.
    pub(super) normal: Vec2,
    /// Speed of the centre of gravity per speed of the contact.
    gain: f64,
    /// Turn per pixel of contact travel, rad.
    turn: f64,
}

impl Contact {
    pub(super) fn new(edge: usize, point: Vec2, normal: Vec2) -> Self {
        let arm = point - COG;
        let push = -normal;
        let moment = arm.x * push.y - arm.y * push.x;
        let gain = 1.0 / (1.0 + moment * moment / INERTIA);
        Self { edge, point, normal, gain, turn: gain * moment / INERTIA }
    }

    /// The agent's centre in the body frame when its rim is `gap` away from the contact point.
    pub(super) fn agent(&self, gap: f64) -> Vec2 {
        self.point + self.normal * (AGENT_RADIUS + gap)
    }

    /// What `travel` pixels of pushing do, in the body frame.
    pub(super) fn motion(&self, travel: f64) -> Motion {
        let angle_rad = self.turn * travel;
        let (sin, cos) = sin_cos(angle_rad);
        let push = -self.normal * (self.gain * travel);
        // The mean of R(s·angle) over s in 0..1, applied to the straight displacement.
        let (a, b) = if angle_rad.abs() < 1e-6 {
            (1.0, angle_rad / 2.0)
        } else {
            (sin / angle_rad, (1.0 - cos) / angle_rad)
        };
        let shift = Vec2::new(a * push.x - b * push.y, b * push.x + a * push.y);
        Motion { travel, shift, angle_rad, rotation: Vec2::new(cos, sin) }
    }
}

/// A rigid motion of the block in its own frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Motion {
    /// How far the contact advanced, px.
    pub(super) travel: f64,
    shift: Vec2,
    angle_rad: f64,
    rotation: Vec2,
}

impl Motion {
    pub(super) fn apply(&self, pose: &Pose) -> Pose {
        pose.moved(self.shift, self.angle_rad, self.rotation)
    }
}

/// Number of the T's edges.
pub(super) const N_EDGES: usize = 8;

/// The edges of the T as `(from, to, outward normal)` of the stretch that a disc of the agent's radius can touch: an
/// inner corner keeps it one radius away.
const EDGES: [(Vec2, Vec2, Vec2); N_EDGES] = [
    (Vec2::new(-60.0, 0.0), Vec2::new(60.0, 0.0), Vec2::new(0.0, -1.0)),
    (Vec2::new(60.0, 0.0), Vec2::new(60.0, 30.0), Vec2::new(1.0, 0.0)),
    (Vec2::new(60.0, 30.0), Vec2::new(30.0, 30.0), Vec2::new(0.0, 1.0)),
    (Vec2::new(15.0, 45.0), Vec2::new(15.0, 120.0), Vec2::new(1.0, 0.0)),
    (Vec2::new(15.0, 120.0), Vec2::new(-15.0, 120.0), Vec2::new(0.0, 1.0)),
    (Vec2::new(-15.0, 120.0), Vec2::new(-15.0, 45.0), Vec2::new(-1.0, 0.0)),
    (Vec2::new(-30.0, 30.0), Vec2::new(-60.0, 30.0), Vec2::new(0.0, 1.0)),
    (Vec2::new(-60.0, 30.0), Vec2::new(-60.0, 0.0), Vec2::new(-1.0, 0.0)),
];

/// Contacts spread over all edges, at most `spacing` px apart and `inset` px from the edges' ends.
pub(super) fn contacts(spacing: f64, inset: f64) -> Vec<Contact> {
    let mut all = Vec::new();
    for (edge, &(from, to, normal)) in EDGES.iter().enumerate() {
        let along = (to - from).normalize();
        // An inner corner needs no inset beyond the one radius it already keeps, but a pixel keeps the disc off the
        // other edge.
        let length = (to - from).norm() - 2.0 * inset;
        let n = (length / spacing).ceil().max(1.0);
        for i in 0..=n as usize {
            let at = from + along * (inset + length * i as f64 / n);
            all.push(Contact::new(edge, at, normal));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_envs::pusht::{Pose as Placed, Scene, SceneState};

    #[test]
    fn a_push_through_the_centre_of_gravity_does_not_turn() {
        let contact = Contact::new(3, Vec2::new(15.0, 45.0), Vec2::new(1.0, 0.0));
        let start = Pose::from_origin([200.0, 200.0, 0.0]);
        let end = contact.motion(30.0).apply(&start);
        assert!((end.cog - start.cog - Vec2::new(-30.0, 0.0)).norm() < 1e-12);
        assert_eq!(end.angle_rad, 0.0);
    }

    #[test]
    fn an_off_centre_push_gives_way_by_turning() {
        // On the bar's outer edge at x = 60 the arm is (60, -45) and the push (0, 1): moment 60, gain 1/(1 + 3600/3000).
        let contact = Contact::new(0, Vec2::new(60.0, 0.0), Vec2::new(0.0, -1.0));
        let motion = contact.motion(1e-3);
        let gain = 1.0 / 2.2;
        assert!((motion.shift - Vec2::new(0.0, 1e-3 * gain)).norm() < 1e-8);
        assert!((motion.angle_rad - 1e-3 * gain * 60.0 / 3000.0).abs() < 1e-12);
        // The contact point itself advances by the travel.
        let pose = motion.apply(&Pose::from_origin([0.0; 3]));
        assert!((pose.world_from_body(contact.point).y - 1e-3).abs() < 1e-7);
    }

    #[test]
    fn pushes_at_one_contact_add_up() {
        let start = Pose::from_origin([250.0, 180.0, 0.7]);
        for contact in contacts(20.0, 2.0) {
            let once = contact.motion(50.0).apply(&start);
            let twice = contact.motion(30.0).apply(&contact.motion(20.0).apply(&start));
            assert!(once.squared_distance(&twice, 45.0) < 1e-18);
        }
    }

    #[test]
    fn contacts_leave_room_for_the_disc() {
        use super::super::geometry::clearance;
        for contact in contacts(6.0, 2.0) {
            let distance = clearance(contact.agent(0.0)).0;
            assert!((distance - AGENT_RADIUS).abs() < 1e-12, "{contact:?}: {distance}");
        }
    }

    /// Pushes at `contact` in the simulator as the expert does; the end of it and how far the contact advanced.
    fn simulate(contact: &Contact, steps: usize) -> (Pose, f64) {
        let block = Placed { x: 256.0, y: 220.0, angle: 0.4 };
        let mut pose = Pose::from_origin([block.x, block.y, block.angle]);
        let agent = pose.world_from_body(contact.agent(0.5));
        let mut scene = Scene::new(SceneState::at_rest([agent.x, agent.y], block));
        let mut travel = 0.0;
        for _ in 0..steps {
            let ahead = contact.motion(25.0).apply(&pose).world_from_body(contact.agent(0.0));
            scene.control_step([ahead.x, ahead.y]);
            let block = scene.state().block;
            let next = Pose::from_origin([block.x, block.y, block.angle]);
            let moved = next.world_from_body(contact.point) - pose.world_from_body(contact.point);
            travel += moved.dot(&-pose.rotate(contact.normal));
            pose = next;
        }
        (pose, travel)
    }

    #[test]
    fn the_arc_is_the_simulators() {
        let start = Pose::from_origin([256.0, 220.0, 0.4]);
        for (point, normal) in [
            (Vec2::new(40.0, 0.0), Vec2::new(0.0, -1.0)),
            (Vec2::new(-25.0, 0.0), Vec2::new(0.0, -1.0)),
            (Vec2::new(15.0, 90.0), Vec2::new(1.0, 0.0)),
            (Vec2::new(-60.0, 15.0), Vec2::new(-1.0, 0.0)),
            (Vec2::new(45.0, 30.0), Vec2::new(0.0, 1.0)),
        ] {
            let contact = Contact::new(0, point, normal);
            let (end, travel) = simulate(&contact, 6);
            assert!(travel > 30.0, "{point}: the block moved {travel} px");
            let error = contact.motion(travel).apply(&start).squared_distance(&end, 45.0).sqrt();
            assert!(error < 0.04 * travel, "{point}: {error} px off after {travel}");
            // A block that turns without giving way, or about the wrong side, is far off.
            let mut stiff = contact;
            stiff.gain = 1.0;
            let wrong = stiff.motion(travel).apply(&start).squared_distance(&end, 45.0).sqrt();
            assert!(wrong > 0.1 * travel, "{point}: {wrong} px off without giving way");
            let mut mirrored = contact;
            mirrored.turn = -contact.turn;
            let wrong = mirrored.motion(travel).apply(&start).squared_distance(&end, 45.0).sqrt();
            assert!(wrong > 0.3 * travel, "{point}: {wrong} px off when mirrored");
        }
    }
}
