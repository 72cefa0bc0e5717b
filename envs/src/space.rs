//! Spaces: shapes, names and ranges of what goes in and out.

use std::collections::BTreeMap;

use ndarray::{Array1, ArrayView1};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::EnvError;

/// A box of f32 numbers, each with a name and closed bounds (Gymnasium's `Box`, one-dimensional).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxSpace {
    /// One name per number, with its unit: `agent_x_px`, `gripper`.
    pub names: Vec<String>,
    /// Lower bounds; infinite where there is none.
    pub low: Vec<f32>,
    /// Upper bounds.
    pub high: Vec<f32>,
}

impl BoxSpace {
    /// A box of `(name, low, high)`.
    pub fn new<S: Into<String>>(dimensions: impl IntoIterator<Item = (S, f32, f32)>) -> Self {
        let (mut names, mut low, mut high) = (Vec::new(), Vec::new(), Vec::new());
        for (name, lo, hi) in dimensions {
            names.push(name.into());
            low.push(lo);
            high.push(hi);
        }
        Self { names, low, high }
    }

    /// The number of dimensions.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether it has no dimension.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether `value` has this shape, is finite and lies inside the bounds.
    pub fn contains(&self, value: ArrayView1<'_, f32>) -> bool {
        value.len() == self.len()
            && value
                .iter()
                .zip(self.low.iter().zip(&self.high))
                .all(|(v, (lo, hi))| v.is_finite() && lo <= v && v <= hi)
    }

    /// Draws uniformly; an unbounded dimension is drawn from `[-1, 1]` around its finite bound or zero.
    pub fn sample(&self, rng: &mut impl Rng) -> Array1<f32> {
        self.low
            .iter()
            .zip(&self.high)
            .map(|(&lo, &hi)| {
                let (lo, hi) = match (lo.is_finite(), hi.is_finite()) {
                    (true, true) => (lo, hi),
                    (true, false) => (lo, lo + 1.0),
                    (false, true) => (hi - 1.0, hi),
                    (false, false) => (-1.0, 1.0),
                };
                lo + (hi - lo) * rng.random::<f32>()
            })
            .collect()
    }

    /// Checks an action's shape and finiteness. Bounds are the environment's own business (PushT and robosuite clip or
    /// accept by their own rules).
    ///
    /// # Errors
    /// [`EnvError::InvalidAction`] naming the dimension.
    pub fn check_action(&self, action: ArrayView1<'_, f32>) -> Result<(), EnvError> {
        if action.len() != self.len() {
            return Err(EnvError::InvalidAction {
                detail: format!(
                    "got {} numbers, expected {} ({})",
                    action.len(),
                    self.len(),
                    self.names.join(", ")
                ),
            });
        }
        match action.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(i) => Err(EnvError::InvalidAction {
                detail: format!(
                    "`{}` is {}; every number must be finite",
                    self.names[i], action[i]
                ),
            }),
        }
    }
}

/// A camera's frame size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpace {
    /// H, pixels.
    pub height: u32,
    /// W, pixels.
    pub width: u32,
}

/// What an [`Observation`](crate::Observation) holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservationSpace {
    /// Camera name to frame size.
    pub images: BTreeMap<String, ImageSpace>,
    /// `[P]`.
    pub proprio: BoxSpace,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use rand::SeedableRng;

    #[test]
    fn non_finite_and_misshapen_actions_are_named() {
        let space = BoxSpace::new([("x", 0.0, 1.0), ("y", 0.0, 1.0)]);
        assert!(space.check_action(array![0.5, 2.0].view()).is_ok());
        let nan = space.check_action(array![0.5, f32::NAN].view()).unwrap_err().to_string();
        assert!(nan.contains("`y` is NaN"), "{nan}");
        let shape = space.check_action(array![0.5].view()).unwrap_err().to_string();
        assert!(shape.contains("got 1 numbers, expected 2"), "{shape}");
    }

    #[test]
    fn samples_lie_inside_the_box() {
        let space = BoxSpace::new([("x", 0.0, 512.0), ("y", f32::NEG_INFINITY, f32::INFINITY)]);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        for _ in 0..100 {
            assert!(space.contains(space.sample(&mut rng).view()));
        }
    }
}
