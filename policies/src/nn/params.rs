//! Named parameters: where a model's tensors live, how they begin, which of them learn.
//!
//! tch's `VarStore` draws initial values from libtorch's global generator, so a model would depend on whatever drew
//! before it. Here every parameter draws from its own stream, keyed by (seed, name).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;

use rand_distr::{Distribution as _, StandardNormal, Uniform};
use simloop_envs::SeedTree;
use tch::{Device, Kind, Tensor};

use crate::PolicyError;

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// All this.
    Constant(f64),
    /// Normal around zero.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// The bound.
        bound: f64,
    },
    /// Uniform in `±1/√fan_in`, `fan_in` = product of all dimensions but the first: what PyTorch's `Linear` and `Conv`
    /// weights begin with (`kaiming_uniform_(a=√5)`). For biases use [`Init::Uniform`] with the weight's fan-in.
    FanIn,
    /// Xavier uniform, `±√(6 / (fan_in + fan_out))` (Glorot & Bengio 2010).
    Xavier,
}

struct Param {
    tensor: Tensor,
    trainable: bool,
}

struct Inner {
    entries: BTreeMap<String, Param>,
    device: Device,
    seeds: SeedTree,
}

/// All parameters of one model, by name (`encoder.layers.0.weight`). Clones share them.
#[derive(Clone)]
pub struct Params(Rc<RefCell<Inner>>);

impl Params {
    /// An empty set on `device`; initial values are a function of `seed` and the parameter's name alone.
    pub fn new(device: Device, seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            entries: BTreeMap::new(),
            device,
            seeds: SeedTree::new(seed).child("parameters"),
        })))
    }

    /// Where names begin.
    pub fn root(&self) -> Scope {
        Scope { params: self.clone(), prefix: String::new() }
    }

    /// Where the tensors live.
    pub fn device(&self) -> Device {
        self.0.borrow().device
    }

    /// All names in order.
    pub fn names(&self) -> Vec<String> {
        self.0.borrow().entries.keys().cloned().collect()
    }

    /// The tensor of that name (shared, not copied).
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.0.borrow().entries.get(name).map(|p| p.tensor.shallow_clone())
    }

    /// Every tensor in order of name (shared, not copied).
    pub fn all(&self) -> Vec<(String, Tensor)> {
        let inner = self.0.borrow();
        inner.entries.iter().map(|(n, p)| (n.clone(), p.tensor.shallow_clone())).collect()
    }

    /// The tensors that learn, in order of name (shared, not copied).
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        let inner = self.0.borrow();
        inner
            .entries
            .iter()
            .filter(|(_, p)| p.trainable)
            .map(|(n, p)| (n.clone(), p.tensor.shallow_clone()))
            .collect()
    }

    /// Numbers in all tensors, and in those that learn.
    pub fn count(&self) -> (usize, usize) {
        let inner = self.0.borrow();
        inner.entries.values().fold((0, 0), |(all, learn), p| {
            let n = p.tensor.numel();
            (all + n, learn + if p.trainable { n } else { 0 })
        })
    }

    /// Makes every parameter learn for which `rule` answers true, and freezes the others.
    pub fn set_trainable(&self, rule: impl Fn(&str) -> bool) {
        for (name, param) in &mut self.0.borrow_mut().entries {
            param.trainable = rule(name);
            let _ = param.tensor.set_requires_grad(param.trainable);
        }
    }

    /// Copies of all tensors, detached.
    pub fn snapshot(&self) -> BTreeMap<String, Tensor> {
        let inner = self.0.borrow();
        inner.entries.iter().map(|(n, p)| (n.clone(), p.tensor.detach().copy())).collect()
    }

    /// Overwrites every tensor in place by the one of the same name. Modules that hold the tensors see the new values.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the first tensor that is missing, left over, or of another shape; nothing is
    /// changed then.
    pub fn load(&self, values: &BTreeMap<String, Tensor>) -> Result<(), PolicyError> {
        let inner = self.0.borrow();
        for (name, param) in &inner.entries {
            let value = values.get(name).ok_or_else(|| PolicyError::Config {
                detail: format!("load parameters: `{name}` is missing"),
            })?;
            if value.size() != param.tensor.size() {
                return Err(PolicyError::Config {
                    detail: format!(
                        "load parameters: `{name}` has shape {:?}, the model needs {:?}",
                        value.size(),
                        param.tensor.size()
                    ),
                });
            }
        }
        if let Some(extra) = values.keys().find(|name| !inner.entries.contains_key(*name)) {
            return Err(PolicyError::Config {
                detail: format!("load parameters: the model has no `{extra}`"),
            });
        }
        let _guard = tch::no_grad_guard();
        for (name, param) in &inner.entries {
            param.tensor.shallow_clone().copy_(&values[name]);
        }
        Ok(())
    }
}

