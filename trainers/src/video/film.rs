//! Films are made after the fact: nothing is rendered while numbers are made.

use ndarray::ArrayView2;
use simloop_envs::{Env, Frame, ResetRequest};

use super::{VideoError, VideoWriter};
use crate::TraceHash;

/// Simulates an episode again into `writer` and returns its last frame. `actions` is what was executed, `[T, D]`; `trace` is
/// its [`TraceHash`], so that no film passes for an episode that it does not show.
///
/// # Errors
/// [`VideoError::Differs`] if it went another way, [`VideoError::Blind`] for an environment that does not render, and what
/// the environment and the writer answer. Drop the writer then.
pub fn film(
    env: &mut dyn Env,
    request: &ResetRequest,
    actions: ArrayView2<'_, f32>,
    trace: &str,
    writer: &mut VideoWriter,
) -> Result<Frame, VideoError> {
    let mut hash = TraceHash::default();
    let (obs, _) = env.reset(request.seed, &request.options)?;
    hash.reset(&obs);
    let mut last = env.render()?.ok_or(VideoError::Blind)?;
    writer.push(&last)?;
    for action in actions.outer_iter() {
        let step = env.step(action, false)?;
        hash.step(action.iter(), &step);
        last = env.render()?.ok_or(VideoError::Blind)?;
        writer.push(&last)?;
    }
    if hash.finish() == trace { Ok(last) } else { Err(VideoError::Differs) }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use simloop_envs::ResetOptions;
    use simloop_envs::pusht::{PushtConfig, PushtEnv};

    use super::*;
    use crate::video::VideoFormat;

    #[test]
    fn no_film_passes_for_an_episode_that_it_does_not_show() {
        let folder = tempfile::tempdir().unwrap();
        let mut env = PushtEnv::new(PushtConfig::default()).unwrap();
        let request = ResetRequest { seed: Some(3), options: ResetOptions::default() };
        let actions = Array2::from_elem((4, 2), 256.0);
        let mut trace = TraceHash::default();
        trace.reset(&env.reset(request.seed, &request.options).unwrap().0);
        for action in actions.outer_iter() {
            trace.step(action.iter(), &env.step(action, false).unwrap());
        }
        let trace = trace.finish();
        for (t, differs) in [(4, false), (3, true)] {
            let format = VideoFormat::default();
            let mut writer = VideoWriter::create(folder.path(), 10.0, format).unwrap();
            let shown = actions.slice(ndarray::s![..t, ..]);
            let film = film(&mut env, &request, shown, &trace, &mut writer);
            assert_eq!(matches!(film, Err(VideoError::Differs)), differs, "{film:?}");
            assert_eq!(film.is_ok(), !differs);
        }
    }
}
