//! The emergency stop: a latch that every command looks at last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A latched emergency stop. Clones share it; pressing it is one atomic store, so a signal handler can.
#[derive(Clone, Debug, Default)]
pub struct EmergencyStop {
    pressed: Arc<AtomicBool>,
    /// When and by what it was first noticed.
    first: Arc<Mutex<Option<(Instant, String)>>>,
}

impl EmergencyStop {
    /// Presses it. Nothing is sent to the robot from now on.
    pub fn press(&self, by: &str) {
        self.pressed.store(true, Ordering::SeqCst);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| (Instant::now(), by.to_owned()));
    }

    /// Whether it is pressed.
    pub fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::SeqCst)
    }

    /// The flag itself, for a signal handler: `true` is pressed.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.pressed)
    }

    /// What pressed it.
    pub fn by(&self) -> String {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.as_ref().map_or_else(|| "a signal".to_owned(), |(_, by)| by.clone())
    }

    /// Releases it. Only the operator's explicit consent may lead here, so it takes one.
    pub fn release(&self, _consent: &Consent) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.pressed.store(false, Ordering::SeqCst);
    }
}

/// Somebody's explicit word that the robot may move. It is made where a person answers, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    operator: String,
}

impl Consent {
    /// The consent of `operator`, who is looking at the robot.
    pub fn of(operator: &str) -> Self {
        Self { operator: operator.to_owned() }
    }

    /// Who consented.
    pub fn operator(&self) -> &str {
        &self.operator
    }
}
