//! Encoders of `proprio`.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Encoder, Inputs};
use crate::PolicyError;
use crate::nn::{Activation, Mlp, Scope};

/// How `proprio` becomes tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StateConfig {
    /// Not looked at.
    None,
    /// As it is, normalised: one token of `P` per time step.
    #[default]
    Identity,
    /// Through an MLP with one hidden layer: one token per time step.
    Mlp {
        /// Width of the hidden layer and of the token.
        width: i64,
    },
    /// For keypoints in the plane followed by the agent, with one goal or several: one token for the whole window; see
    /// [`KeypointEncoder`].
    Keypoints {
        /// Where each keypoint should be, `[x0, y0, x1, …]`, in normalised units; of several goals one after the other.
        goal: Vec<f64>,
    },
}

impl StateConfig {
    /// Builds it for `P` numbers over `T_o` steps; `None` for [`StateConfig::None`] or `P = 0`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a goal that does not fit `P`.
    pub fn build(
        &self,
        scope: &Scope,
        proprio: i64,
        n_obs_steps: i64,
    ) -> Result<Option<Box<dyn Encoder>>, PolicyError> {
        if proprio == 0 {
            return Ok(None);
        }
        Ok(match self {
            Self::None => None,
            Self::Identity => {
                Some(Box::new(StateEncoder { mlp: None, width: proprio, tokens: n_obs_steps }))
            }
            Self::Mlp { width } => {
                let mlp = Mlp::new(scope, &[proprio, *width, *width], Activation::Silu);
                Some(Box::new(StateEncoder { mlp: Some(mlp), width: *width, tokens: n_obs_steps }))
            }
            Self::Keypoints { goal } => {
                Some(Box::new(KeypointEncoder::new(scope, goal, proprio, n_obs_steps)?))
            }
        })
    }
}

/// One token per time step.
#[derive(Debug)]
struct StateEncoder {
    mlp: Option<Mlp>,
    width: i64,
    tokens: i64,
}

impl Encoder for StateEncoder {
    fn tokens(&self) -> i64 {
        self.tokens
    }

    fn width(&self) -> i64 {
        self.width
    }

    fn steps(&self) -> i64 {
        self.tokens
    }

    fn encode(&self, inputs: &Inputs<'_>) -> Result<Tensor, PolicyError> {
        Ok(match &self.mlp {
            Some(mlp) => mlp.forward(inputs.proprio),
            None => inputs.proprio.shallow_clone(),
        })
    }
}

/// Hand-made features of keypoints `[K, 2]` and an agent `[2]` in one normalised frame, with fixed goals.
///
/// The window as it is; each keypoint relative to the agent (× 3); for every goal how far each keypoint is from its place
/// there, through tanh at two scales (× 16, × 4), so that the last pixels before success are as visible as the first
/// hundred; and what changed since the step before (× 12). Which goal counts is not known here: the instruction says so.
/// Learns nothing; the numbers were chosen by measurement on PushT.
#[derive(Debug)]
pub struct KeypointEncoder {
    /// `[G, 2 K]`.
    goals: Tensor,
    keypoints: i64,
    steps: i64,
}

/// Scale of positions relative to the agent: reach of a push, about a third of the frame.
const RELATIVE_GAIN: f64 = 3.0;
/// Scales of the distance to the goal: coarse and fine.
const GOAL_GAINS: [f64; 2] = [16.0, 4.0];
/// Scale of changes between two steps.
const CHANGE_GAIN: f64 = 12.0;

impl KeypointEncoder {
    /// `goal` holds `P - 2` numbers for each goal.
    fn new(
        scope: &Scope,
        goal: &[f64],
        proprio: i64,
        n_obs_steps: i64,
    ) -> Result<Self, PolicyError> {
        let each = usize::try_from(proprio - 2).unwrap_or(0);
        if each < 2
            || !each.is_multiple_of(2)
            || goal.is_empty()
            || !goal.len().is_multiple_of(each)
        {
            return Err(PolicyError::Config {
                detail: format!(
                    "encode keypoints: the goal has {} numbers, a proprio of {proprio} needs {each} (keypoints, then the \
                     agent's two) for each goal",
                    goal.len(),
                ),
            });
        }
        let goals: Vec<f32> = goal.iter().map(|&v| v as f32).collect();
        Ok(Self {
            keypoints: each as i64 / 2,
            goals: Tensor::from_slice(&goals).view([-1, each as i64]).to_device(scope.device()),
            steps: n_obs_steps,
        })
    }
}

impl Encoder for KeypointEncoder {
    fn tokens(&self) -> i64 {
        1
    }

