// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine for the examples: some memory, and a vCPU that runs real-mode code.

#![expect(
    unsafe_code,
    reason = "guest memory is given to KVM, which has no safe interface for it"
)]

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A virtual machine and its memory, which outlives it.
pub(crate) struct Machine {
    pub(crate) vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Machine {
    /// A machine with this code at 0x1000, or none where there is no KVM.
    pub(crate) fn new(code: &[u8]) -> Result<Option<Self>, Box<dyn std::error::Error>> {
        let Ok(kvm) = Kvm::new() else {
            println!("skipped: no usable /dev/kvm");
            return Ok(None);
        };
        let vm = kvm.create_vm()?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
        memory.write_slice(code, GuestAddress(0x1000))?;
        let region = kvm_userspace_memory_region {
            memory_size: 0x1_0000,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
            ..Default::default()
        };
        // SAFETY: the memory is mapped, and stays so until the machine is dropped.
        unsafe { vm.set_user_memory_region(region)? };
        Ok(Some(Self {
            vm,
            _memory: memory,
        }))
    }
}

/// Puts a vCPU's registers into their first state; its data segment begins at 0x80000.
pub(crate) fn reset(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    sregs.ds.base = 0x8_0000;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: 0x1000,
        rflags: 2,
        ..Default::default()
    })
}
