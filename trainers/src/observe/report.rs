//! `report.html`: the run's curves and its newest predictions in one file that needs nothing else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use super::jsonl::METRICS_FILE;
use super::plot;
use crate::observer::{Example, TrainEvent, TrainObserver};
use crate::outcome::{Outcome, Success};
use crate::run::VIDEOS_DIR;

/// The most points that a curve is drawn with.
const MAX_POINTS: usize = 400;
/// The most films that are shown.
const MAX_FILMS: usize = 8;
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 160.0;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #222; --soft: #777; --grid: #ddd; --line: #2b6cb0; --red: #d64541; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --soft: #999; --grid: #444; --line: #63b3ed; } }
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
section { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; width: 27rem; max-width: 100%; } figure.small { width: 12rem; }
figcaption { color: var(--soft); } figcaption b { color: var(--ink); font-weight: 600; }
svg, video, img { width: 100%; } polyline { fill: none; stroke: var(--line); stroke-width: 1.5; }
line { stroke: var(--grid); } text { fill: var(--soft); font-size: 10px; }
.demonstrated { stroke: var(--soft); } .predicted { stroke: var(--red); } circle { stroke: none !important; }
td, th { text-align: left; padding: 0.1rem 1rem 0.1rem 0; }
circle.demonstrated { fill: var(--soft); } circle.predicted { fill: var(--red); }
";

/// Writes the report after every validation and evaluation, and at the end.
pub struct Report {
    root: PathBuf,
    name: String,
    total: u64,
    curves: BTreeMap<String, Vec<(u64, f64)>>,
    examples: Vec<Example>,
    examples_of: u64,
    outcome: Option<Outcome>,
    status: String,
}

impl Report {
    /// In the folder `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            name: String::new(),
            total: 0,
            curves: BTreeMap::new(),
            examples: Vec::new(),
            examples_of: 0,
            outcome: None,
            status: String::new(),
        }
    }

    /// A resumed run draws its whole history.
    fn recall(&mut self, until: u64) {
        self.curves.clear();
        let Ok(file) = File::open(self.root.join(METRICS_FILE)) else { return };
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            let Ok(serde_json::Value::Object(line)) = serde_json::from_str(&line) else { continue };
            let Some(update) = line.get("update").and_then(serde_json::Value::as_u64) else {
                continue;
            };
            if update > until {
                continue;
            }
            for (name, value) in line.iter().filter(|(name, _)| name.contains('/')) {
                if let Some(value) = value.as_f64() {
                    self.curves.entry(name.clone()).or_default().push((update, value));
                }
            }
        }
    }

    fn html(&self) -> String {
        let name = escape(&self.name);
        let mut out = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title>\
             <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\
             <body><h1>{name}</h1><p>{}</p>",
            escape(&self.status)
        );
        for (title, prefix) in [
            ("Acting", "eval/"),
            ("Rollouts", "rollout/"),
            ("Learning", "train/"),
            ("Validation", "val/"),
            ("Time", "time/"),
        ] {
            let figures: String = self
                .curves
                .iter()
                .filter(|(name, _)| name.starts_with(prefix))
                .map(|(name, points)| figure(name, points))
                .collect();
            if !figures.is_empty() {
                // A `String` never refuses.
                let _ = write!(out, "<h2>{title}</h2><section>{figures}</section>");
            }
        }
        if let Some(outcome) = &self.outcome {
            out.push_str(&gained(outcome));
        }
        out.push_str(&films(&self.root));
        if !self.examples.is_empty() {
            let _ = write!(
                out,
                "<h2>Predictions after {} updates</h2><p>Grey: demonstrated. Red: predicted. Dots: where the chunk \
                 begins.</p><section>",
                self.examples_of
            );
            for example in &self.examples {
                let _ = write!(
                    out,
                    "<figure class=\"small\">{}<figcaption><b>{}</b><br>episode {}, step {}; {}</figcaption></figure>",
                    plot::svg(example),
                    escape(&example.instruction),
                    example.episode,
                    example.step,
                    escape(&example.names.iter().take(2).cloned().collect::<Vec<_>>().join(", ")),
                );
            }
            out.push_str("</section>");
        }
        out.push_str("</body></html>\n");
        out
    }

    fn write(&self) -> std::io::Result<()> {
        let path = self.root.join("report.html");
        let tmp = self.root.join(format!("report.html.tmp-{}", std::process::id()));
        std::fs::write(&tmp, self.html())?;
        std::fs::rename(tmp, path)
    }
}

