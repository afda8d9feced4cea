// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with the `IoManager` of vm-device: its loop, replaced.
//!
//! `cargo run -p vcpu-runner --example io_manager`

#[cfg(target_arch = "x86_64")]
mod common;

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::sync::Arc;

    use vcpu_runner::{IoAccess, IoFn, KvmVcpu, VcpuRunner};
    use vm_device::bus::{
        MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioAddressOffset, PioRange,
    };
    use vm_device::device_manager::{IoManager, MmioManager, PioManager};
    use vm_device::{DeviceMmio, DevicePio};

    /// What the guest reads.
    struct Answer;
    impl DeviceMmio for Answer {
        fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
            data.fill(b'!');
        }
        fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
    }

    /// Where the guest writes.
    struct Console;
    impl DevicePio for Console {
        fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}
        fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
            println!("console: {}", String::from_utf8_lossy(data));
        }
    }

    #[rustfmt::skip]
    let code = [
        0xa0, 0x04, 0x00, // mov al, [4]
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee,             // out dx, al
        0xf4,             // hlt
    ];
    let Some(machine) = common::Machine::new(&code)? else {
        return Ok(());
    };
    let mut devices = IoManager::new();
    let range = MmioRange::new(MmioAddress(0x8_0000), 0x1000)?;
    devices.register_mmio(range, Arc::new(Answer))?;
    let range = PioRange::new(PioAddress(0x3f8), 8)?;
    devices.register_pio(range, Arc::new(Console))?;

    let io = IoFn(move |access: IoAccess<'_>| {
        // An access that fails is no reason to stop: the guest reads ones.
        let _ = match access {
            IoAccess::MmioRead { addr, data } => devices.mmio_read(MmioAddress(addr), data),
            IoAccess::MmioWrite { addr, data } => devices.mmio_write(MmioAddress(addr), data),
            IoAccess::PioRead { port, data } => devices.pio_read(PioAddress(port), data),
            IoAccess::PioWrite { port, data } => devices.pio_write(PioAddress(port), data),
        };
    });
    let vcpu = KvmVcpu::new(machine.vm.create_vcpu(0)?)?;
    common::reset(vcpu.fd())?;
    let outcome = VcpuRunner::new(vcpu, io).run()?;
    println!("{outcome}");
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: the guest of this example is x86 code");
}
