//! Hostile input for every parser of bytes or text that come from outside: what a corpus of good examples becomes when bytes
//! are changed, cut out, put in, repeated and mixed. Each input must end in a value or an error, never in a panic, and the
//! parser may hold no more memory than [`allowance`] on its way. To that end every test binary that links this crate
//! allocates through a counter.
//!
//! ```text
//!   corpus ──► Mutator (seeded) ──► parse, counted ──► no panic · memory within bounds · what the target asserts
//! ```
//!
//! `EVERLOG_HOSTILE_CASES` sets how many inputs each target gets (20,000, or as many as fit into two seconds),
//! `EVERLOG_HOSTILE_SEED` which. A failure prints the input, which belongs into the target's corpus then.
//!
//! Why not a fuzzer: those that run on a stable compiler (bolero) pin versions of libraries that everlog's own dependencies
//! need newer, for what here is a hundred lines.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Bytes that this thread holds beyond those that it had when the counting began, and the most of it.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

impl Counting {
    fn count(change: isize) {
        // a thread that ends has no counter any more
        let _ = HELD.try_with(|held| {
            held.set(held.get().saturating_add(change));
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
        });
    }
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

#[allow(unsafe_code, reason = "an allocator is nothing else")]
// SAFETY: every call is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(signed(layout.size()));
        // SAFETY: the caller's promises are the system's requirements.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::count(-signed(layout.size()));
        // SAFETY: the caller's promises are the system's requirements.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(signed(layout.size()));
        // SAFETY: the caller's promises are the system's requirements.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // old and new are both there for a moment
        Self::count(signed(size));
        // SAFETY: the caller's promises are the system's requirements.
        let moved = unsafe { System.realloc(at, layout, size) };
        Self::count(-signed(layout.size()));
        moved
    }
}

/// Runs `work`; gives what it gives, and the most bytes that it held on this thread at once.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let done = work();
    (done, PEAK.get().saturating_sub(before).unsigned_abs())
}

/// Bytes that a parser may hold for each of its input, besides a megabyte for all of them.
const BYTES_PER_BYTE: usize = 16;
/// The same where SQL is read: a token with its place is a hundred bytes, may be made of one byte, and stands in a list that
/// grows by doubling.
pub const SQL_BYTES_PER_BYTE: usize = 320;

/// What a parser of so many bytes may hold.
pub fn allowance(input: usize) -> usize {
    within(BYTES_PER_BYTE, input)
}

fn within(bytes_per_byte: usize, input: usize) -> usize {
    bytes_per_byte * input + (1 << 20)
}

/// Feeds `parse` with every example of `corpus` and with what becomes of them. `parse` asserts what it knows of its value,
/// for instance that it is read back as it was written.
///
/// # Panics
/// Where `parse` does, or holds too much memory: with the input on standard error.
pub fn feed(target: &str, corpus: &[&[u8]], parse: impl Fn(&[u8])) {
    feed_within(BYTES_PER_BYTE, target, corpus, parse);
}

fn feed_within(bytes_per_byte: usize, target: &str, corpus: &[&[u8]], parse: impl Fn(&[u8])) {
    let one = |input: &[u8]| one(target, input, within(bytes_per_byte, input.len()), &parse);
    let (cases, patience) = match number("EVERLOG_HOSTILE_CASES") {
        Some(cases) => (cases, Duration::MAX),
        None => (20_000, Duration::from_secs(2)),
    };
    let mut chance = Chance(number("EVERLOG_HOSTILE_SEED").unwrap_or(0x5eed) | 1);
    for example in corpus {
        one(example);
    }
    let began = Instant::now();
    for case in 0..cases {
        // never so few that a slow machine proves nothing
        if case >= 500 && began.elapsed() > patience {
            break;
        }
        let input = chance.mutant(corpus);
        one(&input);
    }
}

/// The same for parsers of text: what is no UTF-8 reaches them with replacements.
pub fn feed_text(target: &str, corpus: &[&str], parse: impl Fn(&str)) {
    feed_text_within(BYTES_PER_BYTE, target, corpus, parse);
}

/// The same for parsers that may hold so many bytes for each of their input.
pub fn feed_text_within(
    bytes_per_byte: usize,
    target: &str,
    corpus: &[&str],
    parse: impl Fn(&str),
) {
    let bytes: Vec<&[u8]> = corpus.iter().map(|text| text.as_bytes()).collect();
    feed_within(
        bytes_per_byte,
        target,
        &bytes,
        |input| match std::str::from_utf8(input) {
            Ok(text) => parse(text),
            Err(_) => parse(&String::from_utf8_lossy(input)),
        },
    );
}

fn one(target: &str, input: &[u8], allowed: usize, parse: &impl Fn(&[u8])) {
    let (ended, peak) = counted(|| catch_unwind(AssertUnwindSafe(|| parse(input))));
    let shown = || input.escape_ascii().to_string();
    if let Err(panic) = ended {
        report(target, &shown());
        resume_unwind(panic);
    }
    if peak > allowed {
        report(target, &shown());
        assert!(
            peak <= allowed,
            "{target}: {peak} bytes held for an input of {}, {allowed} are allowed",
            input.len()
        );
    }
}

