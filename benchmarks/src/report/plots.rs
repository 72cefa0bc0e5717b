//! The plots: numbers in, inline SVG out, nothing else read or written.

use simloop_trainers::Status;

use super::svg::{Svg, escape, short, ticks, write_to};
use super::words;
use crate::summary::{Interval, RunningPoint};

/// Where a fraction lies, in percent of the width: dots at 0 and 1 stay whole.
fn across(fraction: f64) -> f64 {
    2.0 + 96.0 * fraction.clamp(0.0, 1.0)
}

/// One row of a dot-and-whisker plot: the rate as a dot, its interval as a bar, on an axis from 0 to 100 %.
///
/// With `axis` the ticks are labelled below. Without a rate only the axis is drawn.
pub fn whisker(rate: Option<f64>, interval: Option<Interval>, axis: bool) -> String {
    let title = match (rate, interval) {
        (Some(rate), Some(ci)) => {
            format!("{} with 95 % interval {}", words::percent(rate), words::interval(ci))
        }
        (Some(rate), None) => words::percent(rate),
        (None, _) => "no completed episode".to_owned(),
    };
    let middle = 12.0;
    let mut svg = Svg::new("plot whisker", if axis { 44.0 } else { 24.0 }, &title);
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        svg.line("grid", (across(tick), 3.0), (across(tick), 21.0));
    }
    svg.line("base", (across(0.0), middle), (across(1.0), middle));
    if let Some(ci) = interval {
        svg.line("ci", (across(ci.low), middle), (across(ci.high), middle));
        for end in [ci.low, ci.high] {
            svg.line("cap", (across(end), middle - 5.0), (across(end), middle + 5.0));
        }
    }
    if let Some(rate) = rate {
        svg.dot("dot", (across(rate), middle), 5.0);
    }
    if axis {
        for (tick, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
            let x = match anchor {
                "start" => 0.0,
                "end" => 100.0,
                _ => across(tick),
            };
            svg.text("tick", (x, 38.0), anchor, &format!("{:.0}\u{a0}%", tick * 100.0));
        }
    }
    svg.finish()
}

/// One episode in an [`outcome_strip`].
#[derive(Clone, Debug)]
pub struct OutcomeCell {
    /// How it counts; decides colour and shape.
    pub status: Status,
    /// Plain text for the tooltip.
    pub tip: String,
    /// A link, ready for an attribute.
    pub href: Option<String>,
}

/// Side of a cell and its distance to the next, pixels.
const CELL_PX: usize = 10;
const PITCH_PX: usize = 13;

/// One small square per episode in reading order, `columns` a row: filled for success, crossed for failure, hollow for
/// an error, so that shape tells what colour tells. Cells with a link lead to their video.
pub fn outcome_strip(cells: &[OutcomeCell], columns: usize, title: &str) -> String {
    let columns = columns.max(1);
    let rows = cells.len().div_ceil(columns).max(1);
    let (width, height) = (columns * PITCH_PX, rows * PITCH_PX);
    let mut out = String::new();
    write_to(
        &mut out,
        format_args!(
            "<svg class=\"plot strip\" width=\"{width}\" height=\"{height}\" role=\"group\" aria-label=\"{}\">",
            escape(title)
        ),
    );
    // All plain squares of a kind are one path: thousands of episodes stay small.
    let mut paths = [String::new(), String::new(), String::new()];
    for (i, cell) in cells.iter().enumerate() {
        let (x, y) = (i % columns * PITCH_PX + 1, i / columns * PITCH_PX + 1);
        let kind = match cell.status {
            Status::Success => 0,
            Status::Failure => 1,
            Status::Error => 2,
        };
        let square = format!("M{x} {y}h{CELL_PX}v{CELL_PX}h-{CELL_PX}z");
        let cross = format!("M{} {}l6 6m0-6l-6 6", x + 2, y + 2);
        if cell.status == Status::Success && cell.href.is_none() {
            paths[kind].push_str(&square);
            continue;
        }
        let class = ["success", "failure", "error"][kind];
        let (open, close) = match &cell.href {
            Some(href) => (format!("<a href=\"{href}\">"), "</a>"),
            None => (String::new(), ""),
        };
        write_to(
            &mut out,
            format_args!(
                "{open}<g class=\"{class}\"><title>{}</title><path d=\"{square}\"/>",
                escape(&cell.tip)
            ),
        );
        if cell.status == Status::Failure {
            write_to(&mut out, format_args!("<path class=\"cross\" d=\"{cross}\"/>"));
        }
        out.push_str("</g>");
        out.push_str(close);
    }
    for (path, class) in paths.iter().zip(["success", "failure", "error"]) {
        if !path.is_empty() {
            write_to(&mut out, format_args!("<g class=\"{class}\"><path d=\"{path}\"/></g>"));
        }
    }
    out.push_str("</svg>");
    out
}

