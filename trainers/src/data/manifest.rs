//! `manifest.jsonl`: demonstrations as text and image files, made for reading by eye and by any language.
//!
//! # Format, version 1
//! A folder with `manifest.jsonl` and `images/`. Every line is one JSON object:
//!
//! | line | object |
//! |---|---|
//! | first | `{"manifest": 1, "spec": {…}}`: names of proprio and action, cameras with height and width, which action numbers are absolute, convention, control_hz |
//! | one per episode | `{"episode": 0, "id": "…", "instruction": "…", "proprio": [[P numbers], …], "actions": [[D numbers], …], "images": {"camera": ["images/000000/camera/000000.png", …]}}` |
//! | last | `{"episodes": N, "steps": N, "statistics": {"action": {mean, std, min, max, q01, q99, count}, "proprio": {…}}}` |
//!
//! Row `t` of `proprio` is what was seen when row `t` of `actions` was taken; both and every list of images have `T`
//! entries. Paths are relative to the folder. Images are PNG or JPEG, upright RGB. Numbers are f32 written so that they
//! come back bit for bit. The last line says that the manifest is complete; without it the builder can go on.
//!
//! VLA-0 itself reads LeRobot data sets; the file is this project's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use simloop_envs::{ActionConvention, ImageSpace};
use simloop_policies::normalize::Stats;

use super::{DataError, DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec};

mod build;

pub use build::{ManifestProgress, build_manifest};

/// The file's name in its folder.
pub const FILE: &str = "manifest.jsonl";
/// The version that is written and read.
const VERSION: u32 = 1;
/// The longest line; an hour at 50 Hz with 50 numbers a step is 100 MB.
const MAX_LINE: u64 = 256 << 20;
/// The longest image file.
const MAX_IMAGE: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    manifest: u32,
    spec: Spec,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    cameras: BTreeMap<String, ImageSpace>,
    proprio: Vec<String>,
    action: Vec<String>,
    absolute_action: Vec<bool>,
    convention: Option<ActionConvention>,
    control_hz: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    episode: usize,
    id: String,
    instruction: Arc<str>,
    proprio: Vec<Vec<f32>>,
    actions: Vec<Vec<f32>>,
    images: BTreeMap<String, Vec<String>>,
}

