//! H.264 through openh264.
//!
//! openh264 gives pictures in the order of display, some frames late. Flushing after every packet, its binding's default,
//! loses frames of real x264 files (34 of 279 in one of lerobot's, 84 of 93 with B-frames), so it is flushed at the end.

use std::ops::ControlFlow;

use openh264::OpenH264API;
use openh264::decoder::{DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource as _;

use super::yuv::{Colour, Picture, Plane};
use super::{Decoded, MAX_PIXELS, Sink, Video};
use crate::data::DataError;

const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Decodes from sample `start` on until `sink` breaks.
///
/// # Errors
/// [`DataError::Broken`] for a sample that does not decode.
pub(super) fn decode(video: &Video, start: usize, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let config = Config::parse(&video.track.config).map_err(|e| video.broken(e))?;
    let (height, width) = video.size();
    if let Some(sps) = &config.stream
        && sps.macroblocks * 256 > MAX_PIXELS.min((width + 16) * (height + 16))
    {
        return Err(video.broken(format!(
            "its parameter set claims {} macroblocks for {width} x {height} pixels",
            sps.macroblocks
        )));
    }
    let mut decoder = Decoder::with_api_config(
        OpenH264API::from_source(),
        DecoderConfig::new().flush_after_decode(Flush::NoFlush),
    )
    .map_err(|e| video.broken(format!("the H.264 decoder does not start: {e}")))?;
    let colour = config.stream.as_ref().map_or_else(Colour::default, |sps| sps.colour);
    let (mut sample, mut packet) = (Vec::new(), config.parameter_sets);
    for i in start..video.track.samples.len() {
        let failed = |e: String| video.broken(format!("frame {i} (H.264): {e}"));
        video.sample(i, &mut sample)?;
        to_annex_b(&sample, config.length_size, &mut packet).map_err(failed)?;
        let picture = decoder.decode(&packet).map_err(|e| failed(e.to_string()))?;
        packet.clear();
        if let Some(picture) = picture
            && show(&picture, colour, sink).map_err(failed)?.is_break()
        {
            return Ok(());
        }
    }
    let rest = decoder.flush_remaining().map_err(|e| video.broken(format!("H.264: {e}")))?;
    for picture in &rest {
        if show(picture, colour, sink).map_err(|e| video.broken(e))?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

fn show(
    picture: &DecodedYUV<'_>,
    colour: Colour,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, String> {
    let (width, height) = picture.dimensions();
    let (y, u, v) = picture.strides();
    let plane = |bytes, stride| Plane { bytes, stride, bits: 8 };
    sink(Decoded::Yuv(Picture {
        width,
        height,
        planes: [plane(picture.y(), y), plane(picture.u(), u), plane(picture.v(), v)],
        shift: (1, 1),
        grey: false,
        colour,
    }))
}

/// `avcC` (ISO/IEC 14496-15, 5.3.3.1): how long NAL lengths are, and the parameter sets.
struct Config {
    length_size: usize,
    /// SPS and PPS behind start codes.
    parameter_sets: Vec<u8>,
    stream: Option<Sps>,
}

impl Config {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "its decoder configuration (`avcC`) is cut".to_owned();
        let length_size = usize::from(bytes.get(4).ok_or_else(cut)? & 3) + 1;
        let mut at = 5;
        let (mut parameter_sets, mut stream) = (Vec::new(), None);
        for mask in [0x1f, 0xff] {
            let count = bytes.get(at).ok_or_else(cut)? & mask;
            at += 1;
            for _ in 0..count {
                let len = bytes.get(at..at + 2).ok_or_else(cut)?;
                let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
                let nal = bytes.get(at + 2..at + 2 + len).ok_or_else(cut)?;
                if mask == 0x1f && stream.is_none() {
                    stream = Sps::parse(nal);
                }
                parameter_sets.extend_from_slice(&START_CODE);
                parameter_sets.extend_from_slice(nal);
                at += 2 + len;
            }
        }
        Ok(Self { length_size, parameter_sets, stream })
    }
}

/// Appends NAL units behind start codes instead of behind their lengths.
fn to_annex_b(mut sample: &[u8], length_size: usize, out: &mut Vec<u8>) -> Result<(), String> {
    while !sample.is_empty() {
        let (length, rest) =
            sample.split_at_checked(length_size).ok_or("a NAL unit's length is cut")?;
        let length = length.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
        let (nal, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| format!("a NAL unit of {length} bytes where {} are left", rest.len()))?;
        out.extend_from_slice(&START_CODE);
        out.extend_from_slice(nal);
        sample = rest;
    }
    if out.is_empty() { Err("it is empty".to_owned()) } else { Ok(()) }
}

/// What a sequence parameter set says of size and colour (ITU-T H.264, 7.3.2.1.1 and E.1.1).
struct Sps {
    macroblocks: usize,
    colour: Colour,
}

impl Sps {
    /// `None` for a set that ends early: the decoder is then left to judge it.
    fn parse(nal: &[u8]) -> Option<Self> {
        let mut bits = Bits::new(nal.get(1..)?);
        let profile = bits.take(8)?;
        bits.take(16)?; // constraints, level
        bits.unsigned()?; // id
        let has_chroma =
            [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135].contains(&profile);
        if has_chroma {
            let format = bits.unsigned()?;
            if format == 3 {
                bits.take(1)?;
            }
            bits.unsigned()?;
            bits.unsigned()?;
            bits.take(1)?;
            if bits.take(1)? == 1 {
                for list in 0..if format == 3 { 12 } else { 8 } {
                    if bits.take(1)? == 1 {
                        bits.skip_scaling_list(if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        bits.unsigned()?; // log2_max_frame_num
        match bits.unsigned()? {
            0 => {
                bits.unsigned()?;
            }
            1 => {
                bits.take(1)?;
                bits.unsigned()?;
                bits.unsigned()?;
                for _ in 0..bits.unsigned()?.min(255) {
                    bits.unsigned()?;
                }
            }
            _ => {}
        }
        bits.unsigned()?; // reference frames
        bits.take(1)?;
        let width = bits.unsigned()? as usize + 1;
        let height = bits.unsigned()? as usize + 1;
        let frames_only = bits.take(1)? == 1;
        if !frames_only {
            bits.take(1)?;
        }
        bits.take(1)?;
        if bits.take(1)? == 1 {
            for _ in 0..4 {
                bits.unsigned()?; // cropping
            }
        }
        let fields = if frames_only { 1 } else { 2 };
        let macroblocks = width.saturating_mul(height).saturating_mul(fields);
        Some(Self { macroblocks, colour: bits.colour().unwrap_or_default() })
    }
}

/// Bits of a NAL unit, most significant first, without its emulation prevention bytes.
struct Bits {
    bytes: Vec<u8>,
    at: usize,
}

impl Bits {
    fn new(nal: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(nal.len());
        for &byte in nal {
            let zeros = bytes.iter().rev().take(2).filter(|b| **b == 0).count();
            if !(byte == 3 && zeros == 2) || bytes.len() < 2 {
                bytes.push(byte);
            }
        }
        Self { bytes, at: 0 }
    }

    fn take(&mut self, n: u32) -> Option<u32> {
        let mut value = 0;
        for _ in 0..n {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    /// An Exp-Golomb code.
    fn unsigned(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        Some((1u32 << zeros) - 1 + self.take(zeros)?)
    }

    fn skip_scaling_list(&mut self, size: usize) -> Option<()> {
        let (mut last, mut next) = (8i64, 8i64);
        for _ in 0..size {
            if next != 0 {
                let code = i64::from(self.unsigned()?);
                let delta = if code % 2 == 1 { (code + 1) / 2 } else { -(code / 2) };
                next = (last + delta + 256) % 256;
            }
            if next != 0 {
                last = next;
            }
        }
        Some(())
    }

    /// The colour part of the usability information.
    fn colour(&mut self) -> Option<Colour> {
        let mut colour = Colour::default();
        if self.take(1)? == 0 {
            return Some(colour);
        }
        if self.take(1)? == 1 && self.take(8)? == 255 {
            self.take(32)?; // sample aspect ratio
        }
        if self.take(1)? == 1 {
            self.take(1)?; // overscan
        }
        if self.take(1)? == 1 {
            self.take(3)?; // video format
            colour.full_range = self.take(1)? == 1;
            if self.take(1)? == 1 {
                self.take(16)?; // primaries, transfer
                colour.matrix = self.take(8)?;
            }
        }
        Some(colour)
    }
}
