//! Frames out of MP4 files: which samples a time needs, and the decoders behind one interface.
//!
//! | module | what it owns |
//! |---|---|
//! | `mp4` | the index of a file: codec, samples, order |
//! | `av1`, `h264` | decoders that are built in (feature `video`) |
//! | `ffmpeg` | everything else, if a program `ffmpeg` is there |
//! | `yuv` | colour |
//!
//! The codec is the one that the file's sample description (`stsd`) names; what a data set's metadata says of it is often
//! wrong.

#[cfg(feature = "video")]
mod av1;
mod ffmpeg;
#[cfg(feature = "video")]
mod h264;
mod mp4;
#[cfg(feature = "video")]
mod yuv;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use simloop_envs::Frame;

use super::DataError;
use mp4::Track;

/// The most pixels in a frame: 4096 x 4096. Also what the AV1 decoder is limited to.
pub(crate) const MAX_PIXELS: usize = 1 << 24;

/// An MP4 file's first video track. Several threads may read it; each read decodes for itself.
#[derive(Debug)]
pub(crate) struct Video {
    path: PathBuf,
    file: File,
    track: Track,
    /// Sample numbers in the order in which they are shown.
    shown: Vec<u32>,
}

/// Receives the frames in the order of their display.
type Sink<'a> = dyn FnMut(Decoded<'_>) -> Result<ControlFlow<()>, String> + 'a;

