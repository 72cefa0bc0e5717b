//! What the server shows: state and camera.

use std::sync::Arc;
use std::time::Instant;

use image::imageops::FilterType;
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use ndarray::Array3;

use super::fault::{Fault, FaultKind};
use super::pickle::Value;
use crate::Frame;

/// Largest side of a camera frame, pixels. The server's is 640 x 480.
const MAX_SIDE: u32 = 2048;
/// Largest JPEG, bytes.
const MAX_JPEG: usize = 8 << 20;

/// One observation of the robot.
#[derive(Clone, Debug)]
pub struct RobotObs {
    /// When it was asked for. The reply holds no time, and a picture cannot be newer than the question.
    pub asked_at: Instant,
    /// x, y, z \[m\], roll, pitch, yaw \[rad\], gripper (0 closed to 1 open, measured, may pass 1).
    pub state: [f64; 7],
    /// The first camera's JPEG as sent, red and blue exchanged.
    pub full_image: Arc<[u8]>,
}

impl RobotObs {
    /// From the server's reply.
    ///
    /// # Errors
    /// [`FaultKind::NotInitialised`] for what an uninitialised server shows; [`FaultKind::BadReply`].
    pub fn from_reply(reply: &Value<'_>, asked_at: Instant) -> Result<Self, Fault> {
        let bad = |detail: String| Fault::new(FaultKind::BadReply, detail);
        if reply.get("success") == Some(&Value::Bool(false)) {
            let said = reply.get("message").and_then(Value::as_str).unwrap_or("no reason");
            return Err(bad(format!("the server refuses to be observed ({said})")));
        }
        let state = match reply.get("state") {
            Some(Value::Dict(entries)) if entries.is_empty() => {
                return Err(Fault::new(
                    FaultKind::NotInitialised,
                    "the server shows no state: the robot is not initialised",
                ));
            }
            Some(Value::Array(array)) if array.shape == [7] => array.to_f64(),
            Some(other) => return Err(bad(format!("`state` is a {}", other.type_name()))),
            None => return Err(bad("the observation holds no `state`".to_owned())),
        };
        let state: Option<[f64; 7]> = state.and_then(|values| values.try_into().ok());
        let state = state.ok_or_else(|| bad("`state` is not 7 floats".to_owned()))?;
        if let Some(i) = state.iter().position(|v| !v.is_finite()) {
            return Err(bad(format!("`state` holds {} at place {i}", state[i])));
        }
        match reply.get("full_image") {
            Some(Value::Bytes(jpeg)) if jpeg.is_empty() || jpeg.len() > MAX_JPEG => {
                Err(bad(format!("`full_image` has {} bytes", jpeg.len())))
            }
            Some(Value::Bytes(jpeg)) => {
                Ok(Self { asked_at, state, full_image: Arc::from(&jpeg[..]) })
            }
            Some(Value::Array(_)) | None => Err(Fault::new(
                FaultKind::NotInitialised,
                "the server shows no JPEG: the robot is not initialised",
            )),
            Some(other) => Err(bad(format!("`full_image` is a {}", other.type_name()))),
        }
    }

    /// The camera's frame, `[H, W, 3]` RGB, scaled to `size` (height, width; the picture is squeezed, not cut) where one is
    /// given, with OpenVLA's filter (Lanczos, three lobes).
    ///
    /// # Errors
    /// [`FaultKind::BadReply`] for a JPEG that cannot be decoded or is too large.
    pub fn frame(&self, size: Option<[u32; 2]>) -> Result<Frame, Fault> {
        let mut image = decode_jpeg(&self.full_image)?;
        if let Some([height, width]) = size
            && (image.width(), image.height()) != (width, height)
        {
            image = image.resize_exact(width, height, FilterType::Lanczos3);
        }
        let mut image = image.into_rgb8();
        // The server hands RGB to an encoder that expects BGR; its own client undoes it the same way.
        for pixel in image.as_flat_samples_mut().samples.chunks_exact_mut(3) {
            pixel.swap(0, 2);
        }
        let (width, height) = image.dimensions();
        Array3::from_shape_vec((height as usize, width as usize, 3), image.into_raw())
            .map(Array3::into_shared)
            .map_err(|e| Fault::new(FaultKind::BadReply, format!("the camera's frame: {e}")))
    }

    /// Proprioception as OpenVLA and Octo use it: x, y, z, roll, pitch, yaw, 0, gripper.
    pub fn proprio(&self) -> [f32; 8] {
        let s = self.state.map(|v| v as f32);
        [s[0], s[1], s[2], s[3], s[4], s[5], 0.0, s[6]]
    }
}

fn decode_jpeg(jpeg: &[u8]) -> Result<DynamicImage, Fault> {
    let bad = |detail: String| Fault::new(FaultKind::BadReply, detail);
    let mut reader = ImageReader::with_format(std::io::Cursor::new(jpeg), ImageFormat::Jpeg);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(32 << 20);
    reader.limits(limits);
    reader.decode().map_err(|e| bad(format!("`full_image` is no JPEG: {e}")))
}
