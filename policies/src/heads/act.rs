//! ACT: a conditional variational auto-encoder of action chunks with transformers (Zhao et al. 2023, arXiv 2304.13705;
//! reference `detr/models/detr_vae.py`, `policy.py`).
//!
//! In training an encoder reads [CLS, state, actions] and names the style `z` of the demonstration; the decoder predicts the
//! chunk from the context and `z`. The loss is L1 + `kl_weight` · KL(q(z) ‖ N(0, 1)). Acting, `z` is 0, or drawn from the
//! prior when samples are asked for.
//!
//! Deviations: the CVAE's state token is the pooled context; learned positions in its encoder; all decoder layers are used (the
//! reference builds 7 and returns the first's output, so its effective depth, our default, is 1); L1 is averaged over valid
//! actions, where the reference's mean counts padded ones as zeros; see [`super::decoder`] for the transformer.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::decoder::{ChunkDecoder, ChunkDecoderConfig};
use super::mlp::RegressionLoss;
use super::{Head, HeadShape};
use crate::fusion::Context;
use crate::nn::{Activation, EncoderLayer, Init, Linear, Scope, TransformerConfig};
use crate::{ActMode, NoiseStream, PolicyError, normal_rows};

/// Settings of [`ActHead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActConfig {
    /// Layers of the CVAE's encoder; the decoder's transformer gives their size.
    pub n_vae_encoder_layers: usize,
    /// Width of `z`.
    pub latent_dim: i64,
    /// Weight of the KL divergence (nats, summed over `z`) against the mean L1.
    pub kl_weight: f64,
    /// The transformer that predicts the chunk.
    pub decoder: ChunkDecoderConfig,
}

