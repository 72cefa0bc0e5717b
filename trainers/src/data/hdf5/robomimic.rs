//! robomimic's layout, which LIBERO and robosuite share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, Array4, Axis, concatenate};
use serde::{Deserialize, Serialize};
use simloop_envs::{ActionConvention, Frame, ImageSpace};

use super::file::Hdf5;
use super::noop;
use crate::data::{DataError, DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec};

/// Whether row `t` of `obs` was seen before or after action `t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObsTiming {
    /// `After` for raw LIBERO files, `Before` for all others; see the [module](super).
    #[default]
    Auto,
    /// Before: rows pair up.
    Before,
    /// After: row `t` pairs with action `t + 1`.
    After,
}

/// How to read a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RobomimicOptions {
    /// Whether observations come before or after their row's action.
    pub timing: ObsTiming,
    /// Keys of `obs` (or beside it) that make up `proprio`; else the first of these whose keys are all there: `ee_states`,
    /// `gripper_states` (OpenVLA's eight numbers for LIBERO); `robot0_eef_pos`, `robot0_eef_quat`, `robot0_gripper_qpos`
    /// (robomimic's low-dimensional set); `states`.
    pub proprio: Option<Vec<String>>,
    /// Key of `obs` to camera name. Else every array of images, named without `_image` or `_rgb`; LIBERO's `eye_in_hand`
    /// is `robot0_eye_in_hand`, as its simulator calls it.
    pub cameras: Option<BTreeMap<String, String>>,
    /// Turn images by 180 degrees; for LIBERO unless said otherwise.
    pub rotate_images: Option<bool>,
    /// Leave out actions that do nothing, by OpenVLA's rule.
    pub drop_noops: bool,
    /// Only the demonstrations in `mask/NAME`.
    pub mask: Option<String>,
    /// What an action means.
    pub convention: Option<ActionConvention>,
    /// What to do, for files that do not say.
    pub instruction: Option<String>,
}

/// A file of demonstrations.
#[derive(Debug)]
pub struct Robomimic {
    file: Hdf5,
    demos: Vec<Demo>,
    masks: BTreeMap<String, Vec<usize>>,
    spec: SourceSpec,
    meta: Vec<EpisodeMeta>,
    proprio: Vec<String>,
    cameras: BTreeMap<String, String>,
    rotate: bool,
}

/// Which rows of a demonstration make its steps.
#[derive(Debug)]
struct Demo {
    group: String,
    /// Rows of `actions`, one per step.
    actions: Vec<usize>,
    /// How far the observation of an action lies before it: 0, or 1 where observations come after.
    lag: usize,
}

/// Demonstrations that a file may have.
const MAX_DEMOS: usize = 1 << 20;

impl Robomimic {
    /// Opens a file.
    ///
    /// # Errors
    /// [`DataError`] naming the file, the demonstration and the key.
    pub fn open(path: &Path, options: &RobomimicOptions) -> Result<Self, DataError> {
        let file = Hdf5::open(path)?;
        let names = demos(&file)?;
        let first = format!("data/{}", names[0]);
        let libero = file.has_attribute("data", "bddl_file_name")
            || file.has_attribute("data", "bddl_file_content")
            || file.shape(&format!("{first}/obs/agentview_rgb")).is_ok();
        let raw_libero = file.has_attribute("data", "bddl_file_name")
            && file.has_attribute(&first, "init_state");
        let lag = match options.timing {
            ObsTiming::Before => 0,
            ObsTiming::After => 1,
            ObsTiming::Auto => usize::from(raw_libero),
        };
        let proprio = proprio_keys(&file, &first, options)?;
        let cameras = camera_keys(&file, &first, options)?;
        let instruction: Arc<str> = match &options.instruction {
            Some(text) => Arc::from(text.as_str()),
            None => Arc::from(instruction(&file)),
        };
        let chosen = choose(&file, &names, options.mask.as_deref())?;
        let mut demos = Vec::with_capacity(chosen.len());
        for name in &chosen {
            demos.push(steps(&file, name, lag, options.drop_noops)?);
        }
        let meta = demos
            .iter()
            .zip(&chosen)
            .map(|(demo, name)| EpisodeMeta {
                len: demo.actions.len(),
                instruction: Arc::clone(&instruction),
                id: name.clone(),
            })
            .collect();
        let masks = masks(&file, &chosen);
        let width = width(&file, &format!("{first}/actions"))?;
        let mut spec = SourceSpec {
            format: if libero { "libero_hdf5" } else { "robomimic_hdf5" }.to_owned(),
            location: path.display().to_string(),
            cameras: BTreeMap::new(),
            proprio: Vec::new(),
            action: (0..width).map(|i| format!("action_{i}")).collect(),
            // Deltas, and a gripper that holds (robosuite's OSC_POSE).
            absolute_action: (0..width).map(|i| i + 1 == width).collect(),
            convention: options.convention.clone(),
            control_hz: control_hz(&file),
        };
        for key in &proprio {
            let key = locate(&file, &first, key)?;
            let name = key.rsplit('/').next().unwrap_or(&key).to_owned();
            let n = width_of(&file.shape(&key)?);
            spec.proprio.extend((0..n).map(|i| format!("{name}_{i}")));
        }
        for (key, camera) in &cameras {
            if let [_, height, width, 3] = file.shape(&format!("{first}/obs/{key}"))?[..] {
                let space = ImageSpace { height: height as u32, width: width as u32 };
                spec.cameras.insert(camera.clone(), space);
            }
        }
        Ok(Self {
            demos,
            masks,
            spec,
            meta,
            proprio,
            cameras,
            rotate: options.rotate_images.unwrap_or(libero),
            file,
        })
    }

