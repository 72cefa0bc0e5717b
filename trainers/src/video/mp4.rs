//! H.264 (openh264) in MP4 (ISO/IEC 14496-12, -15).
//!
//! The encoder speaks Annex B (start codes); MP4 wants each NAL unit behind its length, and the parameter sets in the
//! track header instead of the stream.

use std::io::{Seek, Write};

use mp4::{AvcConfig, MediaConfig, Mp4Config, Mp4Sample, Mp4Writer, TrackConfig, TrackType};
use openh264::OpenH264API;
use openh264::encoder::{
    Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange,
    RateControlMode, UsageType, VuiConfig,
};
use openh264::formats::{RgbSliceU8, YUVBuffer};
use simloop_envs::Frame;

use super::VideoError;

/// Ticks of the track's clock per frame; a frame rate with three decimals is then exact.
const TICKS_PER_FRAME: u32 = 1000;
/// Fixed quantiser: a noisy textured scene of 256 x 256 keeps 37 dB at 1.8 kB a frame, a flat one takes 0.6 kB.
const QP: u8 = 24;
/// A key frame every so many frames bounds how far a player must decode to seek.
const KEY_FRAME_EVERY: u32 = 60;
/// NAL unit types (ITU-T H.264 table 7-1).
const NAL_SPS: u8 = 7;
const NAL_PPS: u8 = 8;

/// An MP4 being written; holds the samples of at most one second.
pub(super) struct Mp4Stream<W: Write + Seek> {
    encoder: Encoder,
    yuv: Option<YUVBuffer>,
    /// RGB scratch for frames that are strided or of odd size.
    scratch: Vec<u8>,
    timescale: u32,
    start_time: u64,
    sink: Sink<W>,
}

/// The track can only be declared once the first frame brought the parameter sets.
enum Sink<W: Write + Seek> {
    Waiting(W),
    Open(Mp4Writer<W>),
    Broken,
}

impl<W: Write + Seek> std::fmt::Debug for Mp4Stream<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mp4Stream").field("start_time", &self.start_time).finish_non_exhaustive()
    }
}

fn encoder_error(error: impl std::fmt::Display) -> VideoError {
    VideoError::Encoder(error.to_string())
}

impl<W: Write + Seek> Mp4Stream<W> {
    pub(super) fn new(writer: W, fps: f64) -> Result<Self, VideoError> {
        let config = EncoderConfig::new()
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            .usage_type(UsageType::CameraVideoRealTime)
            .rate_control_mode(RateControlMode::Off)
            .qp(QpRange::new(QP, QP))
            .skip_frames(false)
            .complexity(Complexity::Low)
            .adaptive_quantization(false)
            .background_detection(false)
            .scene_change_detect(false)
            .intra_frame_period(IntraFramePeriod::from_num_frames(KEY_FRAME_EVERY))
            // Episodes run in parallel already, and one thread gives the same bytes everywhere.
            .num_threads(1)
            // The matrix of `YUVBuffer::read_rgb8`; unsaid, players guess it from the size.
            .vui(VuiConfig::bt601());
        let encoder =
            Encoder::with_api_config(OpenH264API::from_source(), config).map_err(encoder_error)?;
        Ok(Self {
            encoder,
            yuv: None,
            scratch: Vec::new(),
            timescale: (fps * f64::from(TICKS_PER_FRAME)).round().max(1.0) as u32,
            start_time: 0,
            sink: Sink::Waiting(writer),
        })
    }

