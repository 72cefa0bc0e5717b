//! The safety gate: random actions, cut links, the emergency stop, stale and frozen observations.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]
#![allow(clippy::print_stdout, reason = "a test says what it measured, or why it was skipped")]

#[path = "widowx_common/python.rs"]
mod python;
#[path = "widowx_common/standin.rs"]
mod standin;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ndarray::arr1;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use simloop_envs::widowx::safety::{Gate, GateState, Limits, Verdict};
use simloop_envs::widowx::{
    Arm, Consent, EmergencyStop, Fault, FaultKind, GatedArm, MockArm, Pose, RobotClient, RobotObs,
    Session, WidowXConfig, WidowXEnv, rotate, rotation_from_rpy,
};
use simloop_envs::{Env as _, EnvError, ResetOptions};
use standin::{StandIn, config, consent, env, quick, workspace};

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn obs(state: [f64; 7], frame: u64, asked_at: Instant) -> RobotObs {
    RobotObs { asked_at, state, full_image: Arc::from(frame.to_le_bytes()) }
}

/// Numbers that a broken policy makes.
fn wild(rng: &mut ChaCha8Rng) -> f64 {
    match rng.random_range(0..100) {
        0..2 => f64::NAN,
        2..4 => f64::INFINITY,
        4..6 => f64::NEG_INFINITY,
        6..8 => 1e38,
        8..10 => f64::from_bits(rng.random_range(1..1 << 40)),
        10..40 => rng.random_range(-1.0..1.0),
        40..60 => rng.random_range(-0.05..0.05),
        60..70 => -1e3,
        70..80 => 1e3,
        _ => rng.random_range(-0.3..0.3),
    }
}

