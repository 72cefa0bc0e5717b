//! Every parameter that learns in one buffer, so that an update costs a handful of kernels whatever the number of layers.
//!
//! libtorch's fused and `foreach` optimizers are out of tch's reach; a flat buffer gives what they give. The parameters
//! become views of it (`set_data`), so modules go on using the tensors they hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::PolicyError;
use crate::nn::Params;

/// Offsets are multiples of this many f32 (64 bytes, what oneDNN and MKL like best).
const ALIGN: i64 = 16;

/// Where a parameter lies in the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The parameter's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// The first number.
    pub offset: i64,
    /// How many numbers.
    pub len: i64,
}

/// The trainable parameters of a model in one buffer, `[N]` f32, sorted by (group, name). Clones share it.
#[derive(Clone, Debug)]
pub struct FlatParams(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    values: Tensor,
    params: Vec<Tensor>,
    slots: Vec<Slot>,
    groups: Vec<Range<i64>>,
}

impl FlatParams {
    /// Moves the trainable parameters of `params` into one buffer; `group` sorts them into `groups` many.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a model with nothing to learn, and for trainable parameters that are not f32.
    pub fn new(
        params: &Params,
        groups: usize,
        group: impl Fn(&str) -> usize,
    ) -> Result<Self, PolicyError> {
        let mut trainable = params.trainable();
        if trainable.is_empty() {
            return Err(PolicyError::Config {
                detail: "train the model: none of its parameters is trainable".to_owned(),
            });
        }
        if let Some((name, tensor)) = trainable.iter().find(|(_, t)| t.kind() != Kind::Float) {
            return Err(PolicyError::Config {
                detail: format!(
                    "train `{name}`: it is {:?}, and what learns must be Float",
                    tensor.kind()
                ),
            });
        }
        trainable.sort_by_key(|(name, _)| group(name));
        let (mut slots, mut ranges, mut offset) = (Vec::new(), Vec::new(), 0);
        for g in 0..groups {
            let start = offset;
            for (name, tensor) in trainable.iter().filter(|(name, _)| group(name) == g) {
                let len = tensor.numel() as i64;
                slots.push(Slot { name: name.clone(), shape: tensor.size(), offset, len });
                offset += (len + ALIGN - 1) / ALIGN * ALIGN;
            }
            ranges.push(start..offset);
        }
        let _guard = tch::no_grad_guard();
        let values = Tensor::zeros([offset], (Kind::Float, params.device()));
        let mut tensors = Vec::with_capacity(slots.len());
        for (slot, (_, mut tensor)) in slots.iter().zip(trainable) {
            let mut view = view(&values, slot);
            view.copy_(&tensor);
            tensor.set_data(&view);
            tensors.push(tensor);
        }
        Ok(Self(Rc::new(Inner { values, params: tensors, slots, groups: ranges })))
    }

    /// The buffer, `[N]`; writing to it changes the model.
    pub fn values(&self) -> &Tensor {
        &self.0.values
    }

    /// Where each parameter lies.
    pub fn slots(&self) -> &[Slot] {
        &self.0.slots
    }

    /// The parameters, in the order of their slots.
    pub fn params(&self) -> &[Tensor] {
        &self.0.params
    }

    /// `N`, with the padding between parameters.
    pub fn len(&self) -> i64 {
        self.0.values.numel() as i64
    }

    /// Whether it is empty (it never is).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the buffer lies.
    pub fn device(&self) -> Device {
        self.0.values.device()
    }

    /// Zeros in the shape of the buffer.
    pub fn zeros(&self) -> Tensor {
        Tensor::zeros([self.len()], (Kind::Float, self.device()))
    }

    /// Where each group lies; empty for a group without parameters.
    pub fn groups(&self) -> &[Range<i64>] {
        &self.0.groups
    }

    /// Copies of the parts of `buffer` under `prefix` + each parameter's name.
    pub fn split(&self, buffer: &Tensor, prefix: &str) -> BTreeMap<String, Tensor> {
        let _guard = tch::no_grad_guard();
        let part = |slot: &Slot| (format!("{prefix}{}", slot.name), view(buffer, slot).copy());
        self.0.slots.iter().map(part).collect()
    }

