//! Requests per second of the policy server: the small VLA of `train_step`, clients that ask as fast as they are answered.
//!
//! ```text
//! cargo run --release -p simloop-trainers --example serve_load -- --clients 16 --batch 1
//! cargo run --release -p simloop-trainers --example serve_load -- --clients 16 --batch 16
//! ```
//!
//! `--batch 1` decides one by one, without padding. Clients are websockets in this process. Prints one line of JSON.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use ndarray::Array2;
use simloop_envs::ImageSpace;
use simloop_policies::normalize::Stats;
use simloop_policies::remote::{Array, Description, Dtype, Node, msgpack};
use simloop_policies::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use simloop_trainers::TrainerError;
use simloop_trainers::serve::{Loaded, ServeConfig, Server};
use tungstenite::Message;

/// Side of the image, pixels.
const SIDE: u32 = 96;

#[derive(Parser)]
struct Args {
    /// Clients at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Rows of a batch.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// The longest wait for others, milliseconds.
    #[arg(long, default_value_t = 2.0)]
    max_wait_ms: f64,
    /// Threads inside one operation of libtorch.
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

fn load(batch: usize, threads: i32) -> Result<Loaded, TrainerError> {
    tch::set_num_threads(threads);
    let config: VlaConfig = toml::from_str(
        r#"
        n_obs_steps = 1
        vision = { kind = "vit" }
        state = { kind = "mlp", width = 192 }
        fusion = { kind = "concat" }
        head = { kind = "flow", denoiser = { kind = "transformer", width = 256, layers = 4, heads = 4 } }
        "#,
    )
    .map_err(|e| TrainerError::config(e.to_string()))?;
    let config = VlaConfig { inference_batch: batch, ..config };
    let names = |n: usize| (0..n).map(|i| format!("x{i}")).collect::<Vec<_>>();
    let space = ImageSpace { height: SIDE, width: SIDE };
    let io = PolicyIo {
        cameras: [("pixels".to_owned(), space)].into(),
        proprio: names(2),
        action: names(2),
        convention: None,
        control_hz: None,
    };
    let stats = |d| Stats::of(Array2::from_shape_fn((10, d), |(i, _)| i as f32).view());
    let normalizers = Normalizers::fit(&config, stats(2)?, stats(2)?)?;
    let policy = VlaPolicy::new(config, io.clone(), normalizers, tch::Device::Cpu, 0)?;
    let description = Description {
        label: "small vla".to_owned(),
        sha256: String::new(),
        io,
        cameras: policy.cameras().to_vec(),
        n_obs_steps: 1,
        inference_batch: batch,
        ensemble: false,
        device: "cpu".to_owned(),
        torch_threads: threads,
        libtorch: simloop_policies::device::TORCH_VERSION.to_owned(),
    };
    Ok(Loaded { policy: Box::new(policy), description, reads: false })
}

/// Milliseconds of each answer of one client, and the sizes of the batches they were in.
fn client(at: SocketAddr, number: usize, until: Instant) -> Result<Vec<(f64, i64)>> {
    let stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    let (mut socket, _) = tungstenite::client(format!("ws://{at}/"), stream)?;
    socket.read()?;
    let side = SIDE as usize;
    let pixels: Vec<u8> =
        (0..side * side * 3).map(|i| ((i * 7 + number * 31) % 256) as u8).collect();
    let mut answers = Vec::new();
    while Instant::now() < until {
        let image = Array::new(Dtype::U8, vec![side, side, 3], pixels.as_slice().into())?;
        let state = Array::f32(&[2], [number as f32, answers.len() as f32].into_iter())?;
        let message = msgpack::write(&Node::map([
            ("observation/image", Node::Array(image)),
            ("observation/state", Node::Array(state)),
            ("prompt", Node::Text("go".into())),
        ]));
        let begun = Instant::now();
        socket.send(Message::Binary(message.into()))?;
        let Message::Binary(bytes) = socket.read()? else { bail!("no answer") };
        let took = begun.elapsed().as_secs_f64() * 1e3;
        let reply = msgpack::read(&bytes)?;
        let batch = reply.find("server_timing/batch").and_then(Node::as_u64).context("batch")?;
        answers.push((took, batch as i64));
    }
    Ok(answers)
}

#[expect(clippy::print_stdout, reason = "the result of a measurement")]
fn main() -> Result<()> {
    let args = Args::parse();
    let config = ServeConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        max_wait: Duration::from_secs_f64(args.max_wait_ms / 1e3),
        ..ServeConfig::default()
    };
    let (batch, threads) = (args.batch, args.threads);
    let server = Server::start(config, Box::new(move || load(batch, threads)))?;
    let at = server.address();
    // The first batches allocate.
    client(at, 0, Instant::now() + Duration::from_secs_f64(0.3 * args.seconds))?;
    let until = Instant::now() + Duration::from_secs_f64(args.seconds);
    let answers: Vec<Result<Vec<(f64, i64)>>> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..args.clients).map(|n| scope.spawn(move || client(at, n, until))).collect();
        let gone = |_| Err(anyhow::anyhow!("a client panicked"));
        clients.into_iter().map(|c| c.join().unwrap_or_else(gone)).collect()
    });
    let mut all = Vec::new();
    for answers in answers {
        all.extend(answers?);
    }
    let mut times: Vec<f64> = all.iter().map(|(ms, _)| *ms).collect();
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() as f64 * part) as usize).min(times.len() - 1)];
    let line = serde_json::json!({
        "clients": args.clients,
        "batch": args.batch,
        "threads": args.threads,
        "requests_per_sec": all.len() as f64 / args.seconds,
        "mean_batch": all.iter().map(|(_, n)| *n as f64).sum::<f64>() / all.len() as f64,
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
    });
    println!("{line}");
    server.stop();
    Ok(())
}
