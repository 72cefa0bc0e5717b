//! Pushing while a wall pushes back.

use simloop_envs::pusht::{AGENT_RADIUS, WALL_MAX, WALL_MIN};

use super::geometry::{CONVEX_CORNERS, Pose, Vec2, clearance};
use super::push::Contact;

/// Contact travel between two rounds of corrections, px.
const STRIDE: f64 = 4.0;
/// Rounds of corrections, each of one agent contact and one wall contact.
const ROUNDS: usize = 8;
/// Overlap that may remain, px: more means that the block is jammed.
const JAM: f64 = 1.0;

/// Where the block ends when the agent pushes `contact` over `travel` px and the walls hold the corners; `None` when it
/// jams before.
///
/// Quasi-static and frictionless as the free push: overlaps are removed one after the other along their normals until
/// none is left (projected Gauss-Seidel).
pub(super) fn push_against_walls(pose: &Pose, contact: &Contact, travel: f64) -> Option<Pose> {
    let mut pose = *pose;
    let strides = (travel / STRIDE).ceil().max(1.0);
    let advance = travel / strides;
    for _ in 0..strides as usize {
        let agent = pose.world_from_body(contact.agent(-advance));
        for _ in 0..ROUNDS {
            let here = pose.body_from_world(agent);
            let (distance, normal) = clearance(here);
            let overlap = (AGENT_RADIUS - distance).max(0.0);
            pose = shoved(&pose, here - normal * distance, -normal, overlap);
            let Some((corner, inward, depth)) = deepest_corner(&pose) else { break };
            pose = shoved(&pose, corner, pose.unrotate(inward), depth);
        }
        let left = AGENT_RADIUS - clearance(pose.body_from_world(agent)).0;
        if left.max(pose.wall_depth()) > JAM {
            return None;
        }
    }
    Some(pose)
}

/// The pose after the block's `point` was moved `depth` px along `direction`; both in the body frame.
fn shoved(pose: &Pose, point: Vec2, direction: Vec2, depth: f64) -> Pose {
    Contact::new(0, point, -direction).motion(depth).apply(pose)
}

/// The corner farthest beyond a wall (body frame), the way back (world) and how far.
fn deepest_corner(pose: &Pose) -> Option<(Vec2, Vec2, f64)> {
    let mut deepest: Option<(Vec2, Vec2, f64)> = None;
    for corner in CONVEX_CORNERS {
        let p = pose.world_from_body(corner);
        for (depth, inward) in [
            (WALL_MIN - p.x, Vec2::new(1.0, 0.0)),
            (p.x - WALL_MAX, Vec2::new(-1.0, 0.0)),
            (WALL_MIN - p.y, Vec2::new(0.0, 1.0)),
            (p.y - WALL_MAX, Vec2::new(0.0, -1.0)),
        ] {
            if depth > deepest.map_or(0.0, |d| d.2) {
                deepest = Some((corner, inward, depth));
            }
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn away_from_walls_it_is_the_free_push() {
        let start = Pose::from_origin([256.0, 220.0, 0.4]);
        let contact = Contact::new(0, Vec2::new(35.0, 0.0), Vec2::new(0.0, -1.0));
        let free = contact.motion(40.0).apply(&start);
        let end = push_against_walls(&start, &contact, 40.0).expect("nothing is in the way");
        assert!(end.squared_distance(&free, 45.0) < 1e-6);
    }

    #[test]
    fn a_bar_flush_with_a_wall_is_levered_off_it_by_the_stem() {
        // Pushing the stem's side near its tip turns the block; one end of the bar stays at the wall.
        let start = Pose::from_origin([200.0, WALL_MIN, 0.0]);
        let contact = Contact::new(0, Vec2::new(-15.0, 110.0), Vec2::new(-1.0, 0.0));
        let free = contact.motion(40.0).apply(&start);
        assert!(free.wall_depth() > 10.0, "without the wall a corner goes through it");
        let end = push_against_walls(&start, &contact, 40.0).expect("the block can turn");
        assert!(end.wall_depth().abs() < JAM);
        assert!(end.cog.y > start.cog.y + 2.0, "the wall pushes the block off");
    }

    #[test]
    fn a_block_pushed_straight_at_a_wall_jams() {
        let start = Pose::from_origin([200.0, WALL_MIN, 0.0]);
        let contact = Contact::new(0, Vec2::new(0.0, 120.0), Vec2::new(0.0, 1.0));
        assert!(push_against_walls(&start, &contact, 20.0).is_none());
    }
}
