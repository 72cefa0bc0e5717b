//! Where to grip: candidates from above, ranked by the room that they leave.

use std::f64::consts::{FRAC_PI_2, PI, TAU};

use nalgebra::{Vector2, Vector3};

use super::hand::{BASE_X, OPEN, TIP, clearance, wrap_half_turn, yaw_of};
use super::scene::{Body, Obb, Scene, shifted};
use super::task::Task;
use crate::PolicyError;

/// Candidates per turn round a rim, and per half turn round a solid object.
const ANGLES: usize = 12;

// The rim of LIBERO's `akita_black_bowl`, from its 18 upper collision boxes, in the bowl's frame.
const RIM_Z: f64 = 0.052;
const RIM_RADIUS: f64 = 0.0515;
/// How much narrower the wall becomes per metre down.
const RIM_SLOPE: f64 = 0.26;
/// How far below the rim the pads grip.
const RIM_DEPTH: f64 = 0.016;
/// Finger openings tried round the rim: the narrow ones fit into a drawer. Per finger.
const RIM_OPENINGS: [f64; 3] = [OPEN, 0.025, 0.015];

/// How far below the top of a solid object the pads grip. 35 mm wedges the orange juice carton in the hand.
const SOLID_DEPTH: f64 = 0.022;
/// The fingertips stay off the ground: 9 mm of fingertip and 4 mm of air.
const GROUND_GAP: f64 = 0.0135;
/// Widest graspable, metres: twice 40 mm less 3 mm of tolerance on either side.
const WIDEST: f64 = 0.074;

/// More room than this is worth nothing.
const ENOUGH_ROOM: f64 = 0.012;
const COST_PER_RADIAN: f64 = 0.003;
/// For reaching further than `EASY_REACH`: stretched out, the arm is near a singularity and its controller gets stuck.
const COST_PER_METRE: f64 = 0.1;
const EASY_REACH: f64 = 0.66;
const COST_PER_OPENING: f64 = 0.0005;
const COST_PER_EXTRA_WIDTH: f64 = 0.5;
const COST_PER_FAILURE: f64 = 0.02;
/// The bowl itself may be this much closer than other things.
const OWN_BODY_BONUS: f64 = 0.004;
/// How much of the finger opening is left while the rim is held.
const HELD_OPENING: f64 = 0.004;
/// The bowl is let go this much above the goal body's origin.
pub(super) const PLACE_HEIGHT: f64 = 0.008;

/// Angle and opening index of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GraspId {
    pub(super) angle: usize,
    pub(super) opening: usize,
}

/// A grip from above, kept in the object's frame so that it moves with the object.
#[derive(Clone, Debug)]
pub(super) struct Grasp {
    /// `None` for a grip that was found rather than planned.
    pub(super) id: Option<GraspId>,
    /// The grip site, in the object's frame.
    pub(super) point: Vector3<f64>,
    /// From finger to finger, in the object's frame.
    pub(super) axis: Vector3<f64>,
    /// Pre-shape before going down, per finger.
    pub(super) opening: f64,
}

impl Grasp {
    /// Grip site and hand yaw in the world, for the object where it is now.
    pub(super) fn pose(&self, body: &Body) -> (Vector3<f64>, f64) {
        let axis = body.rot * self.axis;
        (body.pos + body.rot * self.point, wrap_half_turn(axis.y.atan2(axis.x) + FRAC_PI_2))
    }

    /// The grip that the hand has now.
    pub(super) fn as_it_is(scene: &Scene<'_>, body: &Body) -> Self {
        Self {
            id: None,
            point: body.rot.tr_mul(&(scene.eef - body.pos)),
            axis: body.rot.tr_mul(&scene.hand.column(1)),
            opening: scene.opening,
        }
    }
}

/// A candidate and what speaks against it beside lack of room.
struct Candidate {
    grasp: Grasp,
    cost: f64,
}

/// A grasp with its rank.
#[derive(Clone, Debug)]
pub(super) struct Ranked {
    pub(super) grasp: Grasp,
    /// Room less costs, metres.
    pub(super) score: f64,
    /// Room at the grasp and, for a rim, where the bowl is put down, metres.
    pub(super) room: f64,
}

