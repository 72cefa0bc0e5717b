//! What can go wrong with the robot, by name, and what the operator must do.
//!
//! | event at bridge_data_robot a902e5b | fault |
//! |---|---|
//! | motor effort in `step_action`, or another client's malformed request: the server closes its port, initialises the robot (the arm moves to neutral by itself) and opens the port again 4 to 8 s later | [`OutcomeUnknown`](FaultKind::OutcomeUnknown) under a step, [`NoObservation`](FaultKind::NoObservation) under an observation; the detail says so |
//! | no camera frame for 1 s | the same |
//! | the process ends: its port stays closed for 15 s | [`ServerDied`](FaultKind::ServerDied) |
//! | a reply that does not come | [`OutcomeUnknown`](FaultKind::OutcomeUnknown), [`NoObservation`](FaultKind::NoObservation) |
//! | somebody else's `reset` or `init` with our parameters before our request: an answer after more than 1.5 s | [`ServerBusy`](FaultKind::ServerBusy) |
//! | the robot is initialised by somebody else between two requests | [`Reinitialised`](FaultKind::Reinitialised), by the hand's jump |
//! | it was initialised with other parameters before our `init` | [`OtherParameters`](FaultKind::OtherParameters) |
//! | two gripper controllers after either | [`GripperNotFollowing`](FaultKind::GripperNotFollowing) |
//! | motor effort in `move` | [`ExecutionFailed`](FaultKind::ExecutionFailed) |
//! | status 3 to `init` (`--test`), to anything else | [`TestMode`](FaultKind::TestMode), [`NotInitialised`](FaultKind::NotInitialised) |
//! | no solution for a goal: status 1, nothing moves | [`NotFollowing`](FaultKind::NotFollowing) |

use std::fmt;

use crate::EnvError;

/// Why a trial is void or a command was not sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Which fault.
    pub kind: FaultKind,
    /// What was seen.
    pub detail: String,
}

/// The faults that are told apart. Each has a stable name for ledgers and a remedy for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// No connection: nothing was sent.
    NoConnection,
    /// The server is of another kind or version.
    Handshake,
    /// A request that may move the robot was sent and not answered: it may have been carried out, or may be yet.
    OutcomeUnknown,
    /// The server closed the connection while a request was under way, and nothing listens at its port since.
    ServerDied,
    /// A request for an observation was not answered.
    NoObservation,
    /// A reply that cannot be read, or of the wrong kind.
    BadReply,
    /// The server answered that the robot was not initialised, or showed it.
    NotInitialised,
    /// The server answered that a command failed.
    ExecutionFailed,
    /// The camera shows the same frame over and over.
    CameraFrozen,
    /// The observation is older than the limit.
    StaleObservation,
    /// The arm was somewhere else than it can have got to: the server initialised it again.
    Reinitialised,
    /// A request was answered far too late: the server did something else before it, or stalled.
    ServerBusy,
    /// `init` built a second robot in the server: the first one has other parameters.
    OtherParameters,
    /// The server runs with `--test` and has no robot.
    TestMode,
    /// The arm does not go where it is told.
    NotFollowing,
    /// The gripper does not do what it is told.
    GripperNotFollowing,
    /// The hand is outside of the workspace.
    OutsideWorkspace,
    /// The policy's action holds a number that is not finite.
    NonFinite,
    /// The policy takes longer than an observation stays fresh.
    PolicyTooSlow,
    /// A pose to move to is not allowed.
    MoveRefused,
    /// The emergency stop was pressed.
    EmergencyStop,
    /// Nobody has consented to motion.
    Disarmed,
    /// The server was not restarted after a fault that demands it.
    NotRestarted,
}

