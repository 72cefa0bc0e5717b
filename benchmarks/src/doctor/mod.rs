//! `bench doctor`: what is installed, what is wrong, and the line that fixes it.
//!
//! Looking and judging are apart: [`Probe::here`] collects where this machine keeps things and how much it has left,
//! [`diagnose`] reads those places (no simulator is imported, so it takes milliseconds) and judges. Tests hand
//! [`diagnose`] folders of their own.
//!
//! | module | what it judges |
//! |---|---|
//! | `torch` | libtorch and CUDA |
//! | `libero` | the Python stack, its versions, initial states, assets, OpenGL |
//! | `machine` | disk, shared memory, open files, build tools |

mod finding;
mod libero;
mod machine;
mod probe;
#[cfg(test)]
mod tests;
mod torch;

pub use finding::{Finding, Status, diagnose, run};
pub use probe::{Cuda, Probe};
