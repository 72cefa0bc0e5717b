//! Hierarchical in space and time: first the tokens of each time step attend to each other, then the steps do.
//!
//! Source: the factorised encoder of ViViT (Arnab et al. 2021, arXiv 2103.15691, model 2): a spatial encoder per frame with a
//! class token, a temporal encoder over the class tokens. Deviations: modalities without time (an instruction) take part in
//! every step; the pooled vector is the last step's token, because a policy acts from now.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::project::{Projection, with_readout};
use super::{Context, Fusion, Modality};
use crate::PolicyError;
use crate::nn::{EncoderLayer, Init, LayerNorm, Scope, TransformerConfig};

/// Settings of [`Hierarchical`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HierarchicalConfig {
    /// Layers within a time step.
    pub spatial_depth: usize,
    /// Layers across time steps.
    pub temporal_depth: usize,
    /// Their size.
    pub transformer: TransformerConfig,
}

impl Default for HierarchicalConfig {
    /// Ours; ViViT-B has 12 and 4.
    fn default() -> Self {
        Self { spatial_depth: 2, temporal_depth: 2, transformer: TransformerConfig::default() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Hierarchical {
    projection: Projection,
    modalities: Vec<Modality>,
    /// `T_o`.
    steps: i64,
    readout: Tensor,
    spatial: Vec<EncoderLayer>,
    times: Tensor,
    temporal: Vec<EncoderLayer>,
    norm: LayerNorm,
    width: i64,
}

impl Hierarchical {
    /// For these modalities. Those in time must have one number of steps.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(
        scope: &Scope,
        config: &HierarchicalConfig,
        modalities: &[Modality],
    ) -> Result<Self, PolicyError> {
        config.transformer.validate()?;
        let steps = modalities.iter().map(|m| m.steps).max().unwrap_or(1);
        let fits = |m: &Modality| m.steps == 1 || (m.steps == steps && m.tokens % steps == 0);
        if config.spatial_depth < 1 || config.temporal_depth < 1 || !modalities.iter().all(fits) {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a hierarchical fusion of {modalities:?} with depths {} and {}: depths must be at least 1, and all \
                     modalities in time must have the same number of steps",
                    config.spatial_depth, config.temporal_depth
                ),
            });
        }
        let (width, transformer) = (config.transformer.width, &config.transformer);
        let small = Init::Normal { std: 0.02 };
        let (spatial, temporal) = (scope.sub("spatial"), scope.sub("temporal"));
        Ok(Self {
            projection: Projection::new(&scope.sub("projection"), modalities, width)?,
            modalities: modalities.to_vec(),
            steps,
            readout: scope.param("readout", &[width], small),
            spatial: EncoderLayer::stack(&spatial, transformer, config.spatial_depth),
            times: scope.param("times", &[steps, width], small),
            temporal: EncoderLayer::stack(&temporal, transformer, config.temporal_depth),
            norm: LayerNorm::new(&scope.sub("norm"), width, 1e-5),
            width,
        })
    }
}

impl Fusion for Hierarchical {
    fn pooled_width(&self) -> i64 {
        self.width
    }

    fn token_width(&self) -> i64 {
        self.width
    }

    /// The tokens are one per time step.
    fn fuse(&self, modalities: &[Tensor]) -> Result<Context, PolicyError> {
        let (t, w) = (self.steps, self.width);
        let parts = self.projection.forward(modalities)?;
        let b = parts[0].size()[0];
        // [B, T, N_i, W] each, a modality without time repeated in every step.
        let by_step: Vec<Tensor> = parts
            .iter()
            .zip(&self.modalities)
            .map(|(x, m)| {
                if m.steps == 1 {
                    x.unsqueeze(1).expand([b, t, m.tokens, w], false)
                } else {
                    x.reshape([b, t, m.tokens / t, w])
                }
            })
            .collect();
        let mut x = with_readout(&self.readout, &Tensor::cat(&by_step, 2).flatten(0, 1));
        for layer in &self.spatial {
            x = layer.forward(&x, None);
        }
        let mut x = x.select(1, 0).reshape([b, t, w]) + &self.times;
        for layer in &self.temporal {
            x = layer.forward(&x, None);
        }
        let tokens = self.norm.forward(&x);
        Ok(Context { pooled: tokens.select(1, t - 1), tokens })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::fusion::FusionConfig;
    use crate::fusion::testing::{check_fusion, check_learns_from_two_modalities, small};
    use crate::nn::Params;
    use crate::testing::{assert_close, random};

    fn config() -> HierarchicalConfig {
        HierarchicalConfig { spatial_depth: 1, temporal_depth: 1, transformer: small() }
    }

    #[test]
    fn it_is_a_fusion() {
        check_fusion(&FusionConfig::Hierarchical(config()), 2);
    }

    #[test]
    fn it_learns_what_needs_two_modalities() {
        check_learns_from_two_modalities(&FusionConfig::Hierarchical(config()));
    }

    #[test]
    fn steps_meet_in_the_temporal_layers_alone() {
        let params = Params::new(Device::Cpu, 0);
        let modality = Modality { tokens: 6, width: 3, steps: 2 };
        let mut fusion = Hierarchical::new(&params.root(), &config(), &[modality]).unwrap();
        let a = random(1, &[1, 6, 3]);
        let b = Tensor::cat(&[random(2, &[1, 3, 3]), a.narrow(1, 3, 3)], 1);
        let pooled = |f: &Hierarchical, x: &Tensor| f.fuse(&[x.shallow_clone()]).unwrap().pooled;
        assert_ne!(pooled(&fusion, &a), pooled(&fusion, &b));
        fusion.temporal.clear();
        // Without them the last step's token does not see the first step, which differs.
        assert_close(&pooled(&fusion, &a), &pooled(&fusion, &b), 1e-6);
    }

    #[test]
    fn modalities_with_different_numbers_of_steps_are_refused() {
        let params = Params::new(Device::Cpu, 0);
        let modality = |steps| Modality { tokens: 6, width: 3, steps };
        let two = [modality(2), modality(3)];
        let error = Hierarchical::new(&params.root(), &config(), &two).unwrap_err().to_string();
        assert!(error.contains("same number of steps"), "{error}");
    }
}
