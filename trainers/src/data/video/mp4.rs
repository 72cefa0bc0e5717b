//! The index of an MP4 file (ISO/IEC 14496-12): where its first video track's samples lie and when they are shown.
//!
//! Written here because every size in it is foreign: tables are read as slices of a movie box that lies inside the file,
//! and nothing is reserved for a count that the file cannot hold.
//!
//! Not read: movie fragments (named in the error), and edit lists, which encoders write only to shift the first frame to
//! zero. Times are counted from the first frame shown.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::data::DataError;

/// Frames in one file: 115 hours at 10 Hz.
const MAX_SAMPLES: usize = 1 << 22;
/// Bytes of a movie box: tables of [`MAX_SAMPLES`] samples with room to spare.
const MAX_MOOV: u64 = 90 << 20;

/// A track's samples in the order of storage, which is the order of decoding.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) codec: [u8; 4],
    /// The decoder's configuration: the payload of `av1C` or `avcC`.
    #[cfg_attr(
        not(feature = "video"),
        expect(dead_code, reason = "only built-in decoders read it")
    )]
    pub(super) config: Vec<u8>,
    pub(super) width: u16,
    pub(super) height: u16,
    /// Ticks per second.
    pub(super) timescale: u32,
    pub(super) samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "video"),
    expect(dead_code, reason = "only built-in decoders read samples")
)]
pub(super) struct Sample {
    pub(super) offset: u64,
    pub(super) size: u32,
    /// Whether it is a key frame.
    pub(super) sync: bool,
    /// When it is shown, ticks.
    pub(super) shown_at: i64,
}

impl Track {
    pub(super) fn codec_name(&self) -> String {
        self.codec.iter().map(|&b| if b.is_ascii_graphic() { b as char } else { '?' }).collect()
    }
}

/// Reads the index.
///
/// # Errors
/// [`DataError::Io`], [`DataError::Broken`], [`DataError::Unsupported`] for a fragmented file.
pub(super) fn read_track(file: &File, path: &Path) -> Result<Track, DataError> {
    let len = file.metadata().map_err(DataError::io("read", path))?.len();
    let broken = |detail: &str| DataError::broken(path, detail);
    let (mut at, mut moov) = (0u64, None);
    while at + 8 <= len {
        let mut header = [0u8; 16];
        let n = (len - at).min(16) as usize;
        file.read_exact_at(&mut header[..n], at).map_err(DataError::io("read", path))?;
        let (kind, start, size) = match box_header(&header[..n], len - at) {
            Some(found) => found,
            None if at == 0 => return Err(broken("it is no MP4 file")),
            None => return Err(broken("a box is larger than the file: it was cut")),
        };
        match &kind {
            b"moov" => moov = Some((at + start, size - start)),
            b"moof" => {
                return Err(DataError::unsupported(format!(
                    "read `{}`: fragmented MP4 is not supported; remux it with `ffmpeg -i in.mp4 -c copy out.mp4`",
                    path.display()
                )));
            }
            _ => {}
        }
        at += size;
    }
    let (start, size) =
        moov.ok_or_else(|| broken("it has no movie box (`moov`): it was cut, or is no MP4 file"))?;
    if size > MAX_MOOV {
        return Err(broken("its index is larger than 90 MB"));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, start).map_err(DataError::io("read", path))?;
    parse_moov(&bytes, len).map_err(|detail| DataError::broken(path, detail))
}

/// Kind, length of the header and of the whole box; `None` unless it fits into `room`.
fn box_header(bytes: &[u8], room: u64) -> Option<([u8; 4], u64, u64)> {
    let size = u64::from(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?));
    let kind = bytes.get(4..8)?.try_into().ok()?;
    let (start, size) = match size {
        0 => (8, room),
        1 => (16, u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?)),
        n => (8, n),
    };
    (start <= size && size <= room).then_some((kind, start, size))
}

/// The boxes in `bytes`, one after the other.
fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (kind, start, size) = box_header(bytes, bytes.len() as u64)?;
        let (this, rest) = bytes.split_at(size as usize);
        bytes = rest;
        Some((kind, &this[start as usize..]))
    })
}

fn child(bytes: &[u8], kind: [u8; 4]) -> Option<&[u8]> {
    boxes(bytes).find(|(k, _)| *k == kind).map(|(_, payload)| payload)
}

fn need(bytes: &[u8], kind: [u8; 4]) -> Result<&[u8], String> {
    child(bytes, kind)
        .ok_or_else(|| format!("its video track has no `{}` box", String::from_utf8_lossy(&kind)))
}

fn parse_moov(moov: &[u8], file_len: u64) -> Result<Track, String> {
    for (_, trak) in boxes(moov).filter(|(kind, _)| kind == b"trak") {
        let Some(mdia) = child(trak, *b"mdia") else { continue };
        let is_video =
            child(mdia, *b"hdlr").and_then(|h| h.get(8..12)).is_some_and(|kind| kind == b"vide");
        if is_video {
            return parse_track(mdia, file_len);
        }
    }
    Err("it has no video track".to_owned())
}

