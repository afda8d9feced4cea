// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong: a set-up, a ring or a request that the driver has spoiled, a device that cannot
//! start or cannot go on.

use std::error::Error;
use std::io;

use thiserror::Error;

use crate::negotiation::{Features, MAX_WORDS_BEYOND};

/// How a driver has broken a ring. The queue cannot be trusted from then on: it latches the fault,
/// and the device must ask for a reset.
///
/// ```
/// use virtio_device_core::{DeviceFault, RingFault};
///
/// // A handler that meets one returns it; the driver sees DEVICE_NEEDS_RESET.
/// fn process() -> Result<(), DeviceFault> {
///     Err(RingFault::ChainTooLong)?
/// }
/// assert!(matches!(process(), Err(DeviceFault::Ring(RingFault::ChainTooLong))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RingFault {
    /// The ring is not in guest memory any more.
    #[error("ring is not in guest memory")]
    RingMemory,
    /// The available index is further ahead than the queue is long (section 2.7.6.1).
    #[error("available index {index} is too far ahead of {next}")]
    AvailIndex {
        /// The index up to which the device has taken chains.
        next: u16,
        /// The index the driver has written.
        index: u16,
    },
    /// The used index is not one that leads to what was taken: a driver has written to the ring that
    /// only devices write (section 2.7.8).
    #[error("used index {index} is too far behind {next}")]
    UsedIndex {
        /// The index up to which chains were taken.
        next: u16,
        /// The index in the used ring.
        index: u16,
    },
    /// A head or `next` field names a descriptor that the table does not have.
    #[error("descriptor {index} in a table of {size}")]
    DescriptorIndex {
        /// The index named.
        index: u16,
        /// The number of descriptors in the table.
        size: u16,
    },
    /// The chain is longer than the queue: a loop, or more than a driver may build.
    #[error("descriptor chain is longer than the queue")]
    ChainTooLong,
    /// An indirect descriptor, although the feature was not negotiated (section 2.7.5.3.1).
    #[error("indirect descriptor without VIRTIO_F_INDIRECT_DESC")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table.
    #[error("indirect descriptor in an indirect table")]
    IndirectNested,
    /// An indirect descriptor that has a next one.
    #[error("indirect descriptor with a next one")]
    IndirectWithNext,
    /// An indirect table of a length that is 0 or no multiple of 16.
    #[error("indirect table of {0} bytes")]
    IndirectLength(u32),
    /// An indirect table that is not in guest memory as a whole.
    #[error("indirect table at {0:#x} is not all in memory")]
    IndirectMemory(u64),
    /// A chain was made available again before it was given back.
    #[error("chain {0} is available twice")]
    HeadInUse(u16),
    /// The device gave a chain back that it had not taken from this queue.
    #[error("chain {0} was not taken")]
    HeadNotTaken(u16),
}

/// A request that cannot be served although the ring is sound: give the chain back with length 0.
///
/// ```
/// use virtio_device_core::{Chain, vm_memory::{GuestAddress, GuestMemoryMmap}};
///
/// // What a device does with a request before it touches anything:
/// fn answer(chain: &Chain, memory: &GuestMemoryMmap) -> u32 {
///     match chain.check(memory) {
///         Ok(()) => chain.write(memory, b"hello").unwrap_or(0),
///         Err(_bad_request) => 0, // given back with length 0; the ring is sound
///     }
/// }
/// # let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
/// # assert_eq!(answer(&Chain::with_capacity(1), &memory), 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// A buffer does not lie in guest memory as a whole.
    #[error("buffer of {len} bytes at {addr:#x} is not all in memory")]
    BufferMemory {
        /// Guest address of the buffer.
        addr: u64,
        /// Length of the buffer in bytes.
        len: u32,
    },
    /// The buffers are not what the device type asks for: too short, or of the wrong direction.
    #[error("buffers are not laid out as the device type demands")]
    Layout,
}