impl FaultKind {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 23] = [
        Self::NoConnection,
        Self::Handshake,
        Self::OutcomeUnknown,
        Self::ServerDied,
        Self::NoObservation,
        Self::BadReply,
        Self::NotInitialised,
        Self::ExecutionFailed,
        Self::CameraFrozen,
        Self::StaleObservation,
        Self::Reinitialised,
        Self::ServerBusy,
        Self::OtherParameters,
        Self::TestMode,
        Self::NotFollowing,
        Self::GripperNotFollowing,
        Self::OutsideWorkspace,
        Self::NonFinite,
        Self::PolicyTooSlow,
        Self::MoveRefused,
        Self::EmergencyStop,
        Self::Disarmed,
        Self::NotRestarted,
    ];

    /// The stable short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoConnection => "no_connection",
            Self::Handshake => "handshake",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::ServerDied => "server_died",
            Self::NoObservation => "no_observation",
            Self::BadReply => "bad_reply",
            Self::NotInitialised => "not_initialised",
            Self::ExecutionFailed => "execution_failed",
            Self::CameraFrozen => "camera_frozen",
            Self::StaleObservation => "stale_observation",
            Self::Reinitialised => "reinitialised",
            Self::ServerBusy => "server_busy",
            Self::OtherParameters => "other_parameters",
            Self::TestMode => "test_mode",
            Self::NotFollowing => "not_following",
            Self::GripperNotFollowing => "gripper_not_following",
            Self::OutsideWorkspace => "outside_workspace",
            Self::NonFinite => "non_finite_action",
            Self::PolicyTooSlow => "policy_too_slow",
            Self::MoveRefused => "move_refused",
            Self::EmergencyStop => "emergency_stop",
            Self::Disarmed => "disarmed",
            Self::NotRestarted => "not_restarted",
        }
    }

    /// Whether the server must be restarted before the next trial: it has initialised the robot again, or may have, and
    /// the gripper is unreliable after that (two controllers fight for it).
    pub fn needs_restart(self) -> bool {
        matches!(
            self,
            Self::OutcomeUnknown
                | Self::ServerDied
                | Self::NoObservation
                | Self::BadReply
                | Self::NotInitialised
                | Self::ExecutionFailed
                | Self::CameraFrozen
                | Self::Reinitialised
                | Self::ServerBusy
                | Self::OtherParameters
                | Self::TestMode
                | Self::GripperNotFollowing
        )
    }

    /// What the operator must do before the next trial, as sentences.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::NoConnection => {
                "Start the robot server (widowx_env_service --server) or the tunnel to it, and check host and port."
            }
            Self::Handshake => {
                "This is not the robot server of BridgeData V2, or another version of it. Check host and port."
            }
            Self::OutcomeUnknown => {
                "The command may have been carried out, or may be yet: keep clear of the arm. Check the arm and its camera, \
                 restart the robot server (its gripper is unreliable after such a fault), then go on."
            }
            Self::ServerDied => {
                "Keep clear: if the server still runs it is initialising the robot again, and then moves the arm to its neutral \
                 pose by itself. Check the arm, start the robot server again, then go on."
            }
            Self::NoObservation => {
                "The server hangs, or its camera does, or somebody else uses it; it moves the arm by itself when it goes on: keep \
                 clear. Check the camera, restart the robot server, make sure that nobody else uses it, then go on."
            }
            Self::BadReply => {
                "Check what answers on this port, restart the robot server, then go on."
            }
            Self::NotInitialised | Self::Reinitialised => {
                "Something initialised the robot again (another client, or an error inside of the server). Restart the robot \
                 server, make sure that nobody else uses it, then go on."
            }
            Self::ServerBusy => {
                "Somebody else used the robot server meanwhile, or it stalled: the arm may be elsewhere than we believe, and may \
                 still move. Make sure that nobody else uses it, restart the robot server, then go on."
            }
            Self::OtherParameters => {
                "Somebody initialised the robot before with other parameters: two gripper controllers run inside of the server \
                 now. Restart the robot server, then go on."
            }
            Self::TestMode => {
                "This robot server was started with --test and drives no robot. Start it without --test, then go on."
            }
            Self::ExecutionFailed => {
                "A motor was overloaded or the server refused: look for what the arm ran into, restart the robot server, then \
                 go on."
            }
            Self::CameraFrozen => {
                "Check the camera's cable and its node, restart the robot server, then go on."
            }
            Self::StaleObservation | Self::PolicyTooSlow => {
                "The policy decides too slowly for this limit. Use a faster device, or raise --max-obs-age-ms if the scene \
                 stands still."
            }
            Self::NotFollowing => {
                "The arm cannot reach where it was sent, or is held. Check it; narrow the workspace if this repeats."
            }
            Self::GripperNotFollowing => {
                "Two gripper controllers fight inside of the server (it was initialised more than once), or something forces the \
                 fingers open. Look at the gripper, restart the robot server, then go on."
            }
            Self::OutsideWorkspace => {
                "Check the arm and the workspace box that was given; the server's own motions are not bounded by it."
            }
            Self::NonFinite => {
                "The policy is broken on this observation: look at its inputs and its statistics."
            }
            Self::MoveRefused => "Give a start pose inside of the workspace, or a longer duration.",
            Self::EmergencyStop => {
                "The server has no stop of its own: the arm holds its last goal. Use the power switch if it must let go. Arm \
                 again when it is safe."
            }
            Self::Disarmed => "Arm the robot first.",
            Self::NotRestarted => {
                "Stop the robot server and start it again: it must have forgotten the robot."
            }
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. {}", self.kind, self.detail, self.kind.remedy())
    }
}

impl Fault {
    /// A fault and what was seen.
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl From<Fault> for EnvError {
    fn from(fault: Fault) -> Self {
        match fault.kind {
            FaultKind::MoveRefused => Self::Config {
                detail: format!("move there: {}. {}", fault.detail, fault.kind.remedy()),
            },
            kind => Self::Robot {
                kind: kind.name(),
                detail: format!("{}. {}", fault.detail, kind.remedy()),
            },
        }
    }
}
