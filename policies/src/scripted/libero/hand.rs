//! The Panda hand as boxes, and how much room it has.
//!
//! Hand frame: origin at robosuite's grip site, x across the fingers' thickness, y from finger to finger, z out of the
//! palm (down, in every grasp here). Sizes are the bounds of the collision meshes of robosuite 1.4.1's `panda_gripper`
//! in that frame, metres.

use std::f64::consts::{FRAC_PI_2, PI};

use nalgebra::{Matrix3, Vector3};

use super::scene::{Body, Obb, Scene};

/// How far the fingertips reach beyond the grip site.
pub(super) const TIP: f64 = 0.0092;
/// How far the palm stays behind it.
pub(super) const PALM: f64 = 0.031;
/// Half the palm's width with a margin of 6 mm.
pub(super) const PALM_RADIUS: f64 = 0.11;
/// Fingers that stand closer than this to the middle hold nothing.
pub(super) const EMPTY: f64 = 0.0006;
/// Fully open, per finger.
pub(super) const OPEN: f64 = 0.04;

/// The robot's base stands at this x, y = 0 (LIBERO's tables -0.66 m, its floor -0.6 m).
pub(super) const BASE_X: f64 = -0.65;

/// Fingers and palm are swept this far upwards: a grasp is reached and left vertically.
const SWEEP: f64 = 0.15;
const FINGER_HALF_X: f64 = 0.0105;

/// `[lo, hi]` corners in the hand frame for a finger opening.
fn parts(opening: f64) -> [([f64; 3], [f64; 3]); 6] {
    let q = opening;
    let tip = (q - 0.0005, q + 0.0145);
    let finger = (q, q + 0.0264);
    let x = FINGER_HALF_X;
    [
        ([-x, tip.0, -0.03], [x, tip.1, TIP]),
        ([-x, finger.0, -SWEEP], [x, finger.1, -0.02]),
        ([-x, -tip.1, -0.03], [x, -tip.0, TIP]),
        ([-x, -finger.1, -SWEEP], [x, -finger.0, -0.02]),
        ([-0.0225, -0.104, -0.075], [0.0225, 0.104, -PALM]),
        ([-0.0316, -0.104, -SWEEP], [0.0316, 0.104, -0.075]),
    ]
}

/// `world_from_hand` of a hand that points straight down; at zero the fingers lie along the world's y.
pub(super) fn pointing_down(yaw: f64) -> Matrix3<f64> {
    let (s, c) = yaw.sin_cos();
    Matrix3::new(c, s, 0.0, s, -c, 0.0, 0.0, 0.0, -1.0)
}

/// The yaw of a hand, radians in (-π, π]: its y axis is `(sin yaw, -cos yaw)`.
pub(super) fn yaw_of(hand: &Matrix3<f64>) -> f64 {
    hand[(0, 1)].atan2(-hand[(1, 1)])
}

/// The hand looks the same after half a turn: the equivalent angle in (-π/2, π/2].
pub(super) fn wrap_half_turn(angle: f64) -> f64 {
    let angle = angle % PI;
    if angle > FRAC_PI_2 {
        angle - PI
    } else if angle <= -FRAC_PI_2 {
        angle + PI
    } else {
        angle
    }
}

/// Of the two equivalent yaws within 100° of home (the wrist's range is not symmetric) the one nearer to `now`, so that
/// a target near 90° does not make the hand spin.
pub(super) fn nearer_yaw(yaw: f64, now: f64) -> f64 {
    let other = if yaw > 0.0 { yaw - PI } else { yaw + PI };
    let in_range = other.abs() < 100.0_f64.to_radians();
    if in_range && (other - now).abs() < (yaw - now).abs() { other } else { yaw }
}

