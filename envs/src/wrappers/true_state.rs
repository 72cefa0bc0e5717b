//! The true state as `proprio`: for policies that learn without images, and to tell what is hard, seeing or acting.

use ndarray::{ArcArray1, Array1, ArrayView1};

use crate::{
    ActionChunk, BoxSpace, ChunkStep, Env, EnvError, EnvSpec, Frame, FrameRequest, Info,
    Observation, ResetOptions, Step,
};

/// Replaces [`Observation::proprio`] by parts of [`Info::privileged`], one after the other.
#[derive(Debug)]
pub struct TrueState<E> {
    env: E,
    spec: EnvSpec,
    fields: Vec<String>,
}

/// How many numbers a field has, by the names that LIBERO's worker gives (`envs/python/simloop_libero/privileged.py`).
fn len_of(field: &str) -> Result<usize, EnvError> {
    match field {
        _ if field.ends_with("_quat_xyzw") => Ok(4),
        _ if field.ends_with("_pos") => Ok(3),
        "gripper_qpos" => Ok(2),
        _ => Err(EnvError::Config {
            detail: format!(
                "show `{field}` of the true state: choose fields that end in `_pos` or `_quat_xyzw`, or `gripper_qpos`"
            ),
        }),
    }
}

impl<E: Env> TrueState<E> {
    /// Of an environment that tells its true state.
    ///
    /// # Errors
    /// [`EnvError::Config`] for a field of unknown length, or none at all.
    pub fn new(env: E, fields: &[String]) -> Result<Self, EnvError> {
        if fields.is_empty() {
            return Err(EnvError::Config { detail: "show no field of the true state".to_owned() });
        }
        let mut dimensions = Vec::new();
        for field in fields {
            for i in 0..len_of(field)? {
                dimensions.push((format!("{field}[{i}]"), f32::NEG_INFINITY, f32::INFINITY));
            }
        }
        let mut spec = env.spec().clone();
        spec.observation.proprio = BoxSpace::new(dimensions);
        spec.wrappers.push("true_state".to_owned());
        Ok(Self { env, spec, fields: fields.to_vec() })
    }

    fn show(&self, obs: &mut Observation, info: &Info) -> Result<(), EnvError> {
        let mut values = Vec::with_capacity(self.spec.observation.proprio.len());
        for field in &self.fields {
            let part = info.privileged.as_ref().and_then(|state| state.get(field));
            let part = part.filter(|part| Ok(part.len()) == len_of(field).map_err(|_| ()));
            let part = part.ok_or_else(|| EnvError::Config {
                detail: format!(
                    "show `{field}` of the true state: it holds {:?}",
                    info.privileged.as_ref().map(|s| {
                        s.layout().fields().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
                    })
                ),
            })?;
            values.extend(part.iter().map(|&v| v as f32));
        }
        obs.proprio = ArcArray1::from(Array1::from(values));
        Ok(())
    }
}

impl<E: Env> Env for TrueState<E> {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<(Observation, Info), EnvError> {
        let (mut obs, info) = self.env.reset(seed, options)?;
        self.show(&mut obs, &info)?;
        Ok((obs, info))
    }

    fn step(&mut self, action: ArrayView1<'_, f32>, frames: bool) -> Result<Step, EnvError> {
        let mut step = self.env.step(action, frames)?;
        self.show(&mut step.obs, &step.info)?;
        Ok(step)
    }

    fn step_chunk(
        &mut self,
        chunk: &ActionChunk,
        frames: FrameRequest,
    ) -> Result<ChunkStep, EnvError> {
        let mut outcome = self.env.step_chunk(chunk, frames)?;
        for step in &mut outcome.steps {
            self.show(&mut step.obs, &step.info)?;
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
    use crate::pusht::{PushtConfig, PushtEnv};

    #[test]
    fn fields_that_are_not_there_or_have_no_known_length_are_named() {
        let env =
            || PushtEnv::new(PushtConfig { privileged: true, ..PushtConfig::default() }).unwrap();
        let error = TrueState::new(env(), &["block_pose".to_owned()]).err().unwrap().to_string();
        assert!(error.contains("block_pose"), "{error}");
        let mut wrapped = TrueState::new(env(), &["bowl_pos".to_owned()]).unwrap();
        assert_eq!(wrapped.spec().observation.proprio.len(), 3);
        let error = wrapped.reset(Some(0), &ResetOptions::default()).unwrap_err().to_string();
        assert!(error.contains("bowl_pos") && error.contains("agent_pos_px"), "{error}");
    }
}