#[test]
fn no_random_action_leads_to_a_command_outside_of_a_limit() {
    let total = number("SIMLOOP_WIDOWX_ACTIONS", 50_000);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut base = Limits::at_5_hz(workspace());
    base.max_lead = 10.0; // the hand here lags as it likes
    let mut tight = base.clone();
    // Limits that bite: several periods to brake.
    tight.speed = [0.2, 0.15, 0.1, 0.8, 0.8, 0.8];
    tight.acceleration = [0.3, 0.2, 0.15, 1.5, 1.5, 1.5];
    let (mut sent, mut refused, mut latched, mut changed, mut non_finite) = (0, 0, 0, 0, 0);
    let mut worst = [0.0_f64; 5];
    for limits in [base, tight] {
        let mut gate = Gate::new(limits.clone()).unwrap();
        let period = limits.period_secs;
        let mut frame = 0;
        let start = [0.3, -0.09, 0.26];
        let mut hand = start;
        // Kept by the test's own arithmetic, not by the gate's.
        let (mut goal, mut moved, mut turned) = (start, [0.0; 3], [0.0; 3]);
        let begin = |gate: &mut Gate| {
            gate.arm(&consent());
            gate.set_goal(start).unwrap();
        };
        begin(&mut gate);
        let origin = Instant::now();
        for _ in 0..total / 2 {
            frame += 1;
            let now = origin + Duration::from_secs_f64(period * frame as f64);
            let state = [hand[0], hand[1], hand[2], 0.0, 0.0, 0.0, 0.5];
            gate.observe(&obs(state, frame, now), now);
            // One broken number in about a tenth of the actions; a drift that heads for a wall for long.
            let mut action = [0.0; 7];
            let broken = rng.random_range(0..10) == 0;
            for value in &mut action {
                *value = if broken { wild(&mut rng) } else { rng.random_range(-0.4..0.4) };
            }
            if rng.random_range(0..4) > 0 {
                action[(frame as usize / 200) % 3] =
                    if (frame as usize / 600).is_multiple_of(2) { 1.0 } else { -1.0 };
            }
            let finite = action.iter().all(|v| v.is_finite());
            match gate.command(&action, now) {
                Verdict::Send { command, changes } => {
                    assert!(finite, "{action:?}");
                    assert!(command.iter().all(|v| v.is_finite()));
                    sent += 1;
                    changed += usize::from(!changes.is_empty());
                    let lead = [0, 1, 2].map(|i| goal[i] - hand[i]);
                    let rpy = [command[3], command[4], command[5]];
                    let swung = rotate(&rotation_from_rpy(rpy), lead);
                    for i in 0..3 {
                        let next = hand[i] + swung[i] + command[i];
                        let step = next - goal[i];
                        worst[0] = worst[0].max(command[i].abs() / limits.step[i]);
                        worst[1] = worst[1].max(step.abs() / period / limits.speed[i]);
                        let change = (step - moved[i]).abs() / period / period;
                        worst[2] = worst[2].max(change / limits.acceleration[i]);
                        let outside =
                            (limits.workspace.low[i] - next).max(next - limits.workspace.high[i]);
                        worst[3] = worst[3].max(outside);
                        (moved[i], goal[i]) = (step, next);
                        let turn = command[i + 3];
                        worst[0] = worst[0].max(turn.abs() / limits.step[i + 3]);
                        worst[1] = worst[1].max(turn.abs() / period / limits.speed[i + 3]);
                        let change = (turn - turned[i]).abs() / period / period;
                        worst[2] = worst[2].max(change / limits.acceleration[i + 3]);
                        turned[i] = turn;
                    }
                    worst[4] = worst[4].max((command[6] - 0.5).abs() - 0.5);
                    assert!(
                        worst[0] < 1.0 + 1e-9
                            && worst[1] < 1.0 + 1e-9
                            && worst[2] < 1.0 + 1e-6
                            && worst[3] < 1e-9
                            && worst[4] <= 0.0,
                        "{worst:?} {action:?} {command:?}"
                    );
                    // The hand follows in its own way.
                    for i in 0..3 {
                        hand[i] += rng.random_range(0.5..1.0) * (goal[i] - hand[i]);
                    }
                }
                Verdict::Refuse(refusal) => {
                    refused += 1;
                    (moved, turned) = ([0.0; 3], [0.0; 3]);
                    if !finite {
                        non_finite += 1;
                        assert_eq!(
                            (refusal.fault.kind, refusal.latched),
                            (FaultKind::NonFinite, true)
                        );
                    }
                    if refusal.latched {
                        latched += 1;
                        // Latched: the best action is refused too, until somebody arms again.
                        assert!(matches!(gate.command(&[0.0; 7], now), Verdict::Refuse(_)));
                        begin(&mut gate);
                        (goal, hand) = (start, start);
                    }
                }
            }
            gate.take_events();
        }
    }
    println!(
        "{total} actions: {sent} sent ({changed} changed), {refused} refused, {latched} latched ({non_finite} not finite); \
         of its limit the worst step {:.6}, speed {:.6}, acceleration {:.6}; outside of the box {:.1e} m",
        worst[0], worst[1], worst[2], worst[3]
    );
    assert!(sent > total / 2 && non_finite > total / 50 && changed > sent / 2);
}

