//! Where the operator sits: keys in, screen out.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use simloop_envs::Frame;
use simloop_envs::widowx::EmergencyStop;
use simloop_trainers::stop::StopFlag;

use super::keys::{END, Keys};
use super::terminal;

/// How often a prompt looks for a key.
const LOOK: Duration = Duration::from_millis(10);
/// A terminal is drawn at most so often.
const DRAW_EVERY: Duration = Duration::from_millis(150);

/// What the screen says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Screen {
    /// E.g. `trial 3 of 10`.
    pub heading: String,
    /// What the policy was told.
    pub task: String,
    /// Short facts: step, period, age of the observation, hand.
    pub facts: Vec<(String, String)>,
    /// The gate's last words.
    pub gate: String,
    /// Whether the arm may move now.
    pub live: bool,
    /// Whether the emergency stop is pressed.
    pub stopped: bool,
    /// What the operator is asked.
    pub prompt: String,
    /// The keys that mean something now, with what they do.
    pub keys: Vec<(char, String)>,
}

/// An answer to a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One of the allowed keys, lower case; Enter is `\n`.
    Key(char),
    /// The operator wants to end the run, or nobody can answer any more.
    Quit,
}

struct Inner {
    keys: Keys,
    screen: Screen,
    frame: Option<Frame>,
    drawn: Option<Instant>,
}

/// The operator's place. Shared by the control loop and the recorder.
pub struct Station {
    inner: Mutex<Inner>,
    stop: EmergencyStop,
    run: StopFlag,
    operator: String,
    ansi: bool,
}

impl Station {
    /// A place for `operator`. `run` ends the whole run, `stop` the robot's motion.
    pub fn new(keys: Keys, stop: EmergencyStop, run: StopFlag, operator: &str) -> Self {
        let inner = Inner { keys, screen: Screen::default(), frame: None, drawn: None };
        let ansi = std::io::stdout().is_terminal();
        Self { inner: Mutex::new(inner), stop, run, operator: operator.to_owned(), ansi }
    }

    /// Who sits here.
    pub fn operator(&self) -> &str {
        &self.operator
    }

    /// The emergency stop.
    pub fn stop(&self) -> &EmergencyStop {
        &self.stop
    }

    /// The flag that ends the run.
    pub fn run(&self) -> &StopFlag {
        &self.run
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the screen says.
    pub fn update(&self, change: impl FnOnce(&mut Screen)) {
        let mut inner = self.inner();
        change(&mut inner.screen);
        inner.screen.stopped = self.stop.is_pressed();
        let force = !inner.screen.prompt.is_empty();
        self.draw(&mut inner, force);
    }

    /// Shows a camera frame.
    pub fn show(&self, frame: Frame) {
        let mut inner = self.inner();
        inner.frame = Some(frame);
        inner.screen.stopped = self.stop.is_pressed();
        self.draw(&mut inner, false);
    }

    fn draw(&self, inner: &mut Inner, force: bool) {
        let due = inner.drawn.is_none_or(|at| at.elapsed() >= DRAW_EVERY);
        if !self.ansi || !(due || force) {
            return;
        }
        inner.drawn = Some(Instant::now());
        let text = terminal::draw(&inner.screen, inner.frame.as_ref());
        let mut out = std::io::stdout().lock();
        // A screen that cannot be written to must not stop the robot's loop.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// A label key pressed while a trial runs, on a terminal. Keys of a pipe are answers to prompts and wait.
    pub fn pressed(&self, allowed: &str) -> Option<char> {
        let inner = self.inner();
        if !inner.keys.is_terminal() {
            return None;
        }
        let mut found = None;
        while let Some(byte) = inner.keys.pressed() {
            let key = char::from(byte).to_ascii_lowercase();
            if allowed.contains(key) {
                found = Some(key);
            }
        }
        found
    }

    /// Asks, and waits for one of the keys. `q` quits.
    pub fn ask(&self, prompt: &str, keys: &[(char, &str)]) -> Answer {
        self.pose(prompt, keys);
        let answer = loop {
            match self.answer(keys) {
                Some(answer) => break answer,
                None => std::thread::sleep(LOOK),
            }
        };
        self.answered();
        answer
    }

    /// Puts a question on the screen. [`answer`](Self::answer) looks for the answer.
    #[expect(clippy::print_stdout, reason = "a prompt of a command-line program")]
    pub fn pose(&self, prompt: &str, keys: &[(char, &str)]) {
        self.update(|screen| {
            prompt.clone_into(&mut screen.prompt);
            screen.keys = keys.iter().map(|(key, does)| (*key, (*does).to_owned())).collect();
        });
        if !self.ansi {
            let list: Vec<String> =
                keys.iter().map(|(key, does)| format!("[{}] {does}", key_name(*key))).collect();
            println!("{prompt}\n  {}", list.join("   "));
        }
    }

    /// The answer to the question on the screen, if it was given.
    pub fn answer(&self, keys: &[(char, &str)]) -> Option<Answer> {
        let allowed: String = keys.iter().map(|(key, _)| *key).collect();
        loop {
            if self.run.is_set() {
                return Some(Answer::Quit);
            }
            let mut inner = self.inner();
            let key = inner.keys.pressed().map(char::from);
            let stopped = self.stop.is_pressed();
            if stopped != inner.screen.stopped {
                inner.screen.stopped = stopped;
                self.draw(&mut inner, true);
            }
            drop(inner);
            match key?.to_ascii_lowercase() {
                key if key == char::from(END) || key == 'q' => return Some(Answer::Quit),
                '\r' if allowed.contains('\n') => return Some(Answer::Key('\n')),
                key if allowed.contains(key) => return Some(Answer::Key(key)),
                _ => {}
            }
        }
    }

    /// Takes the question off the screen.
    pub fn answered(&self) {
        self.update(|screen| {
            screen.prompt.clear();
            screen.keys.clear();
        });
    }

    /// Something that the person here must hear now, while nobody asks anything.
    pub fn warn(&self, words: &str) {
        if self.ansi {
            self.update(|screen| {
                screen.live = true;
                words.clone_into(&mut screen.prompt);
                screen.keys.clear();
            });
        } else {
            tracing::warn!("{words}");
        }
    }

    /// A line for the log of a plain terminal; the live view says the same in its own way.
    pub fn say(&self, line: &str) {
        if self.ansi {
            self.update(|screen| line.clone_into(&mut screen.gate));
        } else {
            tracing::info!("{line}");
        }
    }
}

/// A key as people read it.
pub(super) fn key_name(key: char) -> String {
    match key {
        '\n' => "Enter".to_owned(),
        ' ' => "Space".to_owned(),
        other => other.to_string(),
    }
}
