//! The person beside the robot: keys, view, consent, verdicts.
//!
//! | module | what it owns |
//! |---|---|
//! | `keys` | the keyboard, one key at a time; the stop key acts before anything else sees it |
//! | `station` | [`Station`]: prompts, consent, what the screen says |
//! | `terminal` | the live view in a terminal: half-blocks and a status |
//! | [`label`] | verdicts, and their file beside the ledger |
//! | `recorder` | video and view of a trial, off the control loop's thread |
//! | `operated` | [`OperatedEnv`]: a trial from consent to verdict, as an environment |

mod keys;
pub mod label;
mod operated;
mod recorder;
mod station;
mod terminal;

pub use keys::Keys;
pub use operated::{Attempts, OperatedEnv, OperatedOptions, QUIT};
pub use recorder::Recorder;
pub use station::{Answer, Screen, Station};
pub use terminal::{draw, half_blocks};
