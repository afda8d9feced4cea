// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Exits as hardware and kernel produce them, on real KVM.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Access, ENTRY, Machine, Nothing, RAM, Recorder};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_enable_cap,
    kvm_guest_debug,
};
use vcpu_runner::{
    Control, DebugInfo, Error, ExitCounters, ExitKind, ExitPolicy, Fault, GuestIo, Outcome,
    VcpuRunner,
};

#[test]
fn reads_writes_ports_and_halt() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xa1, 0x10, 0x00, 0x00, 0x80,             // mov eax, [0x80000010]
        0xa3, 0x14, 0x00, 0x00, 0x80,             // mov [0x80000014], eax
        0x66, 0xa1, 0x20, 0x00, 0x00, 0x80,       // mov ax, [0x80000020]
        0xa2, 0x31, 0x00, 0x00, 0x80,             // mov [0x80000031], al
        0xa0, 0x41, 0x00, 0x00, 0x80,             // mov al, [0x80000041]
        0xe4, 0x40,                               // in al, 0x40
        0x66, 0xe7, 0x42,                         // out 0x42, ax
        0xf4,                                     // hlt
    ]);
    let devices = Recorder::default();
    let counters = Arc::new(ExitCounters::default());
    let mut runner =
        VcpuRunner::new(machine.vcpu(0), devices.clone()).with_observer(Arc::clone(&counters));

    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(
        devices.log(),
        [
            Access::MmioRead(0x8000_0010, 4),
            Access::MmioWrite(0x8000_0014, vec![1, 2, 3, 4]),
            Access::MmioRead(0x8000_0020, 2),
            Access::MmioWrite(0x8000_0031, vec![5]),
            Access::MmioRead(0x8000_0041, 1),
            Access::PioRead(0x40, 1),
            Access::PioWrite(0x42, vec![8, 6]),
        ]
    );
    assert_eq!(counters.get(ExitKind::MmioRead), 3);
    assert_eq!(counters.get(ExitKind::MmioWrite), 2);
    assert_eq!(counters.get(ExitKind::IoIn), 1);
    assert_eq!(counters.get(ExitKind::IoOut), 1);
    assert_eq!(counters.get(ExitKind::Hlt), 1);
    assert_eq!(counters.total(), 8);
    assert_eq!(runner.vcpu().fd().get_regs().unwrap().rip, ENTRY + 32);
}

#[test]
fn eight_bytes_at_once() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xb9, 0x00, 0x00, 0x00, 0x80,             // mov ecx, 0x80000000
        0x48, 0x8b, 0x41, 0x08,                   // mov rax, [rcx + 8]
        0x48, 0x89, 0x41, 0x10,                   // mov [rcx + 16], rax
        0xf4,                                     // hlt
    ]);
    let devices = Recorder::default();
    let mut runner = VcpuRunner::new(machine.vcpu64(), devices.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(
        devices.log(),
        [
            Access::MmioRead(0x8000_0008, 8),
            Access::MmioWrite(0x8000_0010, vec![1, 2, 3, 4, 5, 6, 7, 8]),
        ]
    );
}

#[test]
fn nobody_there_reads_ones() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0x31, 0xc0,                               // xor eax, eax
        0x31, 0xdb,                               // xor ebx, ebx
        0xa3, 0x00, 0x00, 0x00, 0x80,             // mov [0x80000000], eax
        0x8b, 0x1d, 0x00, 0x00, 0x00, 0x80,       // mov ebx, [0x80000000]
        0x66, 0x8b, 0x0d, 0x00, 0x00, 0x00, 0x80, // mov cx, [0x80000000]
        0xe4, 0x99,                               // in al, 0x99
        0xf4,                                     // hlt
    ]);
    let mut runner = VcpuRunner::new(machine.vcpu(0), Nothing);
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    let regs = runner.vcpu().fd().get_regs().unwrap();
    assert_eq!(regs.rbx, 0xffff_ffff);
    assert_eq!(regs.rcx & 0xffff, 0xffff);
    assert_eq!(regs.rax, 0xff);
}

