//! What a person sees while a run goes on.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressDrawTarget, ProgressStyle};
use simloop_algos::bc::Metrics;

use crate::observer::{TrainEvent, TrainObserver};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Metrics in the order they are shown, with their short names.
const SHOWN: [(&str, &str); 18] = [
    ("train/loss", "loss"),
    ("train/lr", "lr"),
    ("train/grad_norm", "|g|"),
    ("val/loss", "val"),
    ("val/action_mae", "mae"),
    ("val/end_point_error", "end"),
    ("rollout/return", "return"),
    ("rollout/success_rate", "rollouts"),
    ("train/approx_kl", "kl"),
    ("train/clip_fraction", "clip"),
    ("train/entropy", "entropy"),
    ("train/explained_variance", "ev"),
    ("train/alpha", "alpha"),
    ("eval/success_rate", "success"),
    ("eval/mean_max_coverage", "coverage"),
    ("time/env_steps_per_sec", "steps/s"),
    ("time/updates_per_sec", "upd/s"),
    ("time/data_wait", "wait"),
];

/// A bar on a terminal; elsewhere a plain line every fifteen seconds.
pub struct ProgressBar {
    bar: indicatif::ProgressBar,
    plain: bool,
    latest: Metrics,
    started: Instant,
    first_update: u64,
    total: u64,
    last_line: Option<Instant>,
}

impl Default for ProgressBar {
    fn default() -> Self {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(4)
        };
        let bar = indicatif::ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template(
            "{prefix} {bar:24} {pos}/{len} {elapsed_precise} < {eta_precise}\n{wide_msg}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bar,
            plain,
            latest: Metrics::new(),
            started: Instant::now(),
            first_update: 0,
            total: 0,
            last_line: None,
        }
    }
}

impl ProgressBar {
    fn message(&self) -> String {
        let interval = || {
            let at = |key| self.latest.get(key);
            Some(format!(" ({:.2} to {:.2})", at("eval/success_low")?, at("eval/success_high")?))
        };
        let shown = SHOWN.iter().filter_map(|(key, short)| {
            let known = if *key == "eval/success_rate" { interval() } else { None };
            let known = known.unwrap_or_default();
            self.latest.get(key).map(|v| format!("{short} {}{known}", number(*v)))
        });
        shown.collect::<Vec<_>>().join("  ")
    }

    fn line(&mut self, update: u64) {
        self.last_line = Some(Instant::now());
        let done = update.saturating_sub(self.first_update);
        let left = if done == 0 {
            "?".to_owned()
        } else {
            let secs = self.started.elapsed().as_secs_f64() / done as f64
                * self.total.saturating_sub(update) as f64;
            format!("{secs:.0} s")
        };
        tracing::info!("{update}/{}  {}  left {left}", self.total, self.message());
    }

    fn say(&self, text: &str) {
        if self.plain {
            tracing::info!("{text}");
        } else {
            self.bar.println(text);
        }
    }
}

/// Four significant digits, short for small numbers.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        format!("{value:.2e}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.4}")
    }
}

impl TrainObserver for ProgressBar {
    fn name(&self) -> &'static str {
        "progress bar"
    }

    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
        let update = event.update();
        if let Some(metrics) = event.metrics() {
            self.latest.extend(metrics.iter().map(|(k, v)| (*k, *v)));
            // A verdict on an earlier policy may come late.
            self.bar.set_position(update.max(self.bar.position()));
            self.bar.set_message(self.message());
        }
        match event {
            TrainEvent::Started { total, name, .. } => {
                self.total = *total;
                self.first_update = update;
                self.started = Instant::now();
                self.bar.set_length(*total);
                self.bar.set_prefix((*name).to_owned());
                self.bar.set_position(update);
                self.bar.reset_eta();
            }
            TrainEvent::Dropped { tensor, .. } => {
                self.say(&format!("update {update} dropped: {tensor} is not finite"));
            }
            TrainEvent::Evaluated { .. } if self.plain => self.line(self.bar.position()),
            TrainEvent::Updated { .. }
                if self.plain && self.last_line.is_none_or(|t| t.elapsed() >= LINE_EVERY) =>
            {
                self.line(update);
            }
            TrainEvent::Finished { why, .. } => {
                if self.plain {
                    self.line(update);
                }
                self.bar.abandon();
                self.say(&format!("finished after {update} updates: {why}"));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_it_was_told_last() {
        let mut bar = ProgressBar::default();
        bar.on_event(&TrainEvent::Started { update: 0, total: 10, name: "x" }).unwrap();
        let metrics = Metrics::from([("train/loss", 0.5), ("train/lr", 1e-4)]);
        bar.on_event(&TrainEvent::Updated { update: 1, metrics: &metrics }).unwrap();
        let metrics = Metrics::from([("eval/success_rate", 0.25)]);
        bar.on_event(&TrainEvent::Evaluated { update: 2, metrics: &metrics }).unwrap();
        assert_eq!(bar.message(), "loss 0.5000  lr 1.00e-4  success 0.2500");
        assert_eq!((number(0.0), number(1234.5)), ("0.0000".to_owned(), "1234".to_owned()));
    }
}
