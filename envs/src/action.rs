//! Action chunks: what a policy hands to an environment.

use ndarray::{ArcArray2, Array2, ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use crate::EnvError;

/// `[T_a, D]` actions to be executed open loop, `T_a >= 1`. A plain action has `T_a = 1`.
///
/// Units and ranges are those of the environment's [`action space`](crate::EnvSpec::action). Cloning shares the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionChunk(ArcArray2<f32>);

impl ActionChunk {
    /// Wraps `[T_a, D]` actions.
    ///
    /// # Errors
    /// [`EnvError::InvalidAction`] if `T_a` or `D` is zero.
    pub fn new(actions: Array2<f32>) -> Result<Self, EnvError> {
        if actions.is_empty() {
            return Err(EnvError::InvalidAction {
                detail: format!(
                    "empty chunk of shape {:?}; a chunk holds at least one action",
                    actions.shape()
                ),
            });
        }
        Ok(Self(actions.into_shared()))
    }

    /// A chunk of one action of `D` numbers.
    ///
    /// # Errors
    /// [`EnvError::InvalidAction`] if `action` is empty.
    pub fn single(action: &[f32]) -> Result<Self, EnvError> {
        Self::new(ArrayView1::from(action).to_owned().insert_axis(Axis(0)))
    }

    /// `T_a`, the number of actions.
    pub fn len(&self) -> usize {
        self.0.nrows()
    }

    /// Always false: a chunk holds at least one action.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The actions, `[T_a, D]`.
    pub fn view(&self) -> ArrayView2<'_, f32> {
        self.0.view()
    }

    /// The actions one by one, each `[D]`.
    pub fn actions(&self) -> impl ExactSizeIterator<Item = ArrayView1<'_, f32>> {
        self.0.outer_iter()
    }

    /// The first `n` actions (all of them if the chunk is shorter; never fewer than one).
    #[must_use]
    pub fn truncated(&self, n: usize) -> Self {
        let keep = n.clamp(1, self.len());
        Self(self.0.slice(ndarray::s![..keep, ..]).to_shared())
    }
}
