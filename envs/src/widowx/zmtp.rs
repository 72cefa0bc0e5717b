//! ZMTP 3.1 as a REQ socket speaks it to a REP socket, over one TCP connection.
//!
//! Mechanism NULL, no identity, bodies of one frame behind an empty delimiter. Unlike libzmq nothing is ever queued: a
//! request is written to a live connection or not at all, every wait has a deadline, and dropping the connection discards
//! what the system has not sent yet. A robot must not receive yesterday's command.
//!
//! Source: ZMTP 3.1 (<https://rfc.zeromq.org/spec/37/>), and recorded bytes of edgeml with libzmq.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use thiserror::Error;

/// Largest body accepted, bytes: an observation is 0.3 MB, and four cameras at twice the size are 5 MB.
pub const MAX_BODY: usize = 16 << 20;
/// How often a wait looks up, to see a deadline or an emergency stop.
const SLICE: Duration = Duration::from_millis(4);
/// Frames and commands in one reply beyond which the peer is not a REP socket.
const MAX_FRAMES: usize = 16;

const MORE: u8 = 0x01;
const LONG: u8 = 0x02;
const COMMAND: u8 = 0x04;

/// What went wrong on the wire.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ZmtpError {
    /// Nothing listens there, or the connection was lost.
    #[error("the connection failed: {detail}")]
    Io {
        /// The system's words.
        detail: String,
    },
    /// The peer closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The deadline passed.
    #[error("no answer within {limit:?}")]
    Deadline {
        /// The limit that was missed.
        limit: Duration,
    },
    /// The caller gave up ([`Connection::request`]'s `cancelled`).
    #[error("the wait was cancelled")]
    Cancelled,
    /// The peer speaks something else.
    #[error("the peer does not speak ZMTP 3 as a REP socket: {detail}")]
    Peer {
        /// What is different.
        detail: String,
    },
    /// A frame is larger than any reply.
    #[error("a frame of {bytes} bytes exceeds the limit of {MAX_BODY}")]
    TooLarge {
        /// Its announced size.
        bytes: u64,
    },
}

impl From<std::io::Error> for ZmtpError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset => Self::Closed,
            _ => Self::Io { detail: error.to_string() },
        }
    }
}

fn peer(detail: impl Into<String>) -> ZmtpError {
    ZmtpError::Peer { detail: detail.into() }
}

/// What this side sends before anything else: 64 bytes.
pub fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    // libzmq writes the length of an empty ZMTP 1.0 identity into the padding.
    (greeting[0], greeting[8], greeting[9]) = (0xff, 1, 0x7f);
    (greeting[10], greeting[11]) = (3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// The READY command of a REQ socket, with its frame header.
pub fn ready() -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", "REQ"), ("Identity", "")] {
        body.push(name.len() as u8);
        body.extend(name.as_bytes());
        body.extend((value.len() as u32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    frame(COMMAND, &body)
}

/// A frame with these flags round `body`.
pub fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 9);
    if let Ok(len) = u8::try_from(body.len()) {
        out.extend([flags, len]);
    } else {
        out.push(flags | LONG);
        out.extend((body.len() as u64).to_be_bytes());
    }
    out.extend(body);
    out
}

/// A frame's header: flags and length, and how many bytes it took; `None` while it is incomplete.
///
/// # Errors
/// [`ZmtpError::Peer`] for reserved flags, [`ZmtpError::TooLarge`].
pub fn header(bytes: &[u8]) -> Result<Option<(u8, usize, usize)>, ZmtpError> {
    let Some(&flags) = bytes.first() else { return Ok(None) };
    if flags & !(MORE | LONG | COMMAND) != 0 || flags & (MORE | COMMAND) == MORE | COMMAND {
        return Err(peer(format!("a frame with flags 0x{flags:02x}")));
    }
    let (len, used) = if flags & LONG == 0 {
        let Some(&len) = bytes.get(1) else { return Ok(None) };
        (u64::from(len), 2)
    } else {
        let Some(len) = bytes.get(1..9) else { return Ok(None) };
        (len.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)), 9)
    };
    if len > MAX_BODY as u64 {
        return Err(ZmtpError::TooLarge { bytes: len });
    }
    Ok(Some((flags, len as usize, used)))
}

/// The `Socket-Type` in a READY command's body.
///
/// # Errors
/// [`ZmtpError::Peer`] for another command or damaged properties.
pub fn socket_type(body: &[u8]) -> Result<String, ZmtpError> {
    let rest = body.strip_prefix(b"\x05READY");
    let mut rest = rest.ok_or_else(|| {
        let text: String = String::from_utf8_lossy(body).chars().take(80).collect();
        peer(format!("instead of READY it says {text:?}"))
    })?;
    let damaged = || peer("its READY command is damaged");
    while let Some((&len, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(len)).ok_or_else(damaged)?;
        let (size, after) = after.split_at_checked(4).ok_or_else(damaged)?;
        let size = size.iter().fold(0, |value: usize, byte| value << 8 | usize::from(*byte));
        let (value, after) = after.split_at_checked(size).ok_or_else(damaged)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Ok(String::from_utf8_lossy(value).into_owned());
        }
        rest = after;
    }
    Err(peer("its READY command names no socket type"))
}

/// How a connection behaves when the other side goes silent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the TCP connection and the handshake together.
    pub connect: Duration,
    /// Sent bytes that the other machine has not acknowledged for so long end the connection (TCP_USER_TIMEOUT): a command
    /// that was lost on the way is not sent again later.
    pub unacknowledged: Duration,
}