/// A frame that came out of a decoder.
enum Decoded<'a> {
    /// Planes; converted only where the frame is wanted.
    #[cfg(feature = "video")]
    Yuv(yuv::Picture<'a>),
    /// Pixels, `[H, W, 3]`.
    Rgb(&'a [u8]),
}

impl Video {
    /// Reads the index of a file.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::Broken`] for a damaged index, [`DataError::Unsupported`] for a fragmented file.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io("open", path))?;
        let track = mp4::read_track(&file, path)?;
        let mut shown: Vec<u32> = (0..track.samples.len() as u32).collect();
        shown.sort_by_key(|&i| track.samples[i as usize].shown_at);
        Ok(Self { path: path.to_owned(), file, track, shown })
    }

    /// The four characters that name the codec: `av01`, `avc1`, `mp4v`, ….
    pub(crate) fn codec(&self) -> String {
        self.track.codec_name()
    }

    /// How many frames there are.
    pub(crate) fn len(&self) -> usize {
        self.shown.len()
    }

    /// Height and width, pixels.
    pub(crate) fn size(&self) -> (usize, usize) {
        (usize::from(self.track.height), usize::from(self.track.width))
    }

    /// Seconds from the first frame to frame `index` in display order.
    fn time(&self, index: usize) -> f64 {
        let at = |i: usize| self.track.samples[self.shown[i] as usize].shown_at;
        (at(index) - at(0)) as f64 / f64::from(self.track.timescale)
    }

    /// The frames at `times` (seconds, ascending), each the one that is shown `round(time * fps)`-th.
    ///
    /// Only the stretch from the key frame before the first to the last is decoded; `times.len()` frames are held.
    ///
    /// # Errors
    /// [`DataError::Broken`] for a time that no frame of the file has, for damaged samples, and for frames whose size is not
    /// the one that the file declares; [`DataError::Unsupported`] naming a codec that nothing here decodes.
    pub(crate) fn frames(&self, times: &[f64], fps: f64) -> Result<Vec<Frame>, DataError> {
        let wanted = self.indices(times, fps)?;
        let (Some(&first), Some(&last)) = (wanted.first(), wanted.last()) else {
            return Ok(Vec::new());
        };
        let (height, width) = self.size();
        if height == 0 || width == 0 || height * width > MAX_PIXELS {
            return Err(self.broken(format!("it declares frames of {width} x {height} pixels")));
        }
        let mut frames = Vec::new();
        let start = self.key_frame_before(first);
        let mut shown = start;
        let mut sink = |decoded: Decoded<'_>| {
            let mut frame = None;
            while wanted.get(frames.len()) == Some(&shown) {
                let rgb = match &frame {
                    Some(rgb) => Frame::clone(rgb),
                    None => to_frame(&decoded, height, width)?,
                };
                frames.push(rgb.clone());
                frame = Some(rgb);
            }
            shown += 1;
            Ok(if shown > last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        self.decode(start, &mut sink)?;
        if frames.len() == wanted.len() {
            return Ok(frames);
        }
        Err(self.broken(format!(
            "frame {} of {} does not come out of the decoder: the file is damaged",
            wanted[frames.len()],
            self.len()
        )))
    }

    fn indices(&self, times: &[f64], fps: f64) -> Result<Vec<usize>, DataError> {
        let mut wanted = Vec::new();
        for &time in times {
            let index = (time * fps).round();
            let known = index >= 0.0 && index < self.len() as f64;
            // Half a frame: an index that is off by one would be off by a whole.
            if !known || (self.time(index as usize) - time).abs() > 0.5 / fps {
                return Err(self.broken(format!(
                    "no frame is shown at {time:.3} s: it has {} frames at {fps} per second are expected",
                    self.len()
                )));
            }
            wanted.push(index as usize);
        }
        if wanted.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(self.broken("an episode's time stamps do not ascend"));
        }
        Ok(wanted)
    }

    /// The last sample to start decoding from so that the frames from `index` on come out, in order and complete: a key
    /// frame that is shown where it is stored, with nothing after it that is shown before it.
    fn key_frame_before(&self, index: usize) -> usize {
        let samples = &self.track.samples;
        let mut earliest_after = i64::MAX;
        let mut start = 0;
        for i in (0..samples.len()).rev() {
            earliest_after = earliest_after.min(samples[i].shown_at);
            if samples[i].sync
                && i <= index
                && self.shown[i] as usize == i
                && earliest_after == samples[i].shown_at
            {
                start = i;
                break;
            }
        }
        start
    }

    #[cfg(feature = "video")]
    fn decode(&self, start: usize, sink: &mut Sink<'_>) -> Result<(), DataError> {
        match &self.track.codec {
            b"av01" => av1::decode(self, start, sink),
            b"avc1" | b"avc3" => h264::decode(self, start, sink),
            _ => ffmpeg::decode(self, start, sink),
        }
    }

    #[cfg(not(feature = "video"))]
    fn decode(&self, start: usize, sink: &mut Sink<'_>) -> Result<(), DataError> {
        ffmpeg::decode(self, start, sink)
    }

    /// The bytes of sample `i`.
    #[cfg(feature = "video")]
    fn sample(&self, i: usize, buffer: &mut Vec<u8>) -> Result<(), DataError> {
        use std::os::unix::fs::FileExt as _;
        let sample = self.track.samples[i];
        buffer.clear();
        buffer.resize(sample.size as usize, 0);
        self.file.read_exact_at(buffer, sample.offset).map_err(DataError::io("read", &self.path))
    }

    fn broken(&self, detail: impl Into<String>) -> DataError {
        DataError::broken(&self.path, detail)
    }
}

fn to_frame(decoded: &Decoded<'_>, height: usize, width: usize) -> Result<Frame, String> {
    let pixels = match decoded {
        #[cfg(feature = "video")]
        Decoded::Yuv(picture) => {
            if (picture.height, picture.width) != (height, width) {
                return Err(format!(
                    "a frame of {} x {} pixels in a video of {width} x {height}",
                    picture.width, picture.height
                ));
            }
            picture.to_rgb()?
        }
        Decoded::Rgb(pixels) => pixels.to_vec(),
    };
    ndarray::Array3::from_shape_vec((height, width, 3), pixels)
        .map(ndarray::Array3::into_shared)
        .map_err(|e| e.to_string())
}
