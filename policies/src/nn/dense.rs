//! Layers on a CPU as loops over their numbers: for a few hundred rows libtorch's calls cost as much as its arithmetic. Matrix
//! products are those of the `gemm` crate.

use tch::{Device, Kind, Tensor};

use crate::raw::{floats, floats_mut, widest};

/// Whether this module computes on `x`.
pub(super) fn serves(x: &Tensor) -> bool {
    x.device() == Device::Cpu && x.kind() == Kind::Float && x.dim() == 2
}

/// How a matrix lies in memory: as its rows, or as those of its transpose.
#[derive(Clone, Copy)]
enum Lies {
    Plain,
    Transposed,
}

/// `y = a b` of `[M, K]` and `[K, N]`, either of which may lie transposed.
fn product(y: &mut [f32], [m, n, k]: [usize; 3], a: (&[f32], Lies), b: (&[f32], Lies)) {
    assert!(y.len() == m * n && a.0.len() == m * k && b.0.len() == k * n, "factors fit");
    let strides = |lies: Lies, [rows, columns]: [usize; 2]| match lies {
        Lies::Plain => (1, columns as isize),
        Lies::Transposed => (rows as isize, 1),
    };
    let (a_column, a_row) = strides(a.1, [m, k]);
    let (b_column, b_row) = strides(b.1, [k, n]);
    #[expect(unsafe_code, reason = "gemm takes pointers and strides")]
    // SAFETY: sizes and strides are those of slices of m n, m k and k n numbers (checked above), of which `y` is borrowed
    // alone; `read_dst` is false.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.0.as_ptr(),
            a_column,
            a_row,
            b.0.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn empty(rows: usize, columns: usize) -> Tensor {
    Tensor::empty([rows as i64, columns as i64], (Kind::Float, Device::Cpu))
}

/// `[M, N]` of a matrix.
fn size(x: &Tensor) -> [usize; 2] {
    let size = x.size();
    [size[0] as usize, size[1] as usize]
}

/// `x Wᵀ + b`, through ReLU if `relu`; `x` `[B, K]`, `weight` `[N, K]`, `bias` `[N]`. What is not a number stays so.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, relu: bool) -> Tensor {
    let ([b, k], [n, _]) = (size(x), size(weight));
    let mut y = empty(b, n);
    let out = floats_mut(&mut y);
    if n <= FEW {
        dots(out, floats(x), floats(weight), n);
    } else {
        product(out, [b, n, k], (floats(x), Lies::Plain), (floats(weight), Lies::Transposed));
    }
    match (bias, relu) {
        (Some(bias), true) => add_bias_and_relu(out, floats(bias)),
        (Some(bias), false) => add_bias(out, floats(bias)),
        (None, true) => add_bias_and_relu(out, &vec![0.0; n]),
        (None, false) => {}
    }
    y
}

/// `gradᵀ x`: `[B, N]` and `[B, K]` to `[N, K]`.
pub(super) fn tr_times(grad: &Tensor, x: &Tensor) -> Tensor {
    let ([b, n], [_, k]) = (size(grad), size(x));
    let mut y = empty(n, k);
    if k < NARROW && n > k {
        // gemm is made for many columns.
        let mut turned = empty(k, n);
        let factors = ((floats(x), Lies::Transposed), (floats(grad), Lies::Plain));
        product(floats_mut(&mut turned), [k, n, b], factors.0, factors.1);
        transpose(floats_mut(&mut y), floats(&turned), k);
        return y;
    }
    let factors = ((floats(grad), Lies::Transposed), (floats(x), Lies::Plain));
    product(floats_mut(&mut y), [n, k, b], factors.0, factors.1);
    y
}

/// `grad W`: `[B, N]` and `[N, K]` to `[B, K]`.
pub(super) fn times(grad: &Tensor, weight: &Tensor) -> Tensor {
    let ([b, n], [_, k]) = (size(grad), size(weight));
    let mut y = empty(b, k);
    let factors = ((floats(grad), Lies::Plain), (floats(weight), Lies::Plain));
    product(floats_mut(&mut y), [b, k, n], factors.0, factors.1);
    y
}