#[test]
fn without_a_box_consent_or_a_pose_inside_nothing_arms() {
    // There is no Default: this is the only way to limits, and it asks for a box.
    let limits = Limits::at_5_hz(workspace());
    let mut gate = Gate::new(limits.clone()).unwrap();
    let now = Instant::now();
    gate.observe(&obs([0.3, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0], 0, now), now);
    let Verdict::Refuse(refusal) = gate.command(&[0.0; 7], now) else { panic!("disarmed") };
    assert_eq!(refusal.fault.kind, FaultKind::Disarmed);
    let session = Session::default();
    let stop = EmergencyStop::default();
    let arm = Box::new(MockArm::new(config().params()));
    let mut env = WidowXEnv::new(config(), arm, stop.clone(), session, None).unwrap();
    let error = env.reset(Some(0), &ResetOptions::default()).unwrap_err();
    assert_eq!(error.class(), "disarmed", "{error}");
    // A box that reaches beyond the server's own: the server's wins, so ours would be a lie.
    let mut wide = config();
    wide.limits.workspace.high[2] = 0.5;
    let error = wide.validate().unwrap_err().to_string();
    assert!(error.contains("its bounds win"), "{error}");
    // A box without the start state.
    let mut narrow = config();
    narrow.limits.workspace.high[2] = 0.2;
    assert!(narrow.validate().unwrap_err().to_string().contains("start state"));
    // Moves go through the same gate.
    gate.arm(&consent());
    let from = Some([0.3, -0.09, 0.26]);
    let second = Duration::from_secs(1);
    let refusals = [
        (Pose::openvla_start([0.3, -0.35, 0.2]), second, "outside"),
        (Pose::openvla_start([0.3, f64::NAN, 0.2]), second, "no pose"),
        (Pose { matrix: [1.0; 16] }, second, "no pose"),
        (Pose::openvla_start([0.3, 0.2, 0.1]), Duration::from_millis(100), "m/s"),
    ];
    for (pose, duration, word) in refusals {
        let refusal = gate.check_move(&pose, duration, from).unwrap_err();
        assert_eq!(refusal.fault.kind, FaultKind::MoveRefused);
        assert!(refusal.fault.detail.contains(word), "{}", refusal.fault.detail);
    }
    gate.check_move(&Pose::openvla_start([0.3, 0.2, 0.1]), second, from).unwrap();
    assert!(gate.take_events().iter().any(|event| event.what.contains("refused")));
}

#[test]
fn stale_and_frozen_observations_allow_no_action() {
    let mut gate = Gate::new(Limits::at_5_hz(workspace())).unwrap();
    gate.arm(&consent());
    gate.set_goal([0.3, 0.0, 0.2]).unwrap();
    let state = [0.3, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0];
    let start = Instant::now();
    let small = [0.001, 0.001, 0.001, 0.001, 0.001, 0.001, 1.0];
    for (age, allowed) in [(0, true), (299, true), (301, false), (5000, false)] {
        gate.observe(&obs(state, age, start), start);
        let verdict = gate.command(&small, start + Duration::from_millis(age));
        assert_eq!(matches!(verdict, Verdict::Send { .. }), allowed, "{age} ms: {verdict:?}");
        if let Verdict::Refuse(refusal) = verdict {
            assert_eq!((refusal.fault.kind, refusal.latched), (FaultKind::StaleObservation, false));
        }
    }
    // A hold ends with a fresh observation, not with an old one.
    gate.hold(Fault::new(FaultKind::PolicyTooSlow, "a test"));
    gate.observe(&obs(state, 1, start), start + Duration::from_millis(400));
    assert!(matches!(gate.command(&small, start), Verdict::Refuse(_)));
    gate.observe(&obs(state, 2, start), start + Duration::from_millis(20));
    assert!(matches!(gate.command(&small, start), Verdict::Send { .. }));
    // The same picture ten times: nothing is sent from the tenth on, also when it moves again.
    let mut allowed = 0;
    for k in 0..30 {
        gate.observe(&obs(state, if k < 20 { 7 } else { k }, start), start);
        allowed += usize::from(matches!(gate.command(&small, start), Verdict::Send { .. }));
    }
    assert_eq!(allowed, 9);
    let GateState::Latched(fault) = gate.state() else { panic!("latched") };
    assert_eq!(fault.kind, FaultKind::CameraFrozen);
}

