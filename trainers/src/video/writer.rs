//! The push interface: frames in, one file out.

use std::fs;
use std::path::{Path, PathBuf};

use simloop_envs::Frame;
use tempfile::NamedTempFile;

use super::VideoError;
use super::gif::GifStream;
#[cfg(feature = "video")]
use super::mp4::Mp4Stream;

/// The container and codec of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoFormat {
    /// H.264 in MP4.
    #[cfg(feature = "video")]
    Mp4,
    /// Animated GIF.
    Gif,
}

impl VideoFormat {
    /// The file extension without a dot.
    pub fn extension(self) -> &'static str {
        match self {
            #[cfg(feature = "video")]
            Self::Mp4 => "mp4",
            Self::Gif => "gif",
        }
    }
}

impl Default for VideoFormat {
    /// MP4 where the feature `video` is compiled in, GIF elsewhere.
    fn default() -> Self {
        #[cfg(feature = "video")]
        let format = Self::Mp4;
        #[cfg(not(feature = "video"))]
        let format = Self::Gif;
        format
    }
}

/// Writes one video while an episode runs.
///
/// Frames go to a temporary file in the target folder. [`finish`](Self::finish) names it, so the outcome can be part of
/// the name; a writer that is dropped leaves nothing behind.
#[derive(Debug)]
pub struct VideoWriter {
    folder: PathBuf,
    format: VideoFormat,
    stream: Stream,
    shape: Option<[usize; 3]>,
    frames: usize,
}

#[derive(Debug)]
enum Stream {
    #[cfg(feature = "video")]
    Mp4(Box<Mp4Stream<NamedTempFile>>),
    Gif(Box<GifStream<NamedTempFile>>),
}

impl VideoWriter {
    /// Opens a video in `folder`, which is created if it is missing. `fps` is in frames per second.
    ///
    /// # Errors
    /// [`VideoError::Fps`], or [`VideoError::Io`] where the folder cannot be written.
    pub fn create(folder: &Path, fps: f64, format: VideoFormat) -> Result<Self, VideoError> {
        if !(fps > 0.0 && fps <= 1000.0) {
            return Err(VideoError::Fps { fps });
        }
        let io = |source| VideoError::Io { path: folder.to_path_buf(), source };
        fs::create_dir_all(folder).map_err(io)?;
        let file = tempfile::Builder::new()
            .prefix(".video-")
            .suffix(".partial")
            .tempfile_in(folder)
            .map_err(io)?;
        let stream = match format {
            #[cfg(feature = "video")]
            VideoFormat::Mp4 => Stream::Mp4(Box::new(Mp4Stream::new(file, fps)?)),
            VideoFormat::Gif => Stream::Gif(Box::new(GifStream::new(file, fps))),
        };
        Ok(Self { folder: folder.to_path_buf(), format, stream, shape: None, frames: 0 })
    }

    /// Appends one frame, `[H, W, 3]` RGB u8. Every frame has the shape of the first.
    ///
    /// # Errors
    /// [`VideoError::Shape`], [`VideoError::Encoder`], [`VideoError::Io`].
    pub fn push(&mut self, frame: &Frame) -> Result<(), VideoError> {
        let (height, width, channels) = frame.dim();
        let got = [height, width, channels];
        let wrong = |expected: &str| VideoError::Shape { got, expected: expected.to_owned() };
        match self.shape {
            None if channels != 3 => return Err(wrong("three channels (RGB) are expected")),
            // openh264 refuses more than 3840 x 2160, and less than one macroblock has no coded picture.
            None if height.min(width) < 16 => {
                return Err(wrong("at least 16 x 16 pixels are expected"));
            }
            None if height.max(width) > 2160 => {
                return Err(wrong("at most 2160 pixels a side are expected"));
            }
            Some(first) if first != got => {
                return Err(wrong(&format!("the first frame of this video had {first:?}")));
            }
            _ => self.shape = Some(got),
        }
        match &mut self.stream {
            #[cfg(feature = "video")]
            Stream::Mp4(stream) => stream.push(frame)?,
            Stream::Gif(stream) => stream.push(frame)?,
        }
        self.frames += 1;
        Ok(())
    }

    /// How many frames were appended.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Closes the video and names it `folder/stem.ext`, over an older file of that name. Returns the path.
    ///
    /// # Errors
    /// [`VideoError::Empty`] without a frame, [`VideoError::Encoder`], [`VideoError::Io`].
    pub fn finish(self, stem: &str) -> Result<PathBuf, VideoError> {
        if self.frames == 0 {
            return Err(VideoError::Empty);
        }
        let path = self.folder.join(format!("{stem}.{}", self.format.extension()));
        let file = match self.stream {
            #[cfg(feature = "video")]
            Stream::Mp4(stream) => stream.finish()?,
            Stream::Gif(stream) => stream.finish()?,
        };
        let io = |source| VideoError::Io { path: path.clone(), source };
        // A temporary file is private to its owner; a result folder is meant to be shared.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(io)?;
        }
        file.persist(&path).map_err(|error| io(error.error))?;
        Ok(path)
    }
}

/// Writes all `frames` (each `[H, W, 3]` RGB u8) at `fps` frames per second into `path`, whose extension is replaced by
/// the one of [`VideoFormat::default`]. Frames are pulled one at a time. Returns the path written.
///
/// # Errors
/// As [`VideoWriter::push`] and [`VideoWriter::finish`]; nothing is left behind then.
pub fn write_video(
    path: &Path,
    frames: impl IntoIterator<Item = Frame>,
    fps: f64,
) -> Result<PathBuf, VideoError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let stem = path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| VideoError::Io {
        path: path.to_path_buf(),
        source: std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "the name is not a file name",
        ),
    })?;
    let mut writer =
        VideoWriter::create(folder.unwrap_or(Path::new(".")), fps, VideoFormat::default())?;
    for frame in frames {
        writer.push(&frame)?;
    }
    writer.finish(stem)
}

/// The name of an episode's video without its extension, e.g. `task0003_ep0012_failure`. Unique per (task, episode,
/// outcome), and in the order of the episodes when sorted.
pub fn video_stem(task: usize, episode: usize, outcome: &str) -> String {
    format!("task{task:04}_ep{episode:04}_{outcome}")
}
