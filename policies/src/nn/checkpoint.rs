//! Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a stack of blocks keeps only the input of each block and
//! computes it again in the backward pass. Exact: the same kernels run on the same numbers.
//!
//! libtorch's own is written in Python, so the stack cuts autograd's graph instead: `run` returns a leaf, and
//! [`Params::backward`] carries the leaf's gradient through the blocks, last first. A model that is trained with
//! checkpointing must therefore be given its gradients by [`Params::backward`], not by `loss.backward()`.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::Params;

/// Carries one stack's gradient from its end to its beginning.
pub(crate) type Tape = Box<dyn FnOnce()>;

/// Whether operations are being recorded for a backward pass.
pub(crate) fn records() -> bool {
    let probe = Tensor::from(0f32).set_requires_grad(true);
    (&probe + 0.0).requires_grad()
}

/// `x` through every block in order; `forward(block, x)` must depend on nothing else that has a gradient.
pub(crate) fn run<B: 'static>(
    params: &Params,
    blocks: &Rc<[B]>,
    x: Tensor,
    forward: impl Fn(&B, &Tensor) -> Tensor + 'static,
) -> Tensor {
    let runtime = params.runtime();
    if !runtime.checkpointing.get() || !records() {
        return blocks.iter().fold(x, |x, block| forward(block, &x));
    }
    let mut kept = Vec::with_capacity(blocks.len());
    let mut h = x.detach();
    {
        let _guard = tch::no_grad_guard();
        for block in blocks.iter() {
            kept.push((h.shallow_clone(), runtime.dropout.borrow().clone()));
            h = forward(block, &h);
        }
    }
    let leaf = h.detach().set_requires_grad(true);
    let (end, blocks, shared) = (leaf.shallow_clone(), Rc::clone(blocks), Rc::clone(&runtime));
    runtime.tapes.borrow_mut().push(Box::new(move || {
        let mut grad = end.grad();
        if !grad.defined() {
            return;
        }
        let after = shared.dropout.borrow().clone();
        for (block, (input, noise)) in blocks.iter().zip(kept).rev() {
            let input = input.detach().set_requires_grad(true);
            // The same masks as in the forward pass.
            *shared.dropout.borrow_mut() = noise;
            let output = forward(block, &input);
            (output * grad).sum(None::<Kind>).backward();
            grad = input.grad();
        }
        *shared.dropout.borrow_mut() = after;
        if x.requires_grad() {
            (x * grad).sum(None::<Kind>).backward();
        }
    }));
    leaf
}

impl Params {
    /// Makes stacks of blocks keep their inputs only and compute again in the backward pass: less memory, about a third
    /// more time, the same gradients. Gradients then come from [`Params::backward`].
    pub fn set_checkpointing(&self, on: bool) {
        self.runtime().checkpointing.set(on);
        self.runtime().tapes.borrow_mut().clear();
    }

    /// Adds the gradients of `loss` to the parameters, through checkpointed stacks too.
    pub fn backward(&self, loss: &Tensor) {
        loss.backward();
        self.finish_backward();
    }

    /// Whether stacks await their backward pass, which [`Params::gradients`] then runs.
    pub(crate) fn has_checkpoints(&self) -> bool {
        !self.runtime().tapes.borrow().is_empty()
    }

    fn finish_backward(&self) {
        // A stack's gradient may pass into an earlier one.
        loop {
            let tape = self.runtime().tapes.borrow_mut().pop();
            let Some(tape) = tape else { break };
            tape();
        }
    }

    /// The gradient of `loss` (a scalar) for each of `wanted`, parameters of this set, through checkpointed stacks too;
    /// undefined where the loss does not depend on one. Leaves [`Tensor::grad`] empty or zero.
    ///
    /// # Errors
    /// What libtorch says if it cannot differentiate.
    pub fn gradients(
        &self,
        loss: &Tensor,
        wanted: &[Tensor],
    ) -> Result<Vec<Tensor>, tch::TchError> {
        if !self.has_checkpoints() {
            return Tensor::f_run_backward(&[loss], wanted, false, false);
        }
        let clear = || {
            for tensor in wanted {
                tensor.shallow_clone().zero_grad();
            }
        };
        clear();
        loss.f_backward()?;
        self.finish_backward();
        let gradients = wanted
            .iter()
            .map(|tensor| {
                let grad = tensor.grad();
                if grad.defined() { grad.copy() } else { grad }
            })
            .collect();
        clear();
        Ok(gradients)
    }

