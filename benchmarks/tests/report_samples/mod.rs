//! Made-up evaluations of realistic size and shape, and painted frames for their videos.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a sample that cannot be made is a failed test")]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use ndarray::Array3;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use simloop_benchmarks::summary::{
    EpisodeRow, EvalSummary, Headline, Interval, MacroMean, Protocol, ProtocolNumber, RunningPoint,
    TaskRow, Throughput,
};
use simloop_benchmarks::timing::DecisionTimes;
use simloop_envs::Frame;
use simloop_trainers::{FaultNote, MetricRange, Status};

/// Wilson's interval at 95 %.
pub(crate) fn wilson(k: u64, n: u64) -> Option<Interval> {
    let (z, n_f) = (1.959_963_984_540_054_f64, n as f64);
    let p = k as f64 / n_f;
    let centre = p + z * z / (2.0 * n_f);
    let spread = z * (p * (1.0 - p) / n_f + z * z / (4.0 * n_f * n_f)).sqrt();
    let scale = 1.0 + z * z / n_f;
    (n > 0).then_some(Interval {
        low: ((centre - spread) / scale).max(0.0),
        high: ((centre + spread) / scale).min(1.0),
    })
}

/// Everything but tasks and episodes.
pub(crate) fn frame_of(title: &str, suite: &str, policy: &str) -> EvalSummary {
    EvalSummary {
        title: title.to_owned(),
        suite: suite.to_owned(),
        policy: policy.to_owned(),
        protocol: Protocol { name: String::new(), version: String::new(), numbers: Vec::new() },
        command: format!("bench {suite} --policy {policy}"),
        seed: 0,
        started: Some("2026-05-04 12:30 UTC".to_owned()),
        elapsed_secs: 34.6,
        fingerprint: BTreeMap::new(),
        headline: Headline {
            successes: 0,
            completed: 0,
            errors: 0,
            rate: None,
            wilson95: None,
            posterior_mean: None,
            error_bounds: None,
            withheld: None,
        },
        tasks: Vec::new(),
        macro_mean: None,
        episodes: Vec::new(),
        running: Vec::new(),
        throughput: Throughput::default(),
        ledger_digest: "9f2c61d04c9b53a9a6f2f5cc19d1f3b7e1b4b02e6d7a3c58f0e4bb7b6a1d2c3e"
            .to_owned(),
        notes: Vec::new(),
        labels: Vec::new(),
    }
}

/// Fills everything that follows from tasks and episodes.
pub(crate) fn settle(summary: &mut EvalSummary) {
    let count = |status: Status, task: Option<&str>| {
        let of_task =
            |e: &&EpisodeRow| e.status == status && task.is_none_or(|task| e.task == task);
        summary.episodes.iter().filter(of_task).count() as u64
    };
    let mut tasks = summary.tasks.clone();
    for task in &mut tasks {
        task.successes = count(Status::Success, Some(&task.key));
        task.completed = task.successes + count(Status::Failure, Some(&task.key));
        task.errors = count(Status::Error, Some(&task.key));
        task.rate = (task.completed > 0).then(|| task.successes as f64 / task.completed as f64);
        task.wilson95 = wilson(task.successes, task.completed);
        let done: Vec<&EpisodeRow> = summary
            .episodes
            .iter()
            .filter(|e| e.task == task.key && e.status != Status::Error)
            .collect();
        let mean = |value: &dyn Fn(&EpisodeRow) -> f64| {
            (!done.is_empty())
                .then(|| done.iter().map(|e| value(e)).sum::<f64>() / done.len() as f64)
        };
        task.mean_steps = mean(&|e| f64::from(e.steps));
        task.mean_return = mean(&|e| e.ret);
        if let Some(coverage) = mean(&|e| e.metrics.get("coverage").map_or(f64::NAN, |m| m.max))
            .filter(|m| m.is_finite())
        {
            task.metrics.insert("coverage".to_owned(), coverage);
        }
    }
    let (k, n) =
        (count(Status::Success, None), count(Status::Success, None) + count(Status::Failure, None));
    let errors = count(Status::Error, None);
    let all = (n + errors) as f64;
    summary.headline = Headline {
        successes: k,
        completed: n,
        errors,
        rate: (n > 0).then(|| k as f64 / n as f64),
        wilson95: wilson(k, n),
        posterior_mean: Some((k + 1) as f64 / (n + 2) as f64),
        error_bounds: (errors > 0)
            .then(|| Interval { low: k as f64 / all, high: (k + errors) as f64 / all }),
        withheld: (errors as f64 > 0.01 * all)
            .then(|| format!("{errors} of {all} episodes ended in errors, more than 1 %.")),
    };
    if tasks.len() > 1 {
        let mean = tasks.iter().filter_map(|t| t.rate).sum::<f64>() / tasks.len() as f64;
        summary.macro_mean = Some(MacroMean {
            mean,
            bootstrap95: Interval { low: mean - 0.013, high: mean + 0.012 },
            resamples: 10_000,
        });
    }
    let mut successes = 0;
    summary.running = summary
        .episodes
        .iter()
        .filter(|e| e.status != Status::Error)
        .enumerate()
        .map(|(i, e)| {
            successes += u64::from(e.status == Status::Success);
            let n = i as u64 + 1;
            let rate = successes as f64 / n as f64;
            // As wide as a confidence sequence usually is: somewhat more than Wilson.
            let ci = wilson(successes, n).unwrap();
            let wide = |bound: f64| (rate + (bound - rate) * 1.6).clamp(0.0, 1.0);
            RunningPoint {
                completed: n,
                rate,
                band: Interval { low: wide(ci.low), high: wide(ci.high) },
            }
        })
        .collect();
    summary.tasks = tasks;
}

