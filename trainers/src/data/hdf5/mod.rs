//! HDF5 demonstrations.
//!
//! | reader | layouts |
//! |---|---|
//! | [`Robomimic`] | `data/demo_N/{actions, obs/*}`: robomimic, LIBERO (raw and OpenVLA's regenerated files), robosuite |
//! | [`D4rl`] | flat `observations`, `actions`, `terminals`, `timeouts` |
//!
//! # Traps, and what is done about them
//! * **Before or after.** LIBERO's own files hold the observation *after* the action of the same row
//!   (`create_dataset.py` records after `env.step`); robomimic's and OpenVLA's regenerated LIBERO files the one *before* it.
//!   No attribute tells. [`ObsTiming`] says it; `Auto` takes files with LIBERO's `bddl_file_name` and a demonstration's
//!   `init_state` (which the regenerated files lack) for raw LIBERO. Where observations come after, row `t` is paired with
//!   action `t + 1`, and an episode is one step shorter.
//! * **Upside down.** LIBERO renders images turned by 180 degrees; they are turned upright for LIBERO unless the options say
//!   otherwise.
//! * **Order.** `demo_10` follows `demo_9`, and numbers may have holes.
//! * **Damage.** A damaged shape would make the HDF5 crate reserve what it claims, so every shape is checked first.

mod d4rl;
mod file;
mod noop;
mod robomimic;

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use d4rl::{D4rl, D4rlOptions};
pub use robomimic::{ObsTiming, Robomimic, RobomimicOptions};

use super::{DataError, DemoSource};

/// How to read a file of either layout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hdf5Options {
    /// For `data/demo_N`.
    pub robomimic: RobomimicOptions,
    /// For flat arrays.
    pub d4rl: D4rlOptions,
}

/// Whether a path looks like an HDF5 file: by its name's end, since the signature may lie behind a user block.
pub fn recognise(path: &Path) -> bool {
    let end = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    path.is_file() && end.is_some_and(|end| ["hdf5", "h5", "hdf"].iter().any(|known| end == *known))
}

/// Opens a file by the layout that it has.
///
/// # Errors
/// The readers' own; [`DataError::Unsupported`] for a file that has neither `data` nor `actions` at its top.
pub fn open(path: &Path, options: &Hdf5Options) -> Result<Arc<dyn DemoSource>, DataError> {
    let file = file::Hdf5::open(path)?;
    if file.root_datasets()?.iter().any(|name| name == "actions") {
        return Ok(Arc::new(D4rl::open(path, &options.d4rl)?));
    }
    if file.groups("data").is_ok() {
        return Ok(Arc::new(Robomimic::open(path, &options.robomimic)?));
    }
    Err(DataError::unsupported(format!(
        "open `{}`: it has neither a group `data` (robomimic, LIBERO) nor an array `actions` (D4RL) at its top",
        path.display()
    )))
}