    /// Forgets stacks whose backward pass will not come (a loss that was not finite).
    pub fn discard_backward(&self) {
        self.runtime().tapes.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::NoiseStream;
    use crate::nn::lora::{LoraConfig, Targets};
    use crate::nn::{LayerNorm, Linear};

    /// Two stacks of residual blocks, the second fed by the first, with dropout in their adapters.
    fn gradients(checkpointing: bool) -> (f64, Vec<(String, Tensor)>) {
        let params = Params::new(Device::Cpu, 0);
        let lora = LoraConfig { dropout: 0.3, ..LoraConfig::new(4, 8.0, Targets::AllLinear) };
        params.set_lora(Some(lora)).unwrap();
        let stack = |name: &str| -> Rc<[(LayerNorm, Linear)]> {
            (0..3)
                .map(|i| {
                    let scope = params.root().sub(name).sub(i);
                    (
                        LayerNorm::new(&scope.sub("norm"), 6, 1e-5),
                        Linear::new(&scope.sub("fc"), 6, 6),
                    )
                })
                .collect()
        };
        let (first, second) = (stack("first"), stack("second"));
        let entry = Linear::new(&params.root().sub("entry"), 4, 6);
        for (name, tensor) in params.all() {
            if name.ends_with("lora_B.weight") {
                let _guard = tch::no_grad_guard();
                let _ = tensor.shallow_clone().fill_(0.1);
            }
        }
        params.set_dropout(Some(NoiseStream::new(5)));
        params.set_checkpointing(checkpointing);
        let x = NoiseStream::new(1).normal(&[2, 3, 4], Device::Cpu);
        let block = |(norm, fc): &(LayerNorm, Linear), x: &Tensor| {
            x + fc.forward(&norm.forward(x)).gelu("none")
        };
        let h = run(&params, &first, entry.forward(&x), block);
        let h = run(&params, &second, h, block);
        let loss = h.square().mean(None::<Kind>);
        params.backward(&loss);
        (loss.double_value(&[]), params.all().into_iter().map(|(n, t)| (n, t.grad())).collect())
    }

    #[test]
    fn checkpointed_gradients_are_the_plain_ones_bit_for_bit() {
        let (plain_loss, plain) = gradients(false);
        let (loss, checkpointed) = gradients(true);
        assert_eq!(plain_loss, loss);
        assert_eq!(plain.len(), checkpointed.len());
        for ((name, a), (_, b)) in plain.iter().zip(&checkpointed) {
            assert!(a.defined() && b.defined(), "{name}");
            assert!(a.equal(b), "{name}");
            assert!(a.abs().sum(None::<Kind>).double_value(&[]) > 0.0, "{name}");
        }
    }

    #[test]
    fn gradients_are_the_same_with_and_without() {
        let gradients = |on: bool| {
            let params = Params::new(Device::Cpu, 0);
            let blocks: Rc<[Linear]> =
                (0..2).map(|i| Linear::new(&params.root().sub(i), 3, 3)).collect();
            let entry = Linear::new(&params.root().sub("entry"), 2, 3);
            let unused = Linear::new(&params.root().sub("unused"), 2, 3);
            params.set_checkpointing(on);
            let x = NoiseStream::new(1).normal(&[4, 2], Device::Cpu);
            let wanted: Vec<Tensor> = params.all().into_iter().map(|(_, t)| t).collect();
            // Twice: the first call must leave nothing behind.
            let mut last = Vec::new();
            for _ in 0..2 {
                let y =
                    run(&params, &blocks, entry.forward(&x), |block, x| block.forward(x).tanh());
                last = params.gradients(&y.square().sum(None::<Kind>), &wanted).unwrap();
            }
            assert!(!unused.weight.grad().defined());
            last
        };
        let (plain, recomputed) = (gradients(false), gradients(true));
        for (a, b) in plain.iter().zip(&recomputed) {
            assert_eq!(a.defined(), b.defined());
            assert!(!a.defined() || a.equal(b));
        }
        assert_eq!(plain.iter().filter(|g| g.defined()).count(), 6);
    }

    #[test]
    fn without_recording_nothing_is_kept() {
        let params = Params::new(Device::Cpu, 0);
        params.set_checkpointing(true);
        let blocks: Rc<[Linear]> = Rc::from([Linear::new(&params.root(), 2, 2)]);
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let _guard = tch::no_grad_guard();
        let _ = run(&params, &blocks, x, Linear::forward);
        assert!(params.runtime().tapes.borrow().is_empty());
    }
}
