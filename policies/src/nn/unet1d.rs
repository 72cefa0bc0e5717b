//! Diffusion Policy's 1-D U-Net over a chunk of actions (Chi et al. 2023, arXiv 2303.04137).
//!
//! Follows `conditional_unet1d.py` of the authors' code (real-stanford/diffusion_policy 5ba07ac): the same parameter
//! names, so their `model` weights load after their prefix is cut, and the same numbers.
//!
//! # Details
//! 1. Every block is convolution, group normalisation, Mish; two of them make a residual block.
//! 2. The condition (step embedding beside the observation) enters between the two as a scale and a shift per channel
//!    (FiLM), or as a shift alone where `cond_predict_scale` is false.
//! 3. Each level but the last halves time; *both* ends of the way up double it, because the reference compares the level
//!    with a count that it never reaches. The length of a chunk must therefore divide by `2^(levels − 1)`.
//! 4. Only the deepest `levels − 1` skip connections are used; the first level's is dropped, as in the reference.
//! 5. Mish of the condition is computed once per pass and shared; the reference repeats it in every residual block.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::transformer::sinusoidal;
use super::{Activation, Conv1d, ConvTranspose1d, GroupNorm, Linear, Scope};
use crate::PolicyError;

/// Groups in the last block, whatever `n_groups` says: the reference leaves its default there.
const FINAL_GROUPS: i64 = 8;

/// The shape of a [`Unet1d`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unet1dConfig {
    /// `D`, the width of one action.
    pub input_dim: i64,
    /// Width of the condition that is the same for the whole chunk.
    pub global_cond_dim: i64,
    /// Width of the embedding of the diffusion step, even.
    #[serde(default = "default_step_embed_dim")]
    pub step_embed_dim: i64,
    /// Channels per level.
    #[serde(default = "default_down_dims")]
    pub down_dims: Vec<i64>,
    /// Width of the convolutions, odd.
    #[serde(default = "default_kernel_size")]
    pub kernel_size: i64,
    /// Groups of the group normalisation.
    #[serde(default = "default_n_groups")]
    pub n_groups: i64,
    /// Whether the condition scales as well as shifts.
    #[serde(default = "default_cond_predict_scale")]
    pub cond_predict_scale: bool,
}

// diffusion_policy config/train_diffusion_unet_lowdim_workspace.yaml.
fn default_step_embed_dim() -> i64 {
    256
}
fn default_down_dims() -> Vec<i64> {
    vec![256, 512, 1024]
}
fn default_kernel_size() -> i64 {
    5
}
fn default_n_groups() -> i64 {
    8
}
fn default_cond_predict_scale() -> bool {
    true
}

impl Unet1dConfig {
    /// The low-dimensional preset of the paper's code (65.8 M parameters on PushT's state).
    pub fn new(input_dim: i64, global_cond_dim: i64) -> Self {
        Self {
            input_dim,
            global_cond_dim,
            step_embed_dim: default_step_embed_dim(),
            down_dims: default_down_dims(),
            kernel_size: default_kernel_size(),
            n_groups: default_n_groups(),
            cond_predict_scale: default_cond_predict_scale(),
        }
    }

    /// What the length of a chunk must divide by.
    pub fn stride(&self) -> i64 {
        1 << self.down_dims.len().saturating_sub(1)
    }