    fn width(&self) -> i64 {
        let p = 2 * self.keypoints + 2;
        let changes = if self.steps > 1 { p } else { 0 };
        let goals = self.goals.size()[0];
        p * self.steps + (1 + 2 * goals) * 2 * self.keypoints + changes
    }

    fn encode(&self, inputs: &Inputs<'_>) -> Result<Tensor, PolicyError> {
        let window = inputs.proprio;
        let now = window.select(1, -1);
        let k = 2 * self.keypoints;
        let (points, agent) = (now.narrow(1, 0, k), now.narrow(1, k, 2));
        let relative = (points.view([-1, self.keypoints, 2]) - agent.unsqueeze(1)) * RELATIVE_GAIN;
        let error = points.unsqueeze(1) - &self.goals;
        let mut parts = vec![window.flatten(1, 2), relative.flatten(1, 2)];
        parts.extend(GOAL_GAINS.map(|gain| (&error * gain).tanh().flatten(1, 2)));
        if self.steps > 1 {
            parts.push((&now - window.select(1, -2)) * CHANGE_GAIN);
        }
        Ok(Tensor::cat(&parts, 1).unsqueeze(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tch::{Device, Kind};

    use super::*;
    use crate::NoiseStream;
    use crate::nn::Params;

    fn encode(config: &StateConfig, window: &Tensor) -> (i64, i64, Tensor) {
        let params = Params::new(Device::Cpu, 0);
        let size = window.size();
        let encoder = config.build(&params.root(), size[2], size[1]).unwrap().unwrap();
        let images = BTreeMap::new();
        let inputs = Inputs { images: &images, proprio: window, instructions: &[] };
        (encoder.tokens(), encoder.width(), encoder.encode(&inputs).unwrap())
    }

    #[test]
    fn declared_sizes_are_the_real_ones() {
        let goal = vec![0.5; 4];
        for steps in [1, 2, 3] {
            let window = NoiseStream::new(0).normal(&[5, steps, 6], Device::Cpu);
            for config in [
                StateConfig::Identity,
                StateConfig::Mlp { width: 7 },
                StateConfig::Keypoints { goal: goal.clone() },
                StateConfig::Keypoints { goal: goal.repeat(3) },
            ] {
                let (n, w, tokens) = encode(&config, &window);
                assert_eq!(tokens.size(), [5, n, w], "{config:?}");
            }
        }
    }

    #[test]
    fn a_block_on_its_goal_shows_no_distance() {
        let window = Tensor::zeros([1, 1, 6], (Kind::Float, Device::Cpu));
        let goal = StateConfig::Keypoints { goal: vec![0.0; 4] };
        assert_eq!(encode(&goal, &window).2.abs().max().double_value(&[]), 0.0);
        let (_, _, off) = encode(&StateConfig::Keypoints { goal: vec![0.01; 4] }, &window);
        // tanh(0.16): a hundredth of the frame, 2.6 px of PushT, is plain to see.
        assert!((off.abs().max().double_value(&[]) - 0.16f64.tanh()).abs() < 1e-6);
    }

    #[test]
    fn each_of_two_goals_shows_the_distance_that_it_shows_alone() {
        let window = NoiseStream::new(0).normal(&[5, 2, 6], Device::Cpu);
        let (a, b) = (vec![0.1, 0.2, -0.3, 0.4], vec![-0.5, 0.0, 0.2, 0.1]);
        let of =
            |goal: Vec<f64>| encode(&StateConfig::Keypoints { goal }, &window).2.squeeze_dim(1);
        let (both, a, b) = (of([a.clone(), b.clone()].concat()), of(a), of(b));
        // Window 12, relative 4, then per scale one goal after the other, 4 numbers each, then 6 changes.
        let expected = [
            a.narrow(1, 0, 20),
            b.narrow(1, 16, 4),
            a.narrow(1, 20, 4),
            b.narrow(1, 20, 4),
            a.narrow(1, 24, 6),
        ];
        assert!(both.equal(&Tensor::cat(&expected, 1)));
        assert!(!a.narrow(1, 16, 4).equal(&b.narrow(1, 16, 4)));
    }

    #[test]
    fn a_goal_of_another_length_is_named() {
        let params = Params::new(Device::Cpu, 0);
        for (n, proprio) in [(3, 6), (6, 6), (0, 6), (4, 5), (2, 2), (2, 1)] {
            let config = StateConfig::Keypoints { goal: vec![0.0; n] };
            let error = config.build(&params.root(), proprio, 1).err().unwrap().to_string();
            assert!(error.contains(&format!("the goal has {n} numbers")), "{error}");
        }
    }
}
