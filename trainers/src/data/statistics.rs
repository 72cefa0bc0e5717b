//! Statistics of a data set, and OpenVLA's file of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use simloop_policies::normalize::{NormMode, Normalizer, Stats};

use super::{DataError, WindowDataset};

/// The longest `dataset_statistics.json`; OpenVLA's own with 27 data sets has 120 kB.
const MAX_FILE: u64 = 64 << 20;

/// What a policy's normalisers are made from.
#[derive(Clone, Debug, PartialEq)]
pub struct DataStatistics {
    /// Of every action, `[D]`.
    pub action: Stats,
    /// Which numbers of an action are scaled at all, `[D]`.
    pub action_mask: Vec<bool>,
    /// Of every step's proprio, `[P]`.
    pub proprio: Stats,
    /// Episodes.
    pub num_trajectories: u64,
}

impl DataStatistics {
    /// Exact statistics of the chosen episodes' numbers; every step counts once. One column at a time is copied and
    /// sorted, so it takes 8 bytes per step beside what `data` holds.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] for no step.
    pub fn of(data: &WindowDataset) -> Result<Self, DataError> {
        let stats = |rows: &ndarray::Array2<f32>| {
            Stats::of(rows.view()).map_err(|e| DataError::unsupported(e.to_string()))
        };
        Ok(Self {
            action: stats(data.actions())?,
            action_mask: vec![true; data.actions().ncols()],
            proprio: stats(data.proprio())?,
            num_trajectories: data.episodes().len() as u64,
        })
    }

    /// A normaliser of actions, by the mask.
    pub fn action_normalizer(&self, mode: NormMode) -> Normalizer {
        let mut normalizer = Normalizer::new(mode, self.action.clone(), Vec::new(), Vec::new());
        normalizer.mask.clone_from(&self.action_mask);
        normalizer
    }

    /// A normaliser of proprio.
    pub fn proprio_normalizer(&self, mode: NormMode) -> Normalizer {
        Normalizer::new(mode, self.proprio.clone(), Vec::new(), Vec::new())
    }
}

/// OpenVLA's `dataset_statistics.json`: data set name to statistics.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct File(BTreeMap<String, Entry>);

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    action: Vector,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proprio: Option<Vector>,
    num_transitions: u64,
    num_trajectories: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Vector {
    mean: Vec<f64>,
    std: Vec<f64>,
    max: Vec<f64>,
    min: Vec<f64>,
    q01: Vec<f64>,
    q99: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mask: Option<Vec<bool>>,
}

impl Vector {
    fn new(stats: &Stats, mask: Option<&[bool]>) -> Self {
        Self {
            mean: stats.mean.clone(),
            std: stats.std.clone(),
            max: stats.max.clone(),
            min: stats.min.clone(),
            q01: stats.q01.clone(),
            q99: stats.q99.clone(),
            mask: mask.map(<[bool]>::to_vec),
        }
    }

    /// Checks the lengths and the numbers.
    fn stats(self, count: u64) -> Result<(Stats, Vec<bool>), String> {
        let d = self.mean.len();
        let mask = self.mask.unwrap_or_else(|| vec![true; d]);
        let lists = [&self.mean, &self.std, &self.max, &self.min, &self.q01, &self.q99];
        if mask.len() != d || lists.iter().any(|l| l.len() != d) {
            return Err("its lists differ in length".to_owned());
        }
        if lists.iter().any(|l| l.iter().any(|v| !v.is_finite())) {
            return Err("a number is not finite".to_owned());
        }
        let Self { mean, std, max, min, q01, q99, .. } = self;
        Ok((Stats { mean, std, min, max, q01, q99, count }, mask))
    }
}

/// Writes `dataset_statistics.json` with OpenVLA's keys: `{name: {action: {mean, std, max, min, q01, q99, mask},
/// proprio: {…}, num_transitions, num_trajectories}}`. It appears whole or not at all.
///
/// # Errors
/// [`DataError::Io`].
pub fn save_statistics(
    path: &Path,
    all: &BTreeMap<String, DataStatistics>,
) -> Result<(), DataError> {
    let text = statistics_json(all)?;
    let half = path.with_extension("json.partial");
    fs::write(&half, text).map_err(DataError::io("write", &half))?;
    fs::rename(&half, path).map_err(DataError::io("write", path))
}

