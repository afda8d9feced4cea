// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A generator in this process, seeded by the kernel's.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aes::{Aes256Enc, Block};
use ctr::Ctr64LE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::reader::wipe;

/// Bytes that are made ahead, for small reads.
const STOCK: usize = 16 * 1024;
/// From this many bytes on, a read gets a key of its own instead of bytes from the stock.
const DIRECT: usize = STOCK / 2;
/// Most that one key is used for, its successor not counted.
const MOST_PER_KEY: usize = 64 * 1024;
/// Bytes given after which fresh entropy is mixed in.
const RESEED_AFTER: u64 = 1024 * 1024;

type Key = [u8; 32];

/// A generator in this process: AES-256 in counter mode with fast key erasure, reseeded from the
/// kernel. About ten times as fast as [`KernelEntropy`](crate::KernelEntropy).
///
/// It never gives less than it was asked for, and fails only if the kernel's generator does.
///
/// # Security
///
/// * *Seeding*: 32 bytes from the kernel's generator, when it is made.
/// * *Reseeding*: after each MiB given, and before the next byte once [`Reseed::reseed`] was called,
///   32 bytes from the kernel are mixed into the key. Whoever has learnt the state loses it then.
/// * *Key erasure*: a key makes at most 64 KiB, and its first 32 bytes are the next key, which
///   replaces it before anything is given. Bytes made ahead, 16 KiB at most, are overwritten as they
///   are given. Whoever learns the state later cannot compute what was given before. The compiler
///   may leave copies in registers and on the stack, as with any program in this language.
/// * *Fork, snapshot and restore of this process*: two copies go on to give the same bytes, up to a
///   MiB each, unless the embedder calls [`Reseed::reseed`] in every copy before its device runs.
///   A virtual machine that is restored from a snapshot of the *guest* into a new process has a new
///   generator, and so nothing in common with another.
/// * *Timing*: constant where the processor has AES instructions, and in the software fallback.
///
/// # Speed
///
/// Small reads are copies from bytes made ahead. It never waits, which
/// [`EntropyDevice::with_prompt_source`](crate::EntropyDevice::with_prompt_source) makes use of.
///
/// On x86-64 the generator uses AES-NI. With version 0.9.3 and later of the crate `aes`, which needs
/// Rust 1.89, it uses the wider VAES instructions as well, on processors that have them, and is
/// some four times as fast for large requests.
///
/// ```
/// use std::io::Read;
/// use virtio_rng_device::FastEntropy;
///
/// let mut source = FastEntropy::new()?;
/// let reseed = source.reseed_handle();
/// let mut bytes = [0; 32];
/// source.read_exact(&mut bytes)?;
/// // After this process was restored from an image of itself:
/// reseed.reseed();
/// source.read_exact(&mut bytes)?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct FastEntropy {
    /// In a place of their own, so that no copy stays behind when the generator moves.
    secrets: Box<Secrets>,
    taken: usize,
    /// Bytes given since fresh entropy was mixed in.
    given: u64,
    /// What `demands` was when fresh entropy was mixed in.
    met: u64,
    demands: Reseed,
    kernel: fn(&mut [u8]) -> io::Result<()>,
}

struct Secrets {
    /// Never used for anything yet: the key to come.
    key: Key,
    /// Bytes made ahead; those before `taken` have been given and are 0.
    stock: [u8; STOCK],
}

/// Makes a [`FastEntropy`] reseed; clones are for the same generator.
///
/// ```
/// use virtio_rng_device::FastEntropy;
///
/// let source = FastEntropy::new()?;
/// // To be kept, and called after a fork, or when an image of this process was restored.
/// let reseed = source.reseed_handle();
/// reseed.reseed();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Reseed {
    demands: Arc<AtomicU64>,
}

impl Reseed {
    /// Has the generator throw away what it has made ahead, and mix in fresh entropy, before it
    /// gives the next byte. A read that is under way in another thread may still end as it began.
    pub fn reseed(&self) {
        self.demands.fetch_add(1, Ordering::Release);
    }
}

impl FastEntropy {
    /// Makes a generator, seeded by the kernel's.
    ///
    /// # Errors
    ///
    /// The kernel's generator fails.
    pub fn new() -> io::Result<Self> {
        Self::seeded_by(|seed| Ok(getrandom::fill(seed)?))
    }

