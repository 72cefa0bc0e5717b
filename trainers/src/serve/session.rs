//! What is remembered between the requests of one robot.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use axum::http::StatusCode;
use ndarray::Array1;
use simloop_envs::{ActionChunk, EnvId, Observation, SeedTree};

use super::refusal::Refusal;

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) env: EnvId,
    /// `T_o`.
    keep: usize,
    window: VecDeque<Observation>,
    fresh: bool,
    noise: SeedTree,
    decisions: u64,
    /// The rest of the chunk, over REST.
    pending: VecDeque<Array1<f32>>,
}

impl Session {
    /// `noise` is the root of its decisions' noise.
    pub(super) fn new(env: EnvId, keep: usize, noise: SeedTree) -> Self {
        Self {
            env,
            keep: keep.max(1),
            window: VecDeque::new(),
            fresh: true,
            noise,
            decisions: 0,
            pending: VecDeque::new(),
        }
    }

    /// A new episode begins: nothing that was seen or planned counts any more. Its noise goes on.
    pub(super) fn reset(&mut self) {
        self.window.clear();
        self.pending.clear();
        self.fresh = true;
    }

    /// Remembers what was seen, oldest first.
    pub(super) fn see(&mut self, seen: impl IntoIterator<Item = Observation>) {
        for obs in seen {
            if self.window.len() == self.keep {
                self.window.pop_front();
            }
            self.window.push_back(obs);
        }
    }

    /// The next action that was planned earlier.
    pub(super) fn next_action(&mut self) -> Option<Array1<f32>> {
        self.pending.pop_front()
    }

    /// Keeps a chunk to be dealt out.
    pub(super) fn plan(&mut self, chunk: &ActionChunk) {
        self.pending = chunk.actions().map(|action| action.to_owned()).collect();
    }

    /// What to decide on: exactly `T_o` observations (the first is repeated while there are fewer), the noise of this
    /// decision, and whether the episode is new.
    pub(super) fn question(&mut self, noise_seed: Option<u64>) -> (Vec<Observation>, u64, bool) {
        let missing = self.keep - self.window.len();
        let window = self
            .window
            .front()
            .into_iter()
            .flat_map(|first| std::iter::repeat_n(first, missing))
            .chain(&self.window)
            .cloned()
            .collect();
        let seed = noise_seed.unwrap_or_else(|| self.noise.index(self.decisions).seed());
        self.decisions += 1;
        (window, seed, std::mem::take(&mut self.fresh))
    }

    /// The question was not answered: it did not count.
    pub(super) fn unanswered(&mut self, fresh: bool) {
        self.decisions -= 1;
        self.fresh = fresh;
    }
}

/// Sessions by name, for REST.
pub(super) struct Sessions {
    /// `None` while a request holds it.
    entries: BTreeMap<String, Entry>,
    limit: usize,
}

struct Entry {
    session: Option<Session>,
    used: Instant,
}

/// The longest name of a session.
const MAX_NAME: usize = 128;

impl Sessions {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: BTreeMap::new(), limit }
    }

    /// Whether a name may be a session's.
    ///
    /// # Errors
    /// 400 for a long or strange one.
    pub(super) fn check(name: &str) -> Result<(), Refusal> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("x-session-id: 1 to {MAX_NAME} letters, digits and -._: are a name"),
            ));
        }
        Ok(())
    }

    /// Takes a session out until it is put back; `make` makes one that is not there. With it comes the environment of a
    /// session that had to make room.
    ///
    /// # Errors
    /// 409 while another request holds it; 503 when every session is held.
    pub(super) fn take(
        &mut self,
        name: &str,
        make: impl FnOnce() -> Session,
    ) -> Result<(Session, Option<EnvId>), Refusal> {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.used = Instant::now();
            return entry.session.take().map(|session| (session, None)).ok_or_else(|| {
                Refusal::new(
                    StatusCode::CONFLICT,
                    "this session's last request is not answered yet",
                )
            });
        }
        let mut evicted = None;
        if self.entries.len() >= self.limit {
            let idle = self.entries.iter().filter(|(_, entry)| entry.session.is_some());
            let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone());
            let Some(oldest) = oldest else {
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many sessions"));
            };
            evicted = self.entries.remove(&oldest).and_then(|e| e.session).map(|s| s.env);
        }
        self.entries.insert(name.to_owned(), Entry { session: None, used: Instant::now() });
        Ok((make(), evicted))
    }

    /// Puts a session back.
    pub(super) fn put(&mut self, name: &str, session: Session) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.session = Some(session);
            entry.used = Instant::now();
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArcArray1, array};

    use super::*;

    fn obs(n: f32) -> Observation {
        Observation {
            images: BTreeMap::new(),
            proprio: ArcArray1::from(vec![n]),
            instruction: "".into(),
        }
    }

    fn numbers(window: &[Observation]) -> Vec<f32> {
        window.iter().map(|obs| obs.proprio[0]).collect()
    }

    #[test]
    fn a_window_is_always_full_and_a_reset_empties_it() {
        let mut session = Session::new(EnvId(1), 3, SeedTree::new(0));
        session.see([obs(1.0)]);
        let (window, first, fresh) = session.question(None);
        assert_eq!((numbers(&window), fresh), (vec![1.0, 1.0, 1.0], true));
        session.see([obs(2.0)]);
        let (window, second, fresh) = session.question(None);
        assert_eq!((numbers(&window), fresh), (vec![1.0, 1.0, 2.0], false));
        session.see([obs(3.0), obs(4.0), obs(5.0)]);
        assert_eq!(numbers(&session.question(Some(7)).0), [3.0, 4.0, 5.0]);
        session.reset();
        session.see([obs(9.0)]);
        let (window, later, fresh) = session.question(None);
        assert_eq!((numbers(&window), fresh), (vec![9.0, 9.0, 9.0], true));
        assert!(first != second && first != later && second != later, "noise is not repeated");
    }

    #[test]
    fn a_chunk_is_dealt_out_in_order() {
        let mut session = Session::new(EnvId(1), 1, SeedTree::new(0));
        session.plan(&ActionChunk::new(array![[1.0], [2.0]]).unwrap());
        assert_eq!(session.next_action(), Some(array![1.0]));
        assert_eq!(session.next_action(), Some(array![2.0]));
        assert_eq!(session.next_action(), None);
    }

    #[test]
    fn a_session_answers_one_request_at_a_time_and_the_oldest_makes_room() {
        let mut sessions = Sessions::new(2);
        let make = |n| move || Session::new(EnvId(n), 1, SeedTree::new(0));
        let (a, _) = sessions.take("a", make(1)).unwrap();
        assert_eq!(sessions.take("a", make(9)).unwrap_err().status, StatusCode::CONFLICT);
        let (b, _) = sessions.take("b", make(2)).unwrap();
        let full = sessions.take("c", make(3)).unwrap_err();
        assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE, "both are held");
        sessions.put("a", a);
        sessions.put("b", b);
        let (c, evicted) = sessions.take("c", make(3)).unwrap();
        assert_eq!((c.env, evicted, sessions.len()), (EnvId(3), Some(EnvId(1)), 2));
        assert_eq!(sessions.take("b", make(9)).unwrap().0.env, EnvId(2));
        for strange in ["", "a b", "../x", "é", &"x".repeat(129)] {
            assert!(Sessions::check(strange).is_err(), "{strange}");
        }
        assert!(Sessions::check("00ab-3.x:y").is_ok());
    }
}