/// All grasps of the target, best first. Ones that failed before (`tried`) fall back in the ranking.
///
/// Equal to a micrometre, the earlier candidate wins, so that rounding does not decide.
pub(super) fn plan(
    scene: &Scene<'_>,
    task: &Task,
    goal: Vector3<f64>,
    tried: &[GraspId],
) -> Result<Vec<Ranked>, PolicyError> {
    let body = scene.body(&task.target)?;
    let is_bowl = task.target.contains("bowl");
    let others: Vec<_> = scene.boxes_without(&[task.target.as_str()]).collect();
    let put_down = goal + Vector3::z() * PLACE_HEIGHT - body.pos;
    let there: Vec<_> =
        scene.boxes_without(&[task.target.as_str(), task.goal_body()]).cloned().collect();
    // Moving the obstacles the other way is the same as moving the hand, and is done once.
    let there = shifted(&there, -put_down);

    let candidates = if is_bowl { rim_candidates(body) } else { solid_candidates(body) };
    let mut ranked: Vec<_> = candidates
        .into_iter()
        .map(|Candidate { grasp, cost }| {
            let (point, yaw) = grasp.pose(body);
            let mut room = clearance(point, yaw, grasp.opening, others.iter().copied());
            if is_bowl {
                let own = clearance(point, yaw, grasp.opening, &body.boxes) + OWN_BODY_BONUS;
                room = room.min(own).min(clearance(point, yaw, HELD_OPENING, &there));
            }
            let failures = tried.iter().filter(|id| grasp.id == Some(**id)).count();
            let reach = (point.xy() - Vector2::new(BASE_X, 0.0)).norm();
            let score = room.min(ENOUGH_ROOM)
                - COST_PER_RADIAN * yaw.abs()
                - COST_PER_METRE * (reach - EASY_REACH).max(0.0)
                - cost
                - COST_PER_FAILURE * failures as f64;
            Ranked { grasp, score, room }
        })
        .collect();
    ranked.sort_by_key(|r| -(r.score * 1e6).round() as i64);
    Ok(ranked)
}

/// One finger inside the bowl and one outside, at equal angles round the rim, each with three openings.
fn rim_candidates(body: &Body) -> Vec<Candidate> {
    let radius = RIM_RADIUS - RIM_SLOPE * RIM_DEPTH;
    let mut candidates = Vec::with_capacity(ANGLES * RIM_OPENINGS.len());
    for angle in 0..ANGLES {
        let (sin, cos) = (TAU * angle as f64 / ANGLES as f64).sin_cos();
        let mut outward = body.rot.tr_mul(&Vector3::new(cos, sin, 0.0));
        outward.z = 0.0;
        let outward = outward.normalize();
        for (index, opening) in RIM_OPENINGS.into_iter().enumerate() {
            let point = Vector3::new(radius * outward.x, radius * outward.y, RIM_Z - RIM_DEPTH);
            let id = Some(GraspId { angle, opening: index });
            candidates.push(Candidate {
                grasp: Grasp { id, point, axis: outward, opening },
                cost: COST_PER_OPENING * index as f64,
            });
        }
    }
    candidates
}

/// Across the object at equal angles, centred on the slice that the pads touch; narrow is better.
fn solid_candidates(body: &Body) -> Vec<Candidate> {
    let (bottom, top) = body.height_range();
    let z = (top - SOLID_DEPTH).max(bottom + GROUND_GAP);
    let (low, high) = (z - 0.010, z + TIP);
    let slice: Vec<Vector2<f64>> = body
        .boxes
        .iter()
        .map(Obb::corners)
        .filter(|corners| corners.iter().any(|c| c.z > low) && corners.iter().any(|c| c.z < high))
        .flat_map(|corners| corners.map(|c| c.xy()))
        .collect();
    let extent = |axis: Vector2<f64>| {
        slice
            .iter()
            .map(|p| p.dot(&axis))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
    };
    let across: Vec<_> = (0..ANGLES)
        .map(|angle| {
            let (sin, cos) = wrap_half_turn(PI * angle as f64 / ANGLES as f64).sin_cos();
            let (x, y) = (Vector2::new(cos, sin), Vector2::new(sin, -cos));
            let ((x0, x1), (y0, y1)) = (extent(x), extent(y));
            let centre = y * f64::midpoint(y0, y1) + x * f64::midpoint(x0, x1);
            (angle, y1 - y0, centre.push(z), y.push(0.0))
        })
        .collect();
    let narrowest = across.iter().map(|a| a.1).fold(f64::INFINITY, f64::min);
    across
        .into_iter()
        .filter(|(_, width, ..)| *width <= WIDEST)
        .map(|(angle, width, centre, axis)| Candidate {
            grasp: Grasp {
                id: Some(GraspId { angle, opening: 0 }),
                point: body.rot.tr_mul(&(centre - body.pos)),
                axis: body.rot.tr_mul(&axis),
                opening: OPEN,
            },
            cost: COST_PER_EXTRA_WIDTH * (width - narrowest),
        })
        .collect()
}