/// Why what a driver has set up cannot be used, or what was saved of it: features that are not
/// agreed on, a queue that is not well-formed.
///
/// ```
/// use virtio_device_core::transport::{QueueLayout, QueueSetup, SetupError};
/// use virtio_device_core::vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
/// let setup = QueueSetup::new(8).with_desc_table(0x0).with_avail_ring(0x80).with_used_ring(0x102);
/// // The used ring must be aligned to 4.
/// let error = QueueLayout::check(&setup, 256, &memory).unwrap_err();
/// assert!(matches!(error, SetupError::Alignment(_, 0x102)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The driver accepted bits that the device does not offer.
    #[error("driver accepted bits never offered: {0:#x}")]
    NotOffered(Features),
    /// The driver accepted bits of this word, which no device offers: they are beyond bit 127.
    #[error("driver accepted bits of feature word {0}, which is never offered")]
    NoSuchWord(u32),
    /// The driver has filled more words beyond bit 127 than a device remembers.
    #[error("driver accepted bits of more than {MAX_WORDS_BEYOND} feature words never offered")]
    TooManyWords,
    /// The driver did not accept `VIRTIO_F_VERSION_1`.
    #[error("driver did not accept VIRTIO_F_VERSION_1")]
    NoVersion1,
    /// The driver accepted a feature without the one that it needs.
    #[error("driver accepted bit {feature} without any of {needs:?}")]
    MissingFeature {
        /// Number of the feature bit.
        feature: u32,
        /// Numbers of the bits of which it needs at least one.
        needs: &'static [u32],
    },
    /// The queue size is 0, no power of two, or larger than the device offers.
    #[error("queue size {size} is not a power of two up to {max}")]
    QueueSize {
        /// What the driver wrote.
        size: u32,
        /// The largest size the device offers.
        max: u16,
    },
    /// The part of a queue with this name is not aligned as section 2.7 demands.
    #[error("{0} at {1:#x} is not aligned")]
    Alignment(&'static str, u64),
    /// The part of a queue with this name does not lie in guest memory as a whole.
    #[error("{0} at {1:#x} is not all in memory")]
    Memory(&'static str, u64),
    /// The number of chains in flight is not the distance of the indices, or exceeds the queue size.
    #[error("{taken} chains are in flight, but the indices are {expected} apart")]
    InFlightCount {
        /// How far the indices are apart.
        expected: u16,
        /// How many chains are in flight.
        taken: usize,
    },
    /// A chain in flight has a head that the queue does not have, or that another one has.
    #[error("head {0} of a chain in flight is out of range or listed twice")]
    InFlightHead(u16),
}

/// Why a device cannot start, cannot go on from a saved state, or cannot go on.
///
/// ```
/// use virtio_device_core::DeviceFault;
///
/// let fault = DeviceFault::device("tap0 is gone");
/// let cause = std::error::Error::source(&fault).unwrap();
/// assert_eq!(cause.to_string(), "tap0 is gone");
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceFault {
    /// The driver has broken a ring.
    #[error("driver broke the ring")]
    Ring(#[from] RingFault),
    /// The device cannot work without a queue that the driver has left disabled.
    #[error("queue {0} is needed and not enabled")]
    QueueMissing(u16),
    /// A worker could not be started.
    #[error("worker could not be started")]
    Worker(#[source] io::Error),
    /// The device's backend does not work any more.
    #[error("device backend failed")]
    Backend(#[source] io::Error),
    /// The loop that drives the device's worker does not work any more.
    #[error("worker's loop failed")]
    Loop(#[source] io::Error),
    /// The device's handler panicked.
    #[error("device panicked")]
    Panicked,
    /// The device has saved no state of this version.
    #[error("device state of version {0} is not supported")]
    StateVersion(u32),
    /// The device's state is larger than [`MAX_DEVICE_STATE`](crate::MAX_DEVICE_STATE): so many bytes.
    #[error("device state of {0} bytes is too large")]
    StateSize(usize),
    /// The bytes are not what the device saves; the text says what is wrong.
    #[error("device state is not valid: {0}")]
    State(&'static str),
    /// The device has a reason of its own.
    #[error("device cannot work")]
    Device(#[source] Box<dyn Error + Send + Sync>),
}

impl DeviceFault {
    /// A reason of the device's own: an error of any type, or a text.
    pub fn device(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Device(reason.into())
    }
}
