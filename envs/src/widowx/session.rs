//! [`Session`]: what is known of a robot server between episodes, and who is warned.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fault::Fault;
use super::stop::Consent;

/// What outlives one environment: a faulted environment is dropped, the robot server stays.
#[derive(Clone, Default)]
pub struct Session(Arc<Mutex<SessionState>>);

#[derive(Default)]
pub(super) struct SessionState {
    pub(super) initialised: bool,
    pub(super) primed: bool,
    pub(super) known_before: bool,
    pub(super) unclean: Option<Fault>,
    pub(super) consent: Option<Consent>,
    warn: Option<Warn>,
}

/// Called at once with what the person beside the robot must hear now.
pub type Warn = Arc<dyn Fn(&str) + Send + Sync>;

/// What is said while a server that closed the connection may be initialising the robot.
pub(super) const MAY_MOVE: &str = "The trial is void: the robot server closed the connection. It may be initialising the robot again, and \
                        then the arm moves to its neutral pose by itself. KEEP CLEAR.";
/// What is said of a server that was initialised before.
const KNOWN_BEFORE: &str = "The robot server was initialised before this run, with the same parameters. If it met a fault or \
                            other parameters since its start, its gripper is unreliable: restart it to be sure.";

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Session")
            .field("initialised", &state.initialised)
            .field("known_before", &state.known_before)
            .field("unclean", &state.unclean)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn state(&self) -> MutexGuard<'_, SessionState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives consent for the next `reset` and the episode that it begins.
    pub fn consent(&self, consent: Consent) {
        self.state().consent = Some(consent);
    }

    /// Who is called with what cannot wait for the end of a request.
    pub fn on_warning(&self, warn: Warn) {
        self.state().warn = Some(warn);
    }

    /// Says what cannot wait.
    pub(super) fn warn(&self, words: &str) {
        let warn = self.state().warn.clone();
        if let Some(warn) = warn {
            warn(words);
        } else {
            tracing::warn!("{words}");
        }
    }

    /// What to say of a server that knew the robot before this session initialised it; `None` for one that did not.
    pub fn known_before(&self) -> Option<&'static str> {
        self.state().known_before.then_some(KNOWN_BEFORE)
    }

    /// The fault after which the server must be restarted, if there was one and it was not yet.
    pub fn unclean(&self) -> Option<Fault> {
        self.state().unclean.clone()
    }
}
