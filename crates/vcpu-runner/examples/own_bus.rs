// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with a bus, actions and errors of its own (`common/own.rs`), that reboots in place: its
//! loop, replaced.
//!
//! `cargo run -p vcpu-runner --example own_bus`

#[cfg(target_arch = "x86_64")]
mod common;
#[cfg(target_arch = "x86_64")]
#[path = "common/own.rs"]
mod own;

#[cfg(target_arch = "x86_64")]
use std::ops::ControlFlow;

/// What the actions mean for the loop.
#[cfg(target_arch = "x86_64")]
impl vcpu_runner::Flow for own::Action {
    type End = Self;
    fn flow(self) -> ControlFlow<Self> {
        match self {
            Self::Nothing => ControlFlow::Continue(()),
            end => ControlFlow::Break(end),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use own::{Action, Bus};
    use vcpu_runner::{IoAccess, IoFn, KvmVcpu, Outcome, VcpuRunner};

    #[rustfmt::skip]
    let code = [
        0xa0, 0x00, 0x00, // mov al, [0]: how many boots there were
        0xfe, 0xc0,       // inc al
        0xa2, 0x00, 0x00, // mov [0], al: a reset the first time, then the end
        0xf4,             // hlt: not reached
    ];
    let Some(machine) = common::Machine::new(&code)? else {
        return Ok(());
    };
    let mut bus = Bus::default();
    let io = IoFn(move |access: IoAccess<'_>| match access {
        IoAccess::MmioRead { addr, data } => bus.read(addr, data),
        IoAccess::MmioWrite { addr, data } => bus.write(addr, data),
        _ => Ok(Action::Nothing),
    });
    let vcpu = KvmVcpu::new(machine.vm.create_vcpu(0)?)?;
    let mut runner = VcpuRunner::new(vcpu, io);
    loop {
        common::reset(runner.vcpu().fd())?;
        match runner.run()? {
            Outcome::Vmm(Ok(Action::Reset)) => println!("the guest reboots"),
            Outcome::Vmm(Ok(action)) => break println!("the guest wants: {action:?}"),
            Outcome::Vmm(Err(error)) => return Err(error.into()),
            other => return Err(format!("unexpected: {other}").into()),
        }
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: the guest of this example is x86 code");
}
