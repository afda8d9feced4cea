// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs a guest of five instructions that reads a device and writes to a port.
//!
//! `cargo run -p vcpu-runner --example minimal`

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "guest memory is given to KVM, which has no safe interface for it"
    )
)]

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::sync::{Arc, Mutex};

    use bus::{AccessError, BusDevice, MmioBus, PioBus};
    use kvm_bindings::kvm_userspace_memory_region;
    use kvm_ioctls::Kvm;
    use vcpu_runner::{BusIo, KvmVcpu, VcpuRunner};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    /// What the guest reads.
    struct Answer;
    impl BusDevice for Answer {
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            println!(
                "device: {} bytes at offset {offset:#x} are read",
                data.len()
            );
            data.fill(b'!');
            Ok(())
        }
    }

    /// Where the guest writes.
    struct Console;
    impl BusDevice for Console {
        fn write(&mut self, _offset: u64, data: &[u8]) -> Result<(), AccessError> {
            println!("console: {}", String::from_utf8_lossy(data));
            Ok(())
        }
    }

    // Real mode: the data segment is moved to where the device is.
    #[rustfmt::skip]
    let code = [
        0xa0, 0x04, 0x00, // mov al, [4]
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee,             // out dx, al
        0xf4,             // hlt
    ];

    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no usable /dev/kvm");
        return Ok(());
    };
    let vm = kvm.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
    memory.write_slice(&code, GuestAddress(0x1000))?;
    let region = kvm_userspace_memory_region {
        memory_size: 0x1_0000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the memory is mapped, and stays so until the end of `main`.
    unsafe { vm.set_user_memory_region(region)? };

    let fd = vm.create_vcpu(0)?;
    let mut sregs = fd.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    sregs.ds.base = 0x8_0000;
    fd.set_sregs(&sregs)?;
    let mut regs = fd.get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    fd.set_regs(&regs)?;

    let (mmio, pio) = (MmioBus::new(), PioBus::new());
    mmio.insert(Arc::new(Mutex::new(Answer)), 0x8_0000, 0x1000)?;
    pio.insert(Arc::new(Mutex::new(Console)), 0x3f8, 8)?;

    let io = BusIo::new(mmio.view(), pio.view());
    let outcome = VcpuRunner::new(KvmVcpu::new(fd)?, io).run()?;
    println!("{outcome}");
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: the guest of this example is x86 code");
}