/// What a [`histogram`] shows: successes upwards, failures downwards, on one count scale.
#[derive(Clone, Debug)]
pub struct Histogram<'a> {
    /// Values of successful episodes.
    pub successes: &'a [f64],
    /// Values of failed episodes.
    pub failures: &'a [f64],
    /// The axis; values outside are counted in the outermost bins.
    pub range: (f64, f64),
    /// How many bins.
    pub bins: usize,
    /// What the values are, for the axis and the tooltips.
    pub label: &'a str,
}

/// A mirrored histogram.
pub fn histogram(spec: &Histogram<'_>) -> String {
    const BODY_PX: f64 = 132.0;
    const TOP_PX: f64 = 20.0;
    let (low, high) = spec.range;
    let span = if high > low { high - low } else { 1.0 };
    let bins = spec.bins.max(1);
    let counted = |values: &[f64]| {
        let mut counts = vec![0_u64; bins];
        for value in values.iter().filter(|value| value.is_finite()) {
            let bin = ((value - low) / span * bins as f64).floor();
            counts[bin.clamp(0.0, bins as f64 - 1.0) as usize] += 1;
        }
        counts
    };
    let (up, down) = (counted(spec.successes), counted(spec.failures));
    let most = |counts: &[u64]| counts.iter().copied().max().unwrap_or(0);
    let (most_up, most_down) = (most(&up), most(&down));
    let scale = BODY_PX / (most_up + most_down).max(1) as f64;
    let axis = TOP_PX + most_up as f64 * scale;
    let bottom = TOP_PX + BODY_PX;
    let has_failures = !spec.failures.is_empty();
    let ticks_at = if has_failures { bottom + 22.0 } else { bottom };
    let title = format!(
        "{}: {} of successes, {} of failures",
        spec.label,
        words::count(spec.successes.len() as u64, "value"),
        words::count(spec.failures.len() as u64, "value")
    );
    let mut svg = Svg::new("plot histogram", ticks_at + 38.0, &title);
    for (counts, class, word) in [(&up, "success", "success"), (&down, "failure", "failure")] {
        for (bin, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let edge = |bin: usize| low + span * bin as f64 / bins as f64;
            let x = |bin: usize| across(bin as f64 / bins as f64);
            let tall = (n as f64 * scale).max(2.0);
            let y = if class == "success" { (axis - tall, axis) } else { (axis, axis + tall) };
            let ending = if n == 1 {
                ""
            } else if word == "success" {
                "es"
            } else {
                "s"
            };
            let tip = format!(
                "{n} {word}{ending}: {} from {} to {}",
                spec.label,
                words::number(edge(bin)),
                words::number(edge(bin + 1))
            );
            svg.bar(class, (x(bin) + 0.2, x(bin + 1) - 0.2), y, &tip);
        }
    }
    svg.line("base", (across(0.0), axis), (across(1.0), axis));
    let n_of = |n: usize, most: u64| {
        format!("{}, at most {} a bar", words::thousands(n as u64), words::thousands(most))
    };
    svg.text(
        "series success",
        (across(0.0), 13.0),
        "start",
        &format!("Successes: {}", n_of(spec.successes.len(), most_up)),
    );
    if has_failures {
        let text = format!("Failures: {}", n_of(spec.failures.len(), most_down));
        svg.text("series failure", (across(0.0), bottom + 17.0), "start", &text);
    }
    for tick in ticks(low, high, 4) {
        let at = (tick - low) / span;
        let anchor = if at < 0.05 {
            "start"
        } else if at > 0.95 {
            "end"
        } else {
            "middle"
        };
        svg.line("cap", (across(at), ticks_at + 3.0), (across(at), ticks_at + 8.0));
        svg.text("tick", (across(at), ticks_at + 22.0), anchor, &words::number(tick));
    }
    svg.line("axis", (across(0.0), ticks_at + 3.0), (across(1.0), ticks_at + 3.0));
    svg.text("tick", (across(0.5), ticks_at + 36.0), "middle", spec.label);
    svg.finish()
}

