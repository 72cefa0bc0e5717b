//! Critics: what a state is worth, and what a chunk of actions in it is.
//!
//! A critic sees through a [`Perception`] of its own, built like the policy's, so that neither disturbs the other's
//! features; an MLP reads its pooled context.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::nn::{Activation, Mlp, MlpOptions, Params, Scope};
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

impl CriticConfig {
    /// From `inputs` numbers to one per row.
    fn build(&self, scope: &Scope, inputs: i64) -> Result<Mlp, PolicyError> {
        if self.hidden.iter().any(|&w| w < 1) {
            return Err(PolicyError::Config {
                detail: format!("build a critic of widths {:?}: all must be positive", self.hidden),
            });
        }
        let sizes: Vec<i64> = [inputs].iter().chain(&self.hidden).chain(&[1]).copied().collect();
        let options = MlpOptions {
            activation: self.activation,
            layer_norm: self.layer_norm,
            bf16: self.bf16,
            activated: false,
        };
        Ok(Mlp::with(scope, &sizes, options))
    }
}

/// `V`: the return to be expected from a state.
pub struct ValueNet {
    params: Params,
    perception: Perception,
    net: Mlp,
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
        let net = config.build(&root.sub("value"), perception.fusion().pooled_width())?;
        Ok(Self { params, perception, net })
    }

    /// Of each window, `[B]`, with gradient.
    ///
    /// # Errors
    /// [`PolicyError`] for windows that do not fit.
    pub fn value(&self, obs: &ObsBatch) -> Result<Tensor, PolicyError> {
        Ok(self.net.forward(&self.perception.context(obs, None)?.pooled).squeeze_dim(-1))
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
    nets: Vec<Mlp>,
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
        let nets = (0..ensemble)
            .map(|e| config.build(&root.sub(format!("q{e}")), width))
            .collect::<Result<_, _>>()?;
        Ok(Self { params, perception, nets })
    }

    /// Of chunks `[B, inputs]`, normalised: `[E, B]`, with gradient.
    ///
    /// # Errors
    /// [`PolicyError`] for windows that do not fit.
    pub fn q_values(&self, obs: &ObsBatch, chunks: &Tensor) -> Result<Tensor, PolicyError> {
        let context = self.perception.context(obs, None)?.pooled;
        Ok(Mlp::forward_stacked(&self.nets, &[&context, chunks]).squeeze_dim(-1))
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
