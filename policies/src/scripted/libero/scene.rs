//! The true state as oriented boxes in the world frame.

use std::collections::BTreeMap;

use nalgebra::{Matrix3, Quaternion, UnitQuaternion, Vector2, Vector3};
use simloop_envs::Privileged;

use crate::PolicyError;

const REMEDY: &str = "make the LIBERO environment with the privileged state switched on";

/// An oriented box: `axes` has the box's own axes as columns.
#[derive(Clone, Debug)]
pub(super) struct Obb {
    pub(super) centre: Vector3<f64>,
    pub(super) axes: Matrix3<f64>,
    pub(super) half: Vector3<f64>,
}

impl Obb {
    /// The eight corners.
    pub(super) fn corners(&self) -> [Vector3<f64>; 8] {
        std::array::from_fn(|i| {
            let sign = |bit: usize| if i >> bit & 1 == 1 { 1.0 } else { -1.0 };
            let local = Vector3::new(sign(0), sign(1), sign(2)).component_mul(&self.half);
            self.centre + self.axes * local
        })
    }

    /// Signed separation, metres: positive only if the boxes are apart (then at most their distance), negative where
    /// they overlap. The largest gap over the 15 axes of the separating-axis theorem (Gottschalk et al. 1996).
    pub(super) fn gap(&self, other: &Self) -> f64 {
        let between = other.centre - self.centre;
        let reach = |b: &Self, axis: &Vector3<f64>| b.axes.tr_mul(axis).abs().dot(&b.half);
        let mut best = f64::NEG_INFINITY;
        let mut try_axis = |axis: Vector3<f64>| {
            let length = axis.norm();
            if length > 1e-6 {
                let axis = axis / length;
                let gap = between.dot(&axis).abs() - reach(self, &axis) - reach(other, &axis);
                best = best.max(gap);
            }
        };
        for i in 0..3 {
            try_axis(self.axes.column(i).into());
            try_axis(other.axes.column(i).into());
            for j in 0..3 {
                try_axis(self.axes.column(i).cross(&other.axes.column(j)));
            }
        }
        best
    }

    fn moved(&self, shift: Vector3<f64>) -> Self {
        Self { centre: self.centre + shift, ..self.clone() }
    }
}

/// One rigid body and its collision boxes.
#[derive(Clone, Debug)]
pub(super) struct Body {
    pub(super) pos: Vector3<f64>,
    /// `world_from_body`.
    pub(super) rot: Matrix3<f64>,
    /// In the world frame.
    pub(super) boxes: Vec<Obb>,
}

impl Body {
    /// Lowest and highest point of its boxes, metres; the body's origin where it has none.
    pub(super) fn height_range(&self) -> (f64, f64) {
        if self.boxes.is_empty() {
            return (self.pos.z, self.pos.z);
        }
        self.boxes
            .iter()
            .flat_map(Obb::corners)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), c| (lo.min(c.z), hi.max(c.z)))
    }
}

/// A box-shaped region that the goal names.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) pos: Vector3<f64>,
    pub(super) half_height: f64,
}

/// Everything that can be touched, and the hand.
#[derive(Clone, Debug)]
pub(super) struct Scene<'a> {
    state: &'a Privileged,
    /// The grip site, between the pads.
    pub(super) eef: Vector3<f64>,
    /// `world_from_hand`: x across the fingers' thickness, y from finger to finger, z out of the palm.
    pub(super) hand: Matrix3<f64>,
    /// How far each finger stands from the middle, metres, 0 to 0.04.
    pub(super) opening: f64,
    pub(super) bodies: BTreeMap<String, Body>,
}

impl<'a> Scene<'a> {
    /// Reads the named fields of the worker's privileged vector.
    pub(super) fn read(state: &'a Privileged) -> Result<Self, PolicyError> {
        let mut bodies = BTreeMap::new();
        for (field, _) in state.layout().fields() {
            if let Some(name) = field.strip_suffix("_boxes") {
                bodies.insert(name.to_owned(), read_body(state, name)?);
            }
        }
        let fingers = array::<2>(state, "gripper_qpos")?;
        Ok(Self {
            state,
            eef: array::<3>(state, "eef_pos")?.into(),
            hand: rotation(array(state, "eef_quat_xyzw")?),
            opening: (fingers[0] - fingers[1]) / 2.0,
            bodies,
        })
    }

