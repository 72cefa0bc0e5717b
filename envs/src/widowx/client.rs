//! The robot server's client: one request at a time, a deadline for each, and no motion sent twice.
//!
//! # Details
//! 1. A request is written to a live connection or not at all. What failed before its first byte says so
//!    ([`FaultKind::NoConnection`]).
//! 2. A request that may move the robot and is not answered has an unknown outcome: the connection is dropped and the
//!    request is never sent again. The server keeps what it received in a queue and may still carry it out.
//! 3. The emergency stop is looked at before every write and during every wait.
//! 4. A server that meets an exception closes its socket, initialises the robot (the arm moves to neutral by itself) and only
//!    then listens again, 4 to 8 s later. [`Arm::diagnose`] tells it from one that died by waiting for the port.
//! 5. `init` with the parameters of a robot that the server already has is a reset and leaves the size of `image` alone; with
//!    other ones it builds a second robot. So a known robot is given another size, and a size that changes gives it away.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use super::arm::{Arm, Pose};
use super::fault::{Fault, FaultKind};
use super::messages::{self, EnvParams};
use super::observation::RobotObs;
use super::pickle::Value;
use super::stop::EmergencyStop;
use super::zmtp::{Connection, Patience, ZmtpError};

/// The robot server's usual port.
pub const PORT: u16 = 5556;

/// Between two looks for a server that closed its port.
const LOOK_FOR_SERVER: Duration = Duration::from_millis(100);
/// A server that is back within this has opened its socket anew and no more; initialising the robot takes seconds.
const ONLY_THE_SOCKET: Duration = Duration::from_millis(600);
/// The size that a known robot is given at `init` if it does not have it already. Only `full_image` is used.
const MARKING_SIDES: [u32; 2] = [256, 255];

/// How long each kind of request may take. The defaults are the longest times seen, with room: the first `step_action`
/// compiles the server's kinematics (up to 10 s, before the clock of a trial starts).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deadlines {
    /// Connecting and shaking hands, and `hash`.
    pub connect: Duration,
    /// `obs`.
    pub obs: Duration,
    /// `step_action` and `gripper`.
    pub step: Duration,
    /// The first `step_action` of a session.
    pub first_step: Duration,
    /// `move`, beyond its own duration.
    pub move_extra: Duration,
    /// `reset`.
    pub reset: Duration,
    /// `init`.
    pub init: Duration,
    /// How long a server that closed the connection may stay away while it initialises the robot.
    pub reopen: Duration,
    /// Unacknowledged bytes end a connection after so long.
    pub unacknowledged: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            obs: Duration::from_secs(2),
            step: Duration::from_secs(5),
            first_step: Duration::from_secs(20),
            move_extra: Duration::from_secs(5),
            reset: Duration::from_secs(30),
            init: Duration::from_mins(2),
            // 4 to 8 s were seen, on a simulated arm.
            reopen: Duration::from_secs(15),
            // Two control periods: a command that did not get through by then must not get through later.
            unacknowledged: Duration::from_millis(400),
        }
    }
}

/// What a server shows to somebody who only looks.
#[derive(Clone, Debug)]
pub enum Probe {
    /// Nothing answers.
    Silent(Fault),
    /// It runs and has forgotten the robot, or never knew it: a fresh process.
    NotInitialised,
    /// It runs and knows the robot.
    Initialised(Box<RobotObs>),
}

/// A client of `widowx_env_service --server`.
#[derive(Debug)]
pub struct RobotClient {
    address: SocketAddr,
    params: EnvParams,
    deadlines: Deadlines,
    stop: EmergencyStop,
    connection: Option<Connection>,
    stepped: bool,
    known_before: bool,
    /// When the server last closed the connection under a request, until it was looked into.
    closed_at: Option<Instant>,
}

/// What a server shows of its robot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Built {
    Nothing,
    /// The side of `image`, if it can be told.
    Robot {
        side: Option<u32>,
    },
}

/// Whether a request may move the robot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Motion,
    None,
}

impl RobotClient {
    /// A client that has not connected yet. A name is looked up once, here.
    ///
    /// # Errors
    /// [`FaultKind::NoConnection`] for a name that cannot be resolved.
    pub fn new(
        host: &str,
        port: u16,
        params: EnvParams,
        deadlines: Deadlines,
        stop: EmergencyStop,
    ) -> Result<Self, Fault> {
        let unknown = |why: String| {
            Fault::new(FaultKind::NoConnection, format!("there is no host `{host}`: {why}"))
        };
        let mut found = (host, port).to_socket_addrs().map_err(|e| unknown(e.to_string()))?;
        let address = found.next().ok_or_else(|| unknown("it has no address".to_owned()))?;
        Ok(Self {
            address,
            params,
            deadlines,
            stop,
            connection: None,
            stepped: false,
            known_before: false,
            closed_at: None,
        })
    }

