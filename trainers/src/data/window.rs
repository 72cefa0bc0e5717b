//! Windows: `T_o` observations that end at a step, and the chunk of `T_p` actions that belongs to them.
//!
//! Alignment of the chunk, for the present step `t` of an episode of `L` steps:
//!
//! | [`Align`] | first row of the chunk is the action of | who does so |
//! |---|---|---|
//! | `current` | `t` | ACT, LeRobot, openpi, OpenVLA |
//! | `window_start` | `t - T_o + 1`; a policy executes from row `T_o - 1` on | diffusion_policy `SequenceSampler` |
//!
//! Before the start of an episode the first observation and the first action are repeated (diffusion_policy), past its
//! end absolute numbers of an action repeat the last ones and relative numbers are 0 (OpenVLA), marked as not valid.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, Array3, Array5, Axis};
use serde::{Deserialize, Serialize};
use simloop_envs::{ActionChunk, Frame, Observation};

use super::cache::EpisodeCache;
use super::{DataError, Dataset, DemoBatch, DemoSample, DemoSource, SourceSpec};

/// Which step's action stands in the first row of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    /// The step of the newest observation.
    #[default]
    Current,
    /// The step of the oldest observation.
    WindowStart,
}

/// How windows are cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowOptions {
    /// `T_o`.
    pub n_obs_steps: usize,
    /// `T_p`.
    pub chunk_size: usize,
    /// Which step's action comes first.
    pub align: Align,
    /// The most steps that a chunk may reach past the end of its episode; without it every step of the episode is a
    /// sample. diffusion_policy has `n_action_steps - 1`.
    pub pad_after: Option<usize>,
    /// Cameras to load; none for a policy of numbers.
    pub cameras: Vec<String>,
    /// Frames are brought to this height and width, bilinear with antialiasing.
    pub resize: Option<[u32; 2]>,
    /// Whether a camera that the source does not have is black, as in OpenVLA's mixtures; it needs `resize`.
    pub black_if_missing: bool,
    /// Bytes of frames kept in memory.
    pub cache_bytes: usize,
}

impl Default for WindowOptions {
    fn default() -> Self {
        Self {
            n_obs_steps: 1,
            chunk_size: 16,
            align: Align::Current,
            pad_after: None,
            cameras: Vec::new(),
            resize: None,
            black_if_missing: false,
            cache_bytes: 1 << 30, // all frames of PushT are 0.71 GB
        }
    }
}

/// A sample's place: which of the chosen episodes, and the step of its newest observation.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u32,
    step: u32,
}

/// The windows of chosen episodes of a source. Numbers are in memory, frames go through a cache.
pub struct WindowDataset {
    source: Arc<dyn DemoSource>,
    options: WindowOptions,
    /// Chosen episodes, by slot.
    episodes: Vec<usize>,
    instructions: Vec<Arc<str>>,
    /// First row of each slot in `proprio` and `actions`, then their number of rows.
    starts: Vec<usize>,
    proprio: Array2<f32>,
    actions: Array2<f32>,
    places: Vec<Place>,
    cache: EpisodeCache,
}

impl WindowDataset {
    /// Reads the numbers of `episodes` and lists their windows. Numbers of one slot lie together, episodes in the order
    /// given.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] for a camera or an episode that the source does not have, a window of no step or no
    /// episode at all; [`DataError::Broken`] for a non-finite number, naming the episode and the step; the reader's own.
    pub fn new(
        source: Arc<dyn DemoSource>,
        episodes: Vec<usize>,
        options: WindowOptions,
    ) -> Result<Self, DataError> {
        let spec = source.spec();
        check(spec, source.episodes().len(), &episodes, &options)?;
        let (p, d) = (spec.proprio.len(), spec.action.len());
        let (mut proprio, mut actions) = (Vec::new(), Vec::new());
        let (mut starts, mut instructions, mut places) = (vec![0], Vec::new(), Vec::new());
        let mut rows = 0;
        for (slot, &episode) in episodes.iter().enumerate() {
            let read = source.read(episode, false)?;
            let len = read.len();
            if read.proprio.dim() != (len, p) || read.actions.ncols() != d || len == 0 {
                return Err(broken(
                    spec,
                    episode,
                    format!(
                        "proprio is {:?} and actions {:?}, expected [T, {p}] and [T, {d}] with T > 0",
                        read.proprio.shape(),
                        read.actions.shape()
                    ),
                ));
            }
            for (what, rows) in [("proprio", &read.proprio), ("action", &read.actions)] {
                if let Some(((t, i), v)) = rows.indexed_iter().find(|(_, v)| !v.is_finite()) {
                    let name = format!("step {t}: {what} {i} is {v}; leave the episode out");
                    return Err(broken(spec, episode, name));
                }
            }
            proprio.extend(read.proprio.iter());
            actions.extend(read.actions.iter());
            instructions.push(read.instruction);
            let fits = |&t: &usize| {
                let past = (t + options.chunk_size).saturating_sub(options.before() + len);
                options.pad_after.is_none_or(|most| past <= most)
            };
            places
                .extend((0..len).filter(fits).map(|t| Place { slot: slot as u32, step: t as u32 }));
            rows += len;
            starts.push(rows);
        }
        let broken_shape = |e: ndarray::ShapeError| DataError::unsupported(e.to_string());
        Ok(Self {
            proprio: Array2::from_shape_vec((rows, p), proprio).map_err(broken_shape)?,
            actions: Array2::from_shape_vec((rows, d), actions).map_err(broken_shape)?,
            cache: EpisodeCache::new(Arc::clone(&source), options.cache_bytes),
            source,
            options,
            episodes,
            instructions,
            starts,
            places,
        })
    }

