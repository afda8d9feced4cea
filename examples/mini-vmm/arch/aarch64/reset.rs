// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reset would do to the part of the machine that is in KVM: a reboot in place is for x86-64
//! only. The processors could be initialised again, but not the state of KVM's interrupt controller.

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The state that a machine starts in, of which there is none here.
pub(crate) enum FirstState {}

impl FirstState {
    /// Refuses.
    pub(crate) fn keep<'a>(
        _kvm: &Kvm,
        _vm: &VmFd,
        _vcpus: impl IntoIterator<Item = &'a VcpuFd>,
    ) -> Result<Self> {
        Err("--reboot: in-place is for x86-64 only".into())
    }

    /// Puts a machine back into the state that was kept.
    pub(crate) fn restore<'a>(
        &self,
        _vm: &VmFd,
        _vcpus: impl IntoIterator<Item = &'a VcpuFd>,
    ) -> Result<()> {
        match *self {}
    }
}