fn parse_track(mdia: &[u8], file_len: u64) -> Result<Track, String> {
    let mdhd = need(mdia, *b"mdhd")?;
    let timescale = u32_at(mdhd, if mdhd.first() == Some(&1) { 20 } else { 12 })
        .filter(|ticks| *ticks > 0)
        .ok_or("its clock does not tick")?;
    let stbl = need(need(mdia, *b"minf")?, *b"stbl")?;

    let stsd = need(stbl, *b"stsd")?;
    let (codec, entry) =
        boxes(stsd.get(8..).unwrap_or_default()).next().ok_or("its sample description is empty")?;
    // VisualSampleEntry: 24 bytes to the width, 78 to the boxes inside (14496-12, 12.1.3.2).
    let width = u16_at(entry, 24).ok_or("its sample description is cut")?;
    let height = u16_at(entry, 26).ok_or("its sample description is cut")?;
    let inner = entry.get(78..).unwrap_or_default();
    let config = match &codec {
        b"av01" => child(inner, *b"av1C"),
        b"avc1" | b"avc3" => child(inner, *b"avcC"),
        _ => None,
    };

    let sizes = sample_sizes(need(stbl, *b"stsz")?, file_len)?;
    let offsets = chunk_offsets(stbl)?;
    let mut samples = locate(&sizes, &offsets, need(stbl, *b"stsc")?, file_len)?;
    let mut time = 0i64;
    let mut durations = Runs::new(need(stbl, *b"stts")?);
    let mut shifts = child(stbl, *b"ctts").map(Runs::new);
    for sample in &mut samples {
        let shift = match &mut shifts {
            // Version 0 is unsigned on paper and signed in practice; real shifts are small.
            Some(runs) => i64::from(runs.next().ok_or("`ctts` is shorter than the track")? as i32),
            None => 0,
        };
        sample.shown_at = time + shift;
        time += i64::from(durations.next().ok_or("`stts` is shorter than the track")?);
    }
    if let Some(stss) = child(stbl, *b"stss") {
        for sample in &mut samples {
            sample.sync = false;
        }
        for number in entries(stss, 4)?.filter_map(|e| u32_at(e, 0)) {
            let sample = (number as usize).checked_sub(1).and_then(|i| samples.get_mut(i));
            sample.ok_or("`stss` names a sample that is not there")?.sync = true;
        }
    }
    Ok(Track {
        codec,
        config: config.unwrap_or_default().to_vec(),
        width,
        height,
        timescale,
        samples,
    })
}

/// The fixed-size entries of a table: version and flags, a count, entries.
fn entries(table: &[u8], width: usize) -> Result<impl Iterator<Item = &[u8]>, String> {
    let count = u32_at(table, 4).ok_or("a table of its index is cut")? as usize;
    let bytes = count.checked_mul(width).and_then(|n| table.get(8..8 + n));
    Ok(bytes.ok_or("a table of its index is cut")?.chunks_exact(width))
}

fn sample_sizes(stsz: &[u8], file_len: u64) -> Result<Vec<u32>, String> {
    let size = u32_at(stsz, 4).ok_or("`stsz` is cut")?;
    let count = u32_at(stsz, 8).ok_or("`stsz` is cut")? as usize;
    if count > MAX_SAMPLES {
        return Err(format!("it claims {count} frames; at most {MAX_SAMPLES} are read"));
    }
    if size != 0 {
        if u64::from(size) * count as u64 > file_len {
            return Err(format!("it claims {count} frames of {size} bytes"));
        }
        return Ok(vec![size; count]);
    }
    let bytes = stsz.get(12..12 + 4 * count).ok_or("`stsz` is cut")?;
    Ok(bytes.chunks_exact(4).filter_map(|e| u32_at(e, 0)).collect())
}

fn chunk_offsets(stbl: &[u8]) -> Result<Vec<u64>, String> {
    if let Some(stco) = child(stbl, *b"stco") {
        return Ok(entries(stco, 4)?.filter_map(|e| u32_at(e, 0)).map(u64::from).collect());
    }
    let co64 = need(stbl, *b"co64").map_err(|_| "it has neither `stco` nor `co64`")?;
    let read = |e: &[u8]| e.try_into().ok().map(u64::from_be_bytes);
    Ok(entries(co64, 8)?.filter_map(read).collect())
}

/// Lays the samples into the chunks (`stsc`: first chunk, samples per chunk, description; in runs).
fn locate(
    sizes: &[u32],
    offsets: &[u64],
    stsc: &[u8],
    file_len: u64,
) -> Result<Vec<Sample>, String> {
    let runs: Vec<(usize, usize)> = entries(stsc, 12)?
        .filter_map(|e| Some((u32_at(e, 0)? as usize, u32_at(e, 4)? as usize)))
        .collect();
    let mut samples = Vec::with_capacity(sizes.len());
    let mut sizes = sizes.iter();
    for (i, &(first, per_chunk)) in runs.iter().enumerate() {
        let end = runs.get(i + 1).map_or(offsets.len() + 1, |next| next.0);
        let chunks = first.checked_sub(1).and_then(|first| offsets.get(first..end.checked_sub(1)?));
        let chunks = chunks.ok_or("`stsc` names a chunk that is not there")?;
        for &chunk in chunks {
            let mut offset = chunk;
            for &size in sizes.by_ref().take(per_chunk) {
                let end = offset.checked_add(u64::from(size)).filter(|end| *end <= file_len);
                samples.push(Sample { offset, size, sync: true, shown_at: 0 });
                offset = end.ok_or_else(|| {
                    format!("frame {} lies past the end of the file: it was cut", samples.len() - 1)
                })?;
            }
        }
    }
    if sizes.next().is_some() {
        return Err("its chunks hold fewer frames than it claims".to_owned());
    }
    Ok(samples)
}

/// A run-length coded table of `(count, value)`, one value at a time.
struct Runs<'a> {
    table: &'a [u8],
    left: u32,
    value: u32,
}

impl<'a> Runs<'a> {
    fn new(table: &'a [u8]) -> Self {
        Self { table: table.get(8..).unwrap_or_default(), left: 0, value: 0 }
    }

    fn next(&mut self) -> Option<u32> {
        while self.left == 0 {
            (self.left, self.value) = (u32_at(self.table, 0)?, u32_at(self.table, 4)?);
            self.table = &self.table[8..];
        }
        self.left -= 1;
        Some(self.value)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