    pub(super) fn push(&mut self, frame: &Frame) -> Result<(), VideoError> {
        let (height, width, _) = frame.dim();
        let (even_height, even_width) = (height.next_multiple_of(2), width.next_multiple_of(2));
        let yuv = self.yuv.get_or_insert_with(|| YUVBuffer::new(even_width, even_height));
        let pixels = match frame.as_slice() {
            Some(pixels) if (even_height, even_width) == (height, width) => pixels,
            _ => {
                pad_to_even(frame, even_height, even_width, &mut self.scratch);
                &self.scratch
            }
        };
        yuv.read_rgb8(RgbSliceU8::new(pixels, (even_width, even_height)));

        let stream = self.encoder.encode(yuv).map_err(encoder_error)?;
        let is_sync = matches!(stream.frame_type(), FrameType::IDR);
        let (mut sps, mut pps, mut bytes) = (None, None, Vec::new());
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            for nal in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)) {
                let payload = strip_start_code(nal);
                match payload.first().map(|header| header & 0x1f) {
                    None => {}
                    Some(NAL_SPS) => sps = Some(payload.to_vec()),
                    Some(NAL_PPS) => pps = Some(payload.to_vec()),
                    Some(_) => {
                        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
                        bytes.extend_from_slice(payload);
                    }
                }
            }
        }
        if bytes.is_empty() {
            return Err(VideoError::Encoder("the encoder dropped the frame".to_owned()));
        }
        if matches!(self.sink, Sink::Waiting(_)) {
            let (Some(sps), Some(pps)) = (sps, pps) else {
                return Err(VideoError::Encoder(
                    "the first frame has no parameter sets".to_owned(),
                ));
            };
            self.open(even_width as u16, even_height as u16, sps, pps)?;
        }
        let Sink::Open(writer) = &mut self.sink else {
            return Err(VideoError::Encoder("an earlier frame failed".to_owned()));
        };
        let sample = Mp4Sample {
            start_time: self.start_time,
            duration: TICKS_PER_FRAME,
            rendering_offset: 0,
            is_sync,
            bytes: bytes.into(),
        };
        writer.write_sample(1, &sample).map_err(encoder_error)?;
        self.start_time += u64::from(TICKS_PER_FRAME);
        Ok(())
    }

    fn open(
        &mut self,
        width: u16,
        height: u16,
        sps: Vec<u8>,
        pps: Vec<u8>,
    ) -> Result<(), VideoError> {
        let Sink::Waiting(writer) = std::mem::replace(&mut self.sink, Sink::Broken) else {
            return Ok(());
        };
        let config = Mp4Config {
            major_brand: (*b"isom").into(),
            minor_version: 512,
            compatible_brands: vec![(*b"isom").into(), (*b"avc1").into(), (*b"mp41").into()],
            timescale: self.timescale,
        };
        let mut writer = Mp4Writer::write_start(writer, &config).map_err(encoder_error)?;
        writer
            .add_track(&TrackConfig {
                track_type: TrackType::Video,
                timescale: self.timescale,
                language: "und".to_owned(),
                media_conf: MediaConfig::AvcConfig(AvcConfig {
                    width,
                    height,
                    seq_param_set: sps,
                    pic_param_set: pps,
                }),
            })
            .map_err(encoder_error)?;
        self.sink = Sink::Open(writer);
        Ok(())
    }

    /// Writes the index and returns the finished file.
    pub(super) fn finish(self) -> Result<W, VideoError> {
        let Sink::Open(mut writer) = self.sink else {
            return Err(VideoError::Empty);
        };
        writer.write_end().map_err(encoder_error)?;
        let mut inner = writer.into_writer();
        inner.flush().map_err(encoder_error)?;
        Ok(inner)
    }
}

/// The NAL unit behind its `00 00 01` or `00 00 00 01`.
fn strip_start_code(nal: &[u8]) -> &[u8] {
    nal.strip_prefix(&[0, 0, 0, 1]).or_else(|| nal.strip_prefix(&[0, 0, 1])).unwrap_or(nal)
}

/// Copies `frame` into `out`, repeating the last row and column where a side is odd: 4:2:0 chroma needs even sides.
fn pad_to_even(frame: &Frame, even_height: usize, even_width: usize, out: &mut Vec<u8>) {
    let (height, width, _) = frame.dim();
    out.clear();
    out.reserve(even_height * even_width * 3);
    for row in 0..even_height {
        for column in 0..even_width {
            for channel in 0..3 {
                out.push(frame[[row.min(height - 1), column.min(width - 1), channel]]);
            }
        }
    }
}
