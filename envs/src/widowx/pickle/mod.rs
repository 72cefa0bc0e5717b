//! Python's pickle, as far as the robot server speaks it: protocols 2 to 5 are read, 4 is written.
//!
//! Nothing is executed. A pickle is a program that builds objects by calling functions by name; this reader knows the
//! handful of names that numpy arrays, numpy scalars, sets and bytes need, and refuses every other. Sizes, the number of
//! objects and the depth are bounded ([`Bounds`]), so that a hostile or damaged reply costs an error and no memory.
//!
//! # Details
//! 1. Objects live in an arena and the memo holds their places, as in Python: an array is remembered before `BUILD` fills
//!    it, and one array may stand under two keys (the server's observation before `init`).
//! 2. Both `numpy.core.*` and `numpy._core.*` (numpy 2) are read; `numpy.core.*` is written, because the server's numpy
//!    1.24 has no other.
//! 3. Protocol 2 has no bytes: Python writes `_codecs.encode(text, 'latin1')`, which is read.

mod read;
mod value;
mod write;

use thiserror::Error;

pub use read::{Bounds, read};
pub use value::{Array, DType, Value};
pub use write::write;

/// Why a pickle was refused.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PickleError {
    /// It ends too early.
    #[error("the pickle ends inside of {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// It uses something outside of the robot's protocol.
    #[error("the pickle holds {what}, which the robot's protocol does not")]
    Unsupported {
        /// The opcode, the function or the type.
        what: String,
    },
    /// It contradicts itself.
    #[error("the pickle is damaged: {what}")]
    Damaged {
        /// The contradiction.
        what: String,
    },
    /// It is larger or deeper than any message of the protocol.
    #[error("the pickle exceeds the limit of {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}
