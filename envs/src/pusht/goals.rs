//! Where the T may have to go.

use serde::{Deserialize, Serialize};

use super::geometry::{GOAL, Pose};

/// What a policy is told in the standard PushT.
pub const INSTRUCTION: &str = "Push the T-shaped block onto the T-shaped target."; // LeRobot's `pusht` data set

/// A target: the task that asks for it, its pose, and the words that name it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// The task's name in [`ResetOptions`](crate::ResetOptions).
    pub task: &'static str,
    /// Where the block has to be.
    pub pose: Pose,
    /// What the policy is told.
    pub instruction: &'static str,
}

/// gym-pusht's only one.
const STANDARD: [Goal; 1] = [Goal { task: "pusht", pose: GOAL, instruction: INSTRUCTION }];

/// Mirror images of each other. Their middles, (0, 60) of the body frame, are 237 px apart, so the two share no area,
/// and at least 79 px lie between either and the walls: room for the agent behind it.
const TWO: [Goal; 2] = [
    Goal {
        task: "pusht_two_goals/left",
        pose: Pose { x: 180.0, y: 216.0, angle: std::f64::consts::FRAC_PI_4 },
        instruction: "Push the T onto the left target.",
    },
    Goal {
        task: "pusht_two_goals/right",
        pose: Pose { x: 332.0, y: 216.0, angle: -std::f64::consts::FRAC_PI_4 },
        instruction: "Push the T onto the right target.",
    },
];

/// Which targets there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushtGoals {
    /// gym-pusht's.
    #[default]
    One,
    /// Two, both painted (left green, right salmon). The task chooses the one that counts; only the instruction tells.
    Two,
}

impl PushtGoals {
    /// The targets; the first is the one of an environment that was never told a task.
    pub fn all(self) -> &'static [Goal] {
        match self {
            Self::One => &STANDARD,
            Self::Two => &TWO,
        }
    }

    /// The environment's name in ids, and the root of its tasks' names.
    pub fn env_name(self) -> &'static str {
        match self {
            Self::One => "pusht",
            Self::Two => "pusht_two_goals",
        }
    }
}

impl Goal {
    /// The target that an instruction names, if it is one of ours.
    pub fn of_instruction(instruction: &str) -> Option<&'static Self> {
        STANDARD.iter().chain(&TWO).find(|goal| goal.instruction == instruction)
    }
}

#[cfg(test)]
mod tests {
    use super::super::coverage::coverage_of;
    use super::super::geometry::{AGENT_RADIUS, WALL_MAX, WALL_MIN};
    use super::*;

    #[test]
    fn the_two_targets_share_no_area_and_leave_room_for_the_agent() {
        let [left, right] = TWO.map(|goal| goal.pose);
        assert_eq!(coverage_of(&left, &right), 0.0);
        for goal in [left, right] {
            for p in goal.keypoints() {
                let room = p.iter().map(|&v| (v - WALL_MIN).min(WALL_MAX - v));
                assert!(room.fold(f64::INFINITY, f64::min) > 4.0 * AGENT_RADIUS, "{p:?}");
            }
        }
    }

    #[test]
    fn an_instruction_names_one_target() {
        for goals in [PushtGoals::One, PushtGoals::Two] {
            for goal in goals.all() {
                assert_eq!(Goal::of_instruction(goal.instruction), Some(goal));
                assert!(goal.task.starts_with(goals.env_name()));
            }
        }
        assert_eq!(Goal::of_instruction("push it somewhere"), None);
    }
}
