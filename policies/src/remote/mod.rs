//! Policies over the network: the two wire forms that other projects speak, and a [`Policy`](crate::Policy) on their far side.
//!
//! | form | who speaks it | here |
//! |---|---|---|
//! | websocket, msgpack with numpy arrays | openpi (`openpi-client` 0.1.2) and the servers that follow it | [`msgpack`], `ws://host:port` |
//! | `POST /act`, JSON with numpy arrays (`json_numpy` 2.1.1) | OpenVLA `vla-scripts/deploy.py`, OpenVLA-OFT | [`json`], `http://host:port` |
//!
//! Both are read into one bounded tree, [`Node`], that borrows from the message; [`Keys`] says which entry is which part of an
//! observation. The server of these forms is in `simloop_trainers::serve`.
//!
//! # Extensions
//! A server that names `simloop` in its metadata understands more in a request, which makes a remote decision equal to one
//! in this process: [`NOISE_SEED`], [`RESET`] and [`RECENT`]. Servers that do not are never sent them.

mod keys;
mod node;
mod policy;
mod resize;
mod rest;
mod websocket;

pub mod json;
pub mod msgpack;

pub use keys::{CameraKey, Keys, KeysError, Wanted, observation};
pub use node::{Array, Dtype, Node, WireError};
pub use policy::{Description, Gripper, RemoteOptions, RemotePolicy, is_url};

/// Key of the seed of all noise in a decision, an unsigned integer.
pub const NOISE_SEED: &str = "simloop/noise_seed";
/// Key of a flag: a new episode begins with this request.
pub const RESET: &str = "simloop/reset";
/// Key of what was seen since the previous decision and before this observation: a list of maps, oldest first.
pub const RECENT: &str = "simloop/recent";
/// The header that names a session over HTTP.
pub const SESSION_HEADER: &str = "x-session-id";
/// The name under which a server says that it understands the extensions.
pub const SERVER_NAME: &str = "simloop";
/// The version of the extensions.
pub const PROTOCOL: u64 = 1;
