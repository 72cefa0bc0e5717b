//! A policy over the network: openpi's websocket form and OpenVLA's REST form on one port.
//!
//! ```text
//! clients ──▶ network threads: limits, token, decoding, sessions ──jobs──▶ inference thread: batches ──▶ policy
//!            (tokio; never a tensor)                            ◀─chunks──  (never a socket)
//! ```
//!
//! | route | what |
//! |---|---|
//! | `GET /` (upgrade) | openpi's websocket: metadata first, then one chunk per observation; a connection is a session |
//! | `POST /act` | OpenVLA's REST form; `x-session-id` names a session, without it a request stands alone |
//! | `GET /healthz` | `ok` while it takes requests, 503 while it shuts down; needs no token |
//! | `GET /metadata` | what the policy wants to see and answers, as JSON |
//! | `GET /metrics` | Prometheus text |
//!
//! # Details
//! 1. Inference has one thread and full batches: a batch leaves when it is full, when everyone who was answered a moment
//!    ago has asked again, or when the policy has been idle for [`ServeConfig::max_wait`] (`engine.rs`). Batches are padded
//!    to the policy's own size, so who else asks decides nothing about an answer.
//! 2. A session remembers the last `T_o` observations and hands the policy exactly so many each time. A batch that fails is
//!    asked again one by one, so a request that the policy cannot answer fails alone.
//! 3. Noise of a decision: the request's own seed if it brings one; otherwise a function of the server's seed, the session's
//!    name and the number of its decision. A request without a session has the same noise every time.
//! 4. Over REST a session's answer is one action `[D]`, dealt out of its chunk, as OpenVLA answers; `?reply=chunk` answers
//!    `[T_a, D]`. Every observation is remembered either way.
//! 5. Sizes, types, shapes and finiteness are checked before anything is copied or computed; every wait has a deadline.

mod auth;
mod body;
mod config;
mod engine;
mod load;
mod metadata;
mod metrics;
mod refusal;
mod routes;
mod server;
mod session;
mod socket;

pub use config::{MIN_TOKEN, ServeConfig};
pub use engine::{Loaded, Loader};
pub use load::PolicySettings;
pub use server::Server;
