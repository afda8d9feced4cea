// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What both kinds of machine are made of: a virtual machine with memory, the two random number
//! generators, and slots for virtio devices.

use std::error::Error;
use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

use bus::{BusError, MmioBus, Region, RegionId};
use kvm_ioctls::{Kvm, VmFd};
use mmio_rng_legacy::Rngboi1337;
use vcpu_runner::{Doorbell, IoEvent};
use virtio_device_core::{InterruptLine, VirtioDevice, WorkerThread};
use virtio_mmio_transport::{Location, LocationError, MmioTransport, QUEUE_NOTIFY};
use vmm_sys_util::eventfd::EventFd;

use crate::arch;
use crate::kvm::call;
use crate::layout::{
    RNG0, VIRTIO_CONSOLE, VIRTIO_CONSOLE_GSI, VIRTIO_DISKS, VIRTIO_GSI, VIRTIO_NET, VIRTIO_NET_GSI,
    VIRTIO_RNG,
};
use crate::memory::{self, Memory};

/// Makes a virtual machine with `memory`.
///
/// The caller keeps `memory` for as long as the virtual machine lives.
pub(crate) fn create_vm(kvm: &Kvm, memory: &Memory) -> Result<VmFd, Box<dyn Error>> {
    let vm = arch::vm::create(kvm)?;
    memory::map(&vm, memory)?;
    Ok(vm)
}

/// Puts Rngboi1337 on the bus.
pub(crate) fn insert_legacy_rng(
    mmio: &MmioBus,
    entropy: impl Read + Send + 'static,
) -> Result<RegionId, BusError<u64>> {
    let region = Region::new(RNG0, mmio_rng_legacy::REGION_SIZE).named("mmio-rng-legacy");
    let device = Arc::new(Mutex::new(Rngboi1337::new(entropy)));
    mmio.insert_region(device, region.counted())
}

/// Where a virtio device is: its name, its registers and its interrupt line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    name: &'static str,
    base: u64,
    gsi: u32,
}

/// The slot of virtio-rng.
pub(crate) const RNG: Slot = Slot {
    name: "virtio-rng",
    base: VIRTIO_RNG,
    gsi: VIRTIO_GSI,
};
/// The slot of the virtio console.
pub(crate) const CONSOLE: Slot = Slot {
    name: "virtio-console",
    base: VIRTIO_CONSOLE,
    gsi: VIRTIO_CONSOLE_GSI,
};

/// The slots of disks, in their order, with interrupt lines that nothing else of such a machine uses:
/// among the first 16, which a kernel has without any tables.
pub(crate) const DISKS: [Slot; 8] = [
    disk("virtio-blk0", 0, 10),
    disk("virtio-blk1", 1, 11),
    disk("virtio-blk2", 2, 9),
    disk("virtio-blk3", 3, 7),
    disk("virtio-blk4", 4, 3),
    disk("virtio-blk5", 5, 14),
    disk("virtio-blk6", 6, 15),
    disk("virtio-blk7", 7, 13),
];

/// The slot of the network.
pub(crate) const NET: Slot = Slot {
    name: "virtio-net",
    base: VIRTIO_NET,
    gsi: VIRTIO_NET_GSI,
};

const fn disk(name: &'static str, number: u64, gsi: u32) -> Slot {
    let base = VIRTIO_DISKS + number * virtio_mmio_transport::REGION_SIZE;
    Slot { name, base, gsi }
}

impl Slot {
    /// What the device is called.
    pub(crate) const fn name(self) -> &'static str {
        self.name
    }

    /// The thread that the device works on.
    pub(crate) fn worker(self) -> io::Result<WorkerThread> {
        WorkerThread::named(self.name)
    }

    /// Where a guest finds the device.
    pub(crate) const fn location(self) -> Result<Location, LocationError> {
        Location::new(self.base, self.gsi)
    }
}