/// `grad` where `y`, the output, is above 0, else 0, `[B, N]`, and the sum of that over rows, `[N]`.
pub(super) fn through_relu(grad: &Tensor, y: &Tensor) -> (Tensor, Tensor) {
    let [b, n] = size(y);
    let mut through = empty(b, n);
    let mut sum = Tensor::zeros([n as i64], (Kind::Float, Device::Cpu));
    mask_and_sum(floats_mut(&mut through), floats_mut(&mut sum), floats(grad), floats(y));
    (through, sum)
}

/// Which rows of `[B, N]` are not all zero, and `B`; none if they are more than three quarters.
pub(super) fn rows_with_numbers(x: &Tensor) -> Option<(Vec<usize>, usize)> {
    let [b, n] = size(x);
    let rows = floats(x).chunks_exact(n.max(1)).enumerate();
    let rows: Vec<usize> =
        rows.filter(|(_, row)| row.iter().any(|&v| v != 0.0)).map(|(i, _)| i).collect();
    (rows.len() * 4 <= b * 3 && !rows.is_empty()).then_some((rows, b))
}

/// Those rows of `[B, ..]`.
pub(super) fn pick_rows(x: &Tensor, rows: &[usize]) -> Tensor {
    let mut size = x.size();
    size[0] = rows.len() as i64;
    let mut picked = Tensor::empty(&size, (Kind::Float, Device::Cpu));
    let n = picked.numel() / rows.len().max(1);
    let from = floats(x);
    for (to, &row) in floats_mut(&mut picked).chunks_exact_mut(n.max(1)).zip(rows) {
        to.copy_from_slice(&from[row * n..(row + 1) * n]);
    }
    picked
}

/// `[B, N]` of zeros but for these rows.
pub(super) fn put_rows(x: &Tensor, rows: &[usize], b: usize) -> Tensor {
    let [_, n] = size(x);
    let mut whole = Tensor::zeros([b as i64, n as i64], (Kind::Float, Device::Cpu));
    let to = floats_mut(&mut whole);
    for (from, &row) in floats(x).chunks_exact(n.max(1)).zip(rows) {
        to[row * n..(row + 1) * n].copy_from_slice(from);
    }
    whole
}

/// The sum over rows, `[B, N]` to `[N]`.
pub(super) fn sum(x: &Tensor) -> Tensor {
    let mut sum = Tensor::zeros(&x.size()[1..], (Kind::Float, Device::Cpu));
    add_rows(floats_mut(&mut sum), floats(x));
    sum
}

/// The sum over rows of `x y`, `[B, N]` to `[N]`.
pub(super) fn sum_of_products(x: &Tensor, y: &Tensor) -> Tensor {
    let mut sum = Tensor::zeros(&x.size()[1..], (Kind::Float, Device::Cpu));
    add_products(floats_mut(&mut sum), floats(x), floats(y));
    sum
}

/// LayerNorm over rows of `[B, N]`: the result, what stands before weight and bias, and `1 / σ` of each row, `[B]`.
pub(super) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> (Tensor, Tensor, Tensor) {
    let [b, n] = size(x);
    let (mut y, mut standard) = (empty(b, n), empty(b, n));
    let mut scale = Tensor::empty([b as i64], (Kind::Float, Device::Cpu));
    standardise(
        floats_mut(&mut y),
        floats_mut(&mut standard),
        floats_mut(&mut scale),
        floats(x),
        floats(weight),
        floats(bias),
        eps as f32,
    );
    (y, standard, scale)
}

/// Through [`layer_norm`], in place; `grad` `[B, N]` in memory of its own.
pub(super) fn through_norm(grad: &mut Tensor, standard: &Tensor, scale: &Tensor, weight: &Tensor) {
    unstandardise(floats_mut(grad), floats(standard), floats(scale), floats(weight));
}

/// Side by side, so that the compiler may use wide registers in the order written here.
const LANES: usize = 16;