#[allow(clippy::print_stderr, reason = "what a failed test has to show")]
fn report(target: &str, input: &str) {
    eprintln!("{target}: b\"{input}\"");
}

#[allow(
    clippy::disallowed_methods,
    reason = "how whoever runs a test asks for more of it"
)]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Chance that is the same in every run (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or_default() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }

    /// Where a piece of `bytes` begins and ends.
    fn piece(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let from = self.below(bytes.len() + 1);
        let len = self.below((bytes.len() - from + 1).min(64));
        from..from + len
    }

    fn mutant(&mut self, corpus: &[&[u8]]) -> Vec<u8> {
        let example = |chance: &mut Self| {
            corpus
                .get(chance.below(corpus.len()))
                .copied()
                .unwrap_or_default()
        };
        let mut bytes = example(self).to_vec();
        for _ in 0..=self.below(5) {
            let at = self.below(bytes.len() + 1);
            match self.below(10) {
                0 | 1 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                2 => {
                    let byte = self.byte();
                    bytes.insert(at, byte);
                }
                3 => bytes.truncate(at),
                4 => {
                    let piece = self.piece(&bytes);
                    bytes.drain(piece);
                }
                5 => {
                    // repeated, at times very often: nesting, and lists that are long
                    let piece = self.piece(&bytes);
                    let times = [1, 2, 3, 300][self.below(4)];
                    let repeated = bytes.get(piece).unwrap_or_default().repeat(times);
                    bytes.splice(at..at, repeated);
                }
                6 => {
                    let other = example(self);
                    let piece = self.piece(other);
                    let other = other.get(piece).unwrap_or_default().to_vec();
                    bytes.splice(at..at, other);
                }
                7 => {
                    const NUMBERS: [&[u8]; 12] = [
                        b"-1",
                        b"0",
                        b"255",
                        b"256",
                        b"2147483647",
                        b"2147483648",
                        b"-2147483649",
                        b"4294967296",
                        b"9223372036854775807",
                        b"-9223372036854775808",
                        b"18446744073709551616",
                        b"1e999",
                    ];
                    // the number that stands here becomes one at the border of what fits
                    let digits = bytes
                        .iter()
                        .skip(at)
                        .take_while(|b| b.is_ascii_digit())
                        .count();
                    let number = NUMBERS[self.below(NUMBERS.len())];
                    bytes.splice(at..at + digits, number.iter().copied());
                }
                8 => {
                    const WORDS: [[u8; 4]; 6] = [
                        [0xff; 4],
                        [0; 4],
                        [0x7f, 0xff, 0xff, 0xff],
                        [0xff, 0xff, 0xff, 0x7f],
                        [0x80; 4],
                        [1, 0, 0, 0],
                    ];
                    let word = WORDS[self.below(WORDS.len())];
                    for (offset, byte) in word.into_iter().enumerate() {
                        if let Some(place) = bytes.get_mut(at + offset) {
                            *place = byte;
                        }
                    }
                }
                _ => {
                    const PARTS: [&[u8]; 14] = [
                        b"[", b"{", b"]", b"}", b"\"", b"null", b"\\u0000", b"\xff", b"\0", b"..",
                        b"%2e%2e", b"://", b"\r\n", b":",
                    ];
                    let part = PARTS[self.below(PARTS.len())];
                    bytes.splice(at..at, part.iter().copied());
                }
            }
            bytes.truncate(1 << 20);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_at_once_is_counted_and_what_was_given_back_is_not() {
        let ((), peak) = counted(|| {
            for _ in 0..10 {
                drop(std::hint::black_box(vec![0_u8; 100_000]));
            }
        });
        assert!((100_000..110_000).contains(&peak), "{peak}");
        let (kept, peak) =
            counted(|| std::hint::black_box((vec![0_u8; 50_000], vec![1_u8; 50_000])));
        assert!((100_000..110_000).contains(&peak), "{peak}");
        drop(kept);
    }

    #[test]
    fn a_parser_that_trusts_a_length_is_found() {
        let trusting = |input: &[u8]| {
            if let Some((length, _)) = input.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(0);
                drop(std::hint::black_box(Vec::<u8>::with_capacity(
                    length.min(1 << 26),
                )));
            }
        };
        let corpus: [&[u8]; 1] = [&[0, 0, 0, 1, 7]];
        let found = catch_unwind(AssertUnwindSafe(|| feed("a length", &corpus, trusting)));
        assert!(found.is_err());
        let panicking = |input: &[u8]| assert!(input.len() != 3, "three");
        let found = catch_unwind(AssertUnwindSafe(|| feed("three bytes", &corpus, panicking)));
        assert!(found.is_err());
    }

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let inputs = || {
            let mut chance = Chance(7);
            (0..100)
                .map(|_| chance.mutant(&[b"{\"a\":[1,2,3]}"]))
                .collect::<Vec<_>>()
        };
        assert_eq!(inputs(), inputs());
    }
}
