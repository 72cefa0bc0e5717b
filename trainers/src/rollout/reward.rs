//! What a learner is rewarded for: the environment's reward, or what its information says.

use serde::{Deserialize, Serialize};
use simloop_envs::pusht::Pose;
use simloop_envs::{Info, Step};

use crate::TrainerError;

/// The reward of a step: `env · r + success · [solved] + step + γ φ(s') - φ(s)`.
///
/// The last part is potential-based shaping, which leaves the best policy what it is (Ng et al. 1999), with
/// `φ = progress · metric - approach · distance`. PushT's own reward pays for being near the target for as long as the
/// episode lasts and ends the episode on success, so a policy that maximises it stops just short of the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// Weight of the environment's reward.
    pub env: f32,
    /// For solving the task.
    pub success: f32,
    /// For every step (negative: time costs).
    pub step: f32,
    /// Weight of the metric in the potential.
    pub progress: f32,
    /// The metric, of [`Info::metrics`].
    pub metric: String,
    /// Weight of PushT's distance in the potential: the mean over the block's keypoints of how far each is from where it
    /// should be, in arenas (512 px). Needs the true state.
    pub approach: f32,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            env: 1.0,
            success: 0.0,
            step: 0.0,
            progress: 0.0,
            metric: "coverage".to_owned(),
            approach: 0.0,
        }
    }
}

impl RewardConfig {
    /// Whether it needs [`Info::privileged`].
    pub fn needs_privileged(&self) -> bool {
        self.approach != 0.0
    }

    /// `φ`.
    ///
    /// # Errors
    /// [`TrainerError::Config`] where the information lacks what it is computed from.
    pub(super) fn potential(&self, info: &Info) -> Result<f32, TrainerError> {
        let mut potential = 0.0;
        if self.progress != 0.0 {
            let metric = info.metrics.get(&self.metric).ok_or_else(|| {
                let there: Vec<_> = info.metrics.keys().cloned().collect();
                TrainerError::config(format!(
                    "reward progress in `{}`: the environment measures {there:?}",
                    self.metric
                ))
            })?;
            potential += self.progress * *metric as f32;
        }
        if self.approach != 0.0 {
            potential -= self.approach * distance(info).ok_or_else(|| {
                TrainerError::config(
                    "reward the approach: the environment does not tell `block_pose` and `goal_pose`",
                )
            })?;
        }
        Ok(potential)
    }

    /// The reward of a step without its shaping.
    pub(super) fn plain(&self, step: &Step) -> f32 {
        let solved = step.info.success == Some(true);
        self.env * step.reward + if solved { self.success } else { 0.0 } + self.step
    }
}

/// Mean distance of the block's keypoints from their places, in arenas.
fn distance(info: &Info) -> Option<f32> {
    let privileged = info.privileged.as_ref()?;
    let pose =
        |name| privileged.array::<3>(name).map(|[x, y, angle]| Pose { x, y, angle }.keypoints());
    let (block, goal) = (pose("block_pose")?, pose("goal_pose")?);
    let sum: f64 = block.iter().zip(&goal).map(|(a, b)| (a[0] - b[0]).hypot(a[1] - b[1])).sum();
    Some((sum / block.len() as f64 / 512.0) as f32)
}