/// The newest films, which lie beside the report.
fn films(root: &Path) -> String {
    let files = std::fs::read_dir(root.join(VIDEOS_DIR)).into_iter().flatten().flatten();
    let mut names: Vec<_> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    let mut newest = String::new();
    for name in &names[names.len().saturating_sub(MAX_FILMS)..] {
        let gif = Path::new(name).extension().is_some_and(|extension| extension == "gif");
        let (src, name) = (escape(&format!("{VIDEOS_DIR}/{name}")), escape(name));
        let film = if gif {
            format!("<img src=\"{src}\" alt=\"{name}\">")
        } else {
            format!("<video controls muted preload=\"metadata\" src=\"{src}\"></video>")
        };
        // A `String` never refuses.
        let _ = write!(
            newest,
            "<figure class=\"small\">{film}<figcaption>{name}</figcaption></figure>"
        );
    }
    if newest.is_empty() {
        return newest;
    }
    format!("<h2>Films of the newest evaluations</h2><section>{newest}</section>")
}

/// Before and after, all together and task by task.
fn gained(outcome: &Outcome) -> String {
    let rate = |s: &Success| {
        format!(
            "{}/{}, {:.1} % ({:.1} to {:.1})",
            s.successes,
            s.episodes,
            100.0 * s.rate,
            100.0 * s.interval[0],
            100.0 * s.interval[1]
        )
    };
    let row = |task: &str, before: &Success, after: &Success| {
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:+.1}</td></tr>",
            escape(task),
            rate(before),
            rate(after),
            100.0 * (after.rate - before.rate)
        )
    };
    let tasks: String = outcome.tasks.iter().map(|t| row(&t.task, &t.before, &t.after)).collect();
    format!(
        "<h2>Before and after, on common seeds</h2><table><tr><th>task</th><th>before</th><th>after</th><th>points</th></tr>\
         {}{tasks}</table><p>{}</p>",
        row("all", &outcome.before, &outcome.after),
        escape(&outcome.line())
    )
}

