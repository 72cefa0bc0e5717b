//! Linear layers in a row, with their gradient written out for a [`Tape`](super::Tape).
//!
//! In f32 on a CPU they then compute without libtorch's calls but for the activation (the `dense` module); elsewhere kernel by
//! kernel as autograd would.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::dense;
use super::tape::{self, Back, Wanted};
use super::{Activation, LayerNorm, Linear, Scope};

/// What stands between the layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct MlpOptions {
    /// After every layer but the last.
    pub activation: Activation,
    /// After the last layer too; without layers there is nothing.
    pub activated: bool,
    /// LayerNorm before each activation.
    pub layer_norm: bool,
    /// Layers between two activations multiply in bf16; parameters, input and output stay f32.
    pub bf16: bool,
}

/// Linear layers with an activation between them. Clones share their parameters.
#[derive(Clone, Debug)]
pub struct Mlp {
    layers: Rc<[Layer]>,
    activation: Activation,
    activated: bool,
}

#[derive(Debug)]
struct Layer {
    linear: Linear,
    norm: Option<LayerNorm>,
}

impl Mlp {
    /// `sizes` from input to output; layers are called `0`, `1`, ….
    pub fn new(scope: &Scope, sizes: &[i64], activation: Activation) -> Self {
        Self::with(scope, sizes, MlpOptions { activation, ..MlpOptions::default() })
    }

