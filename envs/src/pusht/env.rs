//! The environment: scene, coverage, reset and picture behind the contract.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArcArray1, Array1, ArrayView1};

use super::config::{PushtConfig, PushtObs, PushtSeeding};
use super::coverage::{SUCCESS_COVERAGE, coverage_of, reward};
use super::geometry::{ARENA_SIZE, Point, Pose, wrap_angle};
use super::goals::{Goal, PushtGoals};
use super::numpy::Pcg64;
use super::render::Painter;
use super::reset::InitialState;
use super::scene::{DT, SUB_STEPS, Scene, SceneState};
use crate::{
    ActionConvention, BoxSpace, ControlMode, Env, EnvError, EnvSpec, Frame, GripperConvention,
    ImageSpace, Info, Observation, ObservationSpace, Privileged, PrivilegedLayout, ReferenceFrame,
    ResetOptions, Step,
};

/// The camera's name in [`Observation::images`].
pub const CAMERA: &str = "pixels";
/// gym-pusht's own time limit, steps. The environment itself has none: wrap it in a
/// [`TimeLimit`](crate::wrappers::TimeLimit).
pub const MAX_EPISODE_STEPS: u32 = 300; // gym_pusht/__init__.py

/// PushT behind the contract; see the [module](super) for what it simulates.
///
/// # Action space
/// `[2]`: target position of the agent, px, in `[0, 512]`. Targets outside are followed too, as in gym-pusht.
///
/// # Reset options
/// `task` names the target that counts from now on: `pusht`, or `pusht_two_goals/left` and `…/right` with
/// [`PushtGoals::Two`]. `state` with five numbers is gym-pusht's `reset_to_state`: agent, block, angle, subject to the same placement rule as
/// drawn states. With seven numbers it is an exact state: agent, agent's velocity, block's true origin and angle.
pub struct PushtEnv {
    config: PushtConfig,
    spec: EnvSpec,
    scene: Option<Scene>,
    seeds: Seeds,
    last_action: Option<Point>,
    goal: &'static Goal,
    instruction: Arc<str>,
    layout: Arc<PrivilegedLayout>,
    eye: Option<Painter>,
    view: Option<Painter>,
}

enum Seeds {
    Stream(Box<Pcg64>),
    Fixed(u64),
}

impl Seeds {
    fn new(rule: PushtSeeding, seed: u64) -> Self {
        match rule {
            PushtSeeding::GymPusht => Self::Stream(Box::new(Pcg64::from_seed(seed))),
            PushtSeeding::DiffusionPolicy => Self::Fixed(seed),
        }
    }

    fn draw(&mut self) -> InitialState {
        match self {
            Self::Stream(rng) => InitialState::draw(rng),
            Self::Fixed(seed) => InitialState::diffusion_policy(*seed),
        }
    }
}

impl PushtEnv {
    /// An environment that has to be reset before its first step. Until a reset is given a seed, the seed is 0.
    ///
    /// # Errors
    /// [`EnvError::Config`] for an image side of zero or above 4096 px.
    pub fn new(config: PushtConfig) -> Result<Self, EnvError> {
        for (name, side) in [("image_size", config.image_size), ("render_size", config.render_size)]
        {
            if !(1..=4096).contains(&side) {
                return Err(EnvError::Config {
                    detail: format!("`{name}` is {side}; give 1 to 4096 px"),
                });
            }
        }
        let goals = config.goals.all();
        let goal = &goals[0];
        Ok(Self {
            spec: spec(&config),
            scene: None,
            seeds: Seeds::new(config.seeding, 0),
            last_action: None,
            goal,
            instruction: Arc::from(goal.instruction),
            layout: Arc::new(privileged_layout()),
            eye: config.obs.has_image().then(|| Painter::new(config.image_size, goals)),
            view: None,
            config,
        })
    }

    /// The scene; `None` before the first reset.
    pub fn scene(&self) -> Option<&Scene> {
        self.scene.as_ref()
    }

    /// The present state; `None` before the first reset.
    pub fn state(&self) -> Option<&SceneState> {
        self.scene().map(Scene::state)
    }

