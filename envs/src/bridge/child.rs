//! A child process with a socket: frames in and out before a deadline, its output captured, its death noticed.

use std::fmt;
use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::protocol::FrameBuffer;
use super::spawn;
use crate::EnvError;

/// Set in every child, so that a program can tell that it was started as a worker.
pub const ENV_BRIDGE: &str = "SIMLOOP_BRIDGE";
/// The parent's process id, for the child's check that it was not orphaned before it asked for a death signal.
pub const ENV_PARENT: &str = "SIMLOOP_BRIDGE_PARENT";
/// How much of a child's output is kept, bytes.
pub const OUTPUT_TAIL: usize = 64 << 10;

const FD_SOCKET: i32 = 3;
const FD_IMAGES: i32 = 4;
/// How long a child that closed its socket may take to die by itself, so that its own exit status is reported.
const EXIT_GRACE: Duration = Duration::from_millis(500);
/// How long to wait for a killed child before it is left to the spawner thread.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// Where the child finds its end of the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketAt {
    /// Descriptor 3; standard input is `/dev/null`.
    #[default]
    Fd3,
    /// Standard input, for programs that cannot adopt a numbered descriptor without unsafe code.
    Stdin,
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub(super) struct ChildConfig {
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) socket: SocketAt,
}

/// Why no frame came.
#[derive(Debug)]
pub(super) enum Broken {
    /// The deadline passed, or the child slept while it owed a reply.
    Late,
    /// The child died or closed its socket.
    Gone,
    /// What it sent is no frame.
    Malformed(EnvError),
}

/// How a child ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: String,
    pub(super) output: String,
}

/// A running child. Dropping it kills its process group and collects it.
pub(super) struct ChildProcess {
    process: Option<Child>,
    pid: Pid,
    pidfd: Option<OwnedFd>,
    socket: OwnedFd,
    output: Option<PipeReader>,
    tail: Tail,
    inbox: FrameBuffer,
}

