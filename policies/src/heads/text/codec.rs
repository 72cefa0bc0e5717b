//! Actions to text and back: integers `0..=max_value`, joined by single spaces.

use crate::PolicyError;

/// What a character is to the model. Digits are their own ids.
pub(super) const SPACE: i64 = 10;
/// Ends the text.
pub(super) const END: i64 = 11;
/// Characters that the model may say.
pub(super) const SPOKEN: i64 = 12;
/// Begins the text; never said.
pub(super) const BEGIN: i64 = 12;
/// Stands for a hidden character (VLA-0's "?"); never said.
pub(super) const HIDDEN: i64 = 13;
/// All ids.
pub(super) const VOCABULARY: i64 = 14;

/// `[T_p, D]` numbers in `[low, high]` to text and back.
#[derive(Clone, Debug, PartialEq)]
pub struct Codec {
    /// Greatest integer.
    pub max_value: i64,
    /// The number that 0 stands for.
    pub low: f64,
    /// The number that `max_value` stands for.
    pub high: f64,
    /// `T_p`.
    pub chunk_size: usize,
    /// `D`.
    pub action_dim: usize,
}

impl Codec {
    /// Checks the range.
    ///
    /// # Errors
    /// [`PolicyError::Config`] unless `1 <= max_value <= 10^9` and `low < high`.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let Self { max_value, low, high, .. } = self;
        let value = (1..=1_000_000_000).contains(max_value);
        if !(value && low < high && low.is_finite() && high.is_finite()) {
            return Err(PolicyError::Config {
                detail: format!(
                    "write actions as integers up to {max_value} for {low} to {high}: 1 <= max_value <= 10^9 and low < high \
                     are needed"
                ),
            });
        }
        Ok(())
    }

    /// Integers in a whole chunk.
    pub fn count(&self) -> usize {
        self.chunk_size * self.action_dim
    }

    /// Characters of the longest text, the end included.
    pub fn max_len(&self) -> usize {
        let digits = self.max_value.to_string().len();
        self.count() * (digits + 1)
    }

    /// Numbers to text: `(x - low) / (high - low) * max_value`, rounded half to even, clipped. A number that is not finite
    /// becomes the middle.
    pub fn text(&self, chunk: &[f32]) -> String {
        let max = self.max_value as f64;
        let integers = chunk.iter().map(|x| {
            let share = (f64::from(*x) - self.low) / (self.high - self.low);
            let share = if share.is_nan() { 0.5 } else { share };
            ((share * max).round_ties_even().clamp(0.0, max) as i64).to_string()
        });
        integers.collect::<Vec<_>>().join(" ")
    }

    /// Text to `T_p · D` numbers, by VLA-0's rules: a trailing incomplete action is dropped, missing actions repeat the last,
    /// actions over the chunk's length are dropped; text that is no list of integers gives the middle of the range
    /// everywhere. So does a text without a complete action. Integers above `max_value` are clipped (VLA-0 lets them
    /// out of the range).
    pub fn parse(&self, text: &str) -> Vec<f32> {
        let (n, d) = (self.count(), self.action_dim);
        let middle = vec![f64::midpoint(self.low, self.high) as f32; n];
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let mut numbers = Vec::with_capacity(n);
        for word in text.split(' ') {
            if !digits(word) {
                return middle;
            }
            // A number too long for i64 is above any `max_value`.
            let integer = word.parse::<i64>().unwrap_or(i64::MAX).min(self.max_value);
            let share = integer as f64 / self.max_value as f64;
            numbers.push((self.low + share * (self.high - self.low)) as f32);
        }
        numbers.truncate(n);
        numbers.truncate(numbers.len() / d * d);
        if numbers.is_empty() {
            return middle;
        }
        while numbers.len() < n {
            numbers.push(numbers[numbers.len() - d]);
        }
        numbers
    }

    /// The ids of a text, its end included. Characters that are neither digit nor space do not occur in [`Codec::text`].
    pub(super) fn ids(text: &str) -> Vec<i64> {
        let id = |b: u8| if b.is_ascii_digit() { i64::from(b - b'0') } else { SPACE };
        text.bytes().map(id).chain([END]).collect()
    }

    /// The text of spoken ids up to the end.
    pub(super) fn words(ids: &[i64]) -> String {
        let spoken = ids.iter().take_while(|id| **id != END);
        spoken.map(|id| if *id == SPACE { ' ' } else { (b'0' + *id as u8) as char }).collect()
    }
}

/// What the model may say next.
#[derive(Clone, Debug, Default)]
pub(super) struct Grammar {
    /// Integers that are complete.
    complete: usize,
    /// The one that is being said.
    current: Option<i64>,
    ended: bool,
}

