// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vCPUs made of files that others opened, and ends that devices choose, on real KVM.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![expect(unsafe_code, reason = "what is tested has no safe interface")]

mod common;

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use common::{ENTRY, Guest, Machine, Nothing, SOON, rounds, wait_until};
use kvm_bindings::kvm_regs;
use vcpu_runner::{EventFd, GuestIo, IrqFd, KickSignal, KvmVcpu, Outcome, State, VcpuRunner};

#[test]
fn a_vcpu_of_a_file_descriptor_is_kicked_and_paused_like_any_other() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Spins.machine(&kvm);
    // What a VMM has that uses another version of kvm-ioctls, or none.
    let theirs = machine.fd_at(0, ENTRY);
    // SAFETY: the descriptor is open, and stays so during the call.
    let file = unsafe { BorrowedFd::borrow_raw(theirs.as_raw_fd()) };
    let file: OwnedFd = file.try_clone_to_owned().unwrap();
    // SAFETY: the file is a vCPU's, and nobody else runs it.
    let vcpu = unsafe { KvmVcpu::from_fd(file, KickSignal::default()) }.unwrap();
    let mut handle = VcpuRunner::new(vcpu, Nothing).spawn("file").unwrap();
    wait_until("the guest runs", || rounds(&machine) > 0);
    handle.pause(SOON).unwrap();
    assert_eq!(handle.control().state(), State::Paused);
    let number = handle.with_vcpu(SOON, |vcpu| vcpu.fd().as_raw_fd());
    assert_ne!(number.unwrap(), theirs.as_raw_fd());
    assert!(theirs.get_regs().unwrap().rip >= ENTRY);
    let before = rounds(&machine);
    handle.resume().unwrap();
    wait_until("the guest runs", || rounds(&machine) != before);
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn an_end_of_the_vmms_own_leaves_registers_between_two_instructions() {
    let Some(kvm) = common::kvm() else { return };
    // The second one takes two exits, and both are completed.
    for low in [0x10, 0xfe] {
        #[rustfmt::skip]
        let machine = Machine::new(&kvm, &[
            0xa1, low, 0x0f, 0x00, 0x80,          // mov eax, [0x80000f10 or 0x80000ffe]
            0xf4,                                 // hlt
        ]);
        let mut first = true;
        let io = common::Recorder::default().map_answer(move |()| {
            let end = first.then_some("reset");
            first = false;
            end.map(std::ops::ControlFlow::Break)
        });
        let mut runner = VcpuRunner::new(machine.vcpu(0), io);
        let start = runner.vcpu().fd().get_regs().unwrap();
        assert_eq!(runner.run().unwrap(), Outcome::Vmm("reset"));
        let regs = runner.vcpu().fd().get_regs().unwrap();
        assert_eq!((regs.rax, regs.rip), (0x0403_0201, ENTRY + 5));
        // In place: the registers back, and again.
        runner
            .vcpu()
            .fd()
            .set_regs(&kvm_regs { rax: 0, ..start })
            .unwrap();
        assert_eq!(runner.run().unwrap(), Outcome::Halted);
        assert_eq!(runner.vcpu().fd().get_regs().unwrap().rip, ENTRY + 6);
    }
}

#[test]
fn a_shared_peripheral_interrupt_has_the_number_that_the_guest_sees() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::with_irqchip(&kvm, &[0xf4]);
    let spi = |intid| IrqFd::spi(&machine.vm, intid, EventFd::new(0).unwrap());
    for intid in [0, 31, 1020, u32::MAX] {
        let error = spi(intid).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{intid}");
    }
    let irq: Arc<IrqFd> = Arc::new(spi(32 + 4).unwrap());
    assert_eq!(irq.gsi(), 4);
}
