//! Observation in, action chunk out.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Policy`], [`ActRequest`], [`PolicyStep`] | acting, batched over environments |
//! | [`Expert`], [`ExpertPolicy`] | labelling any state from the simulator's true state |
//! | [`RandomPolicy`] | the floor of every benchmark |
//! | [`scripted`] | experts for PushT and LIBERO |
//! | [`nn`], [`NoiseStream`] | what networks are made of; their randomness |
//! | [`ObsBatch`], [`ImitationBatch`] | where arrays become tensors |
//! | [`normalize`] | units to numbers of order one and back |
//! | [`heads`], [`fusion`], [`encoders`] | parts of a VLA |
//! | [`safetensors_io`], [`hf`] | named tensors on disk; folders as Hugging Face writes them |
//! | [`vision`], [`text`] | models of published checkpoints; tokenisers |
//! | [`vla`] | the policy composed of them |
//! | [`critic`] | what a state, or a chunk in it, is worth |
//! | [`checkpoint`] | a policy as a folder |
//! | [`chunk`] | which actions of the predicted chunks are performed |
//! | [`optim`] | AdamW, schedules, moving averages: all of it can be saved |
//! | [`remote`] | policies that other programs serve: openpi's websocket form, OpenVLA's REST form |
//! | [`device`] | libtorch: its version, and CUDA when the machine has it |
//!
//! The shape legend is in `simloop_envs`.

mod batch;
mod error;
mod expert;
mod model;
mod noise;
mod policy;
mod random;
mod raw;

pub mod checkpoint;
pub mod chunk;
pub mod critic;
pub mod device;
pub mod encoders;
pub mod fusion;
pub mod heads;
pub mod hf;
pub mod nn;
pub mod normalize;
pub mod optim;
pub mod remote;
pub mod safetensors_io;
pub mod scripted;
pub mod text;
pub mod vision;
pub mod vla;

#[cfg(test)]
pub(crate) mod testing;

pub use batch::{ImitationBatch, ObsBatch};
pub use error::PolicyError;
pub use expert::{Expert, ExpertPolicy};
pub use model::{Decision, Density, ImitationModel, StochasticActor};
pub use noise::{NoiseStream, normal_rows};
pub use policy::{ActMode, ActRequest, ActStats, Needs, Policy, PolicyStep};
pub use random::RandomPolicy;
