//! What a command may be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::EnvError;

/// The box in which the hand's goals must lie, metres in the base frame. It has no default: only the person beside the robot
/// knows where the table ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// x, y, z of the low corner.
    pub low: [f64; 3],
    /// x, y, z of the high corner.
    pub high: [f64; 3],
}

impl Workspace {
    /// A box of corners.
    ///
    /// # Errors
    /// [`EnvError::Config`] unless every number is finite and every side at least a centimetre long.
    pub fn new(low: [f64; 3], high: [f64; 3]) -> Result<Self, EnvError> {
        let axes = ["x", "y", "z"];
        for i in 0..3 {
            let room = high[i] - low[i];
            if !(low[i].is_finite() && high[i].is_finite() && room >= 0.01) {
                return Err(EnvError::Config {
                    detail: format!(
                        "use the workspace: {} goes from {} to {} m; give the low corner first, at least 1 cm apart",
                        axes[i], low[i], high[i]
                    ),
                });
            }
        }
        Ok(Self { low, high })
    }

    /// Whether a point lies inside.
    pub fn contains(&self, point: [f64; 3]) -> bool {
        (0..3).all(|i| self.low[i] <= point[i] && point[i] <= self.high[i])
    }

    /// How far a point lies outside, metres along its worst axis; 0 inside.
    pub fn excess(&self, point: [f64; 3]) -> f64 {
        (0..3).fold(0.0, |worst: f64, i| {
            worst.max(self.low[i] - point[i]).max(point[i] - self.high[i])
        })
    }
}

/// Every limit of the gate. Per axis, so that all of them can be kept at once: x, y, z \[m\], roll, pitch, yaw \[rad\].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Where goals may lie.
    pub workspace: Workspace,
    /// Seconds between two commands.
    pub period_secs: f64,
    /// Largest change per command.
    pub step: [f64; 6],
    /// Largest speed of the goal, per second.
    pub speed: [f64; 6],
    /// Largest change of that speed, per second squared.
    pub acceleration: [f64; 6],
    /// Fastest `move`, metres per second.
    pub move_speed: f64,
    /// An older observation allows no action.
    pub max_obs_age: Duration,
    /// So many equal camera frames in a row, and the camera counts as frozen.
    pub max_equal_frames: u32,
    /// The watchdog holds after so much silence of policy or link.
    pub hold_after: Duration,
    /// The hand may be measured so far outside of the workspace, metres: the arm sags and overshoots.
    pub outside_tolerance: f64,
    /// The goal may be so far ahead of the hand, metres, for [`max_lagging`](Self::max_lagging) steps.
    pub max_lead: f64,
    /// See [`max_lead`](Self::max_lead) and the gripper.
    pub max_lagging: u32,
    /// A longer wait for the answer to a step or an observation is a fault: the server did something else before it.
    pub max_answer: Duration,
}

impl Limits {
    /// The limits of a 5 Hz loop in a workspace.
    ///
    /// Step limits are the server's own clip. At 5 Hz they allow 0.25 m/s and 1.25 rad/s per axis. Accelerations allow the
    /// quickest reversal in BridgeData V2's actions, from the 1st to the 99th percentile within one step: y, 0.0826 m, and
    /// yaw, 0.411 rad, over 0.04 s².
    pub fn at_5_hz(workspace: Workspace) -> Self {
        Self {
            workspace,
            period_secs: 0.2,
            step: [0.05, 0.05, 0.05, 0.25, 0.25, 0.25],
            speed: [0.25, 0.25, 0.25, 1.25, 1.25, 1.25],
            acceleration: [2.1, 2.1, 2.1, 10.5, 10.5, 10.5],
            move_speed: 0.5,
            max_obs_age: Duration::from_millis(300),
            max_equal_frames: 10,
            hold_after: Duration::from_millis(400),
            outside_tolerance: 0.03,
            max_lead: 0.20,
            max_lagging: 10,
            // bridge_data_robot a902e5b on a simulated arm answers in 40 to 110 ms, at worst in 317; somebody else's `reset`
            // takes 4.4 s.
            max_answer: Duration::from_millis(1500),
        }
    }

    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// [`EnvError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), EnvError> {
        let wrong = |detail: String| Err(EnvError::Config { detail });
        Workspace::new(self.workspace.low, self.workspace.high)?;
        let server = [0.05, 0.05, 0.05, 0.25, 0.25, 0.25];
        for (name, values) in
            [("step", &self.step), ("speed", &self.speed), ("acceleration", &self.acceleration)]
        {
            if let Some(v) = values.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
                return wrong(format!("use a limit of {v} for `{name}`: it must be positive"));
            }
        }
        if self.step.iter().zip(server).any(|(ours, server)| *ours > server) {
            return wrong(format!(
                "use `step` limits of {:?}: the server clips at {server:?}, and the goal kept here would differ from its",
                self.step
            ));
        }
        for (name, value) in [
            ("period_secs", self.period_secs),
            ("move_speed", self.move_speed),
            ("max_lead", self.max_lead),
            ("outside_tolerance", self.outside_tolerance),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(format!("use a limit of {value} for `{name}`: it must be positive"));
            }
        }
        if self.max_equal_frames < 2 || self.max_lagging < 2 {
            return wrong("count fewer than 2 frames or steps as a fault".to_owned());
        }
        Ok(())
    }
}