/// The planned grasp at which the hand stands now, if it stands at one.
pub(super) fn reached<'a>(
    scene: &Scene<'_>,
    body: &Body,
    planned: &'a [Ranked],
) -> Option<&'a Grasp> {
    let yaw_now = yaw_of(&scene.hand);
    planned.iter().map(|ranked| &ranked.grasp).find(|grasp| {
        let (point, yaw) = grasp.pose(body);
        (point - scene.eef).norm() < 0.006 && wrap_half_turn(yaw - yaw_now).abs() < 0.1
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use simloop_envs::{Privileged, PrivilegedLayout};

    use super::*;

    /// A state with the hand far above and boxes `(body, centre, half extents)`, unrotated.
    fn state(boxes: &[(&str, [f64; 3], [f64; 3])]) -> Privileged {
        let mut fields = vec![("eef_pos".to_owned(), 3), ("eef_quat_xyzw".to_owned(), 4)];
        fields.push(("gripper_qpos".to_owned(), 2));
        let mut values = vec![0.0, 0.0, 0.6, 1.0, 0.0, 0.0, 0.0, 0.04, -0.04];
        for (name, centre, half) in boxes {
            fields.push((format!("{name}_pos"), 3));
            fields.push((format!("{name}_quat_xyzw"), 4));
            fields.push((format!("{name}_boxes"), 10));
            values.extend(centre);
            values.extend([0.0, 0.0, 0.0, 1.0]);
            values.extend([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
            values.extend(half);
        }
        Privileged::new(Arc::new(PrivilegedLayout::new(fields)), values.into()).unwrap()
    }

    fn ranked(state: &Privileged, instruction: &str, tried: &[GraspId]) -> Vec<Ranked> {
        let scene = Scene::read(state).unwrap();
        let task = Task::parse(instruction).unwrap();
        plan(&scene, &task, Vector3::new(0.0, 0.4, 0.0), tried).unwrap()
    }

    const BOWL: &str = "pick up the black bowl next to the plate and place it on the plate";
    const MILK: &str = "pick up the milk and place it in the basket";
    const PLATE: (&str, [f64; 3], [f64; 3]) = ("plate_1", [0.0, 0.4, 0.0], [0.05, 0.05, 0.003]);
    const BASKET: (&str, [f64; 3], [f64; 3]) = ("basket_1", [0.0, 0.4, 0.0], [0.07, 0.07, 0.01]);

    #[test]
    fn a_wall_beside_the_bowl_rules_out_the_rim_next_to_it() {
        // Only the foot of the bowl is a box here; the wall stands 4 cm outside the rim at positive y.
        let foot = ("akita_black_bowl_1", [0.0; 3], [0.015, 0.015, 0.003]);
        let wall = ("wall", [0.0, 0.10, 0.1], [0.3, 0.005, 0.1]);
        let free = ranked(&state(&[foot, PLATE]), BOWL, &[]);
        let walled = ranked(&state(&[foot, PLATE, wall]), BOWL, &[]);
        assert_eq!(free.len(), 12 * 3);
        let room = |list: &[Ranked], angle, opening| {
            let id = Some(GraspId { angle, opening });
            list.iter().find(|r| r.grasp.id == id).unwrap().room
        };
        // Angle 3 is +y, 9 is -y.
        assert!(room(&free, 3, 0) > 0.0 && room(&walled, 3, 0) < 0.0);
        assert!(room(&walled, 9, 1) > 0.0);
        // A palm of 104 mm on either side cannot lie across a wall at all, so the hand turns along it.
        let best = &walled[0];
        assert!(best.room > 0.0 && best.grasp.axis.y < 0.1, "{best:?}");
        assert!(walled.iter().rev().take(3).all(|r| r.room < 0.0));
    }

    #[test]
    fn a_grasp_that_failed_falls_behind_the_others() {
        let foot = ("akita_black_bowl_1", [0.0; 3], [0.015, 0.015, 0.003]);
        let state = state(&[foot, PLATE]);
        let first = ranked(&state, BOWL, &[])[0].grasp.id.unwrap();
        let second = ranked(&state, BOWL, &[first])[0].grasp.id.unwrap();
        assert_ne!(first, second);
        assert_ne!(ranked(&state, BOWL, &[first, second])[0].grasp.id, Some(second));
        // When everything failed once, the first is the best again.
        let all: Vec<_> = ranked(&state, BOWL, &[]).iter().filter_map(|r| r.grasp.id).collect();
        assert_eq!(ranked(&state, BOWL, &all)[0].grasp.id, Some(first));
    }

    #[test]
    fn a_solid_object_is_taken_across_its_narrow_side_below_the_top() {
        // 120 mm along y, 50 along x, 100 high: only across x do the fingers go round it.
        let milk = ("milk_1", [0.1, -0.1, 0.05], [0.025, 0.06, 0.05]);
        let list = ranked(&state(&[milk, BASKET]), MILK, &[]);
        let best = &list[0].grasp;
        assert!(best.axis.x.abs() > 0.999, "{best:?}");
        assert!((best.point - Vector3::new(0.0, 0.0, 0.05 - SOLID_DEPTH)).norm() < 1e-12);
        // Flat things are gripped lower than their top by less than that, with the tips off the ground.
        let flat = ("milk_1", [0.1, -0.1, 0.009], [0.02, 0.04, 0.009]);
        let list = ranked(&state(&[flat, BASKET]), MILK, &[]);
        assert!((list[0].grasp.point.z - (GROUND_GAP - 0.009)).abs() < 1e-12);
    }

    #[test]
    fn what_is_wider_than_the_hand_has_no_grasp() {
        let milk = ("milk_1", [0.1, -0.1, 0.05], [0.04, 0.04, 0.05]);
        assert!(ranked(&state(&[milk, BASKET]), MILK, &[]).is_empty());
    }
}
