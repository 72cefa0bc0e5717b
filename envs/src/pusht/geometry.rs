//! The T, the arena and plane geometry on them: constants, poses, vertices, distances.
//!
//! Lengths are pixels of the 512 px arena, angles radians, y points down on screen. The numbers are those of
//! gym-pusht 0.1.8 (`gym_pusht/envs/pusht.py`: `add_tee`, `add_circle`, `_setup`).

use rapier3d::na::{ComplexField, RealField};
use serde::{Deserialize, Serialize};

/// A point or vector in the plane, px.
pub type Point = [f64; 2];

/// Side of the square arena and of the unscaled picture, px (gym-pusht `pygame.Surface((512, 512))`).
pub const ARENA_SIZE: f64 = 512.0;
/// Radius of the agent's disc, px (gym-pusht `add_circle(space, (256, 400), 15)`).
pub const AGENT_RADIUS: f64 = 15.0;
/// Coordinate of the left and upper wall faces, px (segment at 5 with radius 2).
pub const WALL_MIN: f64 = 7.0;
/// Coordinate of the right and lower wall faces, px (segment at 506 with radius 2).
pub const WALL_MAX: f64 = 504.0;
/// Goal pose of the block (gym-pusht `goal_pose`).
pub const GOAL: Pose = Pose { x: 256.0, y: 256.0, angle: std::f64::consts::FRAC_PI_4 };
/// Centre of gravity in the body frame, px: mean of the two rectangles' centroids (0, 15) and (0, 75), as
/// gym-pusht `add_tee` sets it. The area centroid would be (0, 40.71).
pub const CENTRE_OF_GRAVITY: Point = [0.0, 45.0];
/// Bar and stem in the body frame, px. The vertex order is Chipmunk's hull order, which is also the keypoint order.
pub const RECTANGLES: [[Point; 4]; 2] = [
    [[-60.0, 0.0], [60.0, 0.0], [60.0, 30.0], [-60.0, 30.0]],
    [[-15.0, 30.0], [15.0, 30.0], [15.0, 120.0], [-15.0, 120.0]],
];
/// Area of the T, px²: 120 x 30 + 30 x 90.
pub const BLOCK_AREA: f64 = 6300.0;

/// Pose of the T: its body origin (the middle of the bar's outer edge) and its angle, not wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pose {
    /// Origin, px.
    pub x: f64,
    /// Origin, px, down on screen.
    pub y: f64,
    /// Angle, rad, clockwise on screen, not wrapped.
    pub angle: f64,
}

impl Pose {
    /// Takes a point of the body frame to the arena, px.
    pub fn transform(&self, local: Point) -> Point {
        let (sin, cos) = sin_cos(self.angle);
        rotate_translate(local, sin, cos, [self.x, self.y])
    }

    /// Vertices of bar and stem in the arena, px, in the order of [`RECTANGLES`].
    pub fn rectangles(&self) -> [[Point; 4]; 2] {
        let (sin, cos) = sin_cos(self.angle);
        RECTANGLES.map(|r| r.map(|p| rotate_translate(p, sin, cos, [self.x, self.y])))
    }

    /// The eight keypoints, px: bar then stem (gym-pusht `get_keypoints`).
    pub fn keypoints(&self) -> [Point; 8] {
        let [b, s] = self.rectangles();
        [b[0], b[1], b[2], b[3], s[0], s[1], s[2], s[3]]
    }

    /// Distance from a point to the T, px; 0 inside.
    pub fn distance(&self, point: Point) -> f64 {
        let (sin, cos) = sin_cos(self.angle);
        let [bar, stem] = distances_in_body_frame(to_body(point, sin, cos, [self.x, self.y]));
        bar.min(stem)
    }
}

/// Sine and cosine by one software routine, equal on every machine and at every optimisation level.
pub fn sin_cos(angle: f64) -> (f64, f64) {
    ComplexField::sin_cos(angle)
}

/// Arc tangent with quadrant, machine-independent like [`sin_cos`].
pub(super) fn atan2(y: f64, x: f64) -> f64 {
    RealField::atan2(y, x)
}

/// The angle congruent to `angle` in `[0, 2 pi)`, with Python's sign rule for `%`.
pub fn wrap_angle(angle: f64) -> f64 {
    const TURN: f64 = std::f64::consts::TAU;
    let rest = angle % TURN;
    if rest < 0.0 { rest + TURN } else { rest }
}

fn rotate_translate(p: Point, sin: f64, cos: f64, origin: Point) -> Point {
    [p[0] * cos - p[1] * sin + origin[0], p[0] * sin + p[1] * cos + origin[1]]
}

pub(super) fn to_body(p: Point, sin: f64, cos: f64, origin: Point) -> Point {
    let (dx, dy) = (p[0] - origin[0], p[1] - origin[1]);
    [dx * cos + dy * sin, dy * cos - dx * sin]
}

/// Distances from a point of the body frame to bar and stem, px.
pub(super) fn distances_in_body_frame(p: Point) -> [f64; 2] {
    let axis = |x: f64, lo: f64, hi: f64| (lo - x).max(x - hi).max(0.0);
    RECTANGLES.map(|[a, _, c, _]| {
        let (dx, dy) = (axis(p[0], a[0], c[0]), axis(p[1], a[1], c[1]));
        (dx * dx + dy * dy).sqrt()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keypoints_at_the_origin_are_the_rectangles() {
        let k = Pose { x: 0.0, y: 0.0, angle: 0.0 }.keypoints();
        assert_eq!(k[0], [-60.0, 0.0]);
        assert_eq!(k[6], [15.0, 120.0]);
    }

    #[test]
    fn a_quarter_turn_takes_the_stem_to_the_left() {
        // R(90 deg) (0, 120) = (-120, 0)
        let tip =
            Pose { x: 200.0, y: 100.0, angle: std::f64::consts::FRAC_PI_2 }.transform([0.0, 120.0]);
        assert!((tip[0] - 80.0).abs() < 1e-12 && (tip[1] - 100.0).abs() < 1e-12);
    }

    #[test]
    fn distance_is_zero_inside_and_euclidean_outside() {
        let pose = Pose { x: 100.0, y: 100.0, angle: 0.3 };
        assert_eq!(pose.distance(pose.transform([0.0, 60.0])), 0.0);
        assert!((pose.distance(pose.transform([63.0, -4.0])) - 5.0).abs() < 1e-9);
        // In the inner corner the nearer of bar and stem counts: 2 px below the bar, 5 px from the stem.
        assert!((pose.distance(pose.transform([20.0, 32.0])) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn wrapped_angles_lie_in_one_turn() {
        for raw in [-7.0, -0.1, 0.0, 3.0, 6.3, 100.0] {
            let w = wrap_angle(raw);
            assert!((0.0..std::f64::consts::TAU).contains(&w));
            assert!((sin_cos(w).0 - sin_cos(raw).0).abs() < 1e-12);
        }
    }
}
