//! OpenVLA's standardisation of Open X-Embodiment data sets, as a table.
//!
//! After it every data set has actions `[dx, dy, dz, droll, dpitch, dyaw, gripper]` with gripper 1 = open, 0 = closed and
//! absolute, a proprio of eight numbers, and cameras called `primary`, `secondary` and `wrist`. Facts from openvla
//! `prismatic/vla/datasets/rlds/oxe/{configs,transforms}.py` and `rlds/utils/data_utils.py`. Only `bridge_orig` was
//! checked on real records here; the other rows follow the published transforms.

use ndarray::{Array1, Array2, s};
use simloop_envs::{ActionConvention, ControlMode, GripperConvention, ReferenceFrame};

use super::rlds::Steps;

/// Numbers of one row, taken from a feature or made up.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// `len` columns of a feature (below `steps/`) from column `from` on, counted from the end where negative.
    Columns { key: &'static str, from: isize, len: usize },
    /// Zeros, for what the data set does not have.
    Zeros(usize),
}

/// How the gripper's numbers become 1 = open, 0 = closed.
#[derive(Clone, Copy, Debug)]
enum Gripper {
    /// They are already so, or as good as the data set has it.
    AsIs,
    /// Above 0.95 open, below 0.05 closed, in between what comes after.
    Binarize,
    /// +1 closes, -1 opens, 0 keeps.
    RelativeToAbsolute,
    /// Clipped to `[0, 1]`.
    Clip,
    /// `1 - x`.
    Invert,
    /// Clipped to `[0, 1]`, then `1 - x`.
    ClipInvert,
}

/// What the eight numbers of the proprio are.
#[derive(Clone, Copy, Debug)]
enum State {
    /// There is none.
    None,
    /// Position, roll, pitch, yaw, a zero, gripper.
    PosEuler,
    /// The same with a gripper of two fingers in place of zero and gripper.
    PosEulerTwoFingers,
    /// Position, quaternion, gripper.
    PosQuat,
    /// Seven joints, gripper.
    Joint,
}

/// How one data set becomes the standard form.
#[derive(Debug)]
pub struct Recipe {
    /// The data set's name in OpenVLA's tables.
    pub name: &'static str,
    /// Camera name to the key below `steps/observation/`.
    pub cameras: &'static [(&'static str, &'static str)],
    /// The instruction's key below `steps/`.
    pub instruction: &'static str,
    /// Steps per second, where published.
    pub control_hz: Option<f64>,
    state: State,
    proprio: &'static [Part],
    motion: &'static [Part],
    gripper: (Part, Gripper),
    /// The first step is dropped (in Bridge its action is all zero).
    drop_first: bool,
    /// Motion becomes the difference of states; the last step is dropped.
    relabel: bool,
}

const fn all(key: &'static str, len: usize) -> Part {
    Part::Columns { key, from: 0, len }
}

const fn from(key: &'static str, from: isize, len: usize) -> Part {
    Part::Columns { key, from, len }
}

const TOP: &str = "language_instruction";
const IN_OBS: &str = "observation/natural_language_instruction";
const WORLD_AND_ROTATION: &[Part] =
    &[all("action/world_vector", 3), all("action/rotation_delta", 3)];
const FIRST_SIX: &[Part] = &[all("action", 6)];
const CLOSEDNESS: Part = all("action/gripper_closedness_action", 1);
const OPEN: Part = all("action/open_gripper", 1);
const BRIDGE_STATE: &[Part] =
    &[all("observation/state", 6), Part::Zeros(1), from("observation/state", -1, 1)];

const BRIDGE: Recipe = Recipe {
    name: "bridge_orig",
    cameras: &[("primary", "image_0"), ("secondary", "image_1")],
    instruction: TOP,
    control_hz: Some(5.0), // Walke et al. 2023, BridgeData V2
    state: State::PosEuler,
    proprio: BRIDGE_STATE,
    motion: FIRST_SIX,
    gripper: (from("action", -1, 1), Gripper::Binarize),
    drop_first: true,
    relabel: true,
};

const LIBERO: Recipe = Recipe {
    name: "libero",
    cameras: &[("primary", "image"), ("wrist", "wrist_image")],
    control_hz: Some(20.0), // robosuite's control_freq in LIBERO
    state: State::PosEulerTwoFingers,
    proprio: &[all("observation/state", 8)],
    gripper: (from("action", -1, 1), Gripper::ClipInvert),
    drop_first: false,
    relabel: false,
    ..BRIDGE
};

