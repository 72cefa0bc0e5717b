//! The live view in a terminal: the camera in half-blocks, facts beside it, the stop key under it.

use std::fmt::Write as _;

use simloop_envs::Frame;

use super::station::{Screen, key_name};

/// Columns of the camera; each shows two pixels above each other, so a 4:3 frame has 24 rows.
const COLUMNS: usize = 64;
/// Columns of the facts.
const SIDE: usize = 34;
const RESET: &str = "\x1b[0m";

/// `frame` (`[H, W, 3]` RGB) in half-blocks of 24-bit colour, one string per row. Pixels are averaged over areas.
pub fn half_blocks(frame: &Frame, columns: usize) -> Vec<String> {
    let (height, width, _) = frame.dim();
    if height == 0 || width == 0 {
        return Vec::new();
    }
    let rows = (columns * height).div_ceil(2 * width).max(1);
    let average = |row: usize, column: usize| -> [u32; 3] {
        let y0 = row * height / (2 * rows);
        let y1 = ((row + 1) * height / (2 * rows)).max(y0 + 1).min(height);
        let x0 = column * width / columns;
        let x1 = ((column + 1) * width / columns).max(x0 + 1).min(width);
        let mut sums = [0_u32; 3];
        for y in y0..y1 {
            for x in x0..x1 {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum += u32::from(frame[[y, x, c]]);
                }
            }
        }
        let n = ((y1 - y0) * (x1 - x0)) as u32;
        sums.map(|sum| sum / n.max(1))
    };
    (0..rows)
        .map(|row| {
            let mut line = String::new();
            for column in 0..columns {
                let [r, g, b] = average(2 * row, column);
                let [lr, lg, lb] = average(2 * row + 1, column);
                // Writing to a String cannot fail.
                let _ = write!(line, "\x1b[38;2;{r};{g};{b}m\x1b[48;2;{lr};{lg};{lb}m\u{2580}");
            }
            line.push_str(RESET);
            line
        })
        .collect()
}

/// The whole screen, from the top left corner on.
pub fn draw(screen: &Screen, frame: Option<&Frame>) -> String {
    let mut left = frame.map_or_else(Vec::new, |frame| half_blocks(frame, COLUMNS));
    if left.is_empty() {
        left = vec![format!("{:COLUMNS$}", "  no picture yet"); 1];
    }
    let right = side(screen);
    let mut out = String::from("\x1b[H\x1b[2J");
    let task = clip(&screen.task, COLUMNS + SIDE - screen.heading.chars().count().min(40) - 4);
    let _ = writeln!(out, "\x1b[1m{}\x1b[0m  \u{201c}{task}\u{201d}", screen.heading);
    for i in 0..left.len().max(right.len()) {
        let blank = " ".repeat(COLUMNS);
        let picture = left.get(i).unwrap_or(&blank);
        let _ = writeln!(out, "{picture}  {}{RESET}", right.get(i).map_or("", String::as_str));
    }
    let wide = COLUMNS + SIDE;
    let _ = writeln!(out, "{}", banner(screen, wide));
    if !screen.prompt.is_empty() {
        for line in wrap(&screen.prompt, wide) {
            let _ = writeln!(out, "\x1b[1;33m{line}{RESET}");
        }
    }
    let mut keys = String::new();
    for (key, does) in &screen.keys {
        let _ = write!(keys, "\x1b[7m {} {RESET} {does}   ", key_name(*key));
    }
    if !screen.keys.is_empty() {
        let _ = write!(keys, "\x1b[7m q {RESET} quit");
    }
    let _ = write!(out, "{keys}");
    out
}

fn side(screen: &Screen) -> Vec<String> {
    let state = match (screen.stopped, screen.live) {
        (true, _) => "\x1b[1;97;41m STOPPED ",
        (false, true) => "\x1b[1;30;42m THE ARM MOVES ",
        (false, false) => "\x1b[1;30;47m at rest ",
    };
    let mut lines = vec![format!("{state}{RESET}"), String::new()];
    for (name, value) in &screen.facts {
        lines.push(format!("\x1b[2m{name:>9}{RESET}  {}", clip(value, SIDE - 11)));
    }
    if !screen.gate.is_empty() {
        lines.push(String::new());
        lines.push("\x1b[2msafety gate\x1b[0m".to_owned());
        lines.extend(wrap(&screen.gate, SIDE).into_iter().take(7));
    }
    lines
}

/// The stop key, in red over the whole width.
fn banner(screen: &Screen, wide: usize) -> String {
    let text = if screen.stopped {
        "EMERGENCY STOP IS PRESSED: nothing is sent"
    } else {
        "SPACE or ESC = EMERGENCY STOP"
    };
    format!("\x1b[1;97;41m{text:^wide$}{RESET}")
}

fn clip(text: &str, width: usize) -> String {
    // What a server or a file says must not steer the terminal.
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    if text.chars().count() <= width {
        return clean.collect();
    }
    clean.take(width.saturating_sub(1)).chain(['\u{2026}']).collect()
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word = clip(word, width);
        let last = lines.len() - 1;
        let used = lines[last].chars().count();
        if used > 0 && used + 1 + word.chars().count() > width {
            lines.push(word);
        } else {
            if used > 0 {
                lines[last].push(' ');
            }
            lines[last].push_str(&word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn half_blocks_show_upper_and_lower_pixels() {
        let frame = Array3::from_shape_fn((2, 1, 3), |(y, _, c)| (10 * y + c) as u8).into_shared();
        let rows = half_blocks(&frame, 1);
        assert_eq!(rows, ["\x1b[38;2;0;1;2m\x1b[48;2;10;11;12m\u{2580}\x1b[0m"]);
        let camera = Array3::<u8>::zeros((480, 640, 3)).into_shared();
        assert_eq!(half_blocks(&camera, COLUMNS).len(), 24);
    }

    #[test]
    fn the_stop_key_stands_on_every_screen_and_foreign_text_cannot_steer_the_terminal() {
        let screen = Screen { task: "evil \x1b[2J\u{7}".to_owned(), ..Screen::default() };
        let text = draw(&screen, None);
        assert!(text.contains("SPACE or ESC = EMERGENCY STOP"), "{text}");
        assert_eq!(text.matches("\x1b[2J").count(), 1, "only our own");
        let stopped = draw(&Screen { stopped: true, ..Screen::default() }, None);
        assert!(stopped.contains("EMERGENCY STOP IS PRESSED"), "{stopped}");
        let wide = Screen { task: "t".repeat(500), gate: "g".repeat(500), ..Screen::default() };
        for line in draw(&wide, None).lines() {
            let mut visible = 0;
            let mut escape = false;
            for c in line.chars() {
                match (escape, c) {
                    (false, '\x1b') => escape = true,
                    (true, c) if c.is_ascii_alphabetic() => escape = false,
                    (true, _) => {}
                    (false, _) => visible += 1,
                }
            }
            assert!(visible <= COLUMNS + SIDE + 2, "{visible}: {line}");
        }
    }
}
