//! A normal distribution for every number of the chunk, with a bounded standard deviation; trained by likelihood.
//!
//! Source: the actor of SAC (arXiv 1812.05905); its tanh squashing (appendix C) is an option, since actions here are normalised
//! and demonstrations lie on the bounds, where a squashed density has none. Bounds: `tanh` as CleanRL's
//! `sac_continuous_action.py` (log-deviation in [-5, 2]); `softplus` as PETS (arXiv 1805.12114, `dmbrl/modeling/models/BNN.py`:
//! soft bounds from above and below). Both keep a gradient where a hard clamp would have none.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::mlp::layer_sizes;
use super::normal;
use super::{Drawn, Head, HeadShape, StochasticHead};
use crate::fusion::Context;
use crate::nn::{Activation, Init, Linear, Mlp, MlpOptions, Scope, expect_shape};
use crate::{ActMode, Density, NoiseStream, PolicyError, normal_rows};

/// How the network's number becomes a log-deviation between the bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdBound {
    /// `min + (max - min) (tanh(x) + 1) / 2`.
    #[default]
    Tanh,
    /// `min + softplus(max - softplus(max - x) - min)`: the identity far from both bounds. It exceeds `max` by at most
    /// `ln(1 + e^(min - max))`.
    Softplus,
}

impl StdBound {
    /// Element by element, same shape.
    pub fn apply(self, raw: &Tensor, min: f64, max: f64) -> Tensor {
        if normal::serves(&[raw]) {
            return normal::bounded(self, raw, min, max, None);
        }
        match self {
            Self::Tanh => (raw.tanh() + 1.0) * ((max - min) / 2.0) + min,
            Self::Softplus => {
                let below_max: Tensor = max - (max - raw).softplus();
                (below_max - min).softplus() + min
            }
        }
    }
}

/// Settings of [`GaussianHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaussianConfig {
    /// Widths of the hidden layers.
    pub hidden: Vec<i64>,
    /// Between layers.
    pub activation: Activation,
    /// How the deviation is bounded.
    pub bound: StdBound,
    /// Least natural logarithm of the deviation.
    pub min_log_std: f64,
    /// Greatest natural logarithm of the deviation.
    pub max_log_std: f64,
    /// The deviation depends on the context; otherwise it is one parameter per number of the chunk (as rsl_rl's
    /// `ActorCritic`), which on-policy learning prefers.
    pub state_dependent_std: bool,
    /// The deviation at the beginning, between the bounds.
    pub init_std: f64,
    /// Hidden layers but the first multiply in bf16, their parameters stay f32: faster on a CPU with AMX or on a GPU.
    pub bf16: bool,
    /// Actions are `tanh` of the normal numbers, so none leaves (-1, 1): off-policy learning wants it. Deviation and
    /// entropy are those before `tanh`. Imitation takes demonstrated numbers on or beyond ±1 as ±(1 - 1e-6).
    pub squash: bool,
}

impl Default for GaussianConfig {
    fn default() -> Self {
        Self {
            hidden: vec![512, 512],
            activation: Activation::Relu,
            bound: StdBound::Tanh,
            min_log_std: -5.0, // CleanRL sac_continuous_action.py, LOG_STD_MIN
            max_log_std: 2.0,  // the same, LOG_STD_MAX
            state_dependent_std: true,
            init_std: 1.0, // rsl_rl ActorCritic, init_noise_std
            bf16: false,
            squash: false,
        }
    }
}

impl GaussianConfig {
    /// Checks that the bounds are in order and hold `init_std`.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn validate(&self) -> Result<(), PolicyError> {
        let Self { min_log_std: min, max_log_std: max, init_std, .. } = *self;
        let inside = init_std > 0.0 && min < init_std.ln() && init_std.ln() < max;
        if !(min.is_finite() && max.is_finite() && inside) {
            return Err(PolicyError::Config {
                detail: format!(
                    "build a gaussian head with min_log_std = {min}, max_log_std = {max}, init_std = {init_std}: \
                     min_log_std < ln(init_std) < max_log_std is needed"
                ),
            });
        }
        Ok(())
    }

    /// The network's number that becomes `init_std`.
    fn init_raw(&self) -> f64 {
        let (min, max, log) = (self.min_log_std, self.max_log_std, self.init_std.ln());
        match self.bound {
            StdBound::Tanh => (2.0 * (log - min) / (max - min) - 1.0).atanh(),
            StdBound::Softplus => {
                let inverse = |y: f64| y.exp_m1().ln();
                // Near the upper bound the inner term may leave softplus's range; the bound itself is close enough.
                let below_max = inverse(log - min) + min;
                if below_max < max { max - inverse(max - below_max) } else { max }
            }
        }
    }
}

