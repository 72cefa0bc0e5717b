//! Denoisers: a noisy chunk, a noise level and a context in; what the head asked for out.
//!
//! | kind | what | source |
//! |---|---|---|
//! | `mlp` | pre-norm residual MLP over the flattened chunk; by far the cheapest per sample | the residual denoiser of DPPO (Ren et al. 2024, arXiv 2409.00588, appendix) with LayerNorm before each block |
//! | `unet1d` | convolutions over time, conditioned by FiLM | Chi et al. 2023, arXiv 2303.04137; see [`crate::nn::unet1d`] |
//! | `transformer` | one token per action, cross-attention to the context's tokens | the same paper, its DP-T, pre-norm |

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::HeadShape;
use crate::PolicyError;
use crate::fusion::Context;
use crate::nn::transformer::sinusoidal;
use crate::nn::unet1d::{Unet1d, Unet1dConfig};
use crate::nn::{Activation, DecoderLayer, Init, LayerNorm, Linear, Mlp, Scope, TransformerConfig};

/// A noisy chunk in, noise, sample or velocity out.
pub trait Denoiser {
    /// `x` is `[B, T_p, D]`, `level` is `[B]` f32 in `[0, 100]` (a diffusion step, or 100 t for flows). Returns
    /// `[B, T_p, D]`.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    fn forward(&self, x: &Tensor, level: &Tensor, context: &Context)
    -> Result<Tensor, PolicyError>;
}

/// Which denoiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DenoiserConfig {
    /// Residual MLP.
    Mlp {
        /// Width of the residual stream.
        #[serde(default = "mlp_width")]
        width: i64,
        /// Residual blocks.
        #[serde(default = "mlp_blocks")]
        blocks: i64,
        /// Width inside a block, as a multiple of `width`.
        #[serde(default = "mlp_expansion")]
        expansion: i64,
        /// Width of the noise level's embedding.
        #[serde(default = "mlp_embedding")]
        step_embed_dim: i64,
        /// Multiply the blocks' matrices in bfloat16 (weights stay f32).
        #[serde(default)]
        bf16: bool,
    },
    /// ConditionalUnet1D.
    Unet1d {
        /// Channels per level.
        #[serde(default = "unet_dims")]
        down_dims: Vec<i64>,
        /// Width of the noise level's embedding.
        #[serde(default = "unet_embedding")]
        step_embed_dim: i64,
        /// Kernel size of the convolutions.
        #[serde(default = "unet_kernel")]
        kernel_size: i64,
        /// Groups of the group norms.
        #[serde(default = "unet_groups")]
        n_groups: i64,
    },
    /// Transformer decoder over the chunk.
    Transformer {
        /// Token width.
        #[serde(default = "transformer_width")]
        width: i64,
        /// Blocks.
        #[serde(default = "transformer_layers")]
        layers: i64,
        /// Attention heads.
        #[serde(default = "transformer_heads")]
        heads: i64,
    },
}

fn mlp_width() -> i64 {
    512
}
fn mlp_blocks() -> i64 {
    4
}
fn mlp_expansion() -> i64 {
    2
}
fn mlp_embedding() -> i64 {
    64
}
fn unet_dims() -> Vec<i64> {
    vec![256, 512, 1024] // diffusion_policy 5ba07ac, low-dim PushT
}
fn unet_embedding() -> i64 {
    256 // the same config
}
fn unet_kernel() -> i64 {
    5
}
fn unet_groups() -> i64 {
    8
}
fn transformer_width() -> i64 {
    256 // diffusion_policy 5ba07ac, TransformerForDiffusion, low-dim PushT
}
fn transformer_layers() -> i64 {
    8
}
fn transformer_heads() -> i64 {
    4
}

impl Default for DenoiserConfig {
    fn default() -> Self {
        Self::Mlp {
            width: mlp_width(),
            blocks: mlp_blocks(),
            expansion: mlp_expansion(),
            step_embed_dim: mlp_embedding(),
            bf16: false,
        }
    }
}

impl DenoiserConfig {
    /// Builds it below `scope`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for numbers that do not fit together.
    pub fn build(&self, scope: &Scope, shape: HeadShape) -> Result<Box<dyn Denoiser>, PolicyError> {
        shape.validate()?;
        let chunk = (shape.chunk_size, shape.action_dim);
        Ok(match *self {
            Self::Mlp { width, blocks, expansion, step_embed_dim, bf16 } => {
                if width < 1 || blocks < 1 || expansion < 1 || step_embed_dim < 4 {
                    return Err(PolicyError::Config {
                        detail: format!(
                            "build an MLP denoiser of width {width}, {blocks} blocks, expansion {expansion}, \
                             step_embed_dim {step_embed_dim}: all must be positive, the last at least 4"
                        ),
                    });
                }
                Box::new(MlpDenoiser::new(
                    scope,
                    chunk,
                    shape.pooled_width,
                    [width, blocks, expansion, step_embed_dim],
                    bf16,
                ))
            }
            Self::Transformer { width, layers, heads } => Box::new(TransformerDenoiser::new(
                scope,
                chunk,
                shape.token_width,
                [width, layers, heads],
            )?),
            Self::Unet1d { ref down_dims, step_embed_dim, kernel_size, n_groups } => {
                let config = Unet1dConfig {
                    step_embed_dim,
                    down_dims: down_dims.clone(),
                    kernel_size,
                    n_groups,
                    ..Unet1dConfig::new(shape.action_dim, shape.pooled_width)
                };
                Box::new(UnetDenoiser(Unet1d::new(scope, config)?))
            }
        })
    }
}

