//! D4RL's layout: all steps of all episodes in flat arrays.

use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, s};
use serde::{Deserialize, Serialize};
use simloop_envs::ActionConvention;

use super::file::Hdf5;
use crate::data::{DataError, DemoEpisode, DemoSource, EpisodeMeta, SourceSpec};

/// How to read a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct D4rlOptions {
    /// What to do, in words.
    pub instruction: String,
    /// What an action means.
    pub convention: Option<ActionConvention>,
    /// Steps per second.
    pub control_hz: Option<f64>,
}

/// A file of flat arrays. Its numbers are held in memory (a million steps of 50 take 200 MB); it has no images.
///
/// An episode ends after a step with `terminals` or `timeouts` set; steps after the last such one make an episode too.
#[derive(Debug)]
pub struct D4rl {
    spec: SourceSpec,
    meta: Vec<EpisodeMeta>,
    starts: Vec<usize>,
    observations: Array2<f32>,
    actions: Array2<f32>,
}

impl D4rl {
    /// Opens a file and reads it.
    ///
    /// # Errors
    /// [`DataError::Broken`] naming the array that is missing or of another length.
    pub fn open(path: &Path, options: &D4rlOptions) -> Result<Self, DataError> {
        let file = Hdf5::open(path)?;
        let (observations, actions) = (file.rows("observations")?, file.rows("actions")?);
        let len = actions.nrows();
        let mut ends = vec![false; len];
        let there = file.root_datasets()?;
        let mut flags = 0;
        for name in ["terminals", "timeouts"].iter().filter(|n| there.iter().any(|t| t == *n)) {
            let values = file.rows(name)?;
            if values.dim() != (len, 1) {
                return Err(
                    file.broken(format!("`{name}` is {:?} for {len} actions", values.dim()))
                );
            }
            flags += 1;
            ends.iter_mut().zip(&values).for_each(|(end, v)| *end |= *v != 0.0);
        }
        if observations.nrows() != len || len == 0 || flags == 0 {
            return Err(file.broken(format!(
                "{} observations, {len} actions and {flags} of `terminals` and `timeouts`; all must be there, of one length",
                observations.nrows()
            )));
        }
        let mut starts = vec![0];
        starts.extend((1..len).filter(|t| ends[t - 1]));
        let instruction: Arc<str> = Arc::from(options.instruction.as_str());
        let meta = starts
            .iter()
            .enumerate()
            .map(|(i, start)| EpisodeMeta {
                len: starts.get(i + 1).unwrap_or(&len) - start,
                instruction: Arc::clone(&instruction),
                id: format!("episode_{i}"),
            })
            .collect();
        let names = |what: &str, n: usize| (0..n).map(|i| format!("{what}_{i}")).collect();
        let spec = SourceSpec {
            format: "d4rl_hdf5".to_owned(),
            location: path.display().to_string(),
            cameras: std::collections::BTreeMap::new(),
            proprio: names("observation", observations.ncols()),
            action: names("action", actions.ncols()),
            absolute_action: vec![true; actions.ncols()],
            convention: options.convention.clone(),
            control_hz: options.control_hz,
        };
        Ok(Self { spec, meta, starts, observations, actions })
    }
}

impl DemoSource for D4rl {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.meta
    }

    fn read(&self, episode: usize, _images: bool) -> Result<DemoEpisode, DataError> {
        let (Some(&start), Some(meta)) = (self.starts.get(episode), self.meta.get(episode)) else {
            let detail = format!("there is no episode {episode} among {}", self.meta.len());
            return Err(DataError::unsupported(detail));
        };
        let rows = s![start..start + meta.len, ..];
        Ok(DemoEpisode {
            instruction: Arc::clone(&meta.instruction),
            proprio: self.observations.slice(rows).to_owned(),
            actions: self.actions.slice(rows).to_owned(),
            images: std::collections::BTreeMap::new(),
        })
    }
}
