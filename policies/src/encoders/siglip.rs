//! SigLIP's vision tower ([`crate::vision::siglip`]) as an image encoder: from scratch, or begun from a published
//! checkpoint ([`VlaPolicy::begin_vision`](crate::vla::VlaPolicy::begin_vision)) and frozen, adapted or trained on.
//!
//! Images of another size are brought to the tower's, bilinear with antialiasing, as its own preprocessor does.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::cameras::Backbone;
use crate::PolicyError;
use crate::nn::Scope;
use crate::nn::lora::{LoraConfig, is_adapter};
use crate::vision::{SiglipConfig, SiglipVision};

/// What of the tower learns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SiglipTraining {
    /// Everything.
    #[default]
    All,
    /// Nothing.
    Frozen,
    /// Adapters alone.
    Lora {
        /// Their shape.
        adapters: LoraConfig,
    },
}

/// What leaves the tower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiglipPooling {
    /// A token per patch, as vision-language models take them.
    #[default]
    Patches,
    /// One token: the mean over patches.
    Mean,
    /// One token: the tower's own attention pooling.
    Head,
}

/// Settings of [`Siglip`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SiglipEncoderConfig {
    /// The tower's size, with the names of a checkpoint's `config.json`. Whether its head is there follows from `pool`,
    /// not from `vision_use_head`.
    pub tower: SiglipConfig,
    /// What learns.
    pub train: SiglipTraining,
    /// What leaves it.
    pub pool: SiglipPooling,
    /// One network for all cameras.
    pub share_weights: bool,
}

impl SiglipEncoderConfig {
    /// The tower that is built: with a head only where one is asked.
    pub fn tower(&self) -> SiglipConfig {
        SiglipConfig { vision_use_head: self.pool == SiglipPooling::Head, ..self.tower.clone() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Siglip {
    tower: SiglipVision,
    pool: SiglipPooling,
}

impl Siglip {
    /// Builds it in `scope`. What does not learn is frozen here.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for sizes or adapters that do not fit.
    pub fn new(scope: &Scope, config: &SiglipEncoderConfig) -> Result<Self, PolicyError> {
        if config.tower.num_channels != 3 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a siglip encoder with num_channels = {}: cameras have 3",
                    config.tower.num_channels
                ),
            });
        }
        let params = scope.params();
        let adapters = match &config.train {
            SiglipTraining::Lora { adapters } => Some(adapters.clone()),
            SiglipTraining::All | SiglipTraining::Frozen => None,
        };
        let before = params.lora();
        params.set_lora(adapters)?;
        let tower = SiglipVision::new(scope, config.tower());
        params.set_lora(before)?;
        let tower = tower?;
        match config.train {
            SiglipTraining::All => {}
            SiglipTraining::Frozen => params.set_trainable_below(scope.path(), |_| false),
            SiglipTraining::Lora { .. } => params.set_trainable_below(scope.path(), is_adapter),
        }
        Ok(Self { tower, pool: config.pool })
    }
}

impl Backbone for Siglip {
    fn tokens(&self) -> i64 {
        match self.pool {
            SiglipPooling::Patches => self.tower.config().patches(),
            SiglipPooling::Mean | SiglipPooling::Head => 1,
        }
    }

    fn width(&self) -> i64 {
        self.tower.config().hidden_size
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let side = self.tower.config().image_size;
        let images = if images.size()[2..] == [side, side] {
            images.shallow_clone()
        } else {
            images.internal_upsample_bilinear2d_aa([side, side], false, None, None)
        };
        // Mean and deviation 0.5: SigLIP's preprocessor.
        let (patches, pooled) = self.tower.apply(&(images * 2.0 - 1.0));
        match (self.pool, pooled) {
            (SiglipPooling::Patches, _) => patches,
            (SiglipPooling::Head, Some(pooled)) => pooled.unsqueeze(1),
            (SiglipPooling::Mean | SiglipPooling::Head, _) => {
                patches.mean_dim([1i64].as_slice(), true, None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::encoders::VisionConfig;
    use crate::encoders::testing::check_vision;
    use crate::nn::Params;
    use crate::nn::lora::Targets;
    use crate::testing::random;

    fn small(pool: SiglipPooling, image_size: i64) -> SiglipEncoderConfig {
        let tower = SiglipConfig {
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size,
            patch_size: 4,
            ..SiglipConfig::default()
        };
        SiglipEncoderConfig { tower, pool, ..SiglipEncoderConfig::default() }
    }

    #[test]
    fn it_is_an_image_encoder() {
        check_vision(&VisionConfig::Siglip(small(SiglipPooling::Patches, 16)), 16, 16, 8);
        check_vision(&VisionConfig::Siglip(small(SiglipPooling::Mean, 16)), 16, 1, 8);
        check_vision(&VisionConfig::Siglip(small(SiglipPooling::Head, 16)), 16, 1, 8);
        // Images that are resized first.
        check_vision(&VisionConfig::Siglip(small(SiglipPooling::Patches, 12)), 16, 9, 8);
    }

    #[test]
    fn what_is_frozen_does_not_learn_and_adapters_alone_do() {
        let adapters = LoraConfig::new(2, 4.0, Targets::AllLinear);
        for train in [SiglipTraining::Frozen, SiglipTraining::Lora { adapters }] {
            let lora = matches!(train, SiglipTraining::Lora { .. });
            let params = Params::new(Device::Cpu, 0);
            let config = SiglipEncoderConfig { train, ..small(SiglipPooling::Patches, 16) };
            Siglip::new(&params.root().sub("vision"), &config).unwrap();
            let other = crate::nn::Linear::new(&params.root().sub("other"), 2, 2);
            assert!(other.weight.requires_grad() && params.lora().is_none());
            let learns: Vec<String> = params.trainable().into_iter().map(|(n, _)| n).collect();
            let adapters = learns.iter().filter(|n| is_adapter(n)).count();
            // Four projections and two layers of the feed-forward part, in two blocks, A and B each.
            assert_eq!(adapters, if lora { 6 * 2 * 2 } else { 0 }, "{learns:?}");
            assert!(learns.iter().all(|n| is_adapter(n) || n.starts_with("other.")));
        }
    }

    #[test]
    fn an_image_of_one_colour_is_the_same_at_any_size() {
        let params = Params::new(Device::Cpu, 0);
        let encoder = Siglip::new(&params.root(), &small(SiglipPooling::Patches, 16)).unwrap();
        let colour = random(0, &[1, 3, 1, 1]).abs() * 0.2;
        let at = |side: i64| encoder.forward(&colour.expand([1, 3, side, side], false));
        assert!(at(16).allclose(&at(24), 1e-4, 1e-5, false));
        assert!(!at(16).allclose(
            &encoder.forward(&Tensor::zeros([1, 3, 16, 16], (Kind::Float, Device::Cpu))),
            1e-4,
            1e-5,
            false
        ));
    }
}
