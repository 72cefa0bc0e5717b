//! Layers: linear, convolutions, norms, embedding, activations. Names and initial values are PyTorch's.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::lora::Lora;
use super::runtime::RuntimeRef;
use super::{Init, Scope};

/// An element-wise non-linearity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    #[default]
    Relu,
    /// x Φ(x), exact.
    Gelu,
    /// The tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
    /// x σ(x).
    Silu,
    /// x tanh(softplus(x)).
    Mish,
    /// tanh.
    Tanh,
    /// x σ(1.702 x) (CLIP's `quick_gelu`).
    QuickGelu,
}

impl Activation {
    /// Applies it.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Relu => x.relu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Silu => x.silu(),
            Self::Mish => x.mish(),
            Self::Tanh => x.tanh(),
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
        }
    }

    /// The same for what nobody else holds: in place where the derivative does not need it.
    pub fn consume(self, x: Tensor) -> Tensor {
        match self {
            Self::Relu => {
                let mut x = x;
                x.relu_()
            }
            other => other.apply(&x),
        }
    }

    /// Whether the output tells the slope; otherwise the input does.
    pub(super) fn knows_its_slope(self) -> bool {
        matches!(self, Self::Relu | Self::Tanh)
    }

    /// From the gradient of the output to that of the input, by autograd's kernels; `seen` is the output if
    /// [`Self::knows_its_slope`], else the input.
    pub(super) fn back(self, grad: &Tensor, seen: &Tensor) -> Tensor {
        match self {
            Self::Relu => seen.threshold_backward(grad, 0.0),
            Self::Gelu => seen.gelu_backward(grad, "none"),
            Self::GeluTanh => seen.gelu_backward(grad, "tanh"),
            Self::Silu => seen.silu_backward(grad),
            Self::Mish => seen.mish_backward(grad),
            Self::Tanh => Tensor::tanh_backward(grad, seen),
            Self::QuickGelu => {
                let gate = (seen * 1.702).sigmoid();
                grad * (&gate + seen * 1.702 * &gate * (1.0 - &gate))
            }
        }
    }
}

/// `y = x Wᵀ + b`, `[.., in] -> [.., out]`, and an adapter's part if [`super::lora`] gave it one.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    lora: Option<Lora>,
    compute: Option<Kind>,
    runtime: RuntimeRef,
}

impl Linear {
    /// With a bias, PyTorch's initial values.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64) -> Self {
        Self::with_init(scope, inputs, outputs, Init::FanIn, true)
    }

    /// Without a bias.
    pub fn without_bias(scope: &Scope, inputs: i64, outputs: i64) -> Self {
        Self::with_init(scope, inputs, outputs, Init::FanIn, false)
    }

    /// With weights that begin as `init`; the bias begins at zero unless `init` is [`Init::FanIn`].
    pub fn with_init(scope: &Scope, inputs: i64, outputs: i64, init: Init, bias: bool) -> Self {
        let weight = scope.param("weight", &[outputs, inputs], init);
        let bias_init = match init {
            Init::FanIn => Init::Uniform { bound: 1.0 / (inputs.max(1) as f64).sqrt() },
            _ => Init::Zeros,
        };
        let bias = bias.then(|| scope.param("bias", &[outputs], bias_init));
        let lora = Lora::new(scope, inputs, outputs);
        Self { weight, bias, lora, compute: None, runtime: scope.params().runtime() }
    }

    /// Whether this layer computes in bf16, whatever the others do ([`Params::set_compute`]): its parameters stay f32, what it
    /// returns is bf16.
    ///
    /// [`Params::set_compute`]: super::Params::set_compute
    #[must_use]
    pub fn in_bf16(mut self, on: bool) -> Self {
        self.compute = on.then_some(Kind::BFloat16);
        self
    }

    /// What this layer computes in.
    pub(super) fn kind(&self) -> Kind {
        self.compute.or(self.runtime.compute.get()).unwrap_or(self.weight.kind())
    }

    /// Whether it is `x Wᵀ + b` and nothing else.
    pub(super) fn is_plain(&self) -> bool {
        self.lora.is_none()
    }

    /// `[.., in] -> [.., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let compute = self.compute.or(self.runtime.compute.get());
        let y = match compute {
            Some(kind) => {
                let bias = self.bias.as_ref().map(|b| b.to_kind(kind));
                x.to_kind(kind).linear(&self.weight.to_kind(kind), bias.as_ref())
            }
            None => x.linear(&self.weight, self.bias.as_ref()),
        };
        match self.lora.as_ref().and_then(|lora| lora.forward(x, compute, &self.runtime)) {
            Some(delta) => y + delta,
            None => y,
        }
    }
}

/// Layer normalisation over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f64,
}

impl LayerNorm {
    /// Over `width` numbers.
    pub fn new(scope: &Scope, width: i64, eps: f64) -> Self {
        Self {
            weight: scope.param("weight", &[width], Init::Ones),
            bias: scope.param("bias", &[width], Init::Zeros),
            eps,
        }
    }

    /// `[.., W] -> [.., W]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.to_kind(self.weight.kind());
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

/// Group normalisation over channels, `[B, C, ..]`.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    compute: Option<Kind>,
}

impl GroupNorm {
    /// `channels` in `groups`, eps 1e-5.
    pub fn new(scope: &Scope, groups: i64, channels: i64) -> Self {
        Self {
            weight: scope.param("weight", &[channels], Init::Ones),
            bias: scope.param("bias", &[channels], Init::Zeros),
            groups,
            compute: None,
        }
    }

