//! SigLIP's vision tower (Zhai et al. 2023, arXiv 2303.15343): patches, pre-norm transformer, attention-pooled head.
//!
//! Names and order of operations follow transformers 5 (`modeling_siglip.py`); checkpoints with and without
//! `vision_model.` before their names load, as does the vision half of a two-tower checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::nn::attention::{PackedAttention, ProjectedAttention};
use crate::nn::{Activation, Conv2d, Init, LayerNorm, Linear, Params, Scope, checkpoint};
use crate::{PolicyError, hf};

/// A name that every tower has once.
pub(crate) const PATCHES: &str = "embeddings.patch_embedding.weight";

/// The fields of `config.json` that the tower depends on; those absent take the defaults of `SiglipVisionConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiglipConfig {
    /// `W`.
    pub hidden_size: i64,
    /// Width inside the feed-forward part.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Colours.
    pub num_channels: i64,
    /// Side of the square image.
    pub image_size: i64,
    /// Side of a patch.
    pub patch_size: i64,
    /// Name of the activation.
    pub hidden_act: String,
    /// Of every layer norm.
    pub layer_norm_eps: f64,
    /// Whether the head that pools is there.
    pub vision_use_head: bool,
}

impl Default for SiglipConfig {
    fn default() -> Self {
        // transformers `SiglipVisionConfig`.
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: "gelu_pytorch_tanh".to_owned(),
            layer_norm_eps: 1e-6,
            vision_use_head: true,
        }
    }
}

impl SiglipConfig {
    /// Reads `config.json`, of the tower alone or of the two-tower model (`vision_config`).
    ///
    /// # Errors
    /// [`PolicyError::File`] for a file that is not there or does not parse, [`PolicyError::Config`] for fields that do
    /// not fit together.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let json: serde_json::Value = hf::read_json(path)?;
        let json = json.get("vision_config").cloned().unwrap_or(json);
        let config: Self = serde_json::from_value(json)
            .map_err(|e| PolicyError::File { path: path.to_owned(), detail: e.to_string() })?;
        config
            .validate()
            .map_err(|e| PolicyError::File { path: path.to_owned(), detail: e.to_string() })?;
        Ok(config)
    }

    /// Patches per image.
    pub fn patches(&self) -> i64 {
        (self.image_size / self.patch_size) * (self.image_size / self.patch_size)
    }

    /// Checks what belongs together.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), PolicyError> {
        hf::size("hidden_size", self.hidden_size, 1 << 16)?;
        hf::size("intermediate_size", self.intermediate_size, 1 << 18)?;
        hf::size("num_hidden_layers", self.num_hidden_layers, 1024)?;
        hf::size("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        hf::size("num_channels", self.num_channels, 1024)?;
        hf::size("image_size", self.image_size, 1 << 14)?;
        hf::size("patch_size", self.patch_size, self.image_size)?;
        if self.hidden_size % self.num_attention_heads != 0 {
            return Err(PolicyError::Config {
                detail: format!(
                    "num_attention_heads = {} does not divide hidden_size = {}",
                    self.num_attention_heads, self.hidden_size
                ),
            });
        }
        hf::activation(&self.hidden_act).map(drop)
    }
}