    /// The target that counts.
    pub fn goal(&self) -> &'static Goal {
        self.goal
    }

    fn goal_of(&self, task: &str) -> Result<&'static Goal, EnvError> {
        let goals = self.config.goals.all();
        goals.iter().find(|goal| goal.task == task).ok_or_else(|| {
            let tasks: Vec<_> = goals.iter().map(|goal| format!("`{}`", goal.task)).collect();
            EnvError::Config {
                detail: format!(
                    "{} has no task `{task}`; choose {}",
                    self.config.goals.env_name(),
                    tasks.join(" or ")
                ),
            }
        })
    }

    fn observe(&mut self, state: &SceneState, frames: bool) -> Observation {
        let mut images = BTreeMap::new();
        if let Some(painter) = self.eye.as_mut().filter(|_| frames) {
            images.insert(CAMERA.to_owned(), painter.paint(state));
        }
        let proprio = proprio(self.config.obs, state);
        Observation { images, proprio, instruction: Arc::clone(&self.instruction) }
    }

    fn info(&self, state: &SceneState, covered: f64) -> Info {
        Info {
            success: Some(covered > SUCCESS_COVERAGE),
            metrics: BTreeMap::from([("coverage".to_owned(), covered)]),
            privileged: self.config.privileged.then(|| self.privileged(state)),
        }
    }

    fn privileged(&self, state: &SceneState) -> Privileged {
        let SceneState { agent, agent_velocity: v, block } = state;
        let goal = &self.goal.pose;
        let values = [
            agent[0],
            agent[1],
            v[0],
            v[1],
            block.x,
            block.y,
            block.angle,
            goal.x,
            goal.y,
            goal.angle,
        ];
        Privileged::new(Arc::clone(&self.layout), Arc::from(values))
            .expect("the layout has the ten numbers above")
    }
}

impl Env for PushtEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        let goal = options.task.as_deref().map(|task| self.goal_of(task)).transpose()?;
        if let Some(index) = options.init_state {
            return Err(EnvError::Config {
                detail: format!(
                    "pusht stores no initial states, so there is no number {index}; give a seed or `state`"
                ),
            });
        }
        let given = options.state.as_deref().map(given_state).transpose()?;
        if let Some(goal) = goal.filter(|&goal| goal != self.goal) {
            self.goal = goal;
            self.instruction = Arc::from(goal.instruction);
        }
        if let Some(seed) = seed {
            self.seeds = Seeds::new(self.config.seeding, seed);
        }
        let state = given.unwrap_or_else(|| self.seeds.draw().placed());
        self.scene = Some(Scene::new(state));
        self.last_action = None;
        let info = self.info(&state, coverage_of(&self.goal.pose, &state.block));
        // gym-pusht reports no success at a reset, whatever the coverage.
        let info = Info { success: Some(false), ..info };
        Ok((self.observe(&state, true), info))
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        let scene = self.scene.as_mut().ok_or(EnvError::NeedsReset { since: "construction" })?;
        self.spec.action.check_action(action)?;
        let target = [f64::from(action[0]), f64::from(action[1])];
        scene.control_step(target);
        let state = *scene.state();
        self.last_action = Some(target);
        let covered = coverage_of(&self.goal.pose, &state.block);
        Ok(Step {
            obs: self.observe(&state, frames),
            reward: reward(covered) as f32,
            terminated: covered > SUCCESS_COVERAGE,
            truncated: false,
            info: self.info(&state, covered),
        })
    }

    /// The scene at `render_size`, with a red cross at the last action.
    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        let Some(scene) = &self.scene else {
            return Err(EnvError::NeedsReset { since: "construction" });
        };
        let view = self
            .view
            .get_or_insert_with(|| Painter::new(self.config.render_size, self.config.goals.all()));
        Ok(Some(view.paint_with_target(scene.state(), self.last_action)))
    }
}

fn proprio(obs: PushtObs, state: &SceneState) -> ArcArray1<f32> {
    let SceneState { agent, block, .. } = state;
    let numbers: Array1<f32> = match obs {
        PushtObs::State => [agent[0], agent[1], block.x, block.y, wrap_angle(block.angle)]
            .iter()
            .map(|&v| v as f32)
            .collect(),
        PushtObs::EnvironmentStateAgentPos => {
            block.keypoints().iter().flatten().chain(agent).map(|&v| v as f32).collect()
        }
        PushtObs::Pixels => Array1::zeros(0),
        PushtObs::PixelsAgentPos => agent.iter().map(|&v| v as f32).collect(),
    };
    numbers.into_shared()
}

fn given_state(numbers: &[f64]) -> Result<SceneState, EnvError> {
    if numbers.iter().any(|v| !v.is_finite()) {
        return Err(EnvError::Config { detail: "a number of `state` is not finite".to_owned() });
    }
    match *numbers {
        [ax, ay, bx, by, angle] => Ok(InitialState::from_array([ax, ay, bx, by, angle]).placed()),
        [ax, ay, vx, vy, x, y, angle] => Ok(SceneState {
            agent: [ax, ay],
            agent_velocity: [vx, vy],
            block: Pose { x, y, angle },
        }),
        _ => Err(EnvError::Config {
            detail: format!(
                "`state` has {} numbers; give 5 (agent x, y, block x, y, angle: gym-pusht's reset_to_state) or 7 \
                 (agent x, y, agent velocity x, y, block origin x, y, angle: exact)",
                numbers.len()
            ),
        }),
    }
}

