//! The contract, as a check that every environment must pass (after Gymnasium's `check_env`).

use ndarray::Array1;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{ActionChunk, Env, EnvError, EnvSpec, FrameRequest, Observation, ResetOptions, Step};

const STEPS: usize = 12;
const CHUNK: usize = 4;

/// Runs short random episodes and returns every breach of the contract it finds, in words; empty means it holds.
///
/// Checked: shapes and cameras against the spec, finite numbers, equal seeds give equal episodes bit for bit (also after
/// other episodes in between), `frames = false` changes nothing but images, a chunk equals its single steps, a refused
/// action leaves the environment usable, a step before any reset is refused.
///
/// # Errors
/// The environment's own error if it cannot reset or step at all.
pub fn check_env(env: &mut dyn Env, options: &ResetOptions) -> Result<Vec<String>, EnvError> {
    let mut breaches = Breaches(Vec::new());
    let spec = env.spec().clone();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let actions: Vec<Array1<f32>> = (0..STEPS).map(|_| spec.action.sample(&mut rng)).collect();

    if !matches!(env.step(actions[0].view(), true), Err(EnvError::NeedsReset { .. })) {
        breaches.add("a step before the first reset must answer NeedsReset");
    }
    let first = episode(env, 7, options, &actions, true)?;
    breaches.observation(&spec, &first.0, true);
    for step in &first.1 {
        breaches.observation(&spec, &step.obs, true);
        if !step.reward.is_finite() {
            breaches.add("a reward is not finite");
        }
    }
    episode(env, 8, options, &actions, true)?;
    if episode(env, 7, options, &actions, true)? != first {
        breaches.add("the same seed gave another episode after an episode in between");
    }
    let blind = episode(env, 7, options, &actions, false)?;
    for (seen, unseen) in first.1.iter().zip(&blind.1) {
        breaches.observation(&spec, &unseen.obs, false);
        let (mut a, mut b) = (seen.clone(), unseen.clone());
        a.obs.images.clear();
        b.obs.images.clear();
        if a != b {
            breaches.add("`frames = false` changed more than the images");
        }
    }
    breaches.chunk(env, options, &actions, &first.1)?;

    env.reset(Some(7), options)?;
    let mut bad = actions[0].clone();
    bad[0] = f32::NAN;
    if !matches!(env.step(bad.view(), true), Err(EnvError::InvalidAction { .. })) {
        breaches.add("a NaN action must be refused with InvalidAction");
    }
    if !matches!(
        env.step(Array1::zeros(spec.action.len() + 1).view(), true),
        Err(EnvError::InvalidAction { .. })
    ) {
        breaches.add("an action of the wrong length must be refused with InvalidAction");
    }
    if env.step(actions[0].view(), true).map_or(true, |step| step != first.1[0]) {
        breaches.add("a refused action must leave the environment as it was");
    }
    if serde_json::to_string(&spec).is_err() {
        breaches.add("the spec cannot be written as JSON");
    }
    Ok(breaches.0)
}

type Episode = (Observation, Vec<Step>);

fn episode(
    env: &mut dyn Env,
    seed: u64,
    options: &ResetOptions,
    actions: &[Array1<f32>],
    frames: bool,
) -> Result<Episode, EnvError> {
    let (obs, _) = env.reset(Some(seed), options)?;
    let mut steps = Vec::new();
    for action in actions {
        let step = env.step(action.view(), frames)?;
        let done = step.done();
        steps.push(step);
        if done {
            break;
        }
    }
    Ok((obs, steps))
}

struct Breaches(Vec<String>);

impl Breaches {
    fn add(&mut self, breach: impl Into<String>) {
        let breach = breach.into();
        if !self.0.contains(&breach) {
            self.0.push(breach);
        }
    }

