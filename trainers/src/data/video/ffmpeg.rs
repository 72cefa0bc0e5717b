//! Codecs that are not built in, through the program `ffmpeg`.
//!
//! The file is decoded from its beginning: ffmpeg's own seeking is by time and not exact for every codec.

use std::io::Read as _;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::JoinHandle;

use super::{Decoded, Sink, Video};
use crate::data::DataError;

/// Decodes until `sink` breaks. The frames before `start` are decoded and dropped.
///
/// # Errors
/// [`DataError::Unsupported`] naming the codec where there is no `ffmpeg`; [`DataError::Broken`] with its last words.
pub(super) fn decode(video: &Video, start: usize, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let (height, width) = video.size();
    let child = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-threads", "1", "-i"])
        .arg(&video.path)
        .args([
            "-map",
            "0:v:0",
            "-fps_mode",
            "passthrough",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = Ended(child.map_err(|e| {
        DataError::unsupported(format!(
            "decode `{}`: its codec is `{}`, which is not built in (av01 and avc1 are, with the feature `video`), and the \
             program `ffmpeg` does not start ({e}); install ffmpeg, or re-encode the video as H.264",
            video.path.display(),
            video.codec()
        ))
    })?);
    let mut out = child.0.stdout.take().ok_or_else(|| video.broken("ffmpeg has no output"))?;
    let words = child.0.stderr.take().map(last_words);
    let mut frame = vec![0; height * width * 3];
    let mut shown = 0;
    while out.read_exact(&mut frame).is_ok() {
        shown += 1;
        if shown > start && sink(Decoded::Rgb(&frame)).map_err(|e| video.broken(e))?.is_break() {
            return Ok(());
        }
    }
    let words = words.and_then(|thread| thread.join().ok()).unwrap_or_default();
    match words.trim() {
        "" => Ok(()),
        words => Err(video.broken(format!("ffmpeg says: {}", words.replace('\n', "; ")))),
    }
}

/// Reads what a program complains of; the first kilobyte is kept and the rest drained, so that it never waits for us.
fn last_words(mut stderr: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut words = Vec::new();
        // A pipe that breaks ends the message, which is for people.
        let _ = stderr.by_ref().take(1024).read_to_end(&mut words);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        String::from_utf8_lossy(&words).into_owned()
    })
}

/// A child that does not outlive its reader.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill and waiting returns at once.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
