//! Numbers as people read them.

use crate::summary::{Headline, Interval};

/// `0.97` as `97.0`.
fn percent_digits(fraction: f64) -> String {
    format!("{:.1}", fraction * 100.0)
}

/// `0.97` as `97.0 %` (with a no-break space).
pub(super) fn percent(fraction: f64) -> String {
    format!("{}\u{a0}%", percent_digits(fraction))
}

/// `91.5–99.0 %`.
pub(super) fn interval(interval: Interval) -> String {
    format!("{}\u{2013}{}\u{a0}%", percent_digits(interval.low), percent_digits(interval.high))
}

/// A count with its noun: `1 episode`, `12,345 episodes`.
pub(super) fn count(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(n))
}

/// `12345` as `12,345`.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three significant digits or the whole part, whichever is longer: `0.0123`, `4.57`, `12,345`.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "\u{2013}".to_owned();
    }
    let magnitude = value.abs();
    if magnitude >= 1000.0 {
        let sign = if value < 0.0 { "\u{2212}" } else { "" };
        return format!("{sign}{}", thousands(magnitude.round() as u64));
    }
    let decimals = match magnitude {
        0.0 => 0,
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        m if m >= 1.0 => 2,
        m if m >= 0.1 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.replace('-', "\u{2212}")
}

/// `95.2` seconds as `1 min 35 s`.
pub(super) fn duration(secs: f64) -> String {
    if !secs.is_finite() || secs < 0.0 {
        return "\u{2013}".to_owned();
    }
    if secs < 0.001 {
        return format!("{:.0}\u{a0}\u{b5}s", secs * 1e6);
    }
    if secs < 1.0 {
        return format!("{}\u{a0}ms", number(secs * 1e3));
    }
    if secs < 60.0 {
        return format!("{secs:.1}\u{a0}s");
    }
    let whole = secs.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours}\u{a0}h {minutes}\u{a0}min")
    } else {
        format!("{minutes}\u{a0}min {seconds}\u{a0}s")
    }
}

/// The headline as a sentence without its interval: `97 of 100 episodes succeeded: 97.0 %`.
pub(super) fn headline(headline: &Headline) -> String {
    match headline.rate {
        Some(rate) => format!(
            "{} of {} succeeded: {}",
            thousands(headline.successes),
            count(headline.completed, "episode"),
            percent(rate)
        ),
        None => "No episode was completed".to_owned(),
    }
}

/// `95 % interval 91.5–99.0 %`.
pub(super) fn headline_interval(headline: &Headline) -> Option<String> {
    headline.wilson95.map(|ci| format!("95\u{a0}% interval {}", interval(ci)))
}

/// What the errors mean for the rate, or nothing where there was none.
pub(super) fn errors(headline: &Headline) -> Option<String> {
    if headline.errors == 0 {
        return None;
    }
    let all = headline.completed + headline.errors;
    let text = format!(
        "{} of {} ended in an error of the simulator or the worker at every attempt. They count neither way.",
        thousands(headline.errors),
        count(all, "episode")
    );
    let Some(bounds) = headline.error_bounds else {
        return Some(text);
    };
    let (low, high) = (percent(bounds.low), percent(bounds.high));
    Some(format!(
        "{text} Had all of them failed, the rate would be {low}; had all succeeded, {high}."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_and_no_useless_zeros() {
        let cases =
            [(0.0, "0"), (0.5, "0.5"), (0.01234, "0.0123"), (4.5678, "4.57"), (45.678, "45.7")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(100.0), "100");
        assert_eq!(number(456.78), "457");
        assert_eq!(number(12_345.6), "12,346");
        assert_eq!(number(-12_345.6), "\u{2212}12,346");
        assert_eq!(number(-0.5), "\u{2212}0.5");
        assert_eq!(number(f64::NAN), "\u{2013}");
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        assert_eq!(duration(12e-6), "12\u{a0}\u{b5}s");
        assert_eq!(duration(0.0124), "12.4\u{a0}ms");
        assert_eq!(duration(59.94), "59.9\u{a0}s");
        assert_eq!(duration(95.2), "1\u{a0}min 35\u{a0}s");
        assert_eq!(duration(7384.0), "2\u{a0}h 3\u{a0}min");
    }

    #[test]
    fn counts_agree_with_their_noun() {
        assert_eq!(count(1, "episode"), "1 episode");
        assert_eq!(count(0, "episode"), "0 episodes");
        assert_eq!(count(1_234_567, "step"), "1,234,567 steps");
    }
}
