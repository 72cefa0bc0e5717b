//! What can go wrong in a policy.

use std::path::PathBuf;

use thiserror::Error;

/// A policy's failure.
#[non_exhaustive]
#[derive(Clone, Debug, Error)]
pub enum PolicyError {
    /// The observation lacks something that this policy needs.
    #[error("find `{what}` in the observation: {remedy}")]
    Missing {
        /// The missing part.
        what: String,
        /// How to get it.
        remedy: String,
    },
    /// The policy does not know this task.
    #[error("act in `{task}`: {detail}")]
    UnsupportedTask {
        /// The task or instruction.
        task: String,
        /// What is supported.
        detail: String,
    },
    /// A setting or a file of the policy is wrong.
    #[error("{detail}")]
    Config {
        /// What is wrong and the remedy.
        detail: String,
    },
    /// A file of the policy cannot be read or written.
    #[error("use `{}`: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A file that can run code when it is loaded.
    #[error("load `{}`: it is {what}, and pickled weights can run code; save them as .safetensors (Python: safetensors.torch.save_file)", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A tensor does not have the shape that a part of the model was built for.
    #[error("use `{tensor}` of shape {got:?} where {expected} is expected")]
    Shape {
        /// Which tensor.
        tensor: String,
        /// Its shape.
        got: Vec<i64>,
        /// The shape expected; `*` stands for any size.
        expected: String,
    },
    /// A policy that another program serves does not answer, or not as it should.
    #[error("use the policy at {url}: {detail}")]
    Remote {
        /// Where it is.
        url: String,
        /// What went wrong, in the server's own words where it said any.
        detail: String,
    },
    /// The policy computed a non-finite number.
    #[error("act: `{tensor}` is not finite")]
    NonFinite {
        /// What was not finite.
        tensor: String,
    },
}
