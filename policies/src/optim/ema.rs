//! Exponential moving average of the parameters: what is evaluated and published, while the raw parameters learn on.
//!
//! Source: diffusion_policy `model/diffusion/ema_model.py` (after Karras' and Crowson's rule).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::FlatParams;
use crate::PolicyError;

/// How fast the average follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum EmaConfig {
    /// The decay grows with the update `u` (from 0): `min(max, 1 - (1 + (u - 1) / inv_gamma)^-power)`, 0 for `u <= 1`…:
    /// see [`EmaConfig::decay`].
    Power {
        /// Scale of updates.
        #[serde(default = "one")]
        inv_gamma: f64,
        /// 0.75 reaches 0.999 at 10 k updates, 0.9999 at 215 k; 2/3 at 31.6 k and 1 M.
        #[serde(default = "three_quarters")]
        power: f64,
        /// The largest decay.
        #[serde(default = "four_nines")]
        max: f64,
    },
    /// One decay from the first update on.
    Constant {
        /// The decay, in `[0, 1)`.
        decay: f64,
    },
}

// Defaults of diffusion_policy's workspace configs: inv_gamma 1, power 0.75, max_value 0.9999.
fn one() -> f64 {
    1.0
}

fn three_quarters() -> f64 {
    0.75
}

fn four_nines() -> f64 {
    0.9999
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self::Power { inv_gamma: one(), power: three_quarters(), max: four_nines() }
    }
}

impl EmaConfig {
    /// The decay after update `update`, counted from 0. diffusion_policy's `get_decay(update)` with
    /// `update_after_step = 0`: `s = max(0, update - 1)`, 0 while `s = 0`.
    pub fn decay(&self, update: u64) -> f64 {
        match *self {
            Self::Constant { decay } => decay,
            Self::Power { inv_gamma, power, max } => {
                let s = update.saturating_sub(1);
                if s == 0 {
                    return 0.0;
                }
                (1.0 - (1.0 + s as f64 / inv_gamma).powf(-power)).min(max).max(0.0)
            }
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a decay outside `[0, 1)` or a rule that is not positive.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let good = match *self {
            Self::Constant { decay } => (0.0..1.0).contains(&decay),
            Self::Power { inv_gamma, power, max } => {
                inv_gamma > 0.0 && power > 0.0 && (0.0..1.0).contains(&max)
            }
        };
        if good {
            return Ok(());
        }
        Err(PolicyError::Config {
            detail: format!("average parameters by {self:?}: decays lie in [0, 1), rules above 0"),
        })
    }
}

/// A moving average of a model's trainable parameters.
#[derive(Debug)]
pub struct Ema {
    config: EmaConfig,
    flat: FlatParams,
    values: Tensor,
    updates: u64,
}

impl Ema {
    /// Begins at the parameters as they are.
    ///
    /// # Errors
    /// See [`EmaConfig::validate`].
    pub fn new(flat: &FlatParams, config: EmaConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let values = flat.values().copy();
        Ok(Self { config, flat: flat.clone(), values, updates: 0 })
    }

    /// Takes in the parameters after an update; returns the decay used.
    pub fn update(&mut self) -> f64 {
        let _guard = tch::no_grad_guard();
        let decay = self.config.decay(self.updates);
        let _ = self.values.lerp_(self.flat.values(), 1.0 - decay);
        self.updates += 1;
        decay
    }

    /// Exchanges the average and the parameters, exactly; a second call puts them back. Between the two, the model *is*
    /// the average: evaluate and save, do not update.
    pub fn swap(&mut self) {
        let _guard = tch::no_grad_guard();
        let mut model = self.flat.values().shallow_clone();
        let raw = model.copy();
        model.copy_(&self.values);
        self.values.copy_(&raw);
    }

    /// Everything that a later run needs to go on: `<parameter>` and `ema.updates` (i64).
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = self.flat.split(&self.values, "");
        state.insert("ema.updates".to_owned(), Tensor::from_slice(&[self.updates as i64]));
        state
    }

    /// Goes on from [`Self::state`].
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the tensor that is missing or has another shape.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), PolicyError> {
        let updates = state
            .get("ema.updates")
            .filter(|t| t.kind() == Kind::Int64 && t.numel() == 1)
            .ok_or_else(|| PolicyError::Config {
                detail: "load training state: `ema.updates` is missing".to_owned(),
            })?;
        self.flat.join(&self.values, state, "")?;
        self.updates = updates.int64_value(&[0]) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Init, Params};
    use tch::Device;

    #[test]
    fn power_rule_follows_diffusion_policy() {
        let rule = EmaConfig::default();
        // get_decay of ema_model.py: steps 0 and 1 give 0, then 1 - (1 + (n - 1))^-0.75.
        assert_eq!((rule.decay(0), rule.decay(1)), (0.0, 0.0));
        assert!((rule.decay(2) - (1.0 - 2f64.powf(-0.75))).abs() < 1e-15);
        // Its doc string: "0.75: reaches decay factor 0.999 at 10K steps, 0.9999 at 215.4k steps".
        assert!((rule.decay(10_000) - 0.999).abs() < 1e-6);
        assert_eq!(rule.decay(1_000_000), 0.9999);
        assert!(EmaConfig::Constant { decay: 1.0 }.validate().is_err());
    }

    #[test]
    fn averages_swaps_and_resumes_exactly() {
        let params = Params::new(Device::Cpu, 0);
        let p = params.root().param("p", &[2], Init::Ones);
        let flat = FlatParams::new(&params, 1, |_| 0).unwrap();
        let mut ema = Ema::new(&flat, EmaConfig::Constant { decay: 0.75 }).unwrap();
        let _ = flat.values().shallow_clone().fill_(5.0);
        assert_eq!(ema.update(), 0.75);
        ema.swap();
        assert_eq!(p.double_value(&[0]), 2.0); // 0.75 · 1 + 0.25 · 5
        ema.swap();
        assert_eq!(p.double_value(&[0]), 5.0);
        let mut resumed = Ema::new(&flat, EmaConfig::Constant { decay: 0.75 }).unwrap();
        resumed.load_state(&ema.state()).unwrap();
        resumed.swap();
        assert_eq!(p.double_value(&[1]), 2.0);
        assert!(resumed.load_state(&BTreeMap::new()).is_err());
    }
}
