//! AdamW (Loshchilov & Hutter 2019, algorithm 2) in the arithmetic order of PyTorch's `_single_tensor_adamw`, with
//! `clip_grad_norm_` before it.
//!
//! # Details
//!
//! 1. Decay is decoupled: `p ← p (1 - lr λ)` before the step, and not on biases and norms if a [`ParamGroup`] says so.
//! 2. Bias corrections are computed on the host in f64, as PyTorch does.
//! 3. Clipping: `g ← g · min(1, max_norm / (‖g‖ + 1e-6))` over all gradients at once.
//! 4. The norm is looked at before anything is written: if it is not finite the update is dropped and the first gradient
//!    at fault is named. (`clip_grad_norm_` lets a NaN norm through, and every weight is NaN after.)
//! 5. Gradients come from `autograd.grad`'s road (`run_backward`), so `Tensor::grad` of the parameters stays empty.
//! 6. On a CPU a moment below the least normal number becomes zero. Behind dead ReLUs moments fade that far within a thousand
//!    updates, and a processor takes a hundred times as long for such numbers.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::flat::gather;
use super::fused::{self, Coefficients};
use super::{FlatParams, Schedule, Slot};
use crate::PolicyError;
use crate::nn::{Loss, Params, Tape};

/// Parameters with rules of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// Names, with `*` for any run of characters: `*.bias`, `encoder.*`. A parameter belongs to the first group that
    /// names it.
    pub names: Vec<String>,
    /// Factor of the learning rate.
    #[serde(default = "unit")]
    pub lr_scale: f64,
    /// Weight decay; the optimizer's when left out.
    #[serde(default)]
    pub weight_decay: Option<f64>,
}

/// Up to so many numbers are summed here rather than by libtorch, which has several threads and needs 5 µs to start.
const SMALL: usize = 1 << 16;

fn unit() -> f64 {
    1.0
}

/// How to learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0 leaves them.
    pub max_grad_norm: f64,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Exceptions, first match wins.
    pub groups: Vec<ParamGroup>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-4, // diffusion_policy, config/train_diffusion_unet_lowdim_workspace.yaml
            betas: [0.95, 0.999], // as above
            eps: 1e-8,           // as above
            weight_decay: 1e-6,  // as above
            max_grad_norm: 1.0,  // ours; diffusion_policy does not clip
            schedule: Schedule::Cosine { warmup: 500, floor: 0.0 }, // as above
            groups: Vec::new(),
        }
    }
}

impl AdamWConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the first number out of range.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let group_decays = self.groups.iter().filter_map(|g| g.weight_decay);
        let not_negative = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
        ];
        let checks = not_negative
            .into_iter()
            .chain(group_decays.map(|d| ("groups.weight_decay", d)))
            .chain(self.groups.iter().map(|g| ("groups.lr_scale", g.lr_scale)))
            .map(|(name, value)| (name, value, value.is_finite() && value >= 0.0, "at least 0"))
            .chain([("eps", self.eps, self.eps > 0.0, "above 0")])
            .chain(
                self.betas.map(|b| ("betas", b, (0.0..1.0).contains(&b), "at least 0 and below 1")),
            );
        for (name, value, good, range) in checks {
            if !good {
                return Err(PolicyError::Config {
                    detail: format!("use optim.{name} = {value}: it must be {range}"),
                });
            }
        }
        Ok(())
    }

    fn group_of(&self, name: &str) -> usize {
        let hit = |g: &ParamGroup| g.names.iter().any(|pattern| matches(pattern, name));
        self.groups.iter().position(hit).unwrap_or(self.groups.len())
    }
}

/// The Euclidean norm; of a small tensor without a kernel, whose start costs more than the sum.
fn norm(x: &Tensor) -> f64 {
    if x.device() == Device::Cpu && x.kind() == Kind::Float && x.numel() <= SMALL {
        return fused::sum_of_squares(&x.contiguous()).sqrt();
    }
    x.norm().double_value(&[])
}

