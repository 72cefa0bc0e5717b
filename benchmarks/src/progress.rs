//! What a person sees of a run while it goes on: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use simloop_trainers::{EpisodeRecord, Status};

use crate::stats::proportion::wilson;
use crate::stats::{Alpha, Rate};

/// Seconds between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts episodes and shows the success rate so far with its 95 % Wilson interval, the pace and the time left.
pub struct EvalProgress {
    bar: ProgressBar,
    plain: bool,
    started: Instant,
    last_line: Instant,
    total: u64,
    finished: u64,
    resumed: u64,
    successes: u64,
    errors: u64,
    steps: u64,
}

impl EvalProgress {
    /// `total` episodes in all, of which `known` were recorded by an earlier run.
    pub fn new(title: &str, total: u64, known: &[EpisodeRecord]) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(8)
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template(
            "{prefix} {bar:28} {pos}/{len}  {msg}  {elapsed_precise} < {eta_precise}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(title.to_owned());
        let now = Instant::now();
        let mut progress = Self {
            bar,
            plain,
            started: now,
            last_line: now,
            total,
            finished: 0,
            resumed: known.len() as u64,
            successes: 0,
            errors: 0,
            steps: 0,
        };
        for record in known {
            progress.count(record);
        }
        progress.steps = 0;
        progress.bar.set_position(progress.finished);
        progress.bar.reset_eta();
        progress.bar.set_message(progress.message());
        progress
    }

    fn count(&mut self, record: &EpisodeRecord) {
        self.finished += 1;
        self.steps += u64::from(record.steps);
        match record.status {
            Status::Success => self.successes += 1,
            Status::Error => self.errors += 1,
            Status::Failure => {}
        }
    }

    /// Takes in a finished episode.
    pub fn episode(&mut self, record: &EpisodeRecord) {
        self.count(record);
        self.bar.set_position(self.finished);
        self.bar.set_message(self.message());
        if self.plain && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.line();
        }
    }

    fn message(&self) -> String {
        let completed = self.finished - self.errors;
        let rate = if completed == 0 {
            "no episode yet".to_owned()
        } else {
            let band = wilson(
                Rate::from_parts(self.successes, completed - self.successes),
                Alpha::FIVE_PERCENT,
            );
            let percent = 100.0 * self.successes as f64 / completed as f64;
            format!("success {percent:.1} % [{:.1}, {:.1}]", 100.0 * band.low, 100.0 * band.high)
        };
        let errors =
            if self.errors == 0 { String::new() } else { format!("  errors {}", self.errors) };
        let pace = self.steps as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        format!("{rate}{errors}  {pace:.0} steps/s")
    }

    fn line(&self) {
        let fresh = self.finished - self.resumed;
        let left = if fresh == 0 {
            "?".to_owned()
        } else {
            let secs = self.started.elapsed().as_secs_f64() / fresh as f64
                * (self.total - self.finished) as f64;
            format!("{secs:.0} s")
        };
        tracing::info!("{}/{}  {}  left {left}", self.finished, self.total, self.message());
    }

    /// Ends the bar and leaves its last state to be read.
    pub fn finish(&mut self) {
        if self.plain {
            self.line();
        }
        self.bar.abandon();
    }
}