    /// Checks what belongs together.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let fail =
            |detail: String| Err(PolicyError::Config { detail: format!("unet1d: {detail}") });
        if self.input_dim < 1 || self.global_cond_dim < 0 {
            return fail("input_dim must be at least 1 and global_cond_dim at least 0".to_owned());
        }
        if self.step_embed_dim < 4 || self.step_embed_dim % 2 != 0 {
            return fail(format!(
                "step_embed_dim = {} must be even, 4 or more",
                self.step_embed_dim
            ));
        }
        if self.down_dims.is_empty() || self.down_dims.len() > 16 {
            return fail("down_dims needs 1 to 16 levels".to_owned());
        }
        if self.kernel_size < 1 || self.kernel_size % 2 == 0 {
            return fail(format!("kernel_size = {} must be odd", self.kernel_size));
        }
        if self.n_groups < 1 {
            return fail(format!("n_groups = {} must be at least 1", self.n_groups));
        }
        if let Some(dim) = self.down_dims.iter().find(|&&d| d < 1 || d % self.n_groups != 0) {
            return fail(format!(
                "down_dims has {dim}, which n_groups = {} does not divide",
                self.n_groups
            ));
        }
        if self.down_dims[0] % FINAL_GROUPS != 0 {
            return fail(format!(
                "down_dims[0] = {} must divide by {FINAL_GROUPS}",
                self.down_dims[0]
            ));
        }
        Ok(())
    }

    /// Reads the shape off a checkpoint's tensors; `n_groups` leaves no trace in them and is given.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the first tensor that is missing or has another shape than its neighbours allow.
    pub fn infer(tensors: &BTreeMap<String, Tensor>, n_groups: i64) -> Result<Self, PolicyError> {
        let shape = |name: &str, rank: usize| match tensors.get(name).map(Tensor::size) {
            Some(size) if size.len() == rank => Ok(size),
            Some(size) => Err(PolicyError::Config {
                detail: format!("unet1d: `{name}` has shape {size:?}, expected {rank} dimensions"),
            }),
            None => Err(PolicyError::Config { detail: format!("unet1d: `{name}` is missing") }),
        };
        let step_embed_dim = shape("diffusion_step_encoder.1.weight", 2)?[1];
        let first = shape("down_modules.0.0.blocks.0.block.0.weight", 3)?;
        let mut down_dims = Vec::new();
        while tensors
            .contains_key(&format!("down_modules.{}.0.blocks.0.block.0.weight", down_dims.len()))
        {
            let name = format!("down_modules.{}.0.blocks.0.block.0.weight", down_dims.len());
            down_dims.push(shape(&name, 3)?[0]);
        }
        let cond = shape("down_modules.0.0.cond_encoder.1.weight", 2)?;
        let config = Self {
            input_dim: first[1],
            global_cond_dim: cond[1] - step_embed_dim,
            step_embed_dim,
            cond_predict_scale: cond[0] == 2 * down_dims[0],
            down_dims,
            kernel_size: first[2],
            n_groups,
        };
        config.validate()?;
        Ok(config)
    }
}

/// Convolution, group normalisation, Mish.
#[derive(Debug)]
struct ConvBlock {
    conv: Conv1d,
    norm: GroupNorm,
}

impl ConvBlock {
    fn new(scope: &Scope, inputs: i64, outputs: i64, kernel: i64, groups: i64) -> Self {
        let scope = scope.sub("block");
        Self {
            conv: Conv1d::new(&scope.sub(0), inputs, outputs, kernel, 1, kernel / 2),
            norm: GroupNorm::new(&scope.sub(1), groups, outputs),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.norm.forward(&self.conv.forward(x)).mish()
    }
}

/// Two [`ConvBlock`]s with the condition between them and a shortcut around them.
#[derive(Debug)]
struct ResidualBlock {
    blocks: [ConvBlock; 2],
    cond_encoder: Linear,
    shortcut: Option<Conv1d>,
    scales: bool,
    outputs: i64,
}

impl ResidualBlock {
    fn new(scope: &Scope, inputs: i64, outputs: i64, config: &Unet1dConfig) -> Self {
        let (kernel, groups) = (config.kernel_size, config.n_groups);
        let blocks = scope.sub("blocks");
        let cond_dim = config.step_embed_dim + config.global_cond_dim;
        let cond_channels = if config.cond_predict_scale { 2 * outputs } else { outputs };
        Self {
            blocks: [
                ConvBlock::new(&blocks.sub(0), inputs, outputs, kernel, groups),
                ConvBlock::new(&blocks.sub(1), outputs, outputs, kernel, groups),
            ],
            cond_encoder: Linear::new(&scope.sub("cond_encoder").sub(1), cond_dim, cond_channels),
            shortcut: (inputs != outputs)
                .then(|| Conv1d::new(&scope.sub("residual_conv"), inputs, outputs, 1, 1, 0)),
            scales: config.cond_predict_scale,
            outputs,
        }
    }

