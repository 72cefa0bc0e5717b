//! diffusion_policy's PushT demonstrations: `pusht_cchi_v7_replay.zarr`, 206 human episodes at 10 Hz.
//!
//! Arrays (zarr v2): `data/state` f4 `(N, 5)` agent x, y, block x, y, angle; `data/action` f4 `(N, 2)` target position of
//! the agent; `data/img` f4 `(N, 96, 96, 3)` RGB in 0..255; `meta/episode_ends` i8, cumulative and exclusive. Units are
//! those of [`simloop_envs::pusht`], whose observations this reader reproduces name by name. The keypoints are computed
//! from the pose as the environment does; the file's own `keypoint` array (nine points) is not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array2, ArrayView3};
use simloop_envs::pusht::{CAMERA, INSTRUCTION, Pose, PushtConfig, PushtEnv, PushtObs};
use simloop_envs::{Env as _, ImageSpace};

use super::zarr::{Dtype, ZarrArray};
use super::{DataError, DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec};

/// Decompressed chunks that are kept, as u8: neighbouring episodes share one (4.5 MB each in the real file).
const CHUNKS_KEPT: usize = 3;

/// The demonstrations; numbers in memory, images read when asked for.
#[derive(Debug)]
pub struct PushtZarr {
    spec: SourceSpec,
    episodes: Vec<EpisodeMeta>,
    /// First row of each episode, then the number of rows.
    starts: Vec<usize>,
    proprio: Array2<f32>,
    actions: Array2<f32>,
    images: Option<Images>,
}

#[derive(Debug)]
struct Images {
    array: ZarrArray,
    size: ImageSpace,
    kept: Mutex<Vec<(usize, Arc<[u8]>)>>,
}

impl PushtZarr {
    /// Opens the store; `obs` chooses what the proprio holds and whether there are images.
    ///
    /// # Errors
    /// [`DataError`] naming the array that is missing or damaged.
    pub fn open(path: &Path, obs: PushtObs) -> Result<Self, DataError> {
        let ends = ZarrArray::open(&path.join("meta/episode_ends"))?;
        let starts = starts(&path.join("meta/episode_ends"), &ends.read_numbers()?)?;
        let rows = starts.last().copied().unwrap_or(0);
        let state = matrix(&path.join("data/state"), rows, 5)?;
        let actions = matrix(&path.join("data/action"), rows, 2)?;
        let env = PushtEnv::new(PushtConfig { obs, ..PushtConfig::default() })
            .map_err(|e| DataError::unsupported(e.to_string()))?;
        let env = env.spec();
        let images =
            obs.has_image().then(|| Images::open(&path.join("data/img"), rows)).transpose()?;
        let spec = SourceSpec {
            format: "pusht_zarr".to_owned(),
            location: path.display().to_string(),
            cameras: images.iter().map(|i| (CAMERA.to_owned(), i.size)).collect(),
            proprio: env.observation.proprio.names.clone(),
            action: env.action.names.clone(),
            absolute_action: vec![true; env.action.len()],
            convention: Some(env.convention.clone()),
            control_hz: Some(env.control_hz),
        };
        let instruction: Arc<str> = Arc::from(INSTRUCTION);
        let episodes = starts
            .windows(2)
            .enumerate()
            .map(|(i, w)| EpisodeMeta {
                len: w[1] - w[0],
                instruction: Arc::clone(&instruction),
                id: format!("{i}"),
            })
            .collect();
        Ok(Self { spec, episodes, starts, proprio: proprio(obs, &state), actions, images })
    }
}

impl DemoSource for PushtZarr {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn episodes(&self) -> &[EpisodeMeta] {
        &self.episodes
    }

    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError> {
        let Some(meta) = self.episodes.get(episode) else {
            return Err(DataError::unsupported(format!(
                "read episode {episode} of `{}`: it has {}",
                self.spec.location,
                self.episodes.len()
            )));
        };
        let (from, to) = (self.starts[episode], self.starts[episode + 1]);
        let rows = ndarray::s![from..to, ..];
        let frames = match &self.images {
            Some(all) if images => {
                let frames = all.read(from, to).map_err(|e| name_episode(e, episode))?;
                BTreeMap::from([(CAMERA.to_owned(), frames)])
            }
            _ => BTreeMap::new(),
        };
        Ok(DemoEpisode {
            instruction: Arc::clone(&meta.instruction),
            proprio: self.proprio.slice(rows).to_owned(),
            actions: self.actions.slice(rows).to_owned(),
            images: frames,
        })
    }
}

impl Images {
    fn open(folder: &Path, rows: usize) -> Result<Self, DataError> {
        let array = ZarrArray::open(folder)?;
        let &[n, height, width, 3] = array.shape() else {
            return Err(DataError::broken(
                folder,
                format!("its shape is {:?}, images have [N, H, W, 3]", array.shape()),
            ));
        };
        if n != rows {
            return Err(rows_differ(folder, n, rows));
        }
        if !matches!(array.dtype(), Dtype::F32 | Dtype::U8) {
            return Err(DataError::unsupported(format!(
                "read `{}`: images of {:?} are not read, only f4 and u1",
                folder.display(),
                array.dtype()
            )));
        }
        let size = ImageSpace { height: height as u32, width: width as u32 };
        Ok(Self { array, size, kept: Mutex::default() })
    }

