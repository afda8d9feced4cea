// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kick, pause, resume and stop on real KVM.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{ENTRY, Guest, Machine, Nothing, SOON, join, receive, rounds, wait_until};
use vcpu_runner::{
    Control, ControlError, ExitCounters, ExitKind, GroupError, GuestIo, JoinError, KickSignal,
    KvmVcpu, Outcome, State, VcpuGroup, VcpuHandle, VcpuRunner,
};

#[test]
fn a_paused_guest_stands_still() {
    let Some(kvm) = common::kvm() else { return };
    for guest in [Guest::Spins, Guest::Floods] {
        let machine = guest.machine(&kvm);
        let handle = VcpuRunner::new(machine.vcpu(0), Nothing)
            .spawn("still")
            .unwrap();
        for _ in 0..20 {
            let before = rounds(&machine);
            wait_until("the guest goes on", || rounds(&machine) != before);
            handle.pause(SOON).unwrap();
            let before = rounds(&machine);
            let regs = |vcpu: &KvmVcpu| vcpu.fd().get_regs().unwrap();
            let first = handle.with_vcpu(SOON, regs).unwrap();
            thread::sleep(Duration::from_millis(2));
            assert_eq!(rounds(&machine), before);
            assert_eq!(handle.with_vcpu(SOON, regs).unwrap(), first);
            handle.resume().unwrap();
        }
    }
}

/// Answers accesses slowly, and says when one has begun.
struct Slow {
    begun: mpsc::Sender<u64>,
    next: u8,
}

impl Slow {
    fn answer(&mut self, addr: u64, data: &mut [u8]) {
        let _ = self.begun.send(addr);
        // Time for the pause to be asked for meanwhile.
        thread::sleep(Duration::from_millis(3));
        for byte in data {
            *byte = self.next;
            self.next = self.next.wrapping_add(1);
        }
    }
}

impl GuestIo for Slow {
    type Answer = ();
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.answer(addr, data);
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        self.answer(port.into(), data);
    }
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

#[test]
fn a_pause_completes_the_access_that_is_in_progress() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let reads: [(&[u8], u32); 2] = [
        (&[0xa1, 0x10, 0x00, 0x00, 0x80], 1),     // mov eax, [0x80000010]
        (&[0xa1, 0xfe, 0x0f, 0x00, 0x80], 2),     // mov eax, [0x80000ffe]: two exits
    ];
    for (read, exits) in reads {
        let mut code = read.to_vec();
        code.extend([0xeb, 0xfe]); // jmp $
        let machine = Machine::new(&kvm, &code);
        let (begun, has_begun) = mpsc::channel();
        let mut handle = VcpuRunner::new(machine.vcpu(0), Slow { begun, next: 1 })
            .spawn("slow")
            .unwrap();
        receive("the first access", &has_begun);
        handle.pause(SOON).unwrap();
        // What a snapshot would take: the instruction is over, with its result.
        let regs = handle
            .with_vcpu(SOON, |vcpu| vcpu.fd().get_regs().unwrap())
            .unwrap();
        assert_eq!(regs.rax, 0x0403_0201);
        assert_eq!(regs.rip, ENTRY + 5);
        assert_eq!(has_begun.try_iter().count() + 1, exits as usize);
        handle.stop();
        assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    }
}

#[test]
fn a_pause_in_the_middle_of_a_string_loses_nothing() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xfc,                                     // cld
        0xbf, 0x00, 0x60, 0x00, 0x00,             // mov edi, 0x6000
        0xbe, 0x00, 0x20, 0x00, 0x80,             // mov esi, 0x80002000
        0xb9, 0x10, 0x00, 0x00, 0x00,             // mov ecx, 16
        0xf3, 0xa4,                               // rep movsb
        0xb9, 0x10, 0x00, 0x00, 0x00,             // mov ecx, 16
        0xba, 0x78, 0x01, 0x00, 0x00,             // mov edx, 0x178
        0xf3, 0x6c,                               // rep insb
        0xf4,                                     // hlt
    ]);
    let (begun, has_begun) = mpsc::channel();
    let mut handle = VcpuRunner::new(machine.vcpu(0), Slow { begun, next: 0 })
        .spawn("string")
        .unwrap();
    let mut pauses = 0;
    while has_begun.recv_timeout(SOON).is_ok() {
        match handle.pause(SOON) {
            Ok(()) => pauses += 1,
            // The guest is done.
            Err(ControlError::NotRunning) => break,
            Err(error) => panic!("{error}"),
        }
        handle.resume().unwrap();
    }
    assert!(pauses > 0);
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Halted);
    let expected: Vec<u8> = (0..32).collect();
    assert_eq!(machine.read::<32>(0x6000).as_slice(), expected);
}