    /// `x [B, C, T]`; `cond [B, G]` has been through Mish.
    fn forward(&self, x: &Tensor, cond: &Tensor) -> Tensor {
        let y = self.blocks[0].forward(x);
        let embed = self.cond_encoder.forward(cond).unsqueeze(-1);
        let y = if self.scales {
            let shift = embed.narrow(1, self.outputs, self.outputs);
            embed.narrow(1, 0, self.outputs) * y + shift
        } else {
            y + embed
        };
        let y = self.blocks[1].forward(&y);
        match &self.shortcut {
            Some(conv) => y + conv.forward(x),
            None => y + x,
        }
    }
}

/// The network: noisy chunk, diffusion step and observation in, noise (or clean chunk) out.
#[derive(Debug)]
pub struct Unet1d {
    step_encoder: [Linear; 2],
    down: Vec<([ResidualBlock; 2], Option<Conv1d>)>,
    mid: [ResidualBlock; 2],
    up: Vec<([ResidualBlock; 2], ConvTranspose1d)>,
    final_block: ConvBlock,
    final_conv: Conv1d,
    config: Unet1dConfig,
}

impl Unet1d {
    /// New parameters in `scope`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] from [`Unet1dConfig::validate`].
    pub fn new(scope: &Scope, config: Unet1dConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let embed = config.step_embed_dim;
        let step = scope.sub("diffusion_step_encoder");
        let step_encoder = [
            Linear::new(&step.sub(1), embed, 4 * embed),
            Linear::new(&step.sub(3), 4 * embed, embed),
        ];
        let dims = &config.down_dims;
        let pair = |scope: &Scope, inputs, outputs| {
            [
                ResidualBlock::new(&scope.sub(0), inputs, outputs, &config),
                ResidualBlock::new(&scope.sub(1), outputs, outputs, &config),
            ]
        };
        let down = (0..dims.len())
            .map(|i| {
                let scope = scope.sub("down_modules").sub(i);
                let inputs = if i == 0 { config.input_dim } else { dims[i - 1] };
                let half = (i + 1 < dims.len())
                    .then(|| Conv1d::new(&scope.sub(2).sub("conv"), dims[i], dims[i], 3, 2, 1));
                (pair(&scope, inputs, dims[i]), half)
            })
            .collect();
        let deepest = dims[dims.len() - 1];
        let mid = pair(&scope.sub("mid_modules"), deepest, deepest);
        let up = (1..dims.len())
            .rev()
            .enumerate()
            .map(|(i, level)| {
                let scope = scope.sub("up_modules").sub(i);
                let (inputs, outputs) = (2 * dims[level], dims[level - 1]);
                let double =
                    ConvTranspose1d::new(&scope.sub(2).sub("conv"), outputs, outputs, 4, 2, 1);
                (pair(&scope, inputs, outputs), double)
            })
            .collect();
        let last = scope.sub("final_conv");
        let final_block =
            ConvBlock::new(&last.sub(0), dims[0], dims[0], config.kernel_size, FINAL_GROUPS);
        let final_conv = Conv1d::new(&last.sub(1), dims[0], config.input_dim, 1, 1, 0);
        Ok(Self { step_encoder, down, mid, up, final_block, final_conv, config })
    }

    /// Its shape.
    pub fn config(&self) -> &Unet1dConfig {
        &self.config
    }

    /// `sample [B, T_p, D]` f32, `steps [B]` i64, `cond [B, G]` f32; returns `[B, T_p, D]`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for shapes that do not fit.
    pub fn forward(
        &self,
        sample: &Tensor,
        steps: &Tensor,
        cond: &Tensor,
    ) -> Result<Tensor, PolicyError> {
        self.check(sample, steps, cond)?;
        let [first, second] = &self.step_encoder;
        let embed = sinusoidal(steps, self.config.step_embed_dim);
        let embed = second.forward(&Activation::Mish.apply(&first.forward(&embed)));
        let cond = Tensor::cat(&[embed, cond.shallow_clone()], -1).mish();

        let mut x = sample.transpose(1, 2);
        let mut skips = Vec::with_capacity(self.down.len());
        for ([a, b], half) in &self.down {
            x = b.forward(&a.forward(&x, &cond), &cond);
            if let Some(half) = half {
                let shorter = half.forward(&x);
                skips.push(x);
                x = shorter;
            } else {
                skips.push(x.shallow_clone());
            }
        }
        for block in &self.mid {
            x = block.forward(&x, &cond);
        }
        for (([a, b], double), skip) in self.up.iter().zip(skips.into_iter().rev()) {
            x = b.forward(&a.forward(&Tensor::cat(&[x, skip], 1), &cond), &cond);
            x = double.forward(&x);
        }
        Ok(self.final_conv.forward(&self.final_block.forward(&x)).transpose(1, 2))
    }