/// [`Unet1d`] conditioned on the pooled context.
#[derive(Debug)]
struct UnetDenoiser(Unet1d);

impl Denoiser for UnetDenoiser {
    fn forward(
        &self,
        x: &Tensor,
        level: &Tensor,
        context: &Context,
    ) -> Result<Tensor, PolicyError> {
        self.0.forward(x, level, &context.pooled)
    }
}

/// `x + W₂ silu(W₁ norm(x))`; `W₂` begins at zero, so that every block begins as the identity.
#[derive(Debug)]
struct ResidualBlock {
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl ResidualBlock {
    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.norm.forward(x);
        x + self.fc2.forward(&self.fc1.forward(&h).silu()).to_kind(Kind::Float)
    }
}

/// The chunk, the context and the level, concatenated, through residual blocks.
#[derive(Debug)]
struct MlpDenoiser {
    input: Linear,
    blocks: Vec<ResidualBlock>,
    norm: LayerNorm,
    output: Linear,
    step_embed_dim: i64,
    chunk: (i64, i64),
}

impl MlpDenoiser {
    fn new(
        scope: &Scope,
        chunk: (i64, i64),
        context: i64,
        [width, blocks, expansion, step_embed_dim]: [i64; 4],
        bf16: bool,
    ) -> Self {
        let flat = chunk.0 * chunk.1;
        let step_embed_dim = step_embed_dim / 2 * 2;
        let block = |i: i64| {
            let scope = scope.sub("blocks").sub(i);
            ResidualBlock {
                norm: LayerNorm::new(&scope.sub("norm"), width, 1e-5),
                fc1: Linear::new(&scope.sub("fc1"), width, width * expansion).in_bf16(bf16),
                fc2: Linear::with_init(
                    &scope.sub("fc2"),
                    width * expansion,
                    width,
                    Init::Zeros,
                    true,
                )
                .in_bf16(bf16),
            }
        };
        Self {
            input: Linear::new(&scope.sub("input"), flat + context + step_embed_dim, width),
            blocks: (0..blocks).map(block).collect(),
            norm: LayerNorm::new(&scope.sub("norm"), width, 1e-5),
            output: Linear::with_init(&scope.sub("output"), width, flat, Init::Zeros, true),
            step_embed_dim,
            chunk,
        }
    }
}

impl Denoiser for MlpDenoiser {
    fn forward(
        &self,
        x: &Tensor,
        level: &Tensor,
        context: &Context,
    ) -> Result<Tensor, PolicyError> {
        let level = sinusoidal(level, self.step_embed_dim);
        let mut h =
            self.input.forward(&Tensor::cat(&[&x.flatten(1, 2), &context.pooled, &level], 1));
        for block in &self.blocks {
            h = block.forward(&h);
        }
        let (t, d) = self.chunk;
        Ok(self.output.forward(&self.norm.forward(&h)).view([-1, t, d]))
    }
}

/// One token per action; the level and the context are the memory.
#[derive(Debug)]
struct TransformerDenoiser {
    input: Linear,
    positions: Tensor,
    level: Mlp,
    memory: Linear,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    output: Linear,
    width: i64,
}

impl TransformerDenoiser {
    fn new(
        scope: &Scope,
        (t, d): (i64, i64),
        token_width: i64,
        [width, layers, heads]: [i64; 3],
    ) -> Result<Self, PolicyError> {
        if width < 4 || layers < 1 {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a transformer denoiser of width {width} and {layers} layers: at least 4 and 1"
                ),
            });
        }
        let config = TransformerConfig {
            width,
            heads,
            feed_forward: 4 * width,
            ..TransformerConfig::default()
        };
        config.validate()?;
        Ok(Self {
            input: Linear::new(&scope.sub("input"), d, width),
            positions: scope.param("positions", &[1, t, width], Init::Normal { std: 0.02 }),
            level: Mlp::new(&scope.sub("level"), &[width, width, width], Activation::Silu),
            memory: Linear::new(&scope.sub("memory"), token_width, width),
            layers: DecoderLayer::stack(&scope.sub("layers"), &config, width, layers as usize),
            norm: LayerNorm::new(&scope.sub("norm"), width, 1e-5),
            output: Linear::with_init(&scope.sub("output"), width, d, Init::Zeros, true),
            width,
        })
    }
}

impl Denoiser for TransformerDenoiser {
    fn forward(
        &self,
        x: &Tensor,
        level: &Tensor,
        context: &Context,
    ) -> Result<Tensor, PolicyError> {
        let level = self.level.forward(&sinusoidal(level, self.width / 2 * 2)).unsqueeze(1);
        let memory = Tensor::cat(&[&level, &self.memory.forward(&context.tokens)], 1);
        let mut h = self.input.forward(x) + &self.positions;
        for layer in &self.layers {
            h = layer.forward(&h, &memory, None);
        }
        Ok(self.output.forward(&self.norm.forward(&h)))
    }
}
