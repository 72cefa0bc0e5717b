//! A sign of life from work that takes minutes and belongs to nobody's progress bar.

use std::time::{Duration, Instant};

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(15);

/// Says how far something got, in a line every fifteen seconds; shorter work says nothing.
pub(crate) struct Heartbeat {
    what: &'static str,
    total: usize,
    started: Instant,
    last: Instant,
}

impl Heartbeat {
    /// Of `total` `what` ("episodes judged").
    pub(crate) fn new(what: &'static str, total: usize) -> Self {
        let now = Instant::now();
        Self { what, total, started: now, last: now }
    }

    /// `done` tells how many of them are there by now; it is asked when a line is due.
    pub(crate) fn tick(&mut self, done: impl FnOnce() -> usize) {
        if self.last.elapsed() >= EVERY {
            self.last = Instant::now();
            tracing::info!("{}", self.line(done(), self.started.elapsed()));
        }
    }

    fn line(&self, done: usize, elapsed: Duration) -> String {
        let (what, total) = (self.what, self.total);
        let left = elapsed.as_secs_f64() / done as f64 * total.saturating_sub(done) as f64;
        let left = if done > 0 { format!("{left:.0} s") } else { "?".to_owned() };
        format!("  {done}/{total} {what}  left {left}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_pace_so_far() {
        let heart = Heartbeat::new("episodes", 60);
        assert_eq!(heart.line(0, Duration::from_secs(30)), "  0/60 episodes  left ?");
        assert_eq!(heart.line(15, Duration::from_secs(30)), "  15/60 episodes  left 90 s");
        assert_eq!(heart.line(60, Duration::from_secs(30)), "  60/60 episodes  left 0 s");
    }
}
