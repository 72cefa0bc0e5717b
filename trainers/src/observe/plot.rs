//! Predicted beside demonstrated trajectories: SVG for the report, PNG for TensorBoard.

use std::fmt::Write as _;
use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

use crate::observer::Example;

/// Side of a PNG, pixels.
const SIDE: u32 = 192;
const MARGIN: f64 = 12.0;
const DEMONSTRATED: [u8; 3] = [110, 110, 110];
const PREDICTED: [u8; 3] = [214, 69, 65];

/// A curve of one kind.
pub(super) type Line = Vec<(f64, f64)>;

/// The two curves of an example: in the plane of the first two numbers of an action where there are two or more, else
/// over time.
pub(super) fn curves(example: &Example) -> (Line, Line) {
    let plane = example.names.len() >= 2;
    let line = |rows: &[Vec<f32>]| {
        let point = |(t, row): (usize, &Vec<f32>)| match row.as_slice() {
            [x, y, ..] if plane => (f64::from(*x), f64::from(*y)),
            [x, ..] => (t as f64, f64::from(*x)),
            [] => (t as f64, 0.0),
        };
        rows.iter().take(example.valid.max(1)).enumerate().map(point).collect::<Line>()
    };
    (line(&example.demonstrated), line(&example.predicted))
}

/// What maps points of `lines` into a square of `side` with a margin; y points up.
fn frame(lines: [&Line; 2], side: f64, plane: bool) -> impl Fn((f64, f64)) -> (f64, f64) {
    let all = || lines.into_iter().flatten().filter(|(x, y)| x.is_finite() && y.is_finite());
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let low = all().map(pick).fold(f64::INFINITY, f64::min);
        let high = all().map(pick).fold(f64::NEG_INFINITY, f64::max);
        if low.is_finite() { (low, high) } else { (0.0, 1.0) }
    };
    let (x, y) = (range(|p| p.0), range(|p| p.1));
    let (mut w, mut h) = ((x.1 - x.0).max(1e-9), (y.1 - y.0).max(1e-9));
    if plane {
        // One scale for both directions: shapes stay shapes.
        w = w.max(h);
        h = w;
    }
    let inner = side - 2.0 * MARGIN;
    let centre = (f64::midpoint(x.0, x.1), f64::midpoint(y.0, y.1));
    move |(px, py)| {
        (side / 2.0 + (px - centre.0) / w * inner, side / 2.0 - (py - centre.1) / h * inner)
    }
}

/// An SVG of 192 px: grey what was demonstrated, red what was predicted; dots where they begin.
pub(super) fn svg(example: &Example) -> String {
    let (demonstrated, predicted) = curves(example);
    let map = frame([&demonstrated, &predicted], f64::from(SIDE), example.names.len() >= 2);
    let mut out = format!("<svg class=\"trajectory\" viewBox=\"0 0 {SIDE} {SIDE}\" role=\"img\">");
    for (class, line) in [("demonstrated", &demonstrated), ("predicted", &predicted)] {
        let points: Vec<String> = line
            .iter()
            .map(|p| map(*p))
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        // A `String` never refuses.
        let _ = write!(out, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "));
        if let Some((x, y)) = points.first().and_then(|p| p.split_once(',')) {
            let _ = write!(out, "<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>");
        }
    }
    out.push_str("</svg>");
    out
}

/// The same as a PNG, with its side.
///
/// # Errors
/// The encoder's message.
pub(super) fn png(example: &Example) -> Result<(Vec<u8>, i32), String> {
    let (demonstrated, predicted) = curves(example);
    let map = frame([&demonstrated, &predicted], f64::from(SIDE), example.names.len() >= 2);
    let mut image = RgbImage::from_pixel(SIDE, SIDE, Rgb([255; 3]));
    for (colour, line) in [(DEMONSTRATED, &demonstrated), (PREDICTED, &predicted)] {
        let points: Vec<_> = line.iter().map(|p| map(*p)).collect();
        for pair in points.windows(2) {
            stroke(&mut image, pair[0], pair[1], colour);
        }
        if let Some(&start) = points.first() {
            for dy in -2..=2 {
                for dx in -2..=2 {
                    dot(&mut image, (start.0 + f64::from(dx), start.1 + f64::from(dy)), colour);
                }
            }
        }
    }
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(|e| e.to_string())?;
    Ok((bytes.into_inner(), SIDE as i32))
}

fn stroke(image: &mut RgbImage, a: (f64, f64), b: (f64, f64), colour: [u8; 3]) {
    let steps = (b.0 - a.0).abs().max((b.1 - a.1).abs()).ceil().clamp(1.0, 2.0 * f64::from(SIDE));
    for i in 0..=steps as u32 {
        let t = f64::from(i) / steps;
        dot(image, (a.0 + t * (b.0 - a.0), a.1 + t * (b.1 - a.1)), colour);
    }
}

/// A point; what is not finite or outside is left out.
fn dot(image: &mut RgbImage, (x, y): (f64, f64), colour: [u8; 3]) {
    let inside = |v: f64| (0.0..f64::from(SIDE)).contains(&v);
    if inside(x) && inside(y) {
        image.put_pixel(x as u32, y as u32, Rgb(colour));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(names: &[&str], predicted: Vec<Vec<f32>>) -> Example {
        Example {
            instruction: "go".to_owned(),
            episode: 0,
            step: 0,
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            demonstrated: vec![
                vec![0.0; names.len()],
                vec![4.0; names.len()],
                vec![9.0; names.len()],
            ],
            predicted,
            valid: 2,
        }
    }

    #[test]
    fn curves_leave_padding_out_and_fill_the_frame() {
        let e = example(&["x", "y"], vec![vec![0.0, 0.0], vec![4.0, 2.0], vec![50.0, 50.0]]);
        let (demonstrated, predicted) = curves(&e);
        assert_eq!(demonstrated, [(0.0, 0.0), (4.0, 4.0)]);
        assert_eq!(predicted, [(0.0, 0.0), (4.0, 2.0)]);
        let map = frame([&demonstrated, &predicted], 100.0, true);
        assert_eq!(map((0.0, 0.0)), (MARGIN, 100.0 - MARGIN));
        assert_eq!(map((4.0, 4.0)), (100.0 - MARGIN, MARGIN));
        let time = curves(&example(&["gripper"], vec![vec![0.5], vec![0.25]]));
        assert_eq!(time.1, [(0.0, 0.5), (1.0, 0.25)]);
    }

    #[test]
    fn pictures_are_drawn_whatever_the_numbers() {
        for bad in [f32::NAN, f32::INFINITY, 1e38] {
            let e = example(&["x", "y"], vec![vec![0.0, 0.0], vec![bad, -bad]]);
            let (png, side) = png(&e).unwrap();
            let image = image::load_from_memory(&png).unwrap().into_rgb8();
            assert_eq!((image.width() as i32, image.height() as i32), (side, side));
            assert!(!svg(&e).contains("NaN"));
        }
        let good = example(&["x", "y"], vec![vec![0.0, 0.0], vec![4.0, 2.0]]);
        let image = image::load_from_memory(&png(&good).unwrap().0).unwrap().into_rgb8();
        for colour in [DEMONSTRATED, PREDICTED] {
            assert!(image.pixels().filter(|p| p.0 == colour).count() > 100);
        }
    }
}
