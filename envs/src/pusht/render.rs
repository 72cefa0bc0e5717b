//! The picture of a scene, as gym-pusht paints and scales it.
//!
//! Painted in this order: white, goal, bar, stem, agent, walls, contact marks. Everything that stands still is painted
//! once; a frame copies it, paints block and agent over it and scales only the region that they cover.

use ndarray::Array3;

use super::geometry::{AGENT_RADIUS, ARENA_SIZE, Point};
use super::goals::Goal;
use super::raster::{CANVAS, Disc, Grid, Pixel, Raster};
use super::scene::SceneState;
use crate::Frame;

/// Palette indices.
const WHITE: u8 = 0;
const GOAL_GREEN: u8 = 1;
const BLOCK_FACE: u8 = 2;
const BLOCK_EDGE: u8 = 3;
const AGENT_EDGE: u8 = 4;
const AGENT_CORE: u8 = 5;
const WALL: u8 = 6;
const MARK: u8 = 7;
const GOAL_SALMON: u8 = 8;

/// The colours of gym-pusht (CSS names); a face is its edge colour times 1.2, at most 255.
/// Sixteen, so that a masked index is always inside.
const PALETTE: [[u8; 3]; 16] = [
    [255, 255, 255],
    [144, 238, 144], // LightGreen
    [143, 163, 184], // lighter LightSlateGray
    [119, 136, 153], // LightSlateGray
    [65, 105, 225],  // RoyalBlue
    [78, 126, 255],  // lighter RoyalBlue
    [211, 211, 211], // LightGray
    [231, 76, 60],   // pymunk's collision point colour
    [255, 160, 122], // LightSalmon: ours, for a second goal
    [0; 3],
    [0; 3],
    [0; 3],
    [0; 3],
    [0; 3],
    [0; 3],
    [0; 3],
];
/// The colours of an environment's goals, in their order.
const GOAL_COLOURS: [u8; 2] = [GOAL_GREEN, GOAL_SALMON];
/// The cross at the last action.
const RED: [u8; 3] = [255, 0, 0];

/// Ends of the wall segments, px (gym-pusht `_setup`).
const WALLS: [[Pixel; 2]; 4] =
    [[[5, 506], [5, 5]], [[5, 5], [506, 5]], [[506, 5], [506, 506]], [[5, 506], [506, 506]]];
/// Canvas lines up to here and from its mirror image on can hold wall pixels.
const WALL_BAND: i32 = 10;

/// Bits of OpenCV's interpolation weights (`INTER_RESIZE_COEF_BITS`).
const WEIGHT_BITS: u32 = 11;

/// Where one line of the scaled picture comes from.
#[derive(Clone, Copy)]
struct Tap {
    /// Indices into the grid.
    lines: [usize; 2],
    /// Fixed-point weights, sum 2048.
    weights: [i32; 2],
}

/// Paints scenes at one size.
pub(super) struct Painter {
    size: usize,
    taps: Vec<Tap>,
    background: Raster,
    canvas: Raster,
    background_frame: Array3<u8>,
}

