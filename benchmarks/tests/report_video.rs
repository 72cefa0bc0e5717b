//! Videos: what a player would find in them.

#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

mod report_samples;

use std::fs;
use std::io::BufReader;

use report_samples::{painted, textured};
use simloop_benchmarks::video::{
    VideoError, VideoFormat, VideoWriter, thumbnail_png, video_stem, write_thumbnail, write_video,
};
use simloop_envs::Frame;

fn episode(frames: usize, side: usize) -> impl Iterator<Item = Frame> {
    (0..frames).map(move |i| painted(i as f64 * 0.02, side))
}

#[test]
fn names_sort_in_the_order_of_episodes_and_say_the_outcome() {
    assert_eq!(video_stem(3, 12, "failure"), "task0003_ep0012_failure");
    assert!(video_stem(3, 2, "success") < video_stem(3, 12, "failure"));
    assert!(video_stem(9, 0, "success") < video_stem(10, 0, "success"));
}

#[cfg(feature = "video")]
mod mp4 {
    use super::*;
    use openh264::OpenH264API;
    use openh264::decoder::{Decoder, DecoderConfig};
    use openh264::formats::YUVSource as _;

    /// Every frame of a video, decoded to RGB, and its duration in seconds.
    fn decode(path: &std::path::Path) -> (Vec<Vec<u8>>, (usize, usize), f64) {
        let file = fs::File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let mut reader = ::mp4::Mp4Reader::read_header(BufReader::new(file), size).unwrap();
        let track = reader.tracks().get(&1).unwrap();
        let mut annex_b = Vec::new();
        for parameters in
            [track.sequence_parameter_set().unwrap(), track.picture_parameter_set().unwrap()]
        {
            annex_b.extend([0, 0, 0, 1]);
            annex_b.extend(parameters);
        }
        let (count, secs) = (track.sample_count(), track.duration().as_secs_f64());
        let mut decoder =
            Decoder::with_api_config(OpenH264API::from_source(), DecoderConfig::new()).unwrap();
        let (mut frames, mut size) = (Vec::new(), (0, 0));
        for number in 1..=count {
            let sample = reader.read_sample(1, number).unwrap().unwrap();
            let mut rest = &sample.bytes[..];
            while let Some((length, tail)) = rest.split_first_chunk::<4>() {
                let (unit, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
                annex_b.extend([0, 0, 0, 1]);
                annex_b.extend(unit);
                rest = tail;
            }
            if let Some(yuv) = decoder.decode(&annex_b).unwrap() {
                let mut rgb = vec![0; yuv.rgb8_len()];
                yuv.write_rgb8(&mut rgb);
                size = yuv.dimensions();
                frames.push(rgb);
            }
            annex_b.clear();
        }
        for yuv in decoder.flush_remaining().unwrap() {
            let mut rgb = vec![0; yuv.rgb8_len()];
            yuv.write_rgb8(&mut rgb);
            frames.push(rgb);
        }
        (frames, size, secs)
    }

    fn mean_abs_difference(decoded: &[u8], frame: &Frame) -> f64 {
        let sum: u64 =
            decoded.iter().zip(frame.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / decoded.len() as f64
    }

    #[test]
    fn an_mp4_holds_every_frame_in_order_at_the_right_speed() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_video(&dir.path().join("new/ep.any"), episode(75, 96), 10.0).unwrap();
        assert_eq!(path, dir.path().join("new/ep.mp4"));
        let (frames, size, secs) = decode(&path);
        assert_eq!((frames.len(), size), (75, (96, 96)));
        assert!((secs - 7.5).abs() < 1e-6, "{secs}");
        for (i, (decoded, frame)) in frames.iter().zip(episode(75, 96)).enumerate() {
            let difference = mean_abs_difference(decoded, &frame);
            assert!(difference < 4.0, "frame {i}: {difference}");
        }
    }

    #[test]
    fn a_textured_scene_keeps_its_colours() {
        let dir = tempfile::tempdir().unwrap();
        let frame = textured(1, 128);
        let path = write_video(&dir.path().join("a"), vec![frame.clone(); 3], 20.0).unwrap();
        let (frames, _, _) = decode(&path);
        // Per channel, so that swapped channels or a wrong colour matrix (both tens of levels) are seen.
        for channel in 0..3 {
            let mean = |pixels: &mut dyn Iterator<Item = u8>| {
                let (sum, n) = pixels.fold((0.0, 0.0), |(sum, n), v| (sum + f64::from(v), n + 1.0));
                sum / n
            };
            let decoded = mean(&mut frames[2].iter().copied().skip(channel).step_by(3));
            let original = mean(&mut frame.iter().copied().skip(channel).step_by(3));
            assert!(
                (decoded - original).abs() < 2.0,
                "channel {channel}: {decoded} and {original}"
            );
        }
    }

    #[test]
    fn odd_sides_are_padded_and_strided_frames_are_read_right() {
        let dir = tempfile::tempdir().unwrap();
        let wide = painted(0.4, 98);
        let frame: Frame = wide.slice(ndarray::s![..97, 1.., ..]).to_owned().into();
        let strided: Frame = wide.clone().slice_move(ndarray::s![..97, 1.., ..]);
        assert!(strided.as_slice().is_none());
        let a = write_video(&dir.path().join("a"), vec![frame; 2], 10.0).unwrap();
        let b = write_video(&dir.path().join("b"), vec![strided; 2], 10.0).unwrap();
        assert_eq!(decode(&a).1, (98, 98));
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    }

    #[test]
    fn the_same_frames_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let a = write_video(&dir.path().join("a"), episode(20, 64), 10.0).unwrap();
        let b = write_video(&dir.path().join("b"), episode(20, 64), 10.0).unwrap();
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    }
}

