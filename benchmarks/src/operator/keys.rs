//! The keyboard.

use std::io::{IsTerminal as _, Read as _};
use std::sync::mpsc::{Receiver, channel};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use simloop_envs::widowx::EmergencyStop;

/// Space, Escape and Ctrl-C.
const STOP_KEYS: [u8; 3] = [b' ', 0x1b, 0x03];

/// Keys as they are pressed, without Enter where standard input is a terminal.
///
/// A thread reads them, and the stop keys press the emergency stop there and then, whoever is or is not listening.
pub struct Keys {
    receiver: Receiver<u8>,
    saved: Option<Termios>,
    terminal: bool,
}

impl Keys {
    /// Starts to listen. A second listener of one process would share the keys with the first.
    pub fn listen(stop: EmergencyStop) -> Self {
        let stdin = std::io::stdin();
        let terminal = stdin.is_terminal();
        let saved = terminal.then(|| tcgetattr(&stdin).ok()).flatten();
        if let Some(before) = &saved {
            let mut now = before.clone();
            // Signals stay: Ctrl-C must work even if this thread does not.
            now.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO);
            now.special_codes[SpecialCodeIndex::VMIN] = 1;
            now.special_codes[SpecialCodeIndex::VTIME] = 0;
            // Without it keys arrive line by line: worse, and still usable.
            let _ = tcsetattr(&stdin, OptionalActions::Now, &now);
        }
        let (sender, receiver) = channel();
        // It ends with the process: a blocked read cannot be called back.
        std::thread::spawn(move || {
            for byte in std::io::stdin().lock().bytes() {
                let Ok(byte) = byte else { return };
                if STOP_KEYS.contains(&byte) {
                    stop.press("the stop key");
                }
                if sender.send(byte).is_err() {
                    return;
                }
            }
            // The end of the input, as a key of its own.
            let _ = sender.send(END);
        });
        Self { receiver, saved, terminal }
    }

    /// Keys from a channel, for tests and other inputs.
    pub fn from_channel(receiver: Receiver<u8>) -> Self {
        Self { receiver, saved: None, terminal: false }
    }

    /// Whether a person types them, one by one.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The next key, if one was pressed.
    pub fn pressed(&self) -> Option<u8> {
        self.receiver.try_recv().ok()
    }
}

/// Stands for the end of the input.
pub(super) const END: u8 = 0x04;

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // The shell puts its own modes back too.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, saved);
        }
    }
}
