//! Progress: a bar on a terminal, a line every ten seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Seconds between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts something towards a total.
pub(super) struct Bar {
    line: ProgressBar,
    title: String,
    plain: bool,
    last_line: Instant,
}

impl Bar {
    pub(super) fn new(title: &str, total: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(8)
        };
        let line = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template(
            "{prefix} {bar:28} {pos}/{len}  {msg}  {elapsed_precise} < {eta_precise}",
        );
        line.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        line.set_prefix(title.to_owned());
        Self { line, title: title.to_owned(), plain, last_line: Instant::now() }
    }

    #[expect(clippy::print_stderr, reason = "progress of a command-line program")]
    pub(super) fn set(&mut self, done: u64, total: u64, message: &str) {
        self.line.set_length(total);
        self.line.set_position(done);
        self.line.set_message(message.to_owned());
        if self.plain && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            eprintln!("{}: {done}/{total}  {message}", self.title);
        }
    }

    pub(super) fn finish(&self) {
        self.line.finish_and_clear();
    }
}