    /// What the source holds.
    pub fn spec(&self) -> &SourceSpec {
        self.source.spec()
    }

    /// How windows are cut.
    pub fn options(&self) -> &WindowOptions {
        &self.options
    }

    /// The chosen episodes.
    pub fn episodes(&self) -> &[usize] {
        &self.episodes
    }

    /// Every proprio row of the chosen episodes, `[N, P]`.
    pub fn proprio(&self) -> &Array2<f32> {
        &self.proprio
    }

    /// Every action of the chosen episodes, `[N, D]`.
    pub fn actions(&self) -> &Array2<f32> {
        &self.actions
    }

    /// Bytes of all frames of the chosen episodes when decoded, before any resize.
    pub fn frame_bytes(&self) -> u64 {
        let rows = self.proprio.nrows() as u64;
        let sizes = self.options.cameras.iter().filter_map(|c| self.spec().cameras.get(c));
        sizes.map(|s| u64::from(s.height) * u64::from(s.width) * 3 * rows).sum()
    }

    /// Reads the frames of all chosen episodes in the order of the files, as far as the cache holds them. In the random
    /// order of an epoch a file's chunks are decoded once for every episode in them, and the first epoch crawls.
    ///
    /// # Errors
    /// The reader's.
    pub fn preload(&self) -> Result<(), DataError> {
        let started = std::time::Instant::now();
        let (limit, mut bytes) = (self.options.cache_bytes, 0);
        for &episode in &self.episodes {
            if bytes > limit || self.options.cameras.is_empty() {
                break;
            }
            bytes += self.cache.get(episode)?.values().map(super::Frames::bytes).sum::<usize>();
        }
        if bytes > 0 {
            let secs = started.elapsed().as_secs_f64();
            tracing::info!(bytes, secs, "read frames ahead");
        }
        if bytes > limit {
            let all = self.frame_bytes();
            tracing::warn!(
                "`data.cache_bytes` is {limit} and all frames are up to {all}: files will be read again and again"
            );
        }
        Ok(())
    }

    fn place(&self, index: usize) -> Result<Place, DataError> {
        self.places.get(index).copied().ok_or_else(|| {
            DataError::unsupported(format!(
                "read sample {index} of `{}`: there are {}",
                self.spec().location,
                self.places.len()
            ))
        })
    }

    /// Copies the numbers of one window: `[T_o * P]`, `[T_p * D]`, `[T_p]`.
    fn fill(&self, place: Place, proprio: &mut [f32], actions: &mut [f32], valid: &mut [f32]) {
        let (from, to) = (self.starts[place.slot as usize], self.starts[place.slot as usize + 1]);
        let now = from + place.step as usize;
        copy_rows(&self.proprio, from..to, now + 1, self.options.n_obs_steps, proprio);
        let before = self.options.before();
        let end = now + self.options.chunk_size - before;
        copy_rows(&self.actions, from..to, end, self.options.chunk_size, actions);
        let real = (to + before - now).min(valid.len());
        valid[..real].fill(1.0);
        valid[real..].fill(0.0);
        if real < valid.len() {
            let absolute = &self.spec().absolute_action;
            for row in actions.chunks_exact_mut(self.actions.ncols().max(1)).skip(real) {
                for (v, _) in row.iter_mut().zip(absolute).filter(|(_, absolute)| !**absolute) {
                    *v = 0.0;
                }
            }
        }
    }

