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
//! # Two goals
//! Not of gym-pusht: with [`PushtGoals::Two`] there are a left and a right target, both painted. The task
//! (`pusht_two_goals/left`, `pusht_two_goals/right`) chooses the one that coverage, reward and success count, and only
//! the instruction tells a policy which.
//!
//! # Fidelity
//! `bench replay pusht` on 14 recorded gym-pusht episodes (742 steps with contact); errors are means over the eight
//! keypoints, px:
//!
//! | episodes | one step p50 / p90 / p99 / max | open loop, at the end |
//! |---|---|---|
//! | human-like pushing | 0.0000 / 0.0001 / 0.0001 / 0.0006 | at most 0.0005 |
//! | all | 0.0001 / 0.17 / 15 / 50 | chaotic (walls, grazing contacts) |
//!
//! The tail comes from blocks squeezed between agent and wall, where gym-pusht restored to its own recorded states
//! misses them by as much (p90 0.125, p99 17.1 on a superset of these episodes): Chipmunk's cached impulses are not
//! part of a recorded state. The agent's path, reset states and coverage agree to rounding, frames to 0.03 of 255.
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
mod goals;
mod numpy;
mod raster;
mod recording;
mod render;
mod replay;
mod reset;
mod scene;
pub mod worker;

pub use config::{PushtConfig, PushtObs, PushtSeeding};
pub use coverage::{SUCCESS_COVERAGE, coverage, coverage_of, reward};
pub use env::{CAMERA, MAX_EPISODE_STEPS, PushtEnv};
pub use geometry::{
    AGENT_RADIUS, ARENA_SIZE, BLOCK_AREA, CENTRE_OF_GRAVITY, GOAL, Point, Pose, RECTANGLES,
    WALL_MAX, WALL_MIN, sin_cos, wrap_angle,
};
pub use goals::{Goal, INSTRUCTION, PushtGoals};
pub use recording::{RecordedCase, Recording};
pub use replay::{
    CaseReport, ErrorSummary, FrameReport, GroupReport, ReplayReport, replay, replay_file, rerun,
};
pub use reset::InitialState;
pub use scene::{DT, SUB_STEPS, Scene, SceneState};