    fn seeded_by(kernel: fn(&mut [u8]) -> io::Result<()>) -> io::Result<Self> {
        let mut generator = Self {
            secrets: Box::new(Secrets {
                key: [0; 32],
                stock: [0; STOCK],
            }),
            taken: STOCK,
            given: 0,
            met: 0,
            demands: Reseed::default(),
            kernel,
        };
        generator.reseed(0)?;
        Ok(generator)
    }

    /// A handle by which to have this generator reseed.
    #[must_use]
    pub fn reseed_handle(&self) -> Reseed {
        self.demands.clone()
    }

    /// Mixes fresh entropy into the key, and throws away what was made from the old one. After a
    /// failure everything is as before, and the next read tries again.
    fn reseed(&mut self, demands: u64) -> io::Result<()> {
        let mut seed = Zeroizing::new([0; 32]);
        (self.kernel)(&mut *seed)?;
        for (key, seed) in self.secrets.key.iter_mut().zip(&*seed) {
            *key ^= seed;
        }
        wipe(&mut self.secrets.stock);
        self.taken = STOCK;
        (self.given, self.met) = (0, demands);
        Ok(())
    }

    /// Gives from the stock, and makes a new one when it is used up.
    fn take(&mut self, mut data: &mut [u8]) -> io::Result<()> {
        while !data.is_empty() {
            if self.taken == STOCK {
                let Secrets { key, stock } = &mut *self.secrets;
                squeeze(key, stock)?;
                self.taken = 0;
            }
            let stock = self.secrets.stock.get_mut(self.taken..).unwrap_or_default();
            let count = stock.len().min(data.len());
            let (now, later) = data.split_at_mut(count);
            let stock = stock.get_mut(..count).unwrap_or_default();
            now.copy_from_slice(stock);
            wipe(stock);
            self.taken += count;
            data = later;
        }
        Ok(())
    }
}

/// Makes up to 64 KiB with the key, after the key has replaced itself.
///
/// Under a key that is used once, the counter may start at 0. An error says that `out` may not have
/// been filled.
fn squeeze(key: &mut Key, out: &mut [u8]) -> io::Result<()> {
    let mut stream = Ctr64LE::<Aes256Enc>::new((&*key).into(), &Block::default());
    let written = stream.try_write_keystream(key);
    let written = written.and_then(|()| stream.try_write_keystream(out));
    written.map_err(|_| ErrorKind::InvalidInput.into())
}

impl Read for FastEntropy {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let demands = self.demands.demands.load(Ordering::Acquire);
        let due = self.given.saturating_add(data.len() as u64) > RESEED_AFTER;
        if demands != self.met || (due && self.given != 0) {
            self.reseed(demands)?;
        }
        if data.len() < DIRECT {
            self.take(data)?;
        } else {
            for part in data.chunks_mut(MOST_PER_KEY) {
                squeeze(&mut self.secrets.key, part)?;
            }
        }
        self.given = self.given.saturating_add(data.len() as u64);
        Ok(data.len())
    }
}

impl Drop for FastEntropy {
    fn drop(&mut self) {
        self.secrets.key.zeroize();
        wipe(&mut self.secrets.stock);
    }
}

impl ZeroizeOnDrop for FastEntropy {}

