//! Any data set as LeRobot v3.0.

use std::ops::ControlFlow;
use std::path::Path;

use super::lerobot::LerobotWriter;
use super::{DataError, DemoSource};

/// What to convert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Leave the images out.
    pub numbers_only: bool,
    /// The first so many episodes.
    pub episodes: Option<usize>,
    /// The robot's name in `info.json`.
    pub robot_type: String,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self { numbers_only: false, episodes: None, robot_type: "unknown".to_owned() }
    }
}

/// Writes `source` to the folder `target`, one episode at a time; returns episodes and steps written, or `None` where
/// `progress(done, total)`, asked before each episode, broke it off (nothing is left then).
///
/// # Errors
/// The source's own; [`DataError::Unsupported`] if `target` exists or an episode does not fit the format.
pub fn convert(
    source: &dyn DemoSource,
    target: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Option<(usize, u64)>, DataError> {
    let mut spec = source.spec().clone();
    if options.numbers_only {
        spec.cameras.clear();
    }
    let all = source.episodes().len();
    let total = options.episodes.map_or(all, |n| n.min(all));
    let mut writer = LerobotWriter::create(target, &spec, &options.robot_type)?;
    for i in 0..total {
        if progress(i, total).is_break() {
            return Ok(None);
        }
        writer.push(&source.read(i, !options.numbers_only)?)?;
    }
    let written = (writer.len(), writer.frames());
    writer.finish()?;
    Ok(Some(written))
}