/// The room round the hand at a grasp, metres; negative where it would touch.
pub(super) fn clearance<'a>(
    point: Vector3<f64>,
    yaw: f64,
    opening: f64,
    obstacles: impl IntoIterator<Item = &'a Obb>,
) -> f64 {
    let axes = pointing_down(yaw);
    let hand = parts(opening).map(|(lo, hi)| {
        let (lo, hi) = (Vector3::from(lo), Vector3::from(hi));
        Obb { centre: point + axes * ((lo + hi) / 2.0), axes, half: (hi - lo) / 2.0 }
    });
    obstacles
        .into_iter()
        .flat_map(|obstacle| hand.iter().map(|part| part.gap(obstacle)))
        .fold(f64::INFINITY, f64::min)
}

/// Whether both pads are within 3 mm of the body: it is gripped, or about to be.
pub(super) fn in_hand(scene: &Scene<'_>, body: &Body) -> bool {
    // Wide open counts as not gripping: nothing here is wider than 73 mm.
    if scene.opening < EMPTY || scene.opening > 0.0365 {
        return false;
    }
    [1.0, -1.0].into_iter().all(|side| {
        let local = Vector3::new(0.0, side * (scene.opening + 0.0035), -0.0036);
        let pad = Obb {
            centre: scene.eef + scene.hand * local,
            axes: scene.hand,
            half: Vector3::new(0.008, 0.004, 0.008),
        };
        body.boxes.iter().any(|b| pad.gap(b) <= 0.003)
    })
}

/// Axis-angle vector of a rotation matrix, radians, angle in `[0, π)`.
pub(super) fn rotation_vector(rot: &Matrix3<f64>) -> Vector3<f64> {
    let axis = Vector3::new(
        rot[(2, 1)] - rot[(1, 2)],
        rot[(0, 2)] - rot[(2, 0)],
        rot[(1, 0)] - rot[(0, 1)],
    ) / 2.0;
    let sin = axis.norm();
    if sin < 1e-9 {
        return Vector3::zeros();
    }
    axis / sin * sin.atan2((rot.trace() - 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaw_survives_the_way_through_a_matrix() {
        for yaw in [-1.5, -0.3, 0.0, 0.7, 1.57] {
            assert!((yaw_of(&pointing_down(yaw)) - yaw).abs() < 1e-12);
            let turn = pointing_down(yaw + 0.2) * pointing_down(yaw).transpose();
            assert!((rotation_vector(&turn) - Vector3::new(0.0, 0.0, 0.2)).norm() < 1e-12);
        }
    }

    #[test]
    fn half_a_turn_is_no_turn_for_the_hand() {
        assert!((wrap_half_turn(PI - 0.1) + 0.1).abs() < 1e-12);
        assert!((wrap_half_turn(-2.0) - (PI - 2.0)).abs() < 1e-12);
        assert_eq!(wrap_half_turn(FRAC_PI_2), FRAC_PI_2);
        // Near a right angle the nearer of the two ways wins; far from it there is only one.
        assert!((nearer_yaw(1.5, -1.6) - (1.5 - PI)).abs() < 1e-12);
        assert_eq!(nearer_yaw(1.5, 1.4), 1.5);
        assert_eq!(nearer_yaw(0.3, -2.8), 0.3);
    }

    #[test]
    fn clearance_is_the_distance_of_the_nearest_part() {
        let wall = |y: f64| Obb {
            centre: Vector3::new(0.0, y, 0.0),
            axes: Matrix3::identity(),
            half: Vector3::new(1.0, 0.01, 0.01),
        };
        // Low wall: only the finger tips reach it (tip outside at 0.0545).
        let room = clearance(Vector3::zeros(), 0.0, OPEN, &[wall(0.0745)]);
        assert!((room - 0.01).abs() < 1e-12, "{room}");
        // Turned by 90° the palm's thickness comes nearest: 64.5 - 22.5 mm, against 64.5 - 10.5 for a finger.
        let room = clearance(Vector3::zeros(), FRAC_PI_2, OPEN, &[wall(0.0745)]);
        assert!((room - (0.0645 - 0.0225)).abs() < 1e-12, "{room}");
    }
}
