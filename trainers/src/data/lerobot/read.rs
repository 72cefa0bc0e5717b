//! The reader.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use simloop_envs::ActionConvention;

use super::episodes::{self, Episode};
use super::info::{Feature, Info, Layout, camera_name};
use super::table::Table;
use crate::data::video::Video;
use crate::data::{DataError, DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec};

/// Which features become what; see the table in the [module](super).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LerobotOptions {
    /// Features that make up `proprio`, one after the other.
    pub proprio: Option<Vec<String>>,
    /// The feature that is the action.
    pub action: Option<String>,
    /// Feature to camera name; features that are not named are no cameras.
    pub cameras: Option<BTreeMap<String, String>>,
    /// What an action means.
    pub convention: Option<ActionConvention>,
    /// Which numbers of an action are absolute; all of them where nothing is said.
    pub absolute_action: Option<Vec<bool>>,
}

/// Open files that are kept.
const OPEN_FILES: usize = 16;

/// A LeRobot data set.
#[derive(Debug)]
pub struct Lerobot {
    root: PathBuf,
    info: Info,
    layout: Layout,
    places: Vec<Episode>,
    spec: SourceSpec,
    meta: Vec<EpisodeMeta>,
    proprio: Vec<(String, usize)>,
    action: (String, usize),
    /// Feature to camera.
    cameras: BTreeMap<String, String>,
    tables: Open<Table>,
    videos: Open<Video>,
}

impl Lerobot {
    /// Opens the data set in folder `root`.
    ///
    /// # Errors
    /// [`DataError`] naming the metadata file; [`DataError::Unsupported`] for another version or a feature that the options
    /// name and the data set lacks.
    pub fn open(root: &Path, options: &LerobotOptions) -> Result<Self, DataError> {
        let (info, layout, info_path) = Info::read(root)?;
        let mut places = episodes::read(root, &info, layout)?;
        if places.iter().any(|e| e.instruction.is_empty()) {
            fill_instructions(root, &info, layout, &mut places)?;
        }
        let missing = |key: &str| {
            let there: Vec<_> = info.features.keys().take(40).collect();
            DataError::unsupported(format!(
                "`{}` has no feature `{key}` of numbers; it has {there:?}",
                info_path.display()
            ))
        };
        let numeric = |key: &str| -> Result<(String, usize), DataError> {
            let width = info.features.get(key).filter(|f| f.is_numeric()).and_then(Feature::width);
            Ok((key.to_owned(), width.ok_or_else(|| missing(key))?))
        };
        let usual = ["observation.state", "observation/state", "state"];
        let proprio =
            options.proprio.clone().unwrap_or_else(|| info.first(&usual).into_iter().collect());
        let proprio: Vec<_> = proprio.iter().map(|key| numeric(key)).collect::<Result<_, _>>()?;
        let action = match &options.action {
            Some(key) => key.clone(),
            None => info.first(&["action", "actions"]).ok_or_else(|| missing("action"))?,
        };
        let action = numeric(&action)?;
        let cameras = cameras(&info, options)?;
        let names = |(key, _): &(String, usize)| info.features[key].names(key);
        let extra = info.simloop.clone().unwrap_or_default();
        let written = Some(extra.absolute_action).filter(|a| a.len() == action.1);
        let absolute =
            options.absolute_action.clone().or(written).unwrap_or_else(|| vec![true; action.1]);
        if absolute.len() != action.1 {
            return Err(DataError::unsupported(format!(
                "`absolute_action` has {} entries for {} numbers",
                absolute.len(),
                action.1
            )));
        }
        let spec = SourceSpec {
            format: match layout {
                Layout::V2 => "lerobot_v2".to_owned(),
                Layout::V3 => "lerobot_v3".to_owned(),
            },
            location: root.display().to_string(),
            cameras: cameras
                .iter()
                .filter_map(|(key, camera)| {
                    Some((camera.clone(), info.features[key].image_space()?))
                })
                .collect(),
            proprio: proprio.iter().flat_map(names).collect(),
            action: names(&action),
            absolute_action: absolute,
            convention: options.convention.clone().or(extra.convention),
            control_hz: Some(info.fps),
        };
        let meta = places
            .iter()
            .map(|e| EpisodeMeta {
                len: e.len,
                instruction: Arc::clone(&e.instruction),
                id: format!("episode_{:06}", e.index),
            })
            .collect();
        Ok(Self {
            root: root.to_owned(),
            info,
            layout,
            places,
            spec,
            meta,
            proprio,
            action,
            cameras,
            tables: Open::default(),
            videos: Open::default(),
        })
    }

