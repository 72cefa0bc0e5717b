//! Which fusion, and its settings.

use serde::{Deserialize, Serialize};

use super::concat::{Concat, ConcatConfig};
use super::cross_attention::{CrossAttention, CrossAttentionConfig};
use super::flat::{Flat, FlatConfig};
use super::gated::{Gated, GatedConfig};
use super::hierarchical::{Hierarchical, HierarchicalConfig};
use super::perceiver::{Perceiver, PerceiverConfig};
use super::{Fusion, Modality};
use crate::PolicyError;
use crate::nn::Scope;

/// A fusion by name: `kind = "flat"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FusionConfig {
    /// [`Flat`].
    Flat(FlatConfig),
    /// [`Concat`].
    Concat(ConcatConfig),
    /// [`CrossAttention`].
    CrossAttention(CrossAttentionConfig),
    /// [`Perceiver`].
    Perceiver(PerceiverConfig),
    /// [`Hierarchical`].
    Hierarchical(HierarchicalConfig),
    /// [`Gated`].
    Gated(GatedConfig),
}

impl Default for FusionConfig {
    fn default() -> Self {
        Self::Flat(FlatConfig {})
    }
}

impl FusionConfig {
    /// Builds it below `scope` for these modalities.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for settings or modalities that do not fit.
    pub fn build(
        &self,
        scope: &Scope,
        modalities: &[Modality],
    ) -> Result<Box<dyn Fusion>, PolicyError> {
        Ok(match self {
            Self::Flat(FlatConfig {}) => Box::new(Flat::new(modalities)?),
            Self::Concat(c) => Box::new(Concat::new(scope, c, modalities)?),
            Self::CrossAttention(c) => Box::new(CrossAttention::new(scope, c, modalities)?),
            Self::Perceiver(c) => Box::new(Perceiver::new(scope, c, modalities)?),
            Self::Hierarchical(c) => Box::new(Hierarchical::new(scope, c, modalities)?),
            Self::Gated(c) => Box::new(Gated::new(scope, c, modalities)?),
        })
    }
}
