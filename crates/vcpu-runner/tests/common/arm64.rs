// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small arm64 machine on real KVM, and its guests.
#![allow(
    unsafe_code,
    unused_macros,
    reason = "guest memory is given to KVM, which has no safe interface for it; and not every test \
              has guests"
)]

use std::mem::offset_of;
use std::sync::Arc;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_SIZE_U64, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_userspace_memory_region,
    kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vcpu_runner::KvmVcpu;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where guest code starts, and memory.
pub const ENTRY: u64 = 0x4000_0000;
/// Bytes of guest memory.
const RAM: usize = 2 << 20;
/// An address without memory, which x20 holds in every guest of [`program`].
pub const MMIO: u64 = 0x8000_0000;
/// The interrupt controller's distributor and redistributors.
const DISTRIBUTOR: u64 = 0x0800_0000;
const REDISTRIBUTORS: u64 = 0x0810_0000;

/// Bytes of a [`program`].
pub const PROGRAM: usize = 1024;

/// Defines a function whose code is a guest: it begins with [`MMIO`] in x20. Code that is copied has
/// no literals behind it, so it makes numbers by `movz` and `movk`.
macro_rules! program {
    ($name:ident: $($line:literal)*) => {
        #[unsafe(naked)]
        extern "C" fn $name() {
            std::arch::naked_asm!(
                "77:",
                "movz x20, 0x8000, lsl 16",
                $($line,)*
                ".org 77b + 1024",
            )
        }
    };
}
pub(crate) use program;

/// Registers, as KVM names them.
pub const PC: u64 = core_register(offset_of!(user_pt_regs, pc));

const fn core_register(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}

/// Reads a register.
pub fn register(vcpu: &VcpuFd, id: u64) -> u64 {
    let mut value = [0; 8];
    vcpu.get_one_reg(id, &mut value).unwrap();
    u64::from_le_bytes(value)
}

/// A machine with some memory, whose vCPUs run at exception level 1 without translation.
pub struct Machine {
    pub vm: Arc<VmFd>,
    _memory: GuestMemoryMmap,
}

impl Machine {
    /// A machine with this guest at [`ENTRY`].
    pub fn new(kvm: &Kvm, program: extern "C" fn()) -> Self {
        let vm = kvm.create_vm().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(ENTRY), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: ENTRY,
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(ENTRY)).unwrap() as u64,
        };
        // SAFETY: the memory is mapped, and lives as long as the machine; the tests end their
        // vCPUs before that.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        let start = program as *const u8;
        // SAFETY: `program!` makes a function of so many bytes, which nothing changes.
        let code = unsafe { std::slice::from_raw_parts(start, PROGRAM) };
        memory.write_slice(code, GuestAddress(ENTRY)).unwrap();
        Self {
            vm: Arc::new(vm),
            _memory: memory,
        }
    }

    /// A vCPU that starts at [`ENTRY`].
    pub fn vcpu(&self, index: u64) -> KvmVcpu {
        self.with_features(index, 0)
    }

    /// A vCPU that waits to be switched on.
    pub fn powered_off(&self, index: u64) -> KvmVcpu {
        self.with_features(index, 1 << KVM_ARM_VCPU_POWER_OFF)
    }

    fn with_features(&self, index: u64, features: u32) -> KvmVcpu {
        let fd = self.vm.create_vcpu(index).unwrap();
        let mut kind = kvm_vcpu_init::default();
        self.vm.get_preferred_target(&mut kind).unwrap();
        kind.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | features;
        fd.vcpu_init(&kind).unwrap();
        fd.set_one_reg(PC, &ENTRY.to_le_bytes()).unwrap();
        KvmVcpu::new(fd).unwrap()
    }

    /// Makes the interrupt controller, when all vCPUs are there.
    pub fn create_gic(&self) {
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..kvm_create_device::default()
        };
        let gic = self.vm.create_device(&mut device).unwrap();
        let set = |group, attr: u32, value: &u64| {
            let attribute = kvm_device_attr {
                group,
                attr: attr.into(),
                addr: std::ptr::from_ref(value).expose_provenance() as u64,
                flags: 0,
            };
            gic.set_device_attr(&attribute).unwrap();
        };
        let addresses = KVM_DEV_ARM_VGIC_GRP_ADDR;
        set(addresses, KVM_VGIC_V3_ADDR_TYPE_DIST, &DISTRIBUTOR);
        set(addresses, KVM_VGIC_V3_ADDR_TYPE_REDIST, &REDISTRIBUTORS);
        set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0);
    }
}
