//! PushT's mirror symmetry: a demonstration mirrored is a demonstration.
//!
//! The goal T stands at 45 degrees in the middle of the arena, so its stem lies on the line `x + y = 512`. Mirroring on
//! it takes `(x, y)` to `(512 - y, 512 - x)`, the goal to itself, a T to a T (it is symmetric about its stem) and an angle
//! to `pi / 2 - angle`: with `A` the mirror's matrix and `S = diag(-1, 1)` the T's own symmetry, `A R(a) S = R(pi/2 - a)`.
//! `S` swaps the keypoints left and right of the stem. The picture is transposed along its other diagonal. Only the
//! walls are off by a pixel (faces at 7 and 504).

use std::f32::consts::{FRAC_PI_2, TAU};

use ndarray::{ArrayViewMut1, ArrayViewMut3, Axis};
use simloop_envs::pusht::ARENA_SIZE;

use super::{DataError, DemoBatch};

/// Left keypoints to right ones, in the order of `simloop_envs::pusht::RECTANGLES`.
const KEYPOINT_SWAPS: [(usize, usize); 4] = [(0, 1), (2, 3), (4, 5), (6, 7)];

/// Mirrors sample `i` of a batch of PushT: frames, proprio and actions.
///
/// # Errors
/// [`DataError::Unsupported`] unless actions have 2 numbers, the proprio 0 (`pixels`), 2 (`pixels_agent_pos`), 5 (`state`)
/// or 18 (`environment_state_agent_pos`), and frames are square.
pub fn mirror_sample(batch: &mut DemoBatch, i: usize) -> Result<(), DataError> {
    let (p, d) = (batch.proprio.len_of(Axis(2)), batch.actions.len_of(Axis(2)));
    if d != 2 || ![0, 2, 5, 18].contains(&p) {
        return Err(DataError::unsupported(format!(
            "augment: `pusht_mirror` is for PushT's observations; these have {p} numbers and actions of {d}"
        )));
    }
    for images in batch.images.values_mut() {
        for frame in images.index_axis_mut(Axis(0), i).outer_iter_mut() {
            let (h, w, _) = frame.dim();
            if h != w {
                return Err(DataError::unsupported(format!(
                    "augment: `pusht_mirror` needs square frames, these are {h}x{w}"
                )));
            }
            mirror_frame(frame);
        }
    }
    for row in batch.proprio.index_axis_mut(Axis(0), i).outer_iter_mut() {
        mirror_proprio(row);
    }
    for action in batch.actions.index_axis_mut(Axis(0), i).outer_iter_mut() {
        mirror_points(action);
    }
    Ok(())
}

/// A proprio row of one of PushT's four observations.
fn mirror_proprio(mut row: ArrayViewMut1<'_, f32>) {
    match row.len() {
        5 => {
            mirror_points(row.slice_mut(ndarray::s![..4]));
            row[4] = (FRAC_PI_2 - row[4]).rem_euclid(TAU);
            // Rounding may give a full turn, which is not in [0, 2 pi).
            if row[4] >= TAU {
                row[4] = 0.0;
            }
        }
        18 => {
            mirror_points(row.view_mut());
            for (a, b) in KEYPOINT_SWAPS {
                row.swap(2 * a, 2 * b);
                row.swap(2 * a + 1, 2 * b + 1);
            }
        }
        _ => mirror_points(row),
    }
}

/// Points `x, y, x, y, …`.
fn mirror_points(mut row: ArrayViewMut1<'_, f32>) {
    let side = ARENA_SIZE as f32;
    for k in (0..row.len()).step_by(2) {
        (row[k], row[k + 1]) = (side - row[k + 1], side - row[k]);
    }
}

/// Transposes a square frame along the diagonal from lower left to upper right.
fn mirror_frame(mut frame: ArrayViewMut3<'_, u8>) {
    let n = frame.len_of(Axis(0));
    for y in 0..n {
        for x in 0..n - y {
            for c in 0..3 {
                frame.swap([y, x, c], [n - 1 - x, n - 1 - y, c]);
            }
        }
    }
}
