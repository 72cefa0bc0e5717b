//! Named parameters: where a model's tensors live, how they begin, which of them learn.
//!
//! tch's `VarStore` draws initial values from libtorch's global generator, so a model would depend on whatever drew
//! before it. Here every parameter draws from its own stream, keyed by (seed, name).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::rc::Rc;

use rand_distr::{Distribution as _, StandardNormal, Uniform};
use simloop_envs::SeedTree;
use tch::{Device, Kind, Tensor};

use super::lora::{LoraConfig, is_adapter};
use super::runtime::RuntimeRef;
use crate::{NoiseStream, PolicyError};

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
    lora: Option<LoraConfig>,
    adapted: BTreeMap<String, f64>,
    /// A checkpoint that parameters are taken from while the model is built.
    given: Option<BTreeMap<String, Tensor>>,
    /// The first parameter that the checkpoint did not have as needed.
    fault: Option<PolicyError>,
}

/// All parameters of one model, by name (`encoder.layers.0.weight`). Clones share them.
#[derive(Clone)]
pub struct Params(Rc<RefCell<Inner>>, RuntimeRef);

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, learn) = self.count();
        f.debug_struct("Params")
            .field("numbers", &all)
            .field("learn", &learn)
            .finish_non_exhaustive()
    }
}

impl Params {
    /// An empty set on `device`; initial values are a function of `seed` and the parameter's name alone.
    pub fn new(device: Device, seed: u64) -> Self {
        let inner = Inner {
            entries: BTreeMap::new(),
            device,
            seeds: SeedTree::new(seed).child("parameters"),
            lora: None,
            adapted: BTreeMap::new(),
            given: None,
            fault: None,
        };
        Self(Rc::new(RefCell::new(inner)), RuntimeRef::default())
    }

    /// A set whose parameters take the tensor of their name in `values`, as f32, instead of an initial value, so that a
    /// wrong configuration cannot allocate more than the checkpoint holds. Adapters that `values` lacks begin as usual.
    /// Build the model, then ask [`Params::complete`] before using it.
    pub fn from_values(device: Device, seed: u64, values: BTreeMap<String, Tensor>) -> Self {
        let params = Self::new(device, seed);
        params.0.borrow_mut().given = Some(values);
        params
    }

    /// Whether [`Params::from_values`] had all that the model asked for, and nothing else.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the first tensor that is missing, left over, or of another shape. The model must
    /// not be used then: some of its tensors are empty.
    pub fn complete(&self) -> Result<(), PolicyError> {
        let mut inner = self.0.borrow_mut();
        if let Some(fault) = inner.fault.take() {
            return Err(fault);
        }
        match inner.given.take().and_then(|mut rest| rest.pop_first()) {
            Some((name, _)) => Err(PolicyError::Config {
                detail: format!("load parameters: the model has no `{name}`"),
            }),
            None => Ok(()),
        }
    }

    /// Gives adapters to the linear layers that are built from now on and that `config` chooses.
    ///
    /// # Errors
    /// [`PolicyError::Config`] from [`LoraConfig::validate`].
    pub fn set_lora(&self, config: Option<LoraConfig>) -> Result<(), PolicyError> {
        if let Some(config) = &config {
            config.validate()?;
        }
        self.0.borrow_mut().lora = config;
        Ok(())
    }

    /// The rule for adapters.
    pub fn lora(&self) -> Option<LoraConfig> {
        self.0.borrow().lora.clone()
    }

    /// Makes linear layers and convolutions compute in `kind` (bf16) while parameters, norms and losses stay f32, as
    /// PyTorch's autocast does; `None` or f32 switches it off.
    pub fn set_compute(&self, kind: Option<Kind>) {
        self.1.compute.set(kind.filter(|&k| k != Kind::Float));
    }

    /// Where dropout draws its masks from; without a stream nothing is dropped.
    pub fn set_dropout(&self, noise: Option<NoiseStream>) {
        *self.1.dropout.borrow_mut() = noise;
    }

    /// Where dropout stands; saved and restored for an exact resume.
    pub fn dropout(&self) -> Option<NoiseStream> {
        self.1.dropout.borrow().clone()
    }

    pub(crate) fn runtime(&self) -> RuntimeRef {
        RuntimeRef::clone(&self.1)
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

    /// Like [`Params::set_trainable`], for the parameters below the place `prefix` alone.
    pub fn set_trainable_below(&self, prefix: &str, rule: impl Fn(&str) -> bool) {
        for (name, param) in &mut self.0.borrow_mut().entries {
            if name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')) {
                param.trainable = rule(name);
                let _ = param.tensor.set_requires_grad(param.trainable);
            }
        }
    }

    /// Layers that have adapters, with the factor of each.
    pub(crate) fn adapted(&self) -> BTreeMap<String, f64> {
        self.0.borrow().adapted.clone()
    }

    pub(crate) fn note_adapter(&self, layer: &str, scale: f64) {
        self.0.borrow_mut().adapted.insert(layer.to_owned(), scale);
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

    /// The name of this place, empty at the root.
    pub fn path(&self) -> &str {
        &self.prefix
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
        let tensor = inner
            .take_given(&name, shape)
            .unwrap_or_else(|| initial(&inner.seeds.child(&name), shape, init))
            .to_device(inner.device)
            .set_requires_grad(true);
        let param = Param { tensor: tensor.shallow_clone(), trainable: true };
        let before = inner.entries.insert(name.clone(), param);
        assert!(before.is_none(), "two parameters are called `{name}`");
        tensor
    }
}

impl Inner {
    /// The checkpoint's tensor; empty, and a fault noted, if it does not have it as needed. `None` without a checkpoint.
    fn take_given(&mut self, name: &str, shape: &[i64]) -> Option<Tensor> {
        let given = self.given.as_mut()?;
        let detail = match given.remove(name) {
            Some(value) if value.size() == shape => return Some(value.to_kind(Kind::Float)),
            Some(value) => format!(
                "load parameters: `{name}` has shape {:?}, the model needs {shape:?}",
                value.size()
            ),
            None if is_adapter(name) && self.fault.is_none() => return None,
            None => format!("load parameters: `{name}` is missing"),
        };
        self.fault.get_or_insert(PolicyError::Config { detail });
        Some(Tensor::zeros([0], (Kind::Float, Device::Cpu)))
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
    fn a_model_built_from_values_holds_them_and_names_the_first_fault() {
        let values = || BTreeMap::from([("a.w".to_owned(), Tensor::from_slice(&[1f32, 2.0]))]);
        let build = |shape: &[i64], values| {
            let params = Params::from_values(Device::Cpu, 0, values);
            let w = params.root().sub("a").param("w", shape, Init::Zeros);
            params.complete().map(|()| w).map_err(|e| e.to_string())
        };
        let w = build(&[2], values()).unwrap();
        assert_eq!(w.double_value(&[1]), 2.0);
        assert!(w.requires_grad());
        assert!(build(&[1 << 40, 1 << 20], values()).unwrap_err().contains("shape [2]"));
        assert!(build(&[2], BTreeMap::new()).unwrap_err().contains("missing"));
        let mut more = values();
        more.insert("b".to_owned(), Tensor::from_slice(&[1f32]));
        assert!(build(&[2], more).unwrap_err().contains("no `b`"));
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