/// An episode's line without its numbers.
#[derive(Deserialize)]
struct LineHead {
    episode: usize,
    id: String,
    instruction: Arc<str>,
    actions: Vec<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer {
    episodes: usize,
    steps: usize,
    statistics: Statistics,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statistics {
    action: Stats,
    proprio: Stats,
}

/// A complete manifest.
#[derive(Debug)]
pub struct ManifestSource {
    spec: SourceSpec,
    folder: PathBuf,
    file: File,
    episodes: Vec<EpisodeMeta>,
    /// Offset and length of each episode's line.
    places: Vec<(u64, usize)>,
    statistics: (Stats, Stats),
}

impl ManifestSource {
    /// Opens a folder with a `manifest.jsonl`, or that file.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Broken`] naming the line, also where the last line is missing.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let path = folder.join(FILE);
        let mut lines = Lines::open(&path)?;
        let header = lines.header()?;
        let (mut episodes, mut places) = (Vec::new(), Vec::new());
        let mut steps = 0;
        let footer = loop {
            let Some((at, line)) = lines.next_line()? else {
                return Err(DataError::broken(
                    &path,
                    format!(
                        "it ends after {} episodes without its last line; build it again to complete it",
                        episodes.len()
                    ),
                ));
            };
            if let Ok(footer) = serde_json::from_slice::<Footer>(line) {
                break footer;
            }
            let length = line.len();
            let head: LineHead = serde_json::from_slice(line).map_err(|e| {
                DataError::broken(&path, format!("line {}: {e}", episodes.len() + 2))
            })?;
            if head.episode != episodes.len() {
                return Err(DataError::broken(
                    &path,
                    format!(
                        "line {}: episode {} is out of order",
                        episodes.len() + 2,
                        head.episode
                    ),
                ));
            }
            steps += head.actions.len();
            episodes.push(EpisodeMeta {
                len: head.actions.len(),
                instruction: head.instruction,
                id: head.id,
            });
            places.push((at, length));
        };
        if (footer.episodes, footer.steps) != (episodes.len(), steps)
            || lines.next_line()?.is_some()
        {
            return Err(DataError::broken(
                &path,
                format!(
                    "its last line says {} episodes and {} steps, there are {} and {steps}",
                    footer.episodes,
                    footer.steps,
                    episodes.len()
                ),
            ));
        }
        let Spec { cameras, proprio, action, absolute_action, convention, control_hz } =
            header.spec;
        if absolute_action.len() != action.len() {
            return Err(DataError::broken(
                &path,
                "`absolute_action` and `action` differ in length",
            ));
        }
        let spec = SourceSpec {
            format: "manifest".to_owned(),
            location: path.display().to_string(),
            cameras,
            proprio,
            action,
            absolute_action,
            convention,
            control_hz,
        };
        let file = File::open(&path).map_err(DataError::io("open", &path))?;
        let statistics = (footer.statistics.action, footer.statistics.proprio);
        Ok(Self { spec, folder: folder.to_owned(), file, episodes, places, statistics })
    }

    /// Statistics of all actions and of all proprio, as its last line gives them.
    pub fn statistics(&self) -> (&Stats, &Stats) {
        (&self.statistics.0, &self.statistics.1)
    }

    fn frames(&self, episode: usize, paths: &[String]) -> Result<Frames, DataError> {
        let mut files = Vec::with_capacity(paths.len());
        for relative in paths {
            let inside =
                Path::new(relative).components().all(|c| matches!(c, Component::Normal(_)));
            if !inside {
                return Err(
                    self.broken(episode, format!("image `{relative}` lies outside the folder"))
                );
            }
            let path = self.folder.join(relative);
            let file = File::open(&path).map_err(DataError::io("open", &path))?;
            let mut bytes = Vec::new();
            file.take(MAX_IMAGE + 1)
                .read_to_end(&mut bytes)
                .map_err(DataError::io("read", &path))?;
            if bytes.len() as u64 > MAX_IMAGE {
                return Err(DataError::broken(&path, "more than 64 MB are no image"));
            }
            files.push(bytes.into());
        }
        Ok(Frames::Encoded(files))
    }

    fn broken(&self, episode: usize, detail: String) -> DataError {
        DataError::episode(self.spec.location.as_ref(), episode, detail)
    }
}

impl DemoSource for ManifestSource {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.episodes
    }

    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError> {
        let Some(&(at, length)) = self.places.get(episode) else {
            return Err(DataError::unsupported(format!(
                "read episode {episode} of `{}`: it has {}",
                self.spec.location,
                self.places.len()
            )));
        };
        let mut text = vec![0; length];
        let path = Path::new(&self.spec.location);
        self.file.read_exact_at(&mut text, at).map_err(DataError::io("read", path))?;
        let line: Line =
            serde_json::from_slice(&text).map_err(|e| self.broken(episode, e.to_string()))?;
        let len = self.episodes[episode].len;
        let table = |rows: &[Vec<f32>], width: usize, what: &str| {
            if rows.len() != len || rows.iter().any(|r| r.len() != width) {
                return Err(self.broken(episode, format!("`{what}` is not {len} rows of {width}")));
            }
            Array2::from_shape_vec((len, width), rows.concat())
                .map_err(|e| self.broken(episode, e.to_string()))
        };
        let mut frames = BTreeMap::new();
        for camera in self.spec.cameras.keys() {
            let paths = line.images.get(camera).filter(|p| p.len() == len).ok_or_else(|| {
                self.broken(episode, format!("camera `{camera}` does not have {len} images"))
            })?;
            if images {
                frames.insert(camera.clone(), self.frames(episode, paths)?);
            }
        }
        Ok(DemoEpisode {
            instruction: line.instruction,
            proprio: table(&line.proprio, self.spec.proprio.len(), "proprio")?,
            actions: table(&line.actions, self.spec.action.len(), "actions")?,
            images: frames,
        })
    }
}

/// Lines with their offsets, one at a time.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    at: u64,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io("open", path))?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), at: 0, line: Vec::new() })
    }

    fn header(&mut self) -> Result<Header, DataError> {
        let path = self.path.clone();
        let Some((_, line)) = self.next_line()? else {
            return Err(DataError::broken(&path, "it has no first line"));
        };
        let header: Header = serde_json::from_slice(line)
            .map_err(|e| DataError::broken(&path, format!("line 1: {e}")))?;
        if header.manifest != VERSION {
            return Err(DataError::unsupported(format!(
                "read `{}`: version {} is not read, only {VERSION}",
                path.display(),
                header.manifest
            )));
        }
        Ok(header)
    }

    /// The offset and the text of the next line that ends with a line break; `None` at the end.
    fn next_line(&mut self) -> Result<Option<(u64, &[u8])>, DataError> {
        let start = self.at;
        self.line.clear();
        let read = (&mut self.reader)
            .take(MAX_LINE)
            .read_until(b'\n', &mut self.line)
            .map_err(DataError::io("read", &self.path))?;
        if self.line.pop() != Some(b'\n') {
            if read as u64 == MAX_LINE {
                return Err(DataError::broken(&self.path, "a line has more than 256 MB"));
            }
            return Ok(None);
        }
        self.at += read as u64;
        Ok(Some((start, &self.line)))
    }
}

/// Whether a folder, or the file itself, is a manifest.
pub fn recognise(path: &Path) -> bool {
    path.join(FILE).is_file() || (path.is_file() && path.file_name().is_some_and(|n| n == FILE))
}

#[cfg(test)]
mod tests;
