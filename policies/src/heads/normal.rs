//! A normal distribution's numbers and their derivatives as loops, for small tensors in f32 on a CPU: as tensor operations each
//! takes a dozen kernels there and back, which do little but start. On a tape only; formulas are those of
//! [`Gaussian`](super::gaussian::Gaussian).

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::gaussian::StdBound;
use crate::nn::tape::{self, Back};
use crate::raw::{floats, floats_mut};

/// Up to so many numbers: beyond, libtorch's kernels take several numbers at once and are faster.
const SMALL: usize = 1 << 13;

/// Whether this module computes on tensors like these, here and now.
pub(super) fn serves(tensors: &[&Tensor]) -> bool {
    let small = |x: &&Tensor| {
        x.device() == Device::Cpu && x.kind() == Kind::Float && (1..=SMALL).contains(&x.numel())
    };
    tape::records() && tensors.iter().all(small)
}

fn like(x: &Tensor) -> Tensor {
    Tensor::empty(x.size(), (Kind::Float, Device::Cpu))
}

/// `ln(1 + e^x)`, as PyTorch: the identity above 20.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// [`StdBound::apply`] to `raw`, `[.., W]`, or if there are `rows` to as many copies of `raw`, `[W]`: `[rows, W]`.
pub(super) fn bounded(
    bound: StdBound,
    raw: &Tensor,
    min: f64,
    max: f64,
    rows: Option<i64>,
) -> Tensor {
    let (min, max) = (min as f32, max as f32);
    let half = (max - min) / 2.0;
    // The value and its slope.
    let at = move |x: f32| match bound {
        StdBound::Tanh => {
            let t = x.tanh();
            ((t + 1.0) * half + min, (1.0 - t * t) * half)
        }
        StdBound::Softplus => {
            let below = max - softplus(max - x) - min;
            (softplus(below) + min, sigmoid(below) * sigmoid(max - x))
        }
    };
    let (mut value, mut slope) = (like(raw), like(raw));
    let seen = raw.detach().contiguous();
    let numbers = floats_mut(&mut value).iter_mut().zip(floats_mut(&mut slope));
    for ((value, slope), &x) in numbers.zip(floats(&seen)) {
        (*value, *slope) = at(x);
    }
    if let Some(rows) = rows {
        value = value.repeat([rows, 1]);
    }
    let mut outputs = tape::write(&[raw], vec![value], move |grads, _| {
        let grad = match rows {
            Some(_) => grads[0].sum_dim_intlist([0i64].as_slice(), false, Kind::Float),
            None => grads[0].shallow_clone(),
        };
        Back { inputs: vec![Some(grad * slope)], params: Vec::new() }
    });
    outputs.pop().unwrap_or_default()
}

/// [`Gaussian::log_prob`](super::gaussian::Gaussian::log_prob) without the squashing; all `[B, T, D]`.
pub(super) fn log_prob(mean: &Tensor, log_std: &Tensor, actions: &Tensor) -> Tensor {
    let half_log_tau = 0.5 * std::f32::consts::TAU.ln();
    let (mut value, mut of_mean, mut of_std) = (like(mean), like(mean), like(mean));
    {
        let all = [mean, log_std, actions].map(|x| x.detach().contiguous());
        let [mean, log_std, actions] = all.each_ref().map(floats);
        let to = floats_mut(&mut value).iter_mut();
        let to = to.zip(floats_mut(&mut of_mean)).zip(floats_mut(&mut of_std));
        for (((value, of_mean), of_std), ((mean, log_std), action)) in
            to.zip(mean.iter().zip(log_std).zip(actions))
        {
            let precision = (-log_std).exp();
            let z = (action - mean) * precision;
            *value = z * z * -0.5 - log_std - half_log_tau;
            *of_mean = z * precision;
            *of_std = z * z - 1.0;
        }
    }
    let mut outputs = tape::write(&[mean, log_std], vec![value], move |grads, _| Back {
        inputs: vec![Some(&grads[0] * of_mean), Some(&grads[0] * of_std)],
        params: Vec::new(),
    });
    outputs.pop().unwrap_or_default()
}

