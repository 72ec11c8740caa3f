//! Which blocks are plugged.

use std::ops::Range;

/// Whether blocks are plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All of them.
    Plugged,
    /// None.
    Unplugged,
    /// Some.
    Mixed,
}

/// A bit for each block.
#[derive(Debug, Default)]
pub struct Blocks {
    words: Vec<u64>,
    plugged: u64,
}

impl Blocks {
    /// None of `count` blocks plugged.
    pub fn new(count: u64) -> Self {
        Self {
            words: vec![0; count.div_ceil(64) as usize],
            plugged: 0,
        }
    }

    /// As [`Self::words`] of `count` blocks gives them; `None`: there are more.
    pub fn of_words(words: &[u64], count: u64) -> Option<Self> {
        let mut blocks = Self::new(count);
        let there = blocks.words.get_mut(..words.len())?;
        there.copy_from_slice(words);
        let last = blocks.words.last().copied().unwrap_or(0);
        let spare = count.next_multiple_of(64) - count;
        if spare > 0 && last.leading_zeros() < spare as u32 {
            return None;
        }
        blocks.plugged = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Some(blocks)
    }

    /// The bits of the first `count` blocks, 64 a word; the last may have those of others.
    pub fn words(&self, count: u64) -> &[u64] {
        &self.words[..count.div_ceil(64) as usize]
    }

    /// How many are plugged.
    pub fn plugged(&self) -> u64 {
        self.plugged
    }

    /// The state of a range, which must be within what there is.
    pub fn state(&self, range: Range<u64>) -> State {
        let plugged = masks(&range)
            .map(|(word, mask)| u64::from((self.words[word] & mask).count_ones()))
            .sum::<u64>();
        match plugged {
            0 => State::Unplugged,
            all if all == range.end - range.start => State::Plugged,
            _ => State::Mixed,
        }
    }

    /// Changes a range whose blocks are all in the other state.
    pub fn set(&mut self, range: Range<u64>, plugged: bool) {
        let count = range.end - range.start;
        for (word, mask) in masks(&range) {
            if plugged {
                self.words[word] |= mask;
            } else {
                self.words[word] &= !mask;
            }
        }
        self.plugged = if plugged {
            self.plugged + count
        } else {
            self.plugged - count
        };
    }

    /// None is plugged any more.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.plugged = 0;
    }
}

/// Each word that a range has bits in, with these bits.
fn masks(range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let Range { start, end } = *range;
    (start / 64..end.div_ceil(64)).map(move |word| {
        let first = start.max(word * 64) - word * 64;
        let last = end.min(word * 64 + 64) - word * 64;
        let bits = (u64::MAX >> (64 - (last - first))) << first;
        (word as usize, bits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_as_a_list_of_flags_would_have_them() {
        for start in [0, 1, 63, 64, 65, 127, 128] {
            for end in [start + 1, 64, 65, 128, 129, 200, 256] {
                if end <= start {
                    continue;
                }
                let mut blocks = Blocks::new(256);
                blocks.set(start..end, true);
                assert_eq!(blocks.plugged(), end - start);
                for block in 0..256 {
                    let expected = match (start..end).contains(&block) {
                        true => State::Plugged,
                        false => State::Unplugged,
                    };
                    assert_eq!(
                        blocks.state(block..block + 1),
                        expected,
                        "{start} {end} {block}"
                    );
                }
                if end < 256 {
                    assert_eq!(blocks.state(start..end + 1), State::Mixed);
                }
                blocks.set(start..end, false);
                assert_eq!(blocks.state(0..256), State::Unplugged);
                assert_eq!(blocks.plugged(), 0);
            }
        }
    }
}
