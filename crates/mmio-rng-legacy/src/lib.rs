// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rngboi1337, a random number generator with one register.
//!
//! This is how a device looks when nobody thinks of virtual machines: a register that returns a
//! random number when it is read. A driver could not be simpler, and in a virtual machine nothing
//! is slower, because each read leaves the guest: N bytes cost N/4 exits, one after the other, with
//! the vCPU waiting. `virtio-rng-device` does the same work for one request.
//!
//! ```console
//! cargo add mmio-rng-legacy
//! # Which the first example uses as well:
//! cargo add vmm-bus
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # A first example
//!
//! | offset | width | name | access |
//! |---|---|---|---|
//! | 0 | 4 | `rng0` | read: fresh random bytes |
//!
//! Linux has a driver for such registers, `timeriomem_rng`; with the feature `fdt` a device tree can
//! name the device to it.
//!
//! ```
//! use bus::BusDevice;
//! use mmio_rng_legacy::Rngboi1337;
//!
//! let mut device = Rngboi1337::new(std::io::repeat(0x2a));
//! let mut rng0 = [0; 4];
//! device.read(0, &mut rng0)?;
//! assert_eq!(rng0, [0x2a; 4]);
//! # Ok::<(), bus::AccessError>(())
//! ```
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `fdt` | `Description`: the node of a device tree by which Linux' driver finds the register |
//!
//! # Limits
//!
//! * A source that blocks keeps the vCPU that reads from running and from being paused.
//! * It is slow by design, and nobody should add it to a machine for its randomness: that is what
//!   [virtio-rng-device](https://docs.rs/virtio-rng-device) is for.
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85 |
//! | vm-fdt | 0.3, with the feature `fdt` |
//! | vm-memory, kvm-ioctls | not needed |
//!
//! # System calls
//!
//! | phase | thread | system calls |
//! |---|---|---|
//! | `Rngboi1337::new` | the embedder's | none |
//! | a read | the vCPU's that reads | those of the source: `getrandom` for the kernel's generator, `read` for an open file |
//! | any other access | the vCPU's | none |
//!
//! A source that blocks keeps the vCPU from running and from being paused: open files with `O_NONBLOCK`, and the read fails
//! instead.
//!
//! # Threat model
//!
//! | the guest | what happens |
//! |---|---|
//! | reads with another width or at another offset | typed error; no randomness is given |
//! | reads while the source fails, ends, panics or has nothing yet | typed error and zeros, never old bytes |
//! | reads from two vCPUs at once | they take turns; no byte is given twice |
//! | reads in a storm | 16 calls to the source for each at most, no allocation |
//! | writes | typed error, no effect |
//!
//! `Debug` output says nothing of the source.
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [vmm-bus](https://docs.rs/vmm-bus) | finds the device that owns an address, and calls it |
//! | [virtio-rng-device](https://docs.rs/virtio-rng-device) | a virtio entropy device |
//! | [vcpu-runner](https://docs.rs/vcpu-runner) | runs a vCPU, and hands its exits to devices |

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "fdt")]
mod description;
mod observer;