#[cfg(feature = "bus")]
#[test]
fn the_family_bus_answers() {
    use bus::{AccessError, BusDevice, MmioBus, PioBus};
    use vcpu_runner::BusIo;

    struct Register(u32);
    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            assert_eq!(offset, 4);
            data.copy_from_slice(&self.0.to_le_bytes());
            Ok(())
        }
    }

    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xa1, 0x04, 0x10, 0x00, 0x80,             // mov eax, [0x80001004]
        0x8b, 0x1d, 0x00, 0x20, 0x00, 0x80,       // mov ebx, [0x80002000]
        0xf4,                                     // hlt
    ]);
    let (mmio, pio) = (MmioBus::new(), PioBus::new());
    let device = Arc::new(Mutex::new(Register(0x1234_5678)));
    mmio.insert(device, 0x8000_1000, 0x1000).unwrap();
    let io = BusIo::new(mmio.view(), pio.view());
    let mut runner = VcpuRunner::new(machine.vcpu(0), io);
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    let regs = runner.vcpu().fd().get_regs().unwrap();
    assert_eq!(regs.rax, 0x1234_5678);
    assert_eq!(regs.rbx, 0xffff_ffff);
}

#[test]
fn string_input_reaches_the_device_as_elements() {
    let Some(kvm) = common::kvm() else { return };
    for (size, opcode) in [
        (1, &[0xf3, 0x6c][..]),       // rep insb
        (2, &[0x66, 0xf3, 0x6d][..]), // rep insw
        (4, &[0xf3, 0x6d][..]),       // rep insd
    ] {
        for count in [1u8, 2, 7, 16] {
            let mut code = vec![
                0xfc, // cld
                0xbf, 0x00, 0x40, 0x00, 0x00, // mov edi, 0x4000
                0xb9, count, 0x00, 0x00, 0x00, // mov ecx, count
                0xba, 0x78, 0x01, 0x00, 0x00, // mov edx, 0x178
            ];
            code.extend(opcode);
            code.push(0xf4); // hlt
            let machine = Machine::new(&kvm, &code);
            let devices = Recorder::default();
            let mut runner = VcpuRunner::new(machine.vcpu(0), devices.clone());
            assert_eq!(runner.run().unwrap(), Outcome::Halted);
            assert_eq!(
                devices.log(),
                vec![Access::PioRead(0x178, size); usize::from(count)],
                "{count} elements of {size}"
            );
            // The guest has them in its memory in order, and nothing behind them.
            let memory = machine.read::<65>(0x4000);
            let len = size * usize::from(count);
            for (n, byte) in memory.iter().enumerate() {
                let expected = if n < len { n + 1 } else { 0 };
                assert_eq!(usize::from(*byte), expected);
            }
        }
    }
}

#[test]
fn long_string_input_is_complete() {
    // More than KVM hands over in one exit.
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xfc,                                     // cld
        0xbf, 0x00, 0x40, 0x00, 0x00,             // mov edi, 0x4000
        0xb9, 0xb8, 0x0b, 0x00, 0x00,             // mov ecx, 3000
        0xba, 0x78, 0x01, 0x00, 0x00,             // mov edx, 0x178
        0x66, 0xf3, 0x6d,                         // rep insw
        0xf4,                                     // hlt
    ]);

    struct Counter(u16);
    impl GuestIo for Counter {
        type Answer = ();
        fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
        fn mmio_write(&mut self, _: u64, _: &[u8]) {}
        fn pio_read(&mut self, port: u16, data: &mut [u8]) {
            assert_eq!(port, 0x178);
            data.copy_from_slice(&self.0.to_le_bytes());
            self.0 += 1;
        }
        fn pio_write(&mut self, _: u16, _: &[u8]) {}
    }

    let counters = Arc::new(ExitCounters::default());
    let mut runner =
        VcpuRunner::new(machine.vcpu(0), Counter(0)).with_observer(Arc::clone(&counters));
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert!(
        counters.get(ExitKind::IoIn) < 3000,
        "KVM hands over several elements at once"
    );
    for (n, element) in machine.read::<6000>(0x4000).chunks(2).enumerate() {
        assert_eq!(element, u16::try_from(n).unwrap().to_le_bytes());
    }
}