/// `Σ f(a, b)` over pairs of numbers.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled into each instruction set's copy")]
fn total(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (pairs_a, pairs_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = pairs_a.remainder().iter().zip(pairs_b.remainder());
    let rest: f32 = rest.map(|(&a, &b)| f(a, b)).sum();
    for (a, b) in pairs_a.zip(pairs_b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f(a, b);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Fewer columns than this are few.
const NARROW: usize = 32;

/// So many outputs or less are quicker as dot products than as a matrix product.
const FEW: usize = 4;

widest! {
    /// `y = x wᵀ`, `w` `[n, K]`.
    fn dots(y: &mut [f32], x: &[f32], w: &[f32], n: usize) {
        let k = w.len() / n;
        for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(k)) {
            for (y, w) in y.iter_mut().zip(w.chunks_exact(k)) {
                *y = total(x, w, |x, w| x * w);
            }
        }
    }
}

/// `[R, C]` to `[C, R]`.
fn transpose(to: &mut [f32], from: &[f32], rows: usize) {
    let columns = from.len() / rows.max(1);
    for (r, row) in from.chunks_exact(columns.max(1)).enumerate() {
        for (c, v) in row.iter().enumerate() {
            to[c * rows + r] = *v;
        }
    }
}

widest! {
    fn add_bias_and_relu(y: &mut [f32], bias: &[f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                let z = *y + *b;
                *y = if z < 0.0 { 0.0 } else { z };
            }
        }
    }
}

widest! {
    fn add_bias(y: &mut [f32], bias: &[f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += *b;
            }
        }
    }
}

widest! {
    fn mask_and_sum(through: &mut [f32], sum: &mut [f32], grad: &[f32], y: &[f32]) {
        let n = sum.len();
        let rows = through.chunks_exact_mut(n).zip(grad.chunks_exact(n)).zip(y.chunks_exact(n));
        for ((through, grad), y) in rows {
            for (((t, sum), g), y) in through.iter_mut().zip(&mut *sum).zip(grad).zip(y) {
                *t = if *y <= 0.0 { 0.0 } else { *g };
                *sum += *t;
            }
        }
    }
}

widest! {
    fn add_rows(sum: &mut [f32], x: &[f32]) {
        for row in x.chunks_exact(sum.len()) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += *x;
            }
        }
    }
}

widest! {
    fn add_products(sum: &mut [f32], x: &[f32], y: &[f32]) {
        let n = sum.len();
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact(n)) {
            for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
                *sum += *x * *y;
            }
        }
    }
}

widest! {
    fn standardise(
        y: &mut [f32],
        standard: &mut [f32],
        scale: &mut [f32],
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        eps: f32,
    ) {
        let n = weight.len();
        let rows = y.chunks_exact_mut(n).zip(standard.chunks_exact_mut(n)).zip(x.chunks_exact(n));
        for (((y, standard), x), scale) in rows.zip(scale) {
            let mean = total(x, x, |a, _| a) / n as f32;
            let variance = total(x, x, |a, _| (a - mean) * (a - mean)) / n as f32;
            *scale = 1.0 / (variance + eps).sqrt();
            for ((((y, s), x), w), b) in y.iter_mut().zip(standard).zip(x).zip(weight).zip(bias) {
                *s = (*x - mean) * *scale;
                *y = *s * *w + *b;
            }
        }
    }
}

widest! {
    fn unstandardise(grad: &mut [f32], standard: &[f32], scale: &[f32], weight: &[f32]) {
        let n = weight.len();
        let rows = grad.chunks_exact_mut(n).zip(standard.chunks_exact(n)).zip(scale);
        for ((grad, standard), scale) in rows {
            for (g, w) in grad.iter_mut().zip(weight) {
                *g *= *w;
            }
            let mean = total(grad, grad, |g, _| g) / n as f32;
            let along = total(grad, standard, |g, s| g * s) / n as f32;
            for (g, s) in grad.iter_mut().zip(standard) {
                *g = (*g - mean - *s * along) * *scale;
            }
        }
    }
}
