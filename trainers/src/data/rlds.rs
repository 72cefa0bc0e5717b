//! RLDS data sets as TFDS stores them: `dataset_info.json`, `features.json` and TFRecord shards, one episode per record.
//!
//! The features of the steps are flattened: `steps/observation/image_0` is a list of `T` JPEGs, `steps/action` a list of
//! `T * 7` floats. `T` comes from a feature of known width, never from `is_last`, which some exports never set. Images
//! stay encoded until a frame is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array2, Axis};
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use simloop_envs::ImageSpace;

use super::example::{Example, Feature, Kind};
use super::oxe::{self, Recipe};
use super::source::frame_size;
use super::tfds::{FeatureKind, FeatureTable, parse_split, read_features, read_info};
use super::tfrecord::TfRecords;
use super::{DataError, DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec};

/// How an RLDS data set is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RldsOptions {
    /// A split in TFDS's notation: `train`, `train[:95%]`.
    pub split: String,
    /// A row of OpenVLA's table ([`oxe::RECIPES`]), e.g. `bridge_orig`; without it numbers and cameras stay as they are.
    pub standardise: Option<String>,
    /// Whether episodes without an instruction are left out, as OpenVLA does.
    pub skip_unlabeled: bool,
}

impl Default for RldsOptions {
    fn default() -> Self {
        Self { split: "train".to_owned(), standardise: None, skip_unlabeled: false }
    }
}

/// An RLDS data set.
#[derive(Debug)]
pub struct RldsSource {
    spec: SourceSpec,
    table: FeatureTable,
    recipe: Option<&'static Recipe>,
    /// Camera name to its key below `steps/`.
    cameras: BTreeMap<String, String>,
    raw: RawKeys,
    shards: Vec<TfRecords>,
    episodes: Vec<EpisodeMeta>,
    /// Shard and record of each episode.
    places: Vec<(usize, usize)>,
}

/// Keys below `steps/` that the raw form takes, each with its width.
#[derive(Debug, Default)]
struct RawKeys {
    proprio: Vec<(String, usize)>,
    action: Vec<(String, usize)>,
    instruction: Option<String>,
}

/// The folder with `dataset_info.json`: `path` itself or its only version folder.
pub fn locate(path: &Path) -> Option<PathBuf> {
    let is = |p: &Path| p.join("dataset_info.json").is_file() && p.join("features.json").is_file();
    if is(path) {
        return Some(path.to_owned());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).ok()?.flatten().take(1000) {
        if is(&entry.path()) {
            found.push(entry.path());
        }
    }
    (found.len() == 1).then(|| found.remove(0))
}

impl RldsSource {
    /// Opens a version folder (or the folder above its only version) and reads every record of the split once, for
    /// lengths and instructions.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] for an unknown standardisation, split or storage; [`DataError::Broken`] naming the
    /// shard and the record.
    pub fn open(path: &Path, options: &RldsOptions) -> Result<Self, DataError> {
        let folder = locate(path).ok_or_else(|| {
            DataError::unsupported(format!(
                "read `{}`: there is no dataset_info.json with a features.json in it or in its only version folder",
                path.display()
            ))
        })?;
        let info = read_info(&folder)?;
        let table = read_features(&folder)?;
        let recipe = options.standardise.as_deref().map(find_recipe).transpose()?;
        let raw = raw_keys(&table);
        let (name, range) = parse_split(&options.split).map_err(DataError::unsupported)?;
        let split = info.splits.iter().find(|s| s.name == name).ok_or_else(|| {
            let names: Vec<&str> = info.splits.iter().map(|s| s.name.as_str()).collect();
            DataError::unsupported(format!(
                "`{}` has no split `{name}`; it has {names:?}",
                folder.display()
            ))
        })?;
        let mut shards = Vec::new();
        let mut all = Vec::new();
        for (path, expected) in &split.shards {
            let shard = TfRecords::open(path)?;
            if shard.len() != *expected {
                return Err(DataError::broken(
                    path,
                    format!(
                        "it has {} records, dataset_info.json says {expected}; copy the file again",
                        shard.len()
                    ),
                ));
            }
            all.extend((0..shard.len()).map(|record| (shards.len(), record)));
            shards.push(shard);
        }
        let (from, to) = range.map_or((0, all.len()), |(a, b)| (a.of(all.len()), b.of(all.len())));
        let chosen = all.get(from..to.max(from)).unwrap_or_default();
        let cameras = cameras(recipe, &table);
        let mut source = Self {
            spec: spec(&folder, recipe, &raw),
            table,
            recipe,
            cameras,
            raw,
            shards,
            episodes: Vec::new(),
            places: Vec::new(),
        };
        for &(shard, record) in chosen {
            let meta = source.meta(shard, record)?;
            if meta.len == 0 || (options.skip_unlabeled && meta.instruction.is_empty()) {
                continue;
            }
            source.episodes.push(meta);
            source.places.push((shard, record));
        }
        source.spec.cameras = source.camera_sizes()?;
        Ok(source)
    }