/// Holds the locks of allocator and standard output most of the time.
struct Busy;

impl GuestIo for Busy {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        let output = std::io::stdout().lock();
        data.copy_from_slice(&vec![0; data.len()]);
        drop(output);
    }
    fn mmio_write(&mut self, _: u64, data: &[u8]) {
        assert_eq!(std::hint::black_box(format!("{data:?}")).len(), 12);
    }
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

#[test]
fn kicks_from_many_threads_do_no_harm() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Floods.machine(&kvm);
    let counters = Arc::new(ExitCounters::default());
    let mut handle = VcpuRunner::new(machine.vcpu(0), Busy)
        .with_observer(Arc::clone(&counters))
        .spawn("kicked")
        .unwrap();
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    handle.control().kick();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..500 {
            handle.pause(SOON).unwrap();
            assert_eq!(handle.control().state(), State::Paused);
            handle.resume().unwrap();
        }
    });
    let before = rounds(&machine);
    wait_until("the guest goes on", || rounds(&machine) != before);
    // Nothing is left over: with no more requests there are no more interruptions.
    let mut settled = 0;
    wait_until("no more interruptions", || {
        settled = counters.get(ExitKind::Interrupted);
        thread::sleep(Duration::from_millis(20));
        counters.get(ExitKind::Interrupted) == settled
    });
    assert!(settled <= 2 * (sent.load(Ordering::Relaxed) + 500));
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn each_pause_costs_at_most_one_spurious_exit() {
    let Some(kvm) = common::kvm() else { return };
    for guest in [Guest::Spins, Guest::Halts] {
        let machine = guest.machine(&kvm);
        let counters = Arc::new(ExitCounters::default());
        let handle = VcpuRunner::new(machine.vcpu(0), Nothing)
            .with_observer(Arc::clone(&counters))
            .spawn("spurious")
            .unwrap();
        for _ in 0..200 {
            let before = counters.get(ExitKind::Interrupted);
            handle.pause(SOON).unwrap();
            handle.resume().unwrap();
            wait_until("the vCPU runs", || {
                handle.control().state() == State::Running
            });
            thread::sleep(Duration::from_micros(300));
            let exits = counters.get(ExitKind::Interrupted) - before;
            assert!(exits <= 2, "{exits} interruptions");
        }
    }
}

#[test]
fn a_thread_may_block_the_signal_and_gets_its_mask_back() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Spins.machine(&kvm);
    let signal = KickSignal::realtime(3).unwrap();
    let vcpu = KvmVcpu::with_kick_signal(machine.fd_at(0, ENTRY), signal).unwrap();
    let mut runner = VcpuRunner::new(vcpu, Nothing);
    let control = runner.control();
    let (done, is_done) = mpsc::channel();
    let thread = thread::spawn(move || {
        common::signal::block(signal.number());
        let outcome = runner.run().unwrap();
        done.send((outcome, common::signal::is_blocked(signal.number())))
            .unwrap();
    });
    wait_until("100 rounds", || rounds(&machine) > 100);
    control.stop();
    assert_eq!(
        receive("the end of the loop", &is_done),
        (Outcome::Stopped, true)
    );
    join("the end of its thread", thread);
    // The thread is gone; kicks go nowhere.
    for _ in 0..100 {
        control.kick();
        control.stop();
    }
}

#[test]
fn a_signal_in_use_is_not_taken_away() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Spins.machine(&kvm);
    let signal = KickSignal::realtime(5).unwrap();
    common::signal::take(signal.number());
    let vcpu = KvmVcpu::with_kick_signal(machine.fd_at(0, ENTRY), signal).unwrap();
    let mut handle = VcpuRunner::new(vcpu, Nothing).spawn("taken").unwrap();
    match handle.join(SOON) {
        Err(JoinError::Vcpu(vcpu_runner::Error::Thread(error))) => {
            assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        }
        other => panic!("unexpected {other:?}"),
    }
    assert_eq!(KickSignal::realtime(200), None);
}