/// How near to ±1 a squashed number may lie when its density is asked for: `atanh` of the bound itself is infinite. 1e-6 is what
/// Stable-Baselines3 `TanhBijector` and CleanRL guard with.
const SQUASH_MARGIN: f64 = 1e-6;

/// Independent normal distributions, or `tanh` of them; `mean` and `log_std` have one shape, `[B, T_p, D]`.
#[derive(Debug)]
pub struct Gaussian {
    /// Means, before `tanh`.
    pub mean: Tensor,
    /// Natural logarithms of the standard deviations, before `tanh`.
    pub log_std: Tensor,
    /// Whether actions are `tanh` of the normal numbers.
    pub squash: bool,
}

impl Gaussian {
    /// Log-density of each number, nats, in the shape of `actions`; sum over `D` (and `T_a`) for that of a chunk.
    ///
    /// Squashed numbers are taken as at most `1 - 1e-6` in size. Near the bounds `atanh` loses most digits in f32: where
    /// the sample's own log-prob is wanted, take it from [`Gaussian::reparameterised`].
    pub fn log_prob(&self, actions: &Tensor) -> Tensor {
        let unsquashed =
            self.squash.then(|| actions.clamp(SQUASH_MARGIN - 1.0, 1.0 - SQUASH_MARGIN).atanh());
        let u = unsquashed.as_ref().unwrap_or(actions);
        let all = [&self.mean, &self.log_std, u];
        if !self.squash
            && !u.requires_grad()
            && all.iter().all(|x| x.size() == u.size())
            && normal::serves(&all)
        {
            return normal::log_prob(&self.mean, &self.log_std, u);
        }
        let z: Tensor = (u - &self.mean) * (-&self.log_std).exp();
        self.density(&z, u)
    }

    /// Differential entropy of each number, nats. Of the normal number itself if squashed: `tanh` has no closed form and only
    /// lowers it.
    pub fn entropy(&self) -> Tensor {
        &self.log_std + 0.5 * (std::f64::consts::TAU.ln() + 1.0)
    }

    /// The likeliest chunk: the mean, or its `tanh` (the median), as every SAC acts when it is judged.
    pub fn mode(&self) -> Tensor {
        if self.squash { self.mean.tanh() } else { self.mean.shallow_clone() }
    }

    /// One sample per row from the row's own stream; differentiable in mean and deviation.
    pub fn sample(&self, noise: &mut [NoiseStream]) -> Tensor {
        let z = normal_rows(noise, &self.mean.size()[1..], self.mean.device());
        let u = &self.mean + self.log_std.exp() * z;
        if self.squash { u.tanh() } else { u }
    }

    /// The sample that standard normal noise `z` makes and the log-density of each of its numbers, both in the shape of
    /// `mean` and differentiable in mean and deviation (SAC, appendix C).
    pub fn reparameterised(&self, z: &Tensor) -> (Tensor, Tensor) {
        let u = &self.mean + self.log_std.exp() * z;
        let log_prob = self.density(z, &u);
        (if self.squash { u.tanh() } else { u }, log_prob)
    }

    /// Rows `rows` of a sample as [`Gaussian::reparameterised`] makes it of `[B, T, D]`, `[B, n D]`, and their log-density,
    /// `[B]`.
    pub fn draw(&self, z: &Tensor, rows: Range<usize>) -> (Tensor, Tensor) {
        if normal::serves(&[&self.mean, &self.log_std, z]) {
            return normal::drawn(&self.mean, &self.log_std, z, self.squash, rows);
        }
        let (chunk, log_prob) = self.reparameterised(z);
        let cut = |x: Tensor| x.narrow(1, rows.start as i64, rows.len() as i64).flatten(1, 2);
        (cut(chunk), cut(log_prob).sum_dim_intlist(1, false, Kind::Float))
    }

