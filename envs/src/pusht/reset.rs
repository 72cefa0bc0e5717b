//! Where episodes start: gym-pusht's own initial states, drawn bit for bit from its own seeds.
//!
//! gym-pusht draws from `numpy.random.Generator(PCG64(SeedSequence(seed)))`; diffusion_policy's PushT draws from the
//! older `numpy.random.RandomState(seed)` (MT19937). Both streams are reproduced here, so that an episode of seed 7 here
//! is an episode of seed 7 there.

use super::geometry::{CENTRE_OF_GRAVITY, Point, Pose, sin_cos};
use super::numpy::{Pcg64, RandomState};
use super::scene::SceneState;

/// A state as gym-pusht's `_set_state` receives it, before its placement rule is applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InitialState {
    /// Agent, px.
    pub agent: Point,
    /// The *requested* block position, px; see [`placed`](Self::placed).
    pub block: Point,
    /// Block angle, rad.
    pub angle: f64,
}

impl InitialState {
    /// The state that `PushTEnv.reset(seed=seed)` of gym-pusht 0.1.8 draws: agent from `integers(50, 450)` twice, block
    /// from `integers(100, 400)` twice (upper ends excluded), angle from `uniform(-pi, pi)`.
    pub fn gym_pusht(seed: u64) -> Self {
        Self::draw(&mut Pcg64::from_seed(seed))
    }

    /// The next state from a running gym-pusht stream (`reset(seed=None)`).
    pub(super) fn draw(rng: &mut Pcg64) -> Self {
        use std::f64::consts::PI;
        let mut int = |low, high| rng.integers(low, high) as f64;
        let agent = [int(50, 450), int(50, 450)];
        let block = [int(100, 400), int(100, 400)];
        Self { agent, block, angle: rng.uniform(-PI, PI) }
    }

    /// The state that diffusion_policy's `PushTEnv` draws for `seed` (`RandomState(seed)`: `randint(50, 450)` twice,
    /// `randint(100, 400)` twice, `randn() * 2 pi - pi`; commit 5ba07ac, `pusht_env.py`).
    ///
    /// Seeds above 2³² - 1 do not exist there; only the low 32 bits are used.
    pub fn diffusion_policy(seed: u64) -> Self {
        use std::f64::consts::PI;
        let mut rng = RandomState::from_seed(seed as u32);
        let mut int = |low, high| rng.randint(low, high) as f64;
        let agent = [int(50, 450), int(50, 450)];
        let block = [int(100, 400), int(100, 400)];
        Self { agent, block, angle: rng.randn() * 2.0 * PI - PI }
    }

    /// From `[agent_x, agent_y, block_x, block_y, angle]`.
    pub fn from_array([ax, ay, bx, by, angle]: [f64; 5]) -> Self {
        Self { agent: [ax, ay], block: [bx, by], angle }
    }

    /// As `[agent_x, agent_y, block_x, block_y, angle]`.
    pub fn to_array(self) -> [f64; 5] {
        [self.agent[0], self.agent[1], self.block[0], self.block[1], self.angle]
    }

    /// The scene after gym-pusht has placed this state.
    ///
    /// It sets the position first and the angle afterwards ("legacy" order), and setting the angle turns the body about
    /// its centre of gravity. The body origin therefore ends at `(x, y) + c - R(angle) c`, `c = (0, 45)`.
    ///
    /// gym-pusht then runs one settle sub-step with all velocities zero. Chipmunk integrates before it solves, so that
    /// sub-step moves nothing; what it solved for an overlapping agent is integrated in the first sub-step of the first
    /// action, which is exactly when rapier, which solves before it integrates, finds and resolves the same overlap.
    /// Nothing is therefore stepped here.
    pub fn placed(self) -> SceneState {
        let (sin, cos) = sin_cos(self.angle);
        let [cx, cy] = CENTRE_OF_GRAVITY;
        let block = Pose {
            x: self.block[0] + cx - (cx * cos - cy * sin),
            y: self.block[1] + cy - (cx * sin + cy * cos),
            angle: self.angle,
        };
        SceneState::at_rest(self.agent, block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by numpy 2.4.6: `r = Generator(PCG64(SeedSequence(seed)))`, the five draws of gym-pusht's `reset`.
    #[test]
    fn gym_pusht_seeds_give_its_own_states_bit_for_bit() {
        for (seed, state) in [
            (0, [390.0, 304.0, 253.0, 180.0, -2.884_148_410_010_523_5]),
            (7, [427.0, 300.0, 305.0, 369.0, 1.732_184_278_348_262_8]),
            (123_456_789, [410.0, 61.0, 275.0, 372.0, 2.396_366_379_142_364]),
            (4_294_967_301, [102.0, 359.0, 333.0, 241.0, 1.230_752_501_535_653_7]),
            (u64::MAX, [269.0, 322.0, 385.0, 353.0, -3.095_077_720_057_471]),
        ] {
            assert_eq!(InitialState::gym_pusht(seed).to_array(), state, "seed {seed}");
        }
    }

    #[test]
    fn the_stream_continues_where_the_first_reset_left_it() {
        let mut rng = Pcg64::from_seed(3);
        let first = InitialState::draw(&mut rng).to_array();
        let second = InitialState::draw(&mut rng).to_array();
        assert_eq!(first, [374.0, 84.0, 153.0, 171.0, 1.892_963_293_213_220_8]);
        assert_eq!(second, [397.0, 282.0, 111.0, 128.0, -0.420_175_826_552_330_1]);
    }

    /// Printed by numpy 2.4.6: `r = RandomState(seed)`, the five draws of diffusion_policy's `reset`.
    #[test]
    fn diffusion_policy_seeds_give_its_own_states() {
        for (seed, state) in [
            (0, [222.0, 97.0, 217.0, 292.0, 3.007_999_467_721_955_3]),
            (100_000, [235.0, 124.0, 335.0, 128.0, -0.904_927_428_424_924_7]),
            (100_001, [365.0, 182.0, 275.0, 280.0, -1.098_113_139_709_953_5]),
            (4_294_967_295, [340.0, 62.0, 171.0, 164.0, -2.630_746_640_655_561_7]),
        ] {
            assert_eq!(InitialState::diffusion_policy(seed).to_array(), state, "seed {seed}");
        }
    }

    /// From gym-pusht's own docstring: reset_to_state [0, 10, 20, 30, 1] gives a block at (57.866196, 50.686398).
    #[test]
    fn placing_turns_about_the_centre_of_gravity_like_the_original() {
        let scene = InitialState::from_array([0.0, 10.0, 20.0, 30.0, 1.0]).placed();
        assert!((scene.block.x - 57.866_196).abs() < 4e-6); // printed as f32
        assert!((scene.block.y - 50.686_398).abs() < 4e-6);
    }
}
