//! Animated GIF of bounded size, for builds without H.264.
//!
//! Each frame stores the rectangle that changed, and pixels inside it that did not change are transparent. The length
//! of an episode is unknown while it is written, so the frame rate falls as the byte budget is used up: every time half
//! of what was left is gone, every second one of the frames kept so far is passed over from then on. A kept frame is
//! shown for as long as it stands for, so the video still runs in real time. The last frame is always shown.

use std::io::Write;

use gif::{DisposalMethod, Encoder, Repeat};
use image::RgbImage;
use simloop_envs::Frame;

use super::VideoError;
use super::thumbnail::shrink;

/// Longest side in pixels; larger frames are shrunk.
const MAX_SIDE: u32 = 256;
/// Bytes of a whole video; only its last frame may lie beyond.
const BYTE_BUDGET: usize = 2 * 1024 * 1024;
/// `NeuQuant`'s sampling factor, 1 (best) to 30 (fastest). Frames of at most 256 colours are exact at any.
const QUANTISER_SPEED: i32 = 20;
/// The clock of GIF, in Hz.
const TICKS_PER_SEC: f64 = 100.0;
/// Browsers show anything shorter than two ticks for ten.
const MIN_TICKS: u64 = 2;
/// A looping video rests on its last frame, where the outcome is seen.
const REST_TICKS: u64 = 100;

/// A GIF being written; holds three images at most.
pub(super) struct GifStream<W: Write> {
    sink: Sink<W>,
    ticks_per_frame: f64,
    /// One of `stride` frames is kept.
    stride: u64,
    /// The budget that makes the stride double once the file is this long.
    next_limit: usize,
    written: usize,
    seen: u64,
    /// The image that waits until it is known for how long it is shown, and the number of its frame.
    waiting: Option<(RgbImage, u64)>,
    /// The newest frame that was passed over.
    passed_over: Option<(Frame, u64)>,
    /// What a player shows now.
    canvas: RgbImage,
}

/// The encoder is born with the first frame, because the header holds the size.
enum Sink<W: Write> {
    Waiting(W),
    Open(Encoder<Counting<W>>),
    Broken,
}

impl<W: Write> std::fmt::Debug for GifStream<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GifStream").field("written", &self.written).finish_non_exhaustive()
    }
}

fn encoder_error(error: impl std::fmt::Display) -> VideoError {
    VideoError::Encoder(error.to_string())
}

impl<W: Write> GifStream<W> {
    pub(super) fn new(writer: W, fps: f64) -> Self {
        let ticks_per_frame = TICKS_PER_SEC / fps;
        Self {
            sink: Sink::Waiting(writer),
            ticks_per_frame,
            stride: (MIN_TICKS as f64 / ticks_per_frame).ceil().max(1.0) as u64,
            next_limit: BYTE_BUDGET / 2,
            written: 0,
            seen: 0,
            waiting: None,
            passed_over: None,
            canvas: RgbImage::new(0, 0),
        }
    }

    pub(super) fn push(&mut self, frame: &Frame) -> Result<(), VideoError> {
        let number = self.seen;
        self.seen += 1;
        if number.is_multiple_of(self.stride) {
            self.keep(shrink(frame, MAX_SIDE), number)
        } else {
            self.passed_over = Some((frame.clone(), number));
            Ok(())
        }
    }

    fn keep(&mut self, image: RgbImage, number: u64) -> Result<(), VideoError> {
        if let Some((earlier, since)) = self.waiting.take() {
            self.write(&earlier, self.tick(number) - self.tick(since))?;
        }
        self.waiting = Some((image, number));
        self.passed_over = None;
        Ok(())
    }

    /// When frame `number` appears.
    fn tick(&self, number: u64) -> u64 {
        (number as f64 * self.ticks_per_frame).round() as u64
    }

    fn write(&mut self, image: &RgbImage, ticks: u64) -> Result<(), VideoError> {
        if let Sink::Waiting(_) = self.sink {
            let Sink::Waiting(writer) = std::mem::replace(&mut self.sink, Sink::Broken) else {
                return Ok(());
            };
            let (width, height) = (image.width() as u16, image.height() as u16);
            let counting = Counting { inner: writer, written: 0 };
            let mut encoder = Encoder::new(counting, width, height, &[]).map_err(encoder_error)?;
            encoder.set_repeat(Repeat::Infinite).map_err(encoder_error)?;
            self.sink = Sink::Open(encoder);
        }
        let Sink::Open(encoder) = &mut self.sink else {
            return Err(VideoError::Encoder("an earlier frame failed".to_owned()));
        };
        let mut frame = difference(&self.canvas, image);
        frame.delay = u16::try_from(ticks).unwrap_or(u16::MAX);
        frame.dispose = DisposalMethod::Keep;
        encoder.write_frame(&frame).map_err(encoder_error)?;
        self.written = encoder.get_ref().written;
        self.canvas.clone_from(image);
        while self.written > self.next_limit && self.stride < u64::MAX / 2 {
            self.stride *= 2;
            let step = (BYTE_BUDGET - self.next_limit) / 2;
            if step == 0 {
                // Nothing is left: only the last frame is still to come.
                self.stride = u64::MAX;
                break;
            }
            self.next_limit += step;
        }
        Ok(())
    }

    /// Writes what waits and returns the finished file.
    pub(super) fn finish(mut self) -> Result<W, VideoError> {
        if let Some((frame, number)) = self.passed_over.take() {
            self.keep(shrink(&frame, MAX_SIDE), number)?;
        }
        if let Some((image, _)) = self.waiting.take() {
            self.write(&image, REST_TICKS)?;
        }
        let Sink::Open(encoder) = self.sink else {
            return Err(VideoError::Empty);
        };
        let mut inner = encoder.into_inner().map_err(encoder_error)?.inner;
        inner.flush().map_err(encoder_error)?;
        Ok(inner)
    }
}

/// The smallest frame that turns `canvas` into `image`; the whole image where the canvas is empty.
fn difference(canvas: &RgbImage, image: &RgbImage) -> gif::Frame<'static> {
    let (width, height) = image.dimensions();
    let whole = canvas.dimensions() != image.dimensions();
    let changed = |x, y| whole || canvas.get_pixel(x, y) != image.get_pixel(x, y);
    let (mut left, mut top, mut right, mut bottom) = (width, height, 0, 0);
    for y in 0..height {
        for x in 0..width {
            if changed(x, y) {
                left = left.min(x);
                right = right.max(x + 1);
                top = top.min(y);
                bottom = bottom.max(y + 1);
            }
        }
    }
    if right <= left {
        // A frame needs a pixel even when nothing moved.
        (left, top, right, bottom) = (0, 0, 1, 1);
    }
    let mut rgba = Vec::with_capacity(((right - left) * (bottom - top) * 4) as usize);
    for y in top..bottom {
        for x in left..right {
            if changed(x, y) {
                let [r, g, b] = image.get_pixel(x, y).0;
                rgba.extend_from_slice(&[r, g, b, 255]);
            } else {
                rgba.extend_from_slice(&[0; 4]);
            }
        }
    }
    let (frame_width, frame_height) = ((right - left) as u16, (bottom - top) as u16);
    let mut frame =
        gif::Frame::from_rgba_speed(frame_width, frame_height, &mut rgba, QUANTISER_SPEED);
    frame.left = left as u16;
    frame.top = top as u16;
    frame
}

/// Counts what passes through.
struct Counting<W> {
    inner: W,
    written: usize,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written += count;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
