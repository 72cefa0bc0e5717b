//! Environments whose every number can be predicted by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArcArray1, Array3, ArrayView1, arr1};

use crate::{
    ActionConvention, BoxSpace, ControlMode, Env, EnvError, EnvSpec, GripperConvention, ImageSpace,
    Info, Observation, ObservationSpace, ReferenceFrame, ResetOptions, Step,
};

/// Counts: `proprio = [seed mod 1000, t]`, reward `t`, a 2×2 frame filled with `t mod 256`; terminates with success after
/// `episode_len` steps.
pub struct CountingEnv {
    spec: EnvSpec,
    episode_len: u32,
    seed: u64,
    t: Option<u32>,
}

impl CountingEnv {
    /// Episodes of `episode_len` steps.
    pub fn new(episode_len: u32) -> Self {
        let spec = EnvSpec {
            id: "toy/counting-v1".to_owned(),
            observation: ObservationSpace {
                images: BTreeMap::from([("camera".to_owned(), ImageSpace { height: 2, width: 2 })]),
                proprio: BoxSpace::new([("seed", 0.0, 1000.0), ("t", 0.0, f32::INFINITY)]),
            },
            action: BoxSpace::new([("unused", -1.0, 1.0)]),
            convention: ActionConvention {
                control: ControlMode::AbsolutePosition,
                frame: ReferenceFrame::World,
                gripper: GripperConvention::None,
            },
            control_hz: 1.0,
            max_episode_steps: None,
            wrappers: Vec::new(),
            versions: BTreeMap::new(),
        };
        Self { spec, episode_len, seed: 0, t: None }
    }

    fn observe(&self, t: u32, frames: bool) -> Observation {
        let mut images = BTreeMap::new();
        if frames {
            images.insert(
                "camera".to_owned(),
                Array3::from_elem((2, 2, 3), (t % 256) as u8).into_shared(),
            );
        }
        let proprio: ArcArray1<f32> = arr1(&[(self.seed % 1000) as f32, t as f32]).into_shared();
        Observation { images, proprio, instruction: Arc::from("count") }
    }
}

impl Env for CountingEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        _options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        self.seed = seed.unwrap_or_else(|| self.seed.wrapping_add(1));
        self.t = Some(0);
        Ok((self.observe(0, true), Info { success: Some(false), ..Info::default() }))
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        self.spec.action.check_action(action)?;
        let t = self
            .t
            .ok_or(EnvError::NeedsReset { since: "construction or the end of its episode" })?
            + 1;
        let terminated = t >= self.episode_len;
        self.t = (!terminated).then_some(t);
        let metrics = BTreeMap::from([("count".to_owned(), f64::from(t))]);
        Ok(Step {
            obs: self.observe(t, frames),
            reward: t as f32,
            terminated,
            truncated: false,
            info: Info { success: Some(terminated), metrics, privileged: None },
        })
    }
}
