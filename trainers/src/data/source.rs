//! Demonstrations, whatever file they come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayView2};
use simloop_envs::{ActionConvention, Frame, ImageSpace};

use super::DataError;

/// What a data set holds.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    /// The format's name: `pusht_zarr`, `rlds`, `lerobot_v3`, ….
    pub format: String,
    /// Where it lies, for messages.
    pub location: String,
    /// Camera name to frame size.
    pub cameras: BTreeMap<String, ImageSpace>,
    /// One name per number of `proprio`, with its unit.
    pub proprio: Vec<String>,
    /// One name per number of `action`.
    pub action: Vec<String>,
    /// Which numbers of an action are absolute (repeated past the end of an episode) rather than relative (zero there).
    pub absolute_action: Vec<bool>,
    /// What an action means, where the format or the user says so.
    pub convention: Option<ActionConvention>,
    /// Steps per second, where known.
    pub control_hz: Option<f64>,
}

/// What is known of an episode without reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct EpisodeMeta {
    /// `T`, steps.
    pub len: usize,
    /// What to do, in words.
    pub instruction: Arc<str>,
    /// A name that stays with the episode (its key in the file).
    pub id: String,
}

/// The frames of one camera over an episode.
#[derive(Clone, Debug)]
pub enum Frames {
    /// Pixels, `[H, W, 3]` RGB u8 per step.
    Raw(Vec<Frame>),
    /// JPEG or PNG files, one per step, decoded when asked for.
    Encoded(Vec<Arc<[u8]>>),
}

/// One demonstration in memory.
#[derive(Clone, Debug)]
pub struct DemoEpisode {
    /// What to do, in words.
    pub instruction: Arc<str>,
    /// `[T, P]` f32, raw units.
    pub proprio: Array2<f32>,
    /// `[T, D]` f32, raw units: the action taken on the observation of the same row.
    pub actions: Array2<f32>,
    /// Camera to `T` frames; empty when images were not asked for.
    pub images: BTreeMap<String, Frames>,
}

/// Demonstrations, episode by episode. Readers implement this and nothing else; windows, splits, statistics, inspection
/// and conversion are built on it.
pub trait DemoSource: Send + Sync {
    /// What it holds.
    fn spec(&self) -> &SourceSpec;

    /// Every episode, without reading its steps.
    fn episodes(&self) -> &[EpisodeMeta];

    /// Reads an episode; without `images` only its numbers. May be called from several threads.
    ///
    /// # Errors
    /// [`DataError`] naming the file and the episode.
    fn read(&self, episode: usize, images: bool) -> Result<DemoEpisode, DataError>;

    /// What a user should know about this data set that its episodes do not show; for `data inspect`.
    ///
    /// # Errors
    /// As [`DemoSource::read`].
    fn notes(&self) -> Result<Vec<String>, DataError> {
        Ok(Vec::new())
    }
}

impl DemoEpisode {
    /// `T`.
    pub fn len(&self) -> usize {
        self.actions.nrows()
    }

    /// Whether it has no step.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The actions, `[T, D]`.
    pub fn actions(&self) -> ArrayView2<'_, f32> {
        self.actions.view()
    }
}

impl Frames {
    /// `T`.
    pub fn len(&self) -> usize {
        match self {
            Self::Raw(frames) => frames.len(),
            Self::Encoded(files) => files.len(),
        }
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Raw(frames) => frames.iter().map(Frame::len).sum(),
            Self::Encoded(files) => files.iter().map(|f| f.len()).sum(),
        }
    }

    /// The frame of step `t`.
    ///
    /// # Errors
    /// The decoder's message for an encoded frame that is damaged; `t` out of range.
    pub fn get(&self, t: usize) -> Result<Frame, String> {
        let missing = || format!("there is no frame {t} among {}", self.len());
        match self {
            Self::Raw(frames) => frames.get(t).cloned().ok_or_else(missing),
            Self::Encoded(files) => decode(files.get(t).ok_or_else(missing)?),
        }
    }
}

/// The most pixels that a frame in a file may have: 64 MB of RGB.
const MAX_PIXELS: u64 = 64 << 20;

/// The size of a PNG or JPEG, from its header.
pub(super) fn frame_size(file: &[u8]) -> Result<ImageSpace, String> {
    let reader = image::ImageReader::new(std::io::Cursor::new(file)).with_guessed_format();
    let (width, height) =
        reader.map_err(|e| e.to_string())?.into_dimensions().map_err(|e| e.to_string())?;
    Ok(ImageSpace { height, width })
}

/// Decodes a PNG or JPEG to RGB.
///
/// # Errors
/// The decoder's message; a frame of more than 64 MB.
pub fn decode(file: &[u8]) -> Result<Frame, String> {
    let mut reader = image::ImageReader::new(std::io::Cursor::new(file))
        .with_guessed_format()
        .map_err(|e| e.to_string())?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 4);
    reader.limits(limits);
    let rgb = reader.decode().map_err(|e| e.to_string())?.into_rgb8();
    let (w, h) = (rgb.width() as usize, rgb.height() as usize);
    Array3::from_shape_vec((h, w, 3), rgb.into_raw())
        .map(Array3::into_shared)
        .map_err(|e| e.to_string())
}
