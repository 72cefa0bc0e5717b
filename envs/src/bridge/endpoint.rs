//! The child's end of the socket: requests in, replies out.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{FileType, fstat};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::Serialize;

use super::child::ENV_PARENT;
use super::messages::{ErrReply, OkReply};
use super::protocol::{FrameBuffer, WireError, encode};
use crate::EnvError;

/// The socket that a worker was started with; frames as in the [module's documentation](super).
#[derive(Debug)]
pub struct Endpoint {
    socket: UnixStream,
    inbox: FrameBuffer,
}

impl Endpoint {
    /// The socket on standard input ([`SocketAt::Stdin`](super::SocketAt::Stdin)). From now on this process receives
    /// SIGKILL when its parent dies.
    ///
    /// # Errors
    /// [`EnvError::Config`] if standard input is no socket; [`EnvError::Disconnected`] if the parent died first.
    pub fn on_stdin() -> Result<Self, EnvError> {
        let lost = |e: std::io::Error| EnvError::Disconnected { detail: e.to_string() };
        let armed = set_parent_process_death_signal(Some(Signal::KILL));
        armed.map_err(std::io::Error::from).map_err(lost)?;
        let parent = std::env::var(ENV_PARENT).ok().and_then(|pid| pid.parse::<i32>().ok());
        let present = getppid().map(rustix::process::Pid::as_raw_pid);
        if parent.is_some() && parent != present {
            return Err(EnvError::Disconnected { detail: "the parent died first".to_owned() });
        }
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(lost)?;
        let is_socket = fstat(&stdin)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
        if !is_socket {
            return Err(EnvError::Config {
                detail: "standard input is no socket: this command is started by a program, as its worker"
                    .to_owned(),
            });
        }
        Ok(Self { socket: UnixStream::from(stdin), inbox: FrameBuffer::default() })
    }

    /// The next request's body, checked; `None` at end of file.
    ///
    /// # Errors
    /// [`EnvError::Protocol`] for bytes that are no frame; [`EnvError::Disconnected`] if the socket fails.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, EnvError> {
        loop {
            if let Some(body) = self.inbox.next_body()? {
                return Ok(Some(body.to_vec()));
            }
            match self.socket.read(self.inbox.space()) {
                Ok(0) => return Ok(None),
                Ok(n) => self.inbox.filled(n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(EnvError::Disconnected { detail: e.to_string() }),
            }
        }
    }

    /// Answers request `id`. An answer that cannot be written (too long) is answered by that error instead.
    ///
    /// # Errors
    /// [`EnvError::Disconnected`] if the socket fails.
    pub fn reply<T: Serialize>(
        &mut self,
        id: u64,
        answer: Result<T, EnvError>,
    ) -> Result<(), EnvError> {
        let frame = answer
            .and_then(|ok| encode(&OkReply { id, ok }))
            .or_else(|error| encode(&ErrReply { id, err: WireError::from(error) }))?;
        self.socket.write_all(&frame).map_err(|e| EnvError::Disconnected { detail: e.to_string() })
    }
}