    /// Height and width of a camera's frames as they are handed out.
    fn size(&self, camera: &str) -> (usize, usize) {
        if let Some([h, w]) = self.options.resize {
            return (h as usize, w as usize);
        }
        self.spec().cameras.get(camera).map_or((0, 0), |s| (s.height as usize, s.width as usize))
    }

    /// The `T_o` frames of a camera, oldest first.
    fn frames(&self, place: Place, camera: &str) -> Result<Vec<Frame>, DataError> {
        let Some(size) = self.spec().cameras.get(camera).copied() else {
            let frame = Frame::zeros((self.size(camera).0, self.size(camera).1, 3));
            return Ok(vec![frame; self.options.n_obs_steps]);
        };
        let episode = self.episodes[place.slot as usize];
        let all = self.cache.get(episode)?;
        let wrong =
            |detail: String| broken(self.spec(), episode, format!("camera `{camera}`: {detail}"));
        let frames = all.get(camera).ok_or_else(|| wrong("it has no frames".to_owned()))?;
        (0..self.options.n_obs_steps)
            .map(|k| {
                let t = (place.step as usize + 1 + k).saturating_sub(self.options.n_obs_steps);
                let frame = frames.get(t).map_err(|e| wrong(format!("step {t}: {e}")))?;
                let (h, w, _) = frame.dim();
                if (size.height as usize, size.width as usize) != (h, w) {
                    return Err(wrong(format!(
                        "step {t}: its frame is {h}x{w}, expected {size:?}"
                    )));
                }
                Ok(match self.size(camera) {
                    wanted if wanted == (h, w) => frame,
                    wanted => resized(&frame, wanted),
                })
            })
            .collect()
    }
}

impl WindowOptions {
    /// Rows of the chunk that lie before the present step.
    fn before(&self) -> usize {
        match self.align {
            Align::Current => 0,
            Align::WindowStart => self.n_obs_steps - 1,
        }
    }
}

/// Copies rows `end - n .. end` of an episode's rows, clamped to it, one after the other.
fn copy_rows(
    all: &Array2<f32>,
    episode: std::ops::Range<usize>,
    end: usize,
    n: usize,
    out: &mut [f32],
) {
    let width = all.ncols();
    let Some(values) = all.as_slice() else { return };
    if end <= episode.end && end >= episode.start + n {
        out.copy_from_slice(&values[(end - n) * width..end * width]);
        return;
    }
    if width == 0 {
        return;
    }
    for (k, row) in out.chunks_exact_mut(width).enumerate() {
        let at = (end + k).saturating_sub(n).clamp(episode.start, episode.end - 1);
        row.copy_from_slice(&values[at * width..(at + 1) * width]);
    }
}

impl Dataset for WindowDataset {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn get(&self, index: usize) -> Result<DemoSample, DataError> {
        let place = self.place(index)?;
        let (t_o, t_p) = (self.options.n_obs_steps, self.options.chunk_size);
        let mut proprio = Array2::zeros((t_o, self.proprio.ncols()));
        let mut actions = Array2::zeros((t_p, self.actions.ncols()));
        let mut valid = vec![0.0; t_p];
        if let (Some(p), Some(a)) = (proprio.as_slice_mut(), actions.as_slice_mut()) {
            self.fill(place, p, a, &mut valid);
        }
        let mut images = BTreeMap::new();
        for camera in &self.options.cameras {
            images.insert(camera, self.frames(place, camera)?);
        }
        let instruction = &self.instructions[place.slot as usize];
        let obs = proprio
            .axis_iter(Axis(0))
            .enumerate()
            .map(|(k, row)| Observation {
                images: images.iter().map(|(&name, f)| (name.clone(), f[k].clone())).collect(),
                proprio: row.to_owned().into_shared(),
                instruction: Arc::clone(instruction),
            })
            .collect();
        Ok(DemoSample {
            obs,
            chunk: ActionChunk::new(actions).map_err(|e| DataError::unsupported(e.to_string()))?,
            valid: valid.iter().map(|&v| v > 0.0).collect(),
            episode: self.episodes[place.slot as usize],
            step: place.step as usize,
        })
    }

