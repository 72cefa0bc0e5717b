//! A writer of zarr v2 arrays with Blosc 1 frames, by the formats' definitions and as slow as they read.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::fs;
use std::path::Path;

fn bit_shuffle(typesize: usize, src: &[u8]) -> Vec<u8> {
    let n = src.len() / typesize;
    if !n.is_multiple_of(8) {
        return src.to_vec();
    }
    let mut out = vec![0; src.len()];
    out[n * typesize..].copy_from_slice(&src[n * typesize..]);
    for i in 0..n {
        for b in 0..typesize {
            for k in 0..8 {
                let bit = src[i * typesize + b] >> k & 1;
                out[(8 * b + k) * (n / 8) + i / 8] |= bit << (i % 8);
            }
        }
    }
    out
}

fn byte_shuffle(typesize: usize, src: &[u8]) -> Vec<u8> {
    let n = src.len() / typesize;
    let mut out = src.to_vec();
    for i in 0..n {
        for b in 0..typesize {
            out[b * n + i] = src[i * typesize + b];
        }
    }
    out
}

/// A Blosc 1 frame: `shuffle` 0 none, 1 bytes, 2 bits; codec 1 LZ4, 4 zstd; blocks of `block` bytes, split by the bytes of
/// the type where c-blosc would.
pub(crate) fn compress(
    raw: &[u8],
    typesize: usize,
    shuffle: u8,
    codec: u8,
    block: usize,
    split: bool,
) -> Vec<u8> {
    let blocks = raw.len().div_ceil(block);
    let flags =
        [0, 0b1, 0b100][usize::from(shuffle)] | codec << 5 | if split { 0 } else { 0b1_0000 };
    let mut frame = vec![2, 1, flags, typesize as u8];
    for size in [raw.len(), block, 0] {
        frame.extend((size as u32).to_le_bytes());
    }
    frame.resize(16 + 4 * blocks, 0);
    for (i, part) in raw.chunks(block).enumerate() {
        let start = frame.len() as u32;
        frame[16 + 4 * i..][..4].copy_from_slice(&start.to_le_bytes());
        let shuffled = match shuffle {
            1 if typesize > 1 => byte_shuffle(typesize, part),
            2 => bit_shuffle(typesize, part),
            _ => part.to_vec(),
        };
        let splits = if split && part.len() == block && typesize <= 16 && block / typesize >= 128 {
            typesize
        } else {
            1
        };
        for stream in shuffled.chunks(shuffled.len() / splits) {
            let packed = match codec {
                1 => lz4_flex::block::compress(stream),
                _ => zstd::bulk::compress(stream, 3).unwrap(),
            };
            let packed = if packed.len() < stream.len() { &packed } else { stream };
            frame.extend((packed.len() as u32).to_le_bytes());
            frame.extend(packed);
        }
    }
    let len = frame.len() as u32;
    frame[12..16].copy_from_slice(&len.to_le_bytes());
    frame
}

/// Writes an array, Blosc zstd with bit shuffle.
pub(crate) fn write(
    folder: &Path,
    dtype: &str,
    shape: &[usize],
    rows_per_chunk: usize,
    bytes: &[u8],
) {
    fs::create_dir_all(folder).unwrap();
    let mut chunks = shape.to_vec();
    chunks[0] = rows_per_chunk;
    let description = serde_json::json!({
        "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": dtype, "order": "C", "filters": null,
        "fill_value": 0, "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0},
    });
    fs::write(folder.join(".zarray"), description.to_string()).unwrap();
    let size: usize = dtype[2..].parse().unwrap();
    let row = shape[1..].iter().product::<usize>() * size;
    for (i, part) in bytes.chunks(rows_per_chunk * row).enumerate() {
        let mut part = part.to_vec();
        part.resize(rows_per_chunk * row, 0);
        let name = std::iter::once(i.to_string()).chain(shape[1..].iter().map(|_| "0".to_owned()));
        let name = name.collect::<Vec<_>>().join(".");
        fs::write(folder.join(name), compress(&part, size, 2, 4, 1 << 16, false)).unwrap();
    }
}

/// A small PushT store: `lens.len()` episodes with counting numbers and square frames of `side` pixels.
pub(crate) fn write_pusht(folder: &Path, lens: &[usize], side: usize) {
    let n: usize = lens.iter().sum();
    let floats = |count: usize, top: usize| -> Vec<u8> {
        (0..count).flat_map(|v| ((v % top) as f32).to_le_bytes()).collect()
    };
    let mut end = 0i64;
    let ends: Vec<u8> = lens
        .iter()
        .flat_map(|&len| {
            end += len as i64;
            end.to_le_bytes()
        })
        .collect();
    write(&folder.join("meta/episode_ends"), "<i8", &[lens.len()], 8, &ends);
    write(&folder.join("data/state"), "<f4", &[n, 5], 4, &floats(n * 5, usize::MAX));
    write(&folder.join("data/action"), "<f4", &[n, 2], 4, &floats(n * 2, usize::MAX));
    write(
        &folder.join("data/img"),
        "<f4",
        &[n, side, side, 3],
        2,
        &floats(n * side * side * 3, 251),
    );
}
