// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes that were collected instead of exiting for each.

/// The writes that a machine's vCPUs have made and nobody has carried out yet.
///
/// `CoalescedMmio` is KVM's. The loop carries them out before each exit and before each pause.
///
/// ```
/// use std::sync::Mutex;
/// use vcpu_runner::{CoalescedWrite, CoalescedWrites};
///
/// /// Writes to one register that somebody has collected.
/// struct Collected(Mutex<Vec<u8>>);
///
/// impl CoalescedWrites for Collected {
///     fn is_empty(&self) -> bool {
///         self.0.lock().unwrap().is_empty()
///     }
///
///     fn drain(&self, carry_out: &mut dyn FnMut(CoalescedWrite<'_>)) {
///         for byte in self.0.lock().unwrap().drain(..) {
///             carry_out(CoalescedWrite::Mmio { addr: 0x1000, data: &[byte] });
///         }
///     }
/// }
/// # let it = Collected(Mutex::new(vec![1, 2]));
/// # it.drain(&mut |_| ());
/// # assert!(it.is_empty());
/// ```
pub trait CoalescedWrites: Send + Sync {
    /// Whether every write has been carried out. A write in flight is none that has.
    fn is_empty(&self) -> bool;

    /// Has `carry_out` called for each write, in order; returns when none is in flight.
    ///
    /// A write that another thread is carrying out is waited for.
    fn drain(&self, carry_out: &mut dyn FnMut(CoalescedWrite<'_>));
}

/// One collected write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoalescedWrite<'a> {
    /// To memory-mapped I/O.
    Mmio {
        /// Guest physical address.
        addr: u64,
        /// What was written, 1 to 8 bytes.
        data: &'a [u8],
    },
    /// To an I/O port.
    Pio {
        /// The port.
        port: u16,
        /// What was written, 1, 2 or 4 bytes.
        data: &'a [u8],
    },
}