    /// One feature of numbers of an episode, `[T, width]`.
    fn numbers(
        table: &Table,
        place: &Episode,
        (key, width): &(String, usize),
    ) -> Result<Array2<f32>, DataError> {
        let rows = table.floats(table.leaf(key, None)?, place.row, place.row + place.len)?;
        let short = (0..place.len).find(|t| rows.row(*t).len() != *width);
        if let Some(t) = short {
            return Err(DataError::episode(
                table.path(),
                place.index as usize,
                format!(
                    "`{key}` has {} numbers in step {t} and {width} in info.json",
                    rows.row(t).len()
                ),
            ));
        }
        Array2::from_shape_vec((place.len, *width), rows.values)
            .map_err(|e| DataError::episode(table.path(), place.index as usize, e.to_string()))
    }

    /// Checks that the rows are the episode's: `episode_index` its own, `frame_index` 0, 1, ….
    fn check_rows(table: &Table, place: &Episode) -> Result<(), DataError> {
        let end = place.row + place.len;
        for (name, start, step) in [("episode_index", place.index as i64, 0), ("frame_index", 0, 1)]
        {
            if !table.has(name) {
                continue;
            }
            let column = table.ints(table.leaf(name, None)?, place.row, end)?;
            let wrong = (0..place.len)
                .find(|t| column.values.get(*t).copied() != Some(start + step * *t as i64));
            if let Some(t) = wrong {
                return Err(DataError::episode(
                    table.path(),
                    place.index as usize,
                    format!(
                        "row {} has `{name}` {:?} where {} is expected: rows are out of order, or the episode table is of \
                         another file",
                        place.row + t,
                        column.values.get(t),
                        start + step * t as i64
                    ),
                ));
            }
        }
        Ok(())
    }

    fn frames(&self, table: &Table, place: &Episode, key: &str) -> Result<Frames, DataError> {
        let end = place.row + place.len;
        let feature = &self.info.features[key];
        if !feature.is_video() {
            let column = table.bytes(table.leaf(key, Some("bytes"))?, place.row, end)?;
            let empty = (0..place.len).find(|t| column.row(*t).is_empty());
            if let Some(t) = empty {
                return Err(DataError::episode(
                    table.path(),
                    place.index as usize,
                    format!(
                        "`{key}` has no bytes in step {t}; images outside of the parquet file are not read"
                    ),
                ));
            }
            return Ok(Frames::Encoded(
                column.values.iter().map(|b| Arc::from(b.data())).collect(),
            ));
        }
        let (path, from) = episodes::video_file(&self.root, &self.info, self.layout, place, key)?;
        let video = self.videos.get(&path, Video::open)?;
        if let Some(space) = feature.image_space()
            && (space.height as usize, space.width as usize) != video.size()
        {
            let (height, width) = video.size();
            return Err(DataError::episode(
                &path,
                place.index as usize,
                format!(
                    "frames of {width} x {height} pixels where info.json says {} x {}",
                    space.width, space.height
                ),
            ));
        }
        let stamps = table.timestamps(place.row, end, self.info.fps)?;
        let times: Vec<f64> = stamps.iter().map(|t| from + t).collect();
        let frames = video.frames(&times, self.info.fps).map_err(|e| named(e, place))?;
        Ok(Frames::Raw(frames))
    }
}

