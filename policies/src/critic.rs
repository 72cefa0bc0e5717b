//! Critics: what a state is worth, and what a chunk of actions in it is.
//!
//! A critic sees through a [`Perception`] of its own, built like the policy's, so that neither disturbs the other's
//! features; an MLP reads its pooled context.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::nn::{Activation, LayerNorm, Linear, Params, Scope};
use crate::vla::{Perception, VlaPolicy};
use crate::{ObsBatch, PolicyError};

/// A critic's network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CriticConfig {
    /// Widths of the hidden layers.
    pub hidden: Vec<i64>,
    /// Between layers.
    pub activation: Activation,
    /// LayerNorm before each activation: keeps Q-functions from running away on actions that nobody tried (RLPD, Ball et
    /// al. 2023, arXiv 2302.02948).
    pub layer_norm: bool,
    /// Layers between hidden ones multiply in bf16, their parameters stay f32: faster on a CPU with AMX or on a GPU.
    pub bf16: bool,
}

impl Default for CriticConfig {
    fn default() -> Self {
        Self {
            hidden: vec![256, 256],
            activation: Activation::Silu,
            layer_norm: false,
            bf16: false,
        }
    }
}

/// Layers to one number per row.
struct Tower {
    layers: Vec<(Linear, Option<LayerNorm>)>,
    activation: Activation,
}

impl Tower {
    fn new(scope: &Scope, config: &CriticConfig, inputs: i64) -> Result<Self, PolicyError> {
        if config.hidden.iter().any(|&w| w < 1) {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a critic of widths {:?}: all must be positive",
                    config.hidden
                ),
            });
        }
        let mut layers = Vec::new();
        let mut width = inputs;
        for (i, &next) in config.hidden.iter().chain(&[1]).enumerate() {
            let scope = scope.sub(i);
            let between = i > 0 && i < config.hidden.len();
            let linear = Linear::new(&scope, width, next).in_bf16(config.bf16 && between);
            let norm = (config.layer_norm && i < config.hidden.len())
                .then(|| LayerNorm::new(&scope.sub("norm"), next, 1e-5));
            layers.push((linear, norm));
            width = next;
        }
        Ok(Self { layers, activation: config.activation })
    }

    /// `[B, inputs]` to `[B]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        let last = self.layers.len() - 1;
        for (i, (linear, norm)) in self.layers.iter().enumerate() {
            x = linear.forward(&x);
            if i < last {
                if let Some(norm) = norm {
                    x = norm.forward(&x);
                }
                x = self.activation.consume(x);
                if i + 1 == last {
                    x = x.to_kind(Kind::Float);
                }
            }
        }
        x.squeeze_dim(-1)
    }
}

/// `V`: the return to be expected from a state.
pub struct ValueNet {
    params: Params,
    perception: Perception,
    tower: Tower,
}

impl ValueNet {
    /// For what `policy` sees; weights are a function of `seed` alone.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for sizes that do not fit.
    pub fn new(config: &CriticConfig, policy: &VlaPolicy, seed: u64) -> Result<Self, PolicyError> {
        let params = Params::new(policy.device(), seed);
        let root = params.root();
        let perception = policy.new_perception(&root)?;
        let tower = Tower::new(&root.sub("value"), config, perception.fusion().pooled_width())?;
        Ok(Self { params, perception, tower })
    }

    /// Of each window, `[B]`, with gradient.
    ///
    /// # Errors
    /// [`PolicyError`] for windows that do not fit.
    pub fn value(&self, obs: &ObsBatch) -> Result<Tensor, PolicyError> {
        Ok(self.tower.forward(&self.perception.context(obs, None)?.pooled))
    }

    /// Its parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }
}

/// `Q`: the return to be expected from a chunk of actions in a state, by `E` networks that share what they see.
pub struct QNet {
    params: Params,
    perception: Perception,
    towers: Vec<Tower>,
}

impl QNet {
    /// `ensemble` networks for what `policy` sees and `inputs` numbers of action.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for sizes that do not fit.
    pub fn new(
        config: &CriticConfig,
        policy: &VlaPolicy,
        inputs: i64,
        ensemble: usize,
        seed: u64,
    ) -> Result<Self, PolicyError> {
        let params = Params::new(policy.device(), seed);
        let root = params.root();
        let perception = policy.new_perception(&root)?;
        let width = perception.fusion().pooled_width() + inputs;
        let towers = (0..ensemble)
            .map(|e| Tower::new(&root.sub(format!("q{e}")), config, width))
            .collect::<Result<_, _>>()?;
        Ok(Self { params, perception, towers })
    }

    /// Of chunks `[B, inputs]`, normalised: `[E, B]`, with gradient.
    ///
    /// # Errors
    /// [`PolicyError`] for windows that do not fit.
    pub fn q_values(&self, obs: &ObsBatch, chunks: &Tensor) -> Result<Tensor, PolicyError> {
        let context = self.perception.context(obs, None)?.pooled;
        let x = Tensor::cat(&[&context, chunks], 1);
        let each: Vec<_> = self.towers.iter().map(|tower| tower.forward(&x)).collect();
        Ok(Tensor::stack(&each, 0))
    }

    /// Its parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }
}

/// Values without gradient, on the CPU, over all windows in pieces of `rows`.
///
/// # Errors
/// [`PolicyError`] for windows that do not fit.
pub fn values(net: &ValueNet, obs: &ObsBatch, rows: usize) -> Result<Vec<f32>, PolicyError> {
    let _guard = tch::no_grad_guard();
    let mut values = Vec::with_capacity(obs.len());
    for start in (0..obs.len()).step_by(rows.max(1)) {
        let end = (start + rows.max(1)).min(obs.len());
        let v = net.value(&obs.narrow(start, end - start))?;
        let v = v.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let mut piece = vec![0f32; end - start];
        v.copy_data(&mut piece, end - start);
        values.extend(piece);
    }
    Ok(values)
}
