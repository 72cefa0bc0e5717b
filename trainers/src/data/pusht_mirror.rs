//! PushT's mirror symmetry: a demonstration mirrored is a demonstration.
//!
//! The goal T stands at 45 degrees in the middle of the arena, so its stem lies on the line `x + y = 512`. Mirroring on
//! it takes `(x, y)` to `(512 - y, 512 - x)`, the goal to itself, a T to a T (it is symmetric about its stem) and an angle
//! to `pi / 2 - angle`: with `A` the mirror's matrix and `S = diag(-1, 1)` the T's own symmetry, `A R(a) S = R(pi/2 - a)`.
//! `S` swaps the keypoints left and right of the stem. The picture is transposed along its other diagonal. Only the
//! walls are off by a pixel (faces at 7 and 504).
//!
//! The two targets of [`PushtGoals::Two`] are mirror images about `x = 256` instead: `(x, y)` goes to `(512 - x, y)`, an
//! angle to `-angle`, and the instruction names the other target. Their pictures are not mirrored: the targets' colours
//! differ.

use std::f32::consts::{FRAC_PI_2, TAU};
use std::sync::Arc;

use ndarray::{ArrayViewMut1, ArrayViewMut3, Axis};
use simloop_envs::pusht::{ARENA_SIZE, PushtGoals};

use super::{DataError, DemoBatch};

/// Left keypoints to right ones, in the order of `simloop_envs::pusht::RECTANGLES`.
const KEYPOINT_SWAPS: [(usize, usize); 4] = [(0, 1), (2, 3), (4, 5), (6, 7)];

/// The line that a sample is mirrored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mirror {
    /// `x + y = 512`.
    Diagonal,
    /// `x = 256`.
    Vertical,
}

/// Mirrors sample `i` of a batch of PushT: frames, proprio and actions, and the instruction where there are two targets.
///
/// # Errors
/// [`DataError::Unsupported`] unless actions have 2 numbers, the proprio 0 (`pixels`), 2 (`pixels_agent_pos`), 5 (`state`)
/// or 18 (`environment_state_agent_pos`), and frames are square; for frames with two targets.
pub fn mirror_sample(batch: &mut DemoBatch, i: usize) -> Result<(), DataError> {
    let (p, d) = (batch.proprio.len_of(Axis(2)), batch.actions.len_of(Axis(2)));
    if d != 2 || ![0, 2, 5, 18].contains(&p) {
        return Err(DataError::unsupported(format!(
            "augment: `pusht_mirror` is for PushT's observations; these have {p} numbers and actions of {d}"
        )));
    }
    let mirror = match other_target(&batch.instructions[i]) {
        Some(instruction) => {
            if !batch.images.is_empty() {
                return Err(DataError::unsupported(
                    "augment: `pusht_mirror` does not paint pictures of two targets anew: their colours differ",
                ));
            }
            batch.instructions[i] = Arc::from(instruction);
            Mirror::Vertical
        }
        None => Mirror::Diagonal,
    };
    for images in batch.images.values_mut() {
        for frame in images.index_axis_mut(Axis(0), i).outer_iter_mut() {
            let (h, w, _) = frame.dim();
            if h != w {
                return Err(DataError::unsupported(format!(
                    "augment: `pusht_mirror` needs square frames, these are {h}x{w}"
                )));
            }
            mirror_frame(frame);
        }
    }
    for row in batch.proprio.index_axis_mut(Axis(0), i).outer_iter_mut() {
        mirror_proprio(row, mirror);
    }
    for action in batch.actions.index_axis_mut(Axis(0), i).outer_iter_mut() {
        mirror_points(action, mirror);
    }
    Ok(())
}

/// What names the other one of two targets; `None` where the instruction names none of them.
fn other_target(instruction: &str) -> Option<&'static str> {
    let goals = PushtGoals::Two.all();
    let named = goals.iter().position(|goal| goal.instruction == instruction)?;
    goals.get(1 - named.min(1)).map(|goal| goal.instruction)
}

/// A proprio row of one of PushT's four observations.
fn mirror_proprio(mut row: ArrayViewMut1<'_, f32>, mirror: Mirror) {
    match row.len() {
        5 => {
            mirror_points(row.slice_mut(ndarray::s![..4]), mirror);
            let sum = match mirror {
                Mirror::Diagonal => FRAC_PI_2,
                Mirror::Vertical => 0.0,
            };
            row[4] = (sum - row[4]).rem_euclid(TAU);
            // Rounding may give a full turn, which is not in [0, 2 pi).
            if row[4] >= TAU {
                row[4] = 0.0;
            }
        }
        18 => {
            mirror_points(row.view_mut(), mirror);
            for (a, b) in KEYPOINT_SWAPS {
                row.swap(2 * a, 2 * b);
                row.swap(2 * a + 1, 2 * b + 1);
            }
        }
        _ => mirror_points(row, mirror),
    }
}

