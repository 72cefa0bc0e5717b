//! Episode videos and thumbnails.
//!
//! A [`VideoWriter`] takes frames one at a time and never holds more than one second of them, encoded. With the
//! feature `video` (default) it writes H.264 in MP4 (constrained baseline, yuv420p, BT.601 limited range), which every
//! browser plays; without it, an animated GIF of bounded size.
//!
//! | module | what it owns |
//! |---|---|
//! | `writer` | [`VideoWriter`], [`write_video`], file names |
//! | `film` | an episode simulated again with a camera on it |
//! | `mp4` | H.264 by `openh264`, boxes by `mp4` |
//! | `gif` | palette, byte budget, falling frame rate |
//! | `thumbnail` | area-averaged PNG previews |

mod error;
mod film;
mod gif;
#[cfg(feature = "video")]
mod mp4;
mod thumbnail;
mod writer;

pub use error::VideoError;
pub use film::film;
pub use thumbnail::{thumbnail_png, write_thumbnail};
pub use writer::{VideoFormat, VideoWriter, video_stem, write_video};
