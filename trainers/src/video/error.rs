//! What can go wrong while a video is written.

use std::path::PathBuf;

/// Why a video or a thumbnail could not be written. The messages fit after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// A frame that is no `[H, W, 3]` image, or is smaller or larger than the encoder takes.
    #[error("encode a frame of shape {got:?}: {expected}")]
    Shape {
        /// `[H, W, C]` of the frame.
        got: [usize; 3],
        /// What would have been right.
        expected: String,
    },
    /// `fps` is not a finite number in (0, 1000].
    #[error("write a video at {fps} frames per second: it must lie in (0, 1000]")]
    Fps {
        /// Frames per second asked for.
        fps: f64,
    },
    /// The video ended before its first frame.
    #[error("write a video without frames")]
    Empty,
    /// The file system said no.
    #[error("write {path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// An environment whose `render` shows nothing.
    #[error("film it: this environment shows nothing to people")]
    Blind,
    /// The episode went another way than the one that was recorded.
    #[error(
        "reproduce it: simulated again from its actions it went another way; has the simulator changed?"
    )]
    Differs,
    /// The environment said no.
    #[error("simulate it again: {0}")]
    Env(#[from] simloop_envs::EnvError),
    /// The encoder or the container writer said no.
    #[error("encode a frame: {0}")]
    Encoder(String),
}
