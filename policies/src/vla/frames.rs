//! Goals in the plane, one of which the instruction names: the policy works in the frame of that goal.
//!
//! A task that is the same at every goal need not be learned once per goal. Each goal's rigid motion takes points so that
//! the goal comes to lie on one canonical place; encoders and head only ever see what that motion gives, and what they
//! answer is taken back. Which goal is meant is learned from demonstrations alone: an instruction gives a weight per goal,
//! and the loss is the mean, under these weights, of the losses in the goals' frames (a mixture whose experts are one
//! network), so weight moves to the frame in which the demonstrations make sense. Acting uses the goal of largest weight.
//!
//! Everything outside of the encoders is in raw units: pixels, metres.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::PolicyIo;
use crate::encoders::{Encoder as _, Inputs};
use crate::nn::{Linear, Scope};
use crate::text::TextEncoder;
use crate::{ImitationBatch, ObsBatch, PolicyError};

/// Where the goals are. Every number of `proprio` and of an action must be a coordinate of a point, `x, y, x, y, …`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FramesConfig {
    /// `[x, y, angle]` of each goal, raw units and rad.
    pub goals: Vec<[f64; 3]>,
    /// The pose that each goal is brought to, e.g. the one goal of the policy whose weights this one begins with.
    pub canonical: [f64; 3],
}

impl FramesConfig {
    /// Checks it against what goes in and out.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming what does not fit.
    pub fn validate(&self, io: &PolicyIo, reads: bool, looks: bool) -> Result<(), PolicyError> {
        let fail = |detail: &str| {
            Err(PolicyError::Config { detail: format!("use `policy.frames`: {detail}") })
        };
        if self.goals.len() < 2 {
            return fail("give at least two goals");
        }
        if !self.goals.iter().chain([&self.canonical]).flatten().all(|v| v.is_finite()) {
            return fail("every number of a pose must be finite");
        }
        let points = |names: &[String]| !names.is_empty() && names.len().is_multiple_of(2);
        if !points(&io.proprio) || !points(&io.action) {
            return fail(
                "the numbers of proprio and action must be coordinates of points, in pairs",
            );
        }
        if !reads {
            return fail("an instruction names the goal: choose `policy.text`");
        }
        if looks {
            return fail("images cannot be moved into a goal's frame");
        }
        Ok(())
    }
}

/// See the module.
pub(super) struct Frames {
    text: TextEncoder,
    scores: Linear,
    /// `[G, 2, 2]`, transposed rotations: points are rows.
    turns: Tensor,
    /// `[G, 1, 2]`.
    goals: Tensor,
    /// `[2]`.
    canonical: Tensor,
}

impl Frames {
    /// For a checked configuration, parameters in `scope`.
    pub(super) fn new(scope: &Scope, config: &FramesConfig, text: TextEncoder) -> Self {
        let [x0, y0, angle0] = config.canonical;
        let mut turns = Vec::new();
        let mut goals = Vec::new();
        for [x, y, angle] in &config.goals {
            let (sin, cos) = (angle0 - angle).sin_cos();
            turns.extend([cos, sin, -sin, cos].map(|v| v as f32));
            goals.extend([*x as f32, *y as f32]);
        }
        let device = scope.device();
        Self {
            scores: Linear::new(&scope.sub("scores"), text.width(), config.goals.len() as i64),
            text,
            turns: Tensor::from_slice(&turns).view([-1, 2, 2]).to_device(device),
            goals: Tensor::from_slice(&goals).view([-1, 1, 2]).to_device(device),
            canonical: Tensor::from_slice(&[x0 as f32, y0 as f32]).to_device(device),
        }
    }

    /// The logarithm of each goal's weight, `[B, G]`.
    fn log_weights(&self, obs: &ObsBatch) -> Result<Tensor, PolicyError> {
        let (images, instructions) = (BTreeMap::new(), &obs.instructions);
        let inputs = Inputs { images: &images, proprio: &obs.proprio, instructions };
        let tokens = self.text.encode(&inputs)?;
        let read = tokens.mean_dim([1i64].as_slice(), false, None);
        Ok(self.scores.forward(&read).log_softmax(-1, Kind::Float))
    }

