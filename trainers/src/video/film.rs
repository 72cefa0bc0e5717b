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
