//! Small PNG previews for the report.

use std::io::Cursor;
use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _, RgbImage};
use simloop_envs::Frame;

use super::VideoError;

/// `frame` (`[H, W, 3]` RGB u8) as a PNG whose longer side has at most `max_side` pixels, averaged over areas.
///
/// # Errors
/// [`VideoError::Shape`] where the frame has no pixel or is not RGB; [`VideoError::Encoder`].
pub fn thumbnail_png(frame: &Frame, max_side: u32) -> Result<Vec<u8>, VideoError> {
    let (height, width, channels) = frame.dim();
    if height == 0 || width == 0 || channels != 3 {
        return Err(VideoError::Shape {
            got: [height, width, channels],
            expected: "an RGB image with at least one pixel is expected".to_owned(),
        });
    }
    let image = shrink(frame, max_side.max(1));
    let mut png = Cursor::new(Vec::new());
    PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::Adaptive)
        .write_image(&image, image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(|error| VideoError::Encoder(error.to_string()))?;
    Ok(png.into_inner())
}

/// Writes [`thumbnail_png`] to `path`, whose folder is created if it is missing.
///
/// # Errors
/// As [`thumbnail_png`], and [`VideoError::Io`].
pub fn write_thumbnail(path: &Path, frame: &Frame, max_side: u32) -> Result<(), VideoError> {
    let png = thumbnail_png(frame, max_side)?;
    let io = |source| VideoError::Io { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    std::fs::write(path, png).map_err(io)
}

/// `frame` with its longer side at most `max_side`, the shape kept; never enlarged.
pub(super) fn shrink(frame: &Frame, max_side: u32) -> RgbImage {
    let (height, width, _) = frame.dim();
    let (width, height) = (width as u32, height as u32);
    let image = RgbImage::from_fn(width, height, |x, y| {
        let at = |channel| frame[[y as usize, x as usize, channel]];
        image::Rgb([at(0), at(1), at(2)])
    });
    let longer = width.max(height);
    if longer <= max_side {
        return image;
    }
    let scaled =
        |side: u32| ((u64::from(side) * u64::from(max_side) / u64::from(longer)) as u32).max(1);
    image::imageops::thumbnail(&image, scaled(width), scaled(height))
}
