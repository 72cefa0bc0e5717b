//! Blosc 1 frames: what zarr v2 compresses its chunks with.
//!
//! Layout (c-blosc 1.21, `README_CHUNK_FORMAT.rst` and `blosc.c`): a header of 16 bytes, one i32 offset per block, and
//! per block one or, where the block was split by bytes of a type, several streams, each after its i32 length. A stream
//! as long as its output is stored. A block is unshuffled after it is decompressed.
//!
//! zstd and LZ4 streams are read; blosclz, snappy and zlib are refused by name.

/// Bytes of the header.
const HEADER: usize = 16;
/// c-blosc splits a block at most so many times (`MAX_SPLITS`) …
const MAX_SPLITS: usize = 16;
/// … and only into parts of at least so many bytes (`BLOSC_MIN_BUFFERSIZE`).
const MIN_SPLIT: usize = 128;

/// Decompresses one frame to exactly `expected` bytes, the size that the array's own description gives: a damaged frame
/// cannot make more than that be allocated.
///
/// # Errors
/// What is wrong with the frame, as a fragment for [`DataError::Broken`](super::DataError).
pub fn decompress(frame: &[u8], expected: usize) -> Result<Vec<u8>, String> {
    let header = Header::parse(frame)?;
    if header.nbytes != expected {
        return Err(format!(
            "the Blosc frame says it holds {} bytes, its array's description {expected}",
            header.nbytes
        ));
    }
    if header.flags & 0b10 != 0 {
        let stored = frame.get(HEADER..HEADER + expected).ok_or("the Blosc frame is cut short")?;
        return Ok(stored.to_vec());
    }
    let mut out = vec![0; expected];
    let blocks = expected.div_ceil(header.block);
    let mut scratch = vec![0; header.block.min(expected)];
    let mut codec = Codec::new(header.flags >> 5)?;
    for (i, out) in out.chunks_mut(header.block).enumerate() {
        let start = i32_at(frame, HEADER + 4 * i)?;
        if start < HEADER + 4 * blocks {
            return Err(format!("Blosc block {i} starts inside the header"));
        }
        let leftover = out.len() < header.block;
        header
            .block(&mut codec, frame, start, leftover, out, &mut scratch)
            .map_err(|e| format!("Blosc block {i}: {e}"))?;
    }
    Ok(out)
}

struct Header {
    version: u8,
    flags: u8,
    typesize: usize,
    nbytes: usize,
    block: usize,
}

impl Header {
    fn parse(frame: &[u8]) -> Result<Self, String> {
        if frame.len() < HEADER {
            return Err(format!(
                "a Blosc frame has a header of {HEADER} bytes, this one {} in all",
                frame.len()
            ));
        }
        let header = Self {
            version: frame[0],
            flags: frame[2],
            typesize: usize::from(frame[3]),
            nbytes: i32_at(frame, 4)?,
            block: i32_at(frame, 8)?,
        };
        if !(1..=2).contains(&header.version) {
            return Err(format!("Blosc format {} is not read, only 1 and 2", header.version));
        }
        let compressed = i32_at(frame, 12)?;
        if compressed != frame.len() {
            return Err(format!(
                "the Blosc header says {compressed} bytes, there are {}",
                frame.len()
            ));
        }
        if header.typesize == 0 || (header.block == 0 && header.nbytes > 0) {
            return Err("the Blosc header gives a size of zero".to_owned());
        }
        Ok(header)
    }