impl fmt::Debug for ChildProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildProcess").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl ChildProcess {
    /// Starts the program in a process group of its own, with the socket and the images.
    pub(super) fn start(config: &ChildConfig, images: OwnedFd) -> Result<Self, EnvError> {
        let program = config.program.display().to_string();
        let failed = |detail: String| EnvError::Spawn { program: program.clone(), detail };
        let system = |e: std::io::Error| failed(e.to_string());

        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|e| system(e.into()))?;
        let (output, writer) = std::io::pipe().map_err(system)?;
        rustix::io::ioctl_fionbio(&output, true).map_err(|e| system(e.into()))?;

        let mut command = Command::new(&config.program);
        command
            .args(&config.args)
            .envs(config.env.iter().map(|(name, value)| (name, value)))
            .env(ENV_BRIDGE, "1")
            .env(ENV_PARENT, std::process::id().to_string())
            .stdout(writer.try_clone().map_err(system)?)
            .stderr(writer)
            .process_group(0);
        let mut mappings = vec![FdMapping { parent_fd: images, child_fd: FD_IMAGES }];
        match config.socket {
            SocketAt::Fd3 => {
                command.stdin(Stdio::null());
                mappings.push(FdMapping { parent_fd: theirs, child_fd: FD_SOCKET });
            }
            SocketAt::Stdin => drop(command.stdin(Stdio::from(theirs))),
        }
        command.fd_mappings(mappings).map_err(|e| failed(e.to_string()))?;

        let process = spawn::spawn(command)?;
        let pid = Pid::from_child(&process);
        // Kernels before 5.3 have no pidfd; there the closed socket tells of a death.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Ok(Self {
            process: Some(process),
            pid,
            pidfd,
            socket,
            output: Some(output),
            tail: Tail::default(),
            inbox: FrameBuffer::default(),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Sends `frame`, then hands every body that arrives to `take` until it says it has what it wants. A child that sleeps
    /// for as long as `asleep` in between is late before the deadline.
    pub(super) fn exchange<T>(
        &mut self,
        frame: &[u8],
        deadline: Instant,
        asleep: Option<Duration>,
        mut take: impl FnMut(&[u8]) -> Result<Option<T>, EnvError>,
    ) -> Result<T, Broken> {
        let mut unsent = frame;
        let mut pulse = asleep.map(Pulse::new);
        loop {
            if !unsent.is_empty() {
                self.push(&mut unsent)?;
            }
            while let Some(body) = self.inbox.next_body().map_err(Broken::Malformed)? {
                if let Some(answer) = take(body).map_err(Broken::Malformed)? {
                    return Ok(answer);
                }
            }
            let look = pulse.as_ref().map_or(deadline, |pulse| pulse.next_look().min(deadline));
            let ready = self.wait(!unsent.is_empty(), look)?;
            if ready.nothing() && Instant::now() >= look {
                let stopped = pulse.as_mut().is_some_and(|pulse| pulse.stopped(self.pid));
                if stopped || look == deadline {
                    return Err(Broken::Late);
                }
            }
            if ready.output {
                self.drain(16);
            }
            let arrived = if ready.socket || ready.dead { self.pull()? } else { false };
            // A dead child's last words are still in the socket: first they are read.
            if ready.dead && !arrived {
                return Err(Broken::Gone);
            }
        }
    }

    fn push(&mut self, unsent: &mut &[u8]) -> Result<(), Broken> {
        loop {
            match send(&self.socket, unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => {
                    *unsent = &unsent[n..];
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Broken::Gone),
            }
        }
    }

    /// Takes what the socket holds; false if it is empty.
    fn pull(&mut self) -> Result<bool, Broken> {
        loop {
            match recv(&self.socket, self.inbox.space(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Broken::Gone),
                Ok((_, n)) => {
                    self.inbox.filled(n);
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(_) => return Err(Broken::Gone),
            }
        }
    }

    /// Waits for something to happen, at most until `until`.
    fn wait(&self, writing: bool, until: Instant) -> Result<Ready, Broken> {
        let left = until.saturating_duration_since(Instant::now());
        let interest = if writing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = Vec::with_capacity(3);
        fds.push(PollFd::new(&self.socket, interest));
        if let Some(output) = &self.output {
            fds.push(PollFd::new(output, PollFlags::IN));
        }
        if let Some(pidfd) = &self.pidfd {
            fds.push(PollFd::new(pidfd, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => {
                return Err(Broken::Malformed(EnvError::Disconnected {
                    detail: format!("poll: {e}"),
                }));
            }
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |there: bool| there && ready.next().unwrap_or(false);
        Ok(Ready {
            socket: next(true),
            output: next(self.output.is_some()),
            dead: next(self.pidfd.is_some()),
        })
    }

    /// Reads the captured output, at most `rounds` blocks of it.
    fn drain(&mut self, rounds: usize) {
        let mut block = vec![0; 64 << 10];
        for _ in 0..rounds {
            let Some(output) = &mut self.output else { return };
            match output.read(&mut block) {
                Ok(0) => self.output = None,
                Ok(n) => self.tail.push(&block[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.output = None,
            }
        }
    }

    /// Whether the process has died (but may not be collected yet).
    fn died_within(&mut self, patience: Duration) -> bool {
        let Some(process) = &mut self.process else { return true };
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(pidfd) = &self.pidfd else {
                // Without a pidfd: look now and then. `try_wait` collects the child, so its group must go first.
                kill_group(self.pid);
                if !matches!(process.try_wait(), Ok(None)) {
                    return true;
                }
                if left.is_zero() {
                    return false;
                }
                std::thread::sleep(left.min(Duration::from_millis(5)));
                continue;
            };
            let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) if left.is_zero() => return false,
                Ok(n) if n > 0 => return true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Ends the child: waits `patience` for it to die by itself, then kills its whole process group and collects it.
    pub(super) fn end(mut self, patience: Duration) -> Ended {
        self.finish(patience)
    }

    /// [`end`](Self::end) for a child that closed its socket: a moment for its own exit status.
    pub(super) fn end_of_gone(self) -> Ended {
        self.end(EXIT_GRACE)
    }

    fn finish(&mut self, patience: Duration) -> Ended {
        let by_itself = !patience.is_zero() && self.pidfd.is_some() && self.died_within(patience);
        // Before the child is collected, its id cannot have been given to another process; grandchildren go as well.
        kill_group(self.pid);
        let dead = self.died_within(KILL_GRACE);
        self.drain(256);
        let status = match self.process.take() {
            None => "already collected".to_owned(),
            Some(process) if !dead => {
                spawn::reap_later(process);
                "does not die of SIGKILL (stuck in the kernel)".to_owned()
            }
            Some(mut process) => match process.wait() {
                Ok(status) => describe(status, by_itself),
                Err(e) => format!("its exit status is lost: {e}"),
            },
        };
        Ended { status, output: self.tail.text() }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.finish(Duration::ZERO);
        }
    }
}

fn kill_group(leader: Pid) {
    if let Err(error) = kill_process_group(leader, Signal::KILL)
        && error != Errno::SRCH
    {
        tracing::warn!(pid = leader.as_raw_pid(), %error, "a worker's process group was not killed");
    }
}

struct Ready {
    socket: bool,
    output: bool,
    dead: bool,
}

impl Ready {
    fn nothing(&self) -> bool {
        !(self.socket || self.output || self.dead)
    }
}

/// Whether a child works on its reply: it uses CPU time, or waits for a core or a disk. One that does neither is stopped
/// (SIGSTOP) or waits for something that has nothing to do with us (a deadlock); a starved one is neither.
struct Pulse {
    limit: Duration,
    since: Instant,
    cpu: u64,
}

impl Pulse {
    /// Looks in the time in which a child must be seen to work.
    const LOOKS: u32 = 4;

    fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), cpu: 0 }
    }

    fn next_look(&self) -> Instant {
        Instant::now() + self.limit / Self::LOOKS
    }

    /// Looks; true if the child has not worked for the whole time.
    fn stopped(&mut self, pid: Pid) -> bool {
        // No process table: only the deadline counts.
        let Some((busy, cpu)) = work(pid) else { return false };
        if busy || cpu != self.cpu {
            (self.since, self.cpu) = (Instant::now(), cpu);
        }
        self.since.elapsed() >= self.limit
    }
}

/// Whether a thread of the process uses or waits for a core or a disk, and the ticks of CPU time that all have used
/// (`proc_pid_stat(5)`, fields 3, 14 and 15).
fn work(pid: Pid) -> Option<(bool, u64)> {
    let (mut busy, mut cpu) = (false, 0);
    for task in std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).ok()?.flatten() {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        // The second field, the program's name in brackets, may hold anything.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        busy |= matches!(fields.next()?, "R" | "D");
        cpu += fields.skip(10).take(2).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>();
    }
    Some((busy, cpu))
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

fn describe(status: ExitStatus, by_itself: bool) -> String {
    let Some(signal) = status.signal() else {
        let code = status.code().map_or_else(|| "unknown".to_owned(), |code| code.to_string());
        return format!("it exited with status {code}");
    };
    let name = signal_name(signal);
    match (signal, by_itself) {
        (9, true) => format!("{name} killed it (so does the kernel when memory runs out)"),
        (9, false) => "it closed its socket without exiting and was killed".to_owned(),
        _ => format!("{name} killed it"),
    }
}

/// The names of signals that end processes (Linux numbers, equal on every architecture we build for).
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// The end of a child's output.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 2 * OUTPUT_TAIL {
            self.0.drain(..self.0.len() - OUTPUT_TAIL);
        }
    }

    fn text(&self) -> String {
        let from = self.0.len().saturating_sub(OUTPUT_TAIL);
        String::from_utf8_lossy(&self.0[from..]).trim_end().to_owned()
    }
}

/// The descriptor of the images in the child.
pub(super) fn open_images() -> std::io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/self/fd/{FD_IMAGES}"))
}
