// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with a bus of its own: two vCPUs, a counter they share, and a power switch.
//!
//! `cargo run -p vcpu-runner --no-default-features --example own_bus`

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "guest memory is given to KVM, which has no safe interface for it"
    )
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vcpu_runner::{Control, GuestIo, Outcome};

/// A device of this VMM: it is told the offset, and a write or a read.
trait Device: Send {
    fn read(&mut self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// The bus of this VMM: devices by base address, each a page long.
type OwnBus = Mutex<BTreeMap<u64, Box<dyn Device>>>;

/// All that the run loop needs of it.
struct OwnIo(Arc<OwnBus>);

impl OwnIo {
    fn with(&self, addr: u64, call: impl FnOnce(&mut dyn Device, u64)) {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a device a read is answered with ones: that is what the buffer holds already.
        if let Some((base, device)) = devices.range_mut(..=addr).next_back() {
            if addr - base < 0x1000 {
                call(device.as_mut(), addr - base);
            }
        }
    }
}

impl GuestIo for OwnIo {
    type Answer = ();
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.with(addr, |device, offset| device.read(offset, data));
    }
    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.with(addr, |device, offset| device.write(offset, data));
    }
    fn pio_read(&mut self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&mut self, _port: u16, _data: &[u8]) {}
}

/// Counts its reads.
struct Counter(u32);

impl Device for Counter {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        self.0 += 1;
        for (byte, value) in data.iter_mut().zip(self.0.to_le_bytes()) {
            *byte = value;
        }
    }
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

/// Switches the machine off when it is written to.
struct PowerSwitch(Arc<OnceLock<Control>>);

impl Device for PowerSwitch {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
    fn write(&mut self, _offset: u64, _data: &[u8]) {
        if let Some(control) = self.0.get() {
            control.stop_with(Outcome::Shutdown);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::time::Duration;

    use kvm_bindings::{kvm_mp_state, kvm_userspace_memory_region};
    use kvm_ioctls::Kvm;
    use vcpu_runner::{ExitCounters, KvmVcpu, VcpuGroup, VcpuRunner};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    // Real mode: the data segment begins at the counter, the switch is a page further.
    #[rustfmt::skip]
    let code = [
        0x66, 0xa1, 0x00, 0x00,             // mov eax, [0]
        0x66, 0x3d, 0xe8, 0x03, 0x00, 0x00, // cmp eax, 1000
        0x72, 0xf4,                         // jb back
        0xa2, 0x00, 0x10,                   // mov [0x1000], al
        0xeb, 0xfe,                         // jmp $
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

    let switch = Arc::new(OnceLock::new());
    let bus: Arc<OwnBus> = Arc::default();
    {
        let mut devices = bus.lock().unwrap_or_else(PoisonError::into_inner);
        devices.insert(0x8_0000, Box::new(Counter(0)));
        devices.insert(0x8_1000, Box::new(PowerSwitch(Arc::clone(&switch))));
    }

    let mut group = VcpuGroup::new();
    let mut counters = Vec::new();
    for index in 0..2 {
        let fd = vm.create_vcpu(index)?;
        let mut sregs = fd.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        sregs.ds.base = 0x8_0000;
        fd.set_sregs(&sregs)?;
        let mut regs = fd.get_regs()?;
        (regs.rip, regs.rflags) = (0x1000, 2);
        fd.set_regs(&regs)?;
        // Both start at once, instead of the second one waiting to be woken by the first.
        let _ = fd.set_mp_state(kvm_mp_state { mp_state: 0 });

        let counter = Arc::new(ExitCounters::default());
        let runner = VcpuRunner::new(KvmVcpu::new(fd)?, OwnIo(Arc::clone(&bus)))
            .with_observer(Arc::clone(&counter));
        // One vCPU's control is enough: when it ends, the group does.
        let _ = switch.set(runner.control());
        group.add(runner);
        counters.push(counter);
    }
    let mut running = group.start(Duration::from_secs(1))?;
    println!("{}", running.join(Duration::from_secs(10))?);
    for (index, counters) in counters.iter().enumerate() {
        for (kind, count) in counters.iter().filter(|&(_, count)| count > 0) {
            println!("vCPU {index}: {count} {}", kind.name());
        }
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    let _ = (
        OwnIo(Arc::default()),
        Counter(0),
        PowerSwitch(Arc::default()),
    );
    println!("skipped: the guest of this example is x86 code");
}