/// A data set of the OXE bucket: motion in `world_vector` and `rotation_delta`.
const BUCKET: Recipe = Recipe {
    name: "",
    cameras: &[("primary", "image")],
    instruction: IN_OBS,
    control_hz: None,
    state: State::None,
    proprio: &[],
    motion: WORLD_AND_ROTATION,
    gripper: (CLOSEDNESS, Gripper::RelativeToAbsolute),
    drop_first: false,
    relabel: false,
};

/// Every recipe.
pub const RECIPES: &[Recipe] = &[
    BRIDGE,
    Recipe { name: "bridge_dataset", ..BRIDGE },
    Recipe {
        name: "bridge_oxe",
        cameras: &[("primary", "image"), ("secondary", "image_1")],
        instruction: IN_OBS,
        motion: WORLD_AND_ROTATION,
        gripper: (OPEN, Gripper::AsIs),
        ..BRIDGE
    },
    LIBERO,
    Recipe { name: "libero_spatial_no_noops", ..LIBERO },
    Recipe { name: "libero_object_no_noops", ..LIBERO },
    Recipe { name: "libero_goal_no_noops", ..LIBERO },
    Recipe { name: "libero_10_no_noops", ..LIBERO },
    Recipe {
        name: "fractal20220817_data", // RT-1
        control_hz: Some(3.0),        // Brohan et al. 2022
        state: State::PosQuat,
        proprio: &[
            all("observation/base_pose_tool_reached", 7),
            all("observation/gripper_closed", 1),
        ],
        ..BUCKET
    },
    Recipe {
        name: "taco_play",
        cameras: &[("primary", "rgb_static"), ("wrist", "rgb_gripper")],
        state: State::PosEuler,
        proprio: &[
            all("observation/robot_obs", 6),
            Part::Zeros(1),
            from("observation/robot_obs", 7, 1),
        ],
        motion: &[all("action/rel_actions_world", 6)],
        gripper: (from("action/rel_actions_world", -1, 1), Gripper::Clip),
        ..BUCKET
    },
    Recipe {
        name: "jaco_play",
        cameras: &[("primary", "image"), ("wrist", "image_wrist")],
        state: State::PosEuler,
        proprio: &[
            all("observation/end_effector_cartesian_pos", 6),
            Part::Zeros(1),
            from("observation/end_effector_cartesian_pos", -1, 1),
        ],
        motion: &[all("action/world_vector", 3), Part::Zeros(3)],
        ..BUCKET
    },
    Recipe {
        name: "berkeley_cable_routing",
        cameras: &[("primary", "image"), ("secondary", "top_image"), ("wrist", "wrist45_image")],
        state: State::Joint,
        proprio: &[all("observation/robot_state", 7), Part::Zeros(1)],
        gripper: (Part::Zeros(1), Gripper::AsIs),
        ..BUCKET
    },
    Recipe {
        name: "roboturk",
        cameras: &[("primary", "front_rgb")],
        gripper: (CLOSEDNESS, Gripper::ClipInvert),
        ..BUCKET
    },
    Recipe {
        name: "viola",
        cameras: &[("primary", "agentview_rgb"), ("wrist", "eye_in_hand_rgb")],
        state: State::Joint,
        proprio: &[all("observation/joint_states", 7), all("observation/gripper_states", 1)],
        gripper: (CLOSEDNESS, Gripper::ClipInvert),
        ..BUCKET
    },
    Recipe {
        name: "berkeley_autolab_ur5",
        cameras: &[("primary", "image"), ("wrist", "hand_image")],
        state: State::PosQuat,
        proprio: &[from("observation/robot_state", 6, 8)],
        ..BUCKET
    },
    Recipe {
        name: "toto",
        state: State::Joint,
        proprio: &[all("observation/state", 7), Part::Zeros(1)],
        gripper: (OPEN, Gripper::AsIs),
        ..BUCKET
    },
    Recipe {
        name: "stanford_hydra_dataset_converted_externally_to_rlds",
        cameras: &[("primary", "image"), ("wrist", "wrist_image")],
        instruction: TOP,
        state: State::PosEuler,
        proprio: &[
            all("observation/state", 3),
            from("observation/state", 7, 3),
            Part::Zeros(1),
            from("observation/state", -3, 1),
        ],
        motion: FIRST_SIX,
        gripper: (from("action", -1, 1), Gripper::Invert),
        ..BUCKET
    },
    Recipe {
        name: "austin_buds_dataset_converted_externally_to_rlds",
        cameras: &[("primary", "image"), ("wrist", "wrist_image")],
        instruction: TOP,
        state: State::Joint,
        proprio: &[all("observation/state", 8)],
        motion: FIRST_SIX,
        gripper: (from("action", -1, 1), Gripper::ClipInvert),
        ..BUCKET
    },
];

