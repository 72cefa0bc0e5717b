//! Images in memory that both processes hold: the child writes into a memfd, the parent reads from it with `pread`.
//!
//! No mapping on this side: a child that shrinks the memory cannot raise SIGBUS here, and one copy lands in the frame.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use ndarray::{Array3, ArrayView3};
use rustix::fs::{MemfdFlags, memfd_create};

use super::messages::ImageRef;
use super::protocol::{MAX_IMAGE, MAX_SHM, malformed};
use crate::{EnvError, Frame};

/// The parent's side of the shared images.
#[derive(Debug)]
pub struct ImageReader {
    file: File,
    len: u64,
}

impl ImageReader {
    /// Fresh shared memory (empty; the child sizes it) and a second descriptor of it for the child.
    ///
    /// # Errors
    /// The system's, if it has no memory or no descriptor left.
    pub fn create() -> std::io::Result<(Self, OwnedFd)> {
        let file = File::from(memfd_create("simloop-images", MemfdFlags::CLOEXEC)?);
        let child = OwnedFd::from(file.try_clone()?);
        Ok((Self { file, len: 0 }, child))
    }

    /// Accepts the size that the child announced.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] above [`MAX_SHM`].
    pub fn set_len(&mut self, len: u64) -> Result<(), EnvError> {
        if len > MAX_SHM {
            return Err(malformed(format!("`shm_bytes` is {len}, the limit is {MAX_SHM}")));
        }
        self.len = len;
        Ok(())
    }

    pub(super) fn read(&self, camera: &str, at: ImageRef) -> Result<Frame, EnvError> {
        let refuse = |what: String| malformed(format!("image `{camera}` {what}"));
        let [height, width, channels] = at.shape;
        let bytes = height.checked_mul(width).and_then(|n| n.checked_mul(3));
        let bytes = match bytes {
            Some(bytes) if channels == 3 && (1..=MAX_IMAGE).contains(&bytes) => bytes,
            _ => return Err(refuse(format!("has the shape {:?}, expected [H, W, 3]", at.shape))),
        };
        if at.offset.checked_add(bytes).is_none_or(|end| end > self.len) {
            return Err(refuse(format!(
                "lies at {} + {bytes}, outside the {} shared bytes",
                at.offset, self.len
            )));
        }
        let mut pixels = vec![0; bytes as usize];
        self.file
            .read_exact_at(&mut pixels, at.offset)
            .map_err(|e| refuse(format!("cannot be read from the shared memory: {e}")))?;
        let frame = Array3::from_shape_vec((height as usize, width as usize, 3), pixels)
            .map_err(|e| refuse(e.to_string()))?;
        Ok(frame.into_shared())
    }
}

/// The child's side: frames of one reply, one after the other from offset 0.
#[derive(Debug)]
pub(super) struct ImageWriter {
    file: File,
    len: u64,
    used: u64,
}

impl ImageWriter {
    /// Sizes the shared memory; untouched pages cost nothing.
    pub(super) fn new(file: File, len: u64) -> std::io::Result<Self> {
        file.set_len(len)?;
        Ok(Self { file, len, used: 0 })
    }

    /// Starts over: the previous reply's frames may be overwritten.
    pub(super) fn rewind(&mut self) {
        self.used = 0;
    }

    /// `[H, W, 3]` pixels into the shared memory.
    pub(super) fn write(&mut self, frame: ArrayView3<'_, u8>) -> Result<ImageRef, EnvError> {
        let (offset, bytes) = (self.used, frame.len() as u64);
        if offset + bytes > self.len {
            return Err(EnvError::Config {
                detail: format!(
                    "a reply's images need {} bytes, the shared memory has {}; ask for shorter chunks",
                    offset + bytes,
                    self.len
                ),
            });
        }
        let packed = frame.as_standard_layout();
        let pixels = packed.as_slice().expect("a standard layout is contiguous");
        self.file.write_all_at(pixels, offset).map_err(|e| EnvError::Simulator {
            kind: "shared memory".to_owned(),
            message: e.to_string(),
            trace: String::new(),
        })?;
        self.used += bytes;
        let (height, width, channels) = frame.dim();
        Ok(ImageRef { offset, shape: [height as u64, width as u64, channels as u64] })
    }
}