    /// Decompresses the block at `start` of the frame into `out`.
    fn block(
        &self,
        codec: &mut Codec,
        frame: &[u8],
        start: usize,
        leftover: bool,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<(), String> {
        let byte_shuffle = self.flags & 0b1 != 0 && self.typesize > 1;
        let bit_shuffle = self.flags & 0b100 != 0 && out.len() >= self.typesize;
        let may_split = self.flags & 0b1_0000 == 0;
        let splits = if may_split
            && !leftover
            && self.typesize <= MAX_SPLITS
            && self.block / self.typesize >= MIN_SPLIT
        {
            self.typesize
        } else {
            1
        };
        if !out.len().is_multiple_of(splits) {
            return Err("it does not divide into its splits".to_owned());
        }
        let raw = if byte_shuffle || bit_shuffle { &mut scratch[..out.len()] } else { &mut *out };
        let part = raw.len() / splits;
        let mut at = start;
        for raw in raw.chunks_mut(part.max(1)) {
            let len = i32_at(frame, at)?;
            let stream = at
                .checked_add(4)
                .and_then(|from| frame.get(from..from.checked_add(len)?))
                .ok_or("it reaches past the end of the frame")?;
            at += 4 + len;
            if len == raw.len() {
                raw.copy_from_slice(stream);
            } else {
                codec.decompress(stream, raw)?;
            }
        }
        if byte_shuffle {
            unshuffle(self.typesize, &scratch[..out.len()], out);
        } else if bit_shuffle {
            bit_unshuffle(self.typesize, &scratch[..out.len()], out);
        }
        Ok(())
    }
}

enum Codec {
    Lz4,
    Zstd(Box<zstd::bulk::Decompressor<'static>>),
}

impl Codec {
    fn new(code: u8) -> Result<Self, String> {
        match code {
            1 => Ok(Self::Lz4), // LZ4HC writes the same streams
            4 => Ok(Self::Zstd(Box::new(
                zstd::bulk::Decompressor::new().map_err(|e| format!("start zstd: {e}"))?,
            ))),
            other => {
                let name = ["blosclz", "", "snappy", "zlib"]
                    .get(usize::from(other))
                    .unwrap_or(&"an unknown codec");
                Err(format!(
                    "it is compressed with {name}; only zstd and lz4 are read: write the array again with cname='zstd'"
                ))
            }
        }
    }

