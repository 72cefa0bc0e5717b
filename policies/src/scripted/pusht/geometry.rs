//! The T as the planner sees it: poses by the centre of gravity, distances from the outline.
//!
//! Pixels and radians, y down. The body frame has its origin in the middle of the bar's outer edge, the stem along +y.

use nalgebra::Vector2;
use simloop_envs::pusht::{self as env, CENTRE_OF_GRAVITY, WALL_MAX, WALL_MIN, sin_cos};

/// A point or a displacement in pixels.
pub(super) type Vec2 = Vector2<f64>;

/// Centre of gravity in the body frame.
pub(super) const COG: Vec2 = Vec2::new(CENTRE_OF_GRAVITY[0], CENTRE_OF_GRAVITY[1]);
/// Moment of inertia over mass, about the centre of gravity (gym-pusht `add_tee`: twice the bar's 1500 at mass 1).
pub(super) const INERTIA: f64 = 3000.0;

/// Bar and stem as `[x0, y0, x1, y1]` in the body frame.
const RECTS: [[f64; 4]; 2] = [bounds(env::RECTANGLES[0]), bounds(env::RECTANGLES[1])];

const fn bounds([low, _, high, _]: [env::Point; 4]) -> [f64; 4] {
    [low[0], low[1], high[0], high[1]]
}

/// The six convex corners of the T, in order round it.
pub(super) const CONVEX_CORNERS: [Vec2; 6] = [
    Vec2::new(-60.0, 0.0),
    Vec2::new(60.0, 0.0),
    Vec2::new(60.0, 30.0),
    Vec2::new(15.0, 120.0),
    Vec2::new(-15.0, 120.0),
    Vec2::new(-60.0, 30.0),
];

/// The block's pose by its centre of gravity, with the rotation's cosine and sine at hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pose {
    /// World position of the centre of gravity.
    pub(super) cog: Vec2,
    /// Unwrapped.
    pub(super) angle_rad: f64,
    rotation: Vec2,
}

impl Pose {
    /// From the position of the body's origin and its angle, the layout of gym-pusht's `block_pose`.
    pub(super) fn from_origin([x, y, angle_rad]: [f64; 3]) -> Self {
        let (sin, cos) = sin_cos(angle_rad);
        let rotation = Vec2::new(cos, sin);
        let mut pose = Self { cog: Vec2::zeros(), angle_rad, rotation };
        pose.cog = Vec2::new(x, y) + pose.rotate(COG);
        pose
    }

    /// Share of the goal that the block covers.
    pub(super) fn coverage(&self, goal: &env::Pose) -> f64 {
        let origin = self.cog - self.rotate(COG);
        env::coverage_of(goal, &env::Pose { x: origin.x, y: origin.y, angle: self.angle_rad })
    }

    /// A body-frame vector in the world.
    pub(super) fn rotate(&self, v: Vec2) -> Vec2 {
        let (c, s) = (self.rotation.x, self.rotation.y);
        Vec2::new(c * v.x - s * v.y, s * v.x + c * v.y)
    }

    /// A world vector in the body frame.
    pub(super) fn unrotate(&self, v: Vec2) -> Vec2 {
        let (c, s) = (self.rotation.x, self.rotation.y);
        Vec2::new(c * v.x + s * v.y, c * v.y - s * v.x)
    }

    /// A body-frame point in the world.
    pub(super) fn world_from_body(&self, p: Vec2) -> Vec2 {
        self.cog + self.rotate(p - COG)
    }

    /// A world point in the body frame.
    pub(super) fn body_from_world(&self, p: Vec2) -> Vec2 {
        self.unrotate(p - self.cog) + COG
    }

    /// The pose after a motion that is given in the body frame: `shift` of the centre of gravity, then a turn by
    /// `angle_rad` whose cosine and sine are `rotation`.
    pub(super) fn moved(&self, shift: Vec2, angle_rad: f64, rotation: Vec2) -> Self {
        let (a, b) = (self.rotation, rotation);
        Self {
            cog: self.cog + self.rotate(shift),
            angle_rad: self.angle_rad + angle_rad,
            rotation: Vec2::new(a.x * b.x - a.y * b.y, a.y * b.x + a.x * b.y),
        }
    }