/// Says nothing of the key or the bytes made ahead.
impl fmt::Debug for FastEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastEntropy").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::HashSet;

    thread_local! {
        /// How often the kernel was asked; each answer is this number, over and over.
        static ASKED: Cell<u8> = const { Cell::new(0) };
        static BROKEN: Cell<bool> = const { Cell::new(false) };
    }

    fn kernel(seed: &mut [u8]) -> io::Result<()> {
        if BROKEN.get() {
            return Err(ErrorKind::Other.into());
        }
        ASKED.set(ASKED.get() + 1);
        seed.fill(ASKED.get());
        Ok(())
    }

    fn generator() -> FastEntropy {
        ASKED.set(0);
        BROKEN.set(false);
        FastEntropy::seeded_by(kernel).unwrap()
    }

    fn bytes(generator: &mut FastEntropy, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert_eq!(generator.read(&mut bytes).unwrap(), len);
        bytes
    }

    #[test]
    fn the_stream_is_that_of_the_key_behind_its_successor() {
        for len in [100, DIRECT, DIRECT + 5, MOST_PER_KEY - 1, MOST_PER_KEY] {
            let mut expected = vec![0; 32 + len];
            Ctr64LE::<Aes256Enc>::new(&[1; 32].into(), &[0; 16].into())
                .apply_keystream(&mut expected);
            let mut generator = generator();
            assert_eq!(bytes(&mut generator, len), expected[32..]);
            assert_eq!(generator.secrets.key, expected[..32]);
        }
    }

    #[test]
    fn what_was_given_cannot_be_found_any_more() {
        let mut generator = generator();
        for len in [1, 64, 100, STOCK / 2 - 1, STOCK, 3 * MOST_PER_KEY + 5] {
            let key = generator.secrets.key;
            let given = bytes(&mut generator, len);
            assert!(
                generator.secrets.stock[..generator.taken.min(STOCK - 1)]
                    .iter()
                    .all(|&b| b == 0)
            );
            if len >= 64 {
                assert!(
                    !generator
                        .secrets
                        .stock
                        .windows(16)
                        .any(|held| held == &given[len - 16..])
                );
            }
            if len >= DIRECT {
                assert_ne!(generator.secrets.key, key);
            }
        }
    }

    #[test]
    fn no_read_repeats_what_another_gave() {
        let mut generator = generator();
        let mut seen = HashSet::new();
        let lens = [16, 64, 4096, STOCK, MOST_PER_KEY + 16, 16, 2 * STOCK - 32];
        for len in lens.into_iter().cycle().take(50) {
            for block in bytes(&mut generator, len).chunks_exact(16) {
                assert!(seen.insert(block.to_vec()));
            }
        }
    }

    #[test]
    fn fresh_entropy_is_mixed_in_after_each_mebibyte() {
        let mut generator = generator();
        for _ in 0..16 {
            bytes(&mut generator, 65_536);
        }
        assert_eq!(ASKED.get(), 1);
        bytes(&mut generator, 1);
        assert_eq!(ASKED.get(), 2);
        bytes(&mut generator, 3 * 1024 * 1024);
        bytes(&mut generator, 1);
        assert_eq!(ASKED.get(), 4);
    }

    #[test]
    fn a_copy_that_reseeds_goes_its_own_way() {
        let [mut generator, mut twin, mut copy] = [(); 3].map(|()| generator());
        for state in [&mut twin, &mut copy] {
            assert_eq!(state.secrets.key, generator.secrets.key);
            bytes(state, 100);
        }
        bytes(&mut generator, 100);
        copy.reseed_handle().reseed();
        let given = bytes(&mut generator, 64);
        assert_eq!(given, bytes(&mut twin, 64));
        assert_ne!(given, bytes(&mut copy, 64));
    }

    #[test]
    fn a_demand_is_met_once_and_before_the_next_byte() {
        let mut generator = generator();
        let ahead = generator.secrets.stock;
        bytes(&mut generator, 1);
        let reseed = generator.reseed_handle();
        reseed.reseed();
        reseed.clone().reseed();
        bytes(&mut generator, 1);
        assert_eq!(ASKED.get(), 2);
        bytes(&mut generator, 1);
        assert_eq!(ASKED.get(), 2);
        assert_ne!(ahead, generator.secrets.stock);
    }

    #[test]
    fn no_byte_is_given_while_a_demand_cannot_be_met() {
        let mut generator = generator();
        generator.reseed_handle().reseed();
        BROKEN.set(true);
        let mut data = [0; 16];
        for _ in 0..3 {
            generator.read(&mut data).unwrap_err();
            assert_eq!(data, [0; 16]);
        }
        BROKEN.set(false);
        bytes(&mut generator, 16);
        assert_eq!(ASKED.get(), 2);
    }

    #[test]
    fn two_generators_differ_and_bits_are_balanced() {
        let [mut a, mut b] = [FastEntropy::new().unwrap(), FastEntropy::new().unwrap()];
        let a = bytes(&mut a, 100_000);
        assert_ne!(a, bytes(&mut b, 100_000));
        let ones: u32 = a.iter().map(|byte| byte.count_ones()).sum();
        // Eight standard deviations of 447 around one half.
        assert!((396_400..403_600).contains(&ones), "{ones}");
    }

    #[test]
    fn debug_output_says_nothing() {
        assert_eq!(format!("{:?}", generator()), "FastEntropy { .. }");
    }
}