    fn decompress(&mut self, stream: &[u8], out: &mut [u8]) -> Result<(), String> {
        let got = match self {
            Self::Lz4 => {
                lz4_flex::block::decompress_into(stream, out).map_err(|e| format!("lz4: {e}"))?
            }
            Self::Zstd(zstd) => {
                zstd.decompress_to_buffer(stream, out).map_err(|e| format!("zstd: {e}"))?
            }
        };
        if got == out.len() {
            Ok(())
        } else {
            Err(format!("it holds {got} bytes instead of {}", out.len()))
        }
    }
}

fn i32_at(bytes: &[u8], at: usize) -> Result<usize, String> {
    let four = at
        .checked_add(4)
        .and_then(|end| bytes.get(at..end))
        .and_then(|b| b.try_into().ok())
        .ok_or("the Blosc frame is cut short")?;
    usize::try_from(i32::from_le_bytes(four)).map_err(|_| "a Blosc length is negative".to_owned())
}

/// Byte `b` of element `i` lies at `b * n + i`; bytes after the last whole element are copied.
fn unshuffle(typesize: usize, src: &[u8], out: &mut [u8]) {
    let n = src.len() / typesize;
    for (b, plane) in src.chunks_exact(n.max(1)).take(typesize).enumerate() {
        for (element, &byte) in out.chunks_exact_mut(typesize).zip(plane) {
            element[b] = byte;
        }
    }
    out[n * typesize..].copy_from_slice(&src[n * typesize..]);
}

/// Bit `k` of byte `b` of element `i` lies in row `8 * b + k` of `n / 8` bytes, at bit `i % 8` of byte `i / 8`. Blocks
/// whose number of elements is no multiple of eight are not shuffled at all in this format version.
fn bit_unshuffle(typesize: usize, src: &[u8], out: &mut [u8]) {
    let n = src.len() / typesize;
    if !n.is_multiple_of(8) {
        out.copy_from_slice(src);
        return;
    }
    let row = n / 8;
    for b in 0..typesize {
        let rows: [&[u8]; 8] = std::array::from_fn(|k| &src[(8 * b + k) * row..][..row]);
        // Eight columns at a time: 64 elements.
        let wide = row / 8;
        for j in 0..wide {
            let planes: [u64; 8] = std::array::from_fn(|k| u64_at(rows[k], 8 * j));
            let dest = &mut out[64 * j * typesize..][..64 * typesize];
            if planes == [0; 8] {
                for element in dest.chunks_exact_mut(typesize) {
                    element[b] = 0;
                }
                continue;
            }
            for (column, dest) in
                transpose_bytes(planes).into_iter().zip(dest.chunks_exact_mut(8 * typesize))
            {
                let bytes = transpose_bits(column).to_le_bytes();
                for (element, byte) in dest.chunks_exact_mut(typesize).zip(bytes) {
                    element[b] = byte;
                }
            }
        }
        for j in 8 * wide..row {
            let column = u64::from_le_bytes(std::array::from_fn(|k| rows[k][j]));
            let bytes = transpose_bits(column).to_le_bytes();
            for (element, byte) in
                out[8 * j * typesize..][..8 * typesize].chunks_exact_mut(typesize).zip(bytes)
            {
                element[b] = byte;
            }
        }
    }
    out[n * typesize..].copy_from_slice(&src[n * typesize..]);
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// Transposes an 8x8 matrix of bytes, one row per word, by three rounds of swaps.
fn transpose_bytes(mut m: [u64; 8]) -> [u64; 8] {
    for i in 0..4 {
        let t = ((m[i] >> 32) ^ m[i + 4]) & 0x0000_0000_ffff_ffff;
        m[i] ^= t << 32;
        m[i + 4] ^= t;
    }
    for i in [0, 1, 4, 5] {
        let t = ((m[i] >> 16) ^ m[i + 2]) & 0x0000_ffff_0000_ffff;
        m[i] ^= t << 16;
        m[i + 2] ^= t;
    }
    for i in [0, 2, 4, 6] {
        let t = ((m[i] >> 8) ^ m[i + 1]) & 0x00ff_00ff_00ff_00ff;
        m[i] ^= t << 8;
        m[i + 1] ^= t;
    }
    m
}

/// Transposes an 8x8 matrix of bits: bit `i` of byte `k` becomes bit `k` of byte `i` (Hacker's Delight, 7-3).
fn transpose_bits(mut x: u64) -> u64 {
    let t = (x ^ (x >> 7)) & 0x00aa_00aa_00aa_00aa;
    x ^= t ^ (t << 7);
    let t = (x ^ (x >> 14)) & 0x0000_cccc_0000_cccc;
    x ^= t ^ (t << 14);
    let t = (x ^ (x >> 28)) & 0x0000_0000_f0f0_f0f0;
    x ^ t ^ (t << 28)
}

#[cfg(test)]
mod tests {
    use super::super::zarr_writer::compress;
    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * i) >> 3) as u8 & if i % 4 == 3 { 0x40 } else { 0xff }).collect()
    }

    #[test]
    fn every_shuffle_codec_and_split_comes_back() {
        for len in [0, 1, 7, 64, 1000, 4096, 5000, 8192 + 24] {
            let raw = sample(len);
            for typesize in [1, 4, 8] {
                for shuffle in 0..3 {
                    for codec in [1, 4] {
                        for split in [false, true] {
                            let frame = compress(&raw, typesize, shuffle, codec, 2048, split);
                            let back = decompress(&frame, len);
                            assert_eq!(
                                back.as_deref(),
                                Ok(&raw[..]),
                                "{len} {typesize} {shuffle} {codec} {split}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn damaged_frames_are_refused() {
        let raw = sample(5000);
        let frame = compress(&raw, 4, 2, 4, 2048, false);
        assert!(decompress(&frame, 4999).unwrap_err().contains("5000"));
        assert!(decompress(&frame[..frame.len() - 1], 5000).is_err());
        let mut blosclz = frame.clone();
        blosclz[2] &= 0x1f;
        assert!(decompress(&blosclz, 5000).unwrap_err().contains("blosclz"));
        let mut version = frame;
        version[0] = 5;
        assert!(decompress(&version, 5000).unwrap_err().contains("format 5"));
    }
}