/// The recipe of a data set by its name.
pub fn recipe(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|r| r.name == name)
}

/// A standardised trajectory of `T'` steps.
pub(super) struct Standard {
    /// `[T', 8]`, or `[T', 0]` without a state.
    pub(super) proprio: Array2<f32>,
    /// `[T', 7]`.
    pub(super) actions: Array2<f32>,
}

impl Recipe {
    /// Which of `raw` steps become samples.
    pub fn kept(&self, raw: usize) -> std::ops::Range<usize> {
        let first = usize::from(self.drop_first);
        first..raw.saturating_sub(usize::from(self.relabel)).max(first)
    }

    /// Names of the proprio's numbers.
    pub fn proprio_names(&self) -> Vec<String> {
        let names: &[&str] = match self.state {
            State::None => &[],
            State::PosEuler => {
                &["x_m", "y_m", "z_m", "roll_rad", "pitch_rad", "yaw_rad", "pad", "gripper"]
            }
            // LIBERO's rotation is an axis-angle vector though OpenVLA files it under POS_EULER.
            State::PosEulerTwoFingers => {
                &["x_m", "y_m", "z_m", "ax_rad", "ay_rad", "az_rad", "finger_0_m", "finger_1_m"]
            }
            State::PosQuat => &["x_m", "y_m", "z_m", "q0", "q1", "q2", "q3", "gripper"],
            State::Joint => {
                &["j0_rad", "j1_rad", "j2_rad", "j3_rad", "j4_rad", "j5_rad", "j6_rad", "gripper"]
            }
        };
        names.iter().map(|&n| n.to_owned()).collect()
    }

    /// Names of an action's numbers.
    pub fn action_names(&self) -> Vec<String> {
        ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper_open"].map(str::to_owned).into()
    }

    /// Which numbers of an action are absolute.
    pub fn absolute_action(&self) -> Vec<bool> {
        vec![false, false, false, false, false, false, true]
    }

    /// What an action means, where it is known.
    pub fn convention(&self) -> Option<ActionConvention> {
        let control = if self.name.starts_with("bridge") {
            ControlMode::DeltaPoseMetric
        } else if self.name.starts_with("libero") {
            // robosuite's OSC_POSE: output_max 0.05 m and 0.5 rad
            ControlMode::DeltaPose { translation_m: 0.05, rotation_rad: 0.5 }
        } else {
            return None;
        };
        let frame = if self.relabel { ReferenceFrame::Base } else { ReferenceFrame::World };
        Some(ActionConvention { control, frame, gripper: GripperConvention::OneIsOpen })
    }

    /// Standardises a trajectory.
    ///
    /// # Errors
    /// The feature that is missing or too narrow.
    pub(super) fn apply(&self, steps: &Steps<'_>) -> Result<Standard, String> {
        let first = usize::from(self.drop_first).min(steps.len());
        let keep = |rows: Array2<f32>| rows.slice(s![first.., ..]).to_owned();
        let gripper = keep(columns(steps, &[self.gripper.0])?);
        let gripper = self.gripper.1.apply(&gripper.column(0).to_owned());
        let mut motion = keep(columns(steps, self.motion)?);
        let mut proprio = keep(columns(steps, self.proprio)?);
        let mut n = motion.nrows();
        if self.relabel {
            // The state's first six numbers are the proprio's. Angles are not wrapped, as published.
            n = n.saturating_sub(1);
            motion = &proprio.slice(s![1.min(n).., ..6]).slice(s![..n, ..])
                - &proprio.slice(s![..n, ..6]);
            proprio = proprio.slice(s![..n, ..]).to_owned();
        }
        let mut actions = Array2::zeros((n, 7));
        actions.slice_mut(s![.., ..6]).assign(&motion.slice(s![..n, ..]));
        actions.column_mut(6).assign(&gripper.slice(s![..n]));
        Ok(Standard { proprio, actions })
    }
}