#[test]
fn steps_without_a_clock_are_no_jump_and_a_jump_is_one() {
    // A simulated arm makes a whole step's way in no time; nothing makes the way to the neutral pose in one step.
    for (way, jumped) in [(0.11, false), (0.30, true)] {
        let mut gate = Gate::new(Limits::at_5_hz(workspace())).unwrap();
        gate.arm(&consent());
        gate.set_goal([0.3, -0.09, 0.26]).unwrap();
        let now = Instant::now();
        for (frame, y) in [(0, -0.09), (1, -0.09 + way)] {
            gate.observe(&obs([0.3, y, 0.26, 0.0, 0.0, 0.0, 0.5], frame, now), now);
        }
        let latched =
            matches!(gate.state(), GateState::Latched(f) if f.kind == FaultKind::Reinitialised);
        assert_eq!(latched, jumped, "{way} m: {:?}", gate.state());
    }
}

#[test]
fn a_long_silence_allows_no_longer_way() {
    // Somebody else's motion hides behind 4.3 s of silence: 0.5 m are a jump, what two periods allow is none.
    for (way, jumped) in [(0.35, false), (0.50, true)] {
        let mut limits = Limits::at_5_hz(workspace());
        limits.outside_tolerance = 1.0;
        limits.workspace.high[1] = 0.25;
        let mut gate = Gate::new(limits).unwrap();
        gate.arm(&consent());
        gate.set_goal([0.3, -0.17, 0.26]).unwrap();
        let now = Instant::now();
        let later = now + Duration::from_millis(4300);
        gate.observe(&obs([0.3, -0.17, 0.26, 0.0, 0.0, 0.0, 0.5], 0, now), now);
        gate.observe(&obs([0.3, -0.17 + way, 0.26, 0.0, 0.0, 0.0, 0.5], 1, later), later);
        let latched =
            matches!(gate.state(), GateState::Latched(f) if f.kind == FaultKind::Reinitialised);
        assert_eq!(latched, jumped, "{way} m: {:?}", gate.state());
    }
}

/// After how many commands to close the gate latches, if the gripper is measured like this after each of them.
fn closing(measured: &[f64]) -> Option<usize> {
    let mut gate = Gate::new(Limits::at_5_hz(workspace())).unwrap();
    gate.arm(&consent());
    gate.set_goal([0.3, 0.0, 0.2]).unwrap();
    let now = Instant::now();
    let see = |gate: &mut Gate, opening: f64, frame: usize| {
        gate.observe(&obs([0.3, 0.0, 0.2, 0.0, 0.0, 0.0, opening], frame as u64, now), now);
    };
    see(&mut gate, 1.0, 0);
    for (k, opening) in measured.iter().enumerate() {
        let verdict = gate.command(&[0.0; 7], now);
        assert!(matches!(verdict, Verdict::Send { .. }), "{verdict:?}");
        see(&mut gate, *opening, k + 1);
        if let GateState::Latched(fault) = gate.state() {
            assert_eq!(fault.kind, FaultKind::GripperNotFollowing, "{fault}");
            return Some(k + 1);
        }
    }
    None
}

#[test]
fn a_gripper_that_opens_again_while_told_to_close_is_noticed() {
    // Recorded at bridge_data_robot a902e5b with a simulated gripper: two controllers of different parameters.
    let fights: [&[f64]; 3] = [
        &[0.95, 1.00, 0.81, 0.72, 0.35, 0.30, 0.29, 0.21, 0.98, 1.00],
        &[0.90, 0.79, 0.90, 1.00, 0.68, 0.48, 0.28, 0.47],
        &[0.95, 0.72, 0.29, 1.00, 0.85, 0.02, 0.07],
    ];
    assert_eq!(fights.map(closing), [Some(9), Some(4), Some(4)]);
    // One controller: empty (recorded), late by a step, on a carrot that gives way and is shifted, and never quite still.
    let follows: [&[f64]; 4] = [
        &[0.70, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02],
        &[1.00, 1.00, 0.62, 0.05, 0.02, 0.02, 0.02, 0.02],
        &[0.75, 0.46, 0.44, 0.45, 0.51, 0.55, 0.48, 0.44],
        &[0.88, 0.30, 0.10, 0.02, 0.12, 0.02, 0.07, 0.12],
    ];
    assert_eq!(follows.map(closing), [None; 4]);
}

