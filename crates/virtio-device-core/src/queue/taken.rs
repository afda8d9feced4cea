// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which chains of a queue are in flight.

/// A bit for each descriptor of a queue: whether it heads a chain that is in flight.
#[derive(Clone)]
pub(super) struct Taken {
    words: Vec<u64>,
}

impl Taken {
    /// Makes the set for a queue of `size` descriptors, empty.
    pub(super) fn new(size: u16) -> Self {
        Self {
            words: vec![0; usize::from(size).div_ceil(64)],
        }
    }

    pub(super) fn contains(&self, head: u16) -> bool {
        let (index, bit) = place(head);
        self.words.get(index).is_some_and(|word| word & bit != 0)
    }

    /// Returns `false` if `head` is in the set already, or is no descriptor of this queue.
    #[inline]
    pub(super) fn insert(&mut self, head: u16) -> bool {
        let (index, bit) = place(head);
        let Some(word) = self.words.get_mut(index) else {
            return false;
        };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Returns `false` if `head` is not in the set.
    #[inline]
    pub(super) fn remove(&mut self, head: u16) -> bool {
        let (index, bit) = place(head);
        let Some(word) = self.words.get_mut(index) else {
            return false;
        };
        let before = *word;
        *word &= !bit;
        *word != before
    }

    /// Inserts `head`, or removes it if it is in the set.
    #[cfg(feature = "virtio-queue")]
    pub(super) fn toggle(&mut self, head: u16) {
        if !self.insert(head) {
            self.remove(head);
        }
    }

    /// The heads in the set, in ascending order.
    pub(super) fn heads(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX)
            .take(64 * self.words.len())
            .filter(|&head| self.contains(head))
    }

    /// The word that holds the bits from descriptor `64 * index` on.
    #[inline]
    pub(super) fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// Writes one word back and returns another; by value, so that both stay in registers.
    #[cold]
    pub(super) fn exchange(&mut self, index: usize, value: u64, wanted: usize) -> u64 {
        self.set_word(index, value);
        self.word(wanted)
    }

    /// Replaces a word, if there is one at `index`.
    #[inline]
    pub(super) fn set_word(&mut self, index: usize, value: u64) {
        if let Some(word) = self.words.get_mut(index) {
            *word = value;
        }
    }
}

/// Which word holds the bit of a descriptor, and the bit.
#[inline]
pub(super) const fn place(head: u16) -> (usize, u64) {
    ((head / 64) as usize, 1 << (head % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_in_the_set_from_insertion_to_removal() {
        let mut taken = Taken::new(256);
        for head in [0, 63, 64, 255] {
            assert!(!taken.contains(head) && taken.insert(head));
            assert!(taken.contains(head) && !taken.insert(head));
        }
        assert_eq!(taken.heads().collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert!(taken.remove(63) && !taken.remove(63));
        assert!(!taken.insert(256) && !taken.remove(256) && !taken.contains(256));
        assert_eq!(taken.heads().collect::<Vec<_>>(), [0, 64, 255]);
    }
}
