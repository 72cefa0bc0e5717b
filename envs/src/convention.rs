//! What the numbers of an action mean, as a type.
//!
//! Convention drift (gripper sign, frame, absolute against delta) costs up to 80 points of success rate and raises no
//! error anywhere, so an environment states its convention and a policy states the one it was trained with; the runner
//! refuses the pair unless they are equal.

use serde::{Deserialize, Serialize};

use crate::EnvError;

/// The meaning of one action vector `[D]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionConvention {
    /// What the motion part commands.
    pub control: ControlMode,
    /// The frame in which the motion part is expressed.
    pub frame: ReferenceFrame,
    /// What the last number means, if there is a gripper.
    pub gripper: GripperConvention,
}

/// What the motion part of an action commands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlMode {
    /// A target position for the end effector, in the environment's length unit.
    AbsolutePosition,
    /// A change of pose: numbers in `[-1, 1]` times the scales below; the rotation part is an axis-angle vector.
    DeltaPose {
        /// Metres at 1.0.
        translation_m: f64,
        /// Radians at 1.0.
        rotation_rad: f64,
    },
    /// A change of pose in metres and radians (Euler angles roll, pitch, yaw), unscaled, as in BridgeData V2.
    DeltaPoseMetric,
    /// Joint targets in radians.
    JointPosition,
}

/// The frame of a motion command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceFrame {
    /// The fixed frame of the scene (pixels, y down, for PushT).
    World,
    /// The robot's base.
    Base,
    /// The gripper itself.
    EndEffector,
}

/// What the gripper number of an action means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GripperConvention {
    /// No gripper.
    None,
    /// Only the sign counts: negative opens, positive closes, zero holds (robosuite).
    NegativeOpens,
    /// 0 closed, 1 open, absolute (BridgeData V2, OpenVLA's model space).
    OneIsOpen,
}

impl ActionConvention {
    /// Checks that a policy trained with `self` may drive an environment that expects `env`.
    ///
    /// # Errors
    /// [`EnvError::Config`] naming the first field that differs and both values.
    pub fn check_matches(&self, env: &Self) -> Result<(), EnvError> {
        let differ = |field: &str, policy: String, env: String| {
            Err(EnvError::Config {
                detail: format!(
                    "action convention mismatch in `{field}`: the policy was made for {policy}, the environment \
                     expects {env}; convert the policy's actions or choose the protocol it was trained with"
                ),
            })
        };
        if self.control != env.control {
            return differ("control", format!("{:?}", self.control), format!("{:?}", env.control));
        }
        if self.frame != env.frame {
            return differ("frame", format!("{:?}", self.frame), format!("{:?}", env.frame));
        }
        if self.gripper != env.gripper {
            return differ("gripper", format!("{:?}", self.gripper), format!("{:?}", env.gripper));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_gripper_sign_is_refused_by_name() {
        let env = ActionConvention {
            control: ControlMode::DeltaPose { translation_m: 0.05, rotation_rad: 0.5 },
            frame: ReferenceFrame::World,
            gripper: GripperConvention::NegativeOpens,
        };
        assert!(env.check_matches(&env).is_ok());
        let policy = ActionConvention { gripper: GripperConvention::OneIsOpen, ..env.clone() };
        let message = policy.check_matches(&env).unwrap_err().to_string();
        assert!(message.contains("`gripper`") && message.contains("OneIsOpen"), "{message}");
    }
}