/// Gives a virtio device its registers and puts it on the bus. Its interrupt leads nowhere yet; if it
/// ever fails, `tell` is called with a line that says so.
pub(crate) fn insert_virtio(
    mmio: &MmioBus,
    slot: Slot,
    device: impl VirtioDevice<Arc<Memory>> + 'static,
    memory: Arc<Memory>,
    tell: impl Fn(String) + Send + Sync + 'static,
) -> Result<Wires, Box<dyn Error>> {
    let irq = Arc::new(IrqLine {
        slot,
        vm: OnceLock::new(),
        told: Once::new(),
        tell: Box::new(tell),
    });
    let transport = MmioTransport::new(device, memory, irq.clone()).map_err(call(slot.name))?;
    let mut kicks = Vec::new();
    for (queue, kick) in transport.kicks() {
        kicks.push((queue, kick.try_clone().map_err(call("dup"))?));
    }
    let region = Region::new(slot.base, virtio_mmio_transport::REGION_SIZE);
    let transport = Arc::new(Mutex::new(transport));
    let again = transport.clone();
    mmio.insert_region(transport, region.named(slot.name).counted())?;
    let reset = Box::new(move || {
        let mut transport = again.lock().unwrap_or_else(PoisonError::into_inner);
        transport.reset();
        !transport.reset_is_pending()
    });
    Ok(Wires { irq, kicks, reset })
}

/// The ends of a virtio device that KVM can take, and its reset.
pub(crate) struct Wires {
    irq: Arc<IrqLine>,
    /// With the number of the queue that each is for.
    kicks: Vec<(u16, EventFd)>,
    reset: Box<dyn Fn() -> bool>,
}

impl Wires {
    /// Resets the device; says whether that is complete, or has to be asked for again.
    pub(crate) fn reset(&self) -> bool {
        (self.reset)()
    }

    /// Connects the device with a virtual machine: interrupts go to KVM, and notifications come
    /// from it by ioeventfd, so that neither leaves the kernel. Notifications come until what is
    /// returned is dropped.
    pub(crate) fn connect(&self, vm: &Arc<VmFd>) -> Result<Vec<IoEvent>, Box<dyn Error>> {
        if self.irq.vm.set(vm.clone()).is_err() {
            return Err(format!("{} is connected already", self.irq.slot.name).into());
        }
        let mut doorbells = Vec::new();
        for (queue, kick) in &self.kicks {
            let doorbell = Doorbell::U32((*queue).into());
            let kick = kick.try_clone().map_err(call("dup"))?;
            let ioevent = IoEvent::mmio(vm, self.irq.slot.base, QUEUE_NOTIFY, doorbell, kick);
            doorbells.push(ioevent.map_err(call("KVM_IOEVENTFD"))?);
        }
        Ok(doorbells)
    }
}

/// The interrupt line of a virtio device, edge-triggered, once there is a virtual machine.
///
/// The thread that triggers it tells KVM by itself. With an irqfd it would not have to know of KVM,
/// but KVM has a thread of its own raise the I/O APIC's pins for those, and to wait for that thread
/// costs more than the call.
struct IrqLine {
    slot: Slot,
    vm: OnceLock<Arc<VmFd>>,
    told: Once,
    tell: Box<dyn Fn(String) + Send + Sync>,
}

impl IrqLine {
    fn pulse(&self) -> Result<(), String> {
        let vm = self.vm.get().ok_or("it is not connected")?;
        let line = arch::vm::irq_line(self.slot.gsi).ok_or("there is no such line")?;
        for level in [true, false] {
            vm.set_irq_line(line, level).map_err(call("KVM_IRQ_LINE"))?;
        }
        Ok(())
    }
}

impl InterruptLine for IrqLine {
    fn trigger(&self) -> io::Result<()> {
        self.pulse().map_err(|error| {
            let Slot { name, gsi, .. } = self.slot;
            let message = format!("{name}: its interrupt line {gsi} failed: {error}");
            // A guest could have it fail for ever; the first time says it all.
            self.told.call_once(|| (self.tell)(message.clone()));
            io::Error::other(message)
        })
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine").finish_non_exhaustive()
    }
}
