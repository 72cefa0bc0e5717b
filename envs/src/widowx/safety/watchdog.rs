//! A thread that holds the gate when nothing fresh arrives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::gate::{Gate, GateState};
use crate::widowx::fault::{Fault, FaultKind};
use crate::widowx::stop::EmergencyStop;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(5);
/// It acts this much before the limit, so that the limit is kept on a busy machine too. With the usual limits that is when the
/// observation gets too old to act on.
const EARLY: Duration = Duration::from_millis(100);

/// Looks at the gate every few milliseconds: an armed gate that has seen nothing fresh for
/// [`hold_after`](super::Limits::hold_after) holds, and a pressed emergency stop latches it.
#[derive(Debug)]
pub struct Watchdog {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts watching. `waiting_for_robot` tells whom to blame: the link, or the policy.
    ///
    /// # Errors
    /// The system's, if there can be no thread.
    pub fn start(
        gate: Arc<Mutex<Gate>>,
        stop: EmergencyStop,
        waiting_for_robot: Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let done = Arc::new(AtomicBool::new(false));
        let finished = Arc::clone(&done);
        let thread =
            std::thread::Builder::new().name("widowx-watchdog".to_owned()).spawn(move || {
                while !finished.load(Ordering::SeqCst) {
                    std::thread::sleep(LOOK);
                    let mut gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
                    if *gate.state() == GateState::Disarmed {
                        continue;
                    }
                    if stop.is_pressed() {
                        let detail = format!("pressed by {}", stop.by());
                        gate.latch(Fault::new(FaultKind::EmergencyStop, detail));
                        continue;
                    }
                    // Before the first observation of a trial the server's own long motions run.
                    let (GateState::Armed, Some(seen), Some(_)) =
                        (gate.state(), gate.seen_at(), gate.goal())
                    else {
                        continue;
                    };
                    let silent = Instant::now().saturating_duration_since(seen);
                    if silent + EARLY >= gate.limits().hold_after {
                        let link = waiting_for_robot.load(Ordering::SeqCst);
                        let (kind, who) = if link {
                            (FaultKind::NoObservation, "the link")
                        } else {
                            (FaultKind::PolicyTooSlow, "the policy")
                        };
                        let detail = format!(
                            "{who} stalls: the newest observation is {} ms old",
                            silent.as_millis()
                        );
                        gate.hold(Fault::new(kind, detail));
                    }
                }
            })?;
        Ok(Self { done, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It cannot have anything to say but that it panicked; the gate is then poisoned and stays closed to nobody.
            let _ = thread.join();
        }
    }
}