/// The text that [`save_statistics`] writes.
///
/// # Errors
/// [`DataError::Unsupported`] for a number that JSON does not have.
pub fn statistics_json(all: &BTreeMap<String, DataStatistics>) -> Result<String, DataError> {
    let entry = |s: &DataStatistics| Entry {
        action: Vector::new(&s.action, Some(&s.action_mask)),
        proprio: Some(Vector::new(&s.proprio, None)),
        num_transitions: s.action.count,
        num_trajectories: s.num_trajectories,
    };
    let file = File(all.iter().map(|(name, s)| (name.clone(), entry(s))).collect());
    serde_json::to_string_pretty(&file).map_err(|e| DataError::unsupported(e.to_string()))
}

/// Reads a file that [`save_statistics`] or OpenVLA wrote (`dataset_statistics.json`, or the `norm_stats` of a model's
/// config saved alone).
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Broken`] naming the data set whose lists do not fit.
pub fn load_statistics(path: &Path) -> Result<BTreeMap<String, DataStatistics>, DataError> {
    let len = fs::metadata(path).map_err(DataError::io("read", path))?.len();
    if len > MAX_FILE {
        return Err(DataError::broken(path, format!("{len} bytes are too many for statistics")));
    }
    let text = fs::read(path).map_err(DataError::io("read", path))?;
    let File(entries) =
        serde_json::from_slice(&text).map_err(|e| DataError::broken(path, e.to_string()))?;
    let mut all = BTreeMap::new();
    for (name, entry) in entries {
        let wrong =
            |what: &str, e: String| DataError::broken(path, format!("`{name}.{what}`: {e}"));
        let (action, action_mask) =
            entry.action.stats(entry.num_transitions).map_err(|e| wrong("action", e))?;
        let proprio = match entry.proprio {
            Some(vector) => vector.stats(entry.num_transitions).map_err(|e| wrong("proprio", e))?.0,
            None => Stats::default(),
        };
        let num_trajectories = entry.num_trajectories;
        all.insert(name, DataStatistics { action, action_mask, proprio, num_trajectories });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::WindowOptions;
    use crate::data::toys::Counting;
    use std::sync::Arc;

    fn counted() -> DataStatistics {
        let source = Arc::new(Counting::new(&[3, 5]));
        let data = WindowDataset::new(source, vec![0, 1], WindowOptions::default()).unwrap();
        DataStatistics::of(&data).unwrap()
    }

    #[test]
    fn every_step_counts_once_whatever_the_chunk() {
        let stats = counted();
        // Steps 0 1 2 and 0 1 2 3 4: their sum is 13.
        assert_eq!((stats.action.count, stats.num_trajectories), (8, 2));
        assert!((stats.action.mean[0] - 13.0 / 8.0).abs() < 1e-12);
        assert_eq!((stats.action.max[1], stats.proprio.max[0]), (40.0, 104.0));
    }

    #[test]
    fn the_file_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dataset_statistics.json");
        let mut stats = counted();
        stats.action_mask[1] = false;
        let all = BTreeMap::from([("toy".to_owned(), stats)]);
        save_statistics(&path, &all).unwrap();
        assert_eq!(load_statistics(&path).unwrap(), all);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("true", "true, true", 1)).unwrap();
        assert!(load_statistics(&path).unwrap_err().to_string().contains("`toy.action`"));
    }

    #[test]
    fn openvlas_own_file_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/reference/datasets/libero_dataset_statistics.json");
        if !path.is_file() {
            println!("skipped: {} is not there", path.display());
            return;
        }
        let all = load_statistics(&path).unwrap();
        assert_eq!(all.len(), 4, "{:?}", all.keys());
        assert!(all.values().all(|s| s.action.mean.len() == 7 && !s.action_mask[6]));
    }
}
