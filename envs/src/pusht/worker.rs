//! PushT in a process of its own, for runs that must outlive whatever kills one.
//!
//! The child is [`PROGRAM`], if one built from the same sources lies beside this program. Without it the child is this very
//! program with [`COMMAND`] as its only argument (`bench` and `train` have it as a hidden subcommand): the same, but it
//! loads libtorch first, which takes 0.2 CPU-seconds and 100 MB.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{PushtConfig, PushtEnv};
use crate::bridge::{self, BridgeConfig, BridgeEnv, Deadlines};
use crate::wrappers::TimeLimit;
use crate::{Env, EnvError, EnvFactory};

/// The program that does nothing but [`serve`].
pub const PROGRAM: &str = "simloop-worker";

/// Asks [`PROGRAM`] which sources it was built from.
pub const ASK_BUILD: &str = "--build";

/// The digest of the sources of this crate and of the versions of what it depends on. Two programs with the same one
/// simulate the same.
pub const BUILD: &str = env!("SIMLOOP_ENVS_BUILD");

/// The subcommand that [`serve`]s.
pub const COMMAND: &str = "__worker";

/// What a child is told to build.
const PUSHT: &str = "pusht";

/// What a child is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkerConfig {
    env: String,
    config: PushtConfig,
    max_steps: u32,
}

/// Environments in this process, truncated after `max_steps`.
pub fn in_process(config: PushtConfig, max_steps: u32) -> EnvFactory {
    Arc::new(move |_| Ok(Box::new(build(config.clone(), max_steps)?) as Box<dyn Env>))
}

/// Environments in a child process each.
///
/// # Errors
/// [`EnvError::Config`] if this program's own file cannot be found.
pub fn in_child(config: PushtConfig, max_steps: u32) -> Result<EnvFactory, EnvError> {
    let failed = |detail: String| EnvError::Config { detail };
    let own = std::env::current_exe()
        .map_err(|e| failed(format!("find this program's own file for worker processes: {e}")))?;
    let (program, args) = match small_worker(&own) {
        Some(program) => (program, Vec::new()),
        None => (own, vec![COMMAND.to_owned()]),
    };
    let config = WorkerConfig { env: PUSHT.to_owned(), config, max_steps };
    let config = serde_json::to_value(config)
        .map_err(|e| failed(format!("write a worker's config: {e}")))?;
    Ok(Arc::new(move |_| {
        let mut bridge = BridgeConfig::rust(&program, args.clone(), config.clone());
        "pusht worker".clone_into(&mut bridge.label);
        // A step takes well under a millisecond; the rest is patience with a busy machine.
        bridge.deadlines =
            Deadlines { start: 30.0, reset: 5.0, step: 5.0, close: 2.0, asleep: Some(0.5) };
        Ok(Box::new(BridgeEnv::start(bridge)?) as Box<dyn Env>)
    }))
}

/// [`PROGRAM`] beside `own` (or beside the folder of a test program), if it is of the same build.
fn small_worker(own: &Path) -> Option<PathBuf> {
    let beside = own.parent()?;
    let places = [beside, beside.parent()?];
    let found = places.iter().map(|place| place.join(PROGRAM)).find(|file| file.is_file())?;
    let said = std::process::Command::new(&found).arg(ASK_BUILD).output().ok()?;
    if said.stdout.trim_ascii() == BUILD.as_bytes() {
        return Some(found);
    }
    tracing::warn!(
        "`{}` was built from other sources: it is not used; build it with this program",
        found.display()
    );
    None
}

/// The child's side: serves one environment until the parent closes the socket.
///
/// # Errors
/// [`EnvError`] if the parent speaks another protocol, or asks for what cannot be built.
pub fn serve() -> Result<(), EnvError> {
    bridge::serve(|config| {
        let config: WorkerConfig = serde_json::from_value(config)
            .map_err(|e| EnvError::Config { detail: format!("read the worker's config: {e}") })?;
        Ok(Box::new(build(config.config, config.max_steps)?) as Box<dyn Env>)
    })
}

fn build(config: PushtConfig, max_steps: u32) -> Result<TimeLimit<PushtEnv>, EnvError> {
    TimeLimit::new(PushtEnv::new(config)?, max_steps)
}