    /// Where the server is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Looks at the server without touching the robot, on a connection of its own.
    pub fn probe(&mut self) -> Probe {
        self.connection = None;
        let seen = self.hash().and_then(|()| self.observation());
        self.connection = None;
        match seen {
            Ok(obs) => Probe::Initialised(Box::new(obs)),
            Err(fault) if fault.kind == FaultKind::NotInitialised => Probe::NotInitialised,
            Err(fault) => Probe::Silent(fault),
        }
    }

    /// Shakes hands: keys and version are compared, ports may differ.
    ///
    /// # Errors
    /// [`FaultKind::NoConnection`], [`FaultKind::Handshake`], [`FaultKind::BadReply`].
    pub fn hash(&mut self) -> Result<(), Fault> {
        let limit = self.deadlines.connect;
        let reply = self.exchange("hash", &messages::hash(), limit, Effect::None)?;
        messages::check_hash(&messages::decode(&reply)?)
    }

    /// Opens (above 0.5) or closes the gripper, outside of a step.
    ///
    /// # Errors
    /// As [`Arm::step`].
    pub fn gripper(&mut self, open: f64) -> Result<(), Fault> {
        self.act("gripper", &messages::gripper(open), self.deadlines.step)
    }

    fn observation(&mut self) -> Result<RobotObs, Fault> {
        let asked_at = Instant::now();
        let reply = self.exchange("obs", &messages::obs(), self.deadlines.obs, Effect::None)?;
        RobotObs::from_reply(&messages::decode(&reply)?, asked_at)
    }

    /// Which robot the server has. Nothing moves.
    fn built(&mut self) -> Result<Built, Fault> {
        let reply = self.exchange("obs", &messages::obs(), self.deadlines.obs, Effect::None)?;
        let reply = messages::decode(&reply)?;
        match RobotObs::from_reply(&reply, Instant::now()) {
            Ok(_) => Ok(Built::Robot { side: messages::image_side(&reply) }),
            Err(fault) if fault.kind == FaultKind::NotInitialised => Ok(Built::Nothing),
            Err(fault) => Err(fault),
        }
    }

    fn act(&mut self, name: &str, request: &Value<'_>, limit: Duration) -> Result<(), Fault> {
        let reply = self.exchange(name, request, limit, Effect::Motion)?;
        let checked = messages::decode(&reply).and_then(|r| messages::check_status(name, &r));
        if checked.is_err() {
            self.connection = None;
        }
        checked
    }

    /// Whether the server shakes hands; a tunnel to it accepts connections whether the server does or not. No request is
    /// sent.
    fn listens(&self) -> bool {
        let patience = Patience {
            connect: self.deadlines.connect.min(Duration::from_secs(1)),
            unacknowledged: self.deadlines.unacknowledged,
        };
        Connection::open(self.address, patience, &|| self.stop.is_pressed()).is_ok()
    }

    /// Waits for a closed port to open: after how long it did, or `None` if it did not or the stop was pressed.
    fn reopens(&self, closed_at: Instant) -> Option<Duration> {
        // A dying process closes its sockets one after the other.
        let mut next = closed_at + LOOK_FOR_SERVER;
        while closed_at.elapsed() < self.deadlines.reopen && !self.stop.is_pressed() {
            if Instant::now() < next {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            if self.listens() {
                return Some(closed_at.elapsed());
            }
            next = Instant::now() + LOOK_FOR_SERVER;
        }
        None
    }

    /// Sends one request and returns the pickle of its reply.
    fn exchange(
        &mut self,
        name: &str,
        request: &Value<'_>,
        limit: Duration,
        effect: Effect,
    ) -> Result<Vec<u8>, Fault> {
        let stop = self.stop.clone();
        let pressed = move || stop.is_pressed();
        let stopped = |when: &str| {
            let detail = format!("`{name}` was {when}: stopped by {}", self.stop.by());
            Fault::new(FaultKind::EmergencyStop, detail)
        };
        let body = messages::encode(request);
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let patience = Patience {
                connect: self.deadlines.connect,
                unacknowledged: self.deadlines.unacknowledged,
            };
            Connection::open(self.address, patience, &pressed).map_err(|e| match e {
                ZmtpError::Cancelled => stopped("not sent"),
                ZmtpError::Peer { .. } => Fault::new(FaultKind::Handshake, e.to_string()),
                e => Fault::new(
                    FaultKind::NoConnection,
                    format!("`{name}` was not sent to {}: {e}", self.address),
                ),
            })?
        };
        if pressed() {
            return Err(stopped("not sent"));
        }
        // From here on the bytes may have left: whatever fails, the connection is dropped and never reused.
        let reply = connection.request(&body, limit, &pressed);
        self.closed_at = matches!(reply, Err(ZmtpError::Closed)).then(Instant::now);
        let reply = reply.map_err(|e| match (e, effect) {
            (ZmtpError::Cancelled, _) => stopped("given up"),
            // A server that met an exception opens its socket anew and forgets the request.
            (
                e @ (ZmtpError::Closed | ZmtpError::Deadline { .. } | ZmtpError::Io { .. }),
                Effect::Motion,
            ) => Fault::new(FaultKind::OutcomeUnknown, format!("`{name}` was sent, then: {e}")),
            (e, Effect::None) => Fault::new(FaultKind::NoObservation, format!("`{name}`: {e}")),
            (e, Effect::Motion) => {
                Fault::new(FaultKind::BadReply, format!("`{name}` was sent: {e}"))
            }
        })?;
        let pickle = messages::decompress(&reply)?;
        self.connection = Some(connection);
        Ok(pickle)
    }
}

