//! YUV planes to RGB, as swscale does it for `rgb24`: chroma is repeated, not interpolated.

/// A decoded picture; planes may be padded.
pub(super) struct Picture<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Y, U, V; only Y for grey.
    pub(super) planes: [Plane<'a>; 3],
    /// log2 of how many pixels share a chroma sample, across and down.
    pub(super) shift: (u32, u32),
    pub(super) grey: bool,
    pub(super) colour: Colour,
}

/// One plane.
#[derive(Clone, Copy)]
pub(super) struct Plane<'a> {
    /// Rows of `stride` bytes.
    pub(super) bytes: &'a [u8],
    pub(super) stride: usize,
    /// Bits per sample; more than 8 are two bytes, little-endian.
    pub(super) bits: u32,
}

/// What the numbers mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Colour {
    /// 0 to 255 rather than 16 to 235.
    pub(super) full_range: bool,
    /// ITU-T H.273 matrix coefficients: 1 is BT.709; 2 (unspecified), 5 and 6 are BT.601.
    pub(super) matrix: u32,
}

impl Default for Colour {
    /// What a stream that says nothing is taken for (swscale's default too).
    fn default() -> Self {
        Self { full_range: false, matrix: 2 }
    }
}

impl Plane<'_> {
    fn get(&self, x: usize, y: usize) -> i32 {
        let value = if self.bits == 8 {
            self.bytes.get(y * self.stride + x).copied()
        } else {
            let at = y * self.stride + 2 * x;
            let two = self.bytes.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            two.map(|v| (v >> (self.bits - 8)).min(255) as u8)
        };
        i32::from(value.unwrap_or(0))
    }

    fn holds(&self, width: usize, height: usize) -> bool {
        let bytes = width * if self.bits == 8 { 1 } else { 2 };
        height == 0 || self.bytes.len() >= (height - 1) * self.stride + bytes
    }
}

impl Picture<'_> {
    /// `[H, W, 3]` RGB.
    ///
    /// # Errors
    /// Planes that are smaller than the picture.
    pub(super) fn to_rgb(&self) -> Result<Vec<u8>, String> {
        let (sx, sy) = self.shift;
        let chroma = ((self.width + (1 << sx) - 1) >> sx, (self.height + (1 << sy) - 1) >> sy);
        let [luma, u, v] = &self.planes;
        let whole = luma.holds(self.width, self.height)
            && (self.grey || (u.holds(chroma.0, chroma.1) && v.holds(chroma.0, chroma.1)));
        if !whole {
            return Err("the decoder's planes are smaller than its picture".to_owned());
        }
        let m = Matrix::new(self.colour);
        let mut rgb = Vec::with_capacity(self.width * self.height * 3);
        for y in 0..self.height {
            for x in 0..self.width {
                let (cb, cr) = if self.grey {
                    (128, 128)
                } else {
                    (u.get(x >> sx, y >> sy), v.get(x >> sx, y >> sy))
                };
                rgb.extend_from_slice(&m.apply(luma.get(x, y), cb, cr));
            }
        }
        Ok(rgb)
    }
}

/// Integer coefficients, scaled by 2^16.
struct Matrix {
    black: i32,
    y: i32,
    r_v: i32,
    g_u: i32,
    g_v: i32,
    b_u: i32,
}

impl Matrix {
    /// From the luma weights of red and blue (H.273, table 4).
    fn new(colour: Colour) -> Self {
        let (kr, kb) = match colour.matrix {
            1 => (0.2126, 0.0722),
            4 => (0.30, 0.11),
            7 => (0.212, 0.087),
            9 | 10 => (0.2627, 0.0593),
            _ => (0.299, 0.114),
        };
        let kg = 1.0 - kr - kb;
        let (y, c) = if colour.full_range { (1.0, 1.0) } else { (255.0 / 219.0, 255.0 / 224.0) };
        let scaled = |v: f64| (v * 65536.0).round() as i32;
        Self {
            black: if colour.full_range { 0 } else { 16 },
            y: scaled(y),
            r_v: scaled(2.0 * (1.0 - kr) * c),
            g_u: scaled(2.0 * (1.0 - kb) * kb / kg * c),
            g_v: scaled(2.0 * (1.0 - kr) * kr / kg * c),
            b_u: scaled(2.0 * (1.0 - kb) * c),
        }
    }

    fn apply(&self, y: i32, u: i32, v: i32) -> [u8; 3] {
        let y = (y - self.black) * self.y + (1 << 15);
        let (u, v) = (u - 128, v - 128);
        let clip = |value: i32| (value >> 16).clamp(0, 255) as u8;
        [clip(y + self.r_v * v), clip(y - self.g_u * u - self.g_v * v), clip(y + self.b_u * u)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(value: u8, full_range: bool) -> [u8; 3] {
        Matrix::new(Colour { full_range, matrix: 2 }).apply(i32::from(value), 128, 128)
    }

    #[test]
    fn limited_range_stretches_and_full_range_does_not() {
        assert_eq!([grey(16, false)[0], grey(235, false)[0]], [0, 255]);
        assert_eq!([grey(16, true)[0], grey(235, true)[0]], [16, 235]);
    }

    #[test]
    fn red_of_bt601_comes_back() {
        // Y = 81, U = 90, V = 240 is (254 or 255, 0, 0) in BT.601 limited range; the 709 matrix makes it pinkish.
        let bt601 = Matrix::new(Colour::default()).apply(81, 90, 240);
        assert!(bt601[0] >= 254 && bt601[1] <= 1 && bt601[2] <= 1, "{bt601:?}");
        let bt709 = Matrix::new(Colour { full_range: false, matrix: 1 }).apply(81, 90, 240);
        assert!(bt709[1] > 10, "{bt709:?}");
    }

    #[test]
    fn a_plane_that_is_too_small_is_refused() {
        let plane = |n: usize| Plane { bytes: &[9; 64][..n], stride: 4, bits: 8 };
        let picture = |u: usize| Picture {
            width: 4,
            height: 4,
            planes: [plane(16), plane(u), plane(8)],
            shift: (1, 1),
            grey: false,
            colour: Colour::default(),
        };
        assert!(picture(6).to_rgb().is_ok());
        assert!(picture(5).to_rgb().is_err());
    }
}