    /// Log-density at `u = mean + std z`, by the change of variables if squashed:
    /// `log(1 - tanh(u)^2) = 2 (ln 2 - u - softplus(-2u))`, which stays exact where `tanh(u)` rounds to 1.
    fn density(&self, z: &Tensor, u: &Tensor) -> Tensor {
        let half_log_tau = 0.5 * std::f64::consts::TAU.ln();
        let normal = z.square() * -0.5 - &self.log_std - half_log_tau;
        if !self.squash {
            return normal;
        }
        let log_slope: Tensor = (std::f64::consts::LN_2 - u - (u * -2.0).softplus()) * 2.0;
        normal - log_slope
    }
}

/// See the module.
#[derive(Debug)]
pub struct GaussianHead {
    trunk: Mlp,
    mean: Mlp,
    std: Std,
    config: GaussianConfig,
    shape: HeadShape,
}

#[derive(Debug)]
enum Std {
    FromContext(Mlp),
    Own(Tensor),
}

impl GaussianHead {
    /// For contexts and chunks of `shape`. The deviation begins at `init_std` everywhere.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for sizes or bounds that do not fit.
    pub fn new(
        scope: &Scope,
        config: &GaussianConfig,
        shape: HeadShape,
    ) -> Result<Self, PolicyError> {
        config.validate()?;
        let mut sizes = layer_sizes(&config.hidden, shape, 1)?;
        let outputs = sizes.pop().unwrap_or(1);
        let features = sizes.last().copied().unwrap_or(shape.pooled_width);
        let options = MlpOptions {
            activation: config.activation,
            activated: true,
            bf16: config.bf16,
            layer_norm: false,
        };
        let raw = config.init_raw();
        let std = if config.state_dependent_std {
            let init = Init::Uniform { bound: 1e-3 };
            let linear = Linear::with_init(&scope.sub("std"), features, outputs, init, true);
            if let Some(bias) = &linear.bias {
                let _guard = tch::no_grad_guard();
                let _ = bias.shallow_clone().fill_(raw);
            }
            Std::FromContext(Mlp::of(linear))
        } else {
            Std::Own(scope.param("std", &[outputs], Init::Constant(raw)))
        };
        Ok(Self {
            trunk: Mlp::with(&scope.sub("trunk"), &sizes, options),
            mean: Mlp::of(Linear::new(&scope.sub("mean"), features, outputs)),
            std,
            config: config.clone(),
            shape,
        })
    }

    /// The distribution of each row's chunk, with gradient.
    ///
    /// # Errors
    /// [`PolicyError::Shape`].
    pub fn distribution(&self, context: &Context) -> Result<Gaussian, PolicyError> {
        let b = self.shape.expect_context(context)?;
        let features = self.trunk.forward(&context.pooled);
        let chunk = [b, self.shape.chunk_size, self.shape.action_dim];
        let (min, max) = (self.config.min_log_std, self.config.max_log_std);
        let bound = |raw: &Tensor| self.config.bound.apply(raw, min, max);
        let mean = self.mean.forward(&features).reshape(chunk);
        let log_std = match &self.std {
            Std::FromContext(linear) => bound(&linear.forward(&features)).reshape(chunk),
            Std::Own(raw) if normal::serves(&[raw, &mean]) => {
                normal::bounded(self.config.bound, raw, min, max, Some(b)).reshape(chunk)
            }
            Std::Own(raw) => bound(raw).reshape([1, chunk[1], chunk[2]]).expand(chunk, false),
        };
        Ok(Gaussian { mean, log_std, squash: self.config.squash })
    }
}

