//! What all plots share.
//!
//! Plots are responsive without scripts and without scaling their text: an SVG has a height in pixels and a width of
//! 100 %, x coordinates are percentages, y coordinates pixels. Only curves live in a nested `viewBox`, stretched, with
//! strokes that keep their width. Colours come from the page's style by class, so they follow light and dark.

use std::fmt::Write as _;

/// `text` with the five characters replaced that mean something in HTML, and control characters dropped.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => out.push(c),
        }
    }
    out
}

/// A plot under construction.
pub(super) struct Svg {
    body: String,
}

impl Svg {
    /// Opens a plot of `height_px`, described by `title` (plain text) for those who cannot see it.
    pub(super) fn new(class: &str, height_px: f64, title: &str) -> Self {
        let mut body = String::new();
        let title = escape(title);
        write_to(
            &mut body,
            format_args!(
                "<svg class=\"{class}\" width=\"100%\" height=\"{}\" role=\"img\" aria-label=\"{title}\">",
                short(height_px)
            ),
        );
        Self { body }
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        write_to(
            &mut self.body,
            format_args!(
                "<line class=\"{class}\" x1=\"{}%\" y1=\"{}\" x2=\"{}%\" y2=\"{}\"/>",
                short(x1),
                short(y1),
                short(x2),
                short(y2)
            ),
        );
    }

    /// A rectangle from `x1` to `x2` percent with a tooltip (plain text).
    pub(super) fn bar(
        &mut self,
        class: &str,
        (x1, x2): (f64, f64),
        (y1, y2): (f64, f64),
        tip: &str,
    ) {
        write_to(
            &mut self.body,
            format_args!(
                "<rect class=\"{class}\" x=\"{}%\" y=\"{}\" width=\"{}%\" height=\"{}\"><title>{}</title></rect>",
                short(x1),
                short(y1),
                short(x2 - x1),
                short(y2 - y1),
                escape(tip)
            ),
        );
    }

    /// A round mark.
    pub(super) fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        write_to(
            &mut self.body,
            format_args!(
                "<circle class=\"{class}\" cx=\"{}%\" cy=\"{}\" r=\"{}\"/>",
                short(x),
                short(y),
                short(radius)
            ),
        );
    }

    /// Text (plain), `anchor` one of `start`, `middle`, `end`.
    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
        write_to(
            &mut self.body,
            format_args!(
                "<text class=\"{class}\" x=\"{}%\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
                short(x),
                short(y),
                escape(text)
            ),
        );
    }

    /// Finished markup.
    pub(super) fn raw(&mut self, markup: &str) {
        self.body.push_str(markup);
    }

    /// Closes the plot.
    pub(super) fn finish(mut self) -> String {
        self.body.push_str("</svg>");
        self.body
    }
}

/// At most two decimals, none where none are needed: a coordinate costs few bytes.
pub(super) fn short(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Appends formatted text; a `String` never refuses.
pub(super) fn write_to(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a string cannot fail");
}

/// About `count` round numbers that span `[low, high]`, ends included where they are round themselves.
pub(super) fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) || count == 0 {
        return vec![low];
    }
    let raw = span / count as f64;
    let magnitude = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * magnitude)
        .find(|step| *step >= raw * 0.999)
        .unwrap_or(10.0 * magnitude);
    let first = (low / step - 1e-9).ceil();
    let last = (high / step + 1e-9).floor();
    (0..=(last - first).max(0.0) as usize).map(|i| (first + i as f64) * step).collect()
}

/// `bytes` in base 64 (RFC 4648, section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for i in 0..4 {
            if i <= group.len() {
                out.push(char::from(ALPHABET[(word >> (18 - 6 * i)) as usize & 63]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_gives_the_test_vectors_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0, 4), vec![0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(ticks(0.0, 300.0, 4), vec![0.0, 100.0, 200.0, 300.0]);
        assert_eq!(ticks(5.0, 5.0, 4), vec![5.0]);
        for tick in ticks(-3.7, 12.2, 5) {
            assert!((-3.7..=12.2).contains(&tick));
        }
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<b a=\"'\">&\u{7}\u{1b}[0m"), "&lt;b a=&quot;&#39;&quot;&gt;&amp;[0m");
    }
}