/// The sample that noise `z` makes: rows `rows` of each chunk, `[B, n D]`, and the log-density of those, `[B]`. `mean`,
/// `log_std` and `z` are `[B, T, D]`.
pub(super) fn drawn(
    mean: &Tensor,
    log_std: &Tensor,
    z: &Tensor,
    squash: bool,
    rows: Range<usize>,
) -> (Tensor, Tensor) {
    let size = mean.size();
    let (b, chunk) = (size[0] as usize, (size[1] * size[2]) as usize);
    let d = size[2] as usize;
    let used = rows.start * d..rows.end * d;
    let n = used.len();
    let empty = |size: &[i64]| Tensor::empty(size, (Kind::Float, Device::Cpu));
    let (mut action, mut log_prob) = (empty(&[b as i64, n as i64]), empty(&[b as i64]));
    // Slopes: of the action and the log-density for `u`, and of `u` for the log-deviation.
    let (mut of_action, mut of_density, mut of_u) = (like(&action), like(&action), like(&action));
    {
        let all = [mean, log_std, z].map(|x| x.detach().contiguous());
        let [mean, log_std, z] = [floats(&all[0]), floats(&all[1]), floats(&all[2])];
        let (action, log_prob) = (floats_mut(&mut action), floats_mut(&mut log_prob));
        let (of_action, of_density, of_u) =
            (floats_mut(&mut of_action), floats_mut(&mut of_density), floats_mut(&mut of_u));
        let half_log_tau = 0.5 * std::f32::consts::TAU.ln();
        for (row, log_prob) in log_prob.iter_mut().enumerate() {
            let mut sum = 0.0;
            for k in 0..n {
                let (from, to) = (row * chunk + used.start + k, row * n + k);
                let spread = log_std[from].exp() * z[from];
                let u = mean[from] + spread;
                sum += z[from] * z[from] * -0.5 - log_std[from] - half_log_tau;
                of_u[to] = spread;
                if squash {
                    let t = u.tanh();
                    sum -= (std::f32::consts::LN_2 - u - softplus(u * -2.0)) * 2.0;
                    action[to] = t;
                    of_action[to] = 1.0 - t * t;
                    of_density[to] = 2.0 * t;
                } else {
                    action[to] = u;
                    of_action[to] = 1.0;
                    of_density[to] = 0.0;
                }
            }
            *log_prob = sum;
        }
    }
    let mut outputs = tape::write(&[mean, log_std], vec![action, log_prob], move |grads, _| {
        let (mut of_mean, mut of_std) = (
            Tensor::zeros(&size, (Kind::Float, Device::Cpu)),
            Tensor::zeros(&size, (Kind::Float, Device::Cpu)),
        );
        let grads = [grads[0].contiguous(), grads[1].contiguous()];
        let (action, density) = (floats(&grads[0]), floats(&grads[1]));
        let (to_mean, to_std) = (floats_mut(&mut of_mean), floats_mut(&mut of_std));
        let (of_action, of_density, of_u) =
            (floats(&of_action), floats(&of_density), floats(&of_u));
        for (row, density) in density.iter().enumerate() {
            for k in 0..n {
                let (to, from) = (row * chunk + used.start + k, row * n + k);
                let u = action[from] * of_action[from] + density * of_density[from];
                to_mean[to] = u;
                to_std[to] = u * of_u[from] - density;
            }
        }
        Back { inputs: vec![Some(of_mean), Some(of_std)], params: Vec::new() }
    });
    match (outputs.pop(), outputs.pop()) {
        (Some(log_prob), Some(action)) => (action, log_prob),
        _ => Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoiseStream;
    use crate::heads::gaussian::Gaussian;
    use crate::nn::{Init, Loss, Params, Tape};

    /// Values and the gradients of the inputs, with a tape and without.
    fn both(
        inputs: &[&Tensor],
        params: &Params,
        forward: impl Fn() -> Vec<Tensor>,
    ) -> [Vec<Tensor>; 2] {
        let loss = |outputs: &[Tensor]| {
            let slope = |(i, x): (usize, &Tensor)| {
                (x.shallow_clone(), NoiseStream::new(i as u64).normal(&x.size(), Device::Cpu))
            };
            Loss::Slopes(outputs.iter().enumerate().map(slope).collect())
        };
        let outputs = forward();
        let plain = Tensor::run_backward(&[loss(&outputs).scalar()], inputs, false, false);
        let tape = Tape::record(&[params]);
        let taped = forward();
        let slopes = tape.gradients(&[&loss(&taped)], inputs).unwrap();
        let all = |values: Vec<Tensor>, grads: Vec<Tensor>| {
            values.iter().map(Tensor::detach).chain(grads).collect()
        };
        [all(outputs, plain), all(taped, slopes)]
    }

    fn check(name: &str, [plain, taped]: [Vec<Tensor>; 2]) {
        for (i, (plain, taped)) in plain.iter().zip(&taped).enumerate() {
            assert_eq!(plain.size(), taped.size(), "{name} {i}");
            let scale = plain.abs().max().double_value(&[]).max(1.0);
            let away = (plain - taped).abs().max().double_value(&[]) / scale;
            assert!(away < 3e-6, "{name} {i}: {away}");
        }
    }

    #[test]
    fn draws_and_their_density_are_those_of_the_distribution_with_their_gradients() {
        let params = Params::new(Device::Cpu, 1);
        let mean = params.root().param("mean", &[6, 4, 2], Init::Normal { std: 1.5 });
        let log_std = params.root().param("log_std", &[6, 4, 2], Init::Normal { std: 0.7 });
        let z = NoiseStream::new(5).normal(&[6, 4, 2], Device::Cpu);
        for squash in [false, true] {
            for rows in [0..4, 1..3] {
                let outputs = both(&[&mean, &log_std], &params, || {
                    // Not the parameters themselves: their gradients come through autograd.
                    let (mean, log_std) = (&mean * 1.0, &log_std * 1.0);
                    let (action, log_prob) =
                        Gaussian { mean, log_std, squash }.draw(&z, rows.clone());
                    vec![action, log_prob]
                });
                check(&format!("squash {squash}, rows {rows:?}"), outputs);
            }
        }
    }

    #[test]
    fn bounded_deviations_are_those_of_the_bound_with_their_gradients() {
        let params = Params::new(Device::Cpu, 1);
        let raw = params.root().param("raw", &[9, 7], Init::Normal { std: 6.0 });
        for bound in [StdBound::Tanh, StdBound::Softplus] {
            let outputs = both(&[&raw], &params, || vec![bound.apply(&(&raw * 1.0), -5.0, 2.0)]);
            check(&format!("{bound:?}"), outputs);
            let row =
                params.root().param(format!("row_{bound:?}"), &[7], Init::Normal { std: 6.0 });
            let wide = || {
                if serves(&[&row]) {
                    return bounded(bound, &row, -5.0, 2.0, Some(9));
                }
                bound.apply(&row, -5.0, 2.0).unsqueeze(0).expand([9, 7], false)
            };
            check(&format!("{bound:?}, rows"), both(&[&row], &params, || vec![wide()]));
        }
    }

    #[test]
    fn densities_of_given_actions_are_those_of_the_distribution_with_their_gradients() {
        let params = Params::new(Device::Cpu, 1);
        let mean = params.root().param("mean", &[6, 4, 2], Init::Normal { std: 1.5 });
        let log_std = params.root().param("log_std", &[6, 4, 2], Init::Normal { std: 0.7 });
        let actions = NoiseStream::new(5).normal(&[6, 4, 2], Device::Cpu).tanh();
        for squash in [false, true] {
            let outputs = both(&[&mean, &log_std], &params, || {
                let (mean, log_std) = (&mean * 1.0, &log_std * 1.0);
                vec![Gaussian { mean, log_std, squash }.log_prob(&actions)]
            });
            check(&format!("squash {squash}"), outputs);
        }
    }

    #[test]
    fn saturated_samples_keep_their_density_and_gradient() {
        let params = Params::new(Device::Cpu, 1);
        let mean = params.root().param("mean", &[1, 1, 2], Init::Constant(40.0));
        let log_std = params.root().param("log_std", &[1, 1, 2], Init::Zeros);
        let tape = Tape::record(&[&params]);
        let z = mean.zeros_like();
        let gaussian = Gaussian { mean: &mean * 1.0, log_std: &log_std * 1.0, squash: true };
        let (action, log_prob) = gaussian.draw(&z, 0..1);
        assert_eq!(Vec::<f32>::try_from(action.flatten(0, -1)).unwrap(), [1.0, 1.0]);
        let each = -0.5 * std::f64::consts::TAU.ln() - 2.0 * std::f64::consts::LN_2 + 80.0;
        assert!((log_prob.double_value(&[0]) - 2.0 * each).abs() < 1e-4);
        let grads = tape.gradients(&[&Loss::Scalar(log_prob.sum(None))], &[&mean]).unwrap();
        assert_eq!(Vec::<f32>::try_from(grads[0].flatten(0, -1)).unwrap(), [2.0, 2.0]);
    }
}
