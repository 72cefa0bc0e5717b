//! What the tests of layers, encoders, fusions and heads ask of each.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::NoiseStream;
use crate::nn::Params;

/// Standard normal numbers of that shape.
pub(crate) fn random(seed: u64, shape: &[i64]) -> Tensor {
    NoiseStream::new(seed).normal(shape, Device::Cpu)
}

/// The largest difference is at most `tolerance`, and shapes are equal.
#[track_caller]
pub(crate) fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let worst = (a - b).abs().max().double_value(&[]);
    assert!(worst <= tolerance, "they differ by {worst}, allowed is {tolerance}");
}

/// Back-propagates `loss`; every parameter must get a finite gradient that is not all zero.
#[track_caller]
pub(crate) fn assert_gradient_everywhere(params: &Params, loss: &Tensor) {
    assert!(loss.isfinite().all().int64_value(&[]) == 1, "the loss is not finite");
    loss.backward();
    let names = params.trainable();
    assert!(!names.is_empty());
    for (name, tensor) in names {
        let grad = tensor.grad();
        assert!(grad.defined(), "no gradient reaches `{name}`");
        let size = grad.abs().max().double_value(&[]);
        assert!(size.is_finite() && size > 0.0, "the gradient of `{name}` is {size}");
    }
}

/// `f(rows)` computes a batch of those rows: each row of the whole batch must equal the row computed alone, and the batch
/// backwards must give the rows backwards. Returns the whole batch, so that the caller can ask whether rows differ.
#[track_caller]
pub(crate) fn assert_rows_alone(batch: i64, f: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let rows: Vec<i64> = (0..batch).collect();
    let whole = f(&Tensor::from_slice(&rows));
    for row in &rows {
        let alone = f(&Tensor::from_slice(&[*row]));
        assert_close(&alone, &whole.narrow(0, *row, 1), 1e-6);
    }
    let reversed: Vec<i64> = rows.iter().rev().copied().collect();
    assert_close(&f(&Tensor::from_slice(&reversed)), &whole.flip([0]), 1e-6);
    whole
}

/// The formula of `tests/data/torch_blocks.py`: `scale * sin(0.7 i + n)`, `n` = the sum of the name's bytes modulo 97.
pub(crate) fn wave(name: &str, shape: &[i64], scale: f64) -> Tensor {
    let n = f64::from(name.bytes().map(u32::from).sum::<u32>() % 97);
    let values: Vec<f32> = (0..shape.iter().product::<i64>())
        .map(|i| ((i as f64 * 0.7 + n).sin() * scale) as f32)
        .collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// Gives every parameter the values that `tests/data/torch_blocks.py` gives its own.
pub(crate) fn fill_with_waves(params: &Params) {
    let _guard = tch::no_grad_guard();
    for (name, mut tensor) in params.all() {
        let shape = tensor.size();
        let value = match &shape[..] {
            // Of the vectors, only norms are called weight.
            [_] => wave(&name, &shape, 0.1) + f64::from(u8::from(name.ends_with("weight"))),
            [_, inputs @ ..] => {
                wave(&name, &shape, (2.0 / inputs.iter().product::<i64>() as f64).sqrt())
            }
            [] => unreachable!("no parameter is a scalar"),
        };
        tensor.copy_(&value);
    }
}

/// Compares a result with PyTorch's under `key` in `tests/data/torch_blocks.json`, to `tolerance` of its size.
#[track_caller]
pub(crate) fn assert_golden(key: &str, got: &Tensor, tolerance: f64) {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../tests/data/torch_blocks.json")).unwrap();
    let golden = &golden[key];
    assert_eq!(serde_json::to_value(got.size()).unwrap(), golden["shape"]);
    let flat = got.detach().flatten(0, -1).to_kind(Kind::Double);
    let flat = Vec::<f64>::try_from(flat).unwrap();
    let squares = golden["squares"].as_f64().unwrap();
    let size = (squares / flat.len() as f64).sqrt();
    let step = (flat.len() / 8).max(1);
    for (i, expected) in golden["some"].as_array().unwrap().iter().enumerate() {
        let (got, expected) = (flat[i * step], expected.as_f64().unwrap());
        assert!((got - expected).abs() <= tolerance * size, "{key}[{i}]: {got}, {expected}");
    }
    let got_squares: f64 = flat.iter().map(|x| x * x).sum();
    assert!((got_squares / squares - 1.0).abs() <= tolerance, "{got_squares}, {squares}");
    let (got, expected) = (flat.iter().sum::<f64>(), golden["sum"].as_f64().unwrap());
    assert!((got - expected).abs() <= tolerance * size * flat.len() as f64, "{got}, {expected}");
}

/// Adam (Kingma & Ba 2015) with the usual constants, so that learning tests need no trainer.
pub(crate) struct Adam {
    lr: f64,
    step: i32,
    moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl Adam {
    pub(crate) fn new(lr: f64) -> Self {
        // Tests run side by side and their tensors are small: more threads an operation only wait for each other.
        tch::set_num_threads(1);
        Self { lr, step: 0, moments: BTreeMap::new() }
    }

    /// One update from the gradient of `loss`, a scalar.
    pub(crate) fn minimise(&mut self, params: &Params, loss: &Tensor) {
        for (_, mut tensor) in params.trainable() {
            tensor.zero_grad();
        }
        loss.backward();
        let _guard = tch::no_grad_guard();
        self.step += 1;
        let (c1, c2) = (1.0 - 0.9f64.powi(self.step), 1.0 - 0.999f64.powi(self.step));
        for (name, mut tensor) in params.trainable() {
            let grad = tensor.grad();
            if !grad.defined() {
                continue;
            }
            let (m, v) =
                self.moments.entry(name).or_insert_with(|| (grad.zeros_like(), grad.zeros_like()));
            *m = &*m * 0.9 + &grad * 0.1;
            *v = &*v * 0.999 + grad.square() * 0.001;
            let _ = tensor.g_sub_(&((&*m / c1) / ((&*v / c2).sqrt() + 1e-8) * self.lr));
        }
    }
}