impl Grammar {
    /// Which of the spoken ids may come next, so that the text is exactly `codec.count()` integers in `0..=max_value` without
    /// leading zeros. At least one always may.
    pub(super) fn allowed(&self, codec: &Codec) -> [bool; SPOKEN as usize] {
        let mut allowed = [false; SPOKEN as usize];
        if self.ended {
            allowed[END as usize] = true;
            return allowed;
        }
        for digit in 0..10 {
            allowed[digit as usize] = match self.current {
                None => digit <= codec.max_value,
                Some(0) => false,
                Some(value) => value * 10 + digit <= codec.max_value,
            };
        }
        if self.current.is_some() {
            let last = self.complete + 1 == codec.count();
            allowed[if last { END } else { SPACE } as usize] = true;
        }
        allowed
    }

    /// `id` was said.
    pub(super) fn advance(&mut self, id: i64) {
        match id {
            END => self.ended = true,
            SPACE => {
                self.complete += 1;
                self.current = None;
            }
            digit => {
                // Saturating: without the grammar a number may have any length.
                let value = self.current.unwrap_or(0).saturating_mul(10).saturating_add(digit);
                self.current = Some(value);
            }
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codec() -> Codec {
        Codec { max_value: 1000, low: -1.0, high: 1.0, chunk_size: 2, action_dim: 2 }
    }

    #[test]
    fn numbers_become_integers_and_return_within_half_a_step() {
        let chunk = [-1.0f32, 0.25, 1.0, -0.3333];
        let text = codec().text(&chunk);
        assert_eq!(text, "0 625 1000 333");
        for (a, b) in codec().parse(&text).iter().zip(chunk) {
            assert!((a - b).abs() <= 0.5 * 2.0 / 1000.0 + 1e-6);
        }
        assert_eq!(codec().text(&[-7.0, f32::NAN, f32::INFINITY, 0.0]), "0 500 1000 500");
    }

    #[test]
    fn broken_text_is_read_by_vla0s_rules() {
        let parse = |text| codec().parse(text);
        // One complete action: it is repeated. The third integer begins an incomplete action, which is dropped.
        assert_eq!(parse("0 1000"), [-1.0, 1.0, -1.0, 1.0]);
        assert_eq!(parse("0 1000 500"), [-1.0, 1.0, -1.0, 1.0]);
        // More than a chunk is cut.
        assert_eq!(parse("0 1000 500 500 7 7 7"), [-1.0, 1.0, 0.0, 0.0]);
        // The middle of the range for what is no list of integers, or has no complete action.
        for text in ["", " ", "12", "1 2 3 4 ", "1  2 3 4", "1 2 x 4", "-1 2 3 4", "1.5 2 3 4"] {
            assert_eq!(parse(text), [0.0; 4], "{text:?}");
        }
        assert_eq!(parse("99999999999999999999 0 2000 0"), [1.0, -1.0, 1.0, -1.0]);
    }

    #[test]
    fn ids_and_words_are_inverse() {
        let ids = Codec::ids("10 3");
        assert_eq!(ids, [1, 0, SPACE, 3, END]);
        assert_eq!(Codec::words(&ids), "10 3");
        assert_eq!(Codec::words(&[5, END, 7]), "5");
    }

    /// Whatever is chosen among the allowed ids, the text ends in time and holds exactly `T_p · D` integers in range.
    #[test]
    fn every_walk_through_the_grammar_is_a_whole_chunk() {
        for max_value in [1, 7, 10, 256, 1000] {
            let codec = Codec { max_value, ..codec() };
            let mut state = 12_345u64;
            for _ in 0..300 {
                let mut grammar = Grammar::default();
                let mut ids = Vec::new();
                while !grammar.ended() {
                    let allowed = grammar.allowed(&codec);
                    let choices: Vec<i64> = (0..SPOKEN).filter(|i| allowed[*i as usize]).collect();
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let id = choices[(state >> 33) as usize % choices.len()];
                    grammar.advance(id);
                    ids.push(id);
                }
                assert!(ids.len() <= codec.max_len());
                let text = Codec::words(&ids);
                let integers: Vec<i64> = text.split(' ').map(|w| w.parse().unwrap()).collect();
                assert_eq!(integers.len(), 4, "{text}");
                assert!(integers.iter().all(|i| (0..=max_value).contains(i)), "{text}");
                assert_eq!(codec.text(&codec.parse(&text)), text, "leading zeros or a shift");
            }
        }
    }

    #[test]
    fn the_longest_text_fits() {
        let text = codec().text(&[1.0; 4]);
        assert_eq!(Codec::ids(&text).len(), codec().max_len());
        assert!(Codec { max_value: 0, ..codec() }.validate().is_err());
        assert!(Codec { low: 1.0, ..codec() }.validate().is_err());
    }
}
