// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Exits, interrupts and control of arm64 guests, on real KVM.
#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::arm64::{ENTRY, MMIO, Machine, PC, program, register};
use common::{Access, Nothing, Recorder, SOON, TestKvm, wait_until};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use vcpu_runner::{
    Action, DebugInfo, Doorbell, Error, Event, EventFd, ExitCounters, ExitKind, ExitPolicy,
    GuestIo, IoEvent, IrqFd, KvmVcpu, Outcome, State, VcpuGroup, VcpuHandle, VcpuRunner,
    enable_nisv_exits, spi_line,
};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

/// A read, and what the guest has made of it.
fn read(offset: u64, len: usize) -> Access {
    Access::MmioRead(MMIO + offset, len)
}

fn write(offset: u64, value: &[u8]) -> Access {
    Access::MmioWrite(MMIO + offset, value.to_vec())
}

program!(every_width:
    "ldrb w0, [x20, 0x10]"
    "strb w0, [x20, 0x11]"
    "ldrh w0, [x20, 0x20]"
    "strh w0, [x20, 0x22]"
    "ldr w0, [x20, 0x30]"
    "str w0, [x20, 0x34]"
    "ldr x0, [x20, 0x40]"
    "str x0, [x20, 0x48]"
    "movz x0, 0x8400, lsl 16"
    "movk x0, 8"
    "hvc 0"
);

#[test]
fn reads_and_writes_of_every_width() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, every_width);
    let devices = Recorder::default();
    let counters = Arc::new(ExitCounters::default());
    let mut runner =
        VcpuRunner::new(machine.vcpu(0), devices.clone()).with_observer(counters.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Shutdown);
    assert_eq!(
        devices.log(),
        [
            read(0x10, 1),
            write(0x11, &[1]),
            read(0x20, 2),
            write(0x22, &[2, 3]),
            read(0x30, 4),
            write(0x34, &[4, 5, 6, 7]),
            read(0x40, 8),
            write(0x48, &[8, 9, 10, 11, 12, 13, 14, 15]),
        ]
    );
    assert_eq!(counters.get(ExitKind::MmioRead), 4);
    assert_eq!(counters.get(ExitKind::MmioWrite), 4);
    assert_eq!(counters.get(ExitKind::SystemEvent), 1);
    assert_eq!(counters.total(), 9);
}

/// Answers each read with bytes whose upper halves are ones, and writes down what is written.
#[derive(Clone, Default)]
struct Negative(Arc<Mutex<Vec<Vec<u8>>>>);

impl GuestIo for Negative {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xf1);
    }
    fn mmio_write(&mut self, _: u64, data: &[u8]) {
        self.0.lock().unwrap().push(data.to_vec());
    }
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

program!(sign_extension:
    "ldrsb w0, [x20]"
    "str x0, [x20]"
    "ldrsb x0, [x20]"
    "str x0, [x20]"
    "ldrsh w0, [x20]"
    "str x0, [x20]"
    "ldrsh x0, [x20]"
    "str x0, [x20]"
    "ldrsw x0, [x20]"
    "str x0, [x20]"
    "ldr w0, [x20]"
    "str x0, [x20]"
    "movz x0, 0x8400, lsl 16"
    "movk x0, 8"
    "hvc 0"
);

#[test]
fn a_load_extends_the_sign_to_the_width_of_its_register() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, sign_extension);
    let devices = Negative::default();
    let mut runner = VcpuRunner::new(machine.vcpu(0), devices.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Shutdown);
    let written = devices.0.lock().unwrap().clone();
    let written: Vec<u64> = written
        .into_iter()
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let extended: [i64; 6] = [
        0xffff_fff1,
        -0x0f,
        0xffff_f1f1,
        -0x0e0f,
        -0x0e0e_0e0f,
        0xf1f1_f1f1,
    ];
    let extended = extended.map(i64::cast_unsigned);
    // Kernels up to 6.1 at least extend the sign, and then cut the value off again: what a device has
    // answered is in the register all the same.
    let cut = [0xf1, 0xf1, 0xf1f1, 0xf1f1, 0xf1f1_f1f1, 0xf1f1_f1f1];
    assert!(written == extended || written == cut, "{written:x?}");
}

program!(resets:
    "movz x0, 0x8400, lsl 16"
    "movk x0, 9"
    "hvc 0"
);

#[test]
fn psci_resets_the_machine() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, resets);
    let mut runner = VcpuRunner::new(machine.vcpu(0), Nothing);
    assert_eq!(runner.run().unwrap(), Outcome::Reset);
}

program!(waits:
    "str w0, [x20]"
    "1: wfi"
    "b 1b"
);

program!(spins:
    "str w0, [x20]"
    "1: add x1, x1, 1"
    "b 1b"
);