/// Adds the episode to an error that has none.
fn named(error: DataError, place: &Episode) -> DataError {
    match error {
        DataError::Broken { path, episode: None, detail } => {
            DataError::Broken { path, episode: Some(place.index as usize), detail }
        }
        other => other,
    }
}

impl DemoSource for Lerobot {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.meta
    }

    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError> {
        let place = self.places.get(episode).ok_or_else(|| {
            DataError::unsupported(format!(
                "`{}` has no episode {episode}; it has {}",
                self.root.display(),
                self.places.len()
            ))
        })?;
        let path = episodes::data_file(&self.root, &self.info, self.layout, place)?;
        let table = self.tables.get(&path, Table::open)?;
        let read = || {
            Self::check_rows(&table, place)?;
            let mut proprio = Array2::zeros((place.len, 0));
            for feature in &self.proprio {
                let part = Self::numbers(&table, place, feature)?;
                proprio = ndarray::concatenate(ndarray::Axis(1), &[proprio.view(), part.view()])
                    .map_err(|e| DataError::episode(&path, episode, e.to_string()))?;
            }
            let actions = Self::numbers(&table, place, &self.action)?;
            let mut cameras = BTreeMap::new();
            for (key, camera) in self.cameras.iter().filter(|_| images) {
                cameras.insert(camera.clone(), self.frames(&table, place, key)?);
            }
            Ok(DemoEpisode {
                instruction: Arc::clone(&place.instruction),
                proprio,
                actions,
                images: cameras,
            })
        };
        read().map_err(|e| named(e, place))
    }
}

fn cameras(info: &Info, options: &LerobotOptions) -> Result<BTreeMap<String, String>, DataError> {
    let Some(map) = &options.cameras else {
        let images = info.features.iter().filter(|(_, f)| f.is_image());
        return Ok(images.map(|(key, _)| (key.clone(), camera_name(key))).collect());
    };
    match map.keys().find(|key| !info.features.get(*key).is_some_and(Feature::is_image)) {
        None => Ok(map.clone()),
        Some(key) => Err(DataError::unsupported(format!("there is no image feature `{key}`"))),
    }
}

/// Gives episodes that name no task the task of their first frame.
fn fill_instructions(
    root: &Path,
    info: &Info,
    layout: Layout,
    places: &mut [Episode],
) -> Result<(), DataError> {
    let Ok(tasks) = episodes::tasks(root, layout) else {
        return Ok(());
    };
    for place in places.iter_mut().filter(|e| e.instruction.is_empty() && e.len > 0) {
        let table = Table::open(&episodes::data_file(root, info, layout, place)?)?;
        if !table.has("task_index") {
            continue;
        }
        let column = table.ints(table.leaf("task_index", None)?, place.row, place.row + 1)?;
        if let Some(task) = column.values.first().and_then(|i| tasks.get(i)) {
            place.instruction = Arc::from(task.as_str());
        }
    }
    Ok(())
}

/// Files that stay open, the last used first. Files are immutable while a data set is read.
#[derive(Debug)]
struct Open<T>(Mutex<VecDeque<(PathBuf, Arc<T>)>>);

impl<T> Default for Open<T> {
    fn default() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }
}

impl<T> Open<T> {
    fn get(
        &self,
        path: &Path,
        open: impl FnOnce(&Path) -> Result<T, DataError>,
    ) -> Result<Arc<T>, DataError> {
        let find = |files: &mut VecDeque<(PathBuf, Arc<T>)>| {
            let at = files.iter().position(|(p, _)| p == path)?;
            let file = files.remove(at)?;
            files.push_front(file);
            files.front().map(|(_, table)| Arc::clone(table))
        };
        if let Some(found) = find(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        // Opened without the lock: other threads go on reading their files.
        let opened = Arc::new(open(path)?);
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.push_front((path.to_owned(), Arc::clone(&opened)));
        files.truncate(OPEN_FILES);
        Ok(opened)
    }
}
