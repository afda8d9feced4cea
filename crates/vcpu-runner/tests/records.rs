// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's record: any bytes at all, and where the kernel has them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::scripts::{TakesAll, hlt};
use kvm_bindings as kvm;
use proptest::prelude::*;
use vcpu_runner::{
    Action, DefaultPolicy, ExitKind, Fault, GuestIo, MockStep, MockVcpu, RECORD_LEN, Record,
    VcpuRunner, decode, dispatch,
};

/// Checks what every device may rely on.
#[derive(Default)]
struct Strict {
    bytes: usize,
}

impl GuestIo for Strict {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        assert!((1..=8).contains(&data.len()) && data.iter().all(|&byte| byte == 0xff));
        self.bytes += data.len();
    }
    fn mmio_write(&mut self, _: u64, data: &[u8]) {
        assert!((1..=8).contains(&data.len()));
        self.bytes += data.len();
    }
    fn pio_read(&mut self, _: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && data.iter().all(|&byte| byte == 0xff));
        self.bytes += data.len();
    }
    fn pio_write(&mut self, _: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        self.bytes += data.len();
    }
}

/// The numbers that mean something, and some that do not.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => Just(kvm::KVM_EXIT_MMIO),
        3 => Just(kvm::KVM_EXIT_IO),
        4 => 0u32..45,
        1 => any::<u32>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Any record at all: no panic, and no device sees what it must not.
    #[test]
    fn fuzzed_records(
        number in number(),
        head in prop::collection::vec(any::<u8>(), 96),
        small in any::<[u8; 24]>(),
        mask in any::<u8>(),
        takes_all in any::<bool>(),
    ) {
        let mut record: Record = [0; RECORD_LEN];
        record[..4].copy_from_slice(&number.to_ne_bytes());
        record[24..120].copy_from_slice(&head);
        // Small numbers in the places of lengths, so that not everything is refused at once.
        if mask & 1 != 0 {
            record[40..44].copy_from_slice(&u32::from(small[0] % 10).to_ne_bytes());
        }
        if mask & 2 != 0 {
            record[24] = small[1] % 3;
            record[25] = [1, 2, 4, small[2]][usize::from(small[3] % 4)];
            record[28..32].copy_from_slice(&u32::from(small[4]).to_ne_bytes());
        }
        if mask & 4 != 0 {
            let offset = u64::from(u16::from_ne_bytes([small[5], small[6]])) % 9000;
            record[32..40].copy_from_slice(&offset.to_ne_bytes());
        }
        let before = record;
        let mut devices = Strict::default();
        let exit = decode(&mut record);
        let kind = exit.kind();
        let action = if takes_all {
            dispatch(exit, &mut devices, &mut TakesAll::default())
        } else {
            dispatch(exit, &mut devices, &mut DefaultPolicy)
        };
        let is_access = matches!(
            kind,
            ExitKind::MmioRead | ExitKind::MmioWrite | ExitKind::IoIn | ExitKind::IoOut
        );
        prop_assert_eq!(is_access, devices.bytes > 0);
        if is_access {
            prop_assert_eq!(action, Action::Resume);
        }
        if kind == ExitKind::Malformed {
            let failed = matches!(action, Action::Fail(Fault::MalformedExit { .. }));
            prop_assert!(failed, "{:?}", action);
            prop_assert_eq!(record, before);
        }
        // What identifies the exit is never written, and neither is what the guest wrote.
        prop_assert_eq!(&record[..4], &before[..4]);
        if matches!(kind, ExitKind::MmioWrite | ExitKind::IoOut) {
            prop_assert_eq!(record, before);
        }
    }

    /// Whole scripts of such exits end, and leave the thread free.
    #[test]
    fn fuzzed_scripts(
        steps in prop::collection::vec((number(), any::<[u8; 24]>(), any::<u8>()), 0..12),
    ) {
        let script = steps.iter().map(|(number, bytes, choice)| match choice % 4 {
            0 => MockStep::mmio_read(0x1000, u32::from(bytes[0]) % 12),
            1 => MockStep::Fail([libc::EINTR, libc::EAGAIN][usize::from(bytes[0] % 2)]),
            2 => MockStep::io_out(0x10, bytes[0] % 5, &bytes[1..]),
            _ => MockStep::record(*number, &[(0, bytes)]),
        });
        let vcpu = MockVcpu::new(script.chain([hlt()]));
        let log = vcpu.log();
        let mut runner = VcpuRunner::new(vcpu, Strict::default());
        let _ = runner.run();
        prop_assert_eq!(log.bound(), 0);
        prop_assert!(log.runs() <= steps.len() + 1);
    }
}

