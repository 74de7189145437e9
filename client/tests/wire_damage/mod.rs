//! Damage: what a bad cable would never do and an attacker would.

use std::{
    env,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    time::{Duration, Instant},
};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// How long a search may take.
const TIME_MAX: Duration = Duration::from_secs(3);
/// In a search for more than this something is wrong with the clock.
const ROUNDS_MAX: u64 = 50_000_000;

/// Bytes at which counts, lengths and choices change their meaning.
const TELLING: [u8; 10] = [0, 1, 2, 3, 0x0a, 0x0f, 0x7f, 0x80, 0xfe, 0xff];

/// A small generator that says the same on every machine: splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((bits ^ (bits >> 31)) >> 33).expect("31 bits") % bound.max(1)
    }

    /// Damages `bytes` in one of many ways; `other` is another good frame to take pieces from.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len());
        match self.below(8) {
            _ if bytes.is_empty() => bytes.push(TELLING[self.below(TELLING.len())]),
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = TELLING[self.below(TELLING.len())],
            2 => bytes[at] = bytes[at].wrapping_add(1),
            3 => bytes.insert(at, TELLING[self.below(TELLING.len())]),
            4 => drop(bytes.remove(at)),
            5 => bytes.truncate(at),
            6 => {
                let end = at + self.below(bytes.len() - at);
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let from = self.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
}

/// The seed: from `QUORATE_SEED`, a number or any text such as a commit's hash.
fn seed() -> u64 {
    let Ok(text) = env::var("QUORATE_SEED") else { return 1 };
    text.parse().unwrap_or_else(|_| {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        hasher.finish() >> 1
    })
}

/// Prints a line even where the test harness would keep it to itself.
fn say(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// For a few seconds: damages the bodies that `encode` makes of messages, and hands them to `check`, which panics if
/// it dislikes what comes of it and otherwise says whether they were taken for a message.
pub(crate) fn search<T>(
    messages: impl Strategy<Value = T>,
    encode: impl Fn(&T) -> Vec<u8>,
    mut check: impl FnMut(Vec<u8>) -> bool,
) {
    let (began, seed) = (Instant::now(), seed());
    say(&format!("the search begins with seed {seed} (QUORATE_SEED={seed})"));
    let mut random = Random::new(seed);
    let mut chacha_seed = [0; 32];
    chacha_seed[..8].copy_from_slice(&seed.to_be_bytes());
    let generator = TestRng::from_seed(RngAlgorithm::ChaCha, &chacha_seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), generator);
    let mut draw = || encode(&messages.new_tree(&mut runner).expect("no filters").current());
    let mut pool: Vec<Vec<u8>> = (0..64).map(|_| draw()).collect();
    let (mut rounds, mut taken) = (0_u64, 0_u64);
    while rounds < ROUNDS_MAX && began.elapsed() < TIME_MAX {
        let slot = random.below(pool.len());
        pool[slot] = draw();
        for _ in 0..50 {
            let mut bytes = pool[random.below(pool.len())].clone();
            let other = random.below(pool.len());
            for _ in 0..=random.below(4) {
                random.damage(&mut bytes, &pool[other]);
            }
            taken += u64::from(check(bytes));
            rounds += 1;
        }
    }
    say(&format!("{rounds} damaged frames in {:?}, {taken} of them good all the same", began.elapsed()));
    // Damage that always shows at once, or never, would search nothing.
    assert!(taken > rounds / 1_000 && taken < rounds, "{taken} of {rounds}");
}