    /// The same with more between the layers; a layer's norm is called `norm`, below it.
    pub fn with(scope: &Scope, sizes: &[i64], options: MlpOptions) -> Self {
        let last = sizes.len().saturating_sub(2);
        let layers = sizes
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let scope = scope.sub(i);
                let active = i < last || options.activated;
                let linear = Linear::new(&scope, pair[0], pair[1]);
                Layer {
                    linear: linear.in_bf16(options.bf16 && i > 0 && active),
                    norm: (options.layer_norm && active)
                        .then(|| LayerNorm::new(&scope.sub("norm"), pair[1], 1e-5)),
                }
            })
            .collect();
        Self { layers, activation: options.activation, activated: options.activated }
    }

    /// One layer and nothing after it.
    pub fn of(linear: Linear) -> Self {
        let layers = Rc::from([Layer { linear, norm: None }]);
        Self { layers, activation: Activation::default(), activated: false }
    }

    /// `[.., in] -> [.., out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match Self::forward_each(std::slice::from_ref(self), &[x]).pop() {
            Some(y) => y,
            None => x.shallow_clone(),
        }
    }

    /// What `parts` are side by side, `[B, in]`, through each of several, `[B, out]` each; in one segment of the tape if one
    /// records.
    pub fn forward_each(mlps: &[Self], parts: &[&Tensor]) -> Vec<Tensor> {
        Self::run(mlps, parts, false)
    }

    /// The same as one tensor `[E, B, out]`.
    pub fn forward_stacked(mlps: &[Self], parts: &[&Tensor]) -> Tensor {
        Self::run(mlps, parts, true).pop().unwrap_or_default()
    }

    fn run(mlps: &[Self], parts: &[&Tensor], stacked: bool) -> Vec<Tensor> {
        let join = || match parts {
            [x] => x.shallow_clone(),
            _ => Tensor::cat(parts, -1),
        };
        let gather = |each: Vec<Tensor>| {
            if stacked { vec![Tensor::stack(&each, 0)] } else { each }
        };
        let dense = mlps.iter().all(|mlp| mlp.is_dense(parts));
        if !tape::records() || !mlps.iter().all(|mlp| mlp.is_written_out(parts, dense)) {
            let x = join();
            return gather(mlps.iter().map(|mlp| mlp.graph(&x)).collect());
        }
        let widths: Vec<i64> = parts.iter().map(|part| part.size()[1]).collect();
        let (outputs, kept): (Vec<_>, Vec<_>) = tch::no_grad(|| {
            let x = join().detach().contiguous();
            let (outputs, kept) = mlps.iter().map(|mlp| mlp.keep(&x, dense)).unzip();
            (gather(outputs), kept)
        });
        let mlps = mlps.to_vec();
        tape::write(parts, outputs, move |grads, wanted| {
            let mut back = Back::default();
            let wants_input = (0..widths.len()).any(|i| wanted.input(i));
            let mut whole: Option<Tensor> = None;
            // Last one first: its numbers are still in the processor's cache.
            for (i, (mlp, kept)) in mlps.iter().zip(kept).enumerate().rev() {
                let grad = if stacked { grads[0].get(i as i64) } else { grads[i].shallow_clone() };
                let grad = if dense {
                    mlp.back_dense(kept, &grad, wanted, wants_input, &mut back)
                } else {
                    mlp.back(kept, &grad, wanted, wants_input, &mut back)
                };
                whole = match (whole, grad) {
                    (Some(sum), Some(grad)) => Some(sum + grad),
                    (sum, grad) => sum.or(grad),
                };
            }
            let mut start = 0;
            for (i, &width) in widths.iter().enumerate() {
                let part = whole.as_ref().filter(|_| wanted.input(i));
                back.inputs.push(part.map(|whole| whole.narrow(1, start, width)));
                start += width;
            }
            back
        })
    }

    /// Whether layer `i` is followed by the activation.
    fn is_active(&self, i: usize) -> bool {
        i + 1 < self.layers.len() || self.activated
    }

    fn graph(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for (i, Layer { linear, norm }) in self.layers.iter().enumerate() {
            x = linear.forward(&x.to_kind(linear.kind()));
            if self.is_active(i) {
                if let Some(norm) = norm {
                    x = norm.forward(&x);
                }
                x = self.activation.consume(x);
            }
        }
        if self.activated { x.to_kind(Kind::Float) } else { x }
    }

    /// Whether the formulas below are those of this network; `dense`: the `dense` module computes.
    fn is_written_out(&self, parts: &[&Tensor], dense: bool) -> bool {
        let matrix = |x: &&Tensor| x.dim() == 2 && x.kind() == Kind::Float && x.numel() > 0;
        parts.iter().all(matrix)
            && !self.layers.is_empty()
            && self.layers.iter().all(|l| l.linear.is_plain() && (l.norm.is_none() || dense))
    }

    /// Whether the `dense` module computes for this network: in f32 on a CPU, unless several threads would pay.
    fn is_dense(&self, parts: &[&Tensor]) -> bool {
        let rows = parts.first().and_then(|part| part.size().first().copied()).unwrap_or(0);
        let pays = |layer: &Layer| {
            layer.linear.weight.numel() as i64 * rows > ONE_THREAD && tch::get_num_threads() > 1
        };
        parts.iter().all(|x| dense::serves(x))
            && self.layers.iter().all(|l| l.linear.kind() == Kind::Float && !pays(l))
    }

    /// `x` through every layer without a graph, and what the way back needs.
    fn keep(&self, x: &Tensor, dense: bool) -> (Tensor, Vec<Kept>) {
        if dense {
            return self.keep_dense(x);
        }
        let mut kept = Vec::with_capacity(self.layers.len());
        let mut x = x.shallow_clone();
        for (i, Layer { linear, .. }) in self.layers.iter().enumerate() {
            let kind = linear.kind();
            let (input, weight) = (x.to_kind(kind), linear.weight.to_kind(kind));
            let bias = linear.bias.as_ref().map(|bias| bias.to_kind(kind));
            x = input.linear(&weight, bias.as_ref());
            let seen = self.is_active(i).then(|| self.activate(&mut x));
            kept.push(Kept { input, weight, normed: None, seen });
        }
        (if self.activated { x.to_kind(Kind::Float) } else { x }, kept)
    }

    /// The same without libtorch's products.
    fn keep_dense(&self, x: &Tensor) -> (Tensor, Vec<Kept>) {
        let mut kept = Vec::with_capacity(self.layers.len());
        let mut x = x.shallow_clone();
        for (i, Layer { linear, norm }) in self.layers.iter().enumerate() {
            let (active, weight) = (self.is_active(i), linear.weight.shallow_clone());
            let relu = active && self.activation == Activation::Relu && norm.is_none();
            let mut y = dense::linear(&x, &weight, linear.bias.as_ref(), relu);
            let mut normed = None;
            if let Some(norm) = norm {
                let (z, standard, scale) =
                    dense::layer_norm(&y, &norm.weight, &norm.bias, norm.eps);
                normed = Some((standard, scale));
                y = z;
            }
            let seen = match (relu, active) {
                (true, _) => Some(y.shallow_clone()),
                (false, true) => Some(self.activate(&mut y)),
                (false, false) => None,
            };
            kept.push(Kept { input: x, weight, normed, seen });
            x = y;
        }
        (x, kept)
    }

    /// Through the activation; returns what tells its slope.
    fn activate(&self, x: &mut Tensor) -> Tensor {
        let y = self.activation.apply(x);
        let z = std::mem::replace(x, y);
        if self.activation.knows_its_slope() { x.shallow_clone() } else { z }
    }

    /// From the gradient of the output to those of parameters, written to `back`, and of the input.
    fn back(
        &self,
        kept: Vec<Kept>,
        grad: &Tensor,
        wanted: &Wanted<'_>,
        wants_input: bool,
        back: &mut Back,
    ) -> Option<Tensor> {
        let mut grad = grad.shallow_clone();
        for (i, (Layer { linear, .. }, kept)) in self.layers.iter().zip(kept).enumerate().rev() {
            let Kept { input, weight, seen, .. } = kept;
            grad = match &seen {
                Some(seen) => self.activation.back(&grad.to_kind(seen.kind()), seen),
                None => grad.to_kind(weight.kind()),
            };
            if let Some(bias) = linear.bias.as_ref().filter(|bias| wanted.param(bias)) {
                let sum = grad.sum_dim_intlist([0i64].as_slice(), false, grad.kind());
                back.give(bias, sum.to_kind(bias.kind()));
            }
            if wanted.param(&linear.weight) {
                let product = grad.tr().mm(&input);
                back.give(&linear.weight, product.to_kind(linear.weight.kind()));
            }
            if i > 0 || wants_input {
                grad = grad.mm(&weight);
            }
        }
        wants_input.then(|| grad.to_kind(Kind::Float))
    }

    /// The same for what [`Self::keep_dense`] kept.
    fn back_dense(
        &self,
        mut kept: Vec<Kept>,
        grad: &Tensor,
        wanted: &Wanted<'_>,
        wants_input: bool,
        back: &mut Back,
    ) -> Option<Tensor> {
        let mut grad = grad.contiguous();
        // A row whose output has no gradient gives none to its input: half of what goes back through twin critics.
        let rows = if self.wants_params(wanted) { None } else { dense::rows_with_numbers(&grad) };
        if let Some((rows, _)) = &rows {
            grad = dense::pick_rows(&grad, rows);
            for kept in &mut kept {
                kept.pick_rows(rows);
            }
        }
        for (i, (Layer { linear, norm }, kept)) in self.layers.iter().zip(kept).enumerate().rev() {
            let Kept { input, weight, normed, seen } = kept;
            let mut of_bias = None;
            if let Some(seen) = seen {
                if self.activation == Activation::Relu {
                    let (through, sum) = dense::through_relu(&grad, &seen);
                    of_bias = norm.is_none().then_some(sum);
                    grad = through;
                } else {
                    grad = self.activation.back(&grad, &seen);
                }
            }
            if let (Some(norm), Some((standard, scale))) = (norm, &normed) {
                if wanted.param(&norm.weight) {
                    back.give(&norm.weight, dense::sum_of_products(&grad, standard));
                }
                if wanted.param(&norm.bias) {
                    back.give(&norm.bias, dense::sum(&grad));
                }
                dense::through_norm(&mut grad, standard, scale, &norm.weight);
            }
            if let Some(bias) = linear.bias.as_ref().filter(|bias| wanted.param(bias)) {
                back.give(bias, of_bias.unwrap_or_else(|| dense::sum(&grad)));
            }
            if wanted.param(&linear.weight) {
                back.give(&linear.weight, dense::tr_times(&grad, &input));
            }
            if i > 0 || wants_input {
                grad = dense::times(&grad, &weight);
            }
        }
        wants_input.then(|| match &rows {
            Some((rows, b)) => dense::put_rows(&grad, rows, *b),
            None => grad,
        })
    }

    fn wants_params(&self, wanted: &Wanted<'_>) -> bool {
        self.layers.iter().any(|Layer { linear, norm }| {
            let norm = norm.iter().flat_map(|norm| [&norm.weight, &norm.bias]);
            norm.chain([&linear.weight]).chain(&linear.bias).any(|param| wanted.param(param))
        })
    }
}

/// Products of a layer, multiplications, that one thread does in half a millisecond: more are left to libtorch's threads if
/// there are any.
const ONE_THREAD: i64 = 1 << 25;

/// What a layer's way back needs.
struct Kept {
    /// What was multiplied, in the kind it was multiplied in.
    input: Tensor,
    /// By what.
    weight: Tensor,
    /// What LayerNorm made before its weight and bias, `[B, N]`, and each row's `1 / σ`, `[B]`.
    normed: Option<(Tensor, Tensor)>,
    /// What tells the activation's slope: its input or its output; none without one.
    seen: Option<Tensor>,
}

impl Kept {
    /// For the way back of a few rows to the input.
    fn pick_rows(&mut self, rows: &[usize]) {
        let pick = |x: &Tensor| dense::pick_rows(x, rows);
        self.seen = self.seen.as_ref().map(pick);
        self.normed = self.normed.as_ref().map(|(x, scale)| (pick(x), pick(scale)));
    }
}
