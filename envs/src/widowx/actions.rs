//! From a policy's numbers to the robot's: BridgeData V2's conventions.

use serde::{Deserialize, Serialize};

/// What a policy's first six numbers mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionUnits {
    /// Metres and radians already: the policy un-normalises by its own statistics (as OpenVLA's `predict_action` does, and
    /// every checkpoint of ours).
    #[default]
    Metric,
    /// In [-1, 1], to be un-normalised here with `bridge_orig`'s quantiles.
    BridgeOrig,
}

/// What the gripper number means, and when the gripper moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum GripperMode {
    /// Sent as it is, between 0 (closed) and 1 (open). OpenVLA on the real robot.
    #[default]
    Continuous,
    /// Below 0.5 closes, otherwise opens.
    Binary,
    /// Binary, and the gripper only moves after so many steps in a row that ask for it (Octo, BridgeData V2: 1).
    Sticky {
        /// Steps in a row.
        steps: u32,
    },
}

/// 1st percentiles of `bridge_orig`'s actions (openvla c8f03f4, `dataset_statistics`).
pub const BRIDGE_Q01: [f64; 6] =
    [-0.028_727_3, -0.041_703_5, -0.026_093_9, -0.080_921_1, -0.092_887_0, -0.207_182_8];
/// 99th percentiles.
pub const BRIDGE_Q99: [f64; 6] =
    [0.028_309_7, 0.040_855_3, 0.040_161_6, 0.081_920_5, 0.077_928_5, 0.203_825_7];

/// Un-normalises the six motion numbers: 0.5 (n + 1) (q99 - q01) + q01. The gripper passes, as OpenVLA's mask says. Nothing
/// is clipped here.
pub fn unnormalise(action: &[f64; 7]) -> [f64; 7] {
    let mut out = *action;
    for i in 0..6 {
        out[i] = 0.5 * (action[i] + 1.0) * (BRIDGE_Q99[i] - BRIDGE_Q01[i]) + BRIDGE_Q01[i];
    }
    out
}

/// The gripper's memory over an episode.
#[derive(Clone, Debug)]
pub struct Gripper {
    mode: GripperMode,
    closed: bool,
    asking: u32,
}

impl Gripper {
    /// An open gripper, as after `reset`.
    pub fn new(mode: GripperMode) -> Self {
        Self { mode, closed: false, asking: 0 }
    }

    /// What to send for a policy's number. One that is not finite passes, for the gate to refuse.
    pub fn command(&mut self, asked: f64) -> f64 {
        if !asked.is_finite() {
            return asked;
        }
        let close = asked < 0.5;
        match self.mode {
            GripperMode::Continuous => return asked,
            GripperMode::Binary => self.closed = close,
            GripperMode::Sticky { steps } => {
                // octo 241fb35, examples/envs/widowx_env.py, step
                self.asking = if close == self.closed { 0 } else { self.asking + 1 };
                if self.asking >= steps.max(1) {
                    self.closed = !self.closed;
                    self.asking = 0;
                }
            }
        }
        if self.closed { 0.0 } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_range_are_the_quantiles_and_the_gripper_passes() {
        let low = unnormalise(&[-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.3]);
        let high = unnormalise(&[1.0; 7]);
        for i in 0..6 {
            assert!((low[i] - BRIDGE_Q01[i]).abs() < 1e-15);
            assert!((high[i] - BRIDGE_Q99[i]).abs() < 1e-15);
        }
        assert_eq!((low[6], high[6]), (0.3, 1.0));
        // All of it lies within the server's clip.
        assert!((0..3).all(|i| BRIDGE_Q01[i] > -0.05 && BRIDGE_Q99[i] < 0.05));
        assert!((3..6).all(|i| BRIDGE_Q01[i] > -0.25 && BRIDGE_Q99[i] < 0.25));
    }

    #[test]
    fn a_sticky_gripper_waits_for_so_many_steps_in_a_row() {
        let mut octo = Gripper::new(GripperMode::Sticky { steps: 1 });
        assert_eq!([0.9, 0.4, 0.6, 0.1].map(|a| octo.command(a)), [1.0, 0.0, 1.0, 0.0]);
        let mut slow = Gripper::new(GripperMode::Sticky { steps: 2 });
        let asked = [0.1, 0.9, 0.1, 0.1, 0.9, 0.9];
        assert_eq!(asked.map(|a| slow.command(a)), [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
        let mut continuous = Gripper::new(GripperMode::Continuous);
        assert_eq!(continuous.command(0.37), 0.37);
        let mut binary = Gripper::new(GripperMode::Binary);
        assert_eq!([0.49, 0.5].map(|a| binary.command(a)), [0.0, 1.0]);
    }
}