#[test]
fn a_gif_shows_what_was_pushed_in_real_time() {
    use image::AnimationDecoder as _;
    let dir = tempfile::tempdir().unwrap();
    let mut writer = VideoWriter::create(dir.path(), 10.0, VideoFormat::Gif).unwrap();
    let frames: Vec<Frame> = episode(12, 64).collect();
    for frame in &frames {
        writer.push(frame).unwrap();
    }
    assert_eq!(writer.frames(), 12);
    let path = writer.finish("ep").unwrap();
    let file = BufReader::new(fs::File::open(path).unwrap());
    let decoded =
        image::codecs::gif::GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
    assert_eq!(decoded.len(), 12);
    for (shown, frame) in decoded.iter().zip(&frames) {
        let rgb = shown.buffer().pixels().flat_map(|p| [p[0], p[1], p[2]]);
        assert!(
            rgb.eq(frame.iter().copied()),
            "few colours are kept exactly, also where a frame is a difference"
        );
    }
    let delays: Vec<u32> = decoded.iter().map(|f| f.delay().numer_denom_ms().0).collect();
    assert_eq!(delays[..11], [100; 11]);
}

#[test]
fn a_long_gif_loses_frames_but_neither_bounds_nor_its_end() {
    use image::AnimationDecoder as _;
    let dir = tempfile::tempdir().unwrap();
    let mut writer = VideoWriter::create(dir.path(), 20.0, VideoFormat::Gif).unwrap();
    for i in 0..200 {
        writer.push(&textured(i, 160)).unwrap();
    }
    let end = painted(1.0, 160);
    writer.push(&end).unwrap();
    let path = writer.finish("ep").unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 2 * 1024 * 1024 + 64 * 1024);
    let file = BufReader::new(fs::File::open(path).unwrap());
    let frames =
        image::codecs::gif::GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
    assert!((50..200).contains(&frames.len()), "{}", frames.len());
    let last = frames.last().unwrap().buffer().pixels().flat_map(|p| [p[0], p[1], p[2]]);
    assert!(last.eq(end.iter().copied()));
    let ms: u32 = frames[..frames.len() - 1].iter().map(|f| f.delay().numer_denom_ms().0).sum();
    assert_eq!(ms, 200 * 50, "the last frame appears when it happened");
}

#[test]
fn an_abandoned_or_refused_video_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = VideoWriter::create(dir.path(), 10.0, VideoFormat::default()).unwrap();
    writer.push(&painted(0.0, 64)).unwrap();
    drop(writer);
    let empty = write_video(&dir.path().join("x"), std::iter::empty(), 10.0);
    assert!(matches!(empty, Err(VideoError::Empty)));
    let sizes = write_video(&dir.path().join("x"), [painted(0.0, 64), painted(0.0, 66)], 10.0);
    assert!(matches!(sizes, Err(VideoError::Shape { got: [66, 66, 3], .. })));
    let tiny = write_video(&dir.path().join("x"), [painted(0.0, 8)], 10.0);
    assert!(matches!(tiny, Err(VideoError::Shape { .. })));
    for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let result = write_video(&dir.path().join("x"), [painted(0.0, 64)], fps);
        assert!(matches!(result, Err(VideoError::Fps { .. })));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_video_replaces_an_older_one_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let short = write_video(&dir.path().join("x"), episode(2, 64), 10.0).unwrap();
    let before = fs::metadata(&short).unwrap().len();
    let long = write_video(&dir.path().join("x"), episode(40, 64), 10.0).unwrap();
    assert_eq!(short, long);
    assert!(fs::metadata(&long).unwrap().len() > before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_thumbnail_is_a_small_png_of_the_same_shape() {
    let dir = tempfile::tempdir().unwrap();
    let frame: Frame = textured(5, 256).slice(ndarray::s![..128, .., ..]).to_owned().into();
    let path = dir.path().join("thumbnails/a.png");
    write_thumbnail(&path, &frame, 160).unwrap();
    let png = fs::read(&path).unwrap();
    assert_eq!(png, thumbnail_png(&frame, 160).unwrap());
    let image = image::load_from_memory(&png).unwrap().to_rgb8();
    assert_eq!(image.dimensions(), (160, 80));
    let mean =
        |values: Vec<u8>| values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
    assert!((mean(image.into_raw()) - mean(frame.iter().copied().collect())).abs() < 1.0);
    let small = thumbnail_png(&painted(0.0, 96), 160).unwrap();
    assert_eq!(image::load_from_memory(&small).unwrap().to_rgb8().dimensions(), (96, 96));
}

/// Writes the videos that `scripts/check_report.sh` plays in a browser.
#[test]
fn a_video_for_the_browser_is_written_beside_the_sample_reports() {
    let folder =
        std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report-samples/pusht/videos");
    let stem = video_stem(0, 17, "failure");
    let path = write_video(&folder.join(&stem), episode(60, 256), 10.0).unwrap();
    assert_eq!(path.file_stem().unwrap().to_str(), Some(stem.as_str()));
    let odd: Frame = textured(2, 128).slice(ndarray::s![..97, ..101, ..]).to_owned().into();
    write_video(&folder.join(video_stem(0, 58, "failure")), vec![odd; 30], 20.0).unwrap();
}
