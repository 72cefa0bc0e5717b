//! The hidden worker side of `--worker-kind processes`.

use std::process::ExitCode;

use simloop_envs::pusht::worker;

use crate::BenchError;

/// Serves one environment until the parent closes the socket.
pub(super) fn run() -> Result<ExitCode, BenchError> {
    worker::serve()?;
    Ok(ExitCode::SUCCESS)
}