impl Painter {
    /// A painter of `size` x `size` frames, `size >= 1`, with all `goals` painted.
    pub(super) fn new(size: u32, goals: &[Goal]) -> Self {
        let size = size as usize;
        let (grid, taps) = sampling(size);
        let mut background = Raster::new(grid, WHITE);
        for (goal, colour) in goals.iter().zip(GOAL_COLOURS) {
            for corners in goal.pose.rectangles() {
                background.polygon(&closed(corners.map(pixel)), colour);
            }
        }
        for [a, b] in WALLS {
            background.fat_segment(a, b, WALL);
        }
        let mut painter = Self {
            size,
            taps,
            canvas: background.clone(),
            background,
            background_frame: Array3::zeros((size, size, 3)),
        };
        let mut frame = Array3::zeros((size, size, 3));
        painter.scale([0, 0], [CANVAS as i32; 2], &mut frame);
        painter.background_frame = frame;
        painter
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The frame of a state, `[size, size, 3]` RGB.
    pub(super) fn paint(&mut self, state: &SceneState) -> Frame {
        self.frame(state).into_shared()
    }

    /// The same with a cross at the target, for people.
    pub(super) fn paint_with_target(&mut self, state: &SceneState, target: Option<Point>) -> Frame {
        let mut frame = self.frame(state);
        if let Some(target) = target {
            self.cross(&mut frame, target);
        }
        frame.into_shared()
    }

    fn frame(&mut self, state: &SceneState) -> Array3<u8> {
        self.canvas.copy_from(&self.background);
        let rectangles = state.block.rectangles();
        for corners in &rectangles {
            self.rectangle(&corners.map(pixel));
        }
        let agent = pixel(state.agent);
        self.canvas.disc(agent, Disc::Agent, AGENT_EDGE);
        self.canvas.disc(agent, Disc::AgentCore, AGENT_CORE);
        let mut frame = self.background_frame.clone();
        let corners = rectangles.as_flattened().iter().map(|&p| pixel(p));
        let (low, high) = bounds(corners, 5);
        let (agent_low, agent_high) = bounds([agent].into_iter(), 20);
        self.restore_walls(low, high);
        self.restore_walls(agent_low, agent_high);
        for rectangle in &rectangles {
            self.contact_mark(state.agent, rectangle);
        }
        self.scale(low, high, &mut frame);
        self.scale(agent_low, agent_high, &mut frame);
        frame
    }

    fn rectangle(&mut self, corners: &[Pixel; 4]) {
        self.canvas.polygon(&closed(*corners), BLOCK_FACE);
        for i in 0..4 {
            self.canvas.fat_segment(corners[i], corners[(i + 1) % 4], BLOCK_EDGE);
        }
    }

    /// Walls are painted after block and agent; they are put back where those may have covered them.
    fn restore_walls(&mut self, low: Pixel, high: Pixel) {
        let inner = CANVAS as i32 - WALL_BAND;
        if low.iter().all(|&v| v > WALL_BAND) && high.iter().all(|&v| v < inner) {
            return;
        }
        let columns = self.canvas.grid().range(low[0], high[0]);
        for row in self.canvas.grid().range(low[1], high[1]) {
            let walls = &self.background.row(row)[columns.clone()];
            let painted = &mut self.canvas.row_mut(row)[columns.clone()];
            for (pixel, &behind) in painted.iter_mut().zip(walls) {
                if behind == WALL {
                    *pixel = WALL;
                }
            }
        }
    }

    /// pymunk marks a contact by a line 2 px beyond either contact point along the normal.
    fn contact_mark(&mut self, agent: Point, corners: &[Point; 4]) {
        let Some((nearest, normal, distance)) = nearest_point(agent, corners) else { return };
        if distance > AGENT_RADIUS {
            return;
        }
        let on_agent: Point = std::array::from_fn(|i| agent[i] + (AGENT_RADIUS - 2.0) * normal[i]);
        let on_block: Point = std::array::from_fn(|i| nearest[i] + 2.0 * normal[i]);
        let ([x0, y0], [x1, y1]) = (pixel(on_agent), pixel(on_block));
        let steps = (x1 - x0).abs().max((y1 - y0).abs()).max(1);
        for k in 0..=steps {
            let at = |from: i32, to: i32| {
                (f64::from(from) + f64::from((to - from) * k) / f64::from(steps)).round() as i32
            };
            self.canvas.dot([at(x0, x1), at(y0, y1)], MARK);
        }
    }

    /// Scales the canvas region `low..=high` into `frame`, in OpenCV's fixed-point arithmetic.
    fn scale(&self, low: Pixel, high: Pixel, frame: &mut Array3<u8>) {
        let touched = |low: i32, high: i32| {
            let lines = self.canvas.grid().range(low, high);
            let first = self.taps.partition_point(|tap| tap.lines[1] < lines.start);
            let last = self.taps.partition_point(|tap| tap.lines[0] < lines.end);
            first..last.max(first)
        };
        let columns = touched(low[0], high[0]);
        let width = self.size * 3;
        let Some(pixels) = frame.as_slice_mut() else { return };
        for y in touched(low[1], high[1]) {
            let Tap { lines: [upper, lower], weights: [wu, wl] } = self.taps[y];
            let (upper, lower) = (self.canvas.row(upper), self.canvas.row(lower));
            let row = &mut pixels[y * width + columns.start * 3..y * width + columns.end * 3];
            for (rgb, tap) in row.chunks_exact_mut(3).zip(&self.taps[columns.clone()]) {
                let [left, right] = tap.lines;
                let indices = [upper[left], upper[right], lower[left], lower[right]];
                let colours = indices.map(|i| &PALETTE[usize::from(i & 15)]);
                if indices[1..].iter().all(|&i| i == indices[0]) {
                    rgb.copy_from_slice(colours[0]);
                    continue;
                }
                let [a, b] = tap.weights;
                for (channel, value) in rgb.iter_mut().enumerate() {
                    let [ul, ur, ll, lr] = colours.map(|c| i32::from(c[channel]));
                    let (top, bottom) = (ul * a + ur * b, ll * a + lr * b);
                    let sum = ((wu * (top >> 4)) >> 16) + ((wl * (bottom >> 4)) >> 16);
                    *value = ((sum + 2) >> 2) as u8;
                }
            }
        }
    }

    /// OpenCV's cross marker as gym-pusht sizes it: arms of 8/96, thickness of 1/96 of the side.
    fn cross(&self, frame: &mut Array3<u8>, target: Point) {
        let size = self.size as i32;
        let centre = target.map(|v| (v / ARENA_SIZE * f64::from(size)).clamp(-1e6, 1e6) as i32);
        let (arm, thick) = (size * 8 / 96 / 2, (size / 96).max(1));
        let mut fill = |half: [i32; 2]| {
            let range = |i: usize| {
                let start = (centre[i] - half[i]).clamp(0, size);
                let end = (centre[i] + half[i] + 1).clamp(start, size);
                start as usize..end as usize
            };
            for y in range(1) {
                for x in range(0) {
                    for (channel, &value) in RED.iter().enumerate() {
                        frame[[y, x, channel]] = value;
                    }
                }
            }
        };
        fill([arm, thick / 2]);
        fill([thick / 2, arm]);
    }
}

/// The grid and taps of OpenCV's `resize(..., INTER_LINEAR)` from the canvas to `size`.
fn sampling(size: usize) -> (Grid, Vec<Tap>) {
    let scale = CANVAS as f64 / size as f64;
    let last = CANVAS as i32 - 1;
    let sources: Vec<([i32; 2], [i32; 2])> = (0..size)
        .map(|i| {
            let at = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let low = at.floor();
            let fraction = if low < 0.0 || low as i32 >= last { 0.0 } else { at - low };
            let low = (low as i32).clamp(0, last);
            let unit = (1 << WEIGHT_BITS) as f32;
            let right = (fraction * unit).round_ties_even() as i32;
            let left = ((1.0 - fraction) * unit).round_ties_even() as i32;
            ([low, (low + 1).min(last)], [left, right])
        })
        .collect();
    let mut kept: Vec<i32> = sources.iter().flat_map(|(lines, _)| *lines).collect();
    kept.sort_unstable();
    kept.dedup();
    let index = |line: i32| kept.partition_point(|&k| k < line);
    let taps =
        sources.iter().map(|&(lines, weights)| Tap { lines: lines.map(index), weights }).collect();
    (Grid::new(kept), taps)
}

/// gym-pusht's `to_pygame`: Python's `round`, ties to even.
fn pixel(p: Point) -> Pixel {
    p.map(|v| v.round_ties_even().clamp(-1e6, 1e6) as i32)
}

/// gym-pusht repeats the first corner at the end.
fn closed([a, b, c, d]: [Pixel; 4]) -> [Pixel; 5] {
    [a, b, c, d, a]
}

fn bounds(points: impl Iterator<Item = Pixel>, margin: i32) -> (Pixel, Pixel) {
    points.fold(([i32::MAX; 2], [i32::MIN; 2]), |(low, high), p| {
        (
            std::array::from_fn(|i| low[i].min(p[i] - margin)),
            std::array::from_fn(|i| high[i].max(p[i] + margin)),
        )
    })
}

/// The point of a rectangle nearest to a point outside it, the direction to it and the distance; `None` inside.
fn nearest_point(from: Point, [a, b, _, d]: &[Point; 4]) -> Option<(Point, Point, f64)> {
    let along = |end: &Point| {
        let side = [end[0] - a[0], end[1] - a[1]];
        let square = side[0] * side[0] + side[1] * side[1];
        let t = ((from[0] - a[0]) * side[0] + (from[1] - a[1]) * side[1]) / square;
        (t.clamp(0.0, 1.0), side)
    };
    let ((s, u), (t, v)) = (along(b), along(d));
    let nearest: Point = std::array::from_fn(|i| a[i] + s * u[i] + t * v[i]);
    let gap = [nearest[0] - from[0], nearest[1] - from[1]];
    let distance = (gap[0] * gap[0] + gap[1] * gap[1]).sqrt();
    (distance > 0.0).then(|| (nearest, gap.map(|g| g / distance), distance))
}