    /// Whether this layer computes in bf16, its sums in f32; parameters stay f32, what it returns is bf16.
    #[must_use]
    pub fn in_bf16(mut self, on: bool) -> Self {
        self.compute = on.then_some(Kind::BFloat16);
        self
    }

    /// `[B, C, ..] -> [B, C, ..]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = self.compute.unwrap_or(self.weight.kind());
        let (weight, bias) = (self.weight.to_kind(kind), self.bias.to_kind(kind));
        x.to_kind(kind).group_norm(self.groups, Some(&weight), Some(&bias), 1e-5, false)
    }
}

/// Root-mean-square normalisation over the last dimension (Zhang & Sennrich 2019), in the order of Llama's code.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Over `width` numbers.
    pub fn new(scope: &Scope, width: i64, eps: f64) -> Self {
        Self { weight: scope.param("weight", &[width], Init::Ones), eps }
    }

    /// `[.., W] -> [.., W]`, f32.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.to_kind(Kind::Float);
        let variance = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
        &self.weight * (&x * (variance + self.eps).rsqrt())
    }
}

/// Input, weight and bias in the number type that layers compute in.
fn cast(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    compute: Option<Kind>,
) -> (Tensor, Tensor, Option<Tensor>) {
    match compute {
        Some(kind) => (x.to_kind(kind), weight.to_kind(kind), bias.map(|b| b.to_kind(kind))),
        None => (x.shallow_clone(), weight.shallow_clone(), bias.map(Tensor::shallow_clone)),
    }
}

/// 1-D convolution, `[B, C, T]`.
#[derive(Debug)]
pub struct Conv1d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    runtime: RuntimeRef,
}

impl Conv1d {
    /// `inputs -> outputs` channels.
    pub fn new(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Self {
        let bound = 1.0 / ((inputs * kernel) as f64).sqrt();
        Self {
            weight: scope.param("weight", &[outputs, inputs, kernel], Init::FanIn),
            bias: scope.param("bias", &[outputs], Init::Uniform { bound }),
            stride,
            padding,
            runtime: scope.params().runtime(),
        }
    }

    /// `[B, C_in, T] -> [B, C_out, T']`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (x, w, b) = cast(x, &self.weight, Some(&self.bias), self.runtime.compute.get());
        x.conv1d(&w, b.as_ref(), self.stride, self.padding, 1, 1)
    }
}

/// 1-D transposed convolution, `[B, C, T]`.
#[derive(Debug)]
pub struct ConvTranspose1d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    runtime: RuntimeRef,
}

impl ConvTranspose1d {
    /// `inputs -> outputs` channels; the weight is `[in, out, kernel]`.
    pub fn new(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Self {
        let bound = 1.0 / ((outputs * kernel) as f64).sqrt();
        Self {
            weight: scope.param("weight", &[inputs, outputs, kernel], Init::FanIn),
            bias: scope.param("bias", &[outputs], Init::Uniform { bound }),
            stride,
            padding,
            runtime: scope.params().runtime(),
        }
    }

    /// `[B, C_in, T] -> [B, C_out, T']`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (x, w, b) = cast(x, &self.weight, Some(&self.bias), self.runtime.compute.get());
        x.conv_transpose1d(&w, b.as_ref(), self.stride, self.padding, 0, 1, 1)
    }
}

/// 2-D convolution, `[B, C, H, W]`.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    compute: Option<Kind>,
    runtime: RuntimeRef,
}

impl Conv2d {
    /// `inputs -> outputs` channels.
    pub fn new(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
        bias: bool,
    ) -> Self {
        let bound = 1.0 / ((inputs * kernel * kernel) as f64).sqrt();
        Self {
            weight: scope.param("weight", &[outputs, inputs, kernel, kernel], Init::FanIn),
            bias: bias.then(|| scope.param("bias", &[outputs], Init::Uniform { bound })),
            stride,
            padding,
            compute: None,
            runtime: scope.params().runtime(),
        }
    }

    /// Without a bias; weights normal with variance `2 / (outputs · kernel²)` (He et al. 2015, fan-out), as torchvision's
    /// ResNet.
    pub fn he_fan_out(
        scope: &Scope,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Self {
        let std = (2.0 / (outputs * kernel * kernel) as f64).sqrt();
        let shape = [outputs, inputs, kernel, kernel];
        let weight = scope.param("weight", &shape, Init::Normal { std });
        let runtime = scope.params().runtime();
        Self { weight, bias: None, stride, padding, compute: None, runtime }
    }

    /// Whether this layer computes in bf16; as [`Linear::in_bf16`].
    #[must_use]
    pub fn in_bf16(mut self, on: bool) -> Self {
        self.compute = on.then_some(Kind::BFloat16);
        self
    }

    /// `[B, C_in, H, W] -> [B, C_out, H', W']`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (s, p) = ([self.stride; 2], [self.padding; 2]);
        let compute = self.compute.or(self.runtime.compute.get());
        let (x, w, b) = cast(x, &self.weight, self.bias.as_ref(), compute);
        x.conv2d(&w, b.as_ref(), s, p, [1, 1], 1)
    }
}

/// A table of vectors.
#[derive(Debug)]
pub struct Embedding {
    /// `[N, W]`.
    pub weight: Tensor,
    padding: Option<i64>,
}

impl Embedding {
    /// `count` rows of `width`; the row `padding` gets no gradient (as in PyTorch).
    pub fn new(scope: &Scope, count: i64, width: i64, padding: Option<i64>) -> Self {
        Self { weight: scope.param("weight", &[count, width], Init::Normal { std: 0.02 }), padding }
    }

    /// `[..] i64 -> [.., W]`.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, ids, self.padding.unwrap_or(-1), false, false)
    }
}
