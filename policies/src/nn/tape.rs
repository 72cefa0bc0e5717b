//! Gradients of whole networks at once, where autograd's node per operation costs as much as the operation.
//!
//! While a [`Tape`] records, what knows its own derivative (an [`Mlp`](super::Mlp), a normal distribution) computes without
//! autograd and hands out leaves: autograd's graph is cut into the pieces in between. [`Tape::gradients`] walks backwards:
//! autograd through a piece, the formulas of a segment to its inputs, and from there on, straight to the segment that made an
//! input or again through a piece of autograd.
//!
//! A tape belongs to its thread. Between its beginning and [`Tape::gradients`] stands one forward pass, and no parameter moves:
//! the way back reads them again.

use std::cell::RefCell;
use std::marker::PhantomData;

use tch::{Kind, TchError, Tensor};

use super::Params;

thread_local! {
    /// What the tapes that record on this thread hold; segments are written to the last, or nowhere if it wants none.
    static TAPES: RefCell<Vec<Option<Vec<Segment>>>> = const { RefCell::new(Vec::new()) };
}

/// From the gradients of a segment's outputs to those of its inputs and parameters.
type Formulas = Box<dyn FnOnce(&[Tensor], &Wanted<'_>) -> Back>;

/// A part of a forward pass that knows its derivative.
struct Segment {
    /// What it saw, with its graph.
    inputs: Vec<Tensor>,
    /// What it said: leaves.
    outputs: Vec<Tensor>,
    back: Formulas,
}

/// Which gradients a segment is asked for.
pub(crate) struct Wanted<'a> {
    inputs: Vec<bool>,
    params: &'a Slots,
}

impl Wanted<'_> {
    /// That of input `i`.
    pub(crate) fn input(&self, i: usize) -> bool {
        self.inputs[i]
    }

    /// That of its parameter `tensor`.
    pub(crate) fn param(&self, tensor: &Tensor) -> bool {
        self.params.position(tensor).is_some()
    }
}

/// Gradients of a segment.
#[derive(Default)]
pub(crate) struct Back {
    /// Of each input; none where it was not wanted.
    pub(crate) inputs: Vec<Option<Tensor>>,
    /// Parameters and their gradients, wanted ones only.
    pub(crate) params: Vec<(Tensor, Tensor)>,
}

impl Back {
    /// The gradient of a parameter.
    pub(crate) fn give(&mut self, param: &Tensor, grad: Tensor) {
        self.params.push((param.shallow_clone(), grad));
    }
}

/// Parameters by where they lie in memory.
struct Slots(Vec<usize>);

impl Slots {
    fn of(tensors: &[&Tensor]) -> Self {
        Self(tensors.iter().map(|tensor| tensor.data_ptr() as usize).collect())
    }

    fn position(&self, tensor: &Tensor) -> Option<usize> {
        let place = tensor.data_ptr() as usize;
        self.0.iter().position(|&p| p == place)
    }
}

/// Whether segments are to compute by their formulas on this thread.
pub(crate) fn records() -> bool {
    TAPES.with_borrow(|tapes| !tapes.is_empty())
}

/// `f` without gradients, segments by the same formulas as on a tape.
pub fn without_gradients<T>(f: impl FnOnce() -> T) -> T {
    let _tape = Tape::begin(None);
    tch::no_grad(f)
}

