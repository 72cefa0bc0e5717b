//! What a policy sees: raw windows in, one context out. Critics look through one of their own.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::{Normalizers, PolicyIo, VlaConfig};
use crate::encoders::cameras::Camera;
use crate::encoders::{Encoder, Inputs, VisionConfig};
use crate::fusion::{Context, Fusion, Modality};
use crate::nn::Scope;
use crate::normalize::Affine;
use crate::text::Tokenizer;
use crate::{NoiseStream, ObsBatch, PolicyError};

/// Encoders and fusion, with the normaliser of `proprio` in front.
pub struct Perception {
    n_obs_steps: i64,
    proprio_names: Vec<String>,
    crop: Option<i64>,
    cameras: Vec<String>,
    proprio: Affine,
    encoders: Vec<Box<dyn Encoder>>,
    fusion: Box<dyn Fusion>,
}

impl Perception {
    /// Builds the encoders and the fusion of `config` below `scope`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for parts that do not fit together.
    pub fn new(
        scope: &Scope,
        config: &VlaConfig,
        io: &PolicyIo,
        normalizers: &Normalizers,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self, PolicyError> {
        let cameras: Vec<_> = io
            .cameras
            .iter()
            .map(|(name, size)| {
                let side = |full: u32| config.crop.unwrap_or(i64::from(full));
                Camera { name: name.clone(), height: side(size.height), width: side(size.width) }
            })
            .collect();
        let t_o = config.n_obs_steps as i64;
        let encoders: Vec<Box<dyn Encoder>> = [
            config.state.build(&scope.sub("state"), io.proprio.len() as i64, t_o)?,
            config.vision.build(&scope.sub("vision"), &cameras, t_o)?,
            match config.frames {
                // Read already: the instruction chose the goal.
                Some(_) => None,
                None => config
                    .text
                    .build(&scope.sub("text"), tokenizer)?
                    .map(|encoder| Box::new(encoder) as Box<dyn Encoder>),
            },
        ]
        .into_iter()
        .flatten()
        .collect();
        if encoders.is_empty() {
            return Err(PolicyError::Config {
                detail:
                    "build a policy that sees nothing: choose a `state`, `vision` or `text` encoder"
                        .to_owned(),
            });
        }
        let modalities: Vec<_> = encoders.iter().map(|e| Modality::of(e.as_ref())).collect();
        let fusion = config.fusion.build(&scope.sub("fusion"), &modalities)?;
        let needs_images = !matches!(config.vision, VisionConfig::None);
        Ok(Self {
            n_obs_steps: t_o,
            proprio_names: io.proprio.clone(),
            crop: config.crop,
            cameras: if needs_images { io.cameras.keys().cloned().collect() } else { Vec::new() },
            proprio: normalizers.proprio.on(scope.device()),
            encoders,
            fusion,
        })
    }

    /// The cameras that it looks through.
    pub fn cameras(&self) -> &[String] {
        &self.cameras
    }

    /// What makes one context of all tokens.
    pub fn fusion(&self) -> &dyn Fusion {
        self.fusion.as_ref()
    }

    /// What is seen in `B` windows. Images are cut at random places if `noise` is given, in the middle otherwise.
    ///
    /// # Errors
    /// [`PolicyError`] for windows of another length, width or without a camera.
    pub fn context(
        &self,
        obs: &ObsBatch,
        noise: Option<&mut NoiseStream>,
    ) -> Result<Context, PolicyError> {
        let expected = [obs.len() as i64, self.n_obs_steps, self.proprio_names.len() as i64];
        if obs.proprio.size() != expected {
            return Err(PolicyError::Config {
                detail: format!(
                    "see proprio of shape {:?}: the policy was made for {expected:?} ({})",
                    obs.proprio.size(),
                    self.proprio_names.join(", ")
                ),
            });
        }
        let images = self.images(obs, noise)?;
        let proprio = self.proprio.normalize(&obs.proprio);
        let inputs = Inputs { images: &images, proprio: &proprio, instructions: &obs.instructions };
        let tokens: Vec<_> =
            self.encoders.iter().map(|e| e.encode(&inputs)).collect::<Result<_, _>>()?;
        self.fusion.fuse(&tokens)
    }

    /// Images to `[B, T_o, 3, H, W]` in `[0, 1]`, cropped; at random places if `noise` is given.
    fn images(
        &self,
        obs: &ObsBatch,
        mut noise: Option<&mut NoiseStream>,
    ) -> Result<BTreeMap<String, Tensor>, PolicyError> {
        let mut images = BTreeMap::new();
        for camera in &self.cameras {
            let raw = obs.images.get(camera).ok_or_else(|| PolicyError::Missing {
                what: format!("images[{camera}]"),
                remedy: "give the policy the cameras it was trained with".to_owned(),
            })?;
            let raw = match self.crop {
                Some(side) => crop(raw, side, noise.as_deref_mut()),
                None => raw.shallow_clone(),
            };
            let image = raw.permute([0, 1, 4, 2, 3]).to_kind(Kind::Float) / 255.0;
            images.insert(camera.clone(), image);
        }
        Ok(images)
    }
}

/// Cuts `[B, T, H, W, 3]` to `side` × `side`: in the middle, or at a place per sample drawn from `noise`.
fn crop(images: &Tensor, side: i64, noise: Option<&mut NoiseStream>) -> Tensor {
    let size = images.size();
    let (b, down, right) = (size[0], size[2] - side, size[3] - side);
    let Some(noise) = noise else {
        return images.narrow(2, down / 2, side).narrow(3, right / 2, side);
    };
    let places: Vec<[i64; 2]> =
        (0..b).map(|_| [noise.integer(down + 1), noise.integer(right + 1)]).collect();
    if images.device().is_cuda() {
        return gather_windows(images, side, &places);
    }
    copy_windows(images, side, &places)
}

/// The windows at `places` (row, column), one copy per sample: the fastest on a CPU.
fn copy_windows(images: &Tensor, side: i64, places: &[[i64; 2]]) -> Tensor {
    let cut = |(i, [y, x]): (usize, &[i64; 2])| {
        images.get(i as i64).narrow(1, *y, side).narrow(2, *x, side)
    };
    Tensor::stack(&places.iter().enumerate().map(cut).collect::<Vec<_>>(), 0)
}

/// The same in one kernel: on a GPU the launches of a copy per sample would take longer than the network.
fn gather_windows(images: &Tensor, side: i64, places: &[[i64; 2]]) -> Tensor {
    let (b, t) = (places.len() as i64, images.size()[1]);
    let options = (Kind::Int64, images.device());
    let corners = Tensor::from_slice(places.as_flattened()).view([b, 2]).to_device(options.1);
    let along = |axis: i64, steps: [i64; 4]| {
        corners.narrow(1, axis, 1).view([b, 1, 1, 1]) + Tensor::arange(side, options).view(steps)
    };
    let rows = along(0, [1, 1, side, 1]);
    let columns = along(1, [1, 1, 1, side]);
    let sample = Tensor::arange(b, options).view([b, 1, 1, 1]);
    let frame = Tensor::arange(t, options).view([1, t, 1, 1]);
    images.index(&[Some(sample), Some(frame), Some(rows), Some(columns)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn both_ways_to_cut_give_the_same_windows() {
        let shape = [3, 2, 9, 7, 3];
        let images = Tensor::arange(3 * 2 * 9 * 7 * 3, (Kind::Int64, Device::Cpu)).view(shape);
        let places = [[0, 0], [4, 2], [1, 1]];
        let copied = copy_windows(&images, 5, &places);
        assert_eq!(copied.size(), [3, 2, 5, 5, 3]);
        assert_eq!(copied, gather_windows(&images, 5, &places));
        let first = images.int64_value(&[1, 1, 4, 2, 0]);
        assert_eq!(copied.int64_value(&[1, 1, 0, 0, 0]), first);
    }
}