    /// Chunk `index` as u8.
    fn chunk(&self, index: usize) -> Result<Arc<[u8]>, DataError> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|(i, _)| *i == index) {
                let found = kept.remove(at);
                let pixels = Arc::clone(&found.1);
                kept.push(found);
                return Ok(pixels);
            }
        }
        let bytes = self.array.chunk(index)?;
        let pixels: Arc<[u8]> = match self.array.dtype() {
            Dtype::U8 => bytes.into(),
            _ => pixels(&bytes)
                .ok_or_else(|| {
                    DataError::broken(&self.array.chunk_path(index), "a pixel lies outside 0..255")
                })?
                .into(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= CHUNKS_KEPT {
            kept.remove(0);
        }
        kept.push((index, Arc::clone(&pixels)));
        Ok(pixels)
    }

    fn read(&self, from: usize, to: usize) -> Result<Frames, DataError> {
        let (rows, row) = (self.array.rows_per_chunk(), self.array.row_len());
        let dim = (self.size.height as usize, self.size.width as usize, 3);
        let mut frames = Vec::new();
        for index in from / rows..to.div_ceil(rows) {
            let chunk = self.chunk(index)?;
            let first = from.max(index * rows) - index * rows;
            let last = to.min((index + 1) * rows) - index * rows;
            for pixels in chunk[first * row..last * row].chunks_exact(row) {
                let frame = ArrayView3::from_shape(dim, pixels)
                    .map_err(|e| DataError::broken(&self.array.chunk_path(index), e.to_string()))?;
                frames.push(frame.to_owned().into_shared());
            }
        }
        Ok(Frames::Raw(frames))
    }
}

/// Rounds f32 pixels to u8, halves to even as numpy's `rint`; `None` if one lies outside 0..255.
fn pixels(bytes: &[u8]) -> Option<Vec<u8>> {
    // Added to a number of 0..255, it leaves the rounded number in the lowest bits of the sum. This and the flag without
    // a branch are five times as fast as a cast.
    const TWO_TO_23: f32 = 8_388_608.0;
    let mut pixels = vec![0; bytes.len() / 4];
    let mut wrong = 0;
    for (pixel, b) in pixels.iter_mut().zip(bytes.chunks_exact(4)) {
        let v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        wrong |= u32::from(!(0.0..=255.0).contains(&v));
        *pixel = (v + TWO_TO_23).to_bits() as u8;
    }
    (wrong == 0).then_some(pixels)
}

/// First rows of the episodes, then the number of rows.
fn starts(path: &Path, ends: &[f64]) -> Result<Vec<usize>, DataError> {
    let mut starts = vec![0];
    for (episode, &end) in ends.iter().enumerate() {
        let last = starts.last().copied().unwrap_or(0);
        // An end is a whole number in f64's exact range.
        if !(end > last as f64 && end < 9e15 && end.fract() == 0.0) {
            return Err(DataError::episode(
                path,
                episode,
                format!("it ends at row {end} though it starts at row {last}"),
            ));
        }
        starts.push(end as usize);
    }
    if starts.len() == 1 {
        return Err(DataError::broken(path, "there is no episode"));
    }
    Ok(starts)
}

fn matrix(folder: &Path, rows: usize, columns: usize) -> Result<Array2<f32>, DataError> {
    let array = ZarrArray::open(folder)?;
    let &[n, d] = array.shape() else {
        return Err(DataError::broken(
            folder,
            format!("its shape is {:?}, expected [N, {columns}]", array.shape()),
        ));
    };
    if d != columns {
        return Err(DataError::broken(folder, format!("it has {d} columns, expected {columns}")));
    }
    if n != rows {
        return Err(rows_differ(folder, n, rows));
    }
    let values = array.read_numbers()?.into_iter().map(|v| v as f32).collect();
    Array2::from_shape_vec((n, d), values).map_err(|e| DataError::broken(folder, e.to_string()))
}

fn rows_differ(folder: &Path, got: usize, expected: usize) -> DataError {
    DataError::broken(
        folder,
        format!("it has {got} rows, meta/episode_ends says {expected}; copy the data set again"),
    )
}

fn name_episode(error: DataError, episode: usize) -> DataError {
    match error {
        DataError::Broken { path, detail, .. } => {
            DataError::Broken { path, episode: Some(episode), detail }
        }
        other => other,
    }
}

/// The environment's own proprio from `[N, 5]` states.
fn proprio(obs: PushtObs, state: &Array2<f32>) -> Array2<f32> {
    match obs {
        PushtObs::State => state.clone(),
        PushtObs::Pixels => Array2::zeros((state.nrows(), 0)),
        PushtObs::PixelsAgentPos => state.slice(ndarray::s![.., ..2]).to_owned(),
        PushtObs::EnvironmentStateAgentPos => {
            let mut rows = Array2::zeros((state.nrows(), 18));
            for (state, mut row) in state.rows().into_iter().zip(rows.rows_mut()) {
                let [x, y, angle] = [2, 3, 4].map(|i| f64::from(state[i]));
                let keypoints = Pose { x, y, angle }.keypoints();
                for (to, from) in row.iter_mut().zip(keypoints.as_flattened()) {
                    *to = *from as f32;
                }
                row[16] = state[0];
                row[17] = state[1];
            }
            rows
        }
    }
}

/// Whether a folder looks like this store.
pub fn recognise(path: &Path) -> Option<PathBuf> {
    let marker = path.join("meta/episode_ends/.zarray");
    marker.is_file().then_some(marker)
}

#[cfg(test)]
mod tests;