/// [`AdamW::accumulate`] of sums of losses whose forward pass `tape` has recorded, each for the parameters of its optimizer. They
/// go backwards together: none may depend on the parameters of another's.
///
/// # Errors
/// As [`AdamW::accumulate`].
pub fn accumulate_taped(
    tape: Tape,
    pairs: &mut [(&mut AdamW, &[Loss])],
) -> Result<(), PolicyError> {
    if !tape.is_on() {
        return pairs.iter_mut().try_for_each(|(optimizer, losses)| {
            let whole = losses.iter().map(Loss::scalar).reduce(|sum, loss| sum + loss);
            whole.map_or(Ok(()), |loss| optimizer.accumulate(&loss))
        });
    }
    let losses: Vec<&Loss> = pairs.iter().flat_map(|(_, losses)| *losses).collect();
    for loss in &losses {
        if let Loss::Scalar(loss) = loss {
            expect_differentiable(loss)?;
        }
    }
    let wanted: Vec<&Tensor> = pairs.iter().flat_map(|(o, _)| o.flat.params()).collect();
    let mut grads =
        tape.gradients(&losses, &wanted).map_err(|e| undifferentiable(&e.to_string()))?;
    for (optimizer, _) in pairs {
        let rest = grads.split_off(optimizer.flat.params().len());
        optimizer.add(std::mem::replace(&mut grads, rest));
    }
    Ok(())
}

fn expect_differentiable(loss: &Tensor) -> Result<(), PolicyError> {
    // libtorch's engine follows the edge of a constant into nowhere.
    if !loss.requires_grad() || loss.numel() != 1 {
        return Err(undifferentiable("it must be one number that depends on the parameters"));
    }
    Ok(())
}

fn undifferentiable(error: &str) -> PolicyError {
    PolicyError::Config { detail: format!("differentiate the loss: {error}") }
}

/// Whether `pattern`, in which `*` stands for any run of characters, is the whole of `name`.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|i| rest.is_char_boundary(i) && matches(tail, &rest[i..]))
        }),
    }
}

/// What came of an update.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The parameters moved.
    Applied {
        /// Norm of all gradients before clipping.
        grad_norm: f64,
    },
    /// Something was not finite: parameters and moments are as before, bit for bit.
    Dropped {
        /// What was not finite.
        tensor: String,
    },
}

/// The optimizer of one model.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    params: Params,
    flat: FlatParams,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// What was accumulated: one per parameter, not defined where the loss does not depend on it; empty for nothing.
    grads: Vec<Tensor>,
    /// Their norm, where [`AdamW::broken`] has measured it.
    norm: Option<f64>,
    step: u64,
    parts: Vec<Part>,
}

/// Views of the same piece of every buffer: one parameter on a CPU, where kernels are cheap to start and memory is slow;
/// one group elsewhere, where it is the other way round.
#[derive(Debug)]
struct Part {
    group: usize,
    /// Its first number.
    start: i64,
    values: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl AdamW {
    /// For the trainable parameters of `params`, which move into one buffer (see [`FlatParams`]).
    ///
    /// # Errors
    /// [`PolicyError::Config`] for numbers out of range, or a model that cannot be trained.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        let flat = FlatParams::new(params, config.groups.len() + 1, |name| config.group_of(name))?;
        let (exp_avg, exp_avg_sq) = (flat.zeros(), flat.zeros());
        let ranges: Vec<(usize, Range<i64>)> = if flat.device() == Device::Cpu {
            let range =
                |slot: &Slot| (config.group_of(&slot.name), slot.offset..slot.offset + slot.len);
            flat.slots().iter().map(range).collect()
        } else {
            let groups = flat.groups().iter().cloned().enumerate();
            groups.filter(|(_, range)| !range.is_empty()).collect()
        };
        let parts = ranges
            .into_iter()
            .map(|(group, range)| {
                let part = |t: &Tensor| t.narrow(0, range.start, range.end - range.start);
                Part {
                    group,
                    start: range.start,
                    values: part(flat.values()),
                    exp_avg: part(&exp_avg),
                    exp_avg_sq: part(&exp_avg_sq),
                }
            })
            .collect();
        let params = params.clone();
        Ok(Self {
            config,
            params,
            flat,
            exp_avg,
            exp_avg_sq,
            grads: Vec::new(),
            norm: None,
            step: 0,
            parts,
        })
    }