    /// The file's own splits: name to episode numbers, from `mask/NAME`.
    pub fn masks(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.masks
    }

    fn frames(&self, demo: &Demo, key: &str) -> Result<Frames, DataError> {
        let path = format!("{}/obs/{key}", demo.group);
        let (mut bytes, shape) = self.file.bytes(&path)?;
        let [len, height, width, 3] = shape[..] else {
            return Err(self.file.broken(format!("`{path}` is {shape:?}, no images")));
        };
        if self.rotate {
            // A half turn reverses the order of the pixels.
            for frame in bytes.chunks_exact_mut((height * width * 3).max(1)) {
                half_turn(frame);
            }
        }
        let frames = Array4::from_shape_vec((len, height, width, 3), bytes)
            .map_err(|e| self.file.broken(format!("`{path}`: {e}")))?
            .into_shared();
        let frame = |row: &usize| -> Option<Frame> {
            let row = row - demo.lag;
            (row < len).then(|| frames.clone().index_axis_move(Axis(0), row))
        };
        demo.actions.iter().map(frame).collect::<Option<Vec<_>>>().map(Frames::Raw).ok_or_else(
            || self.file.broken(format!("`{path}` has {len} frames, fewer than actions")),
        )
    }
}

impl DemoSource for Robomimic {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.meta
    }

    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError> {
        let demo = self.demos.get(episode).ok_or_else(|| {
            DataError::unsupported(format!(
                "there is no episode {episode} among {}",
                self.demos.len()
            ))
        })?;
        let pick = |path: &str, lag: usize| -> Result<Array2<f32>, DataError> {
            let rows = self.file.rows(path)?;
            if demo.actions.last().is_some_and(|last| last - lag >= rows.nrows()) {
                return Err(self
                    .file
                    .broken(format!("`{path}` has {} rows, fewer than actions", rows.nrows())));
            }
            let wanted: Vec<usize> = demo.actions.iter().map(|row| row - lag).collect();
            Ok(rows.select(Axis(0), &wanted))
        };
        let read = || {
            let actions = pick(&format!("{}/actions", demo.group), 0)?;
            if actions.ncols() != self.spec.action.len() {
                return Err(self.file.broken(format!(
                    "`{}/actions` has {} numbers a step and the first demonstration {}",
                    demo.group,
                    actions.ncols(),
                    self.spec.action.len()
                )));
            }
            let mut proprio = Array2::zeros((actions.nrows(), 0));
            for key in &self.proprio {
                let part = pick(&locate(&self.file, &demo.group, key)?, demo.lag)?;
                proprio = concatenate(Axis(1), &[proprio.view(), part.view()])
                    .map_err(|e| self.file.broken(e.to_string()))?;
            }
            if proprio.ncols() != self.spec.proprio.len() {
                return Err(self
                    .file
                    .broken("its proprio is wider or narrower than the first demonstration's"));
            }
            let mut cameras = BTreeMap::new();
            for (key, camera) in self.cameras.iter().filter(|_| images) {
                cameras.insert(camera.clone(), self.frames(demo, key)?);
            }
            Ok(DemoEpisode {
                instruction: Arc::clone(&self.meta[episode].instruction),
                proprio,
                actions,
                images: cameras,
            })
        };
        read().map_err(|e| match e {
            DataError::Broken { path, episode: None, detail } => {
                DataError::Broken { path, episode: Some(episode), detail }
            }
            other => other,
        })
    }
}

