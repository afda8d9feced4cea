// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Coalesced writes, ioeventfd and irqfd on real KVM.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Access, Machine, Recorder, SOON};
use kvm_ioctls::{Cap, IoEventAddress};
use vcpu_runner::{
    CoalescedMmio, Doorbell, ExitCounters, ExitKind, IoEvent, IrqFd, Outcome, VcpuRunner,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn collected_writes_come_before_the_exit_that_follows_them() {
    let Some(kvm) = common::kvm() else { return };
    if !kvm.check_extension(Cap::CoalescedMmio) {
        common::skip("no coalesced MMIO");
        return;
    }
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xb9, 0x03, 0x00, 0x00, 0x00,             // mov ecx, 3
        0x89, 0x0d, 0x00, 0x00, 0x00, 0x80,       // mov [0x80000000], ecx
        0x49,                                     // dec ecx
        0x75, 0xf7,                               // jnz back
        0xa1, 0x00, 0x10, 0x00, 0x80,             // mov eax, [0x80001000]
        0x88, 0x0d, 0x04, 0x00, 0x00, 0x80,       // mov [0x80000004], cl
        0xf4,                                     // hlt
    ]);
    let vcpu = machine.vcpu(0);
    let ring = CoalescedMmio::new(&vcpu).unwrap();
    machine
        .vm
        .register_coalesced_mmio(IoEventAddress::Mmio(0x8000_0000), 0x100)
        .unwrap();
    // The machine has one ring, whichever vCPU it is reached by.
    let second = machine.vcpu(1);
    for vcpu in [&vcpu, &second] {
        let error = CoalescedMmio::new(vcpu).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    }
    let devices = Recorder::default();
    let counters = Arc::new(ExitCounters::default());
    let mut runner = VcpuRunner::new(vcpu, devices.clone())
        .with_observer(Arc::clone(&counters))
        .with_coalesced_mmio(ring);
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(
        devices.log(),
        [
            Access::MmioWrite(0x8000_0000, vec![3, 0, 0, 0]),
            Access::MmioWrite(0x8000_0000, vec![2, 0, 0, 0]),
            Access::MmioWrite(0x8000_0000, vec![1, 0, 0, 0]),
            Access::MmioRead(0x8000_1000, 4),
            Access::MmioWrite(0x8000_0004, vec![0]),
        ]
    );
    assert_eq!(counters.get(ExitKind::MmioWrite), 0, "no write was an exit");
}

#[test]
fn collected_writes_come_before_a_pause() {
    let Some(kvm) = common::kvm() else { return };
    if !kvm.check_extension(Cap::CoalescedMmio) {
        common::skip("no coalesced MMIO");
        return;
    }
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xa2, 0x00, 0x00, 0x00, 0x80,             // mov [0x80000000], al
        0xa2, 0x00, 0x50, 0x00, 0x00,             // mov [0x5000], al
        0xeb, 0xfe,                               // jmp $
    ]);
    let vcpu = machine.vcpu(0);
    let regs = kvm_bindings::kvm_regs {
        rax: 0x77,
        ..vcpu.fd().get_regs().unwrap()
    };
    vcpu.fd().set_regs(&regs).unwrap();
    let ring = CoalescedMmio::new(&vcpu).unwrap();
    machine
        .vm
        .register_coalesced_mmio(IoEventAddress::Mmio(0x8000_0000), 0x100)
        .unwrap();
    let devices = Recorder::default();
    let mut handle = VcpuRunner::new(vcpu, devices.clone())
        .with_coalesced_mmio(ring)
        .spawn("coalesced")
        .unwrap();
    common::wait_until("the guest has written", || {
        machine.read::<1>(0x5000) == [0x77]
    });
    handle.pause(SOON).unwrap();
    assert_eq!(devices.log(), [Access::MmioWrite(0x8000_0000, vec![0x77])]);
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn a_doorbell_rings_without_an_exit() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xb8, 0x01, 0x00, 0x00, 0x00,             // mov eax, 1
        0xa3, 0x50, 0x00, 0x00, 0x80,             // mov [0x80000050], eax
        0x48,                                     // dec eax
        0xa3, 0x50, 0x00, 0x00, 0x80,             // mov [0x80000050], eax
        0xa3, 0x50, 0x00, 0x00, 0x80,             // mov [0x80000050], eax
        0xf4,                                     // hlt
    ]);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let doorbell = IoEvent::mmio(&machine.vm, 0x8000_0000, 0x50, Doorbell::U32(0), event).unwrap();
    let twice = IoEvent::mmio(
        &machine.vm,
        0x8000_0000,
        0x50,
        Doorbell::U32(0),
        EventFd::new(EFD_NONBLOCK).unwrap(),
    );
    assert_eq!(twice.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    IoEvent::mmio(&machine.vm, u64::MAX, 1, Doorbell::Any, event).unwrap_err();

    let devices = Recorder::default();
    let vcpu = machine.vcpu(0);
    let regs = vcpu.fd().get_regs().unwrap();
    let mut runner = VcpuRunner::new(vcpu, devices.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    // Only the value that does not match came to the device.
    let other = Access::MmioWrite(0x8000_0050, vec![1, 0, 0, 0]);
    assert_eq!(devices.log(), [other]);
    assert_eq!(doorbell.event().read().unwrap(), 2);

    // Without the doorbell all of them do.
    drop(doorbell);
    runner.vcpu().fd().set_regs(&regs).unwrap();
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(devices.log().len(), 4);
}

#[cfg(feature = "bus")]
#[test]
fn a_doorbell_lies_inside_of_its_region() {
    use bus::{BusDevice, MmioBus};
    struct Device;
    impl BusDevice for Device {}

    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, &[0xf4]);
    let bus = MmioBus::new();
    let device = Arc::new(std::sync::Mutex::new(Device));
    bus.insert(device, 0x8000_0000, 0x200).unwrap();
    let region = bus.find(0x8000_0000).unwrap();
    let ring = |offset, doorbell| {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        IoEvent::in_region(&machine.vm, &region, offset, doorbell, event).map(drop)
    };
    ring(0x50, Doorbell::U32(0)).unwrap();
    ring(0x1fc, Doorbell::U32(0)).unwrap();
    ring(0x1ff, Doorbell::Any).unwrap();
    for (offset, doorbell) in [
        (0x1fd, Doorbell::U32(0)),
        (0x1ff, Doorbell::U16(0)),
        (0x1f9, Doorbell::U64(0)),
        (0x200, Doorbell::Any),
        (u64::MAX, Doorbell::U8(0)),
        (u64::MAX - 0x8000_0000, Doorbell::U64(0)),
    ] {
        let error = ring(offset, doorbell).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::InvalidInput,
            "{offset:#x}"
        );
    }
}