    fn check(&self, sample: &Tensor, steps: &Tensor, cond: &Tensor) -> Result<(), PolicyError> {
        let (s, t, c) = (sample.size(), steps.size(), cond.size());
        let fits = s.len() == 3
            && s[2] == self.config.input_dim
            && s[1] > 0
            && s[1] % self.config.stride() == 0
            && t == [s[0]]
            && c == [s[0], self.config.global_cond_dim];
        if fits {
            return Ok(());
        }
        Err(PolicyError::Config {
            detail: format!(
                "unet1d: sample {s:?}, steps {t:?}, cond {c:?} do not fit [B, T_p, {}] with T_p a multiple of {}, [B], [B, {}]",
                self.config.input_dim,
                self.config.stride(),
                self.config.global_cond_dim
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    use crate::nn::Params;

    fn config() -> Unet1dConfig {
        Unet1dConfig {
            step_embed_dim: 16,
            down_dims: vec![8, 16, 24],
            kernel_size: 3,
            ..Unet1dConfig::new(3, 5)
        }
    }

    #[test]
    fn infer_finds_the_shape_that_was_built() {
        for scale in [true, false] {
            let config = Unet1dConfig { cond_predict_scale: scale, ..config() };
            let params = Params::new(Device::Cpu, 0);
            Unet1d::new(&params.root(), config.clone()).unwrap();
            assert_eq!(Unet1dConfig::infer(&params.snapshot(), 8).unwrap(), config);
        }
    }

    #[test]
    fn the_low_dimensional_preset_has_the_papers_size() {
        // PushT's state policy: 2 actions, 2 observations of 9 keypoints (x, y) and the pusher: 65.8 M in the paper's
        // table; counted from the authors' code.
        let config = Unet1dConfig::new(2, 40);
        let params = Params::new(Device::Cpu, 0);
        Unet1d::new(&params.root(), config).unwrap();
        let millions = params.count().0 as f64 / 1e6;
        assert!((65.0..66.6).contains(&millions), "{millions}");
    }

    #[test]
    fn gradients_reach_every_parameter() {
        let params = Params::new(Device::Cpu, 0);
        let net = Unet1d::new(&params.root(), config()).unwrap();
        let x = Tensor::ones([2, 8, 3], (Kind::Float, Device::Cpu));
        let t = Tensor::from_slice(&[3i64, 70]);
        let cond = Tensor::ones([2, 5], (Kind::Float, Device::Cpu));
        let y = net.forward(&x, &t, &cond).unwrap();
        assert_eq!(y.size(), [2, 8, 3]);
        y.square().sum(Kind::Float).backward();
        for (name, tensor) in params.all() {
            let grad = tensor.grad();
            assert!(
                grad.defined() && grad.abs().sum(Kind::Float).double_value(&[]) > 0.0,
                "{name}"
            );
        }
    }

    #[test]
    fn a_chunk_that_cannot_be_halved_is_refused() {
        let params = Params::new(Device::Cpu, 0);
        let net = Unet1d::new(&params.root(), config()).unwrap();
        let t = Tensor::from_slice(&[3i64]);
        let cond = Tensor::ones([1, 5], (Kind::Float, Device::Cpu));
        let x = Tensor::ones([1, 6, 3], (Kind::Float, Device::Cpu));
        let error = net.forward(&x, &t, &cond).unwrap_err().to_string();
        assert!(error.contains("multiple of 4"), "{error}");
        let odd = Unet1dConfig { kernel_size: 4, ..config() };
        assert!(odd.validate().unwrap_err().to_string().contains("kernel_size"));
        let groups = Unet1dConfig { down_dims: vec![8, 12], ..config() };
        assert!(groups.validate().unwrap_err().to_string().contains("n_groups"));
    }
}
