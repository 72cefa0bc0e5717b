//! What stands behind the safety gate: a real arm or a simulated one.

use std::time::Duration;

use super::fault::Fault;
use super::mock::Scene;
use super::observation::RobotObs;

/// An arm that is driven like `widowx_env_service`: see [`messages`](super::messages) for the meaning of each request.
///
/// Nobody but [`GatedArm`](super::GatedArm) calls the motions: they are not checked here.
pub trait Arm: Send {
    /// What it is, for logs.
    fn describe(&self) -> String;

    /// Prepares the robot. It moves to its neutral pose.
    ///
    /// # Errors
    /// A [`Fault`]; the request is not sent again.
    fn init(&mut self) -> Result<(), Fault>;

    /// Opens the gripper and moves by the neutral pose to the start state.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    fn reset(&mut self) -> Result<(), Fault>;

    /// Moves to a pose and waits for it.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    fn move_to(&mut self, pose: &Pose, duration: Duration) -> Result<(), Fault>;

    /// Sets a new goal, relative to the previous one: dx, dy, dz \[m\], droll, dpitch, dyaw \[rad\] in the base frame, gripper
    /// absolute (0 closed, 1 open).
    ///
    /// # Errors
    /// As [`init`](Self::init).
    fn step(&mut self, command: &[f64; 7]) -> Result<(), Fault>;

    /// Looks. Moves nothing, so it may be asked again.
    ///
    /// # Errors
    /// A [`Fault`].
    fn observe(&mut self) -> Result<RobotObs, Fault>;

    /// Whether the server has forgotten the robot, or never knew it: what a restart leaves behind. A simulated arm always
    /// has.
    ///
    /// # Errors
    /// A [`Fault`] if nobody answers.
    fn is_fresh(&mut self) -> Result<bool, Fault> {
        Ok(true)
    }

    /// Whether the server knew the robot already when `init` was last sent: somebody initialised it before, and what happened
    /// to it since then cannot be seen.
    fn known_before(&self) -> bool {
        false
    }

    /// Looks closer at a fault of this arm before it is told: waits for the server where that tells what happened. It sends
    /// nothing and ends at the emergency stop.
    fn diagnose(&mut self, fault: Fault) -> Fault {
        fault
    }

    /// Whether [`diagnose`](Self::diagnose) has something to wait for.
    fn must_wait(&self) -> bool {
        false
    }

    /// Whether the first step of a session takes much longer than the others: the server compiles its kinematics then.
    fn compiles(&self) -> bool {
        false
    }

    /// Seeds what the arm draws at `reset`. A real one draws nothing.
    fn seed(&mut self, _seed: u64) {}

    /// The true scene, where there is one.
    fn scene(&self) -> Option<Scene> {
        None
    }
}

/// A pose of the hand in the base frame: `[4, 4]`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Pose {
    /// Rotation and translation \[m\]; the last row is 0 0 0 1.
    pub matrix: [f64; 16],
}

/// How far a rotation may be from orthonormal. OpenVLA's start pose is written with three digits.
const ORTHONORMAL: f64 = 5e-3;

impl Pose {
    /// OpenVLA's start pose, pitched by 74.5 degrees, at x, y, z \[m\]
    /// (openvla c8f03f4, `bridgev2_utils.py`; its digits).
    pub fn openvla_start(position: [f64; 3]) -> Self {
        let [x, y, z] = position;
        let (c, s) = (0.267, 0.963);
        Self { matrix: [c, 0.0, s, x, 0.0, 1.0, 0.0, y, -s, 0.0, c, z, 0.0, 0.0, 0.0, 1.0] }
    }

    /// Where it is, metres.
    pub fn position(&self) -> [f64; 3] {
        [self.matrix[3], self.matrix[7], self.matrix[11]]
    }

    /// What is wrong with it, if it is no rigid transformation.
    pub fn defect(&self) -> Option<String> {
        let m = &self.matrix;
        if let Some(v) = m.iter().find(|v| !v.is_finite()) {
            return Some(format!("it holds {v}"));
        }
        if m[12..] != [0.0, 0.0, 0.0, 1.0] {
            return Some("its last row is not 0 0 0 1".to_owned());
        }
        let row = |i: usize| [m[4 * i], m[4 * i + 1], m[4 * i + 2]];
        let dot = |a: [f64; 3], b: [f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
        for i in 0..3 {
            for j in 0..=i {
                let wanted = if i == j { 1.0 } else { 0.0 };
                if (dot(row(i), row(j)) - wanted).abs() > ORTHONORMAL {
                    return Some("its rotation is not orthonormal".to_owned());
                }
            }
        }
        let (a, b, c) = (row(0), row(1), row(2));
        let cross =
            [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
        (dot(cross, c) < 0.0).then(|| "its rotation is a reflection".to_owned())
    }
}

/// The rotation matrix of extrinsic roll, pitch, yaw, row by row: about x, then y, then z.
pub fn rotation_from_rpy(rpy: [f64; 3]) -> [[f64; 3]; 3] {
    let ((sr, cr), (sp, cp), (sy, cy)) = (rpy[0].sin_cos(), rpy[1].sin_cos(), rpy[2].sin_cos());
    [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
}

/// `rotation` applied to `vector`.
pub fn rotate(rotation: &[[f64; 3]; 3], vector: [f64; 3]) -> [f64; 3] {
    rotation.map(|row| row[0] * vector[0] + row[1] * vector[1] + row[2] * vector[2])
}
