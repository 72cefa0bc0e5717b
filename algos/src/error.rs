//! What can go wrong in an algorithm.

use thiserror::Error;

/// An algorithm's failure.
#[non_exhaustive]
#[derive(Clone, Debug, Error, PartialEq)]
pub enum AlgoError {
    /// Inputs of different lengths.
    #[error("take in `{what}`: got length {got}, expected {expected}")]
    Shape {
        /// The input's name.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length of the first input.
        expected: usize,
    },
    /// A hyper-parameter outside its range.
    #[error("use `{what}` = {got}: it must lie in {range}")]
    Range {
        /// The parameter's name.
        what: &'static str,
        /// Its value.
        got: f64,
        /// What it may be.
        range: &'static str,
    },
}
