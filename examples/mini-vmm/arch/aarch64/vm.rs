// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual machine, its interrupt controller, and its interrupt lines.

use std::error::Error;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, Kvm, VmFd};
use vcpu_runner::{enable_nisv_exits, spi_line};

use super::layout::{GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS};
use crate::kvm::call;

/// What brings KVM to a machine that could have it.
pub(crate) const KVM_REMEDY: &str = "the system has to be started at exception level 2 for it";

/// Whether every kernel leaves the guest soon after its start: one that says nothing need not.
pub(crate) const EXITS_EARLY: bool = false;

/// Number of interrupts: those of the processors, and 32 for devices.
const INTERRUPTS: u32 = 64;
/// The number of the first interrupt for devices.
const FIRST_SPI: u32 = 32;

/// Makes a virtual machine, without memory and without its interrupt controller, which comes after
/// the processors.
pub(crate) fn create(kvm: &Kvm) -> Result<VmFd, Box<dyn Error>> {
    // As wide as the processor's, because not every processor has what KVM takes by default. One
    // that cannot be asked gets that.
    let address_bits = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or_default();
    let vm = kvm
        .create_vm_with_ipa_size(address_bits)
        .map_err(call("KVM_CREATE_VM"))?;
    // A kernel without this ends the program at a load that the processor does not describe; it is
    // of no use to a guest that has no such loads.
    let _ = enable_nisv_exits(&vm);
    Ok(vm)
}

/// Makes the interrupt controller, a `GICv3`, when all processors are there.
pub(super) fn create_gic(vm: &VmFd) -> Result<(), Box<dyn Error>> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        ..kvm_create_device::default()
    };
    let gic = vm
        .create_device(&mut device)
        .map_err(call("KVM_CREATE_DEVICE, for a GICv3"))?;
    for (kind, address) in [
        (KVM_VGIC_V3_ADDR_TYPE_DIST, GIC_DISTRIBUTOR),
        (KVM_VGIC_V3_ADDR_TYPE_REDIST, GIC_REDISTRIBUTORS),
    ] {
        set(&gic, KVM_DEV_ARM_VGIC_GRP_ADDR, kind, Some(&address))?;
    }
    set(&gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&INTERRUPTS))?;
    let init = KVM_DEV_ARM_VGIC_CTRL_INIT;
    // The virtual machine keeps the device when its file is closed.
    set::<()>(&gic, KVM_DEV_ARM_VGIC_GRP_CTRL, init, None)
}

/// Sets an attribute of the interrupt controller to a value, if it has one.
fn set<T>(
    gic: &DeviceFd,
    group: u32,
    attribute: u32,
    value: Option<&T>,
) -> Result<(), Box<dyn Error>> {
    let attribute = kvm_device_attr {
        group,
        attr: attribute.into(),
        addr: value.map_or(0, |value| {
            std::ptr::from_ref(value).expose_provenance() as u64
        }),
        flags: 0,
    };
    gic.set_device_attr(&attribute)
        .map_err(call("KVM_SET_DEVICE_ATTR, of the GICv3"))?;
    Ok(())
}

/// What `KVM_IRQ_LINE` calls the interrupt line `gsi`: an SPI, counted from the first one.
pub(crate) const fn irq_line(gsi: u32) -> Option<u32> {
    spi_line(FIRST_SPI.saturating_add(gsi))
}

/// Why Linux may not run on this machine's KVM, if there is a sign of that: there is none here.
pub(crate) const fn doubt() -> Option<&'static str> {
    None
}