    fn batch(&self, indices: &[usize]) -> Result<DemoBatch, DataError> {
        let (b, t_o, t_p) = (indices.len(), self.options.n_obs_steps, self.options.chunk_size);
        let (p, d) = (self.proprio.ncols(), self.actions.ncols());
        let mut proprio = vec![0.0; b * t_o * p];
        let mut actions = vec![0.0; b * t_p * d];
        let mut valid = vec![0.0; b * t_p];
        let mut instructions = Vec::with_capacity(b);
        for (i, &index) in indices.iter().enumerate() {
            let place = self.place(index)?;
            self.fill(
                place,
                &mut proprio[i * t_o * p..(i + 1) * t_o * p],
                &mut actions[i * t_p * d..(i + 1) * t_p * d],
                &mut valid[i * t_p..(i + 1) * t_p],
            );
            instructions.push(Arc::clone(&self.instructions[place.slot as usize]));
        }
        let mut images = BTreeMap::new();
        for camera in &self.options.cameras {
            let (h, w) = self.size(camera);
            let mut pixels = vec![0u8; b * t_o * h * w * 3];
            let mut slots = pixels.chunks_exact_mut(h * w * 3);
            for &index in indices {
                for frame in self.frames(self.place(index)?, camera)? {
                    let Some(slot) = slots.next() else { continue };
                    match frame.as_slice() {
                        Some(from) => slot.copy_from_slice(from),
                        None => slot.iter_mut().zip(&frame).for_each(|(to, from)| *to = *from),
                    }
                }
            }
            images
                .insert(camera.clone(), shaped(Array5::from_shape_vec((b, t_o, h, w, 3), pixels))?);
        }
        Ok(DemoBatch {
            images,
            proprio: shaped(Array3::from_shape_vec((b, t_o, p), proprio))?,
            instructions,
            actions: shaped(Array3::from_shape_vec((b, t_p, d), actions))?,
            valid: shaped(Array2::from_shape_vec((b, t_p), valid))?,
        })
    }
}

fn resized(frame: &Frame, (h, w): (usize, usize)) -> Frame {
    let (old_h, old_w, _) = frame.dim();
    let pixels: Vec<u8> = frame.iter().copied().collect();
    let small = image::RgbImage::from_raw(old_w as u32, old_h as u32, pixels).map(|image| {
        let filter = image::imageops::FilterType::Triangle;
        image::imageops::resize(&image, w as u32, h as u32, filter).into_raw()
    });
    let frame = small.and_then(|pixels| Array3::from_shape_vec((h, w, 3), pixels).ok());
    frame.map_or_else(|| Frame::zeros((h, w, 3)), Array3::into_shared)
}

fn shaped<T>(array: Result<T, ndarray::ShapeError>) -> Result<T, DataError> {
    array.map_err(|e| DataError::unsupported(format!("shape a batch: {e}")))
}

fn broken(spec: &SourceSpec, episode: usize, detail: String) -> DataError {
    DataError::episode(spec.location.as_ref(), episode, detail)
}

fn check(
    spec: &SourceSpec,
    available: usize,
    episodes: &[usize],
    options: &WindowOptions,
) -> Result<(), DataError> {
    let refuse = |detail: String| Err(DataError::unsupported(detail));
    if options.n_obs_steps == 0 || options.chunk_size == 0 {
        return refuse("`n_obs_steps` and `chunk_size` must be at least 1".to_owned());
    }
    if options.chunk_size <= options.before() {
        return refuse(format!(
            "`chunk_size` is {}; a chunk that starts with the window must reach beyond its {} steps",
            options.chunk_size, options.n_obs_steps
        ));
    }
    if options.resize.is_some_and(|[h, w]| h == 0 || w == 0 || h > 4096 || w > 4096) {
        return refuse("`resize` must lie in 1 to 4096 px".to_owned());
    }
    let black = options.black_if_missing && options.resize.is_some();
    let missing = |c: &&String| !black && !spec.cameras.contains_key(*c);
    if let Some(camera) = options.cameras.iter().find(missing) {
        return refuse(format!(
            "`{}` has no camera `{camera}`; it has {:?}",
            spec.location,
            spec.cameras.keys().collect::<Vec<_>>()
        ));
    }
    if let Some(episode) = episodes.iter().find(|e| **e >= available) {
        return refuse(format!("`{}` has no episode {episode}; it has {available}", spec.location));
    }
    if spec.absolute_action.len() != spec.action.len() {
        return refuse(format!(
            "`{}` says of {} numbers of an action whether they are absolute, there are {}",
            spec.location,
            spec.absolute_action.len(),
            spec.action.len()
        ));
    }
    if spec.action.is_empty() {
        return refuse(format!("`{}` has no action", spec.location));
    }
    if episodes.is_empty() {
        return refuse(format!("no episode of `{}` is chosen", spec.location));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
