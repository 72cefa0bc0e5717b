//! An expert for the simulated WidowX: puts the carrot on the plate. It needs the true scene, which no real robot has.

use simloop_envs::{ActionChunk, Info, Observation};

use crate::{Expert, PolicyError};

/// Largest displacement asked for in a step, metres; the arm's own limit is 0.05.
const STEP: f64 = 0.035;
/// Height at which it travels, metres.
const TRAVEL_Z: f64 = 0.12;
/// Near enough, metres.
const NEAR: f64 = 0.015;

/// Reach, grasp, lift, carry, lower, let go.
#[derive(Debug, Default)]
pub struct WidowXExpert;

impl Expert for WidowXExpert {
    fn reset(&mut self) {}

    fn label(
        &mut self,
        _obs: &Observation,
        info: &Info,
    ) -> Result<Option<ActionChunk>, PolicyError> {
        let missing = || PolicyError::Missing {
            what: "the true scene (hand, carrot, plate)".to_owned(),
            remedy: "scripted actions exist for the simulated arm alone: add --mock".to_owned(),
        };
        let truth = info.privileged.as_ref().ok_or_else(missing)?;
        let part = |name: &str| truth.array::<3>(name).ok_or_else(missing);
        let (hand, carrot, plate) = (part("hand")?, part("carrot")?, part("plate")?);
        let [opening] = truth.array::<1>("opening").ok_or_else(missing)?;
        let apart = |a: [f64; 3], b: [f64; 3]| (a[0] - b[0]).hypot(a[1] - b[1]);
        let holds = opening < 0.5 && apart(hand, carrot) < 1e-6;
        let (target, gripper) = if !holds && apart(carrot, plate) < 0.05 {
            // Done: up and away.
            ([hand[0], hand[1], TRAVEL_Z], 1.0)
        } else if holds {
            if apart(hand, plate) > NEAR {
                let z = if hand[2] < TRAVEL_Z - 0.03 { hand } else { plate };
                ([z[0], z[1], TRAVEL_Z], 0.0)
            } else if hand[2] > 0.06 {
                ([plate[0], plate[1], 0.045], 0.0)
            } else {
                (hand, 1.0)
            }
        } else if apart(hand, carrot) > NEAR {
            ([carrot[0], carrot[1], TRAVEL_Z], 1.0)
        } else if hand[2] > carrot[2] + NEAR {
            (carrot, 1.0)
        } else {
            (carrot, 0.0)
        };
        let mut action = [0.0_f32; 7];
        for i in 0..3 {
            action[i] = (target[i] - hand[i]).clamp(-STEP, STEP) as f32;
        }
        action[6] = gripper;
        ActionChunk::single(&action)
            .map(Some)
            .map_err(|e| PolicyError::Config { detail: e.to_string() })
    }
}
