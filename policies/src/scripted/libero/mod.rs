//! A pick-and-place expert for LIBERO, from the true state.
//!
//! Hover, pre-shape, down, close, lift, across, lower, open: a phase machine over Cartesian deltas. The grasp is chosen
//! among candidates from above (12 angles round the bowl's rim with three finger openings; 12 across a solid object) by
//! the room that fingertips and palm have between the collision boxes of everything else, there and where the bowl is put
//! down. A grasp that fails falls back in the ranking and the next one is tried.
//!
//! # What it reads
//! From [`Privileged`](simloop_envs::Privileged), metres, world frame, quaternions xyzw: `eef_pos`, `eef_quat_xyzw`,
//! `gripper_qpos`; `<body>_pos`, `<body>_quat_xyzw` and `<body>_boxes` (ten numbers per box: centre, quaternion, half
//! extents in the body's frame) of every body but the robot; for a basket `basket_1_contain_region_pos` and
//! `_half_size`. From the observation only the instruction.
//!
//! # Supported
//! `libero_spatial` and `libero_object`. Other instructions are refused
//! ([`UnsupportedTask`](crate::PolicyError::UnsupportedTask)): they need drawers, knobs and other grips.

mod expert;
mod grasp;
mod hand;
mod scene;
mod task;

pub use expert::{LiberoExpert, Phase};
