// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Scripted vCPUs, and devices for them.

use kvm_bindings as kvm;
use vcpu_runner::{
    Action, Error, Event, ExitPolicy, GuestIo, Hypercall, MockStep, MockVcpu, Outcome, VcpuGroup,
    VcpuRunner,
};

use super::{Access, Nothing, Recorder};

pub fn spinning() -> MockVcpu {
    MockVcpu::new([MockStep::Spin])
}

pub fn flooding() -> MockVcpu {
    MockVcpu::new([
        MockStep::mmio_read(0x8000_0000, 4),
        MockStep::mmio_write(0x8000_0000, &[1]),
        MockStep::mmio_read(0x8000_0ffe, 2),
        MockStep::mmio_read(0x8000_1000, 2).as_fragment(),
    ])
    .repeated()
}

pub fn hlt() -> MockStep {
    MockStep::exit(kvm::KVM_EXIT_HLT)
}

pub fn reset() -> MockStep {
    MockStep::record(
        kvm::KVM_EXIT_SYSTEM_EVENT,
        &[(0, &kvm::KVM_SYSTEM_EVENT_RESET.to_ne_bytes())],
    )
}

pub fn power_off() -> MockStep {
    MockStep::record(
        kvm::KVM_EXIT_SYSTEM_EVENT,
        &[(0, &kvm::KVM_SYSTEM_EVENT_SHUTDOWN.to_ne_bytes())],
    )
}

/// Devices that do one thing at every access.
#[derive(Clone)]
pub struct Does<F>(pub F);

impl<F: FnMut()> GuestIo for Does<F> {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {
        (self.0)();
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {
        (self.0)();
    }
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

pub fn group(vcpus: impl IntoIterator<Item = MockVcpu>) -> VcpuGroup<MockVcpu> {
    let mut group = VcpuGroup::new();
    for vcpu in vcpus {
        group.add(VcpuRunner::new(vcpu, Nothing));
    }
    group
}

/// Takes everything, and writes down what it was asked.
#[derive(Default)]
pub struct TakesAll {
    pub events: Vec<Event>,
    pub calls: Vec<Hypercall>,
    pub registers: Vec<(u32, u32, Option<u64>)>,
}

impl ExitPolicy for TakesAll {
    fn event(&mut self, event: Event) -> Action {
        self.events.push(event);
        Action::Resume
    }
    fn hypercall(&mut self, call: Hypercall) -> u64 {
        self.calls.push(call);
        77
    }
    fn read_msr(&mut self, index: u32, reason: u32) -> Option<u64> {
        self.registers.push((index, reason, None));
        Some(88)
    }
    fn write_msr(&mut self, index: u32, reason: u32, value: u64) -> bool {
        self.registers.push((index, reason, Some(value)));
        true
    }
}

/// Runs a script to its end and says what came of it.
pub fn run(script: impl IntoIterator<Item = MockStep>) -> (Result<Outcome, Error>, Vec<Access>) {
    let devices = Recorder::default();
    let result = VcpuRunner::new(MockVcpu::new(script), devices.clone()).run();
    (result, devices.log())
}
