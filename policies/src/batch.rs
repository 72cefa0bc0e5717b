//! Where arrays become tensors: many observations, stacked.

use std::collections::BTreeMap;
use std::sync::Arc;

use simloop_envs::Observation;
use tch::{Device, Kind, Tensor};

use crate::PolicyError;

/// `B` windows of `T_o` observations on the model's device; raw units, images still u8.
#[derive(Debug)]
pub struct ObsBatch {
    /// Camera to `[B, T_o, H, W, 3]` u8.
    pub images: BTreeMap<String, Tensor>,
    /// `[B, T_o, P]` f32.
    pub proprio: Tensor,
    /// `B` instructions.
    pub instructions: Vec<Arc<str>>,
}

/// A batch to imitate.
#[derive(Debug)]
pub struct ImitationBatch {
    /// What was seen.
    pub obs: ObsBatch,
    /// What was done, `[B, T_p, D]` f32, raw units.
    pub actions: Tensor,
    /// 1 where the action is real, 0 where it pads the end of an episode, `[B, T_p]` f32.
    pub valid: Tensor,
}

impl ObsBatch {
    /// `B`.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether `B` is zero.
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }

    /// Rows `start .. start + len`, sharing memory.
    #[must_use]
    pub fn narrow(&self, start: usize, len: usize) -> Self {
        let cut = |t: &Tensor| t.narrow(0, start as i64, len as i64);
        Self {
            images: self.images.iter().map(|(name, t)| (name.clone(), cut(t))).collect(),
            proprio: cut(&self.proprio),
            instructions: self.instructions[start..start + len].to_vec(),
        }
    }

    /// The rows `index`, in that order.
    #[must_use]
    pub fn select(&self, index: &[i64]) -> Self {
        let rows = Tensor::from_slice(index).to_device(self.proprio.device());
        let pick = |t: &Tensor| t.index_select(0, &rows);
        Self {
            images: self.images.iter().map(|(name, t)| (name.clone(), pick(t))).collect(),
            proprio: pick(&self.proprio),
            instructions: index
                .iter()
                .map(|&i| Arc::clone(&self.instructions[i as usize]))
                .collect(),
        }
    }

    /// Stacks `B` windows, oldest observation first; all of one length, with the cameras named.
    ///
    /// # Errors
    /// [`PolicyError::Missing`] for a camera that an observation lacks; [`PolicyError::Config`] for unequal shapes.
    pub fn stack(
        windows: &[Vec<Observation>],
        cameras: &[String],
        device: Device,
    ) -> Result<Self, PolicyError> {
        let b = windows.len();
        let t = windows.first().map_or(0, Vec::len);
        let p = windows.first().and_then(|w| w.first()).map_or(0, |o| o.proprio.len());
        let mut proprio: Vec<f32> = Vec::with_capacity(b * t * p);
        for obs in windows.iter().flatten() {
            proprio.extend(obs.proprio.iter());
        }
        if t == 0 || windows.iter().any(|w| w.len() != t) || proprio.len() != b * t * p {
            return Err(PolicyError::Config {
                detail: format!("stack {b} windows of observations: they differ in length"),
            });
        }
        let mut images = BTreeMap::new();
        for camera in cameras {
            let mut shape = None;
            let mut pixels: Vec<u8> = Vec::new();
            for obs in windows.iter().flatten() {
                let frame = obs.images.get(camera).ok_or_else(|| PolicyError::Missing {
                    what: format!("images[{camera}]"),
                    remedy: "build the environment with that camera".to_owned(),
                })?;
                if *shape.get_or_insert(frame.dim()) != frame.dim() {
                    return Err(PolicyError::Config {
                        detail: format!("stack frames of `{camera}`: they differ in size"),
                    });
                }
                match frame.as_slice() {
                    Some(slice) => pixels.extend_from_slice(slice),
                    None => pixels.extend(frame.iter()),
                }
            }
            let (h, w, c) = shape.unwrap_or((0, 0, 3));
            let tensor = Tensor::from_slice(&pixels)
                .reshape([b as i64, t as i64, h as i64, w as i64, c as i64])
                .to_device(device);
            images.insert(camera.clone(), tensor);
        }
        let instructions = windows
            .iter()
            .filter_map(|w| w.last())
            .map(|obs| Arc::clone(&obs.instruction))
            .collect();
        let proprio = Tensor::from_slice(&proprio)
            .to_kind(Kind::Float)
            .reshape([b as i64, t as i64, p as i64])
            .to_device(device);
        Ok(Self { images, proprio, instructions })
    }
}