    /// `batch` in the frame of every goal, goal after goal, `G B` rows.
    pub(super) fn everywhere(&self, batch: &ImitationBatch) -> ImitationBatch {
        let (g, b) = (self.turns.size()[0], batch.obs.len());
        let goal = Tensor::arange(g, (Kind::Int64, self.turns.device()));
        let goal = goal.repeat_interleave_self_int(b as i64, None, None);
        let points = |x: &Tensor| self.enter(&x.repeat([g, 1, 1]), &goal);
        ImitationBatch {
            obs: ObsBatch {
                images: BTreeMap::new(),
                proprio: points(&batch.obs.proprio),
                instructions: vec![batch.obs.instructions.as_slice(); g as usize].concat(),
            },
            actions: points(&batch.actions),
            valid: batch.valid.repeat([g, 1]),
        }
    }

    /// The mean over goals of losses `[G B, T]` of [`Frames::everywhere`], under the weights that `obs` gives: `[B, T]`.
    pub(super) fn mean(&self, losses: &Tensor, obs: &ObsBatch) -> Result<Tensor, PolicyError> {
        let weights = self.log_weights(obs)?.exp().transpose(0, 1).unsqueeze(-1);
        let losses = losses.view([-1, obs.len() as i64, losses.size()[1]]);
        Ok((losses * weights).sum_dim_intlist([0i64].as_slice(), false, Kind::Float))
    }

    /// The goal of largest weight, `[B]`.
    pub(super) fn chosen(&self, obs: &ObsBatch) -> Result<Tensor, PolicyError> {
        Ok(self.log_weights(obs)?.argmax(-1, false))
    }

    /// `obs` in the frames of `goal [B]`.
    pub(super) fn enter_obs(&self, obs: &ObsBatch, goal: &Tensor) -> ObsBatch {
        ObsBatch {
            images: BTreeMap::new(),
            proprio: self.enter(&obs.proprio, goal),
            instructions: obs.instructions.clone(),
        }
    }

    /// Points `[B, T, 2 K]` in the frames of `goal [B]`.
    pub(super) fn enter(&self, points: &Tensor, goal: &Tensor) -> Tensor {
        let rows = rows_of(points) - self.goals.index_select(0, goal);
        (rows.matmul(&self.turns.index_select(0, goal)) + &self.canonical).view_as(points)
    }

    /// Undoes [`Frames::enter`].
    pub(super) fn leave(&self, points: &Tensor, goal: &Tensor) -> Tensor {
        let back = self.turns.index_select(0, goal).transpose(1, 2);
        let rows = (rows_of(points) - &self.canonical).matmul(&back);
        (rows + self.goals.index_select(0, goal)).view_as(points)
    }
}