/// The success rate over completed episodes, with its confidence sequence as a band. Empty without points.
///
/// The first tenth of the episodes does not decide the height of the axis: there the band is nearly everything.
pub fn running_rate(points: &[RunningPoint]) -> String {
    const BODY_PX: f64 = 168.0;
    const TOP_PX: f64 = 8.0;
    const MOST_POINTS: usize = 400;
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return String::new();
    };
    let settled = &points[(points.len() / 10).min(points.len() - 1)..];
    let lowest = settled.iter().map(|p| p.band.low.min(p.rate)).fold(1.0, f64::min);
    let highest = settled.iter().map(|p| p.band.high.max(p.rate)).fold(0.0, f64::max);
    let (low, high) = ((lowest * 10.0).floor() / 10.0, (highest * 10.0).ceil() / 10.0);
    let (low, high) =
        if high - low < 0.2 { ((high - 0.2).max(0.0), (low + 0.2).min(1.0)) } else { (low, high) };
    let x = |n: u64| {
        (n.saturating_sub(first.completed)) as f64
            / (last.completed - first.completed).max(1) as f64
    };
    let height = |rate: f64| (high - rate) / (high - low);

    let title = format!(
        "Success rate after each of {}; at the end {} with anytime-valid interval {}",
        words::count(last.completed, "completed episode"),
        words::percent(last.rate),
        words::interval(last.band)
    );
    let mut svg = Svg::new("plot running", TOP_PX + BODY_PX + 42.0, &title);
    for tick in ticks(low, high, 4) {
        let y = TOP_PX + BODY_PX * height(tick);
        svg.line("grid", (0.0, y), (100.0, y));
    }
    let stride = points.len().div_ceil(MOST_POINTS).max(1);
    let shown: Vec<&RunningPoint> = points
        .iter()
        .enumerate()
        .filter(|(i, _)| i.is_multiple_of(stride) || i + 1 == points.len())
        .map(|(_, point)| point)
        .collect();
    // Far outside is as good as infinitely far: the nested SVG clips.
    let place = |p: &RunningPoint, rate: f64| {
        format!(
            "{} {}",
            short(x(p.completed) * 1000.0),
            short((height(rate) * 1000.0).clamp(-9000.0, 9000.0))
        )
    };
    let curve: Vec<String> = shown.iter().map(|p| place(p, p.rate)).collect();
    let mut band: Vec<String> = shown.iter().map(|p| place(p, p.band.high)).collect();
    band.extend(shown.iter().rev().map(|p| place(p, p.band.low)));
    svg.raw(&format!(
        "<svg y=\"{TOP_PX}\" width=\"100%\" height=\"{BODY_PX}\" viewBox=\"0 0 1000 1000\" \
         preserveAspectRatio=\"none\" aria-hidden=\"true\"><path class=\"band\" d=\"M{}z\"/>\
         <path class=\"curve\" vector-effect=\"non-scaling-stroke\" d=\"M{}\"/></svg>",
        band.join("L"),
        curve.join("L")
    ));
    for tick in ticks(low, high, 4) {
        // A label sits on its line; the topmost one would be cut off there and hangs below it.
        let y = TOP_PX + BODY_PX * height(tick) + if height(tick) < 0.05 { 15.0 } else { -4.0 };
        svg.text("tick halo", (0.0, y), "start", &format!("{:.0}\u{a0}%", tick * 100.0));
    }
    let bottom = TOP_PX + BODY_PX;
    svg.line("axis", (0.0, bottom), (100.0, bottom));
    for tick in ticks(first.completed as f64, last.completed as f64, 4) {
        let at = x(tick as u64) * 100.0;
        let anchor = if at < 5.0 {
            "start"
        } else if at > 95.0 {
            "end"
        } else {
            "middle"
        };
        svg.line("cap", (at, bottom), (at, bottom + 5.0));
        svg.text("tick", (at, bottom + 20.0), anchor, &words::number(tick));
    }
    svg.text("tick", (50.0, bottom + 37.0), "middle", "completed episodes");
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(svg: &str, element: &str, name: &str) -> Vec<f64> {
        svg.split(element)
            .skip(1)
            .map(|rest| {
                let rest = rest.split_once(&format!(" {name}=\"")).unwrap().1;
                rest.split(['"', '%']).next().unwrap().parse().unwrap()
            })
            .collect()
    }

    #[test]
    fn a_whisker_puts_the_dot_between_its_caps_and_inside_the_picture() {
        let ci = Interval { low: 0.915, high: 0.99 };
        let svg = whisker(Some(0.97), Some(ci), true);
        assert_eq!(attribute(&svg, "<circle class=\"dot\"", "cx"), vec![95.12]);
        assert_eq!(attribute(&svg, "<line class=\"ci\"", "x1"), vec![89.84]);
        assert_eq!(attribute(&svg, "<line class=\"ci\"", "x2"), vec![97.04]);
        for rate in [0.0, 1.0] {
            let x = attribute(&whisker(Some(rate), None, false), "<circle", "cx")[0];
            assert!((2.0..=98.0).contains(&x));
        }
    }

    #[test]
    fn a_histogram_counts_every_finite_value_once() {
        let successes = [0.0, 9.99, 10.0, 250.0];
        let failures = [300.0, 301.0, f64::NAN];
        let spec = Histogram {
            successes: &successes,
            failures: &failures,
            range: (0.0, 300.0),
            bins: 30,
            label: "steps",
        };
        let svg = histogram(&spec);
        let tips: Vec<&str> =
            svg.split("<title>").skip(1).map(|t| t.split("</title>").next().unwrap()).collect();
        assert_eq!(
            tips,
            vec![
                "2 successes: steps from 0 to 10",
                "1 success: steps from 10 to 20",
                "1 success: steps from 250 to 260",
                "2 failures: steps from 290 to 300"
            ]
        );
        // One scale for both: the bar of two is twice as tall as the bar of one.
        let heights = attribute(&svg, "<rect", "height");
        assert_eq!(heights[0], 2.0 * heights[1]);
        assert_eq!(heights[0], heights[3]);
    }

    #[test]
    fn plots_of_nothing_are_still_plots() {
        let spec =
            Histogram { successes: &[], failures: &[], range: (0.0, 0.0), bins: 0, label: "steps" };
        assert!(histogram(&spec).ends_with("</svg>"));
        assert!(running_rate(&[]).is_empty());
        assert!(outcome_strip(&[], 0, "none").ends_with("</svg>"));
        assert!(whisker(None, None, false).contains("no completed episode"));
    }

    #[test]
    fn a_strip_shows_every_episode_once_and_escapes_tips() {
        let cell = |status, href: Option<&str>| OutcomeCell {
            status,
            tip: "<script>".to_owned(),
            href: href.map(str::to_owned),
        };
        let cells = [
            cell(Status::Success, None),
            cell(Status::Success, Some("videos/a.mp4")),
            cell(Status::Failure, Some("videos/b.mp4")),
            cell(Status::Error, None),
            cell(Status::Success, None),
        ];
        let svg = outcome_strip(&cells, 3, "five");
        assert_eq!(svg.matches("h10v10h-10z").count(), 5);
        assert_eq!(svg.matches("class=\"cross\"").count(), 1);
        assert_eq!(svg.matches("<a href").count(), 2);
        assert!(svg.contains("M14 14h10"), "the fifth cell is the second of the second row");
        assert!(!svg.contains("<script>"));
    }

    #[test]
    fn a_running_rate_ends_at_its_last_point() {
        let points: Vec<RunningPoint> = (1..=1000)
            .map(|n| RunningPoint {
                completed: n,
                rate: 0.5,
                band: Interval { low: 0.4, high: 0.6 },
            })
            .collect();
        let svg = running_rate(&points);
        let curve = svg.split("class=\"curve\"").nth(1).unwrap().split("d=\"M").nth(1).unwrap();
        let curve: Vec<&str> = curve.split('"').next().unwrap().split('L').collect();
        assert!(curve.len() <= 402);
        assert_eq!(*curve.first().unwrap(), "0 500");
        assert_eq!(*curve.last().unwrap(), "1000 500");
    }
}