program!(floods:
    "1: ldr w0, [x20]"
    "str w0, [x20, 4]"
    "b 1b"
);

/// A vCPU of this guest that has begun.
fn begun(kvm: &TestKvm, guest: extern "C" fn()) -> (Machine, VcpuHandle) {
    let machine = Machine::new(kvm, guest);
    let vcpu = machine.vcpu(0);
    machine.create_gic();
    let devices = Negative::default();
    let handle = VcpuRunner::new(vcpu, devices.clone())
        .spawn("guest")
        .unwrap();
    wait_until("the guest's beginning", || {
        !devices.0.lock().unwrap().is_empty()
    });
    (machine, handle)
}

#[test]
fn a_guest_is_paused_and_stopped_wherever_it_is() {
    let Some(kvm) = common::kvm() else { return };
    for guest in [waits, spins, floods] {
        let (_machine, mut handle) = begun(&kvm, guest);
        for _ in 0..20 {
            handle.pause(SOON).unwrap();
            let place = |vcpu: &KvmVcpu| register(vcpu.fd(), PC);
            let first = handle.with_vcpu(SOON, place).unwrap();
            thread::sleep(Duration::from_millis(2));
            assert_eq!(handle.with_vcpu(SOON, place).unwrap(), first);
            handle.resume().unwrap();
            wait_until("the guest goes on", || {
                handle.control().state() == State::Running
            });
        }
        handle.stop();
        assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    }
}

#[test]
fn a_vcpu_that_is_switched_off_is_kicked_out() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, spins);
    let devices = Recorder::default();
    let vcpu = machine.powered_off(0);
    machine.create_gic();
    let mut handle = VcpuRunner::new(vcpu, devices.clone()).spawn("off").unwrap();
    for _ in 0..20 {
        handle.pause(SOON).unwrap();
        handle.resume().unwrap();
    }
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    assert_eq!(devices.log(), []);
}

program!(switches_on:
    "mrs x0, mpidr_el1"
    "and x0, x0, 0xff"
    "cbnz x0, 2f"
    "movz x0, 0xc400, lsl 16"   // CPU_ON,
    "movk x0, 3"
    "mov x1, 1"                 // of the second processor,
    "movz x2, 0x4000, lsl 16"   // at the entry,
    "mov x3, 0"                 // without an argument
    "hvc 0"
    "str w0, [x20]"
    "1: wfi"
    "b 1b"
    "2: strb w0, [x20, 0x10]"
    "movz x0, 0x8400, lsl 16"   // SYSTEM_OFF
    "movk x0, 8"
    "hvc 0"
);

#[test]
fn one_vcpu_switches_on_another_which_ends_the_machine() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, switches_on);
    let vcpus = [machine.vcpu(0), machine.powered_off(1)];
    machine.create_gic();
    let devices = Recorder::default();
    let mut group = VcpuGroup::new();
    for vcpu in vcpus {
        group.add(VcpuRunner::new(vcpu, devices.clone()));
    }
    let mut group = group.start(SOON).unwrap();
    assert_eq!(group.join(SOON).unwrap(), Outcome::Shutdown);
    let log = devices.log();
    assert!(log.contains(&write(0x10, &[1])), "{log:?}");
}

program!(rings:
    "mov w0, 7"
    "str w0, [x20, 0x50]"
    "mov w0, 8"
    "str w0, [x20, 0x50]"
    "movz x0, 0x8400, lsl 16"
    "movk x0, 8"
    "hvc 0"
);

#[test]
fn a_doorbell_rings_without_an_exit() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, rings);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let bell = Doorbell::U32(7);
    let doorbell = IoEvent::mmio(&machine.vm, MMIO, 0x50, bell, event).unwrap();
    let devices = Recorder::default();
    let mut runner = VcpuRunner::new(machine.vcpu(0), devices.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Shutdown);
    assert_eq!(doorbell.event().read().unwrap(), 1);
    assert_eq!(devices.log(), [write(0x50, &[8, 0, 0, 0])]);
}

// Has the SPI 37 come edge-triggered, and writes down the number of each interrupt that comes.
program!(takes_interrupts:
    "mov x0, 7"
    "msr S3_0_C12_C12_5, x0"    // ICC_SRE_EL1
    "isb"
    "movz x21, 0x0800, lsl 16"  // the distributor
    "mov w0, 0x12"
    "str w0, [x21]"             // CTLR: by affinity, group 1
    "mov w0, 0x20"
    "str w0, [x21, 0x84]"       // IGROUPR1
    "mov w0, 0x800"
    "str w0, [x21, 0xc08]"      // ICFGR2
    "mov w0, 0x20"
    "str w0, [x21, 0x104]"      // ISENABLER1
    "mov x0, 0xff"
    "msr S3_0_C4_C6_0, x0"      // ICC_PMR_EL1
    "mov x0, 1"
    "msr S3_0_C12_C12_7, x0"    // ICC_IGRPEN1_EL1
    "isb"
    "strb wzr, [x20, 0x10]"
    "1: wfi"
    "mrs x0, S3_0_C12_C12_0"    // ICC_IAR1_EL1
    "cmp x0, 1020"
    "b.hs 1b"
    "msr S3_0_C12_C12_1, x0"    // ICC_EOIR1_EL1
    "str w0, [x20]"
    "b 1b"
);

