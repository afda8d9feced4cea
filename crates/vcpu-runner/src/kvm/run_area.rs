// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's run area: the record of its exits, and the flag that keeps it out of the guest.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::arch::RUN_LEN;
use super::map::Mapping;
use crate::exit::{RECORD_LEN, RECORD_START};

/// Where `immediate_exit` lies in `struct kvm_run`.
const IMMEDIATE_EXIT: usize = 1;

/// Bytes of the record of an exit on this architecture.
const LEN: usize = RUN_LEN - RECORD_START;

const _: () = assert!(RECORD_START > IMMEDIATE_EXIT && LEN <= RECORD_LEN);

/// Maps a vCPU's run area, beside the mapping that its `VcpuFd` may have.
///
/// This is what makes a kick sound: `VcpuFd` hands out exclusive references to the whole of its
/// own mapping, so nothing else may touch a byte of that one.
pub(super) fn map(vcpu: RawFd) -> io::Result<(RunRecord, ImmediateExit)> {
    let mapping = Arc::new(Mapping::new(vcpu, 0, RUN_LEN)?);
    Ok((RunRecord(Arc::clone(&mapping)), ImmediateExit(mapping)))
}

/// The one owner of the part of a run area in which the kernel describes an exit.
#[derive(Debug)]
pub(super) struct RunRecord(Arc<Mapping>);

impl RunRecord {
    #[inline]
    pub(super) fn get(&mut self) -> &mut [u8; LEN] {
        // SAFETY: the mapping has `RUN_LEN` bytes, and these are its last `LEN`; bytes have no
        // alignment and no invalid values. The reference is exclusive: there is one `RunRecord`
        // for a mapping, `ImmediateExit` touches a byte before these only, and the kernel writes
        // only while the vCPU runs, which takes the `KvmVcpu` that this is a part of.
        unsafe { self.0.base().add(RECORD_START).cast::<[u8; LEN]>().as_mut() }
    }
}

/// `kvm_run.immediate_exit` of one vCPU, for any thread.
#[derive(Clone, Debug)]
pub(super) struct ImmediateExit(Arc<Mapping>);

impl ImmediateExit {
    /// Sets or clears the flag. Everything done before is visible to a thread that sees it.
    pub(super) fn set(&self, on: bool) {
        // Sequentially consistent: the flag must not overtake the state that it announces.
        self.flag().store(u8::from(on), Ordering::SeqCst);
    }

    /// Whether the flag is set.
    pub(super) fn is_set(&self) -> bool {
        self.flag().load(Ordering::SeqCst) != 0
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the byte lies inside of the mapping, which `self` keeps alive, and in this
        // mapping it is only ever accessed here, atomically. The kernel reads it as a single byte.
        unsafe { AtomicU8::from_ptr(self.0.base().add(IMMEDIATE_EXIT).as_ptr()) }
    }
}
