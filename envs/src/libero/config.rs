//! What a LIBERO environment is asked to do. The numbers belong to a protocol; the defaults here are openpi's.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{LiberoInstall, parse_task};
use crate::EnvError;
use crate::bridge::Deadlines;

const ACTION_DIM: usize = 7;
/// The bridge's limit on shared memory.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// How the raw image, which OpenGL stores upside down, is handed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageTransform {
    /// As stored: upside down.
    None,
    /// Upright.
    FlipVertical,
    /// Upright and mirrored, as OpenVLA, openpi and LeRobot train and evaluate.
    #[default]
    Rot180,
}

/// Which library renders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GlBackend {
    /// `$MUJOCO_GL` if it is set, else EGL where its library exists, else `OSMesa`.
    #[default]
    Auto,
    /// EGL: a GPU, or Mesa's software renderer.
    Egl,
    /// Software rendering without a display.
    Osmesa,
}

/// How the poses of cabinets, stoves and racks are drawn; no initial state holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FixtureSeeding {
    /// Seeded before every reset with the reset's own seed, a function of (run, task, trial).
    #[default]
    PerTrial,
    /// `env.seed(0)` once per task, then trials in order: the scene of trial k is that of the (k+1)-th reset, whichever
    /// worker runs it (openvla `experiments/robot/libero/libero_utils.py`).
    Openvla,
    /// The same with `env.seed(7)` (openpi `examples/libero/main.py`).
    Openpi,
    /// `env.seed(1000 + k)` before the reset of trial k (lerobot `scripts/lerobot_eval.py`).
    Lerobot,
}

/// How an episode returns to its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetMode {
    /// Soft: it equals the hard one bit for bit in every suite.
    #[default]
    Auto,
    /// Restores model and data, 0.1 s.
    Soft,
    /// Rebuilds the model as LIBERO does, 0.5 to 3 s.
    Hard,
}

/// One LIBERO environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LiberoConfig {
    /// The first task; `ResetOptions::task` changes it.
    pub task: String,
    /// Cameras that the policy sees; empty when nobody looks, and then nothing is ever rendered.
    pub cameras: Vec<String>,
    /// Height and width of the images, pixels.
    pub image_size: [u32; 2],
    /// Orientation of the images.
    pub image_transform: ImageTransform,
    /// Which library renders.
    pub gl: GlBackend,
    /// Whether `render` has a picture even without cameras.
    pub video: bool,
    /// The longest chunk that may ask for every frame.
    pub frame_slots: u32,
    /// How fixture poses are drawn.
    pub fixture_seeding: FixtureSeeding,
    /// How an episode returns to its beginning.
    pub reset_mode: ResetMode,
    /// Steps inside `reset` during which objects fall into place.
    pub settle_steps: u32,
    /// What those steps command.
    pub settle_action: [f64; ACTION_DIM],
    /// Suite to the step that truncates; a suite that is not listed has no limit.
    pub step_limits: BTreeMap<String, u32>,
    /// Whether `Info` carries the true state for scripted experts.
    pub privileged: bool,
    /// How long the worker may take.
    pub deadlines: Deadlines,
}

impl Default for LiberoConfig {
    fn default() -> Self {
        Self {
            task: "libero_spatial/0".into(),
            cameras: vec!["agentview".into(), "robot0_eye_in_hand".into()],
            image_size: [256, 256], // openpi examples/libero/main.py, LIBERO_ENV_RESOLUTION
            image_transform: ImageTransform::Rot180,
            gl: GlBackend::Auto,
            video: false,
            frame_slots: 64,
            fixture_seeding: FixtureSeeding::PerTrial,
            reset_mode: ResetMode::Auto,
            settle_steps: 10, // openpi examples/libero/main.py, num_steps_wait
            settle_action: [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0], // ibid., LIBERO_DUMMY_ACTION
            step_limits: BTreeMap::new(),
            privileged: false,
            deadlines: Deadlines::default(),
        }
    }
}

impl LiberoConfig {
    /// An environment without cameras that shows the true state: what a scripted expert needs.
    pub fn blind(task: impl Into<String>) -> Self {
        Self { task: task.into(), cameras: Vec::new(), privileged: true, ..Self::default() }
    }