    /// Squared distance to another pose, px²: shift of the centre of gravity and turn times `lever`.
    pub(super) fn squared_distance(&self, other: &Self, lever: f64) -> f64 {
        let turn = wrap(self.angle_rad - other.angle_rad);
        (self.cog - other.cog).norm_squared() + (lever * turn).powi(2)
    }

    /// How far the T's outermost corner lies beyond a wall's inner face, px; negative inside the arena.
    pub(super) fn wall_depth(&self) -> f64 {
        CONVEX_CORNERS.iter().fold(f64::NEG_INFINITY, |depth, &corner| {
            let p = self.world_from_body(corner);
            let low = (WALL_MIN - p.x).max(WALL_MIN - p.y);
            let high = (p.x - WALL_MAX).max(p.y - WALL_MAX);
            depth.max(low).max(high)
        })
    }
}

/// An angle in (-pi, pi].
pub(super) fn wrap(angle_rad: f64) -> f64 {
    let turns = (angle_rad / std::f64::consts::TAU).round();
    angle_rad - turns * std::f64::consts::TAU
}

/// Distance of a body-frame point from the T and the outward direction there; negative inside.
pub(super) fn clearance(p: Vec2) -> (f64, Vec2) {
    let [bar, stem] = RECTS.map(|rect| rect_distance(p, rect));
    if bar.0 <= stem.0 { bar } else { stem }
}

fn rect_distance(p: Vec2, [x0, y0, x1, y1]: [f64; 4]) -> (f64, Vec2) {
    let nearest = Vec2::new(p.x.clamp(x0, x1), p.y.clamp(y0, y1));
    let out = p - nearest;
    let distance = out.norm();
    if distance > 0.0 {
        return (distance, out / distance);
    }
    let sides = [
        (p.x - x0, Vec2::new(-1.0, 0.0)),
        (x1 - p.x, Vec2::new(1.0, 0.0)),
        (p.y - y0, Vec2::new(0.0, -1.0)),
        (y1 - p.y, Vec2::new(0.0, 1.0)),
    ];
    let (depth, normal) = sides.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("four sides");
    (-depth, normal)
}

/// Whether the segment from `a` to `b` (body frame) keeps `margin` from the T.
pub(super) fn segment_clear(a: Vec2, b: Vec2, margin: f64) -> bool {
    RECTS.iter().all(|&rect| segment_rect_distance(a, b, rect) >= margin)
}