/// Points `x, y, x, y, …`.
fn mirror_points(mut row: ArrayViewMut1<'_, f32>, mirror: Mirror) {
    let side = ARENA_SIZE as f32;
    for k in (0..row.len()).step_by(2) {
        (row[k], row[k + 1]) = match mirror {
            Mirror::Diagonal => (side - row[k + 1], side - row[k]),
            Mirror::Vertical => (side - row[k], row[k + 1]),
        };
    }
}

/// Transposes a square frame along the diagonal from lower left to upper right.
fn mirror_frame(mut frame: ArrayViewMut3<'_, u8>) {
    let n = frame.len_of(Axis(0));
    for y in 0..n {
        for x in 0..n - y {
            for c in 0..3 {
                frame.swap([y, x, c], [n - 1 - x, n - 1 - y, c]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array2, Array3, Array5};
    use simloop_envs::pusht::{CAMERA, PushtConfig, PushtEnv, PushtObs};
    use simloop_envs::{Env, Observation, ResetOptions};
    use std::collections::BTreeMap;

    fn env(obs: PushtObs, goals: PushtGoals) -> PushtEnv {
        PushtEnv::new(PushtConfig { obs, goals, ..PushtConfig::default() }).unwrap()
    }

    /// The exact state (agent, its velocity, block, angle) mirrored.
    fn mirror_state(s: [f64; 7], mirror: Mirror) -> [f64; 7] {
        let pi_2 = std::f64::consts::FRAC_PI_2;
        match mirror {
            Mirror::Diagonal => {
                [512.0 - s[1], 512.0 - s[0], -s[3], -s[2], 512.0 - s[5], 512.0 - s[4], pi_2 - s[6]]
            }
            Mirror::Vertical => [512.0 - s[0], s[1], -s[2], s[3], 512.0 - s[4], s[5], -s[6]],
        }
    }

    fn at(obs: PushtObs, state: [f64; 7]) -> (PushtEnv, Observation) {
        of(PushtGoals::One, 0, obs, state)
    }

    /// The environment with target number `k` asked for.
    fn of(goals: PushtGoals, k: usize, obs: PushtObs, state: [f64; 7]) -> (PushtEnv, Observation) {
        let mut env = env(obs, goals);
        let options = ResetOptions {
            state: Some(state.to_vec()),
            task: Some(goals.all()[k].task.to_owned()),
            ..ResetOptions::default()
        };
        let (seen, _) = env.reset(Some(0), &options).unwrap();
        (env, seen)
    }

    fn mirrored(obs: &Observation, mirror: Mirror) -> Array1<f32> {
        let mut row = obs.proprio.to_owned();
        mirror_proprio(row.view_mut(), mirror);
        row.to_owned()
    }

    fn distance(a: &Array1<f32>, b: &Observation) -> f32 {
        let state = a.len() == 5;
        let differ = |(i, (a, b)): (usize, (&f32, &f32))| match (i, (a - b).abs()) {
            // The angle of a state; 0 and 2 pi are one.
            (4, d) if state => d.min(TAU - d),
            (_, d) => d,
        };
        a.iter().zip(&b.proprio).enumerate().map(differ).fold(0.0, f32::max)
    }

    const STATES: [[f64; 7]; 4] = [
        [100.0, 400.0, 0.0, 0.0, 200.0, 300.0, 0.3],
        [300.0, 120.0, 5.0, -9.0, 250.0, 230.0, 4.0],
        [222.0, 97.0, 0.0, 0.0, 222.0, 300.0, -2.9],
        [256.0, 400.0, 0.0, 0.0, 256.0, 256.0, std::f64::consts::FRAC_PI_4],
    ];

    #[test]
    fn numbers_mirror_to_what_the_environment_shows_of_the_mirrored_state() {
        use PushtObs::{EnvironmentStateAgentPos, PixelsAgentPos, State};
        for mirror in [Mirror::Diagonal, Mirror::Vertical] {
            for state in STATES {
                for obs in [State, EnvironmentStateAgentPos, PixelsAgentPos] {
                    let (_, here) = at(obs, state);
                    let (_, there) = at(obs, mirror_state(state, mirror));
                    let error = distance(&mirrored(&here, mirror), &there);
                    assert!(error < 1e-3, "{mirror:?} {obs:?} {state:?}: {error}");
                }
                // Without the swaps, keypoints do not belong to any T that the environment would list so.
                let (_, here) = at(EnvironmentStateAgentPos, state);
                let mut plain = here.proprio.to_owned();
                mirror_points(plain.view_mut(), mirror);
                let (_, there) = at(EnvironmentStateAgentPos, mirror_state(state, mirror));
                assert!(distance(&plain.to_owned(), &there) > 10.0);
            }
        }
    }

    #[test]
    fn the_mirror_image_of_one_target_is_what_the_other_instruction_asks_for() {
        let [left, right] = PushtGoals::Two.all() else { panic!("two goals") };
        assert_eq!(other_target(left.instruction), Some(right.instruction));
        assert_eq!(other_target(right.instruction), Some(left.instruction));
        assert_eq!(other_target(simloop_envs::pusht::INSTRUCTION), None);
        // A block on the left target is solved there, and mirrored it is on the right one.
        let pose = left.pose;
        let state = [100.0, 400.0, 0.0, 0.0, pose.x, pose.y, pose.angle];
        let obs = PushtObs::EnvironmentStateAgentPos;
        for (k, mirror) in [(0, None), (1, Some(Mirror::Vertical)), (0, Some(Mirror::Diagonal))] {
            let state = mirror.map_or(state, |mirror| mirror_state(state, mirror));
            let (mut env, seen) = of(PushtGoals::Two, k, obs, state);
            let stay = seen.proprio.slice(ndarray::s![16..]).to_owned();
            let step = env.step(stay.view(), false).unwrap();
            assert_eq!(step.terminated, mirror != Some(Mirror::Diagonal), "{mirror:?}");
        }
    }

    #[test]
    fn pictures_mirror_to_the_picture_of_the_mirrored_state() {
        for state in STATES {
            let (_, here) = at(PushtObs::Pixels, state);
            let (_, there) = at(PushtObs::Pixels, mirror_state(state, Mirror::Diagonal));
            let mut frame = here.images[CAMERA].to_owned();
            let difference = |f: &Array3<u8>| -> f32 {
                let d = f.iter().zip(&there.images[CAMERA]).map(|(a, b)| f32::from(a.abs_diff(*b)));
                d.sum::<f32>() / f.len() as f32
            };
            let before = difference(&frame);
            mirror_frame(frame.view_mut());
            let after = difference(&frame);
            // The arena's border is off by a pixel of 512 and edges are drawn from the upper left.
            assert!(after < 2.0, "{after}, {before} without");
        }
    }

    #[test]
    fn a_mirrored_rollout_stays_the_mirror_image() {
        // Pushes against bar and stem: the block moves by tens of pixels.
        let pushes: [([f64; 7], [f64; 2]); 2] = [
            ([120.0, 300.0, 0.0, 0.0, 250.0, 290.0, 0.4], [260.0, 330.0]),
            ([300.0, 120.0, 0.0, 0.0, 280.0, 220.0, 1.2], [260.0, 280.0]),
        ];
        for (state, target) in pushes {
            let obs = PushtObs::EnvironmentStateAgentPos;
            let (mut a, start) = at(obs, state);
            let (mut b, _) = at(obs, mirror_state(state, Mirror::Diagonal));
            let mut moved = 0.0f32;
            for t in 1..=12 {
                let share = f64::from(t) / 12.0;
                let go = |k: usize| (state[k] + share * (target[k] - state[k])) as f32;
                let action = Array1::from(vec![go(0), go(1)]);
                let mut other = action.clone();
                mirror_points(other.view_mut(), Mirror::Diagonal);
                let here = a.step(action.view(), false).unwrap().obs;
                let there = b.step(other.view(), false).unwrap().obs;
                let error = distance(&mirrored(&here, Mirror::Diagonal), &there);
                assert!(error < 0.5, "step {t} of {state:?}: {error} px");
                moved = moved.max((here.proprio[0] - start.proprio[0]).abs());
            }
            assert!(moved > 10.0, "{moved}");
        }
    }

    #[test]
    fn twice_mirrored_is_unchanged_and_only_the_sample_is_touched() {
        let pixel = |(i, t, y, x, c): (usize, usize, usize, usize, usize)| {
            (i * 99 + t * 50 + y * 16 + x * 4 + c) as u8
        };
        let number = |(i, t, p): (usize, usize, usize)| (i * 100 + t * 10 + p) as f32 / 100.0;
        let left = PushtGoals::Two.all()[0].instruction;
        for (p, instruction) in [(0, "go"), (2, "go"), (5, "go"), (18, "go"), (18, left)] {
            let mut batch = DemoBatch {
                images: BTreeMap::from([(
                    "pixels".to_owned(),
                    Array5::from_shape_fn((2, 2, 4, 4, 3), pixel),
                )]),
                proprio: Array3::from_shape_fn((2, 2, p), number),
                instructions: vec![instruction.into(); 2],
                actions: Array3::from_shape_fn((2, 3, 2), number),
                valid: Array2::ones((2, 3)),
            };
            if instruction == left {
                let error = mirror_sample(&mut batch, 1).unwrap_err().to_string();
                assert!(error.contains("colours"), "{error}");
                batch.images.clear();
            }
            let mut twice = batch.clone();
            mirror_sample(&mut twice, 1).unwrap();
            assert_eq!(twice.instructions[0], batch.instructions[0]);
            assert_eq!(twice.instructions[1] == batch.instructions[1], instruction != left);
            assert_ne!(twice.actions, batch.actions);
            assert_eq!(twice.actions.index_axis(Axis(0), 0), batch.actions.index_axis(Axis(0), 0));
            mirror_sample(&mut twice, 1).unwrap();
            assert_eq!((&twice.images, &twice.instructions), (&batch.images, &batch.instructions));
            assert!((&twice.proprio - &batch.proprio).iter().all(|d| d.abs() < 1e-4));
        }
    }
}