    /// Its settings.
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// The parameters that it moves.
    pub fn flat(&self) -> &FlatParams {
        &self.flat
    }

    /// Moves the trainable parameters of `twin`, a model of the same shape, into a buffer laid out like this one's, so that the
    /// two can be mixed in one go.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a model of another shape.
    pub fn lay_out(&self, twin: &Params) -> Result<FlatParams, PolicyError> {
        let groups = self.config.groups.len() + 1;
        let flat = FlatParams::new(twin, groups, |name| self.config.group_of(name))?;
        if flat.slots() != self.flat.slots() {
            return Err(PolicyError::Config {
                detail: "lay two models out alike: their parameters differ".to_owned(),
            });
        }
        Ok(flat)
    }

    /// Updates applied so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Adds the gradient of `loss` (a scalar) to what the next [`Self::step`] uses. Frees the graph.
    ///
    /// # Errors
    /// [`PolicyError::Config`] if `loss` does not depend on any parameter, or libtorch refuses.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<(), PolicyError> {
        expect_differentiable(loss)?;
        let grads = self
            .params
            .gradients(loss, self.flat.params())
            .map_err(|e| undifferentiable(&e.to_string()))?;
        self.add(grads);
        Ok(())
    }

    /// Adds what [`Self::accumulate`] adds, gradients at hand.
    fn add(&mut self, grads: Vec<Tensor>) {
        let _guard = tch::no_grad_guard();
        self.norm = None;
        if self.grads.is_empty() {
            self.grads = grads;
            return;
        }
        for (sum, grad) in self.grads.iter_mut().zip(grads) {
            // Not in place: two parameters may share one gradient's memory.
            match (sum.defined(), grad.defined()) {
                (true, true) => *sum = &*sum + grad,
                (false, true) => *sum = grad,
                _ => {}
            }
        }
    }

    /// Forgets what was accumulated.
    pub fn discard(&mut self) {
        self.grads.clear();
        self.norm = None;
    }

    /// The accumulated gradient of each parameter, by name; copies.
    pub fn gradients(&self) -> BTreeMap<String, Tensor> {
        let buffer = self.flat.zeros();
        if !self.grads.is_empty() {
            gather(&self.flat, &self.grads, &buffer);
        }
        self.flat.split(&buffer, "")
    }

    /// What is not finite of what was accumulated, if anything: for learners of several optimizers that move together or
    /// not at all.
    pub fn broken(&mut self) -> Option<String> {
        let _guard = tch::no_grad_guard();
        let mut squares = 0.0;
        for (slot, grad) in self.flat.slots().iter().zip(&self.grads) {
            let square = if grad.defined() { norm(grad).powi(2) } else { 0.0 };
            if !square.is_finite() {
                return Some(format!("the gradient of `{}`", slot.name));
            }
            squares += square;
        }
        self.norm = Some(squares.sqrt());
        None
    }

    /// One update at learning rate `lr` by what was accumulated; what was accumulated is then forgotten. Nothing
    /// accumulated, nothing changed.
    pub fn step(&mut self, lr: f64) -> Step {
        let _guard = tch::no_grad_guard();
        let mut grads = std::mem::take(&mut self.grads);
        if grads.is_empty() {
            self.norm = None;
            return Step::Applied { grad_norm: 0.0 };
        }
        let on_cpu = self.flat.device() == Device::Cpu;
        if !on_cpu {
            let whole = self.flat.zeros();
            gather(&self.flat, &grads, &whole);
            let part = |p: &Part| whole.narrow(0, p.start, p.values.numel() as i64);
            grads = self.parts.iter().map(part).collect();
        }
        // As `clip_grad_norm_`: the norm of norms.
        let grad_norm = self.norm.take().unwrap_or_else(|| {
            grads.iter().filter(|g| g.defined()).map(|g| norm(g).powi(2)).sum::<f64>().sqrt()
        });
        if !grad_norm.is_finite() {
            return Step::Dropped { tensor: self.first_non_finite(&grads) };
        }
        let clip = match self.config.max_grad_norm {
            0.0 => 1.0,
            max => (max / (grad_norm + 1e-6)).min(1.0),
        };
        self.step += 1;
        let [beta1, beta2] = self.config.betas;
        let correction1 = 1.0 - beta1.powf(self.step as f64);
        let correction2 = (1.0 - beta2.powf(self.step as f64)).sqrt();
        for (part, mut grad) in self.parts.iter_mut().zip(grads) {
            if !grad.defined() {
                grad = part.values.zeros_like();
            }
            let group = self.config.groups.get(part.group);
            let lr = lr * group.map_or(1.0, |g| g.lr_scale);
            let decay = group.and_then(|g| g.weight_decay).unwrap_or(self.config.weight_decay);
            if on_cpu {
                let c = Coefficients {
                    clip: clip as f32,
                    keep: (1.0 - lr * decay) as f32,
                    rate1: (1.0 - beta1) as f32,
                    beta2: beta2 as f32,
                    rate2: (1.0 - beta2) as f32,
                    correction2: correction2 as f32,
                    eps: self.config.eps as f32,
                    step: (-lr / correction1) as f32,
                };
                fused::update(
                    &mut part.values,
                    &grad.contiguous(),
                    &mut part.exp_avg,
                    &mut part.exp_avg_sq,
                    c,
                );
                continue;
            }
            if clip < 1.0 {
                let _ = grad.g_mul_scalar_(clip);
            }
            if decay > 0.0 {
                let _ = part.values.g_mul_scalar_(1.0 - lr * decay);
            }
            let _ = part.exp_avg.lerp_(&grad, 1.0 - beta1);
            // tch has no `value` argument for addcmul_ and addcdiv_; PyTorch's kernels multiply it in first, as here.
            let scaled = &grad * (1.0 - beta2);
            let _ = part.exp_avg_sq.g_mul_scalar_(beta2).addcmul_(&scaled, &grad);
            let denominator = part
                .exp_avg_sq
                .sqrt_out(&scaled)
                .g_div_scalar_(correction2)
                .g_add_scalar_(self.config.eps);
            let scaled_avg = &part.exp_avg * (-lr / correction1);
            let _ = part.values.addcdiv_(&scaled_avg, &denominator);
        }
        Step::Applied { grad_norm }
    }

    /// Which gradient spoiled the norm: `grads` holds one per part.
    fn first_non_finite(&self, grads: &[Tensor]) -> String {
        let finite = |t: &Tensor| !t.defined() || t.isfinite().all().int64_value(&[]) != 0;
        let on_cpu = self.flat.device() == Device::Cpu;
        let bad = self.flat.slots().iter().enumerate().find(|(i, slot)| {
            if on_cpu {
                return !finite(&grads[*i]);
            }
            let part = self.parts.iter().zip(grads).rfind(|(part, _)| part.start <= slot.offset);
            part.is_some_and(|(part, g)| !finite(&g.narrow(0, slot.offset - part.start, slot.len)))
        });
        bad.map_or_else(
            || "the norm of all gradients".to_owned(),
            |(_, slot)| format!("the gradient of `{}`", slot.name),
        )
    }

    /// Everything that a later run needs to go on: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` and `step` (i64).
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = self.flat.split(&self.exp_avg, "exp_avg.");
        state.append(&mut self.flat.split(&self.exp_avg_sq, "exp_avg_sq."));
        state.insert("step".to_owned(), Tensor::from_slice(&[self.step as i64]));
        state
    }

    /// Goes on from [`Self::state`]. What was accumulated is forgotten.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the tensor that is missing or has another shape.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), PolicyError> {
        let step = state
            .get("step")
            .filter(|t| t.kind() == Kind::Int64 && t.numel() == 1)
            .ok_or_else(|| PolicyError::Config {
                detail: "load training state: `step` is missing".to_owned(),
            })?;
        self.flat.join(&self.exp_avg, state, "exp_avg.")?;
        self.flat.join(&self.exp_avg_sq, state, "exp_avg_sq.")?;
        self.step = step.int64_value(&[0]) as u64;
        self.grads.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