    /// The data set's features, by key.
    pub fn features(&self) -> &FeatureTable {
        &self.table
    }

    fn meta(&self, shard: usize, record: usize) -> Result<EpisodeMeta, DataError> {
        let broken = |e: String| self.broken(shard, record, e);
        let steps = Steps::parse(self.shards[shard].read(record)?, &self.table).map_err(broken)?;
        let key = match self.recipe {
            Some(recipe) => Some(recipe.instruction),
            None => self.raw.instruction.as_deref(),
        };
        let instruction = match key {
            Some(key) => steps.first_text(key).map_err(broken)?,
            None => String::new(),
        };
        let file = self.shards[shard].path().file_name().unwrap_or_default().to_string_lossy();
        Ok(EpisodeMeta {
            len: self.recipe.map_or(steps.len(), |r| r.kept(steps.len()).len()),
            instruction: Arc::from(instruction),
            id: format!("{file}#{record}"),
        })
    }

    /// Sizes from features.json, from the first frame where a dimension is unknown there.
    fn camera_sizes(&self) -> Result<BTreeMap<String, ImageSpace>, DataError> {
        let mut sizes = BTreeMap::new();
        for (camera, key) in &self.cameras {
            let size = match self.table.get(&format!("steps/{key}")) {
                Some(FeatureKind::Image { shape, .. }) => match shape.as_slice() {
                    [Some(h), Some(w), Some(3)] => {
                        Some(ImageSpace { height: *h as u32, width: *w as u32 })
                    }
                    [_, _, Some(3) | None] => None,
                    other => {
                        return Err(DataError::unsupported(format!(
                            "read `{}`: `{key}` has shape {other:?}; images with three channels are read",
                            self.spec.location
                        )));
                    }
                },
                _ => {
                    return Err(DataError::unsupported(format!(
                        "read `{}`: it has no image `{key}`; its images are {:?}",
                        self.spec.location,
                        images(&self.table)
                    )));
                }
            };
            let size = match (size, self.episodes.is_empty()) {
                (Some(size), _) => size,
                (None, true) => continue,
                (None, false) => self.with(0, |steps| {
                    let first = steps.bytes(key)?.into_iter().next().ok_or("there is no frame")?;
                    frame_size(&first)
                })?,
            };
            sizes.insert(camera.clone(), size);
        }
        Ok(sizes)
    }

    /// Parses an episode and hands its steps to `f`.
    fn with<T>(
        &self,
        episode: usize,
        f: impl FnOnce(&Steps<'_>) -> Result<T, String>,
    ) -> Result<T, DataError> {
        let &(shard, record) = self.places.get(episode).ok_or_else(|| {
            DataError::unsupported(format!(
                "read episode {episode} of `{}`: it has {}",
                self.spec.location,
                self.places.len()
            ))
        })?;
        let bytes = self.shards[shard].read(record)?;
        Steps::parse(bytes, &self.table)
            .and_then(|steps| f(&steps))
            .map_err(|e| self.broken(shard, record, e))
    }

    fn broken(&self, shard: usize, record: usize, detail: String) -> DataError {
        DataError::episode(self.shards[shard].path(), record, detail)
    }
}

impl DemoSource for RldsSource {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.episodes
    }

    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError> {
        self.with(episode, |steps| {
            let (proprio, actions) = match self.recipe {
                Some(recipe) => {
                    let standard = recipe.apply(steps)?;
                    (standard.proprio, standard.actions)
                }
                None => (steps.join(&self.raw.proprio)?, steps.join(&self.raw.action)?),
            };
            let kept = self.recipe.map_or(0..steps.len(), |r| r.kept(steps.len()));
            let mut frames = BTreeMap::new();
            if images {
                for (camera, key) in &self.cameras {
                    let files = steps.bytes(key)?;
                    let files = files.get(kept.clone()).unwrap_or_default();
                    let files = files.iter().map(|f| Arc::from(&f[..])).collect();
                    frames.insert(camera.clone(), Frames::Encoded(files));
                }
            }
            let instruction = Arc::clone(&self.episodes[episode].instruction);
            Ok(DemoEpisode { instruction, proprio, actions, images: frames })
        })
    }