impl Arm for RobotClient {
    fn describe(&self) -> String {
        format!("the robot server at {}", self.address)
    }

    fn init(&mut self) -> Result<(), Fault> {
        if self.connection.is_none() {
            self.hash()?;
        }
        let before = self.built().inspect_err(|_| self.connection = None)?;
        self.known_before = before != Built::Nothing;
        let mut params = self.params.clone();
        if let Built::Robot { side: Some(side) } = before {
            let [usual, other] = MARKING_SIDES;
            params.image_size = if side == usual { other } else { usual };
        }
        self.act("init", &messages::init(&params), self.deadlines.init).map_err(|mut fault| {
            if fault.kind == FaultKind::OutcomeUnknown && self.closed_at.is_none() {
                fault.detail = format!(
                    "{}; is the camera topic right ({})? The server waits for its first frame",
                    fault.detail,
                    params.camera_topics.join(", ")
                );
            }
            fault
        })?;
        if !matches!(before, Built::Robot { side: Some(_) }) {
            return Ok(());
        }
        let after = self.built().inspect_err(|_| self.connection = None)?;
        if after == before {
            return Ok(());
        }
        self.connection = None;
        let detail = "the server had a robot and built a second one at `init`";
        Err(Fault::new(FaultKind::OtherParameters, detail))
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.act("reset", &messages::reset(), self.deadlines.reset)
    }

    fn move_to(&mut self, pose: &Pose, duration: Duration) -> Result<(), Fault> {
        let request = messages::move_to(&pose.matrix, duration.as_secs_f64());
        self.act("move", &request, duration + self.deadlines.move_extra)
    }

    fn step(&mut self, command: &[f64; 7]) -> Result<(), Fault> {
        let limit = if self.stepped { self.deadlines.step } else { self.deadlines.first_step };
        self.act("step_action", &messages::step_action(command), limit)?;
        self.stepped = true;
        Ok(())
    }

    fn compiles(&self) -> bool {
        true
    }

    fn known_before(&self) -> bool {
        self.known_before
    }

    fn must_wait(&self) -> bool {
        self.closed_at.is_some()
    }

    fn diagnose(&mut self, mut fault: Fault) -> Fault {
        let Some(closed_at) = self.closed_at.take() else { return fault };
        let seen = match self.reopens(closed_at) {
            Some(away) if away < ONLY_THE_SOCKET => return fault,
            Some(away) => format!(
                "its port was closed for {:.1} s: it initialised the robot again, which moves the arm to its neutral pose, or \
                 was started again",
                away.as_secs_f64()
            ),
            None if self.stop.is_pressed() => {
                "the emergency stop was pressed before it listened again".to_owned()
            }
            None => {
                fault.kind = FaultKind::ServerDied;
                let secs = self.deadlines.reopen.as_secs_f64();
                format!("nothing listens at its port for {secs:.0} s")
            }
        };
        fault.detail = format!("{}; {seen}", fault.detail);
        fault
    }

    fn is_fresh(&mut self) -> Result<bool, Fault> {
        match self.probe() {
            Probe::NotInitialised => Ok(true),
            Probe::Initialised(_) => Ok(false),
            Probe::Silent(fault) => Err(fault),
        }
    }

    fn observe(&mut self) -> Result<RobotObs, Fault> {
        let seen = self.observation();
        if seen.is_err() {
            self.connection = None;
        }
        seen
    }
}