impl Head for GaussianHead {
    /// Negative log-likelihood, nats, averaged over `D`.
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        _noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        self.shape.expect_batch(context, actions, valid)?;
        Ok(-self.distribution(context)?.log_prob(actions).mean_dim(-1, false, None))
    }

    /// The mean, or a sample.
    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.shape.expect_streams(context, noise)?;
        let distribution = self.distribution(context)?;
        Ok(match mode {
            ActMode::Deterministic => distribution.mode(),
            ActMode::Stochastic => distribution.sample(noise),
        })
    }

    fn stochastic(&self) -> Option<&dyn StochasticHead> {
        Some(self)
    }

    /// Sets a deviation that does not depend on the context, within its bounds.
    fn set_explore_std(&mut self, std: f64) {
        if let Std::Own(raw) = &self.std {
            let slack = 1e-3 * (self.config.max_log_std - self.config.min_log_std);
            let (low, high) = (self.config.min_log_std + slack, self.config.max_log_std - slack);
            let init_std = std.ln().clamp(low, high).exp();
            let _guard = tch::no_grad_guard();
            let _ = raw
                .shallow_clone()
                .fill_(GaussianConfig { init_std, ..self.config.clone() }.init_raw());
        }
    }
}

impl StochasticHead for GaussianHead {
    /// The latent is the normalised chunk itself; a term is one action of it.
    fn explore(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Drawn, PolicyError> {
        let _guard = tch::no_grad_guard();
        self.shape.expect_streams(context, noise)?;
        let distribution = self.distribution(context)?;
        let chunk = match mode {
            ActMode::Deterministic => distribution.mode(),
            ActMode::Stochastic => distribution.sample(noise),
        };
        let log_prob = distribution.log_prob(&chunk).sum_dim_intlist(-1, false, Kind::Float);
        Ok(Drawn { latent: chunk.flatten(1, 2), chunk, log_prob })
    }

    fn density(&self, context: &Context, latent: &Tensor) -> Result<Density, PolicyError> {
        let distribution = self.distribution(context)?;
        let (t, d) = (self.shape.chunk_size, self.shape.action_dim);
        let b = latent.size().first().copied().unwrap_or(0);
        expect_shape("latent", latent, &[context.pooled.size()[0], t * d])?;
        let chunk = latent.view([b, t, d]);
        let sum = |each: &Tensor| each.sum_dim_intlist(-1, false, Kind::Float);
        Ok(Density {
            log_prob: sum(&distribution.log_prob(&chunk)),
            entropy: sum(&distribution.entropy()),
        })
    }

    fn term_rows(&self) -> Vec<Option<usize>> {
        (0..self.shape.chunk_size as usize).map(Some).collect()
    }

    fn gaussian(&self, context: &Context) -> Result<Gaussian, PolicyError> {
        self.distribution(context)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::heads::HeadConfig;
    use crate::heads::testing::{check_head, check_learns_a_linear_policy, context, shape};
    use crate::nn::Params;
    use crate::testing::{Adam, assert_close, random};

    fn config() -> GaussianConfig {
        GaussianConfig { hidden: vec![32], ..GaussianConfig::default() }
    }

    #[test]
    fn it_is_a_head() {
        for state_dependent_std in [true, false] {
            for bound in [StdBound::Tanh, StdBound::Softplus] {
                for squash in [false, true] {
                    check_head(&HeadConfig::Gaussian(GaussianConfig {
                        state_dependent_std,
                        bound,
                        init_std: 0.5,
                        squash,
                        ..config()
                    }));
                }
            }
        }
    }

    #[test]
    fn in_bf16_it_is_the_same_head_up_to_rounding() {
        let hidden = vec![32, 32];
        let config = GaussianConfig { hidden, init_std: 0.5, ..config() };
        let half = GaussianConfig { bf16: true, ..config.clone() };
        check_head(&HeadConfig::Gaussian(half.clone()));
        let shape = HeadShape { pooled_width: 6, token_width: 6, chunk_size: 4, action_dim: 2 };
        let x = NoiseStream::new(1).normal(&[5, 6], Device::Cpu);
        let context = Context { tokens: x.unsqueeze(1), pooled: x };
        let mean = |config: &GaussianConfig| {
            let params = Params::new(Device::Cpu, 0);
            let head = GaussianHead::new(&params.root(), config, shape).unwrap();
            head.distribution(&context).unwrap().mean
        };
        let (exact, rounded) = (mean(&config), mean(&half));
        assert_eq!(rounded.kind(), Kind::Float);
        let away = (exact - &rounded).abs().max().double_value(&[]);
        // bf16 keeps 8 bits.
        assert!(away > 0.0 && away < 0.02, "{away}");
    }

    #[test]
    fn its_mean_learns_a_linear_policy() {
        check_learns_a_linear_policy(&HeadConfig::Gaussian(config()), 400, 1e-2, 0.08);
    }

    #[test]
    fn log_prob_and_entropy_are_those_of_the_normal_distribution() {
        // scipy.stats.norm(1, 2): logpdf(0), logpdf(3), entropy() = -1.737085713764618, -2.112085713764618,
        // 2.112085713764618.
        let g = Gaussian {
            mean: Tensor::from_slice(&[1f64, 1.0]),
            log_std: Tensor::from_slice(&[2f64.ln(); 2]),
            squash: false,
        };
        let expected = Tensor::from_slice(&[-1.737_085_713_764_618, -2.112_085_713_764_618]);
        assert_close(&g.log_prob(&Tensor::from_slice(&[0f64, 3.0])), &expected, 1e-12);
        assert!((g.entropy().double_value(&[0]) - 2.112_085_713_764_618).abs() < 1e-12);
    }

    #[test]
    fn a_squashed_density_integrates_to_one() {
        // The midpoint rule over (-1, 1).
        let n = 20_000;
        let width = 2.0 / f64::from(n);
        let actions: Vec<f64> = (0..n).map(|i| (f64::from(i) + 0.5) * width - 1.0).collect();
        let actions = Tensor::from_slice(&actions);
        for (mean, std) in [(0.0, 0.5), (0.8, 0.3), (-0.3, 0.9)] {
            let g = Gaussian {
                mean: actions.ones_like() * mean,
                log_std: actions.ones_like() * f64::ln(std),
                squash: true,
            };
            let mass = g.log_prob(&actions).exp().sum(Kind::Double).double_value(&[]) * width;
            assert!((mass - 1.0).abs() < 1e-3, "N({mean}, {std}): {mass}");
        }
    }

    #[test]
    fn a_samples_own_log_prob_is_that_of_the_distribution_and_survives_saturation() {
        for squash in [false, true] {
            let g = Gaussian {
                mean: Tensor::from_slice(&[0.3f64, -1.0]),
                log_std: Tensor::from_slice(&[-1.0f64, 0.1]),
                squash,
            };
            let (action, log_prob) = g.reparameterised(&Tensor::from_slice(&[0.7f64, -1.2]));
            assert_close(&g.log_prob(&action), &log_prob, 1e-9);
        }
        // tanh(40) is 1 in f32 and 1 - tanh² is 0, whose logarithm the plain form would take: here it is 2 ln 2 - 80.
        let mean = Tensor::from_slice(&[40f32, -40.0]).set_requires_grad(true);
        let g = Gaussian { log_std: mean.zeros_like(), mean: mean.shallow_clone(), squash: true };
        let (action, log_prob) = g.reparameterised(&mean.zeros_like());
        assert_close(&action.detach(), &Tensor::from_slice(&[1f32, -1.0]), 0.0);
        let expected = -0.5 * std::f64::consts::TAU.ln() - 2.0 * std::f64::consts::LN_2 + 80.0;
        assert_close(&log_prob.detach(), &Tensor::from_slice(&[expected; 2]), 1e-4);
        log_prob.sum(Kind::Float).backward();
        assert_close(&mean.grad(), &Tensor::from_slice(&[2f32, -2.0]), 1e-6);
    }

    #[test]
    fn demonstrations_on_the_bounds_have_a_finite_squashed_likelihood() {
        let params = Params::new(Device::Cpu, 0);
        let config = GaussianConfig { squash: true, ..config() };
        let head = GaussianHead::new(&params.root(), &config, shape()).unwrap();
        let (context, valid) = (context(3), Tensor::ones([3, 4], (Kind::Float, Device::Cpu)));
        for bound in [-1.5, -1.0, 1.0, 1.5] {
            let actions = Tensor::full([3, 4, 2], bound, (Kind::Float, Device::Cpu));
            let loss = head.loss(&context, &actions, &valid, &mut NoiseStream::new(0)).unwrap();
            assert_eq!(loss.isfinite().all().int64_value(&[]), 1);
        }
        let mut streams: Vec<NoiseStream> = (0..3).map(NoiseStream::new).collect();
        let again = &mut streams.clone();
        let z = normal_rows(&mut streams, &[4, 2], Device::Cpu);
        let (chunk, log_prob) = head.distribution(&context).unwrap().draw(&z, 0..4);
        assert!(chunk.requires_grad() && log_prob.requires_grad());
        assert_eq!(log_prob.size(), [3]);
        let sampled = head.sample(&context, again, ActMode::Stochastic).unwrap();
        assert_close(&chunk.detach(), &sampled.flatten(1, 2), 1e-7);
        assert!(head.sample(&context, &mut streams[..2], ActMode::Stochastic).is_err());
    }

    #[test]
    fn a_squashed_mean_learns_a_linear_policy() {
        let config = GaussianConfig { squash: true, ..config() };
        check_learns_a_linear_policy(&HeadConfig::Gaussian(config), 400, 1e-2, 0.08);
    }

    #[test]
    fn no_network_output_leaves_the_bounds_or_loses_its_gradient_inside() {
        let (min, max) = (-5.0, 2.0);
        for bound in [StdBound::Tanh, StdBound::Softplus] {
            let raw = Tensor::from_slice(&[-1e9f32, -3.0, 0.0, 1.5, 1e9]).set_requires_grad(true);
            let log_std = bound.apply(&raw, min, max);
            let values = Vec::<f32>::try_from(&log_std.detach()).unwrap();
            assert!(values.iter().all(|v| (-5.0..=2.001).contains(v)), "{bound:?} {values:?}");
            assert!(values.windows(2).all(|w| w[0] < w[1]), "{bound:?} {values:?}");
            log_std.sum(Kind::Float).backward();
            let grad = Vec::<f32>::try_from(raw.grad()).unwrap();
            assert!(grad[1..4].iter().all(|g| *g > 1e-3), "{bound:?} {grad:?}");
        }
    }

    #[test]
    fn the_deviation_begins_where_it_was_asked_to() {
        for bound in [StdBound::Tanh, StdBound::Softplus] {
            for state_dependent_std in [true, false] {
                let config =
                    GaussianConfig { bound, state_dependent_std, init_std: 0.3, ..config() };
                let params = Params::new(Device::Cpu, 0);
                let head = GaussianHead::new(&params.root(), &config, shape()).unwrap();
                let std = head.distribution(&context(4)).unwrap().log_std.exp();
                assert_close(&std, &(std.ones_like() * 0.3), 0.02);
            }
        }
        let config = GaussianConfig { init_std: 10.0, ..config() };
        assert!(config.validate().unwrap_err().to_string().contains("ln(init_std)"));
    }

    #[test]
    fn likelihood_finds_the_deviation_of_noisy_demonstrations() {
        let params = Params::new(Device::Cpu, 0);
        let head = GaussianHead::new(&params.root(), &config(), shape()).unwrap();
        let context = context(1);
        let row = |t: &Tensor| t.narrow(0, 0, 1).repeat([512, 1]);
        let context = Context {
            pooled: row(&context.pooled),
            tokens: context.tokens.narrow(0, 0, 1).repeat([512, 1, 1]),
        };
        let (t, d) = (shape().chunk_size, shape().action_dim);
        let actions = random(5, &[512, t, d]) * 0.2 + 0.5;
        let valid = Tensor::ones([512, t], (Kind::Float, Device::Cpu));
        let mut adam = Adam::new(1e-2);
        for _ in 0..300 {
            let loss = head.loss(&context, &actions, &valid, &mut NoiseStream::new(0)).unwrap();
            adam.minimise(&params, &loss.mean(None));
        }
        let found = head.distribution(&context).unwrap();
        let mean = found.mean.mean(None).double_value(&[]);
        let std = found.log_std.exp().mean(None).double_value(&[]);
        assert!((mean - 0.5).abs() < 0.02 && (std - 0.2).abs() < 0.02, "{mean} {std}");
        let mut streams: Vec<NoiseStream> = (0..512).map(NoiseStream::new).collect();
        let drawn = head.sample(&context, &mut streams, ActMode::Stochastic).unwrap();
        assert!((drawn.std(true).double_value(&[]) - 0.2).abs() < 0.02);
    }
}
