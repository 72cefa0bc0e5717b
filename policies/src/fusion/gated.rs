//! Gated multimodal units: each modality is one vector, and gates that see all of them say how much of each counts, number by
//! number (Arevalo et al. 2017, arXiv 1702.01992, fig. 2a: the form for more than two modalities).
//!
//! `h_i = tanh(W_i x_i)`, `z_i = σ(V_i [x_1 … x_k])`, `h = Σ z_i h_i`. Deviation: biases (the paper has none).

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Context, Fusion, Modality, expect_modalities, expect_some};
use crate::PolicyError;
use crate::nn::{Linear, Scope};

/// Settings of [`Gated`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatedConfig {
    /// Width of the fused vector.
    pub width: i64,
}

impl Default for GatedConfig {
    fn default() -> Self {
        Self { width: 512 } // ours
    }
}

/// See the module.
#[derive(Debug)]
pub struct Gated {
    modalities: Vec<Modality>,
    values: Vec<Linear>,
    gates: Vec<Linear>,
    width: i64,
}

impl Gated {
    /// For these modalities, each flattened to one vector.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(
        scope: &Scope,
        config: &GatedConfig,
        modalities: &[Modality],
    ) -> Result<Self, PolicyError> {
        expect_some(modalities)?;
        let width = config.width;
        if width < 1 {
            return Err(PolicyError::Config {
                detail: format!("build a gated fusion of width {width}: at least 1 is needed"),
            });
        }
        let all: i64 = modalities.iter().map(|m| m.tokens * m.width).sum();
        let layers = |name: &str, inputs: &dyn Fn(&Modality) -> i64| -> Vec<Linear> {
            let scope = scope.sub(name);
            let each = modalities.iter().enumerate();
            each.map(|(i, m)| Linear::new(&scope.sub(i), inputs(m), width)).collect()
        };
        Ok(Self {
            modalities: modalities.to_vec(),
            values: layers("values", &|m| m.tokens * m.width),
            gates: layers("gates", &|_| all),
            width,
        })
    }

    /// How much each modality counts, `[B, k, W]` in `(0, 1)`: for looking at.
    ///
    /// # Errors
    /// [`PolicyError`] for shapes that do not fit.
    pub fn gates(&self, modalities: &[Tensor]) -> Result<Tensor, PolicyError> {
        expect_modalities(&self.modalities, modalities)?;
        let flat: Vec<Tensor> = modalities.iter().map(|m| m.flatten(1, -1)).collect();
        let all = Tensor::cat(&flat, 1);
        let gates: Vec<Tensor> = self.gates.iter().map(|g| g.forward(&all).sigmoid()).collect();
        Ok(Tensor::stack(&gates, 1))
    }
}

impl Fusion for Gated {
    fn pooled_width(&self) -> i64 {
        self.width
    }

    fn token_width(&self) -> i64 {
        self.width
    }

    /// The tokens are the gated vectors of the modalities; the pooled vector is their sum.
    fn fuse(&self, modalities: &[Tensor]) -> Result<Context, PolicyError> {
        let gates = self.gates(modalities)?;
        let values = modalities.iter().zip(&self.values);
        let values: Vec<Tensor> =
            values.map(|(m, layer)| layer.forward(&m.flatten(1, -1)).tanh()).collect();
        let tokens = gates * Tensor::stack(&values, 1);
        Ok(Context { pooled: tokens.sum_dim_intlist([1i64].as_slice(), false, None), tokens })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::fusion::FusionConfig;
    use crate::fusion::testing::{check_fusion, check_learns_from_two_modalities};
    use crate::nn::Params;

    #[test]
    fn it_is_a_fusion() {
        check_fusion(&FusionConfig::Gated(GatedConfig { width: 16 }), 3);
    }

    #[test]
    fn it_learns_what_needs_two_modalities() {
        check_learns_from_two_modalities(&FusionConfig::Gated(GatedConfig { width: 16 }));
    }

    #[test]
    fn the_unit_is_the_papers_equation() {
        let params = Params::new(Device::Cpu, 0);
        let modality = Modality { tokens: 1, width: 1, steps: 1 };
        let fusion =
            Gated::new(&params.root(), &GatedConfig { width: 1 }, &[modality, modality]).unwrap();
        let values = [
            ("values.0.weight", vec![2.0f32]),
            ("values.0.bias", vec![0.0]),
            ("values.1.weight", vec![-1.0]),
            ("values.1.bias", vec![0.5]),
            ("gates.0.weight", vec![1.0, 1.0]),
            ("gates.0.bias", vec![0.0]),
            ("gates.1.weight", vec![0.0, -1.0]),
            ("gates.1.bias", vec![1.0]),
        ];
        for (name, value) in values {
            let mut tensor = params.get(name).unwrap();
            let _guard = tch::no_grad_guard();
            tensor.copy_(&Tensor::from_slice(&value).reshape(tensor.size()));
        }
        let x = |v: f32| Tensor::from_slice(&[v]).reshape([1, 1, 1]);
        let h = fusion.fuse(&[x(0.5), x(2.0)]).unwrap().pooled.double_value(&[0, 0]);
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        let expected = sigmoid(2.5) * 1f64.tanh() + sigmoid(-1.0) * (-1.5f64).tanh();
        assert!((h - expected).abs() < 1e-6, "{h} {expected}");
    }
}