/// The offsets that the decoder uses are those of the kernel's own structures.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_layout_is_the_kernels() {
    use std::mem::offset_of;
    assert_eq!(offset_of!(kvm::kvm_run, immediate_exit), 1);
    assert_eq!(offset_of!(kvm::kvm_run, exit_reason), 8);
    assert_eq!(offset_of!(kvm::kvm_run, __bindgen_anon_1), 32);
    assert!(RECORD_LEN + 8 >= size_of::<kvm::kvm_run>());
    type Mmio = kvm::kvm_run__bindgen_ty_1__bindgen_ty_6;
    assert_eq!(
        [
            offset_of!(Mmio, phys_addr),
            offset_of!(Mmio, data),
            offset_of!(Mmio, len),
            offset_of!(Mmio, is_write)
        ],
        [0, 8, 16, 20]
    );
    type Io = kvm::kvm_run__bindgen_ty_1__bindgen_ty_4;
    assert_eq!(
        [
            offset_of!(Io, direction),
            offset_of!(Io, size),
            offset_of!(Io, port),
            offset_of!(Io, count),
            offset_of!(Io, data_offset)
        ],
        [0, 1, 2, 4, 8]
    );
    type Call = kvm::kvm_run__bindgen_ty_1__bindgen_ty_8;
    assert_eq!([offset_of!(Call, args), offset_of!(Call, ret)], [8, 56]);
    type Msr = kvm::kvm_run__bindgen_ty_1__bindgen_ty_23;
    assert_eq!(
        [
            offset_of!(Msr, error),
            offset_of!(Msr, reason),
            offset_of!(Msr, index),
            offset_of!(Msr, data)
        ],
        [0, 8, 12, 16]
    );
    type Emulation = kvm::kvm_run__bindgen_ty_1__bindgen_ty_14;
    assert_eq!(
        [
            offset_of!(Emulation, flags),
            offset_of!(Emulation, __bindgen_anon_1)
        ],
        [8, 16]
    );
    type System = kvm::kvm_run__bindgen_ty_1__bindgen_ty_19;
    assert_eq!(
        [
            offset_of!(System, ndata),
            offset_of!(System, __bindgen_anon_1)
        ],
        [4, 8]
    );
    type Fail = kvm::kvm_run__bindgen_ty_1__bindgen_ty_2;
    assert_eq!(offset_of!(Fail, cpu), 8);
    type Fault = kvm::kvm_run__bindgen_ty_1__bindgen_ty_27;
    assert_eq!([offset_of!(Fault, gpa), offset_of!(Fault, size)], [8, 16]);
    type Debug = kvm::kvm_debug_exit_arch;
    assert_eq!(
        [
            offset_of!(Debug, pc),
            offset_of!(Debug, dr6),
            offset_of!(Debug, dr7)
        ],
        [8, 16, 24]
    );
    assert_eq!(size_of::<kvm::kvm_coalesced_mmio>(), 24);
}

#[test]
fn debug_output_of_a_runner_shows_what_its_script_holds() {
    let steps = [
        hlt(),
        MockStep::mmio_read(0x1000, 4),
        MockStep::Fail(libc::EINTR),
        MockStep::Spin,
    ];
    let text = format!(
        "{:?}",
        VcpuRunner::new(MockVcpu::new(steps), Strict::default())
    );
    let parts = [
        "VcpuRunner",
        "Exit(Hlt)",
        "Exit(MmioRead { addr: 4096",
        "Fail(4)",
        "Spin",
    ];
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}
