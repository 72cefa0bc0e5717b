//! The hidden worker side of `--worker-kind processes`.

use std::process::ExitCode;

use crate::BenchError;
use crate::suites::pusht::build_in_worker;

/// Serves one environment until the parent closes the socket.
pub(super) fn run() -> Result<ExitCode, BenchError> {
    simloop_envs::bridge::serve(build_in_worker)?;
    Ok(ExitCode::SUCCESS)
}
