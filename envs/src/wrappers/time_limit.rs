//! Truncation after a number of steps.

use ndarray::ArrayView1;

use crate::{
    ActionChunk, ChunkStep, Env, EnvError, EnvSpec, Frame, FrameRequest, Info, Observation,
    ResetOptions, Step,
};

/// Sets [`Step::truncated`] on the `max_steps`-th step of an episode, unless that step terminates it.
///
/// A chunk that would run past the limit is cut there *before* it is executed, so that its last step is known in
/// advance and carries the images that a bootstrap needs.
pub struct TimeLimit<E> {
    env: E,
    spec: EnvSpec,
    max_steps: u32,
    elapsed: u32,
}

impl<E: Env> TimeLimit<E> {
    /// Limits episodes to `max_steps >= 1` steps.
    ///
    /// # Errors
    /// [`EnvError::Config`] for a limit of zero.
    pub fn new(env: E, max_steps: u32) -> Result<Self, EnvError> {
        if max_steps == 0 {
            return Err(EnvError::Config {
                detail: "a time limit of 0 steps; give at least 1".to_owned(),
            });
        }
        let mut spec = env.spec().clone();
        spec.max_episode_steps = Some(max_steps);
        spec.wrappers.push(format!("time_limit({max_steps})"));
        Ok(Self { env, spec, max_steps, elapsed: 0 })
    }

    fn count(&mut self, step: &mut Step) {
        self.elapsed += 1;
        step.truncated |= self.elapsed >= self.max_steps && !step.terminated;
    }

    fn left(&self) -> Result<usize, EnvError> {
        match self.max_steps.saturating_sub(self.elapsed) {
            0 => Err(EnvError::NeedsReset { since: "its time limit" }),
            left => Ok(left as usize),
        }
    }
}

impl<E: Env> Env for TimeLimit<E> {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        self.elapsed = 0;
        self.env.reset(seed, options)
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        self.left()?;
        let mut step = self.env.step(action, frames)?;
        self.count(&mut step);
        Ok(step)
    }

    fn step_chunk(
        &mut self,
        chunk: &ActionChunk,
        frames: FrameRequest,
    ) -> Result<ChunkStep, EnvError> {
        let mut outcome = self.env.step_chunk(&chunk.truncated(self.left()?), frames)?;
        for step in &mut outcome.steps {
            self.count(step);
        }
        Ok(outcome)
    }

    fn render(&mut self) -> Result<Option<Frame>, EnvError> {
        self.env.render()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.env.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::CountingEnv;
    use ndarray::Array2;

    #[test]
    fn a_chunk_over_the_limit_is_cut_and_its_last_step_has_frames() {
        let mut env = TimeLimit::new(CountingEnv::new(100), 5).unwrap();
        env.reset(Some(0), &ResetOptions::default()).unwrap();
        let chunk = ActionChunk::new(Array2::zeros((3, 1))).unwrap();
        let first = env.step_chunk(&chunk, FrameRequest::Last).unwrap();
        assert_eq!(first.steps.len(), 3);
        assert!(!first.last().done());
        let second = env.step_chunk(&chunk, FrameRequest::Last).unwrap();
        assert_eq!(second.steps.len(), 2);
        assert!(second.last().truncated && !second.last().terminated);
        assert!(!second.last().obs.images.is_empty(), "the step to bootstrap from must be seen");
        assert!(second.steps[0].obs.images.is_empty());
        assert!(matches!(env.step(chunk.view().row(0), false), Err(EnvError::NeedsReset { .. })));
    }

    #[test]
    fn termination_on_the_last_step_is_not_a_truncation() {
        let mut env = TimeLimit::new(CountingEnv::new(5), 5).unwrap();
        env.reset(Some(0), &ResetOptions::default()).unwrap();
        let chunk = ActionChunk::new(Array2::zeros((8, 1))).unwrap();
        let outcome = env.step_chunk(&chunk, FrameRequest::Last).unwrap();
        assert!(outcome.last().terminated && !outcome.last().truncated);
    }
}
