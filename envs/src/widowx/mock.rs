//! A simulated arm over a table with a carrot and a plate: kinematics without physics, a camera, no wire.
//!
//! It follows the server's rules for goals (see [`Gate`](super::Gate)) and lags behind them like the real arm. Time passes
//! with commands, not with the clock, so that an episode depends on its seed alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image::codecs::jpeg::JpegEncoder;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::arm::{Arm, Pose, rotate, rotation_from_rpy};
use super::fault::Fault;
use super::messages::EnvParams;
use super::observation::RobotObs;

/// The camera's frame, pixels.
const WIDTH: usize = 640;
const HEIGHT: usize = 480;
/// The part of the way to its goal that the hand makes in a step.
const FOLLOWS: f64 = 0.85;
/// A closing gripper this near to the carrot grasps it, metres.
const GRASP: f64 = 0.035;
/// A carrot this near to the plate's middle lies on it, metres.
const PLATE_RADIUS: f64 = 0.07;
/// Height of the lying carrot's middle, metres.
const CARROT_Z: f64 = 0.03;
const NEUTRAL: [f64; 6] = [0.1202, -0.0191, 0.2467, -0.0399, -0.1272, 0.0252];

/// What the simulated scene truly is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scene {
    /// The hand, metres.
    pub hand: [f64; 3],
    /// The gripper's opening, 0 to 1.
    pub opening: f64,
    /// The carrot's middle, metres.
    pub carrot: [f64; 3],
    /// The plate's middle, metres.
    pub plate: [f64; 3],
    /// Whether the carrot lies on the plate and the hand has let go.
    pub solved: bool,
}

/// The simulated arm.
#[derive(Debug)]
pub struct MockArm {
    params: EnvParams,
    rng: ChaCha8Rng,
    pose: [f64; 6],
    goal: [f64; 6],
    opening: f64,
    gripper_goal: f64,
    carrot: [f64; 3],
    plate: [f64; 3],
    held: bool,
    frames: u32,
}

impl MockArm {
    /// An arm at its neutral pose.
    pub fn new(params: EnvParams) -> Self {
        let mut arm = Self {
            params,
            rng: ChaCha8Rng::seed_from_u64(0),
            pose: NEUTRAL,
            goal: NEUTRAL,
            opening: 1.0,
            gripper_goal: 1.0,
            carrot: [0.0; 3],
            plate: [0.0; 3],
            held: false,
            frames: 0,
        };
        arm.scatter();
        arm
    }

    fn scatter(&mut self) {
        let rng = &mut self.rng;
        self.carrot = [rng.random_range(0.26..0.34), rng.random_range(-0.12..-0.04), CARROT_Z];
        self.plate = [rng.random_range(0.26..0.34), rng.random_range(0.06..0.14), 0.01];
        self.held = false;
    }

    fn hand(&self) -> [f64; 3] {
        [self.pose[0], self.pose[1], self.pose[2]]
    }

    fn settle(&mut self, part: f64) {
        for i in 0..6 {
            self.pose[i] += part * (self.goal[i] - self.pose[i]);
        }
        self.opening += part * (self.gripper_goal - self.opening);
        let near = distance(self.hand(), self.carrot) < GRASP;
        if self.gripper_goal < 0.5 && near {
            self.held = true;
        } else if self.gripper_goal > 0.5 && self.held {
            self.held = false;
            self.carrot[2] = CARROT_Z;
        }
        if self.held {
            self.carrot = self.hand();
        }
    }

    fn picture(&self) -> Vec<u8> {
        let mut canvas = Canvas::table();
        canvas.disc(self.plate, PLATE_RADIUS, [225, 228, 232], [190, 196, 204]);
        canvas.carrot(self.carrot);
        canvas.gripper(self.hand(), self.opening);
        canvas.clock(self.frames);
        canvas.jpeg()
    }
}

impl Arm for MockArm {
    fn describe(&self) -> String {
        "a simulated arm".to_owned()
    }

    fn seed(&mut self, seed: u64) {
        self.rng = ChaCha8Rng::seed_from_u64(seed);
    }

    fn scene(&self) -> Option<Scene> {
        let away = distance(self.hand(), self.carrot) > GRASP;
        let on = (self.carrot[0] - self.plate[0]).hypot(self.carrot[1] - self.plate[1]);
        Some(Scene {
            hand: self.hand(),
            opening: self.opening,
            carrot: self.carrot,
            plate: self.plate,
            solved: !self.held && away && on < PLATE_RADIUS,
        })
    }