    /// Episodes whose last step is not marked: they were cut, or the writer never marks it.
    fn notes(&self) -> Result<Vec<String>, DataError> {
        let mut unmarked = 0;
        for episode in 0..self.episodes.len() {
            let marked = self.with(episode, |steps| {
                Ok(steps.numbers("is_last").is_ok_and(|flags| flags.iter().any(|v| *v != 0.0)))
            });
            // What cannot be read is reported with the episode.
            unmarked += usize::from(matches!(marked, Ok(false)));
        }
        let all = self.episodes.len();
        let note = format!(
            "`is_last` is never 1 in {unmarked} of {all} episodes; lengths do not depend on it here"
        );
        Ok(if unmarked > 0 { vec![note] } else { Vec::new() })
    }
}

/// The steps of one record.
pub(super) struct Steps<'a> {
    table: &'a FeatureTable,
    features: BTreeMap<String, Feature>,
    len: usize,
}

impl<'a> Steps<'a> {
    /// Parses a record and finds `T`.
    pub(super) fn parse(record: Vec<u8>, table: &'a FeatureTable) -> Result<Self, String> {
        let features = Example::parse(record)?;
        let mut steps = Self { table, features, len: 0 };
        let keys = table.keys().filter_map(|k| k.strip_prefix("steps/"));
        steps.len = std::iter::once("is_first")
            .chain(keys)
            .find_map(|key| steps.count(key))
            .ok_or("no feature of its steps has a known width, so its length is unknown")?;
        Ok(steps)
    }

    /// `T`.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Steps according to one feature.
    fn count(&self, key: &str) -> Option<usize> {
        let width = match self.table.get(&format!("steps/{key}"))? {
            FeatureKind::Tensor { shape, encoding, .. } if encoding == "none" => {
                shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d)?))?
            }
            FeatureKind::Image { .. } | FeatureKind::Text => 1,
            FeatureKind::Tensor { .. } | FeatureKind::Other(_) => return None,
        };
        let n = match self.features.get(&format!("steps/{key}"))?.kind.as_ref()? {
            Kind::Bytes(list) => list.value.len(),
            Kind::Float(list) => list.value.len(),
            Kind::Int64(list) => list.value.len(),
        };
        (width > 0 && n % width == 0).then(|| n / width)
    }

    fn list(&self, key: &str) -> Result<&Kind, String> {
        let full = format!("steps/{key}");
        match self.table.get(&full) {
            Some(FeatureKind::Tensor { encoding, .. }) if encoding != "none" => {
                return Err(format!(
                    "`{full}` is stored with encoding `{encoding}`, which is not read; build the data set without it"
                ));
            }
            Some(_) => {}
            None => return Err(format!("the data set has no feature `{full}`")),
        }
        if self.features.contains_key(&format!("{full}/ragged_flat_values")) {
            return Err(format!("`{full}` differs in length from step to step, which is not read"));
        }
        self.features
            .get(&full)
            .and_then(|f| f.kind.as_ref())
            .ok_or_else(|| format!("feature `{full}` is missing"))
    }

    /// A feature of numbers, `[T, n]`; booleans and integers become 0, 1, ….
    pub(super) fn numbers(&self, key: &str) -> Result<Array2<f32>, String> {
        let values: Vec<f32> = match self.list(key)? {
            Kind::Float(list) => list.value.clone(),
            Kind::Int64(list) => list.value.iter().map(|&v| v as f32).collect(),
            Kind::Bytes(_) => return Err(format!("`steps/{key}` holds bytes, numbers are needed")),
        };
        let (n, t) = (values.len(), self.len);
        if t == 0 || n % t != 0 {
            return Err(format!("`steps/{key}` has {n} numbers for {t} steps"));
        }
        if let Some(FeatureKind::Tensor { shape, .. }) = self.table.get(&format!("steps/{key}")) {
            let width = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d)?));
            if width.is_some_and(|w| w != n / t) {
                return Err(format!(
                    "`steps/{key}` has {n} numbers for {t} steps, features.json says {width:?} per step"
                ));
            }
        }
        Array2::from_shape_vec((t, n / t), values).map_err(|e| e.to_string())
    }

    /// A feature of `T` byte strings.
    pub(super) fn bytes(&self, key: &str) -> Result<Vec<Bytes>, String> {
        let Kind::Bytes(list) = self.list(key)? else {
            return Err(format!("`steps/{key}` holds numbers, bytes are needed"));
        };
        if list.value.len() != self.len {
            return Err(format!(
                "`steps/{key}` has {} entries for {} steps",
                list.value.len(),
                self.len
            ));
        }
        Ok(list.value.clone())
    }

    /// The text of the first step.
    fn first_text(&self, key: &str) -> Result<String, String> {
        let texts = self.bytes(key)?;
        Ok(texts.first().map_or(String::new(), |t| String::from_utf8_lossy(t).trim().to_owned()))
    }

    /// Several features side by side.
    fn join(&self, keys: &[(String, usize)]) -> Result<Array2<f32>, String> {
        let parts = keys.iter().map(|(k, _)| self.numbers(k)).collect::<Result<Vec<_>, _>>()?;
        if parts.is_empty() {
            return Ok(Array2::zeros((self.len, 0)));
        }
        let views: Vec<_> = parts.iter().map(Array2::view).collect();
        ndarray::concatenate(Axis(1), &views).map_err(|e| e.to_string())
    }
}

