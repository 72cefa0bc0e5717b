//! What can go wrong in an algorithm.

use simloop_policies::PolicyError;
use thiserror::Error;

/// An algorithm's failure.
#[non_exhaustive]
#[derive(Clone, Debug, Error)]
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
    /// A tensor of another shape.
    #[error("take in `{what}`: got shape {got:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor's name.
        what: &'static str,
        /// Its shape.
        got: Vec<i64>,
        /// What it must be; -1 for any.
        expected: Vec<i64>,
    },
    /// A number that is none.
    #[error("take in `{what}`: it is not finite")]
    NotFinite {
        /// The input's name.
        what: &'static str,
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
    /// The model or its optimizer failed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}