/// `[T, sum of lengths]`.
fn columns(steps: &Steps<'_>, parts: &[Part]) -> Result<Array2<f32>, String> {
    let width = parts.iter().map(|p| match *p {
        Part::Columns { len, .. } | Part::Zeros(len) => len,
    });
    let mut rows = Array2::zeros((steps.len(), width.sum()));
    let mut at = 0;
    for part in parts {
        match *part {
            Part::Zeros(len) => at += len,
            Part::Columns { key, from, len } => {
                let found = steps.numbers(key)?;
                let start = if from < 0 { found.ncols() as isize + from } else { from };
                let end = start + len as isize;
                if start < 0 || end as usize > found.ncols() {
                    return Err(format!(
                        "`{key}` has {} numbers per step, columns {start} to {end} are needed; choose another \
                         standardisation",
                        found.ncols()
                    ));
                }
                let columns = found.slice(s![.., start as usize..end as usize]);
                rows.slice_mut(s![.., at..at + len]).assign(&columns);
                at += len;
            }
        }
    }
    Ok(rows)
}

impl Gripper {
    fn apply(self, raw: &Array1<f32>) -> Array1<f32> {
        match self {
            Self::AsIs => raw.clone(),
            Self::Binarize => binarize(raw),
            Self::RelativeToAbsolute => relative_to_absolute(raw),
            Self::Clip => raw.mapv(|v| v.clamp(0.0, 1.0)),
            Self::Invert => raw.mapv(|v| 1.0 - v),
            Self::ClipInvert => raw.mapv(|v| 1.0 - v.clamp(0.0, 1.0)),
        }
    }
}

/// OpenVLA `binarize_gripper_actions`: between 0.05 and 0.95 the value reached afterwards; a tail that reaches neither
/// keeps the last raw value.
fn binarize(raw: &Array1<f32>) -> Array1<f32> {
    let mut carry = raw.last().copied().unwrap_or(0.0);
    let mut out = raw.clone();
    for v in out.iter_mut().rev() {
        if *v > 0.95 {
            carry = 1.0;
        } else if *v < 0.05 {
            carry = 0.0;
        }
        *v = carry;
    }
    out
}

/// OpenVLA `rel2abs_gripper_actions`: +1 closes, -1 opens, 0 (up to 0.1) keeps; the start is the opposite of the first
/// change, open where there is none.
fn relative_to_absolute(raw: &Array1<f32>) -> Array1<f32> {
    let change = |v: f32| match v {
        v if v < -0.1 => Some(1.0),
        v if v > 0.1 => Some(0.0),
        _ => None,
    };
    let mut now = raw.iter().find_map(|&v| change(v)).map_or(1.0, |first| 1.0 - first);
    raw.mapv(|v| {
        now = change(v).unwrap_or(now);
        now
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use std::collections::BTreeSet;

    #[test]
    fn a_gripper_between_open_and_closed_takes_what_comes_after() {
        let got = binarize(&array![0.5, 1.0, 0.5, 0.3, 0.0, 0.7, 0.96, 0.4, 0.6]);
        assert_eq!(got, array![1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.6, 0.6]);
    }

    #[test]
    fn a_relative_gripper_starts_opposite_to_its_first_change() {
        assert_eq!(
            relative_to_absolute(&array![0.0, 1.0, 0.0, -1.0, 0.05]),
            array![1.0, 0.0, 0.0, 1.0, 1.0]
        );
        assert_eq!(relative_to_absolute(&array![0.0, -1.0]), array![0.0, 1.0]);
        assert_eq!(relative_to_absolute(&array![0.0, 0.0]), array![1.0, 1.0]);
    }

    #[test]
    fn every_recipe_has_a_name_six_motions_and_a_proprio_as_long_as_its_names() {
        let width = |parts: &[Part]| -> usize {
            parts
                .iter()
                .map(|p| match *p {
                    Part::Columns { len, .. } | Part::Zeros(len) => len,
                })
                .sum()
        };
        let mut names = BTreeSet::new();
        for r in RECIPES {
            assert!(names.insert(r.name) && !r.name.is_empty(), "{}", r.name);
            assert_eq!(width(r.motion), 6, "{}", r.name);
            assert_eq!(width(r.proprio), r.proprio_names().len(), "{}", r.name);
            assert_eq!(r.action_names().len(), r.absolute_action().len());
            assert!(!r.relabel || width(r.proprio) >= 6);
        }
        assert_eq!(recipe("bridge_orig").unwrap().kept(10), 1..9);
        assert_eq!(recipe("bridge_orig").unwrap().kept(1), 1..1);
        assert_eq!(recipe("toto").unwrap().kept(10), 0..10);
    }
}