    /// A body by name.
    pub(super) fn body(&self, name: &str) -> Result<&Body, PolicyError> {
        self.bodies.get(name).ok_or_else(|| missing(&format!("{name}_boxes")))
    }

    /// A region by name.
    pub(super) fn region(&self, name: &str) -> Result<Region, PolicyError> {
        Ok(Region {
            pos: array::<3>(self.state, &format!("{name}_pos"))?.into(),
            half_height: array::<3>(self.state, &format!("{name}_half_size"))?[2],
        })
    }

    /// The boxes of all bodies but these.
    pub(super) fn boxes_without(&self, skip: &[&str]) -> impl Iterator<Item = &Obb> {
        self.bodies
            .iter()
            .filter(move |(name, _)| !skip.contains(&name.as_str()))
            .flat_map(|(_, body)| &body.boxes)
    }

    /// The highest point of what stands within `radius` of the segment from `from` to `to` in the plane; minus infinity
    /// if the way is free. Footprints are taken as axis-aligned rectangles.
    pub(super) fn corridor_top(
        &self,
        from: Vector2<f64>,
        to: Vector2<f64>,
        radius: f64,
        skip: &[&str],
    ) -> f64 {
        let mut top = f64::NEG_INFINITY;
        for obb in self.boxes_without(skip) {
            let corners = obb.corners();
            let mut lo = corners[0];
            let mut hi = corners[0];
            for corner in &corners[1..] {
                lo = lo.inf(corner);
                hi = hi.sup(corner);
            }
            if hi.z > top && segment_to_rect(from, to, lo.xy(), hi.xy()) < radius {
                top = hi.z;
            }
        }
        top
    }

    /// Which way in the plane, and how far, an object must go so that nothing hangs over it or within a centimetre of
    /// that: the bowl in a half-open drawer stands partly under the cabinet's top and cannot be lifted there.
    pub(super) fn way_out_from_under(&self, body: &Body, name: &str) -> Vector2<f64> {
        let corners = body.boxes.iter().flat_map(Obb::corners);
        let (mut top, mut radius) = (f64::NEG_INFINITY, 0.0_f64);
        for corner in corners {
            top = top.max(corner.z);
            radius = radius.max((corner.xy() - body.pos.xy()).norm());
        }
        let mut push = Vector2::zeros();
        for obb in self.boxes_without(&[name]) {
            let lowest = obb.corners().iter().map(|c| c.z).fold(f64::INFINITY, f64::min);
            if lowest < top - 0.005 {
                continue;
            }
            // The nearest point of the box, seen at the box's own height.
            let here = Vector3::new(body.pos.x, body.pos.y, obb.centre.z);
            let local = obb.axes.tr_mul(&(here - obb.centre));
            let nearest = obb.centre + obb.axes * local.sup(&-obb.half).inf(&obb.half);
            let away = body.pos.xy() - nearest.xy();
            let distance = away.norm();
            if distance > 1e-6 && distance < radius + 0.01 {
                push += away / distance * (radius + 0.01 - distance);
            }
        }
        push
    }
}

/// These boxes, elsewhere.
pub(super) fn shifted(boxes: &[Obb], shift: Vector3<f64>) -> Vec<Obb> {
    boxes.iter().map(|b| b.moved(shift)).collect()
}

fn read_body(state: &Privileged, name: &str) -> Result<Body, PolicyError> {
    let field = format!("{name}_boxes");
    let pos: Vector3<f64> = array::<3>(state, &format!("{name}_pos"))?.into();
    let rot = rotation(array(state, &format!("{name}_quat_xyzw"))?);
    let numbers = state.get(&field).ok_or_else(|| missing(&field))?;
    if !numbers.len().is_multiple_of(10) {
        return Err(PolicyError::Missing {
            what: field,
            remedy: format!("ten numbers per box are needed, got {} in all", numbers.len()),
        });
    }
    let boxes = numbers
        .chunks_exact(10)
        .map(|n| Obb {
            centre: pos + rot * Vector3::new(n[0], n[1], n[2]),
            axes: rot * rotation([n[3], n[4], n[5], n[6]]),
            half: Vector3::new(n[7], n[8], n[9]),
        })
        .collect();
    Ok(Body { pos, rot, boxes })
}

fn rotation([x, y, z, w]: [f64; 4]) -> Matrix3<f64> {
    *UnitQuaternion::from_quaternion(Quaternion::new(w, x, y, z)).to_rotation_matrix().matrix()
}