#[test]
fn a_foreign_signal_is_not_a_request() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Spins.machine(&kvm);
    let signal = KickSignal::default();
    let (id, has_id) = mpsc::channel();
    let mut runner = VcpuRunner::new(machine.vcpu(0), Nothing);
    let control = runner.control();
    let thread = thread::spawn(move || {
        id.send(common::signal::thread_id()).unwrap();
        runner.run().unwrap()
    });
    let id = receive("the thread's number", &has_id);
    wait_until("the guest runs", || rounds(&machine) > 0);
    for _ in 0..1_000 {
        common::signal::send(id, signal.number());
    }
    assert_eq!(control.state(), State::Running);
    let before = rounds(&machine);
    wait_until("the guest goes on", || rounds(&machine) != before);
    control.stop();
    assert_eq!(join("the end of the loop", thread), Outcome::Stopped);
}

/// A register that ends the machine: 1 is a reset, anything else powers it off.
struct PowerSwitch(Arc<Mutex<Option<Control>>>);

impl GuestIo for PowerSwitch {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, data: &[u8]) {
        let control = self.0.lock().unwrap().clone().unwrap();
        control.stop_with(match data {
            [1] => Outcome::Reset,
            _ => Outcome::Shutdown,
        });
    }
}

#[test]
fn a_group_on_kvm() {
    let Some(kvm) = common::kvm() else { return };
    for (value, expected) in [(1, Outcome::Reset), (2, Outcome::Shutdown)] {
        // vCPU 0 waits a while and then switches the machine off; the others spin.
        #[rustfmt::skip]
        let machine = Machine::new(&kvm, &[
            0x85, 0xed,                           // test ebp, ebp
            0x75, 0xfe,                           // jnz $
            0xb9, 0x00, 0x08, 0x00, 0x00,         // mov ecx, 2048
            0x49,                                 // dec ecx
            0x75, 0xfd,                           // jnz back
            0xb0, value,                          // mov al, value
            0xe6, 0x64,                           // out 0x64, al
            0xeb, 0xfe,                           // jmp $
        ]);
        let mut group = VcpuGroup::new();
        for index in 0..3 {
            let control = Arc::new(Mutex::new(None));
            let runner = VcpuRunner::new(machine.vcpu(index), PowerSwitch(Arc::clone(&control)));
            *control.lock().unwrap() = Some(runner.control());
            group.add(runner);
        }
        let mut running = group.start(SOON).unwrap();
        assert_eq!(running.join(SOON).unwrap(), expected);
        assert!(matches!(running.join(SOON), Err(GroupError::AlreadyJoined)));
    }
}

#[test]
fn groups_pause_together() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Floods.machine(&kvm);
    let mut group = VcpuGroup::new();
    for index in 0..4 {
        group.add(VcpuRunner::new(machine.vcpu(index), Nothing));
    }
    let running = group.start(SOON).unwrap();
    for _ in 0..200 {
        running.pause(SOON).unwrap();
        let before = rounds(&machine);
        assert!(
            running
                .vcpus()
                .iter()
                .map(VcpuHandle::control)
                .all(|control| control.state() == State::Paused)
        );
        assert_eq!(rounds(&machine), before);
        running.resume().unwrap();
    }
}

/// `MSR_KVM_SYSTEM_TIME_NEW` and the flag of `struct pvclock_vcpu_time_info`.
const KVMCLOCK: u32 = 0x4b56_4d01;
const GUEST_STOPPED: u8 = 1 << 1;

#[test]
fn a_vcpu_restored_during_a_pause_sees_that_its_clock_stood_still() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Spins.machine(&kvm);
    let vcpu = machine.vcpu(0);
    vcpu.fd()
        .set_cpuid2(
            &kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
                .unwrap(),
        )
        .unwrap();
    let mut handle = VcpuRunner::new(vcpu, Nothing).spawn("clock").unwrap();
    wait_until("the guest runs", || rounds(&machine) > 0);
    handle.pause(SOON).unwrap();
    let set = handle
        .with_vcpu(SOON, |vcpu| {
            let entry = kvm_bindings::kvm_msr_entry {
                index: KVMCLOCK,
                data: 0x7000 | 1,
                ..Default::default()
            };
            let msrs = kvm_bindings::Msrs::from_entries(&[entry]).unwrap();
            vcpu.fd().set_msrs(&msrs)
        })
        .unwrap();
    if set.ok() != Some(1) {
        println!("skipped: no kvmclock");
        return;
    }
    let before = rounds(&machine);
    handle.resume().unwrap();
    wait_until("the guest runs", || rounds(&machine) != before);
    // Pausing once more makes sure that the vCPU was in the guest after the clock's update.
    handle.pause(SOON).unwrap();
    let [flags] = machine.read::<1>(0x7000 + 29);
    assert_eq!(flags & GUEST_STOPPED, GUEST_STOPPED, "{flags:#x}");
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}