/// A task without results.
pub(crate) fn task(id: u32, key: &str, instruction: &str) -> TaskRow {
    TaskRow {
        id,
        key: key.to_owned(),
        instruction: instruction.to_owned(),
        successes: 0,
        completed: 0,
        errors: 0,
        rate: None,
        wilson95: None,
        mean_steps: None,
        mean_return: None,
        metrics: BTreeMap::new(),
    }
}

/// An episode with what every episode has.
pub(crate) fn episode(task: &str, trial: u32, status: Status, steps: u32, ret: f64) -> EpisodeRow {
    EpisodeRow {
        task: task.to_owned(),
        trial,
        seed: 14_597_723_763_964_911_870 - u64::from(trial) * 7_919,
        init_state: None,
        status,
        fault: (status == Status::Error).then(|| FaultNote {
            class: "deadline".to_owned(),
            detail: "the worker did not answer `step` within 30 s\nstderr: mujoco.FatalError: an <odd> \"state\"".to_owned(),
        }),
        steps,
        ret,
        max_reward: if status == Status::Success { 1.0 } else { 0.0 },
        metrics: BTreeMap::new(),
        wall_secs: f64::from(steps) * 1e-3,
        attempts: if status == Status::Error { 3 } else { 1 },
        video: None,
        thumbnail: None,
    }
}