#[test]
fn interrupts_wake_a_guest_once_the_controller_is_there() {
    let Some(kvm) = common::kvm() else { return };
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let machine = Machine::new(&kvm, takes_interrupts);
    let vcpu = machine.vcpu(0);
    let early = IrqFd::spi(&machine.vm, 37, event()).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WouldBlock, "{early}");
    machine.create_gic();
    let irqfd = IrqFd::spi(&machine.vm, 37, event()).unwrap();
    assert_eq!(irqfd.gsi(), 5);
    for none in [0, 31, 1020, u32::MAX] {
        let error = IrqFd::spi(&machine.vm, none, event()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(spi_line(none), None);
    }

    let devices = Recorder::default();
    let mut handle = VcpuRunner::new(vcpu, devices.clone()).spawn("irq").unwrap();
    let ready = || devices.log().contains(&write(0x10, &[0]));
    wait_until("the guest waits", ready);
    let taken = || {
        let number = write(0, &[37, 0, 0, 0]);
        devices
            .log()
            .iter()
            .filter(|access| **access == number)
            .count()
    };
    for interrupt in 1..=50 {
        if interrupt % 2 == 0 {
            irqfd.trigger().unwrap();
        } else {
            let line = spi_line(37).unwrap();
            machine.vm.set_irq_line(line, true).unwrap();
            machine.vm.set_irq_line(line, false).unwrap();
        }
        wait_until("the interrupt", || taken() == interrupt);
    }
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    assert_eq!(taken(), 50, "none comes twice");
}

// A load of two registers from where no memory is, with a handler for the abort.
program!(loads_a_pair:
    "adr x0, 77b"               // the handler is where the vectors have it
    "msr vbar_el1, x0"
    "isb"
    "ldp x0, x1, [x20]"
    "1: b 1b"
    ".org 77b + 0x200"
    "mrs x0, esr_el1"
    "lsr w0, w0, 26"
    "strb w0, [x20]"
    "movz x0, 0x8400, lsl 16"
    "movk x0, 8"
    "hvc 0"
);

/// Writes down the events that it leaves to the default.
#[derive(Clone, Default)]
struct Listening(Arc<Mutex<Vec<Event>>>);

impl ExitPolicy for Listening {
    fn event(&mut self, event: Event) -> Action {
        self.0.lock().unwrap().push(event);
        event.default_action()
    }
}

#[test]
fn an_access_that_is_not_described_is_an_event_and_an_abort() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, loads_a_pair);
    enable_nisv_exits(&machine.vm).unwrap();
    let (devices, policy) = (Recorder::default(), Listening::default());
    let mut runner = VcpuRunner::new(machine.vcpu(0), devices.clone()).with_policy(policy.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Shutdown);
    // The class of a data abort without a change of the exception level.
    assert_eq!(devices.log(), [write(0, &[0x25])]);
    let events = policy.0.lock().unwrap().clone();
    let [Event::ArmNisv { fault_ipa, .. }, Event::System { .. }] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(fault_ipa, MMIO);
}

#[test]
fn without_the_capability_such_an_access_ends_the_vcpu() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, loads_a_pair);
    let mut runner = VcpuRunner::new(machine.vcpu(0), Nothing);
    let error = runner.run().unwrap_err();
    let Error::Vcpu { pc, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*pc, Some(ENTRY + 4 * 4), "{error}");
}

program!(steps:
    "nop"
    "nop"
    "nop"
    "1: b 1b"
);

#[test]
fn single_steps_come_one_by_one() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, steps);
    let vcpu = machine.vcpu(0);
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
        ..Default::default()
    };
    vcpu.fd().set_guest_debug(&debug).unwrap();
    let mut runner = VcpuRunner::new(vcpu, Nothing);
    for step in 1..=4 {
        let Outcome::Debug(info) = runner.run().unwrap() else {
            panic!("no debug event");
        };
        let DebugInfo::Arm64 { hsr, .. } = info else {
            panic!("{info:?}");
        };
        // The class of a single step from a lower exception level.
        assert_eq!(hsr >> 26 & 0x3f, 0x32, "{info:?}");
        assert_eq!(register(runner.vcpu().fd(), PC), ENTRY + 4 * step);
    }
}