use std::fmt;
use std::io::{ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use bus::{AccessError, BusDevice};

#[cfg(feature = "fdt")]
pub use description::Description;
pub use observer::{AccessCounters, AccessEvent, AccessObserver};

/// Offset of the only register, `rng0`.
pub const RNG0: u64 = 0;
/// Length of the device's region on the bus.
pub const REGION_SIZE: u64 = 4;

/// How often one access goes back to a source that was interrupted or gave part of the bytes.
const MAX_READS: u32 = 16;

/// The device. `S` is where its randomness comes from, and `O` hears of each access.
///
/// # What a read returns
///
/// | access | answer |
/// |---|---|
/// | 1, 2 or 4 bytes at offset 0 | that many fresh bytes of the source, in its order |
/// | any other width at offset 0 | [`AccessError::Width`]; the source is not asked |
/// | any other offset | [`AccessError::Offset`]; the source is not asked |
/// | the source fails, has nothing yet, ends, panics, or claims too much | [`AccessError::Failed`] |
///
/// A bus splits an access of 3 bytes, which is what is left of one that crosses a page, into 2 and 1:
/// the second is at another offset and fails, and with it the access.
///
/// On an error the guest reads what its bus fills in, all ones as a rule, and never bytes of an
/// earlier access. Writes are refused and change nothing.
///
/// Two vCPUs that read at once take turns, because the bus locks the device: no byte is given
/// twice. Nothing is kept between two reads, so a machine that is saved and restored, or two copies
/// of it, have nothing of it in common but the source.
///
/// # System calls
///
/// The source is asked on the thread of the vCPU that reads: one that blocks keeps this vCPU from
/// running and from being paused, and whatever it calls must be allowed there. The device itself
/// calls nothing; with the kernel's generator as the source it is getrandom(2), once for each read.
/// One access asks its source 16 times at most.
pub struct Rngboi1337<S, O = ()> {
    source: S,
    observer: O,
    /// The source has panicked; it is not asked again.
    lost: bool,
}

impl<S: Read + Send> Rngboi1337<S> {
    /// Makes a device that takes its randomness from `source`.
    #[must_use]
    pub const fn new(source: S) -> Self {
        Self::with_observer(source, ())
    }
}

impl<S: Read + Send, O: AccessObserver> Rngboi1337<S, O> {
    /// Makes a device that takes its randomness from `source`, and has `observer` hear of each
    /// access.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use bus::BusDevice;
    /// use mmio_rng_legacy::{AccessCounters, Rngboi1337};
    ///
    /// let counters = Arc::new(AccessCounters::default());
    /// let mut device = Rngboi1337::with_observer(std::io::repeat(7), counters.clone());
    /// for _ in 0..256 {
    ///     device.read(0, &mut [0; 4])?;
    /// }
    /// // A kibibyte has cost 256 exits.
    /// assert_eq!((counters.reads(), counters.bytes()), (256, 1024));
    /// # Ok::<(), bus::AccessError>(())
    /// ```
    #[must_use]
    pub const fn with_observer(source: S, observer: O) -> Self {
        Self {
            source,
            observer,
            lost: false,
        }
    }

    /// Fills `data` from the source, or fails; it is never left half-filled.
    fn draw(&mut self, data: &mut [u8]) -> Result<(), AccessError> {
        let mut filled = false;
        if !self.lost {
            // Neither is looked at again after a panic.
            let fill = AssertUnwindSafe(|| fill(&mut self.source, data));
            match catch_unwind(fill) {
                Ok(whole) => filled = whole,
                Err(payload) => {
                    self.lost = true;
                    // It may panic in its turn; what that panics with is never dropped.
                    let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                    std::mem::forget(dropped.err());
                }
            }
        }
        if !filled {
            data.fill(0);
            self.observer.event(&AccessEvent::Failed);
            return Err(AccessError::Failed);
        }
        self.observer.event(&AccessEvent::Answered(data.len()));
        Ok(())
    }
}

/// Fills `data` as a whole; says whether it could.
fn fill(source: &mut impl Read, data: &mut [u8]) -> bool {
    let mut filled = 0;
    for _ in 0..MAX_READS {
        let rest = data.get_mut(filled..).unwrap_or_default();
        match source.read(rest) {
            // The end of the source, or a source that claims more than it was given room for.
            Ok(count) if count == 0 || count > rest.len() => return false,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
        if filled == data.len() {
            return true;
        }
    }
    false
}

impl<S: Read + Send, O: AccessObserver> BusDevice for Rngboi1337<S, O> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let refusal = match (offset, data.len()) {
            (RNG0, 1 | 2 | 4) => return self.draw(data),
            (RNG0, _) => AccessError::Width,
            _ => AccessError::Offset,
        };
        self.observer.event(&AccessEvent::Refused);
        Err(refusal)
    }

    fn write(&mut self, offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        self.observer.event(&AccessEvent::Refused);
        Err(if offset == RNG0 {
            AccessError::ReadOnly
        } else {
            AccessError::Offset
        })
    }
}

/// Says nothing of the source, whose state may be worth guarding.
impl<S, O> fmt::Debug for Rngboi1337<S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rngboi1337").finish_non_exhaustive()
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