impl Default for ActConfig {
    /// The reference's command line and `imitate_episodes.py`.
    fn default() -> Self {
        Self {
            n_vae_encoder_layers: 4,
            latent_dim: 32,
            kl_weight: 10.0,
            decoder: ChunkDecoderConfig {
                n_encoder_layers: 4,
                n_decoder_layers: 1,
                transformer: TransformerConfig {
                    width: 512,
                    heads: 8,
                    feed_forward: 3200,
                    activation: Activation::Relu,
                    norm_first: false,
                },
            },
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct ActHead {
    vae_state: Linear,
    vae_action: Linear,
    /// CLS, state, actions.
    vae_positions: Tensor,
    vae_encoder: Vec<EncoderLayer>,
    vae_latent: Linear,
    latent: Linear,
    decoder: ChunkDecoder,
    out: Linear,
    config: ActConfig,
    shape: HeadShape,
}

impl ActHead {
    /// For contexts and chunks of `shape`.
    ///
    /// # Errors
    /// [`PolicyError::Config`].
    pub fn new(scope: &Scope, config: &ActConfig, shape: HeadShape) -> Result<Self, PolicyError> {
        let weight = config.kl_weight;
        if config.latent_dim < 1
            || config.n_vae_encoder_layers < 1
            || !(weight.is_finite() && weight >= 0.0)
        {
            return Err(PolicyError::Config {
                detail: format!(
                    "build an act head with latent_dim = {}, n_vae_encoder_layers = {}, kl_weight = {weight}: sizes must be \
                     at least 1 and the weight finite and not negative",
                    config.latent_dim, config.n_vae_encoder_layers
                ),
            });
        }
        let decoder = ChunkDecoder::new(&scope.sub("decoder"), &config.decoder, shape)?;
        let transformer = &config.decoder.transformer;
        let (w, z) = (transformer.width, config.latent_dim);
        let vae = scope.sub("vae");
        let layers = config.n_vae_encoder_layers;
        Ok(Self {
            vae_state: Linear::new(&vae.sub("state"), shape.pooled_width, w),
            vae_action: Linear::new(&vae.sub("action"), shape.action_dim, w),
            vae_positions: vae.param(
                "positions",
                &[2 + shape.chunk_size, w],
                Init::Normal { std: 1.0 },
            ),
            vae_encoder: EncoderLayer::stack(&vae.sub("encoder"), transformer, layers),
            vae_latent: Linear::new(&vae.sub("latent"), w, 2 * z),
            latent: Linear::new(&scope.sub("latent"), z, w),
            decoder,
            out: Linear::new(&scope.sub("out"), w, shape.action_dim),
            config: config.clone(),
            shape,
        })
    }

    /// Mean and log-variance of `z` given the true chunk, `[B, latent_dim]` each. Padded actions are not looked at.
    fn posterior(&self, context: &Context, actions: &Tensor, valid: &Tensor) -> (Tensor, Tensor) {
        let (b, t) = (actions.size()[0], self.shape.chunk_size);
        let state = self.vae_state.forward(&context.pooled).unsqueeze(1);
        // CLS is a position alone.
        let cls = state.zeros_like();
        let mut x =
            Tensor::cat(&[cls, state, self.vae_action.forward(actions)], 1) + &self.vae_positions;
        let always = valid.ones_like().narrow(1, 0, 1);
        let mask = Tensor::cat(&[&always, &always, valid], 1).gt(0.5).reshape([b, 1, 1, 2 + t]);
        for layer in &self.vae_encoder {
            x = layer.forward(&x, Some(&mask));
        }
        let mut parts = self.vae_latent.forward(&x.select(1, 0)).chunk(2, 1);
        let log_variance = parts.remove(1);
        (parts.remove(0), log_variance)
    }

    /// `[B, T_p, D]` from a style `[B, latent_dim]`.
    fn decode(&self, context: &Context, z: &Tensor) -> Tensor {
        let latent = self.latent.forward(z).unsqueeze(1);
        self.out.forward(&self.decoder.forward(context, Some(&latent)))
    }
}

/// KL(N(mean, e^log_variance) ‖ N(0, 1)) in nats, summed over the last dimension (Kingma & Welling 2014, appendix B).
pub fn kl_from_standard_normal(mean: &Tensor, log_variance: &Tensor) -> Tensor {
    let terms: Tensor = mean.square() + log_variance.exp() - 1.0 - log_variance;
    terms.sum_dim_intlist([-1i64].as_slice(), false, None) * 0.5
}

impl Head for ActHead {
    /// L1 averaged over `D`, plus the row's weighted KL on each of its actions.
    fn loss(
        &self,
        context: &Context,
        actions: &Tensor,
        valid: &Tensor,
        noise: &mut NoiseStream,
    ) -> Result<Tensor, PolicyError> {
        let b = self.shape.expect_batch(context, actions, valid)?;
        let (mean, log_variance) = self.posterior(context, actions, valid);
        let epsilon = noise.normal(&[b, self.config.latent_dim], actions.device());
        let z: Tensor = &mean + (&log_variance * 0.5).exp() * epsilon.to_kind(mean.kind());
        let predicted = self.decode(context, &z).to_kind(Kind::Float);
        let l1 = RegressionLoss::L1.apply(&predicted, actions).mean_dim(-1, false, None);
        let kl = kl_from_standard_normal(&mean, &log_variance).to_kind(Kind::Float);
        Ok(l1 + kl.unsqueeze(1) * self.config.kl_weight)
    }

    fn sample(
        &self,
        context: &Context,
        noise: &mut [NoiseStream],
        mode: ActMode,
    ) -> Result<Tensor, PolicyError> {
        let _guard = tch::no_grad_guard();
        let b = self.shape.expect_streams(context, noise)?;
        let (n, pooled) = (self.config.latent_dim, &context.pooled);
        let z = match mode {
            ActMode::Deterministic => Tensor::zeros([b, n], (pooled.kind(), pooled.device())),
            ActMode::Stochastic => normal_rows(noise, &[n], pooled.device()).to_kind(pooled.kind()),
        };
        Ok(self.decode(context, &z))
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::heads::HeadConfig;
    use crate::heads::testing::{check_head, check_learns_a_linear_policy, context, shape};
    use crate::nn::Params;
    use crate::testing::{Adam, assert_close, random};

    fn config() -> ActConfig {
        ActConfig {
            n_vae_encoder_layers: 2,
            latent_dim: 4,
            kl_weight: 1.0,
            decoder: ChunkDecoderConfig {
                n_encoder_layers: 1,
                n_decoder_layers: 2,
                transformer: TransformerConfig {
                    width: 32,
                    heads: 2,
                    feed_forward: 64,
                    ..ActConfig::default().decoder.transformer
                },
            },
        }
    }

    #[test]
    fn it_is_a_head_and_uses_all_decoder_layers() {
        // The gradient check fails for a layer whose output is not used: the reference's fault.
        check_head(&HeadConfig::Act(config()));
    }

    #[test]
    fn it_learns_a_linear_policy() {
        check_learns_a_linear_policy(&HeadConfig::Act(config()), 300, 3e-3, 0.1);
    }

    #[test]
    fn kl_is_that_of_two_normal_distributions() {
        // KL(N(1, 2²) ‖ N(0, 1)) = (4 + 1 - 1)/2 - ln 2 = 1.306853; KL(N(0, 1) ‖ N(0, 1)) = 0.
        let mean = Tensor::from_slice(&[1.0f64, 0.0]).reshape([2, 1]);
        let log_variance = Tensor::from_slice(&[4f64.ln(), 0.0]).reshape([2, 1]);
        let expected = Tensor::from_slice(&[2.0 - 2f64.ln(), 0.0]);
        assert_close(&kl_from_standard_normal(&mean, &log_variance), &expected, 1e-12);
    }

    #[test]
    fn padded_actions_do_not_reach_the_style() {
        let params = Params::new(Device::Cpu, 0);
        let head = ActHead::new(&params.root(), &config(), shape()).unwrap();
        let context = context(2);
        let valid = Tensor::from_slice(&[1f32, 1., 0., 0., 1., 1., 1., 1.]).reshape([2, 4]);
        let a = random(1, &[2, 4, 2]);
        let b = a.copy();
        let _ = b.narrow(1, 3, 1).fill_(9.0);
        let (ma, mb) =
            (head.posterior(&context, &a, &valid).0, head.posterior(&context, &b, &valid).0);
        assert_close(&ma.get(0), &mb.get(0), 1e-6);
        assert_ne!(ma.get(1), mb.get(1));
    }

    /// Half of the demonstrations pass on one side, half on the other: regression answers with the useless mean, a CVAE
    /// with a low `kl_weight` keeps both styles apart.
    #[test]
    fn styles_keep_two_ways_apart() {
        let params = Params::new(Device::Cpu, 0);
        let config = ActConfig { kl_weight: 0.01, ..config() };
        let head = ActHead::new(&params.root(), &config, shape()).unwrap();
        let one = context(1);
        let context =
            Context { pooled: one.pooled.repeat([32, 1]), tokens: one.tokens.repeat([32, 1, 1]) };
        let side: Vec<f32> = (0..32).map(|i| if i % 2 == 0 { 0.8 } else { -0.8 }).collect();
        let actions = Tensor::from_slice(&side).reshape([32, 1, 1]).expand([32, 4, 2], false);
        let valid = Tensor::ones([32, 4], (Kind::Float, Device::Cpu));
        let (mut adam, mut noise) = (Adam::new(2e-3), NoiseStream::new(0));
        for _ in 0..300 {
            let loss = head.loss(&context, &actions, &valid, &mut noise).unwrap();
            adam.minimise(&params, &loss.mean(None));
        }
        let mut streams: Vec<NoiseStream> = (0..32).map(NoiseStream::new).collect();
        let drawn = head.sample(&context, &mut streams, ActMode::Stochastic).unwrap();
        let near = (drawn.abs() - 0.8).abs().lt(0.2).to_kind(Kind::Float).mean(None);
        let left = drawn.lt(0.0).to_kind(Kind::Float).mean(None).double_value(&[]);
        assert!(near.double_value(&[]) > 0.7, "{near:?} near one of the two");
        assert!((0.1..0.9).contains(&left), "{left} on one side");
    }
}