fn find_recipe(name: &str) -> Result<&'static Recipe, DataError> {
    oxe::recipe(name).ok_or_else(|| {
        let names: Vec<&str> = oxe::RECIPES.iter().map(|r| r.name).collect();
        DataError::unsupported(format!("there is no standardisation `{name}`; there are {names:?}"))
    })
}

fn images(table: &FeatureTable) -> Vec<&str> {
    table.iter().filter_map(image_key).collect()
}

/// The key below `steps/` of an image.
fn image_key<'a>((key, kind): (&'a String, &FeatureKind)) -> Option<&'a str> {
    matches!(kind, FeatureKind::Image { .. }).then_some(())?;
    key.strip_prefix("steps/")
}

fn cameras(recipe: Option<&Recipe>, table: &FeatureTable) -> BTreeMap<String, String> {
    match recipe {
        Some(recipe) => recipe
            .cameras
            .iter()
            .map(|(name, key)| ((*name).to_owned(), format!("observation/{key}")))
            .collect(),
        None => images(table)
            .into_iter()
            .map(|key| {
                let name = key.strip_prefix("observation/").unwrap_or(key);
                (name.to_owned(), key.to_owned())
            })
            .collect(),
    }
}

/// Numbers of known width below `steps/observation` are the proprio; `steps/action`, or everything below it, the action.
fn raw_keys(table: &FeatureTable) -> RawKeys {
    let mut keys = RawKeys::default();
    for (full, kind) in table {
        let Some(key) = full.strip_prefix("steps/") else { continue };
        match kind {
            FeatureKind::Tensor { shape, dtype, encoding } if encoding == "none" => {
                let width = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d)?));
                let (Some(width), true) = (width.filter(|w| *w <= 4096), dtype != "string") else {
                    continue;
                };
                if key == "action" || key.starts_with("action/") {
                    keys.action.push((key.to_owned(), width));
                } else if key.starts_with("observation/") {
                    keys.proprio.push((key.to_owned(), width));
                }
            }
            FeatureKind::Text => {
                let better = key == "language_instruction" || keys.instruction.is_none();
                if key.ends_with("language_instruction") && better {
                    keys.instruction = Some(key.to_owned());
                }
            }
            _ => {}
        }
    }
    keys
}

fn spec(folder: &Path, recipe: Option<&Recipe>, raw: &RawKeys) -> SourceSpec {
    let names = |keys: &[(String, usize)]| -> Vec<String> {
        keys.iter()
            .flat_map(|(key, n)| {
                let key = key.strip_prefix("observation/").unwrap_or(key);
                (0..*n).map(move |i| if *n == 1 { key.to_owned() } else { format!("{key}_{i}") })
            })
            .collect()
    };
    let action = recipe.map_or_else(|| names(&raw.action), Recipe::action_names);
    SourceSpec {
        format: "rlds".to_owned(),
        location: folder.display().to_string(),
        cameras: BTreeMap::new(),
        proprio: recipe.map_or_else(|| names(&raw.proprio), Recipe::proprio_names),
        // What raw numbers mean is not said; repeating the last one is right for targets.
        absolute_action: recipe.map_or_else(|| vec![true; action.len()], Recipe::absolute_action),
        action,
        convention: recipe.and_then(Recipe::convention),
        control_hz: recipe.and_then(|r| r.control_hz),
    }
}

#[cfg(test)]
mod tests;
