//! What a video costs: `cargo bench -p simloop-benchmarks --bench video`.
//!
//! Time per frame at 256 x 256 and 512 x 512 for a rendered-looking scene whose camera rests and one that is new in
//! every frame (the worst case), and a whole `PushT` episode of 200 frames.

#![allow(missing_docs, reason = "criterion's macros make public items without docs")]

#[path = "../tests/report_samples/mod.rs"]
mod report_samples;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use report_samples::{painted, textured};
use simloop_benchmarks::video::{VideoFormat, VideoWriter};
use simloop_envs::Frame;

fn write(frames: &[Frame], count: usize, format: VideoFormat) -> u64 {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let mut writer =
        VideoWriter::create(dir.path(), 20.0, format).expect("the folder can be written");
    for i in 0..count {
        writer.push(&frames[i % frames.len()]).expect("the frame can be encoded");
    }
    let path = writer.finish("video").expect("the video can be closed");
    std::fs::metadata(path).expect("the video exists").len()
}

fn videos(c: &mut Criterion) {
    const COUNT: usize = 50;
    let formats = [("default", VideoFormat::default()), ("gif", VideoFormat::Gif)];
    for (name, format) in formats {
        let mut group = c.benchmark_group(format!("video/{name}"));
        group.sample_size(10);
        for side in [256, 512] {
            let noisy: Vec<Frame> = (0..4).map(|seed| textured(seed, side)).collect();
            let moving: Vec<Frame> = (0..COUNT).map(|i| painted(i as f64 * 0.02, side)).collect();
            group.throughput(Throughput::Elements(COUNT as u64));
            for (scene, frames) in [("textured", &noisy), ("painted", &moving)] {
                group.bench_function(format!("{scene}_{side}"), |b| {
                    b.iter(|| write(frames, COUNT, format));
                });
            }
        }
        let episode: Vec<Frame> = (0..200).map(|i| painted(f64::from(i) * 0.01, 512)).collect();
        group.throughput(Throughput::Elements(200));
        group.bench_function("episode_200_frames_512", |b| {
            b.iter(|| write(&episode, 200, format));
        });
        group.finish();
    }
}

criterion_group!(benches, videos);
criterion_main!(benches);