fn array<const N: usize>(state: &Privileged, name: &str) -> Result<[f64; N], PolicyError> {
    state.array(name).ok_or_else(|| missing(name))
}

fn missing(what: &str) -> PolicyError {
    PolicyError::Missing { what: what.to_owned(), remedy: REMEDY.to_owned() }
}

/// Distance between a segment and an axis-aligned rectangle in the plane; zero where they meet.
fn segment_to_rect(
    from: Vector2<f64>,
    to: Vector2<f64>,
    lo: Vector2<f64>,
    hi: Vector2<f64>,
) -> f64 {
    let along = to - from;
    // Clip the segment to the slabs of the rectangle.
    let (mut enter, mut leave, mut meets) = (0.0_f64, 1.0_f64, true);
    for i in 0..2 {
        if along[i].abs() < 1e-12 {
            meets &= from[i] >= lo[i] && from[i] <= hi[i];
        } else {
            let (u, v) = ((lo[i] - from[i]) / along[i], (hi[i] - from[i]) / along[i]);
            enter = enter.max(u.min(v));
            leave = leave.min(u.max(v));
        }
    }
    if meets && enter <= leave {
        return 0.0;
    }
    let ends = [from, to].map(|p| (p - p.sup(&lo).inf(&hi)).norm());
    let corners = [lo, hi, Vector2::new(lo.x, hi.y), Vector2::new(hi.x, lo.y)].map(|corner| {
        let length2 = along.norm_squared();
        let t = if length2 > 1e-12 {
            ((corner - from).dot(&along) / length2).clamp(0.0, 1.0)
        } else {
            0.0
        };
        (corner - (from + t * along)).norm()
    });
    ends.into_iter().chain(corners).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cube(x: f64, yaw: f64) -> Obb {
        let axes = *nalgebra::Rotation3::from_euler_angles(0.0, 0.0, yaw).matrix();
        Obb { centre: Vector3::new(x, 0.0, 0.0), axes, half: Vector3::repeat(0.5) }
    }

    #[test]
    fn the_gap_of_face_to_face_boxes_is_their_distance() {
        assert!((cube(0.0, 0.0).gap(&cube(1.3, 0.0)) - 0.3).abs() < 1e-12);
        assert!((cube(0.0, 0.0).gap(&cube(0.8, 0.0)) + 0.2).abs() < 1e-12);
        // A cube on its edge reaches sqrt(1/2) instead of 1/2.
        let turned = cube(1.3, std::f64::consts::FRAC_PI_4);
        assert!((cube(0.0, 0.0).gap(&turned) - (0.8 - 0.5_f64.sqrt())).abs() < 1e-12);
    }

    #[test]
    fn crossing_edges_are_apart_only_by_the_cross_product_axis() {
        // Two bars whose edges face each other: every face axis overlaps, the cross product of the edges does not.
        let bar = |centre, axes| Obb { centre, axes, half: Vector3::new(2.0, 0.5, 0.5) };
        let tilt =
            nalgebra::Rotation3::from_axis_angle(&Vector3::x_axis(), std::f64::consts::FRAC_PI_4);
        let turn =
            nalgebra::Rotation3::from_axis_angle(&Vector3::z_axis(), std::f64::consts::FRAC_PI_2);
        let low = bar(Vector3::zeros(), *tilt.matrix());
        let high = bar(Vector3::new(0.0, 0.0, 1.5), *(turn * tilt).matrix());
        // Edge heights: sqrt(1/2) above and below, so 1.5 - sqrt(2) apart.
        assert!((low.gap(&high) - (1.5 - 2.0_f64.sqrt())).abs() < 1e-9);
    }

    #[test]
    fn a_segment_that_passes_through_a_rectangle_touches_it() {
        let v = Vector2::new;
        let (lo, hi) = (v(-1.0, -1.0), v(1.0, 1.0));
        assert_eq!(segment_to_rect(v(-3.0, 0.0), v(3.0, 0.5), lo, hi), 0.0);
        assert!((segment_to_rect(v(-3.0, 2.0), v(3.0, 2.0), lo, hi) - 1.0).abs() < 1e-12);
        assert!((segment_to_rect(v(2.0, 2.0), v(2.0, 2.0), lo, hi) - 2.0_f64.sqrt()).abs() < 1e-12);
        // Diagonal past a corner: the nearest point is inside the segment.
        assert!((segment_to_rect(v(0.0, 3.0), v(3.0, 0.0), lo, hi) - 0.5_f64.sqrt()).abs() < 1e-12);
    }
}