    fn observation(&mut self, spec: &EnvSpec, obs: &Observation, frames: bool) {
        if obs.proprio.len() != spec.observation.proprio.len() {
            self.add(format!(
                "proprio has {} numbers, the spec says {}",
                obs.proprio.len(),
                spec.observation.proprio.len()
            ));
        }
        if obs.proprio.iter().any(|v| !v.is_finite()) {
            self.add("proprio holds a non-finite number");
        }
        if !frames {
            if !obs.images.is_empty() {
                self.add("`frames = false` still returned images");
            }
            return;
        }
        if !obs.images.keys().eq(spec.observation.images.keys()) {
            self.add("the cameras of an observation are not those of the spec");
        }
        for (camera, frame) in &obs.images {
            let Some(space) = spec.observation.images.get(camera) else { continue };
            if frame.shape() != [space.height as usize, space.width as usize, 3] {
                self.add(format!("`{camera}` is {:?}, the spec says {space:?}", frame.shape()));
            }
        }
    }

    fn chunk(
        &mut self,
        env: &mut dyn Env,
        options: &ResetOptions,
        actions: &[Array1<f32>],
        single: &[Step],
    ) -> Result<(), EnvError> {
        let views: Vec<_> = actions.iter().take(CHUNK).map(Array1::view).collect();
        let stacked = ndarray::stack(ndarray::Axis(0), &views)
            .map_err(|e| EnvError::InvalidAction { detail: e.to_string() })?;
        let chunk = ActionChunk::new(stacked)?;
        env.reset(Some(7), options)?;
        let every = env.step_chunk(&chunk, FrameRequest::Every)?;
        if !single.starts_with(&every.steps) {
            self.add("a chunk differs from its single steps");
        }
        env.reset(Some(7), options)?;
        let last = env.step_chunk(&chunk, FrameRequest::Last)?;
        if last.steps.len() != every.steps.len() {
            self.add("the frame request changed the number of steps");
        }
        for (i, (a, b)) in every.steps.iter().zip(&last.steps).enumerate() {
            if i + 1 < chunk.len() {
                if !b.obs.images.is_empty() {
                    self.add("FrameRequest::Last rendered an intermediate frame");
                }
            } else if a != b {
                self.add("the last step of a chunk differs between FrameRequest::Every and Last");
            }
        }
        env.reset(Some(7), options)?;
        let two = env.step_chunk(&chunk, FrameRequest::LastN(2))?;
        let full = two.steps.len() == chunk.len();
        for (i, (a, b)) in every.steps.iter().zip(&two.steps).enumerate() {
            if i + 2 < chunk.len() {
                if !b.obs.images.is_empty() {
                    self.add("FrameRequest::LastN(2) rendered an earlier frame");
                }
            } else if full && a != b {
                self.add("one of the last two steps of a chunk differs between FrameRequest::Every and LastN(2)");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::CountingEnv;
    use crate::{Frame, Info};
    use ndarray::ArrayView1;

    #[test]
    fn the_toy_meets_the_contract() {
        let breaches = check_env(&mut CountingEnv::new(50), &ResetOptions::default()).unwrap();
        assert_eq!(breaches, Vec::<String>::new());
    }

    /// Breaks one promise at a time.
    struct Broken {
        inner: CountingEnv,
        how: &'static str,
        resets: u32,
    }

    impl Env for Broken {
        fn spec(&self) -> &EnvSpec {
            self.inner.spec()
        }
        fn reset(
            &mut self,
            seed: Option<u64>,
            options: &ResetOptions,
        ) -> Result<(Observation, Info), EnvError> {
            self.resets += 1;
            self.inner.reset(seed, options)
        }
        fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
            let mut step = self.inner.step(action, frames || self.how == "frames")?;
            if self.how == "memory" {
                step.reward += self.resets as f32;
            }
            Ok(step)
        }
        fn render(&mut self) -> Result<Option<Frame>, EnvError> {
            Ok(None)
        }
    }

    #[test]
    fn broken_environments_are_found_out() {
        for (how, expected) in [("memory", "same seed"), ("frames", "still returned images")] {
            let mut env = Broken { inner: CountingEnv::new(50), how, resets: 0 };
            let breaches = check_env(&mut env, &ResetOptions::default()).unwrap();
            assert!(breaches.iter().any(|b| b.contains(expected)), "{how}: {breaches:?}");
        }
    }
}