fn privileged_layout() -> PrivilegedLayout {
    PrivilegedLayout::new([
        ("agent_pos_px", 2),
        ("agent_vel_px_per_s", 2),
        ("block_pose", 3),
        ("goal_pose", 3),
    ])
}

fn spec(config: &PushtConfig) -> EnvSpec {
    let side = ARENA_SIZE as f32;
    let agent = ["agent_x_px", "agent_y_px"].map(|name| (name.to_owned(), 0.0, side));
    let proprio: Vec<(String, f32, f32)> = match config.obs {
        PushtObs::State => agent
            .into_iter()
            .chain(["block_x_px", "block_y_px"].map(|name| (name.to_owned(), 0.0, side)))
            .chain([("block_angle_rad".to_owned(), 0.0, std::f32::consts::TAU)])
            .collect(),
        PushtObs::EnvironmentStateAgentPos => (0..16)
            .map(|i| {
                let axis = if i % 2 == 0 { 'x' } else { 'y' };
                (format!("keypoint_{}_{axis}_px", i / 2), 0.0, side)
            })
            .chain(agent)
            .collect(),
        PushtObs::Pixels => Vec::new(),
        PushtObs::PixelsAgentPos => agent.into(),
    };
    let image = ImageSpace { height: config.image_size, width: config.image_size };
    let seeding = match config.seeding {
        PushtSeeding::GymPusht => "gym-pusht 0.1.8",
        PushtSeeding::DiffusionPolicy => "diffusion_policy 5ba07ac",
    };
    let goals = (config.goals != PushtGoals::One).then(|| {
        let poses = config
            .goals
            .all()
            .iter()
            .map(|Goal { pose: p, .. }| format!("({}, {}, {:.4})", p.x, p.y, p.angle));
        ("goals", poses.collect::<Vec<_>>().join(", "))
    });
    EnvSpec {
        id: format!("{}/{}-v1", config.goals.env_name(), config.obs.name()),
        observation: ObservationSpace {
            images: config
                .obs
                .has_image()
                .then(|| (CAMERA.to_owned(), image))
                .into_iter()
                .collect(),
            proprio: BoxSpace::new(proprio),
        },
        action: BoxSpace::new([("target_x_px", 0.0, side), ("target_y_px", 0.0, side)]),
        convention: ActionConvention {
            control: ControlMode::AbsolutePosition,
            frame: ReferenceFrame::World,
            gripper: GripperConvention::None,
        },
        control_hz: 1.0 / (DT * SUB_STEPS as f64),
        max_episode_steps: None,
        wrappers: Vec::new(),
        versions: [
            ("rapier3d", rapier3d::VERSION.to_owned()),
            ("behaviour", "gym-pusht 0.1.8".to_owned()),
            ("reset_states", seeding.to_owned()),
        ]
        .into_iter()
        .chain(goals)
        .map(|(name, version)| (name.to_owned(), version))
        .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::check_env;
    use crate::wrappers::TimeLimit;

    #[test]
    fn every_observation_type_keeps_the_contract() {
        use PushtObs::{EnvironmentStateAgentPos, Pixels, PixelsAgentPos, State};
        let options = ResetOptions::default();
        for obs in [State, EnvironmentStateAgentPos, Pixels, PixelsAgentPos] {
            for seeding in [PushtSeeding::GymPusht, PushtSeeding::DiffusionPolicy] {
                for privileged in [false, true] {
                    let config = PushtConfig { obs, seeding, privileged, ..PushtConfig::default() };
                    let mut env = PushtEnv::new(config).unwrap();
                    let breaches = check_env(&mut env, &options).unwrap();
                    assert_eq!(breaches, Vec::<String>::new(), "{obs:?} {seeding:?}");
                }
            }
        }
        for obs in [State, PixelsAgentPos] {
            let config = PushtConfig { obs, goals: PushtGoals::Two, ..PushtConfig::default() };
            for goal in PushtGoals::Two.all() {
                let mut env = PushtEnv::new(config.clone()).unwrap();
                let options =
                    ResetOptions { task: Some(goal.task.to_owned()), ..ResetOptions::default() };
                let breaches = check_env(&mut env, &options).unwrap();
                assert_eq!(breaches, Vec::<String>::new(), "{obs:?} {}", goal.task);
            }
        }
        let env = PushtEnv::new(PushtConfig { obs: Pixels, ..PushtConfig::default() }).unwrap();
        let mut limited = TimeLimit::new(env, 5).unwrap();
        assert_eq!(check_env(&mut limited, &options).unwrap(), Vec::<String>::new());
    }
}
