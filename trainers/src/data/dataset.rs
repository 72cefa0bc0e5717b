//! Samples: a window of observations and the chunk of actions that followed.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array1, Array2, Array3, Array4, Array5, ArrayView2, Axis, ShapeError};
use rand::seq::SliceRandom as _;
use simloop_envs::{ActionChunk, Frame, Observation, SeedTree};

use super::DataError;

/// One sample.
#[derive(Clone, Debug)]
pub struct DemoSample {
    /// `T_o` observations, oldest first; before the start of an episode the first one is repeated.
    pub obs: Vec<Observation>,
    /// `[T_p, D]`; which step its first row belongs to is [`Align`](super::Align)'s business.
    pub chunk: ActionChunk,
    /// Whether each action is real; false past the end of the episode. `[T_p]`.
    pub valid: Vec<bool>,
    /// The episode it comes from, and the step of its newest observation.
    pub episode: usize,
    /// The step of its newest observation.
    pub step: usize,
}

/// Samples by index. `get` may be called from several threads.
pub trait Dataset: Send + Sync {
    /// How many.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sample `index`.
    ///
    /// # Errors
    /// [`DataError`] naming the file and the episode.
    fn get(&self, index: usize) -> Result<DemoSample, DataError>;

    /// Samples that an epoch has.
    fn epoch_len(&self) -> usize {
        self.len()
    }

    /// The samples of an epoch in a random order drawn from `node`: every sample once, unless the data set weighs them.
    fn epoch(&self, node: &SeedTree) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(&mut node.rng());
        order
    }

    /// The samples `indices` as arrays, in their order. Equal to stacking [`Dataset::get`], and faster where a data set
    /// can copy straight into the arrays.
    ///
    /// # Errors
    /// As [`Dataset::get`]; [`DataError::Unsupported`] for samples of unequal shapes.
    fn batch(&self, indices: &[usize]) -> Result<DemoBatch, DataError> {
        let samples = indices.iter().map(|&i| self.get(i)).collect::<Result<Vec<_>, _>>()?;
        DemoBatch::stack(&samples)
    }
}

/// `B` samples as arrays, ready to become tensors on the learner's thread.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoBatch {
    /// Camera to `[B, T_o, H, W, 3]` u8.
    pub images: BTreeMap<String, Array5<u8>>,
    /// `[B, T_o, P]`.
    pub proprio: Array3<f32>,
    /// `B` instructions.
    pub instructions: Vec<Arc<str>>,
    /// `[B, T_p, D]`.
    pub actions: Array3<f32>,
    /// `[B, T_p]`, 1 where the action is real.
    pub valid: Array2<f32>,
}

impl DemoBatch {
    /// `B`.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether it has no sample.
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }

    /// Stacks samples of one shape; cameras are those of the first.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] where shapes or cameras differ, and for no sample.
    pub fn stack(samples: &[DemoSample]) -> Result<Self, DataError> {
        let refuse = |detail: String| DataError::unsupported(format!("stack samples: {detail}"));
        let unequal = |e: ShapeError| refuse(e.to_string());
        let Some(newest) = samples.first().and_then(|s| s.obs.last()) else {
            return Err(refuse("there is none".to_owned()));
        };
        let mut images = BTreeMap::new();
        for camera in newest.images.keys() {
            let windows = samples
                .iter()
                .map(|s| {
                    let frames = s.obs.iter().map(|o| o.images.get(camera).map(Frame::view));
                    let frames = frames.collect::<Option<Vec<_>>>();
                    let frames =
                        frames.ok_or_else(|| refuse(format!("one lacks camera `{camera}`")))?;
                    ndarray::stack(Axis(0), &frames).map_err(unequal)
                })
                .collect::<Result<Vec<_>, _>>()?;
            let views: Vec<_> = windows.iter().map(Array4::view).collect();
            images.insert(camera.clone(), ndarray::stack(Axis(0), &views).map_err(unequal)?);
        }
        let proprio = samples
            .iter()
            .map(|s| {
                let rows: Vec<_> = s.obs.iter().map(|o| o.proprio.view()).collect();
                ndarray::stack(Axis(0), &rows).map_err(unequal)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let valid = samples
            .iter()
            .map(|s| s.valid.iter().map(|&v| f32::from(u8::from(v))).collect())
            .collect::<Vec<Array1<f32>>>();
        let proprio: Vec<ArrayView2<'_, f32>> = proprio.iter().map(Array2::view).collect();
        let actions: Vec<ArrayView2<'_, f32>> = samples.iter().map(|s| s.chunk.view()).collect();
        let valid: Vec<_> = valid.iter().map(Array1::view).collect();
        Ok(Self {
            images,
            proprio: ndarray::stack(Axis(0), &proprio).map_err(unequal)?,
            instructions: samples
                .iter()
                .filter_map(|s| s.obs.last())
                .map(|o| Arc::clone(&o.instruction))
                .collect(),
            actions: ndarray::stack(Axis(0), &actions).map_err(unequal)?,
            valid: ndarray::stack(Axis(0), &valid).map_err(unequal)?,
        })
    }
}
