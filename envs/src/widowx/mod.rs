//! The WidowX 250S of BridgeData V2, behind its robot server (`widowx_env_service --server`) exactly as it stands.
//!
//! ```text
//! policy ─▶ WidowXEnv ─▶ GatedArm (safety gate, watchdog, emergency stop) ─▶ RobotClient ─▶ ZMTP, LZ4, pickle ─▶ robot
//!                                                                        └─▶ MockArm
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | `env` | [`WidowXEnv`]: the robot as an [`Env`](crate::Env), BridgeData V2's conventions, OpenVLA's order |
//! | `session` | what is known of a robot server between episodes, and who is warned |
//! | `actions` | un-normalisation, gripper modes |
//! | [`safety`] | the gate in front of every command |
//! | `stop` | emergency stop and consent |
//! | `fault` | every fault by name, and what the operator must do |
//! | `arm` | what stands behind the gate |
//! | `client` | [`RobotClient`]: one request at a time, deadlines, no motion sent twice |
//! | `mock` | [`MockArm`]: a simulated arm with a camera |
//! | `observation` | state and camera |
//! | [`messages`] | requests and replies |
//! | [`zmtp`], [`pickle`] | the wire |
//!
//! The server authenticates nobody and unpickles whatever arrives: see SECURITY.md before it is put on a network.

mod actions;
mod arm;
mod client;
mod env;
mod fault;
pub mod messages;
mod mock;
mod observation;
pub mod pickle;
pub mod safety;
mod session;
mod stop;
pub mod zmtp;

pub use actions::{ActionUnits, BRIDGE_Q01, BRIDGE_Q99, Gripper, GripperMode, unnormalise};
pub use arm::{Arm, Pose, rotate, rotation_from_rpy};
pub use client::{Deadlines, PORT, Probe, RobotClient};
pub use env::{
    CAMERA, MAX_EPISODE_STEPS, Profile, Ready, StepTrace, WIDOWX, WidowXConfig, WidowXEnv,
};
pub use fault::{Fault, FaultKind};
pub use messages::EnvParams;
pub use mock::{MockArm, Scene};
pub use observation::RobotObs;
pub use safety::GatedArm;
pub use session::{Session, Warn};
pub use stop::{Consent, EmergencyStop};
