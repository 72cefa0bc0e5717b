//! What the tests of the real LIBERO share: finding it, and one simulator at a time.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use simloop_envs::libero::{LiberoConfig, LiberoEnv, LiberoInstall, LocateOptions, locate};

/// Simulators are heavy: tests take turns.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The installed LIBERO, or `None` after saying why there is none.
pub(crate) fn libero() -> Option<LiberoInstall> {
    match locate(&LocateOptions::default()) {
        Ok(install) => Some(install),
        Err(reason) => {
            println!("skipped: could not {reason}");
            None
        }
    }
}

/// Whether pictures can be made here, told after trying.
pub(crate) fn renders(install: &LiberoInstall) -> bool {
    let config = LiberoConfig { cameras: vec!["agentview".into()], ..LiberoConfig::default() };
    match LiberoEnv::start(install, &config) {
        Ok(_) => true,
        Err(reason) => {
            println!("skipped: could not {reason}");
            false
        }
    }
}

/// The folder of the worker's sources.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// `[n, 7]` actions that move the arm about and open and close the hand, the same on every machine.
pub(crate) fn actions(n: usize, seed: u32) -> Vec<[f32; 7]> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut draw = || {
        // Numerical Recipes' linear congruential generator; the upper bits are good enough to wander.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n)
        .map(|_| {
            let mut action = [0.0; 7];
            action.fill_with(&mut draw);
            action[2] -= 0.3;
            action[3..6].iter_mut().for_each(|v| *v *= 0.3);
            action
        })
        .collect()
}
