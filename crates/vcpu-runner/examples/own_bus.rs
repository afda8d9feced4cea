// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with a bus, actions and errors of its own, that reboots in place.
//!
//! `cargo run -p vcpu-runner --example own_bus`

#[cfg(target_arch = "x86_64")]
mod common;

use std::ops::ControlFlow;

use vcpu_runner::Flow;

/// The bus that the VMM has already: an access gives an action, or an error.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86 only"))]
mod own {
    /// What a device asks its VMM to do.
    #[derive(Debug, PartialEq)]
    pub(crate) enum Action {
        Nothing,
        Reset,
        PowerOff,
    }

    /// Why the VMM gives up.
    #[derive(Debug, thiserror::Error)]
    #[error("no device at {0:#x}")]
    pub(crate) struct BusError(u64);

    /// One register: it counts the boots, and the guest writes what it wants.
    #[derive(Default)]
    pub(crate) struct Bus {
        pub(crate) boots: u8,
    }

    impl Bus {
        pub(crate) fn read(&mut self, addr: u64, data: &mut [u8]) -> Result<Action, BusError> {
            if addr != 0x8_0000 {
                return Err(BusError(addr));
            }
            data.fill(self.boots);
            Ok(Action::Nothing)
        }

        pub(crate) fn write(&mut self, addr: u64, data: &[u8]) -> Result<Action, BusError> {
            match (addr, data) {
                (0x8_0000, [1]) => Ok(Action::Reset),
                (0x8_0000, _) => Ok(Action::PowerOff),
                _ => Err(BusError(addr)),
            }
        }
    }
}

/// What the actions mean for the loop.
impl Flow for own::Action {
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
    use std::sync::{Arc, Mutex, PoisonError};

    use own::{Action, Bus, BusError};
    use vcpu_runner::{GuestIo, KvmVcpu, Outcome, VcpuRunner};

    /// The whole of the adapter.
    struct Io(Arc<Mutex<Bus>>);

    impl GuestIo for Io {
        type Answer = Result<Action, BusError>;
        fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Self::Answer {
            let mut bus = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            bus.read(addr, data)
        }
        fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Self::Answer {
            let mut bus = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            bus.write(addr, data)
        }
        fn pio_read(&mut self, _port: u16, _data: &mut [u8]) -> Self::Answer {
            Ok(Action::Nothing)
        }
        fn pio_write(&mut self, _port: u16, _data: &[u8]) -> Self::Answer {
            Ok(Action::Nothing)
        }
    }

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
    let bus = Arc::new(Mutex::new(Bus::default()));
    let vcpu = KvmVcpu::new(machine.vm.create_vcpu(0)?)?;
    let mut runner = VcpuRunner::new(vcpu, Io(Arc::clone(&bus)));
    loop {
        common::reset(runner.vcpu().fd())?;
        match runner.run()? {
            Outcome::Vmm(Ok(Action::Reset)) => {
                bus.lock().unwrap_or_else(PoisonError::into_inner).boots += 1;
                println!("the guest reboots");
            }
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
