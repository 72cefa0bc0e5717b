//! A raster of palette indices that holds only those pixels of the 512 px canvas that a scaled picture looks at.
//!
//! Scaling 512 px to 96 px by linear interpolation without an area filter reads 192 of 512 columns and rows, so 86 % of the
//! canvas need not be painted. The shapes are those of pygame 2.6.1's `draw`, pixel for pixel: which pixels a polygon, a
//! wide line or a disc covers was established by painting them with pygame.

/// Side of the canvas, px.
pub(super) const CANVAS: usize = 512;

/// Half widths of the rows of pygame's filled discs, from the two middle rows outwards: row `k` and row `-1 - k` below
/// the centre cover columns `-w..w`. (pygame 2.6.1, `draw.circle` of radius 2, 11 and 15.)
const DISC_2: [i32; 2] = [2, 1];
const DISC_11: [i32; 11] = [11, 11, 11, 10, 10, 9, 8, 8, 6, 5, 3];
const DISC_15: [i32; 15] = [15, 15, 15, 14, 14, 14, 13, 13, 12, 11, 10, 9, 8, 6, 3];

/// Integer pixel position on the canvas, x right, y down.
pub(super) type Pixel = [i32; 2];

/// The discs that the picture is made of.
#[derive(Clone, Copy)]
pub(super) enum Disc {
    Joint,
    AgentCore,
    Agent,
}

/// Which canvas lines are kept, the same for rows and columns.
#[derive(Clone)]
pub(super) struct Grid {
    /// Kept canvas coordinates, ascending.
    kept: Vec<i32>,
    /// `first[x]` is the index of the first kept coordinate that is at least `x`, for `x` in `0..=CANVAS`.
    first: Vec<usize>,
}

impl Grid {
    /// Keeps the given coordinates, which must be ascending and on the canvas.
    pub(super) fn new(kept: Vec<i32>) -> Self {
        let first = (0..=CANVAS as i32).map(|x| kept.partition_point(|&k| k < x)).collect();
        Self { kept, first }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Indices of the kept coordinates in `low..=high`, both possibly off the canvas.
    pub(super) fn range(&self, low: i32, high: i32) -> std::ops::Range<usize> {
        let clamp = |x: i32| self.first[x.clamp(0, CANVAS as i32) as usize];
        clamp(low)..clamp(high.saturating_add(1)).max(clamp(low))
    }
}

/// The kept pixels, `[rows, columns]` palette indices.
#[derive(Clone)]
pub(super) struct Raster {
    grid: Grid,
    pixels: Vec<u8>,
}

impl Raster {
    pub(super) fn new(grid: Grid, colour: u8) -> Self {
        let pixels = vec![colour; grid.len() * grid.len()];
        Self { grid, pixels }
    }

    pub(super) fn grid(&self) -> &Grid {
        &self.grid
    }

    pub(super) fn row(&self, row: usize) -> &[u8] {
        let width = self.grid.len();
        &self.pixels[row * width..(row + 1) * width]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [u8] {
        let width = self.grid.len();
        &mut self.pixels[row * width..(row + 1) * width]
    }

    /// Overwrites everything with another raster of the same grid.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.pixels.copy_from_slice(&other.pixels);
    }

    /// Paints columns `x0..=x1` of rows `y0..=y1`.
    fn block(&mut self, [x0, y0]: Pixel, [x1, y1]: Pixel, colour: u8) {
        let columns = self.grid.range(x0, x1);
        if columns.is_empty() {
            return;
        }
        for row in self.grid.range(y0, y1) {
            self.row_mut(row)[columns.clone()].fill(colour);
        }
    }