/// `PushT`, 100 episodes, three failures, with thumbnails.
pub(crate) fn pusht() -> EvalSummary {
    let mut summary = frame_of("PushT, scripted expert", "pusht", "scripted");
    summary.command = String::from("bench pusht --policy scripted --episodes 100 --seed 0");
    summary.protocol = Protocol {
        name: "gym-pusht".to_owned(),
        version: "v1".to_owned(),
        numbers: [
            ("episodes", "100", "this run's --episodes"),
            ("max_steps", "300 steps", "gym-pusht 0.1.8, registration of PushT-v0: https://github.com/huggingface/gym-pusht"),
            ("success_coverage", "0.95 of the goal area", "Chi et al. 2023, Diffusion Policy, https://arxiv.org/abs/2303.04137"),
            ("control_rate", "10 Hz", "gym-pusht 0.1.8, PushTEnv.metadata"),
            ("reset", "agent, block and angle uniform, legacy False", "gym-pusht 0.1.8, PushTEnv.reset"),
        ]
        .map(|(name, value, source)| ProtocolNumber { name: name.into(), value: value.into(), source: source.into() })
        .to_vec(),
    };
    summary.fingerprint = [
        ("simloop", "0.1.0 (b6c1bc0f51)"),
        ("rapier3d", "0.36.1, enhanced-determinism"),
        ("platform", "x86_64 linux"),
        (
            "environment",
            "pusht-v1 sha256:54b0d1c7c1c9b53a9a6f2f5cc19d1f3b7e1b4b02e6d7a3c58f0e4bb7b6a1d2c3e",
        ),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    summary.throughput = Throughput {
        env_steps_per_sec: Some(15_912.0),
        episodes_per_min: Some(173.4),
        secs_per_decision: Some(38e-6),
        decision_times: DecisionTimes::of(&[(38e-6, 1), (76e-6, 2), (99e-6, 1)]),
    };
    summary.tasks = vec![task(0, "pusht", "Push the T-shaped block onto the T-shaped target.")];
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for trial in 0..100 {
        let failed = [17, 58, 83].contains(&trial);
        let status = if failed { Status::Failure } else { Status::Success };
        let steps = if failed {
            300
        } else {
            (90.0 + 60.0 * rng.random::<f64>() + 80.0 * rng.random::<f64>().powi(4)) as u32
        };
        let coverage = if failed {
            0.35 + 0.55 * rng.random::<f64>()
        } else {
            0.95 + 0.04 * rng.random::<f64>()
        };
        let mut row = episode("pusht", trial, status, steps, f64::from(steps) * 0.41);
        row.metrics.insert("coverage".to_owned(), MetricRange { max: coverage, last: coverage });
        if failed || trial < 5 {
            let word = if failed { "failure" } else { "success" };
            let stem = simloop_benchmarks::video::video_stem(0, trial as usize, word);
            row.video = Some(format!("videos/{stem}.mp4"));
            row.thumbnail = Some(thumbnail(&painted(f64::from(trial) / 7.0, 256)));
        }
        summary.episodes.push(row);
    }
    settle(&mut summary);
    summary
}

const SPATIAL: [&str; 10] = [
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "pick up the black bowl next to the ramekin and place it on the plate",
    "pick up the black bowl from table center and place it on the plate",
    "pick up the black bowl on the cookie box and place it on the plate",
    "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate",
    "pick up the black bowl on the ramekin and place it on the plate",
    "pick up the black bowl next to the cookie box and place it on the plate",
    "pick up the black bowl on the stove and place it on the plate",
    "pick up the black bowl next to the plate and place it on the plate",
    "pick up the black bowl on the wooden cabinet and place it on the plate",
];

/// LIBERO-spatial, 10 x 50, with failures and `errors` errors.
pub(crate) fn libero(errors: u32) -> EvalSummary {
    let mut summary = frame_of("LIBERO-spatial, scripted expert", "libero_spatial", "scripted");
    summary.elapsed_secs = 7384.0;
    summary.command = String::from(
        "bench libero --suite spatial --policy scripted --trials 50 --protocol openvla --workers 2 --seed 0 --output-dir outputs/libero_spatial_scripted",
    );
    summary.protocol = Protocol {
        name: "openvla".to_owned(),
        version: "v1".to_owned(),
        numbers: [
            (
                "max_steps",
                "220 steps",
                "openvla experiments/robot/libero/run_libero_eval.py; longest demonstration 193",
            ),
            (
                "settle_steps",
                "10 steps",
                "openvla experiments/robot/libero/run_libero_eval.py, num_steps_wait",
            ),
            ("env_seed", "0", "openvla experiments/robot/libero/libero_utils.py"),
            (
                "camera",
                "256 x 256 pixels, rotated by 180 degrees",
                "openvla experiments/robot/libero/libero_utils.py",
            ),
        ]
        .map(|(name, value, source)| ProtocolNumber {
            name: name.into(),
            value: value.into(),
            source: source.into(),
        })
        .to_vec(),
    };
    summary.fingerprint = [
        ("mujoco", "3.2.3"),
        ("robosuite", "1.4.1"),
        ("hf-libero", "0.1.4"),
        ("renderer", "OSMesa"),
        ("python", "3.11.7"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    summary.throughput = Throughput {
        env_steps_per_sec: Some(96.4),
        episodes_per_min: Some(4.06),
        secs_per_decision: Some(0.0012),
        decision_times: None,
    };
    summary.notes = vec!["Task 5 was checked by the preflight: the bowl rests on the ramekin in all 50 initial states.".to_owned()];
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (id, instruction) in SPATIAL.iter().enumerate() {
        let key = format!("libero_spatial/{id}");
        summary.tasks.push(task(id as u32, &key, instruction));
        let skill = [0.98, 1.0, 0.96, 0.92, 0.78, 0.9, 0.98, 0.94, 1.0, 0.86][id];
        for trial in 0..50 {
            let is_error = id == 4 && trial < errors;
            let status = match (is_error, rng.random_bool(skill)) {
                (true, _) => Status::Error,
                (_, true) => Status::Success,
                (_, false) => Status::Failure,
            };
            let steps = if status == Status::Success {
                85 + (70.0 * rng.random::<f64>().powi(2)) as u32
            } else {
                220
            };
            let ret = if status == Status::Success { 1.0 } else { 0.0 };
            let mut row = episode(&key, trial, status, steps, ret);
            row.init_state = Some(trial);
            if status == Status::Failure {
                let stem = simloop_benchmarks::video::video_stem(id, trial as usize, "failure");
                row.video = Some(format!("videos/{stem}.mp4"));
                row.thumbnail = Some(scene(summary.episodes.len()));
            }
            summary.episodes.push(row);
        }
    }
    settle(&mut summary);
    summary
}

/// One of a few previews of textured scenes, painted once.
pub(crate) fn scene(number: usize) -> Vec<u8> {
    static SCENES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let scenes =
        SCENES.get_or_init(|| (0..6).map(|seed| thumbnail(&textured(seed, 128))).collect());
    scenes[number % scenes.len()].clone()
}

/// The preview that a report shows.
pub(crate) fn thumbnail(frame: &Frame) -> Vec<u8> {
    simloop_benchmarks::video::thumbnail_png(frame, 128).unwrap()
}

/// A T-shaped block turned by `angle_rad`, its goal and the agent, `[side, side, 3]`.
pub(crate) fn painted(angle_rad: f64, side: usize) -> Frame {
    let inside_t = |x: f64, y: f64| {
        (x.abs() < 0.2 && y.abs() < 0.05) || (x.abs() < 0.05 && (0.0..0.25).contains(&y))
    };
    let pixel = |row: usize, column: usize| -> [u8; 3] {
        let (x, y) = (column as f64 / side as f64 - 0.5, row as f64 / side as f64 - 0.5);
        let (sin, cos) = angle_rad.sin_cos();
        let (bx, by) = (x - 0.12 * cos, y - 0.12 * sin);
        let agent = (x + 0.3 * sin).hypot(y - 0.3 * cos) < 0.03;
        if agent {
            [65, 105, 225]
        } else if inside_t(bx * cos + by * sin, by * cos - bx * sin) {
            [119, 136, 153]
        } else if inside_t((x - y) * 0.707, (x + y) * 0.707) {
            [144, 238, 144]
        } else {
            [255, 255, 255]
        }
    };
    Array3::from_shape_fn((side, side, 3), |(row, column, channel)| pixel(row, column)[channel])
        .into()
}

/// A smooth scene with texture and noise, as hard to compress as a rendered one, `[side, side, 3]`.
pub(crate) fn textured(seed: u64, side: usize) -> Frame {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let phase = rng.random::<f64>() * 6.0;
    Array3::from_shape_fn((side, side, 3), |(row, column, channel)| {
        let (x, y) = (column as f64 / side as f64, row as f64 / side as f64);
        let wood =
            ((x * 40.0 + (y * 9.0 + phase).sin() * 3.0).sin() * 14.0 + 150.0) * (1.0 - 0.35 * y);
        let bowl = (x - 0.5 - 0.2 * phase.sin()).hypot(y - 0.55) < 0.13;
        let plate = (x - 0.5 + 0.2 * phase.cos()).hypot((y - 0.6) * 1.4) < 0.18;
        let tint = [1.0, 0.82, 0.62][channel];
        let value = if bowl {
            45.0 + 30.0 * x
        } else if plate {
            225.0 - 60.0 * y
        } else {
            wood * tint
        };
        (value + rng.random_range(-3.0..3.0)).clamp(0.0, 255.0) as u8
    })
    .into()
}