/// Writes a segment to the tape: `outputs`, computed from `inputs` without a graph, come back as leaves. `back` gives one
/// gradient or none per input.
pub(crate) fn write(
    inputs: &[&Tensor],
    outputs: Vec<Tensor>,
    back: impl FnOnce(&[Tensor], &Wanted<'_>) -> Back + 'static,
) -> Vec<Tensor> {
    TAPES.with_borrow_mut(|tapes| {
        let Some(Some(tape)) = tapes.last_mut() else { return outputs };
        let outputs: Vec<Tensor> =
            outputs.into_iter().map(|output| output.set_requires_grad(true)).collect();
        let leaves = outputs.iter().map(Tensor::shallow_clone).collect();
        let inputs = inputs.iter().map(|input| input.shallow_clone()).collect();
        tape.push(Segment { inputs, outputs, back: Box::new(back) });
        leaves
    })
}

/// What is to become less.
#[derive(Debug)]
pub enum Loss {
    /// A scalar with a graph.
    Scalar(Tensor),
    /// Tensors with a graph and the loss's gradient for each, where that has a closed form.
    Slopes(Vec<(Tensor, Tensor)>),
}

impl Loss {
    /// A scalar with this gradient: `Σ tensor · slope`.
    pub fn scalar(&self) -> Tensor {
        match self {
            Self::Scalar(loss) => loss.shallow_clone(),
            Self::Slopes(slopes) => {
                let each = slopes.iter().map(|(of, slope)| (of * slope).sum(None::<Kind>));
                each.reduce(|sum, term| sum + term).unwrap_or_default()
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Tape {
    /// Whether it is on this thread's stack.
    on: bool,
    /// It stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Tape {
    /// Begins to record a forward pass through models of `params`. One with gradient checkpointing cuts the graph in its own
    /// way: then nothing is recorded.
    pub fn record(params: &[&Params]) -> Self {
        if params.iter().any(|p| p.runtime().checkpointing.get()) {
            return Self { on: false, thread: PhantomData };
        }
        Self::begin(Some(Vec::new()))
    }

    fn begin(segments: Option<Vec<Segment>>) -> Self {
        TAPES.with_borrow_mut(|tapes| tapes.push(segments));
        Self { on: true, thread: PhantomData }
    }

    /// Whether anything is written to it.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The gradient of the sum of `losses` for each of `wanted`: parameters, undefined where no loss depends on one.
    ///
    /// # Errors
    /// What libtorch says if it cannot differentiate.
    pub fn gradients(
        mut self,
        losses: &[&Loss],
        wanted: &[&Tensor],
    ) -> Result<Vec<Tensor>, TchError> {
        let segments = self.end().into_iter();
        let mut walk = Walk {
            slots: Slots::of(wanted),
            wanted,
            found: wanted.iter().map(|_| None).collect(),
            segments: segments.map(|s| (s.outputs.iter().map(|_| None).collect(), s)).collect(),
            roots: Vec::new(),
        };
        for loss in losses {
            match loss {
                Loss::Scalar(loss) => walk.roots.push(loss.shallow_clone()),
                Loss::Slopes(slopes) => {
                    for (of, slope) in slopes {
                        walk.pull(of, slope.shallow_clone());
                    }
                }
            }
        }
        walk.autograd()?;
        while let Some((grads, segment)) = walk.segments.pop() {
            walk.through(segment, grads);
            walk.autograd()?;
        }
        Ok(walk.found.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Stops recording.
    fn end(&mut self) -> Vec<Segment> {
        if !std::mem::take(&mut self.on) {
            return Vec::new();
        }
        TAPES.with_borrow_mut(Vec::pop).flatten().unwrap_or_default()
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.end();
    }
}

/// On the way back.
struct Walk<'a> {
    wanted: &'a [&'a Tensor],
    slots: Slots,
    /// Gradients so far of what is wanted.
    found: Vec<Option<Tensor>>,
    /// Segments not yet passed, with the gradients so far of their outputs.
    segments: Vec<(Vec<Option<Tensor>>, Segment)>,
    /// Scalars whose graphs autograd has not gone through.
    roots: Vec<Tensor>,
}

impl Walk<'_> {
    /// Through autograd's graph from the roots to every segment before and to what is wanted.
    fn autograd(&mut self) -> Result<(), TchError> {
        if self.roots.is_empty() {
            return Ok(());
        }
        let outputs = self.segments.iter().flat_map(|(_, segment)| &segment.outputs);
        let asked: Vec<&Tensor> = outputs.chain(self.wanted.iter().copied()).collect();
        // Pieces of the graph may be passed again, from another root.
        let mut grads = Tensor::f_run_backward(&self.roots, &asked, true, false)?.into_iter();
        self.roots.clear();
        let sums = self.segments.iter_mut().flat_map(|(sums, _)| sums).chain(&mut self.found);
        let _guard = tch::no_grad_guard();
        for (sum, grad) in sums.zip(&mut grads) {
            if grad.defined() {
                add(sum, grad);
            }
        }
        Ok(())
    }

    /// Through one segment, the last that is left.
    fn through(&mut self, segment: Segment, grads: Vec<Option<Tensor>>) {
        if grads.iter().all(Option::is_none) {
            return;
        }
        let Segment { inputs, outputs, back } = segment;
        let back = {
            let _guard = tch::no_grad_guard();
            let grads: Vec<Tensor> = grads
                .into_iter()
                .zip(&outputs)
                .map(|(grad, output)| grad.unwrap_or_else(|| output.zeros_like()))
                .collect();
            let wants = inputs.iter().map(Tensor::requires_grad).collect();
            back(&grads, &Wanted { inputs: wants, params: &self.slots })
        };
        // Gradients have no graph, so nothing below is recorded but the roots.
        for (param, grad) in back.params {
            if let Some(i) = self.slots.position(&param) {
                add(&mut self.found[i], grad);
            }
        }
        for (input, grad) in inputs.iter().zip(back.inputs) {
            if let Some(grad) = grad {
                self.pull(input, grad);
            }
        }
    }

    /// Takes the gradient of `tensor` further back.
    fn pull(&mut self, tensor: &Tensor, grad: Tensor) {
        if let Some(i) = self.slots.position(tensor) {
            return add(&mut self.found[i], grad);
        }
        match self.maker(tensor) {
            Some((sum, size)) => add(sum, grad.reshape(size)),
            None => self.roots.push((tensor * grad).sum(None::<Kind>)),
        }
    }

    /// Where the gradient of `input` is summed up and its shape, if `input` is the output of an earlier segment, possibly in
    /// another shape: the same numbers in the same order.
    fn maker(&mut self, input: &Tensor) -> Option<(&mut Option<Tensor>, Vec<i64>)> {
        let place = input.data_ptr();
        if !input.is_contiguous() {
            return None;
        }
        self.segments.iter_mut().find_map(|(sums, segment)| {
            let i = segment
                .outputs
                .iter()
                .position(|output| output.data_ptr() == place && output.numel() == input.numel())?;
            Some((&mut sums[i], segment.outputs[i].size()))
        })
    }
}

/// Not in place: gradients may share memory.
fn add(sum: &mut Option<Tensor>, grad: Tensor) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + grad,
        None => grad,
    });
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::NoiseStream;
    use crate::nn::{Activation, Init, Linear, Mlp, MlpOptions};

    /// A trunk, two layers on its features, an action made of those by autograd, and twin networks that judge it.
    struct Model {
        params: Params,
        trunk: Mlp,
        heads: [Mlp; 2],
        gain: Tensor,
        judges: [Mlp; 2],
    }

    const ROWS: i64 = 37;

    impl Model {
        fn new(options: MlpOptions) -> Self {
            let params = Params::new(Device::Cpu, 3);
            let root = params.root();
            let trunk = MlpOptions { activated: true, ..options };
            Self {
                trunk: Mlp::with(&root.sub("trunk"), &[5, 33, 18], trunk),
                heads: ["mean", "std"].map(|name| Mlp::of(Linear::new(&root.sub(name), 18, 3))),
                gain: root.param("gain", &[3], Init::Normal { std: 1.0 }),
                judges: ["a", "b"].map(|name| Mlp::with(&root.sub(name), &[8, 40, 40, 1], options)),
                params,
            }
        }

        /// What the judges say, `[2, ROWS]`, and another number per row.
        fn forward(&self) -> (Tensor, Tensor) {
            let x = NoiseStream::new(1).normal(&[ROWS, 5], Device::Cpu);
            let features = self.trunk.forward(&x);
            let mean = self.heads[0].forward(&features);
            // In another shape, as a chunk of one action.
            let std = self.heads[1].forward(&features).reshape([ROWS, 1, 3]);
            let action = (&mean * &self.gain + std.squeeze_dim(1).sigmoid()).tanh();
            let q = Mlp::forward_stacked(&self.judges, &[&x, &action]).squeeze_dim(-1);
            (q, mean.square().sum_dim_intlist([1i64].as_slice(), false, None::<Kind>))
        }

        /// Gradients by autograd alone, and by the tape; of the parameters whose name begins as `of`.
        fn both(&self, of: &str, slopes: (&Tensor, &Tensor)) -> Vec<(String, Tensor, Tensor)> {
            let wanted: Vec<(String, Tensor)> =
                self.params.all().into_iter().filter(|(name, _)| name.starts_with(of)).collect();
            let tensors: Vec<&Tensor> = wanted.iter().map(|(_, tensor)| tensor).collect();
            let loss = |(q, extra): (Tensor, Tensor)| {
                Loss::Slopes(vec![(q, slopes.0.shallow_clone()), (extra, slopes.1.shallow_clone())])
            };
            let plain = loss(self.forward()).scalar();
            let plain = Tensor::run_backward(&[plain], &tensors, false, false);
            let tape = Tape::record(&[&self.params]);
            let taped = loss(self.forward());
            let taped = tape.gradients(&[&taped], &tensors).unwrap();
            assert!(!records());
            let names = wanted.iter().map(|(name, _)| name.clone());
            names.zip(plain.into_iter().zip(taped)).map(|(n, (p, t))| (n, p, t)).collect()
        }
    }

    fn slopes() -> (Tensor, Tensor) {
        let noise = |seed: u64, size: &[i64]| NoiseStream::new(seed).normal(size, Device::Cpu);
        (noise(7, &[2, ROWS]), noise(8, &[ROWS]))
    }

    /// Largest difference as a share of the largest gradient.
    fn away(plain: &Tensor, taped: &Tensor) -> f64 {
        assert_eq!(plain.size(), taped.size());
        let scale = plain.abs().max().double_value(&[]);
        assert!(scale > 0.0);
        (plain - taped).abs().max().double_value(&[]) / scale
    }

    const ALL: [Activation; 7] = [
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Mish,
        Activation::Tanh,
        Activation::QuickGelu,
    ];

    #[test]
    fn gradients_are_those_of_autograd() {
        for activation in ALL {
            for layer_norm in [false, true] {
                let model =
                    Model::new(MlpOptions { activation, layer_norm, ..MlpOptions::default() });
                let (q, extra) = slopes();
                for (name, plain, taped) in model.both("", (&q, &extra)) {
                    let away = away(&plain, &taped);
                    assert!(away < 1e-5, "{activation:?} {layer_norm} {name}: {away}");
                }
            }
        }
    }

    #[test]
    fn in_bf16_gradients_are_autograds_bit_for_bit() {
        for activation in [Activation::Relu, Activation::Silu] {
            let params = Params::new(Device::Cpu, 3);
            let options = MlpOptions { activation, bf16: true, ..MlpOptions::default() };
            let mlp = Mlp::with(&params.root(), &[5, 40, 40, 2], options);
            let wanted: Vec<Tensor> = params.all().into_iter().map(|(_, tensor)| tensor).collect();
            let wanted: Vec<&Tensor> = wanted.iter().collect();
            let x = NoiseStream::new(1).normal(&[ROWS, 5], Device::Cpu);
            let loss = || mlp.forward(&x).square().sum(None::<Kind>);
            let plain = Tensor::run_backward(&[loss()], &wanted, false, false);
            let tape = Tape::record(&[&params]);
            let taped = tape.gradients(&[&Loss::Scalar(loss())], &wanted).unwrap();
            assert!(plain.iter().zip(&taped).all(|(plain, taped)| plain.equal(taped)));
        }
    }

    #[test]
    fn rows_without_a_gradient_are_left_out_and_nothing_else() {
        let model = Model::new(MlpOptions { layer_norm: true, ..MlpOptions::default() });
        let (q, extra) = slopes();
        // Of each row one judge counts, as in SAC's minimum; then none of the second.
        let row = Tensor::arange(ROWS, (Kind::Float, Device::Cpu)).remainder(2.0);
        let half = &q * Tensor::stack(&[&row, &(1.0 - &row)], 0);
        let first = &q * Tensor::from_slice(&[1f32, 0.0]).unsqueeze(1);
        for slope in [half, first] {
            // The judges' own gradients are not wanted, so their rows are picked.
            for (name, plain, taped) in model.both("trunk", (&slope, &extra)) {
                assert!(away(&plain, &taped) < 1e-5, "{name}");
            }
        }
    }

    #[test]
    fn what_no_loss_depends_on_has_no_gradient() {
        let model = Model::new(MlpOptions::default());
        let all = model.params.all();
        let wanted: Vec<&Tensor> = all.iter().map(|(_, tensor)| tensor).collect();
        let tape = Tape::record(&[&model.params]);
        let (_, extra) = model.forward();
        let loss = Loss::Scalar(extra.sum(None::<Kind>));
        let grads = tape.gradients(&[&loss], &wanted).unwrap();
        for ((name, _), grad) in all.iter().zip(&grads) {
            let counts = name.starts_with("trunk") || name.starts_with("mean");
            assert_eq!(grad.defined(), counts, "{name}");
        }
    }

    #[test]
    fn a_tape_that_is_dropped_records_no_more_and_the_one_below_goes_on() {
        let model = Model::new(MlpOptions::default());
        let below = Tape::record(&[&model.params]);
        {
            let _above = Tape::record(&[&model.params]);
            let _ = model.forward();
        }
        assert!(records());
        let (q, _) = model.forward();
        let weight = model.params.get("a.0.weight").unwrap();
        let grads = below.gradients(&[&Loss::Scalar(q.sum(None::<Kind>))], &[&weight]).unwrap();
        assert!(grads[0].defined() && !records());
    }

    #[test]
    fn without_gradients_the_numbers_are_those_of_the_tape() {
        let model = Model::new(MlpOptions::default());
        let plain = without_gradients(|| model.forward().0);
        let tape = Tape::record(&[&model.params]);
        let (taped, _) = model.forward();
        assert!(taped.equal(&plain) && taped.requires_grad() && !plain.requires_grad());
        drop(tape);
        let autograd = model.forward().0;
        assert!(away(&autograd, &plain) < 1e-5);
    }

    #[test]
    fn a_model_with_checkpointing_keeps_its_own_way() {
        let model = Model::new(MlpOptions::default());
        model.params.set_checkpointing(true);
        assert!(!Tape::record(&[&model.params]).is_on());
        assert!(!records());
    }
}