#[test]
fn an_arm_that_cannot_follow_is_noticed() {
    let mut gate = Gate::new(Limits::at_5_hz(workspace())).unwrap();
    gate.arm(&consent());
    gate.set_goal([0.3, 0.0, 0.2]).unwrap();
    let now = Instant::now();
    // The server answers 1 although it found no solution, and keeps the target: 0.05 m a step in y.
    for k in 0..60 {
        gate.observe(&obs([0.3, -0.17, 0.2, 0.0, 0.0, 0.0, 1.0], k, now), now);
        gate.command(&[0.0, 0.05, 0.0, 0.0, 0.0, 0.0, 1.0], now);
    }
    let GateState::Latched(fault) = gate.state() else { panic!("{:?}", gate.state()) };
    assert_eq!(fault.kind, FaultKind::NotFollowing, "{fault}");
}

/// A TCP proxy that can be cut: bytes that arrive later are swallowed, and it remembers when the client last sent a command.
struct Cable {
    port: u16,
    cut: Arc<AtomicBool>,
    /// Nanoseconds after `origin` at which the client last sent a command.
    last_sent: Arc<AtomicU64>,
    origin: Instant,
    links: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let last_sent = Arc::new(AtomicU64::new(0));
        let origin = Instant::now();
        let links = Arc::new(Mutex::new(Vec::new()));
        let (cut_, sent_, links_) = (Arc::clone(&cut), Arc::clone(&last_sent), Arc::clone(&links));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                links_
                    .lock()
                    .unwrap()
                    .extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (mut from, mut to, outgoing) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), true),
                    (server, client, false),
                ] {
                    let (cut, sent) = (Arc::clone(&cut_), Arc::clone(&sent_));
                    std::thread::spawn(move || {
                        let mut chunk = vec![0; 1 << 16];
                        while let Ok(n) = from.read(&mut chunk) {
                            if n == 0 {
                                break;
                            }
                            // A command has some 270 bytes, an observation's request 90: looking is allowed.
                            if outgoing && n > 200 {
                                sent.store(origin.elapsed().as_nanos() as u64, Ordering::SeqCst);
                            }
                            if !cut.load(Ordering::SeqCst) && to.write_all(&chunk[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { port: own, cut, last_sent, origin, links }
    }

    fn mend(&self) {
        for link in self.links.lock().unwrap().drain(..) {
            let _ = link.shutdown(std::net::Shutdown::Both);
        }
        self.cut.store(false, Ordering::SeqCst);
    }
}

#[test]
fn a_cut_link_holds_within_two_periods() {
    let Some(python) = python::python() else { return };
    let workers = number("SIMLOOP_WIDOWX_CUT_WORKERS", 3);
    let cuts = number("SIMLOOP_WIDOWX_CUTS", 12).div_ceil(workers);
    let results: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let python = python.clone();
                scope.spawn(move || cut_links(&python, worker as u64, cuts))
            })
            .collect();
        handles.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    let worst = |value: &dyn Fn(&(f64, f64)) -> f64| results.iter().map(value).fold(0.0, f64::max);
    let (held, sent) = (worst(&|r| r.0), worst(&|r| r.1));
    println!(
        "{} cuts: the gate held after at most {:.0} ms, the last command was sent at most {:.0} ms after the cut",
        results.len(),
        1e3 * held,
        1e3 * sent
    );
    assert!(results.len() >= workers * cuts);
    assert!(held <= 0.4 && sent <= 0.4, "{held} {sent}");
}

/// Cuts the cable at random moments of running trials: (seconds to the hold, seconds to the last byte sent).
fn cut_links(python: &std::path::Path, seed: u64, cuts: usize) -> Vec<(f64, f64)> {
    let standin = StandIn::start(python, 1000.0, &json!({}));
    let cable = Cable::to(standin.port);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut results = Vec::new();
    for _ in 0..cuts {
        cable.mend();
        let (stop, session) = (EmergencyStop::default(), Session::default());
        session.consent(consent());
        let params = config().params();
        let client =
            RobotClient::new("127.0.0.1", cable.port, params, quick(), stop.clone()).unwrap();
        let mut env = WidowXEnv::new(config(), Box::new(client), stop, session, None).unwrap();
        env.reset(Some(0), &ResetOptions::default()).unwrap();
        let gate = env.arm().shared_gate();
        let delay = Duration::from_secs_f64(rng.random_range(0.0..0.5));
        let cut = Arc::clone(&cable.cut);
        // When the link was cut and how long the gate then let commands pass.
        let cutter = std::thread::spawn(move || {
            std::thread::sleep(delay);
            cut.store(true, Ordering::SeqCst);
            let at = Instant::now();
            while matches!(gate.lock().unwrap().state(), GateState::Armed) {
                assert!(at.elapsed() < Duration::from_secs(5), "never held");
                std::thread::sleep(Duration::from_micros(500));
            }
            (at, at.elapsed().as_secs_f64())
        });
        let mut k = 0_u32;
        let error = loop {
            std::thread::sleep(Duration::from_millis(50));
            k += 1;
            let wave = 0.005 * (k as f32).sin();
            match env.step(arr1(&[wave, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).view(), true) {
                Ok(_) => assert!(k < 60, "the cut was not noticed"),
                Err(error) => break error,
            }
        };
        let (at, held) = cutter.join().unwrap();
        assert!(matches!(error.class(), "outcome_unknown" | "no_observation"), "{error}");
        let last = cable.origin + Duration::from_nanos(cable.last_sent.load(Ordering::SeqCst));
        results.push((held, last.saturating_duration_since(at).as_secs_f64()));
    }
    results
}

#[test]
fn a_policy_that_stalls_leads_to_a_hold_and_a_late_action_is_not_sent() {
    let (stop, session) = (EmergencyStop::default(), Session::default());
    session.consent(consent());
    let arm = Box::new(MockArm::new(config().params()));
    let mut env = WidowXEnv::new(config(), arm, stop, session, None).unwrap();
    env.reset(Some(0), &ResetOptions::default()).unwrap();
    let still = arr1(&[0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    env.step(still.view(), true).unwrap();
    let seen = env.robot_obs().unwrap().asked_at;
    while env.arm().state() == GateState::Armed {
        assert!(seen.elapsed() < Duration::from_secs(2), "never held");
        std::thread::sleep(Duration::from_millis(1));
    }
    let held = seen.elapsed();
    assert!(held <= Duration::from_millis(400), "{held:?}");
    let GateState::Holding(fault) = env.arm().state() else { panic!("{:?}", env.arm().state()) };
    assert_eq!(fault.kind, FaultKind::PolicyTooSlow);
    // The late action is refused, and the trial goes on.
    env.step(still.view(), true).unwrap();
    assert!(env.take_trace().unwrap().held.unwrap().contains("policy_too_slow"));
    // A policy that is always late ends the trial by name.
    let error = loop {
        std::thread::sleep(Duration::from_millis(310));
        if let Err(error) = env.step(still.view(), true) {
            break error;
        }
    };
    assert_eq!(error.class(), "policy_too_slow", "{error}");
}

/// Remembers when a command was last passed on.
struct Recording {
    inner: MockArm,
    commands: Arc<Mutex<Vec<Instant>>>,
}

impl Arm for Recording {
    fn describe(&self) -> String {
        "a recording arm".to_owned()
    }
    fn init(&mut self) -> Result<(), Fault> {
        self.inner.init()
    }
    fn reset(&mut self) -> Result<(), Fault> {
        self.inner.reset()
    }
    fn move_to(&mut self, pose: &Pose, duration: Duration) -> Result<(), Fault> {
        self.inner.move_to(pose, duration)
    }
    fn step(&mut self, command: &[f64; 7]) -> Result<(), Fault> {
        self.commands.lock().unwrap().push(Instant::now());
        self.inner.step(command)
    }
    fn observe(&mut self) -> Result<RobotObs, Fault> {
        self.inner.observe()
    }
}

#[test]
fn nothing_is_sent_after_the_emergency_stop_until_somebody_arms_again() {
    let rounds = number("SIMLOOP_WIDOWX_STOPS", 200);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut late = Duration::ZERO;
    for _ in 0..rounds {
        let stop = EmergencyStop::default();
        let commands = Arc::new(Mutex::new(Vec::new()));
        let inner = MockArm::new(config().params());
        let arm = Recording { inner, commands: Arc::clone(&commands) };
        let mut arm =
            GatedArm::new(Box::new(arm), Limits::at_5_hz(workspace()), stop.clone()).unwrap();
        arm.arm(&consent()).unwrap();
        arm.reset([0.3, -0.09, 0.26]).unwrap();
        let presser = {
            let (stop, delay) = (stop.clone(), rng.random_range(0..20_000));
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(delay));
                let at = Instant::now();
                stop.press("the test");
                at
            })
        };
        let fault = loop {
            match arm.observe().and_then(|_| arm.step(&[0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])) {
                Ok(_) => {}
                Err(fault) => break fault,
            }
        };
        let pressed = presser.join().unwrap();
        assert_eq!(fault.kind, FaultKind::EmergencyStop);
        // New commands: none gets through.
        for _ in 0..5 {
            assert!(arm.observe().is_err());
            assert!(
                arm.step(&[0.0; 7]).is_err()
                    && arm.init().is_err()
                    && arm.reset([0.3, 0.0, 0.2]).is_err()
            );
        }
        let last = *commands.lock().unwrap().last().unwrap_or(&pressed);
        late = late.max(last.saturating_duration_since(pressed));
        // Arming is refused while it is pressed; released and armed by consent, the arm moves again.
        assert!(arm.arm(&consent()).is_err());
        stop.release(&Consent::of("test"));
        assert!(arm.step(&[0.0; 7]).is_err(), "released is not armed");
        arm.arm(&consent()).unwrap();
        arm.reset([0.3, -0.09, 0.26]).unwrap();
        arm.observe().unwrap();
        arm.step(&[0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).unwrap();
    }
    println!("{rounds} stops: the last command passed at most {late:?} after the press");
    assert!(late <= Duration::from_millis(10), "{late:?}");
}

#[test]
fn the_emergency_stop_ends_every_wait_on_the_wire() {
    let Some(python) = python::python() else { return };
    // A server that takes its time: the stop must not wait for it.
    let faults = json!({"step_secs": 0.4, "obs_secs": 0.0});
    let mut standin = StandIn::start(&python, 1000.0, &faults);
    let (stop, session) = (EmergencyStop::default(), Session::default());
    let mut env =
        env(&standin, WidowXConfig { paced: false, ..config() }, quick(), &stop, &session);
    env.reset(Some(0), &ResetOptions::default()).unwrap();
    standin.clear();
    let presser = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150));
            stop.press("the test");
            Instant::now()
        })
    };
    let error = env.step(arr1(&[0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).view(), true).unwrap_err();
    let noticed = Instant::now();
    let pressed = presser.join().unwrap();
    assert_eq!(error.class(), "emergency_stop", "{error}");
    let late = noticed.saturating_duration_since(pressed);
    assert!(late < Duration::from_millis(50), "{late:?}");
    assert!(matches!(env.step(arr1(&[0.0; 7]).view(), true), Err(EnvError::NeedsReset { .. })));
    session.consent(consent());
    assert_eq!(env.reset(None, &ResetOptions::default()).unwrap_err().class(), "emergency_stop");
    std::thread::sleep(Duration::from_millis(600));
    let log = standin.log();
    assert_eq!(log.iter().filter(|(_, key, _)| key == "step_action").count(), 1, "{log:?}");
}
