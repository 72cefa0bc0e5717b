//! The two numpy generators behind published PushT seeds, stream for stream.
//!
//! * [`Pcg64`]: `numpy.random.Generator(PCG64(SeedSequence(seed)))`, what Gymnasium's `np_random` is.
//! * [`RandomState`]: `numpy.random.RandomState(seed)`, the Mersenne Twister of Matsumoto and Nishimura (1998).
//!
//! Only the draws that the environments make are here. The rules are those of numpy 2.4.

use rand::RngCore;
use rand_pcg::Lcg128Xsl64;
use rapier3d::na::ComplexField;

/// Pool size of numpy's `SeedSequence`, words.
const POOL: usize = 4;

/// Entropy of a seed spread over four words, then drawn out as four 64-bit words (O'Neill's `seed_seq` as numpy has
/// it: `numpy/random/bit_generator.pyx`, the constants are its `INIT_A` to `MIX_MULT_R`).
fn seed_sequence(seed: u64) -> [u64; 4] {
    let mut multiplier: u32 = 0x43b0_d7e5;
    let mut scramble = |word: u32| {
        let mixed = word ^ multiplier;
        multiplier = multiplier.wrapping_mul(0x931e_8875);
        let mixed = mixed.wrapping_mul(multiplier);
        mixed ^ (mixed >> 16)
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut scramble);
    for source in 0..POOL {
        for target in 0..POOL {
            if source != target {
                let blend = pool[target]
                    .wrapping_mul(0xca01_f9dd)
                    .wrapping_sub(scramble(pool[source]).wrapping_mul(0x4973_f715));
                pool[target] = blend ^ (blend >> 16);
            }
        }
    }
    let mut multiplier: u32 = 0x8b51_f9dd;
    let mut word = |i: usize| {
        let mixed = pool[i % POOL] ^ multiplier;
        multiplier = multiplier.wrapping_mul(0x58f3_8ded);
        let mixed = mixed.wrapping_mul(multiplier);
        u64::from(mixed ^ (mixed >> 16))
    };
    std::array::from_fn(|i| word(2 * i) | (word(2 * i + 1) << 32))
}

/// numpy's default generator (PCG XSL-RR 128/64, O'Neill 2014) with its 32-bit half-word buffer.
#[derive(Debug, Clone)]
pub(super) struct Pcg64 {
    core: Lcg128Xsl64,
    spare: Option<u32>,
}

impl Pcg64 {
    pub(super) fn from_seed(seed: u64) -> Self {
        let [a, b, c, d] = seed_sequence(seed).map(u128::from);
        Self { core: Lcg128Xsl64::new((a << 64) | b, (c << 64) | d), spare: None }
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(high) = self.spare.take() {
            return high;
        }
        let word = self.core.next_u64();
        self.spare = Some((word >> 32) as u32);
        word as u32
    }

    /// `Generator.integers(low, high)`, `high` excluded, for ranges below 2³²: Lemire's rejection (2019) on 32 bits.
    pub(super) fn integers(&mut self, low: i64, high: i64) -> i64 {
        let range = (high - low) as u32;
        let threshold = range.wrapping_neg() % range;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(range);
            if product as u32 >= threshold {
                return low + (product >> 32) as i64;
            }
        }
    }

    /// `Generator.uniform(low, high)`.
    pub(super) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.core.next_u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0);
        low + (high - low) * unit
    }
}

/// Words of the Mersenne Twister's state, and the middle word of its recurrence.
const N: usize = 624;
const M: usize = 397;

/// numpy's legacy generator.
pub(super) struct RandomState {
    words: [u32; N],
    at: usize,
}

impl RandomState {
    pub(super) fn from_seed(seed: u32) -> Self {
        let mut words = [0; N];
        words[0] = seed;
        for i in 1..N {
            let before: u32 = words[i - 1];
            words[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { words, at: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let joined =
                    (self.words[i] & 0x8000_0000) | (self.words[(i + 1) % N] & 0x7fff_ffff);
                let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.words[i] = self.words[(i + M) % N] ^ (joined >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.words[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn unit(&mut self) -> f64 {
        let (a, b) = (self.next_u32() >> 5, self.next_u32() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `RandomState.randint(low, high)`, `high` excluded: rejection under the smallest covering bit mask.
    pub(super) fn randint(&mut self, low: i64, high: i64) -> i64 {
        let largest = (high - low - 1) as u32;
        let mask = u32::MAX >> largest.leading_zeros();
        loop {
            let value = self.next_u32() & mask;
            if value <= largest {
                return low + i64::from(value);
            }
        }
    }

    /// The first value of `RandomState.randn()` (Marsaglia's polar method; numpy returns the second of the pair first).
    pub(super) fn randn(&mut self) -> f64 {
        loop {
            let x1 = 2.0 * self.unit() - 1.0;
            let x2 = 2.0 * self.unit() - 1.0;
            let square = x1 * x1 + x2 * x2;
            if square < 1.0 && square != 0.0 {
                return (-2.0 * ComplexField::ln(square) / square).sqrt() * x2;
            }
        }
    }
}