    /// A filled polygon by pygame's scan line rule: an edge counts for rows from its upper end to just above its lower
    /// end (the lowest row takes both), the left crossing is rounded down and the right one up.
    pub(super) fn polygon(&mut self, points: &[Pixel], colour: u8) {
        let ys = points.iter().map(|p| p[1]);
        let (Some(top), Some(bottom)) = (ys.clone().min(), ys.max()) else { return };
        if top == bottom {
            let xs = points.iter().map(|p| p[0]);
            if let (Some(left), Some(right)) = (xs.clone().min(), xs.max()) {
                self.block([left, top], [right, top], colour);
            }
            return;
        }
        let edges = || points.iter().zip(points.iter().cycle().skip(points.len() - 1));
        for row in self.grid.range(top, bottom) {
            let y = self.grid.kept[row];
            let mut crossings = [0; 8];
            let mut count = 0;
            for (&end, &start) in edges() {
                let ([x1, y1], [x2, y2]) =
                    if start[1] < end[1] { (start, end) } else { (end, start) };
                let crosses = (y1 <= y && y < y2) || (y == bottom && y2 == bottom && y1 != y2);
                if crosses && count < crossings.len() {
                    let along = ((y - y1) * (x2 - x1)) as f32 / (y2 - y1) as f32;
                    let along = if count % 2 == 0 { along.floor() } else { along.ceil() };
                    crossings[count] = x1 + along as i32;
                    count += 1;
                }
            }
            crossings[..count].sort_unstable();
            for pair in crossings[..count].chunks_exact(2) {
                let columns = self.grid.range(pair[0], pair[1]);
                self.row_mut(row)[columns].fill(colour);
            }
        }
        for (&[x1, y1], &[x0, y0]) in edges() {
            if y0 == y1 && top < y1 && y1 < bottom {
                self.block([x0.min(x1), y1], [x0.max(x1), y1], colour);
            }
        }
    }

    /// A line of width 4: a Bresenham line thickened across its longer axis, one pixel before and two behind.
    pub(super) fn wide_line(&mut self, [mut x, mut y]: Pixel, [x2, y2]: Pixel, colour: u8) {
        let (dx, dy) = ((x2 - x).abs(), (y2 - y).abs());
        let (sx, sy) = (if x < x2 { 1 } else { -1 }, if y < y2 { 1 } else { -1 });
        let steep = dx <= dy;
        let mut error = (if dx > dy { dx } else { -dy }) / 2;
        for _ in 0..=dx.max(dy) {
            if steep {
                self.block([x - 1, y], [x + 2, y], colour);
            } else {
                self.block([x, y - 1], [x, y + 2], colour);
            }
            let before = error;
            if before > -dx {
                error -= dy;
                x += sx;
            }
            if before < dy {
                error += dx;
                y += sy;
            }
        }
    }

    /// gym-pusht's fat segment of radius 2: a wide line, a rectangle over it and a disc at either end.
    pub(super) fn fat_segment(&mut self, start: Pixel, end: Pixel, colour: u8) {
        self.wide_line(start, end, colour);
        let across = [(end[1] - start[1]).abs(), (end[0] - start[0]).abs()].map(f64::from);
        if across == [0.0; 2] {
            return;
        }
        let scale = 2.0 / (across[0] * across[0] + across[1] * across[1]).sqrt();
        let [ox, oy] = across.map(|c| (c * scale).round_ties_even() as i32);
        let shifted = |[x, y]: Pixel, sign: i32| [x + sign * ox, y + sign * oy];
        let corners = [shifted(start, -1), shifted(start, 1), shifted(end, 1), shifted(end, -1)];
        self.polygon(&corners, colour);
        self.disc(start, Disc::Joint, colour);
        self.disc(end, Disc::Joint, colour);
    }

    /// A filled disc round the corner between four pixels at `centre`.
    pub(super) fn disc(&mut self, [x, y]: Pixel, disc: Disc, colour: u8) {
        let half_widths: &[i32] = match disc {
            Disc::Joint => &DISC_2,
            Disc::AgentCore => &DISC_11,
            Disc::Agent => &DISC_15,
        };
        for (k, &w) in (0..).zip(half_widths) {
            self.block([x - w, y + k], [x + w - 1, y + k], colour);
            self.block([x - w, y - 1 - k], [x + w - 1, y - 1 - k], colour);
        }
    }

    /// One pixel.
    pub(super) fn dot(&mut self, at: Pixel, colour: u8) {
        self.block(at, at, colour);
    }
}
