//! One thread that starts every child of this process, for as long as the process lives.
//!
//! A child asks for SIGKILL when its parent dies (`PR_SET_PDEATHSIG`), and the kernel takes "parent" to be the *thread* that
//! forked it: a child started from a temporary thread would die with that thread.

use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded, unbounded};

use crate::EnvError;

enum Job {
    Start(Box<Command>, Sender<std::io::Result<Child>>),
    /// A killed child that had not died yet when its owner stopped waiting (stuck in a device driver).
    Reap(Child),
}

fn jobs() -> Result<&'static Sender<Job>, EnvError> {
    static JOBS: OnceLock<Result<Sender<Job>, String>> = OnceLock::new();
    let started = JOBS.get_or_init(|| {
        let (tx, rx) = unbounded();
        std::thread::Builder::new()
            .name("bridge-spawner".to_owned())
            .spawn(move || serve(&rx))
            .map(|_| tx)
            .map_err(|e| e.to_string())
    });
    started.as_ref().map_err(|detail| EnvError::Spawn {
        program: "the spawner thread".to_owned(),
        detail: detail.clone(),
    })
}

fn serve(jobs: &crossbeam_channel::Receiver<Job>) {
    let mut dying: Vec<Child> = Vec::new();
    loop {
        let job = if dying.is_empty() {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            jobs.recv_timeout(Duration::from_secs(1))
        };
        match job {
            Ok(Job::Start(mut command, reply)) => {
                let child = command.spawn();
                // The command owns the child's ends of the socket and the pipe: closed before anybody reads from ours.
                drop(command);
                if let Err(unclaimed) = reply.send(child)
                    && let Ok(mut child) = unclaimed.0
                {
                    drop(child.kill());
                    dying.push(child);
                }
            }
            Ok(Job::Reap(child)) => dying.push(child),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        dying.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// Starts a child from the spawner thread.
pub(super) fn spawn(command: Command) -> Result<Child, EnvError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |detail: String| EnvError::Spawn { program: program.clone(), detail };
    let (tx, rx) = bounded(1);
    let gone = || failed("the spawner thread has ended".to_owned());
    jobs()?.send(Job::Start(Box::new(command), tx)).map_err(|_| gone())?;
    rx.recv().map_err(|_| gone())?.map_err(|e| failed(e.to_string()))
}

/// Leaves a killed child to the spawner thread, which collects it when it has died.
pub(super) fn reap_later(child: Child) {
    if let Ok(jobs) = jobs() {
        drop(jobs.send(Job::Reap(child)));
    }
}