/// Turns one frame of RGB pixels by 180 degrees.
fn half_turn(frame: &mut [u8]) {
    let pixels = frame.len() / 3;
    for i in 0..pixels / 2 {
        let j = pixels - 1 - i;
        for c in 0..3 {
            frame.swap(3 * i + c, 3 * j + c);
        }
    }
}

/// The demonstrations in the order of their numbers.
fn demos(file: &Hdf5) -> Result<Vec<String>, DataError> {
    let mut names = file.groups("data")?;
    if names.len() > MAX_DEMOS {
        return Err(file.broken(format!("{} demonstrations", names.len())));
    }
    let number = |name: &str| name.rsplit('_').next().and_then(|n| n.parse::<u64>().ok());
    names.sort_by(|a, b| number(a).cmp(&number(b)).then_with(|| a.cmp(b)));
    if names.is_empty() {
        return Err(file.broken("there is no demonstration in `data`"));
    }
    Ok(names)
}

/// The rows of one demonstration.
fn steps(file: &Hdf5, name: &str, lag: usize, drop_noops: bool) -> Result<Demo, DataError> {
    let group = format!("data/{name}");
    let path = format!("{group}/actions");
    let rows = file.shape(&path)?.first().copied().unwrap_or(0);
    let actions: Vec<usize> = if drop_noops {
        let kept = noop::acting(file.rows(&path)?.view());
        kept.into_iter().filter(|row| *row >= lag).collect()
    } else {
        (lag..rows).collect()
    };
    Ok(Demo { group, actions, lag })
}

fn choose(file: &Hdf5, names: &[String], mask: Option<&str>) -> Result<Vec<String>, DataError> {
    let Some(mask) = mask else { return Ok(names.to_vec()) };
    let wanted = file.texts(&format!("mask/{mask}")).map_err(|_| {
        file.broken(format!("there is no mask `{mask}`; there are {:?}", file.datasets("mask")))
    })?;
    let chosen: Vec<String> = names.iter().filter(|n| wanted.contains(n)).cloned().collect();
    if chosen.len() < wanted.len() || chosen.is_empty() {
        return Err(file.broken(format!("mask `{mask}` names demonstrations that are not there")));
    }
    Ok(chosen)
}

fn masks(file: &Hdf5, names: &[String]) -> BTreeMap<String, Vec<usize>> {
    let place: BTreeMap<&str, usize> =
        names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let found = file.datasets("mask").into_iter().filter_map(|mask| {
        let texts = file.texts(&format!("mask/{mask}")).ok()?;
        let mut episodes: Vec<usize> =
            texts.iter().filter_map(|n| place.get(n.as_str()).copied()).collect();
        episodes.sort_unstable();
        Some((mask, episodes))
    });
    found.collect()
}

/// A key of `obs`, or one beside it.
fn locate(file: &Hdf5, group: &str, key: &str) -> Result<String, DataError> {
    let inside = format!("{group}/obs/{key}");
    let beside = format!("{group}/{key}");
    if file.shape(&inside).is_ok() { Ok(inside) } else { file.shape(&beside).map(|_| beside) }
}

fn proprio_keys(
    file: &Hdf5,
    demo: &str,
    options: &RobomimicOptions,
) -> Result<Vec<String>, DataError> {
    if let Some(keys) = &options.proprio {
        for key in keys {
            locate(file, demo, key).map_err(|_| {
                let there = [file.datasets(&format!("{demo}/obs")), file.datasets(demo)].concat();
                file.broken(format!("`{demo}` has no `{key}`; it has {there:?}"))
            })?;
        }
        return Ok(keys.clone());
    }
    let sets: [&[&str]; 3] = [
        &["ee_states", "gripper_states"],
        &["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"],
        &["states"],
    ];
    let found = sets.iter().find(|set| set.iter().all(|key| locate(file, demo, key).is_ok()));
    Ok(found.map(|set| set.iter().map(|k| (*k).to_owned()).collect()).unwrap_or_default())
}