#[derive(Debug)]
struct FeedForward {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl FeedForward {
    fn new(scope: &Scope, config: &SiglipConfig) -> Result<Self, PolicyError> {
        Ok(Self {
            fc1: Linear::new(&scope.sub("fc1"), config.hidden_size, config.intermediate_size),
            fc2: Linear::new(&scope.sub("fc2"), config.intermediate_size, config.hidden_size),
            activation: hf::activation(&config.hidden_act)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.activation.apply(&self.fc1.forward(x)))
    }
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    attention: ProjectedAttention,
    norm2: LayerNorm,
    mlp: FeedForward,
}

impl Layer {
    fn new(scope: &Scope, config: &SiglipConfig) -> Result<Self, PolicyError> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let heads = config.num_attention_heads;
        Ok(Self {
            norm1: LayerNorm::new(&scope.sub("layer_norm1"), width, eps),
            attention: ProjectedAttention::new(&scope.sub("self_attn"), width, heads)?,
            norm2: LayerNorm::new(&scope.sub("layer_norm2"), width, eps),
            mlp: FeedForward::new(&scope.sub("mlp"), config)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.attention.forward(&self.norm1.forward(x));
        &x + self.mlp.forward(&self.norm2.forward(&x))
    }
}

/// One learned query that attends to all patches.
#[derive(Debug)]
struct Head {
    probe: Tensor,
    attention: PackedAttention,
    norm: LayerNorm,
    mlp: FeedForward,
}

impl Head {
    fn new(scope: &Scope, config: &SiglipConfig) -> Result<Self, PolicyError> {
        let width = config.hidden_size;
        Ok(Self {
            probe: scope.param("probe", &[1, 1, width], Init::Normal { std: 1.0 }),
            attention: PackedAttention::new(
                &scope.sub("attention"),
                width,
                config.num_attention_heads,
            )?,
            norm: LayerNorm::new(&scope.sub("layernorm"), width, config.layer_norm_eps),
            mlp: FeedForward::new(&scope.sub("mlp"), config)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let probe = self.probe.repeat([x.size()[0], 1, 1]);
        let h = self.attention.forward(&probe, x);
        (&h + self.mlp.forward(&self.norm.forward(&h))).select(1, 0)
    }
}

/// What the tower says of a batch of images.
#[derive(Debug)]
pub struct SiglipOutput {
    /// One vector per patch, row by row, `[B, patches, W]`.
    pub last_hidden_state: Tensor,
    /// One vector per image, `[B, W]`; none without a head.
    pub pooler_output: Option<Tensor>,
}

/// The tower.
#[derive(Debug)]
pub struct SiglipVision {
    config: SiglipConfig,
    patches: Conv2d,
    positions: Tensor,
    layers: Rc<[Layer]>,
    norm: LayerNorm,
    head: Option<Head>,
    params: Params,
}

impl SiglipVision {
    /// New parameters in `scope`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] from [`SiglipConfig::validate`].
    pub fn new(scope: &Scope, config: SiglipConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let (width, patch) = (config.hidden_size, config.patch_size);
        let embeddings = scope.sub("embeddings");
        let patches = Conv2d::new(
            &embeddings.sub("patch_embedding"),
            config.num_channels,
            width,
            patch,
            patch,
            0,
            true,
        );
        let positions = embeddings.sub("position_embedding").param(
            "weight",
            &[config.patches(), width],
            Init::Normal { std: 1.0 / (width as f64).sqrt() },
        );
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::new(&scope.sub("encoder").sub("layers").sub(i), &config))
            .collect::<Result<_, _>>()?;
        let norm = LayerNorm::new(&scope.sub("post_layernorm"), width, config.layer_norm_eps);
        let head =
            config.vision_use_head.then(|| Head::new(&scope.sub("head"), &config)).transpose()?;
        Ok(Self { patches, positions, layers, norm, head, params: scope.params().clone(), config })
    }

    /// Reads `config.json` and the weights of `folder`.
    ///
    /// # Errors
    /// [`PolicyError::File`], [`PolicyError::Refused`] or [`PolicyError::Config`] naming the file, field or tensor.
    pub fn load(folder: &Path, device: Device) -> Result<Self, PolicyError> {
        let config = SiglipConfig::read(&folder.join("config.json"))?;
        Self::from_weights(config, &hf::read_weights(folder)?, device)
    }

    /// A tower with these weights, whatever stands before their names.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the first tensor that is missing, left over, or of another shape.
    pub fn from_weights(
        config: SiglipConfig,
        weights: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self, PolicyError> {
        let (_, mut weights) = hf::below_marker(weights, PATCHES)?;
        // A buffer in old checkpoints; the numbers 0, 1, ….
        weights.remove("embeddings.position_ids");
        weights.retain(|name, _| {
            let first = name.split('.').next().unwrap_or_default();
            ["embeddings", "encoder", "post_layernorm"].contains(&first)
                || (first == "head" && config.vision_use_head)
        });
        let params = Params::from_values(device, 0, weights);
        let tower = Self::new(&params.root(), config)?;
        params.complete()?;
        Ok(tower)
    }

    /// Its shape.
    pub fn config(&self) -> &SiglipConfig {
        &self.config
    }

    /// Its parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// `pixels [B, C, H, W]` f32, already normalised (mean and deviation 0.5 for the published checkpoints).
    ///
    /// # Errors
    /// [`PolicyError::Config`] for images of another size: position embeddings are not interpolated.
    pub fn forward(&self, pixels: &Tensor) -> Result<SiglipOutput, PolicyError> {
        let side = self.config.image_size;
        let size = pixels.size();
        if size.len() != 4 || size[1..] != [self.config.num_channels, side, side] {
            return Err(PolicyError::Config {
                detail: format!(
                    "siglip: images {size:?} are not [B, {}, {side}, {side}]; resize them",
                    self.config.num_channels
                ),
            });
        }
        let (last_hidden_state, pooler_output) = self.apply(pixels);
        Ok(SiglipOutput { last_hidden_state, pooler_output })
    }

    /// The same for images whose size was checked.
    pub(crate) fn apply(&self, pixels: &Tensor) -> (Tensor, Option<Tensor>) {
        let x = self.patches.forward(pixels).flatten(2, 3).transpose(1, 2) + &self.positions;
        let x = checkpoint::run(&self.params, &self.layers, x, Layer::forward);
        let last_hidden_state = self.norm.forward(&x.to_kind(Kind::Float));
        let pooler_output = self.head.as_ref().map(|head| head.forward(&last_hidden_state));
        (last_hidden_state, pooler_output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoiseStream;

    fn tiny() -> SiglipConfig {
        SiglipConfig {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 8,
            patch_size: 4,
            ..SiglipConfig::default()
        }
    }

    #[test]
    fn weights_load_with_and_without_a_prefix() {
        let params = Params::new(Device::Cpu, 0);
        let tower = SiglipVision::new(&params.root(), tiny()).unwrap();
        let x = NoiseStream::new(0).normal(&[2, 3, 8, 8], Device::Cpu);
        let y = tower.forward(&x).unwrap();
        assert_eq!(y.last_hidden_state.size(), [2, 4, 8]);
        let plain = params.snapshot();
        let hub: BTreeMap<_, _> =
            plain.iter().map(|(n, t)| (format!("vision_model.{n}"), t.shallow_clone())).collect();
        for weights in [&plain, &hub] {
            let other = SiglipVision::from_weights(tiny(), weights, Device::Cpu).unwrap();
            let z = other.forward(&x).unwrap();
            assert!(z.pooler_output.unwrap().equal(y.pooler_output.as_ref().unwrap()));
        }
        let headless = SiglipConfig { vision_use_head: false, ..tiny() };
        let other = SiglipVision::from_weights(headless, &plain, Device::Cpu).unwrap();
        assert!(other.forward(&x).unwrap().pooler_output.is_none());
    }

    #[test]
    fn a_wrong_head_count_or_image_is_named() {
        let wrong = SiglipConfig { num_attention_heads: 3, ..tiny() };
        assert!(wrong.validate().unwrap_err().to_string().contains("num_attention_heads"));
        let unknown = SiglipConfig { hidden_act: "laplace".to_owned(), ..tiny() };
        assert!(unknown.validate().unwrap_err().to_string().contains("laplace"));
        let params = Params::new(Device::Cpu, 0);
        let tower = SiglipVision::new(&params.root(), tiny()).unwrap();
        let error =
            tower.forward(&Tensor::zeros([1, 3, 9, 8], (Kind::Float, Device::Cpu))).unwrap_err();
        assert!(error.to_string().contains("[B, 3, 8, 8]"), "{error}");
    }

    #[test]
    fn a_layer_more_than_the_weights_have_is_named() {
        let params = Params::new(Device::Cpu, 0);
        SiglipVision::new(&params.root(), tiny()).unwrap();
        let more = SiglipConfig { num_hidden_layers: 3, ..tiny() };
        let error = SiglipVision::from_weights(more, &params.snapshot(), Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(error.contains("encoder.layers.2"), "{error}");
        let fewer = SiglipConfig { num_hidden_layers: 1, ..tiny() };
        let error = SiglipVision::from_weights(fewer, &params.snapshot(), Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(error.contains("encoder.layers.1"), "{error}");
    }

    #[test]
    fn the_two_tower_configuration_is_read_and_defaults_filled_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(
            &path,
            r#"{"model_type":"siglip","vision_config":{"image_size":384,"patch_size":14}}"#,
        )
        .unwrap();
        let config = SiglipConfig::read(&path).unwrap();
        assert_eq!((config.hidden_size, config.patches()), (768, 27 * 27));
        std::fs::write(&path, r#"{"hidden_size":"many"}"#).unwrap();
        assert!(SiglipConfig::read(&path).unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn bf16_stays_near_f32_and_checkpointing_equals_it() {
        let params = Params::new(Device::Cpu, 0);
        let tower = SiglipVision::new(&params.root(), tiny()).unwrap();
        let x = NoiseStream::new(0).normal(&[2, 3, 8, 8], Device::Cpu);
        let run = || {
            let loss = tower.forward(&x).unwrap().pooler_output.unwrap().square().sum(Kind::Float);
            for (_, tensor) in params.all() {
                tensor.shallow_clone().zero_grad();
            }
            params.backward(&loss);
            let grad = params.get("encoder.layers.0.mlp.fc1.weight").unwrap().grad().copy();
            let patch = params.get("embeddings.patch_embedding.weight").unwrap().grad().copy();
            (loss.double_value(&[]), grad, patch)
        };
        let plain = run();
        params.set_checkpointing(true);
        let again = run();
        assert_eq!(plain.0, again.0);
        assert!(plain.1.equal(&again.1) && plain.2.equal(&again.2));
        params.set_compute(Some(Kind::BFloat16));
        let rough = run();
        assert_eq!(rough.1.kind(), Kind::Float);
        assert!(
            rough.0 != plain.0 && (rough.0 / plain.0 - 1.0).abs() < 0.1,
            "{} {}",
            rough.0,
            plain.0
        );
    }
}