/// A curve with its last and its extreme values.
fn figure(name: &str, points: &[(u64, f64)]) -> String {
    let finite: Vec<_> = points.iter().copied().filter(|(_, v)| v.is_finite()).collect();
    let (Some(&(first, _)), Some(&(end, last))) = (finite.first(), finite.last()) else {
        return String::new();
    };
    let low = finite.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = finite.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let (left, bottom) = (4.0, HEIGHT - 14.0);
    let span_x = (end - first).max(1) as f64;
    let span_y = if high > low { high - low } else { 1.0 };
    let line: Vec<String> = thin(&finite)
        .iter()
        .map(|(u, v)| {
            let x = left + (u - first) as f64 / span_x * (WIDTH - 2.0 * left);
            let y = bottom - (v - low) / span_y * (bottom - 14.0);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    format!(
        "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <line x1=\"0\" y1=\"{bottom}\" x2=\"{WIDTH}\" y2=\"{bottom}\"/><line x1=\"0\" y1=\"14\" x2=\"{WIDTH}\" y2=\"14\"/>\
         <text x=\"{WIDTH}\" y=\"10\" text-anchor=\"end\">{}</text><text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <text x=\"0\" y=\"{HEIGHT}\">{first}</text><text x=\"{WIDTH}\" y=\"{HEIGHT}\" text-anchor=\"end\">{end}</text>\
         <polyline points=\"{}\"/></svg><figcaption><b>{}</b> last {}</figcaption></figure>",
        number(high),
        bottom - 3.0,
        number(low),
        line.join(" "),
        escape(name),
        number(last),
    )
}

/// At most [`MAX_POINTS`]: the means of equal runs of points, the last point kept.
fn thin(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let run = points.len().div_ceil(MAX_POINTS).max(1);
    if run == 1 {
        return points.to_vec();
    }
    let mean = |part: &[(u64, f64)]| {
        (part[part.len() / 2].0, part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64)
    };
    points.chunks(run).map(mean).chain(points.last().copied()).collect()
}

fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        format!("{value:.2e}")
    } else {
        format!("{value:.4}")
    }
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl TrainObserver for Report {
    fn name(&self) -> &'static str {
        "report.html"
    }

    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
        let update = event.update();
        for (name, value) in event.metrics().into_iter().flatten() {
            self.curves.entry((*name).to_owned()).or_default().push((update, *value));
        }
        match event {
            TrainEvent::Started { total, name, .. } => {
                (self.total, self.name) = (*total, (*name).to_owned());
                if update > 0 {
                    self.recall(update);
                }
                return Ok(());
            }
            TrainEvent::Validated { examples, .. } => {
                self.examples = examples.to_vec();
                self.examples_of = update;
            }
            TrainEvent::Evaluated { .. } => {}
            TrainEvent::Compared { outcome, .. } => self.outcome = Some((*outcome).clone()),
            TrainEvent::Finished { why, .. } => {
                self.status = format!("Finished after {update} of {} updates: {why}.", self.total);
                return self.write().map_err(|e| e.to_string());
            }
            _ => return Ok(()),
        }
        self.status = format!("{update} of {} updates.", self.total);
        self.write().map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_algos::bc::Metrics;

    #[test]
    fn one_file_with_curves_examples_and_nothing_from_outside() {
        let root = tempfile::tempdir().unwrap();
        let mut report = Report::new(root.path());
        report.on_event(&TrainEvent::Started { update: 0, total: 9, name: "a <run>" }).unwrap();
        for update in 1..=3000 {
            let metrics = Metrics::from([("train/loss", 1.0 / update as f64)]);
            report.on_event(&TrainEvent::Updated { update, metrics: &metrics }).unwrap();
        }
        let metrics = Metrics::from([("val/loss", 0.5), ("val/broken", f64::NAN)]);
        let example = Example {
            instruction: "push <b>it</b>".to_owned(),
            episode: 1,
            step: 2,
            names: vec!["x".to_owned(), "y".to_owned()],
            predicted: vec![vec![0.0, 1.0]; 3],
            demonstrated: vec![vec![0.0, 2.0]; 3],
            valid: 3,
        };
        let event = TrainEvent::Validated { update: 3000, metrics: &metrics, examples: &[example] };
        report.on_event(&event).unwrap();
        let html = std::fs::read_to_string(root.path().join("report.html")).unwrap();
        assert!(html.contains("a &lt;run&gt;") && html.contains("push &lt;b&gt;it&lt;/b&gt;"));
        assert!(html.contains("train/loss") && html.contains("class=\"predicted\""));
        assert!(!html.contains("http") && !html.contains("NaN") && html.len() < 40_000);
    }

    #[test]
    fn a_resumed_run_recalls_its_curves() {
        let root = tempfile::tempdir().unwrap();
        let lines = "{\"update\":1,\"train/loss\":2.5}\n{\"update\":2,\"train/loss\":1.5}\nbroken";
        std::fs::write(root.path().join(METRICS_FILE), lines).unwrap();
        let mut report = Report::new(root.path());
        report.on_event(&TrainEvent::Started { update: 1, total: 9, name: "x" }).unwrap();
        assert_eq!(report.curves["train/loss"], [(1, 2.5)]);
    }

    #[test]
    fn thinning_keeps_means_and_the_end() {
        let points: Vec<(u64, f64)> = (0..1000).map(|u| (u, u as f64)).collect();
        let thin = thin(&points);
        assert!(thin.len() <= MAX_POINTS + 1);
        assert_eq!((thin[0].1, thin.last().copied()), (1.0, Some((999, 999.0))));
    }
}