fn camera_keys(
    file: &Hdf5,
    demo: &str,
    options: &RobomimicOptions,
) -> Result<BTreeMap<String, String>, DataError> {
    let is_images = |key: &str| file.is_images(&format!("{demo}/obs/{key}"));
    if let Some(map) = &options.cameras {
        return match map.keys().find(|key| !is_images(key)) {
            None => Ok(map.clone()),
            Some(key) => Err(file.broken(format!("`{demo}/obs/{key}` are no images"))),
        };
    }
    let name = |key: &str| match key.strip_suffix("_image").or_else(|| key.strip_suffix("_rgb")) {
        Some("eye_in_hand") => "robot0_eye_in_hand".to_owned(),
        Some(name) => name.to_owned(),
        None => key.to_owned(),
    };
    let keys = file.datasets(&format!("{demo}/obs")).into_iter().filter(|key| is_images(key));
    Ok(keys.map(|key| (key.clone(), name(&key))).collect())
}

fn width(file: &Hdf5, path: &str) -> Result<usize, DataError> {
    let shape = file.shape(path)?;
    match shape[..] {
        [_, width] if (1..=4096).contains(&width) => Ok(width),
        _ => Err(file.broken(format!("`{path}` is {shape:?} where [T, D] is expected"))),
    }
}

fn width_of(shape: &[usize]) -> usize {
    if shape.len() <= 1 { 1 } else { shape[1..].iter().product() }
}

/// `control_freq` of the environment's arguments, Hz.
fn control_hz(file: &Hdf5) -> Option<f64> {
    let text =
        ["env_args", "env_info"].iter().find_map(|name| file.text_attribute("data", name))?;
    let args: serde_json::Value = serde_json::from_str(&text).ok()?;
    let found = [&args["env_kwargs"]["control_freq"], &args["control_freq"]];
    found.iter().find_map(|v| v.as_f64()).filter(|hz| *hz > 0.0)
}

/// What to do, in words: `problem_info`, the BDDL file's `:language`, or the file's name.
fn instruction(file: &Hdf5) -> String {
    let info = file.text_attribute("data", "problem_info");
    let info = info.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let said = match info.as_ref().map(|info| &info["language_instruction"]) {
        Some(serde_json::Value::String(text)) => text.trim().trim_matches('"').to_owned(),
        Some(serde_json::Value::Array(words)) => {
            words.iter().filter_map(|w| w.as_str()).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    };
    if !said.is_empty() {
        return said;
    }
    let bddl = file.text_attribute("data", "bddl_file_content").unwrap_or_default();
    if let Some((_, rest)) = bddl.split_once("(:language")
        && let Some((words, _)) = rest.split_once(')')
    {
        return words.trim().to_owned();
    }
    let stem = file.path().file_stem().map(|s| s.to_string_lossy().into_owned());
    stem.filter(|stem| stem.ends_with("_demo")).map_or_else(String::new, |stem| from_name(&stem))
}

/// `KITCHEN_SCENE3_turn_on_the_stove_demo` is "turn on the stove" (rlds_dataset_builder's rule).
fn from_name(stem: &str) -> String {
    let stem = stem.strip_suffix("_demo").unwrap_or(stem);
    let words = match stem.split_once("SCENE") {
        Some((_, rest)) => rest.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => stem,
    };
    words.replace('_', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_become_instructions() {
        let scene = from_name("KITCHEN_SCENE3_turn_on_the_stove_demo");
        assert_eq!(scene, "turn on the stove");
        assert_eq!(from_name("pick_up_the_bowl_demo"), "pick up the bowl");
    }

    #[test]
    fn a_half_turn_reverses_pixels_and_not_channels() {
        let mut frame = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        half_turn(&mut frame);
        assert_eq!(frame, [7, 8, 9, 4, 5, 6, 1, 2, 3]);
    }
}
