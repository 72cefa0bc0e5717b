//! Judging a policy while it goes on learning.
//!
//! # Details
//! 1. A thread of its own loads the policy from the folder that the loop wrote and lets it act on the episodes that every
//!    judgement uses: the verdict is a function of the weights alone, whenever it comes.
//! 2. One judgement at a time: a loop that is due for the next one waits for the one before.
//! 3. A run that is interrupted meanwhile keeps the folder and names it in its checkpoint; resumed, it judges it again.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use simloop_algos::Metrics;
use simloop_policies::checkpoint::load_policy;
use tch::Device;

use crate::TrainerError;
use crate::acting::Acting;
use crate::config::EvalConfig;
use crate::place::Place;
use crate::stop::StopFlag;

/// What came of a judgement: `None` if it was interrupted.
pub type Verdict = Result<Option<Metrics>, TrainerError>;

/// The thread that judges.
pub struct Judge {
    /// `None` only while it is dropped.
    cases: Option<Sender<(u64, PathBuf)>>,
    verdicts: Receiver<(u64, Verdict)>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Judge {
    /// Judges at `place` by `config`; films go into `films`.
    ///
    /// # Errors
    /// [`TrainerError::Env`] for a place that cannot be built, [`TrainerError::Config`] if no thread can be started.
    pub fn start(
        place: &Place,
        config: &EvalConfig,
        films: &Path,
        device: Device,
        stop: StopFlag,
    ) -> Result<Self, TrainerError> {
        let (place, config, films) = (place.clone(), config.clone(), films.to_owned());
        let (cases, next) = bounded::<(u64, PathBuf)>(1);
        let (give, verdicts) = bounded(1);
        let work = move || {
            let mut acting = None;
            for (update, folder) in next {
                let verdict = judge(&mut acting, &place, &config, &films, |acting| {
                    let mut policy = load_policy(&folder, device)?;
                    acting.judge(&mut policy, update, &stop)
                });
                if give.send((update, verdict)).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("judge".to_owned()).spawn(work);
        let thread =
            thread.map_err(|e| TrainerError::config(format!("start a thread that judges: {e}")))?;
        Ok(Self { cases: Some(cases), verdicts, busy: false, thread: Some(thread) })
    }

    /// Begins to judge the policy in `folder`, that of after `update` updates. Take the verdict on the one before first.
    pub fn begin(&mut self, update: u64, folder: &Path) {
        if let Some(cases) = &self.cases {
            self.busy = cases.send((update, folder.to_owned())).is_ok();
        }
    }

    /// The verdict, if there is one by now.
    pub fn poll(&mut self) -> Option<(u64, Verdict)> {
        let verdict = self.verdicts.try_recv().ok();
        self.busy &= verdict.is_none();
        verdict
    }

    /// The verdict on what is being judged; `None` if nothing is.
    pub fn wait(&mut self) -> Option<(u64, Verdict)> {
        if !std::mem::take(&mut self.busy) {
            return None;
        }
        let ended = || TrainerError::config("judge the policy: the thread that judges has ended");
        Some(self.verdicts.recv().unwrap_or_else(|_| (0, Err(ended()))))
    }
}

/// Builds the place at the first judgement.
fn judge(
    acting: &mut Option<Acting>,
    place: &Place,
    config: &EvalConfig,
    films: &Path,
    run: impl FnOnce(&mut Acting) -> Verdict,
) -> Verdict {
    if acting.is_none() {
        let mut built = Acting::at(place, config)?;
        built.film_into(films);
        *acting = Some(built);
    }
    match acting {
        Some(acting) => run(acting),
        None => Ok(None),
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        // The thread ends after the judgement under way.
        self.cases = None;
        if let Some(thread) = self.thread.take() {
            while self.verdicts.recv().is_ok() {}
            // A panic has been reported by its own thread.
            let _ = thread.join();
        }
    }
}
