//! Speed of the loader: samples per CPU-second, as JSON; the other half of `benchmarks/peers/loader_speed.py`.
//!
//! `loader_speed BRIDGE_FOLDER PUSHT_ZARR [SECONDS]` measures, on the caller's thread,
//!
//! * `bridge`: BridgeData V2 in RLDS from closed files to batches of 64, again for every epoch: records read and checked,
//!   parsed, standardised as OpenVLA does, shuffled, two JPEGs decoded per sample;
//! * `pusht_open`: PushT's first 40 episodes from compressed chunks to frames in memory;
//! * `pusht_images`: shuffled batches of 64 windows of them, 2 frames and 16 actions each, frames as f32 in 0..1 with
//!   channels first, as diffusion_policy hands them to its network; `pusht_images_u8` leaves that to the network.
#![expect(clippy::print_stdout, reason = "an example's report goes to standard output")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use simloop_envs::pusht::{CAMERA, PushtObs};
use simloop_trainers::data::{
    Align, Dataset, DemoBatch, DemoSource, Loader, LoaderConfig, LoaderPosition, PushtZarr,
    RldsOptions, RldsSource, WindowDataset, WindowOptions,
};

const BATCH: usize = 64;
/// 5,063 steps: as f32 they take 0.56 GB, which the Python side holds.
const PUSHT_EPISODES: usize = 40;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: loader_speed BRIDGE_FOLDER PUSHT_ZARR [SECONDS]";
    let bridge_folder = arguments.next().ok_or(usage)?;
    let pusht_folder = arguments.next().ok_or(usage)?;
    let seconds = arguments.next().map_or(Ok(3.0), |s| s.parse())?;
    let mut results = Map::new();
    results.insert("bridge".to_owned(), bridge(bridge_folder.as_ref(), seconds)?);
    let start = cpu_seconds()?;
    let pusht = pusht(pusht_folder.as_ref())?;
    let steps = pusht.actions().nrows();
    results.insert("pusht_open".to_owned(), rate(steps, cpu_seconds()? - start, 0.0));
    let pusht: Arc<dyn Dataset> = Arc::new(pusht);
    results.insert("pusht_images".to_owned(), pusht_images(&pusht, true, seconds)?);
    results.insert("pusht_images_u8".to_owned(), pusht_images(&pusht, false, seconds)?);
    println!("{}", json!({"engine": "simloop", "results": results}));
    Ok(())
}

fn bridge(folder: &Path, seconds: f64) -> Result<Value, Box<dyn Error>> {
    let (mut samples, mut epochs, mut sum) = (0, 0.0, 0.0);
    let start = cpu_seconds()?;
    while cpu_seconds()? - start < seconds {
        let options = RldsOptions {
            standardise: Some("bridge_orig".to_owned()),
            skip_unlabeled: true,
            ..RldsOptions::default()
        };
        let source = Arc::new(RldsSource::open(folder, &options)?);
        let episodes = (0..source.episodes().len()).collect();
        let cameras = vec!["primary".to_owned(), "secondary".to_owned()];
        let options = WindowOptions { chunk_size: 1, cameras, ..WindowOptions::default() };
        let data: Arc<dyn Dataset> = Arc::new(WindowDataset::new(source, episodes, options)?);
        let mut loader = loader(&data)?;
        for _ in 0..loader.batches_per_epoch() {
            let batch = loader.next()?;
            samples += batch.len();
            sum +=
                batch.images.values().map(|i| mean(i.as_slice()) * batch.len() as f64).sum::<f64>();
            sum += f64::from(batch.actions.sum());
        }
        epochs += 1.0;
    }
    Ok(rate(samples, cpu_seconds()? - start, sum / epochs))
}

fn pusht(folder: &Path) -> Result<WindowDataset, Box<dyn Error>> {
    let source = Arc::new(PushtZarr::open(folder, PushtObs::PixelsAgentPos)?);
    let options = WindowOptions {
        n_obs_steps: 2,
        chunk_size: 16,
        align: Align::WindowStart,
        pad_after: Some(7),
        cameras: vec![CAMERA.to_owned()],
        ..WindowOptions::default()
    };
    let data = WindowDataset::new(source, (0..PUSHT_EPISODES).collect(), options)?;
    data.preload()?;
    Ok(data)
}

fn pusht_images(
    data: &Arc<dyn Dataset>,
    floats: bool,
    seconds: f64,
) -> Result<Value, Box<dyn Error>> {
    let mut loader = loader(data)?;
    let mut frames = Vec::new();
    let (mut samples, mut sum, mut epoch) = (0, 0.0, None);
    let start = cpu_seconds()?;
    while epoch.is_none() || cpu_seconds()? - start < seconds {
        let batch = loader.next()?;
        samples += batch.len();
        if floats {
            channels_first(&batch, &mut frames);
        }
        // The checksum of the first epoch; the peers must deliver the same numbers.
        if epoch.is_none() {
            sum += f64::from(batch.actions.sum()) + f64::from(batch.proprio.sum());
            if loader.position().epoch > 0 {
                epoch = Some(sum);
            }
        }
    }
    Ok(rate(samples, cpu_seconds()? - start, epoch.unwrap_or(0.0)))
}

/// `[B, T_o, H, W, 3]` u8 to `[B, T_o, 3, H, W]` f32 in 0..1.
fn channels_first(batch: &DemoBatch, out: &mut Vec<f32>) {
    let share: [f32; 256] = std::array::from_fn(|v| v as f32 / 255.0);
    let images = &batch.images[CAMERA];
    let (b, t, h, w, _) = images.dim();
    out.resize(b * t * h * w * 3, 0.0);
    let pixels = images.as_slice().unwrap_or_default();
    for (frame, out) in pixels.chunks_exact(h * w * 3).zip(out.chunks_exact_mut(h * w * 3)) {
        let (red, rest) = out.split_at_mut(h * w);
        let (green, blue) = rest.split_at_mut(h * w);
        let planes = red.iter_mut().zip(green).zip(blue);
        for (pixel, ((r, g), b)) in frame.chunks_exact(3).zip(planes) {
            *r = share[usize::from(pixel[0])];
            *g = share[usize::from(pixel[1])];
            *b = share[usize::from(pixel[2])];
        }
    }
}

fn loader(data: &Arc<dyn Dataset>) -> Result<Loader, Box<dyn Error>> {
    let config = LoaderConfig { batch_size: BATCH, drop_last: false, ..LoaderConfig::default() };
    Ok(Loader::new(Arc::clone(data), config, LoaderPosition::default())?)
}

fn mean(pixels: Option<&[u8]>) -> f64 {
    let pixels = pixels.unwrap_or_default();
    pixels.iter().map(|&v| u64::from(v)).sum::<u64>() as f64 / pixels.len().max(1) as f64
}

fn rate(samples: usize, seconds: f64, checksum: f64) -> Value {
    json!({"samples_per_cpu_second": samples as f64 / seconds, "cpu_seconds": seconds, "checksum": checksum})
}

/// User and system time of this process, all threads, from proc(5); 10 ms ticks.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit(')').next().ok_or("not the layout of proc(5)")?.split_whitespace();
    // The state is field 3 of proc(5); utime and stime are 14 and 15.
    let ticks = fields.skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}
