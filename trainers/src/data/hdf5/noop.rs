//! Which actions do nothing, by OpenVLA's rule (`experiments/robot/libero/regenerate_libero_dataset.py`, `is_noop`).

use ndarray::ArrayView2;

/// Motion below which an action counts as none (OpenVLA's `threshold`).
const THRESHOLD: f32 = 1e-4;

/// The rows of `[T, D]` that act: an action is dropped where its motion (all but the last number) is shorter than
/// 1e-4 and its gripper (the last) is that of the last action *kept*; before any is kept, the motion alone decides.
pub(super) fn acting(actions: ArrayView2<'_, f32>) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for (t, action) in actions.outer_iter().enumerate() {
        let Some(gripper) = action.len().checked_sub(1) else { continue };
        let motion = action.iter().take(gripper).map(|v| v * v).sum::<f32>().sqrt();
        let same = kept.last().is_none_or(|last| actions[[*last, gripper]] == action[gripper]);
        if !(motion < THRESHOLD && same) {
            kept.push(t);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_still_arm_acts_only_when_its_gripper_moves_against_the_last_kept_action() {
        let actions = array![
            [0.0, 0.0, -1.0],  // still, nothing kept yet: dropped
            [0.5, 0.0, -1.0],  // moves
            [0.0, 0.0, 1.0],   // closes: kept
            [0.0, 5e-5, 1.0],  // still, gripper as kept: dropped
            [0.0, 0.0, -1.0],  // opens: kept, although row 0 had -1 too
            [2e-4, 0.0, -1.0]  // moves just enough
        ];
        assert_eq!(acting(actions.view()), [1, 2, 4, 5]);
    }
}
