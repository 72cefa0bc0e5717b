//! Rotations between the representations of this field, with the order in the name.

/// Axis-angle vector (radians) of a unit quaternion `[x, y, z, w]`, as robosuite's `T.quat2axisangle` gives it.
///
/// The angle is `2 acos(w)` in `[0, 2π]`, *not* reduced to `[0, π]`: policies trained on LIBERO saw it so, and choosing
/// the antipodal quaternion here changes success rates by tens of points (vla-evaluation-harness, common pitfalls).
pub fn axis_angle_from_quat_xyzw(quat: [f64; 4]) -> [f64; 3] {
    let w = quat[3].clamp(-1.0, 1.0);
    let sin_half = (1.0 - w * w).sqrt();
    if sin_half == 0.0 {
        return [0.0; 3];
    }
    let scale = 2.0 * w.acos() / sin_half;
    [quat[0] * scale, quat[1] * scale, quat[2] * scale]
}

/// Unit quaternion `[x, y, z, w]` of an axis-angle vector in radians.
pub fn quat_xyzw_from_axis_angle(axis_angle: [f64; 3]) -> [f64; 4] {
    let angle = axis_angle.iter().map(|v| v * v).sum::<f64>().sqrt();
    if angle == 0.0 {
        return [0.0, 0.0, 0.0, 1.0];
    }
    let (sin, cos) = (angle / 2.0).sin_cos();
    let scale = sin / angle;
    [axis_angle[0] * scale, axis_angle[1] * scale, axis_angle[2] * scale, cos]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    #[test]
    fn a_quarter_turn_about_z_is_half_pi() {
        let v = axis_angle_from_quat_xyzw([0.0, 0.0, FRAC_1_SQRT_2, FRAC_1_SQRT_2]);
        assert!((v[2] - PI / 2.0).abs() < 1e-12 && v[0] == 0.0);
    }

    #[test]
    fn the_antipodal_quaternion_keeps_its_long_way_round() {
        // Same rotation, other sign: robosuite answers 3π/2 about -z, and so must we.
        let v = axis_angle_from_quat_xyzw([0.0, 0.0, -FRAC_1_SQRT_2, -FRAC_1_SQRT_2]);
        assert!((v[2] + 1.5 * PI).abs() < 1e-12, "{v:?}");
    }

    #[test]
    fn there_and_back() {
        let quat = quat_xyzw_from_axis_angle([0.3, -0.2, 0.9]);
        let back = axis_angle_from_quat_xyzw(quat);
        assert!(back.iter().zip([0.3, -0.2, 0.9]).all(|(a, b)| (a - b).abs() < 1e-12));
        assert_eq!(axis_angle_from_quat_xyzw([0.0, 0.0, 0.0, 1.0]), [0.0; 3]);
    }
}
