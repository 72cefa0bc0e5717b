//! One environment in a child process, whatever language the child is written in.
//!
//! [`BridgeEnv`] is the parent's side and an ordinary [`Env`](crate::Env); [`serve`] is the child's side for environments
//! written in Rust; `python/libero_worker.py` and `python/fake_worker.py` are children in Python. Under
//! [`ThreadedVecEnv`](crate::vec::ThreadedVecEnv), one thread per child waits for it.
//!
//! # The wire protocol, version 1
//!
//! What a child inherits:
//!
//! | descriptor | what |
//! |---|---|
//! | 0 | `/dev/null`: a prompt reads end of file |
//! | 1, 2 | a pipe; never parsed, the last 64 KiB go into error messages |
//! | 3 | its end of a stream socket pair ([`SocketAt::Stdin`]: descriptor 0 instead) |
//! | 4 | a memfd for images, empty; the child sizes it (`ftruncate`) before it answers `hello` |
//!
//! `SIMLOOP_BRIDGE=1`, `SIMLOOP_BRIDGE_PARENT=<pid>`; a process group of its own. A child asks for SIGKILL at its parent's
//! death (`PR_SET_PDEATHSIG`) first of all, then checks `getppid`, and exits at end of file on the socket.
//!
//! **Frame**: `u32` little-endian length, then a body of one msgpack map. A body has at most 16 MiB, 262,144 values, nesting
//! 32. Unknown keys are ignored on both sides.
//!
//! **Request** (parent to child) `{"id": u64, "op": str, …}`; **reply** `{"id": same, "ok": {…}}` or
//! `{"id": same, "err": {"kind": str, "message": str, "trace": str}}`. One request at a time. Replies with another id are
//! discarded: they answer a request that nobody waits for any more.
//!
//! | op | request keys | `ok` keys |
//! |---|---|---|
//! | `hello` | `magic: "simloop-bridge"`, `proto: 1`, `config: map` | `magic`, `proto`, `adapter: str`, `adapter_version: str`, `pid: int`, `versions: {str: str}`, `spec: SPEC`, `shm_bytes: int` (at most 256 MiB) |
//! | `reset` | `seed: u64 or nil`, `options: {task?: str, init_state?: int, state?: [f64]}` | `obs: OBS`, `info: INFO`, `spec: SPEC` (only if it changed), `rss: int` |
//! | `step` | `actions: bin` (f32 LE, `[T_a, D]`), `n: T_a`, `frames: "none" / "last" / {"last_n": int} / "every"` | `steps: [{obs: OBS, reward: f64, terminated: bool, truncated: bool, info: INFO}]`, `rss: int` (optional) |
//! | `render` | | `frame: IMAGE or nil` |
//! | `call` | `name: str`, `args: map` | `result`: anything; queries of one adapter |
//! | `close` | | `{}`, then the child exits with status 0 |
//!
//! - `SPEC`: [`EnvSpec`](crate::EnvSpec) with named fields. `rss`: resident memory of the child, bytes.
//! - `OBS`: `images: {camera: IMAGE}`, `proprio: bin` (f32 LE, `[P]`), `instruction: str` (in `reset` alone; it holds for the
//!   episode). Images are there after a reset, under `every`, and on the `n`-th of `n` steps under `last` (the last k
//!   of the n under `{"last_n": k}`); then they are exactly the spec's cameras at the spec's sizes. A chunk that ends
//!   before those steps carries none.
//! - `IMAGE`: `offset: int`, `shape: [H, W, 3]`, u8 RGB, row 0 on top, packed. Each image of a reply lies at an offset of its
//!   own; all may be overwritten once the next request arrives. One image has at most 16 MiB, a reply's images 64 MiB.
//! - `INFO`: `success: bool or nil`, `metrics: {str: f64}`, `privileged: bin` (f64 LE) or nil, `layout: [[name, length]]` of
//!   the privileged vector (in `reset`, and whenever it changed). Missing keys are nil or empty.
//! - `steps`: 1 to `n`; only the last may be terminated or truncated, and fewer than `n` only if it is.
//! - `err.kind`: `config`, `unavailable` (`message`: what, `trace`: the remedy), `invalid_action`, `needs_reset`,
//!   `handshake`, `panicked`, or an exception's name. After `invalid_action` the episode goes on; after any other error the
//!   parent resets first.
//! - `hello` with another `magic` or `proto` is answered by `err` of kind `handshake` or by the child's own values.
//!
//! # Faults
//!
//! | what happens | what the parent answers |
//! |---|---|
//! | no whole reply before the deadline (also one byte per second) | [`Deadline`](crate::EnvError::Deadline); the group is killed |
//! | the child dies, exits or closes the socket | [`WorkerDied`](crate::EnvError::WorkerDied) with status and output |
//! | anything malformed | [`Protocol`](crate::EnvError::Protocol); the group is killed |
//! | another magic or version | [`Handshake`](crate::EnvError::Handshake) |
//! | an exception in the child | the error it names; the child lives on (after a panic it is replaced) |

mod child;
mod client;
mod endpoint;
mod images;
mod messages;
mod server;
mod session;
mod spawn;

pub mod protocol;

pub use child::{ENV_BRIDGE, ENV_PARENT, OUTPUT_TAIL, SocketAt};
pub use client::{BridgeConfig, BridgeEnv, Deadlines};
pub use endpoint::Endpoint;
pub use images::ImageReader;
pub use server::serve;
pub use session::Session;