#[test]
fn string_output_reaches_the_device_as_elements() {
    let Some(kvm) = common::kvm() else { return };
    for (size, opcode) in [
        (1, &[0xf3, 0x6e][..]),       // rep outsb
        (2, &[0x66, 0xf3, 0x6f][..]), // rep outsw
        (4, &[0xf3, 0x6f][..]),       // rep outsd
    ] {
        let mut code = vec![
            0xfc, // cld
            0xbe, 0x00, 0x10, 0x00, 0x00, // mov esi, 0x1000: this very code
            0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx, 4
            0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
        ];
        code.extend(opcode);
        code.push(0xf4); // hlt
        let machine = Machine::new(&kvm, &code);
        let devices = Recorder::default();
        let mut runner = VcpuRunner::new(machine.vcpu(0), devices.clone());
        assert_eq!(runner.run().unwrap(), Outcome::Halted);
        let expected: Vec<Access> = code[..4 * size]
            .chunks(size)
            .map(|element| Access::PioWrite(0x3f8, element.to_vec()))
            .collect();
        assert_eq!(devices.log(), expected);
    }
}

#[test]
fn accesses_across_pages_and_out_of_ram() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xa1, 0xfe, 0x0f, 0x00, 0x80,             // mov eax, [0x80000ffe]
        0x8b, 0x1d, 0xff, 0xff, 0x1f, 0x00,       // mov ebx, [0x001fffff]
        0xf4,                                     // hlt
    ]);
    let devices = Recorder::default();
    let mut runner = VcpuRunner::new(machine.vcpu(0), devices.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(
        devices.log(),
        [
            Access::MmioRead(0x8000_0ffe, 2),
            Access::MmioRead(0x8000_1000, 2),
            Access::MmioRead(RAM as u64, 3),
        ]
    );
    let regs = runner.vcpu().fd().get_regs().unwrap();
    assert_eq!(regs.rax, 0x0403_0201);
    assert_eq!(regs.rbx, 0x0706_0500);
}

#[test]
fn a_triple_fault_is_not_a_success() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0x66, 0xb8, 0x34, 0x12,                   // mov ax, 0x1234
        0x8e, 0xd8,                               // mov ds, ax: #GP, with nobody to take it
        0xf4,                                     // hlt
    ]);
    let outcome = VcpuRunner::new(machine.vcpu(0), Nothing).run().unwrap();
    assert_eq!(outcome, Outcome::TripleFault);
    assert!(!outcome.is_orderly());
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_stops_the_vcpu() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0x90,                                     // nop
        0xd9, 0x05, 0x00, 0x00, 0x00, 0x80,       // fld dword [0x80000000]
        0xf4,                                     // hlt
    ]);
    let counters = Arc::new(ExitCounters::default());
    let mut runner = VcpuRunner::new(machine.vcpu(0), Nothing).with_observer(Arc::clone(&counters));
    let Err(Error::Vcpu { fault, pc }) = runner.run() else {
        panic!("the instruction cannot be emulated");
    };
    let Fault::Internal(internal) = fault else {
        panic!("unexpected {fault}");
    };
    assert!(internal.is_emulation_failure());
    assert_eq!(pc, Some(ENTRY + 1));
    let bytes = internal.instruction.bytes();
    assert!(
        bytes.is_empty() || bytes.starts_with(&[0xd9, 0x05, 0, 0, 0, 0x80]),
        "{bytes:02x?}"
    );
    println!("{fault}, at {pc:x?}");
    assert_eq!(counters.get(ExitKind::InternalError), 1);

    // A second try ends as well: KVM fails again, or has an exception for the guest, which has
    // nobody to take it.
    match runner.run() {
        Err(Error::Vcpu { fault, .. }) => assert_eq!(fault, Fault::Internal(internal)),
        Ok(outcome) => assert_eq!(outcome, Outcome::TripleFault),
        Err(error) => panic!("unexpected {error}"),
    }
}

