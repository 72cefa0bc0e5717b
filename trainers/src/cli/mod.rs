//! Command lines of this crate's programs.

pub mod parity;
