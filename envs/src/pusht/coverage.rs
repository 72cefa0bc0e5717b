//! How much of the goal T the block covers: the number behind reward and success.

use super::geometry::{BLOCK_AREA, GOAL, Point, Pose};

/// Coverage above which an episode is solved, strictly (gym-pusht `success_threshold`).
pub const SUCCESS_COVERAGE: f64 = 0.95;

/// [`coverage_of`] gym-pusht's own goal, [`GOAL`].
pub fn coverage(block: &Pose) -> f64 {
    coverage_of(&GOAL, block)
}

/// `area(goal ∩ block) / area(goal)`, in `[0, 1]`.
///
/// Both are unions of two rectangles that share no area, so the intersection is the sum over the four pairs of
/// rectangles of a convex-convex clip (Sutherland and Hodgman 1974), exact up to rounding. The original asks shapely
/// for the same number.
pub fn coverage_of(goal: &Pose, block: &Pose) -> f64 {
    // No overlap is possible beyond the sum of the two circumscribed radii about (0, 60) of the body frame.
    let centre = |pose: &Pose| pose.transform([0.0, 60.0]);
    let (c, g) = (centre(block), centre(goal));
    let (dx, dy) = (c[0] - g[0], c[1] - g[1]);
    if dx * dx + dy * dy > (2.0 * RADIUS) * (2.0 * RADIUS) {
        return 0.0;
    }
    let goal = goal.rectangles();
    let rectangles = block.rectangles();
    let mut area = 0.0;
    for subject in &rectangles {
        for window in &goal {
            area += intersection_area(subject, window);
        }
    }
    area / BLOCK_AREA
}

/// gym-pusht's reward: `clip(coverage / 0.95, 0, 1)`.
pub fn reward(coverage: f64) -> f64 {
    (coverage / SUCCESS_COVERAGE).clamp(0.0, 1.0)
}

/// Farthest vertex from (0, 60) in the body frame is a bar corner at (60, 0): 60 sqrt 2 px.
const RADIUS: f64 = 60.0 * std::f64::consts::SQRT_2;

/// Area of the intersection of two convex quadrilaterals with counter-clockwise vertices (in x right, y up; equally
/// clockwise in x right, y down).
fn intersection_area(subject: &[Point; 4], window: &[Point; 4]) -> f64 {
    // Each of four cuts adds at most one vertex to four.
    let mut polygon = [[0.0; 2]; 8];
    polygon[..4].copy_from_slice(subject);
    let mut len = 4;
    for i in 0..4 {
        let (a, b) = (window[i], window[(i + 1) % 4]);
        let side = |p: Point| (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]);
        let mut cut = [[0.0; 2]; 8];
        let mut kept = 0;
        let mut push = |p: Point| {
            if kept < cut.len() {
                cut[kept] = p;
                kept += 1;
            }
        };
        for j in 0..len {
            let (p, q) = (polygon[j], polygon[(j + 1) % len]);
            let (sp, sq) = (side(p), side(q));
            if sp >= 0.0 {
                push(p);
            }
            if (sp > 0.0 && sq < 0.0) || (sp < 0.0 && sq > 0.0) {
                let t = sp / (sp - sq);
                push([p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])]);
            }
        }
        if kept < 3 {
            return 0.0;
        }
        polygon = cut;
        len = kept;
    }
    let first = polygon[0];
    let mut twice = 0.0;
    for j in 1..len - 1 {
        let (p, q) = (polygon[j], polygon[j + 1]);
        twice += (p[0] - first[0]) * (q[1] - first[1]) - (q[0] - first[0]) * (p[1] - first[1]);
    }
    twice.max(0.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_covers_itself_and_nothing_far_away() {
        assert!((coverage(&GOAL) - 1.0).abs() < 1e-12);
        assert_eq!(coverage(&Pose { x: 60.0, y: 60.0, angle: 0.0 }), 0.0);
    }

    #[test]
    fn a_shift_along_the_bar_loses_the_two_end_strips() {
        // 6 px along the bar: the bar keeps 114 x 30, the stem 24 x 90; the shifted stem and the bar do not overlap.
        let (sin, cos) = super::super::geometry::sin_cos(GOAL.angle);
        let pose = Pose { x: GOAL.x + 6.0 * cos, y: GOAL.y + 6.0 * sin, ..GOAL };
        let expected = (114.0 * 30.0 + 24.0 * 90.0) / 6300.0;
        assert!((coverage(&pose) - expected).abs() < 1e-12);
    }

    #[test]
    fn half_a_turn_about_the_origin_leaves_no_overlap() {
        let pose = Pose { angle: GOAL.angle + std::f64::consts::PI, ..GOAL };
        assert!(coverage(&pose) < 1e-12);
    }

    #[test]
    fn reward_saturates_at_the_success_threshold() {
        assert_eq!(reward(0.0), 0.0);
        assert_eq!(reward(0.475), 0.5);
        assert_eq!(reward(0.95), 1.0);
        assert_eq!(reward(1.0), 1.0);
    }
}
