//! Pillow's bilinear resize, and openpi's padding around it.
//!
//! Follows Pillow's `src/libImaging/Resample.c`: a triangle filter whose support grows with the scale, coefficients
//! rounded to 22-bit fixed point, a horizontal pass rounded to 8 bits, then a vertical one. `with_pad` follows
//! `openpi_client/image_tools.py`, `resize_with_pad`.
//!
//! Byte for byte where Pillow begins with the horizontal pass, as it does for square images. Pillow 13 begins with the
//! vertical one for some shapes (tall images that shrink): there numbers may differ by 1 (50 x 20 to 16 x 6: 44 of 288 do).

use ndarray::{Array3, ArrayView3, Axis, s};

const PRECISION_BITS: u32 = 32 - 8 - 2;

/// For one output pixel: the first input pixel and what each from there on weighs.
struct Tap {
    first: usize,
    weights: Vec<i64>,
}

fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter_scale; // the triangle reaches 1 to each side
    (0..to)
        .map(|x| {
            let center = (x as f64 + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as i64).min(from as i64) as usize;
            let raw: Vec<f64> = (first..end)
                .map(|i| {
                    let distance = ((i as f64 - center + 0.5) / filter_scale).abs();
                    (1.0 - distance).max(0.0)
                })
                .collect();
            let total: f64 = raw.iter().sum();
            let weights = raw
                .iter()
                .map(|w| {
                    let w = w / total * f64::from(1u32 << PRECISION_BITS);
                    (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i64
                })
                .collect();
            Tap { first, weights }
        })
        .collect()
}

fn along(image: ArrayView3<'_, u8>, axis: usize, to: usize) -> Array3<u8> {
    let mut shape = [image.dim().0, image.dim().1, image.dim().2];
    let taps = taps(shape[axis], to);
    shape[axis] = to;
    let mut out = Array3::zeros(shape);
    for (tap, mut lane) in taps.iter().zip(out.axis_iter_mut(Axis(axis))) {
        for ((i, j), value) in lane.indexed_iter_mut() {
            let at = |k: usize| if axis == 0 { image[[k, i, j]] } else { image[[i, k, j]] };
            let sum: i64 =
                tap.weights.iter().enumerate().map(|(k, w)| w * i64::from(at(tap.first + k))).sum();
            let rounded = (sum + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS;
            *value = rounded.clamp(0, 255) as u8;
        }
    }
    out
}

/// `[H, W, 3]` to `[height, width, 3]`.
pub(super) fn bilinear(image: ArrayView3<'_, u8>, height: usize, width: usize) -> Array3<u8> {
    let (h, w, _) = image.dim();
    let horizontal = if w == width { image.to_owned() } else { along(image, 1, width) };
    if h == height { horizontal } else { along(horizontal.view(), 0, height) }
}

/// `[H, W, 3]` to `[side, side, 3]`, its proportions kept, black beside it.
pub(super) fn with_pad(image: ArrayView3<'_, u8>, side: usize) -> Array3<u8> {
    let (h, w, _) = image.dim();
    if (h == side && w == side) || h == 0 || w == 0 || side == 0 {
        return image.to_owned();
    }
    let ratio = (w as f64 / side as f64).max(h as f64 / side as f64);
    let height = ((h as f64 / ratio) as usize).clamp(1, side);
    let width = ((w as f64 / ratio) as usize).clamp(1, side);
    let small = bilinear(image, height, width);
    let (top, left) = ((side - height) / 2, (side - width) / 2);
    let mut out = Array3::zeros((side, side, 3));
    out.slice_mut(s![top..top + height, left..left + width, ..]).assign(&small);
    out
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn it_equals_openpis_resize_with_pad_byte_for_byte() {
        // openpi_client 0.1.2 image_tools.resize_with_pad on Pillow 13.0.0, of
        // ((y*37 + x*91 + c*53 + (y*x) % 251*7) % 256) [h, w, 3].
        for (h, w, side, digest) in [
            (32, 32, 28, "0fb6c5f6cff1b706a52aa1c2552ab204fc408849c8c99a5554edefa1f490e457"),
            (20, 50, 24, "7a0e9957c416b4ec1901767805b238ee68f0f238d307adb529843f37ea229c68"),
            (9, 7, 24, "ddbf4f7b82f6a6d95f6d2f7d7112501f6cdb5928f7e1049981af455da80f34ce"),
        ] {
            let image = Array3::from_shape_fn((h, w, 3), |(y, x, c)| {
                ((y * 37 + x * 91 + c * 53 + (y * x) % 251 * 7) % 256) as u8
            });
            let out = with_pad(image.view(), side);
            let hash = Sha256::digest(out.as_slice().unwrap());
            let hex = format!("{hash:x}");
            assert_eq!((out.dim(), hex.as_str()), ((side, side, 3), digest), "{h} x {w}");
        }
    }
}