#[test]
fn an_irqfd_needs_an_interrupt_controller_and_wakes_a_halted_guest() {
    let Some(kvm) = common::kvm() else { return };
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let without = Machine::new(&kvm, &[0xf4]);
    IrqFd::new(&without.vm, 4, event()).unwrap_err();

    // Line 4 of the 8259 pair, which starts with vector 0x20 after this initialisation. The
    // interrupt's handler writes to a port; the gate is at 0x2000 + 8 * 0x24.
    #[rustfmt::skip]
    let code = [
        0xb0, 0x11, 0xe6, 0x20,                   // mov al, 0x11; out 0x20, al
        0xb0, 0x20, 0xe6, 0x21,                   // mov al, 0x20; out 0x21, al
        0xb0, 0x04, 0xe6, 0x21,                   // mov al, 0x04; out 0x21, al
        0xb0, 0x01, 0xe6, 0x21,                   // mov al, 0x01; out 0x21, al
        0xb0, 0xef, 0xe6, 0x21,                   // mov al, 0xef; out 0x21, al
        0xe6, 0x98,                               // out 0x98, al
        0xfb,                                     // sti
        0xf4,                                     // hlt
        0xeb, 0xfd,                               // jmp back
    ];
    #[rustfmt::skip]
    let handler = [
        0xe6, 0x99,                               // out 0x99, al
        0xeb, 0xfe,                               // jmp $
    ];
    let machine = Machine::with_irqchip(&kvm, &code);
    use vm_memory::{Bytes, GuestAddress};
    let gate: u64 = 0x3000 | 8 << 16 | 0x8e00 << 32;
    machine
        .memory
        .write_obj(gate, GuestAddress(0x2000 + 8 * 0x24))
        .unwrap();
    // A flat code segment at selector 8, for the gate.
    machine
        .memory
        .write_obj(0x00cf_9b00_0000_ffff_u64, GuestAddress(0x2808))
        .unwrap();
    machine
        .memory
        .write_slice(&handler, GuestAddress(0x3000))
        .unwrap();
    let vcpu = machine.vcpu(0);
    let mut sregs = vcpu.fd().get_sregs().unwrap();
    (sregs.idt.base, sregs.idt.limit) = (0x2000, 0x7ff);
    (sregs.gdt.base, sregs.gdt.limit) = (0x2800, 0xf);
    vcpu.fd().set_sregs(&sregs).unwrap();
    // The virtual wire from the 8259 into the local interrupt controller.
    let mut lapic = vcpu.fd().get_lapic().unwrap();
    let lint0: [std::ffi::c_char; 4] = [0, 7, 0, 0];
    lapic.regs[0x350..0x354].copy_from_slice(&lint0);
    vcpu.fd().set_lapic(&lapic).unwrap();

    let line = IrqFd::new(&machine.vm, 4, event()).unwrap();
    assert_eq!(line.gsi(), 4);
    let devices = Recorder::default();
    let mut handle = VcpuRunner::new(vcpu, devices.clone()).spawn("irq").unwrap();
    let wrote =
        |port| move |access: &Access| matches!(access, Access::PioWrite(p, _) if *p == port);
    common::wait_until("the guest waits", || devices.log().iter().any(wrote(0x98)));
    line.trigger().unwrap();
    common::wait_until("the interrupt", || devices.log().iter().any(wrote(0x99)));
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}
