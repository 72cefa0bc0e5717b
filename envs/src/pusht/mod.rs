//! PushT: a disc pushes a T onto its goal. The behaviour of gym-pusht 0.1.8, in rapier.
//!
//! # Starting state
//! Agent on integers in `[50, 450)²`, block on integers in `[100, 400)²`, angle in `[-pi, pi)`, from gym-pusht's own
//! generator: a seed here gives gym-pusht's state bit for bit ([`InitialState`]). The block's origin is then moved as
//! gym-pusht's "legacy" order of setting position and angle moves it.
//!
//! # Reward, success, end
//! Reward is `clip(coverage / 0.95, 0, 1)` at every step; an episode is solved and terminates when coverage exceeds
//! 0.95; [`coverage`](fn@coverage) is the share of the goal T under the block.
//!
//! # References
//! Florence et al., *Implicit Behavioral Cloning*, 2021; Chi et al., *Diffusion Policy*, 2023; gym-pusht 0.1.8
//! (Hugging Face), which fixes every number here.

mod config;
mod contacts;
mod coverage;
mod env;
mod frames;
mod geometry;
mod numpy;
mod raster;
mod recording;
mod render;
mod replay;
mod reset;
mod scene;

pub use config::{PushtConfig, PushtObs, PushtSeeding};
pub use coverage::{SUCCESS_COVERAGE, coverage, reward};
pub use env::{CAMERA, MAX_EPISODE_STEPS, PushtEnv};
pub use geometry::{
    AGENT_RADIUS, ARENA_SIZE, BLOCK_AREA, CENTRE_OF_GRAVITY, GOAL, Point, Pose, RECTANGLES,
    WALL_MAX, WALL_MIN, sin_cos, wrap_angle,
};
pub use recording::{RecordedCase, Recording};
pub use replay::{
    CaseReport, ErrorSummary, FrameReport, GroupReport, ReplayReport, replay, replay_file, rerun,
};
pub use reset::InitialState;
pub use scene::{DT, SUB_STEPS, Scene, SceneState};