/// `[B, T, 2 K]` as points `[B, T K, 2]`.
fn rows_of(points: &Tensor) -> Tensor {
    points.contiguous().view([points.size()[0], -1, 2])
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::NoiseStream;
    use crate::nn::Params;
    use crate::text::{TextConfig, Tokenizer};

    const LEFT: [f64; 3] = [180.0, 216.0, std::f64::consts::FRAC_PI_4];
    const RIGHT: [f64; 3] = [332.0, 216.0, -std::f64::consts::FRAC_PI_4];
    const ONE: [f64; 3] = [256.0, 256.0, std::f64::consts::FRAC_PI_4];

    fn frames(params: &Params) -> Frames {
        let tokenizer = Tokenizer::train(["left", "right"], 300).unwrap();
        let text: TextConfig = serde_json::from_value(serde_json::json!({
            "kind": "small", "length": 4, "pool": true, "layers": 1,
            "transformer": { "width": 8, "heads": 2, "feed_forward": 16 },
        }))
        .unwrap();
        let text = text.build(&params.root().sub("text"), Some(&tokenizer)).unwrap().unwrap();
        let config = FramesConfig { goals: vec![LEFT, RIGHT], canonical: ONE };
        Frames::new(&params.root().sub("frames"), &config, text)
    }

    fn said(instructions: &[&str]) -> ObsBatch {
        ObsBatch {
            images: BTreeMap::new(),
            proprio: Tensor::zeros([instructions.len() as i64, 1, 2], (Kind::Float, Device::Cpu)),
            instructions: instructions.iter().map(|&s| s.into()).collect(),
        }
    }

    #[test]
    fn each_goal_comes_to_lie_on_the_canonical_one_and_back() {
        let params = Params::new(Device::Cpu, 0);
        let frames = frames(&params);
        // The middle of a goal, and the point 60 px along its own x axis.
        let marks = |[x, y, angle]: [f64; 3]| {
            [x, y, x + 60.0 * angle.cos(), y + 60.0 * angle.sin()].map(|v| v as f32)
        };
        let points = Tensor::from_slice(&[marks(LEFT), marks(RIGHT)].concat()).view([2, 1, 4]);
        let goal = Tensor::from_slice(&[0i64, 1]);
        let there = frames.enter(&points, &goal);
        let expected = Tensor::from_slice(&[marks(ONE), marks(ONE)].concat()).view([2, 1, 4]);
        assert!(there.allclose(&expected, 0.0, 1e-3, false), "{there:?}");
        assert!(frames.leave(&there, &goal).allclose(&points, 0.0, 1e-3, false));
        // In the frame of the other goal it lies elsewhere.
        let other = frames.enter(&points, &Tensor::from_slice(&[1i64, 0]));
        assert!((other - expected).abs().max().double_value(&[]) > 100.0);
    }

    #[test]
    fn weight_moves_to_the_frame_in_which_the_loss_is_small() {
        let params = Params::new(Device::Cpu, 0);
        let frames = frames(&params);
        let obs = said(&["left", "right", "left"]);
        // Goal after goal, three rows each, one action: wrong frames cost more.
        let losses = Tensor::from_slice(&[0.1f32, 1.0, 0.1, 1.0, 0.1, 1.0]).view([6, 1]);
        let mut adam = crate::testing::Adam::new(1e-2);
        for _ in 0..100 {
            adam.minimise(&params, &frames.mean(&losses, &obs).unwrap().mean(Kind::Float));
        }
        let chosen = Vec::<i64>::try_from(frames.chosen(&obs).unwrap()).unwrap();
        assert_eq!(chosen, [0, 1, 0]);
        let mean = frames.mean(&losses, &obs).unwrap();
        assert_eq!(mean.size(), [3, 1]);
        assert!(mean.max().double_value(&[]) < 0.2, "{mean:?}");
    }

    #[test]
    fn every_row_is_repeated_in_every_frame() {
        let params = Params::new(Device::Cpu, 0);
        let frames = frames(&params);
        let noise = |size: &[i64]| NoiseStream::new(1).normal(size, Device::Cpu) * 100.0;
        let obs = ObsBatch { proprio: noise(&[2, 3, 4]), ..said(&["left", "right"]) };
        let batch = ImitationBatch {
            obs,
            actions: noise(&[2, 5, 2]),
            valid: Tensor::from_slice(&[1f32; 10]).view([2, 5]),
        };
        let all = frames.everywhere(&batch);
        assert_eq!((all.obs.len(), all.valid.size()), (4, vec![4, 5]));
        assert_eq!(all.obs.instructions[..2], all.obs.instructions[2..]);
        let right = frames.enter(&batch.actions, &Tensor::from_slice(&[1i64, 1]));
        assert!(all.actions.narrow(0, 2, 2).allclose(&right, 1e-6, 1e-4, false));
        assert_eq!(all.obs.proprio.size(), [4, 3, 4]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let io = |proprio: usize| PolicyIo {
            cameras: BTreeMap::new(),
            proprio: vec!["x".to_owned(); proprio],
            action: vec!["x".to_owned(); 2],
            convention: None,
            control_hz: None,
        };
        let config = FramesConfig { goals: vec![LEFT, RIGHT], canonical: ONE };
        config.validate(&io(4), true, false).unwrap();
        let refused = |config: &FramesConfig, p, reads, looks| {
            config.validate(&io(p), reads, looks).unwrap_err().to_string()
        };
        assert!(refused(&config, 5, true, false).contains("in pairs"));
        assert!(refused(&config, 4, false, false).contains("policy.text"));
        assert!(refused(&config, 4, true, true).contains("images"));
        let one = FramesConfig { goals: vec![LEFT], ..config };
        assert!(refused(&one, 4, true, false).contains("two goals"));
    }
}