    /// The same simulation with a view for people: at least as large as the default, whatever the policy sees.
    #[must_use]
    pub fn viewer(&self) -> Self {
        let least = Self::default().image_size;
        let image_size = [0, 1].map(|i| self.image_size[i].max(least[i]));
        Self { cameras: Vec::new(), video: true, image_size, ..self.clone() }
    }

    /// # Errors
    /// [`EnvError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), EnvError> {
        parse_task(&self.task)?;
        self.deadlines.validate()?;
        let wrong = |detail: String| Err(EnvError::Config { detail });
        if self.image_size.iter().any(|side| !(16..=1024).contains(side)) {
            return wrong(format!(
                "`image_size` is {:?}; each side lies between 16 and 1024 pixels",
                self.image_size
            ));
        }
        if self.frame_slots == 0 {
            return wrong("`frame_slots` is 0; a step has at least one frame".into());
        }
        let [height, width] = self.image_size.map(u64::from);
        let frames = u64::from(self.frame_slots) * self.cameras.len() as u64 + 1;
        if frames * height * width * 3 > MAX_IMAGE_BYTES {
            return wrong(format!(
                "{frames} frames of {height}x{width} do not fit into the bridge's 256 MiB; lower `frame_slots`"
            ));
        }
        if !self.settle_action.iter().all(|v| v.is_finite()) {
            return wrong("`settle_action` holds a non-finite number".into());
        }
        if self.settle_steps > 1000 {
            return wrong(format!(
                "`settle_steps` is {}; more than 1000 is a slip",
                self.settle_steps
            ));
        }
        for suite in self.step_limits.keys() {
            if suite.parse::<super::Suite>().map(super::Suite::name).ok() != Some(suite) {
                return wrong(format!(
                    "`step_limits` names `{suite}`; use LIBERO's names, e.g. libero_spatial"
                ));
            }
        }
        Ok(())
    }

    /// What the worker is told.
    pub(super) fn for_worker(&self, install: &LiberoInstall, cache: &Path) -> serde_json::Value {
        serde_json::json!({
            "task": self.task,
            "assets": install.assets,
            "cache_dir": cache,
            "gl": self.gl,
            "cameras": self.cameras,
            "image_size": self.image_size,
            "image_transform": self.image_transform,
            "video": self.video,
            "frame_slots": self.frame_slots,
            "fixture_seeding": self.fixture_seeding,
            "reset_mode": self.reset_mode,
            "settle_steps": self.settle_steps,
            "settle_action": self.settle_action,
            "step_limits": self.step_limits,
            "privileged": self.privileged,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Slip = fn(&mut LiberoConfig);

    #[test]
    fn people_see_the_same_simulation_and_no_less_than_the_policy() {
        for (side, shown) in [(96, 256), (512, 512)] {
            let policy = LiberoConfig { image_size: [side; 2], ..LiberoConfig::default() };
            let viewer = policy.viewer();
            assert!(viewer.video && viewer.cameras.is_empty() && viewer.validate().is_ok());
            assert_eq!(viewer.image_size, [shown; 2]);
            let LiberoConfig { cameras, image_size, video, .. } = policy.clone();
            assert_eq!(LiberoConfig { cameras, image_size, video, ..viewer }, policy);
        }
    }

    #[test]
    fn each_slip_is_named() {
        let good = LiberoConfig::default();
        assert!(good.validate().is_ok());
        let slips: [(&str, Slip); 6] = [
            ("libero_spatial has tasks 0 to 9", |c| c.task = "libero_spatial/10".into()),
            ("`image_size`", |c| c.image_size = [256, 4096]),
            ("`frame_slots`", |c| c.frame_slots = 10_000),
            ("`settle_steps`", |c| c.settle_steps = 100_000),
            ("LIBERO's names", |c| {
                c.step_limits.insert("spatial".into(), 220);
            }),
            ("`step`", |c| c.deadlines.step = 0.0),
        ];
        for (word, slip) in slips {
            let mut config = good.clone();
            slip(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let error = serde_json::from_str::<LiberoConfig>(r#"{"settle_step": 5}"#).unwrap_err();
        assert!(error.to_string().contains("settle_steps"), "{error}");
    }
}