#[test]
fn single_steps_come_one_by_one() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, &[0x90, 0x90, 0x90, 0xf4]);
    let vcpu = machine.vcpu(0);
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
        ..Default::default()
    };
    vcpu.fd().set_guest_debug(&debug).unwrap();
    let mut runner = VcpuRunner::new(vcpu, Nothing);
    for step in 1..=3 {
        let Outcome::Debug(info) = runner.run().unwrap() else {
            panic!("no debug event");
        };
        assert_eq!(info.pc(), Some(ENTRY + step));
        assert!(
            matches!(info, DebugInfo::X86 { exception: 1, .. }),
            "{info:?}"
        );
    }
}

#[test]
fn model_specific_registers_are_the_policys() {
    #[derive(Clone, Default)]
    struct Registers(Arc<Mutex<Vec<(u32, u64)>>>);
    impl ExitPolicy for Registers {
        fn read_msr(&mut self, index: u32, _reason: u32) -> Option<u64> {
            (index == 0x1234_5678).then_some(0x1122_3344_5566_7788)
        }
        fn write_msr(&mut self, index: u32, _reason: u32, value: u64) -> bool {
            self.0.lock().unwrap().push((index, value));
            index == 0x1234_5679
        }
    }

    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xb9, 0x78, 0x56, 0x34, 0x12,             // mov ecx, 0x12345678
        0x0f, 0x32,                               // rdmsr
        0x41,                                     // inc ecx
        0x0f, 0x30,                               // wrmsr
        0x41,                                     // inc ecx
        0x0f, 0x30,                               // wrmsr: refused, and nobody takes the #GP
        0xf4,                                     // hlt
    ]);
    let cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [
            u64::from(kvm_ioctls::MsrExitReason::Unknown.bits()),
            0,
            0,
            0,
        ],
        ..Default::default()
    };
    machine.vm.enable_cap(&cap).unwrap();
    let policy = Registers::default();
    let mut runner = VcpuRunner::new(machine.vcpu(0), Nothing).with_policy(policy.clone());
    assert_eq!(runner.run().unwrap(), Outcome::TripleFault);
    assert_eq!(
        *policy.0.lock().unwrap(),
        [
            (0x1234_5679, 0x1122_3344_5566_7788),
            (0x1234_567a, 0x1122_3344_5566_7788),
        ]
    );
}

/// Stops its own vCPU at the first access.
struct OffSwitch(Arc<Mutex<Option<Control>>>, usize);

impl GuestIo for OffSwitch {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0x55);
        self.1 += 1;
        assert!(self.1 <= 2, "the guest was entered again");
        let control = self.0.lock().unwrap().clone();
        control.unwrap().stop_with(Outcome::Reset);
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {
        panic!("the guest was entered again");
    }
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

#[test]
fn a_device_ends_the_loop_before_the_guest_is_entered_again() {
    let Some(kvm) = common::kvm() else { return };
    // The second one takes two exits, and both are completed.
    for (low, expected) in [(0x10, 0x5555_5555), (0xfe, 0x5555_5555)] {
        #[rustfmt::skip]
        let machine = Machine::new(&kvm, &[
            0xa1, low, 0x0f, 0x00, 0x80,          // mov eax, [0x80000f10 or 0x80000ffe]
            0xa3, 0x00, 0x00, 0x00, 0x80,         // mov [0x80000000], eax
            0xf4,                                 // hlt
        ]);
        let switch = Arc::new(Mutex::new(None));
        let mut runner = VcpuRunner::new(machine.vcpu(0), OffSwitch(Arc::clone(&switch), 0));
        *switch.lock().unwrap() = Some(runner.control());
        assert_eq!(runner.run().unwrap(), Outcome::Reset);
        let regs = runner.vcpu().fd().get_regs().unwrap();
        assert_eq!(regs.rax, expected, "the read has been completed");
        assert_eq!(regs.rip, ENTRY + 5);
    }
}
