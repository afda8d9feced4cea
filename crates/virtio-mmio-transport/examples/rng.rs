// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An entropy device on a real machine: its guest asks for 32 random bytes, and KVM carries the
//! notification (ioeventfd) and the interrupt (irqfd) without a detour by this program.
//! `cargo run -p virtio-mmio-transport --example rng`

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use bus::MmioBus;
    use rustix::rand::{GetRandomFlags, getrandom};
    use vcpu_runner::{Doorbell, IoAccess, IoEvent, IoFn, IrqFd, KvmVcpu, Outcome, VcpuRunner};
    use virtio_device_core::{
        Activation, Chain, Context, DeviceFault, Progress, QueueHandler, VirtioDevice, WorkerThread,
    };
    use virtio_mmio_transport::{MmioTransport, QUEUE_NOTIFY, REGION_SIZE};
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    type Memory = Arc<GuestMemoryMmap<()>>;
    const BASE: u64 = 0x8_0000;

    /// The half of the device that vCPUs talk to.
    struct Rng(WorkerThread);
    impl VirtioDevice<Memory> for Rng {
        fn device_type(&self) -> u32 {
            4
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &[8]
        }
        fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
            activation.queue(0)?; // the driver must have enabled it
            activation.serve(&mut self.0, |memory| {
                Filler(memory, Chain::with_capacity(8))
            })
        }
    }

    /// The half that serves the queue, on its own thread.
    struct Filler(Memory, Chain);
    impl QueueHandler for Filler {
        fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
            let (memory, chain, mut bytes) = (self.0.memory(), &mut self.1, [0; 32]);
            getrandom(&mut bytes, GetRandomFlags::empty()).map_err(DeviceFault::device)?;
            let Some(active) = cx.queue(queue) else {
                return Ok(Progress::Idle);
            };
            let looked = active.lease.with(|ring| {
                let Some(head) = ring.take(&*memory, chain)? else {
                    let more = ring.enable_notification(&*memory)?; // the driver was quicker?
                    return Ok(if more { Progress::More } else { Progress::Idle });
                };
                let checked = chain.check(&*memory);
                let len = checked.and_then(|()| chain.write(&*memory, &bytes));
                ring.complete(&*memory, head, len.unwrap_or(0))?;
                if ring.needs_interrupt(&*memory)? {
                    active.signal_used();
                }
                Ok(Progress::More)
            });
            looked.unwrap_or(Ok(Progress::Idle)) // paused, or reset
        }
    }

    // The guest, in real mode: it sets up the interrupt controller (IRQ 5 is vector 0x25), and makes
    // the writes that lie at 0x1100. The interrupt's handler acknowledges, and ends the machine.
    #[rustfmt::skip]
    let (code, handler, driver): ([u8; 47], [u8; 11], [(u64, u64); 14]) = ([
        0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, // out 0x20, 0x11; out 0x21, 0x20
        0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21, // out 0x21, 4; out 0x21, 1
        0xb0, 0xdf, 0xe6, 0x21, 0xbe, 0x00, 0x11,       // out 0x21, 0xdf; mov si, 0x1100
        0x2e, 0x8b, 0x1c, 0x85, 0xdb, 0x78, 0x0d,       // next: mov bx, cs:[si]; js end
        0x66, 0x2e, 0x8b, 0x44, 0x02, 0x66, 0x89, 0x07, // mov eax, cs:[si + 2]; mov [bx], eax
        0x83, 0xc6, 0x06, 0xeb, 0xec,                   // add si, 6; jmp next
        0xfb, 0xf4, 0xeb, 0xfd,                         // end: sti; hlt, again and again
    ], [
        0x66, 0xa1, 0x60, 0x00, 0x66, 0xa3, 0x64, 0x00, // mov eax, [0x60]; mov [0x64], eax
        0xe6, 0xf0, 0xcf,                               // out 0xf0, al; iret
    ], [
        (0x70, 0), (0x70, 1), (0x70, 3),                           // Status: ACKNOWLEDGE, DRIVER
        (0x24, 1), (0x20, 1), (0x70, 11),                          // VERSION_1, FEATURES_OK
        (0x38, 8), (0x80, 0x2000), (0x90, 0x2080), (0xa0, 0x2100), // QueueSize, its three parts
        (0x44, 1), (0x70, 15), (0x50, 0), (0xffff, 0),             // ready, DRIVER_OK, notify; the end
    ]);
    let all = [(GuestAddress(0), 0x1_0000)];
    let memory = Memory::new(GuestMemoryMmap::from_ranges(&all)?);
    memory.write_slice(&code, GuestAddress(0x1000))?;
    memory.write_slice(&handler, GuestAddress(0x1800))?;
    memory.write_obj(0x1800_u32, GuestAddress(4 * 0x25))?;
    for ((offset, value), at) in driver.into_iter().zip((0x1100..).step_by(6)) {
        memory.write_obj(offset | value << 16, GuestAddress(at))?;
    }
    // One descriptor: 32 bytes at 0x3000, for the device to write. It is the first that is available.
    memory.write_obj([0x3000_u64, 32 | 2 << 32], GuestAddress(0x2000))?;
    memory.write_obj([0_u16, 1, 0], GuestAddress(0x2080))?;

    // The machine: KVM, memory, interrupt controller, and the device on a bus.
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        println!("skipped: no usable /dev/kvm");
        return Ok(());
    };
    let vm = Arc::new(kvm.create_vm()?);
    let region = kvm_bindings::kvm_userspace_memory_region {
        memory_size: 0x1_0000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    #[expect(unsafe_code, reason = "KVM has no safe interface for this")]
    // SAFETY: the memory is mapped, and stays so until the end of `main`.
    let () = unsafe { vm.set_user_memory_region(region) }?;
    vm.create_irq_chip()?;
    let irq = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let _irqfd = IrqFd::new(&vm, 5, irq.try_clone()?)?;
    let transport = MmioTransport::new(Rng(WorkerThread::named("rng")?), memory.clone(), irq)?;
    let kick = transport.kicks().next().ok_or("no queue")?.1.try_clone()?;
    let _ioeventfd = IoEvent::mmio(&vm, BASE, QUEUE_NOTIFY, Doorbell::U32(0), kick)?;
    let bus = MmioBus::new();
    bus.insert(Arc::new(Mutex::new(transport)), BASE, REGION_SIZE)?;

    // Its processor runs until the interrupt handler writes to port 0xf0.
    let vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector, sregs.ds.base) = (0, 0, BASE);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rsp, regs.rflags) = (0x1000, 0x8000, 2);
    vcpu.set_regs(&regs)?;
    let mut view = bus.view();
    let io = IoFn(move |access: IoAccess<'_>| match access {
        IoAccess::MmioRead { addr, data } => view.read(addr, data).or(Ok(())),
        IoAccess::MmioWrite { addr, data } => view.write(addr, data).or(Ok(())),
        _ => Err("done"), // a port
    });
    let mut vcpu = VcpuRunner::new(KvmVcpu::new(vcpu)?, io).spawn("vcpu0")?;
    let outcome = vcpu.join(Duration::from_secs(60))?;
    assert_eq!(outcome, Outcome::Vmm(Err("done")));
    let bytes: [u8; 32] = memory.read_obj(GuestAddress(0x3000))?;
    println!("the guest was given {bytes:02x?}");
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: the guest of this example is x86 code");
}