    /// Reads into `buffer` what [`Self::split`] gave; nothing is changed on an error.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the tensor that is missing or has another shape.
    pub fn join(
        &self,
        buffer: &Tensor,
        parts: &BTreeMap<String, Tensor>,
        prefix: &str,
    ) -> Result<(), PolicyError> {
        let _guard = tch::no_grad_guard();
        let mut found = Vec::with_capacity(self.0.slots.len());
        for slot in &self.0.slots {
            let name = format!("{prefix}{}", slot.name);
            let part = parts.get(&name).ok_or_else(|| PolicyError::Config {
                detail: format!("load training state: `{name}` is missing"),
            })?;
            if part.size() != slot.shape {
                return Err(PolicyError::Config {
                    detail: format!(
                        "load training state: `{name}` has shape {:?}, the model needs {:?}",
                        part.size(),
                        slot.shape
                    ),
                });
            }
            found.push(part);
        }
        for (slot, part) in self.0.slots.iter().zip(found) {
            view(buffer, slot).copy_(part);
        }
        Ok(())
    }
}

/// A parameter's part of a buffer, in the parameter's shape.
fn view(buffer: &Tensor, slot: &Slot) -> Tensor {
    buffer.narrow(0, slot.offset, slot.len).view(slot.shape.as_slice())
}

/// The gradients of `params` gathered into `[N]`, zero where there is none and in the padding.
pub(super) fn gather(flat: &FlatParams, grads: &[Tensor], out: &Tensor) {
    let options = (Kind::Float, flat.device());
    let mut parts = Vec::with_capacity(2 * grads.len());
    let mut end = 0;
    for (slot, grad) in flat.slots().iter().zip(grads) {
        if slot.offset > end {
            parts.push(Tensor::zeros([slot.offset - end], options));
        }
        parts.push(if grad.defined() {
            grad.reshape([-1])
        } else {
            Tensor::zeros([slot.len], options)
        });
        end = slot.offset + slot.len;
    }
    if flat.len() > end {
        parts.push(Tensor::zeros([flat.len() - end], options));
    }
    let _ = Tensor::cat_out(out, &parts, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Activation, Init, Mlp};

    #[test]
    fn modules_see_what_is_written_to_the_buffer() {
        let params = Params::new(Device::Cpu, 0);
        let mlp = Mlp::new(&params.root(), &[3, 5, 2], Activation::Relu);
        let x = Tensor::ones([1, 3], (Kind::Float, Device::Cpu));
        let before = mlp.forward(&x);
        let flat = FlatParams::new(&params, 1, |_| 0).unwrap();
        assert_eq!(mlp.forward(&x), before);
        assert_eq!(flat.len() % ALIGN, 0);
        let _ = flat.values().shallow_clone().zero_();
        assert_eq!(mlp.forward(&x).abs().max().double_value(&[]), 0.0);
        // And the buffer sees what is loaded into the parameters.
        let ones = params.snapshot().into_iter().map(|(n, t)| (n, t.ones_like())).collect();
        params.load(&ones).unwrap();
        assert_eq!(flat.values().sum(Kind::Float).double_value(&[]), (15 + 5 + 10 + 2) as f64);
    }

    #[test]
    fn parts_round_trip_and_a_wrong_part_changes_nothing() {
        let params = Params::new(Device::Cpu, 0);
        let _ = params.root().param("a", &[3], Init::Ones);
        let _ = params.root().param("b", &[2, 2], Init::FanIn);
        let flat = FlatParams::new(&params, 2, |name| usize::from(name == "a")).unwrap();
        assert_eq!(flat.slots()[0].name, "b");
        assert_eq!(flat.groups(), [0..16, 16..32]);
        let mut parts = flat.split(flat.values(), "x.");
        assert_eq!(parts["x.b"], params.get("b").unwrap());
        let target = flat.zeros();
        flat.join(&target, &parts, "x.").unwrap();
        assert_eq!(&target, flat.values());
        parts.insert("x.a".to_owned(), Tensor::from_slice(&[1f32]));
        parts.insert("x.b".to_owned(), Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)));
        let error = flat.join(&target, &parts, "x.").unwrap_err().to_string();
        assert!(error.contains("`x.a` has shape [1]"), "{error}");
        assert_eq!(&target, flat.values());
    }

    #[test]
    fn a_model_with_nothing_to_learn_is_refused() {
        let params = Params::new(Device::Cpu, 0);
        let _ = params.root().param("a", &[3], Init::Ones);
        params.set_trainable(|_| false);
        assert!(FlatParams::new(&params, 1, |_| 0).is_err());
    }
}