/// 0 when they cross.
fn segment_rect_distance(a: Vec2, b: Vec2, rect: [f64; 4]) -> f64 {
    if segment_crosses(a, b, rect) {
        return 0.0;
    }
    let [x0, y0, x1, y1] = rect;
    let ends = rect_distance(a, rect).0.min(rect_distance(b, rect).0);
    [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        .into_iter()
        .fold(ends, |best, (x, y)| best.min(point_segment_distance(Vec2::new(x, y), a, b)))
}

/// Slab test (Kay and Kajiya 1986).
fn segment_crosses(a: Vec2, b: Vec2, [x0, y0, x1, y1]: [f64; 4]) -> bool {
    let (mut enter, mut leave) = (0.0_f64, 1.0_f64);
    for (from, to, low, high) in [(a.x, b.x, x0, x1), (a.y, b.y, y0, y1)] {
        let d = to - from;
        if d.abs() < 1e-12 {
            if from <= low || from >= high {
                return false;
            }
        } else {
            let (t0, t1) = ((low - from) / d, (high - from) / d);
            enter = enter.max(t0.min(t1));
            leave = leave.min(t0.max(t1));
        }
    }
    enter < leave
}

fn point_segment_distance(p: Vec2, a: Vec2, b: Vec2) -> f64 {
    let ab = b - a;
    let t = ((p - a).dot(&ab) / ab.norm_squared().max(1e-12)).clamp(0.0, 1.0);
    (p - a - ab * t).norm()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::{FRAC_PI_2, PI};

    #[test]
    fn the_origin_and_the_centre_of_gravity_differ_by_the_turned_offset() {
        // R(90 deg) (0, 45) = (-45, 0)
        let pose = Pose::from_origin([200.0, 300.0, FRAC_PI_2]);
        assert!((pose.cog - Vec2::new(155.0, 300.0)).norm() < 1e-12);
        assert!((pose.world_from_body(Vec2::zeros()) - Vec2::new(200.0, 300.0)).norm() < 1e-12);
    }

    #[test]
    fn world_and_body_are_inverse() {
        let pose = Pose::from_origin([123.0, 45.0, -2.3]);
        let p = Vec2::new(31.0, -7.0);
        assert!((pose.body_from_world(pose.world_from_body(p)) - p).norm() < 1e-12);
    }

    #[test]
    fn angles_wrap_to_the_nearest_turn() {
        assert!((wrap(PI + 0.1) - (0.1 - PI)).abs() < 1e-12);
        assert!((wrap(-5.0 * PI + 0.1) - (0.1 - PI)).abs() < 1e-12);
        let goal = Pose::from_origin([256.0, 256.0, PI / 4.0]);
        let turned = goal.moved(Vec2::zeros(), 2.0 * PI, Vec2::new(1.0, 0.0));
        assert!(turned.squared_distance(&goal, 45.0) < 1e-18);
    }

    #[test]
    fn clearance_is_negative_inside_and_points_outwards() {
        // 20 beyond the bar's right end; 3-4-5 off the corner (60, 0); 10 under the bar; 5 deep in the stem's side.
        for (p, distance, normal) in [
            (Vec2::new(80.0, 10.0), 20.0, Vec2::new(1.0, 0.0)),
            (Vec2::new(63.0, -4.0), 5.0, Vec2::new(0.6, -0.8)),
            (Vec2::new(-50.0, 40.0), 10.0, Vec2::new(0.0, 1.0)),
            (Vec2::new(10.0, 80.0), -5.0, Vec2::new(1.0, 0.0)),
        ] {
            let (d, n) = clearance(p);
            assert!((d - distance).abs() < 1e-12 && (n - normal).norm() < 1e-12, "{p}: {d} {n}");
        }
    }

    #[test]
    fn a_segment_is_blocked_by_either_part_of_the_t() {
        let clear = |a: [f64; 2], b: [f64; 2], margin| segment_clear(a.into(), b.into(), margin);
        assert!(!clear([-90.0, 15.0], [90.0, 15.0], 0.1), "across the bar");
        assert!(!clear([-40.0, 100.0], [40.0, 100.0], 0.1), "across the stem");
        assert!(clear([90.0, -20.0], [90.0, 140.0], 29.9), "past the right end");
        assert!(!clear([90.0, -20.0], [90.0, 140.0], 30.1), "past the right end, too near");
        // A slope by the corner (60, 30) at distance 20/sqrt 2.
        assert!(
            clear([60.0, 50.0], [80.0, 30.0], 14.1) && !clear([60.0, 50.0], [80.0, 30.0], 14.2)
        );
    }

    #[test]
    fn wall_depth_is_that_of_the_deepest_corner() {
        assert!((Pose::from_origin([256.0, 107.0, 0.0]).wall_depth() + 100.0).abs() < 1e-12);
        // The bar's end at x = 70 - 60 = 10 is 3 px off the left wall's face at 7.
        assert!((Pose::from_origin([70.0, 256.0, 0.0]).wall_depth() + 3.0).abs() < 1e-12);
        assert!((Pose::from_origin([60.0, 256.0, 0.0]).wall_depth() - 7.0).abs() < 1e-12);
    }
}