/// One live connection to a REP socket.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Received and not yet used.
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// [`ZmtpError`]; nothing of a request has been sent then.
    pub fn open(
        address: SocketAddr,
        patience: Patience,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, ZmtpError> {
        let deadline = Deadline::after(patience.connect);
        let stream = TcpStream::connect_timeout(&address, patience.connect)?;
        stream.set_nodelay(true)?;
        let io = |error: rustix::io::Errno| ZmtpError::from(std::io::Error::from(error));
        // Closing discards what was not sent.
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).map_err(io)?;
        let unacknowledged = u32::try_from(patience.unacknowledged.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&stream, unacknowledged.max(1)).map_err(io)?;
        let mut connection = Self { stream, buffer: Vec::new() };
        connection.write(&greeting(), &deadline, cancelled)?;
        let theirs = connection.take(64, &deadline, cancelled)?;
        if theirs[0] != 0xff || theirs[9] & 1 != 1 {
            return Err(peer("its first bytes are no ZMTP signature"));
        }
        if theirs[10] < 3 {
            return Err(peer(format!("it speaks version {}", theirs[10])));
        }
        let mechanism: Vec<u8> = theirs[12..32].iter().copied().take_while(|b| *b != 0).collect();
        if mechanism != b"NULL" {
            let mechanism = String::from_utf8_lossy(&mechanism).into_owned();
            return Err(peer(format!("it asks for the security mechanism {mechanism:?}")));
        }
        connection.write(&ready(), &deadline, cancelled)?;
        let (flags, body) = connection.frame(&deadline, cancelled)?;
        if flags & COMMAND == 0 {
            return Err(peer("it sends a message before READY"));
        }
        match socket_type(&body)?.as_str() {
            "REP" | "ROUTER" => Ok(connection),
            other => Err(peer(format!("it is a {other} socket"))),
        }
    }

    /// Sends one request and waits for its reply's body.
    ///
    /// After any error but [`ZmtpError::Cancelled`] before the first byte, the connection must be dropped: a late reply
    /// would be taken for the answer to the next request.
    ///
    /// # Errors
    /// [`ZmtpError`].
    pub fn request(
        &mut self,
        body: &[u8],
        limit: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, ZmtpError> {
        let deadline = Deadline::after(limit);
        if !self.buffer.is_empty() {
            return Err(peer("it sent something that nobody asked for"));
        }
        let mut message = frame(MORE, b"");
        message.extend(frame(0, body));
        self.write(&message, &deadline, cancelled)?;
        let (flags, delimiter) = self.message_frame(&deadline, cancelled)?;
        if flags & MORE == 0 || !delimiter.is_empty() {
            return Err(peer("its reply does not begin with an empty frame"));
        }
        let (flags, body) = self.message_frame(&deadline, cancelled)?;
        if flags & MORE != 0 {
            return Err(peer("its reply has more than one part"));
        }
        Ok(body)
    }

    /// The next frame that belongs to a message; PING is answered on the way.
    fn message_frame(
        &mut self,
        deadline: &Deadline,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(u8, Vec<u8>), ZmtpError> {
        for _ in 0..MAX_FRAMES {
            let (flags, body) = self.frame(deadline, cancelled)?;
            if flags & COMMAND == 0 {
                return Ok((flags, body));
            }
            // PING carries a time to live and up to 16 bytes of context that PONG repeats.
            if let Some(context) = body.strip_prefix(b"\x04PING").and_then(|rest| rest.get(2..)) {
                let mut pong = b"\x04PONG".to_vec();
                pong.extend(&context[..context.len().min(16)]);
                self.write(&frame(COMMAND, &pong), deadline, cancelled)?;
            } else if body.starts_with(b"\x05ERROR") {
                return Err(peer(String::from_utf8_lossy(&body[6..]).into_owned()));
            }
        }
        Err(peer("it sends nothing but commands"))
    }

    fn frame(
        &mut self,
        deadline: &Deadline,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(u8, Vec<u8>), ZmtpError> {
        let (flags, len, used) = loop {
            match header(&self.buffer)? {
                Some(header) => break header,
                None => self.fill(deadline, cancelled)?,
            }
        };
        self.buffer.drain(..used);
        Ok((flags, self.take(len, deadline, cancelled)?))
    }

    /// Exactly `len` bytes. The buffer grows with what arrives, not with what is announced.
    fn take(
        &mut self,
        len: usize,
        deadline: &Deadline,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, ZmtpError> {
        while self.buffer.len() < len {
            self.fill(deadline, cancelled)?;
        }
        let rest = self.buffer.split_off(len);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn fill(&mut self, deadline: &Deadline, cancelled: &dyn Fn() -> bool) -> Result<(), ZmtpError> {
        let mut chunk = [0; 1 << 14];
        loop {
            if cancelled() {
                return Err(ZmtpError::Cancelled);
            }
            self.stream.set_read_timeout(Some(deadline.slice()?))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ZmtpError::Closed),
                Ok(n) => {
                    self.buffer.extend(&chunk[..n]);
                    return Ok(());
                }
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write(
        &mut self,
        mut bytes: &[u8],
        deadline: &Deadline,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), ZmtpError> {
        while !bytes.is_empty() {
            if cancelled() {
                return Err(ZmtpError::Cancelled);
            }
            self.stream.set_write_timeout(Some(deadline.slice()?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(ZmtpError::Closed),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn waits(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    // TimedOut with a system error is TCP_USER_TIMEOUT's: the connection is gone.
    matches!(error.kind(), WouldBlock | Interrupted)
        || (error.kind() == TimedOut && error.raw_os_error().is_none())
}

struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// How long to wait before looking up again.
    fn slice(&self) -> Result<Duration, ZmtpError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ZmtpError::Deadline { limit: self.limit });
        }
        Ok(left.min(SLICE))
    }
}
