//! LIBERO (Liu et al. 2023, arXiv 2306.03310): 130 manipulation tasks in MuJoCo, run for real in a Python process.
//!
//! # Description
//! A Franka Panda over a table; the instruction names what to move where. Five suites: spatial, object, goal and 10 of ten
//! tasks each, 90 of ninety; fifty stored initial states per task.
//!
//! # Action space
//! `[7]`: position delta (1.0 = 0.05 m), axis-angle delta (1.0 = 0.5 rad), both in the world frame; gripper, of which only
//! the sign counts (negative opens, positive closes, zero holds). 20 Hz.
//!
//! # Observation space
//! `proprio [8]`: hand position (m), axis-angle (rad), both fingers (m), as OpenVLA and openpi build it. Cameras as
//! configured, usually `agentview` and `robot0_eye_in_hand`, in the orientation that the protocol names.
//!
//! # Reward and success
//! 1.0 on the step whose state meets LIBERO's goal predicates, else 0.0. `On(a, b)` needs contact and 30 mm, not release.
//!
//! # Starting state
//! Initial state `options.init_state` (without one: the seed modulo 50), then the protocol's settle steps, which are no part
//! of the episode. Fixtures are in no initial state; their poses follow [`FixtureSeeding`].
//!
//! # Episode end
//! Terminated on success; truncated at the suite's step limit.
//!
//! # Reset options
//! `task` (`libero_spatial/3`; the worker builds another task's scene in 1 to 3 s), `init_state`, or `state` (time,
//! positions, velocities; no settle steps then).
//!
//! # Versions
//! v1: hf-libero 0.1.4, robosuite 1.4.1, mujoco 3.2.3. With mujoco 3.4.0 and later the premise of `libero_spatial/5` breaks;
//! [`preflight`] tells.
//!
//! # Faithfulness
//! States equal LIBERO's own hard resets with always-on cameras bit for bit in all forty tasks of spatial, object, goal and
//! 10, whatever the reset mode and whoever looks; images are byte for byte those of always-on cameras.

mod assets;
mod config;
mod env;
mod locate;
pub mod preflight;
mod suites;
mod worker_files;

pub use assets::{AssetFingerprint, fingerprint_assets};
pub use config::{FixtureSeeding, GlBackend, ImageTransform, LiberoConfig, ResetMode};
pub use env::{LiberoEnv, TaskInfo};
pub use locate::{INSTALL, LiberoInstall, LocateOptions, find_assets, find_python, locate};
pub use suites::{INIT_STATES, Suite, parse_task};
