//! Numbers for Prometheus, text exposition format 0.0.4.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the time histograms, seconds.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Upper bounds of the batch histogram.
const SIZES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
/// Routes that are told apart; a fixed list, so that no client makes new series.
pub(super) const ROUTES: [&str; 6] = ["ws", "act", "healthz", "metadata", "metrics", "other"];
/// Kinds of statuses.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [AtomicU64; N],
    total: AtomicU64,
    /// Millionths.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, counts, total: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    fn observe(&self, value: f64) {
        if let Some(at) = self.bounds.iter().position(|bound| value <= *bound) {
            self.counts[at].fetch_add(1, Ordering::Relaxed);
        }
        self.total.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut seen = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            seen += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {seen}");
        }
        let total = self.total.load(Ordering::Relaxed).max(seen);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {total}\n{name}_sum {sum}\n{name}_count {total}"
        );
    }
}

/// Counters of a server.
pub(super) struct Metrics {
    requests: [[AtomicU64; CLASSES.len()]; ROUTES.len()],
    decisions: AtomicU64,
    panics: AtomicU64,
    latency: Histogram<12>,
    infer: Histogram<12>,
    batches: Histogram<8>,
    connections: AtomicU64,
    websockets: AtomicU64,
}

/// Values that are looked up when somebody asks.
pub(super) struct Now {
    pub(super) waiting: usize,
    pub(super) in_flight: usize,
    pub(super) sessions: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            decisions: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            latency: Histogram::new(SECONDS),
            infer: Histogram::new(SECONDS),
            batches: Histogram::new(SIZES),
            connections: AtomicU64::new(0),
            websockets: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// A request was answered; a websocket's message counts as one.
    pub(super) fn answered(&self, route: usize, status: u16) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        if let Some(counter) = self.requests.get(route).and_then(|classes| classes.get(class)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A chunk was sent, so long after its request had arrived whole.
    pub(super) fn decided(&self, latency: Duration) {
        self.decisions.fetch_add(1, Ordering::Relaxed);
        self.latency.observe(latency.as_secs_f64());
    }

    /// A batch went through the policy.
    pub(super) fn batch(&self, size: usize, infer: Duration) {
        self.batches.observe(size as f64);
        self.infer.observe(infer.as_secs_f64());
    }

    /// A handler panicked.
    pub(super) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection, counted while the result lives.
    pub(super) fn connection(&self) -> Gauge<'_> {
        Gauge::up(&self.connections)
    }

    /// A websocket, counted while the result lives.
    pub(super) fn websocket(&self) -> Gauge<'_> {
        Gauge::up(&self.websockets)
    }

    /// Everything as text.
    pub(super) fn text(&self, now: &Now) -> String {
        let mut out = String::with_capacity(4096);
        let name = "simloop_requests_total";
        let _ = writeln!(
            out,
            "# HELP {name} Answers by route and kind of status; each message of a websocket is one.\n# TYPE {name} counter"
        );
        for (route, classes) in ROUTES.iter().zip(&self.requests) {
            for (class, count) in CLASSES.iter().zip(classes) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 || *class == "2xx" {
                    let _ = writeln!(out, "{name}{{route=\"{route}\",status=\"{class}\"}} {count}");
                }
            }
        }
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            ("simloop_decisions_total", "counter", "Chunks that were sent.", load(&self.decisions)),
            ("simloop_panics_total", "counter", "Handlers that panicked.", load(&self.panics)),
            ("simloop_connections", "gauge", "Open connections.", load(&self.connections)),
            ("simloop_websockets", "gauge", "Open websockets.", load(&self.websockets)),
            ("simloop_sessions", "gauge", "Sessions over REST.", now.sessions as u64),
            (
                "simloop_queue_depth",
                "gauge",
                "Requests that wait for the policy.",
                now.waiting as u64,
            ),
            ("simloop_in_flight", "gauge", "Requests under way.", now.in_flight as u64),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        self.latency.write(
            &mut out,
            "simloop_decision_seconds",
            "From the arrival of a whole request to its chunk.",
        );
        self.infer.write(&mut out, "simloop_inference_seconds", "One batch through the policy.");
        self.batches.write(&mut out, "simloop_batch_size", "Decisions that shared a batch.");
        out
    }
}

/// Counts one while it lives.
pub(super) struct Gauge<'m>(&'m AtomicU64);

impl<'m> Gauge<'m> {
    fn up(counter: &'m AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_with_everything() {
        let metrics = Metrics::default();
        for (size, ms) in [(1, 1), (8, 4), (200, 20_000)] {
            metrics.batch(size, Duration::from_millis(ms));
        }
        metrics.answered(1, 200);
        metrics.answered(1, 413);
        metrics.answered(99, 200);
        let text = metrics.text(&Now { waiting: 3, in_flight: 1, sessions: 2 });
        for line in [
            "simloop_batch_size_bucket{le=\"1\"} 1",
            "simloop_batch_size_bucket{le=\"4\"} 1",
            "simloop_batch_size_bucket{le=\"8\"} 2",
            "simloop_batch_size_bucket{le=\"128\"} 2",
            "simloop_batch_size_bucket{le=\"+Inf\"} 3",
            "simloop_batch_size_sum 209",
            "simloop_inference_seconds_bucket{le=\"10\"} 2",
            "simloop_inference_seconds_sum 20.005",
            "simloop_requests_total{route=\"act\",status=\"4xx\"} 1",
            "simloop_queue_depth 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