/// A place in the tree of names.
#[derive(Clone)]
pub struct Scope {
    params: Params,
    prefix: String,
}

impl Scope {
    /// The place `name` below this one.
    #[must_use]
    pub fn sub(&self, name: impl Display) -> Self {
        Self { params: self.params.clone(), prefix: self.name(name) }
    }

    /// The full name of `name` here.
    pub fn name(&self, name: impl Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// The set that this place belongs to.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where tensors live.
    pub fn device(&self) -> Device {
        self.params.device()
    }

    /// A new f32 parameter that learns.
    ///
    /// # Panics
    /// If the name is taken: two modules were built in one place.
    pub fn param(&self, name: impl Display, shape: &[i64], init: Init) -> Tensor {
        let name = self.name(name);
        let mut inner = self.params.0.borrow_mut();
        let tensor = initial(&inner.seeds.child(&name), shape, init)
            .to_device(inner.device)
            .set_requires_grad(true);
        let param = Param { tensor: tensor.shallow_clone(), trainable: true };
        let before = inner.entries.insert(name.clone(), param);
        assert!(before.is_none(), "two parameters are called `{name}`");
        tensor
    }
}

fn initial(seeds: &SeedTree, shape: &[i64], init: Init) -> Tensor {
    let n = shape.iter().product::<i64>() as usize;
    let fan_in = shape.iter().skip(1).product::<i64>().max(1) as f64;
    let uniform = |bound: f64| -> Vec<f32> {
        if bound == 0.0 {
            return vec![0.0; n];
        }
        let range = Uniform::new_inclusive(-bound as f32, bound as f32).expect("a finite bound");
        let mut rng = seeds.rng();
        (0..n).map(|_| range.sample(&mut rng)).collect()
    };
    let values = match init {
        Init::Zeros => return Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
        Init::Ones => return Tensor::ones(shape, (Kind::Float, Device::Cpu)),
        Init::Constant(value) => return Tensor::full(shape, value, (Kind::Float, Device::Cpu)),
        Init::Normal { std } => {
            let mut rng = seeds.rng();
            (0..n)
                .map(|_| {
                    let z: f32 = StandardNormal.sample(&mut rng);
                    z * std as f32
                })
                .collect()
        }
        Init::Uniform { bound } => uniform(bound),
        Init::FanIn => uniform(1.0 / fan_in.sqrt()),
        Init::Xavier => {
            let receptive = shape.iter().skip(2).product::<i64>() as f64;
            let fan_out = shape.first().copied().unwrap_or(1) as f64 * receptive;
            uniform((6.0 / (fan_in + fan_out)).sqrt())
        }
    };
    Tensor::from_slice(&values).reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_depend_on_seed_and_name_and_not_on_order() {
        let build = |names: [&str; 2], seed| {
            let params = Params::new(Device::Cpu, seed);
            for name in names {
                let _ = params.root().sub(name).param("weight", &[3, 4], Init::FanIn);
            }
            params
        };
        let a = build(["a", "b"], 0);
        let b = build(["b", "a"], 0);
        assert_eq!(a.names(), ["a.weight", "b.weight"]);
        assert_eq!(a.get("a.weight"), b.get("a.weight"));
        assert_ne!(a.get("a.weight"), a.get("b.weight"));
        assert_ne!(a.get("a.weight"), build(["a", "b"], 1).get("a.weight"));
    }

    #[test]
    fn loading_is_all_or_nothing_and_names_the_fault() {
        let params = Params::new(Device::Cpu, 0);
        let weight = params.root().param("w", &[2], Init::Ones);
        let mut values = params.snapshot();
        values.insert("w".to_owned(), Tensor::from_slice(&[3f32, 4.0]));
        values.insert("x".to_owned(), Tensor::from_slice(&[3f32]));
        let error = params.load(&values).unwrap_err().to_string();
        assert!(error.contains("no `x`"), "{error}");
        assert_eq!(weight.double_value(&[0]), 1.0);
        values.remove("x");
        params.load(&values).unwrap();
        assert_eq!(weight.double_value(&[1]), 4.0);
        values.insert("w".to_owned(), Tensor::from_slice(&[3f32]));
        let error = params.load(&values).unwrap_err().to_string();
        assert!(error.contains("shape [1]"), "{error}");
        assert!(params.load(&BTreeMap::new()).unwrap_err().to_string().contains("missing"));
    }
}
