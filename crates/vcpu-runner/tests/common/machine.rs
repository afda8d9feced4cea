// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small x86 machine on real KVM.

#![expect(
    unsafe_code,
    reason = "guest memory is given to KVM, which has no safe interface for it"
)]

use std::sync::Arc;

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vcpu_runner::KvmVcpu;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where guest code starts.
pub const ENTRY: u64 = 0x1000;
/// Bytes of guest memory, from address 0.
pub const RAM: usize = 2 << 20;
/// An address without memory.
pub const MMIO: u32 = 0x8000_0000;

/// A machine with some memory, whose vCPUs run 32-bit code without paging.
pub struct Machine {
    pub vm: Arc<VmFd>,
    pub memory: GuestMemoryMmap,
}

impl Machine {
    /// A machine with `code` at [`ENTRY`] and without interrupt controller: `hlt` is an exit.
    pub fn new(kvm: &Kvm, code: &[u8]) -> Self {
        Self::build(kvm, code, false)
    }

    /// A machine with KVM's interrupt controller: `hlt` waits inside of KVM.
    pub fn with_irqchip(kvm: &Kvm, code: &[u8]) -> Self {
        Self::build(kvm, code, true)
    }

    fn build(kvm: &Kvm, code: &[u8], irqchip: bool) -> Self {
        let vm = kvm.create_vm().unwrap();
        if irqchip {
            vm.create_irq_chip().unwrap();
        }
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY: the memory is mapped, and lives as long as the machine; the tests end their
        // vCPUs before that.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        memory.write_slice(code, GuestAddress(ENTRY)).unwrap();
        Self {
            vm: Arc::new(vm),
            memory,
        }
    }

    /// A vCPU that starts at [`ENTRY`].
    pub fn vcpu(&self, index: u64) -> KvmVcpu {
        self.vcpu_at(index, ENTRY)
    }

    /// A vCPU that starts at [`ENTRY`] in 64-bit mode.
    ///
    /// The first 2 MiB of memory and of the window at [`MMIO`] are mapped where they are.
    pub fn vcpu64(&self) -> KvmVcpu {
        const LARGE: u64 = 1 << 7 | 3;
        for (entry, value) in [
            (0x9000, 0xa000 | 3),              // level 4, first 512 GiB
            (0xa000, 0xb000 | 3),              // level 3, first 1 GiB
            (0xa010, 0xc000 | 3),              // level 3, third 1 GiB
            (0xb000, LARGE),                   // level 2, memory
            (0xc000, u64::from(MMIO) | LARGE), // level 2, window
        ] {
            self.memory.write_obj(value, GuestAddress(entry)).unwrap();
        }
        let vcpu = self.vcpu(0);
        let mut sregs = vcpu.fd().get_sregs().unwrap();
        (sregs.cs.l, sregs.cs.db) = (1, 0);
        sregs.cr3 = 0x9000;
        sregs.cr4 |= 1 << 5;
        sregs.efer |= 1 << 8 | 1 << 10;
        sregs.cr0 |= 1 << 31 | 1;
        vcpu.fd().set_sregs(&sregs).unwrap();
        vcpu
    }

    /// A vCPU that starts at `entry`, with its index in `ebp`.
    pub fn vcpu_at(&self, index: u64, entry: u64) -> KvmVcpu {
        KvmVcpu::new(self.fd_at(index, entry)).unwrap()
    }

    /// The same, as kvm-ioctls has it.
    pub fn fd_at(&self, index: u64, entry: u64) -> VcpuFd {
        let fd = self.vm.create_vcpu(index).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        let data = kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: 16,
            type_: 3,
            present: 1,
            dpl: 0,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            selector: 8,
            type_: 11,
            ..data
        };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cr0 |= 1;
        fd.set_sregs(&sregs).unwrap();
        let mut regs = fd.get_regs().unwrap();
        regs.rip = entry;
        regs.rflags = 2;
        regs.rsp = 0x8000;
        regs.rbp = index;
        fd.set_regs(&regs).unwrap();
        // An application processor waits for its start-up message otherwise.
        let _ = fd.set_mp_state(kvm_bindings::kvm_mp_state { mp_state: 0 });
        fd
    }

    pub fn read<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }
}
