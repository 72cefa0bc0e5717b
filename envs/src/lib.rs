//! The environment contract, its vectorised forms, and the simulators behind it.
//!
//! # Shape legend
//!
//! Used in every comment of the repository: `B` batch, `N` envs, `G` group, `T` time, `T_o T_p T_a` horizons seen,
//! predicted and executed, `D` action, `P` proprio, `H W C` image, `E` critics.
//!
//! # Layers
//!
//! | module | what it owns |
//! |---|---|
//! | [`Env`], [`Observation`], [`ActionChunk`], [`Step`], [`EnvSpec`] | the contract, after Gymnasium 1.x |
//! | [`seeding`] | [`SeedTree`]: every random draw of a run, addressed by name |
//! | [`bridge`] | one environment in a child process, whatever language the child is written in |
//! | [`mod@vec`] | [`VecEnv`]: many environments behind `send` and `recv` |
//! | [`libero`] | LIBERO, the real one, in a Python process |
//! | [`widowx`] | the real WidowX behind BridgeData V2's robot server, its safety gate, a simulated arm |
//! | [`wrappers`] | time limit, fault injection |

mod action;
mod convention;
mod env;
mod episode;
mod error;
mod observation;
mod space;

pub mod bridge;
pub mod libero;
pub mod pusht;
pub mod rotation;
pub mod seeding;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vec;
pub mod widowx;
pub mod wrappers;

pub use action::ActionChunk;
pub use convention::{ActionConvention, ControlMode, GripperConvention, ReferenceFrame};
pub use env::{ChunkStep, Env, EnvSpec, FrameRequest, ResetOptions, ResetRequest, Step};
pub use episode::EpisodeEnd;
pub use error::EnvError;
pub use observation::{Frame, Info, Observation, Privileged, PrivilegedLayout};
pub use seeding::SeedTree;
pub use space::{BoxSpace, ImageSpace, ObservationSpace};
pub use vec::{EnvFactory, EnvId, PerEnv, Reply, Request, VecEnv};