    fn init(&mut self) -> Result<(), Fault> {
        (self.pose, self.goal) = (NEUTRAL, NEUTRAL);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Fault> {
        let s = self.params.start_state;
        self.goal = [s[0], s[1], s[2], s[3], s[4], s[5]];
        self.gripper_goal = 1.0;
        self.settle(1.0);
        self.scatter();
        self.frames = 0;
        Ok(())
    }

    fn move_to(&mut self, pose: &Pose, _duration: Duration) -> Result<(), Fault> {
        self.goal[..3].copy_from_slice(&pose.position());
        self.settle(1.0);
        Ok(())
    }

    fn step(&mut self, command: &[f64; 7]) -> Result<(), Fault> {
        let lead = [0, 1, 2].map(|i| self.goal[i] - self.pose[i]);
        let swung = rotate(&rotation_from_rpy([command[3], command[4], command[5]]), lead);
        for i in 0..3 {
            let to = self.pose[i] + swung[i] + command[i];
            self.goal[i] = to.clamp(self.params.low[i], self.params.high[i]);
            // Small angles add up; the picture does not show them.
            self.goal[i + 3] += command[i + 3];
        }
        self.gripper_goal = command[6];
        self.settle(FOLLOWS);
        Ok(())
    }

    fn observe(&mut self) -> Result<RobotObs, Fault> {
        let asked_at = Instant::now();
        self.frames += 1;
        let p = self.pose;
        Ok(RobotObs {
            asked_at,
            state: [p[0], p[1], p[2], p[3], p[4], p[5], self.opening],
            full_image: Arc::from(self.picture()),
        })
    }
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// A picture of the table from the operator's side: x goes up, y to the left, height lifts a little.
struct Canvas {
    pixels: Vec<u8>,
}

impl Canvas {
    fn table() -> Self {
        let mut pixels = vec![0; WIDTH * HEIGHT * 3];
        for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let (x, y) = (i % WIDTH, i / WIDTH);
            let grain = ((x * 7 + y * 3) % 11) as u8;
            pixel.copy_from_slice(&[150 + grain, 118 + grain, 86 + grain / 2]);
        }
        Self { pixels }
    }

    /// Where a point of the base frame is seen.
    fn place(point: [f64; 3]) -> (f64, f64) {
        let scale = 1100.0;
        (
            WIDTH as f64 / 2.0 - point[1] * scale,
            HEIGHT as f64 - 40.0 - (point[0] - 0.1) * scale * 0.9 - point[2] * scale * 0.45,
        )
    }

    fn ellipse(&mut self, centre: (f64, f64), radii: (f64, f64), colour: [u8; 3]) {
        let rows = clipped(centre.1, radii.1, HEIGHT);
        for y in rows {
            for x in clipped(centre.0, radii.0, WIDTH) {
                let dx = (x as f64 - centre.0) / radii.0;
                let dy = (y as f64 - centre.1) / radii.1;
                if dx * dx + dy * dy <= 1.0 {
                    let at = (y * WIDTH + x) * 3;
                    self.pixels[at..at + 3].copy_from_slice(&colour);
                }
            }
        }
    }

    fn rectangle(&mut self, x: (f64, f64), y: (f64, f64), colour: [u8; 3]) {
        let middle = |side: (f64, f64)| f64::midpoint(side.0, side.1);
        let half = |side: (f64, f64)| (side.1 - side.0) / 2.0;
        for row in clipped(middle(y), half(y), HEIGHT) {
            for column in clipped(middle(x), half(x), WIDTH) {
                let at = (row * WIDTH + column) * 3;
                self.pixels[at..at + 3].copy_from_slice(&colour);
            }
        }
    }

    fn disc(&mut self, centre: [f64; 3], radius: f64, rim: [u8; 3], inside: [u8; 3]) {
        let seen = Self::place(centre);
        let radius = radius * 1100.0;
        self.ellipse(seen, (radius, radius * 0.8), rim);
        self.ellipse(seen, (radius * 0.75, radius * 0.6), inside);
    }

    fn carrot(&mut self, at: [f64; 3]) {
        let (x, y) = Self::place(at);
        let (sx, sy) = Self::place([at[0], at[1], 0.0]);
        self.ellipse((sx, sy), (30.0, 8.0), [96, 76, 58]);
        self.ellipse((x, y), (34.0, 12.0), [236, 112, 28]);
        self.ellipse((x + 34.0, y), (13.0, 8.0), [52, 148, 60]);
    }

    fn gripper(&mut self, hand: [f64; 3], opening: f64) {
        let (x, y) = Self::place(hand);
        let shadow = Self::place([hand[0], hand[1], 0.0]);
        self.ellipse(shadow, (24.0, 7.0), [96, 76, 58]);
        let gap = 12.0 + 26.0 * opening.clamp(0.0, 1.0);
        let metal = [44, 46, 52];
        self.rectangle((x - gap - 9.0, x + gap + 9.0), (y - 58.0, y - 40.0), metal);
        for side in [-1.0, 1.0] {
            let middle = x + side * gap;
            self.rectangle((middle - 7.0, middle + 7.0), (y - 42.0, y + 4.0), metal);
        }
        self.rectangle((x - 13.0, x + 13.0), (0.0, y - 56.0), [62, 66, 74]);
    }

    /// A mark that moves with every frame, so that no two frames are the same.
    fn clock(&mut self, frame: u32) {
        let x = f64::from(frame * 8 % WIDTH as u32);
        self.rectangle((x, x + 6.0), (0.0, 6.0), [240, 240, 240]);
    }

    /// As the server sends it: red and blue exchanged, quality 95.
    fn jpeg(mut self) -> Vec<u8> {
        for pixel in self.pixels.chunks_exact_mut(3) {
            pixel.swap(0, 2);
        }
        let mut out = Vec::new();
        // A Vec takes everything, and the size is right by construction: an empty picture would be a bad reply.
        let (width, height) = (WIDTH as u32, HEIGHT as u32);
        let _ = JpegEncoder::new_with_quality(&mut out, 95).encode(
            &self.pixels,
            width,
            height,
            image::ExtendedColorType::Rgb8,
        );
        out
    }
}

fn clipped(middle: f64, half: f64, end: usize) -> std::ops::Range<usize> {
    let low = (middle - half).max(0.0) as usize;
    let high = (middle + half + 1.0).clamp(0.0, end as f64) as usize;
    low.min(end)..high
}
