// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What both kinds of machine are made of: a virtual machine with memory, and the two random number
//! generators.

use std::error::Error;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, OnceLock};

use bus::{BusError, MmioBus, Region, RegionId};
use kvm_ioctls::{Kvm, VmFd};
use mmio_rng_legacy::Rngboi1337;
use vcpu_runner::{Doorbell, IoEvent};
use virtio_device_core::{InterruptLine, WorkerThread};
use virtio_mmio_transport::{Location, LocationError, MmioTransport, QUEUE_NOTIFY};
use virtio_rng_device::{EntropyDevice, RngObserver};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, Memory};
use crate::entropy::Entropy;
use crate::layout::{RNG0, TSS_ADDRESS, VIRTIO_GSI, VIRTIO_RNG};

/// Makes a virtual machine with `memory` and the kernel's interrupt controllers.
///
/// The caller keeps `memory` for as long as the virtual machine lives.
pub(crate) fn create_vm(kvm: &Kvm, memory: &Memory) -> Result<VmFd, Box<dyn Error>> {
    let vm = kvm.create_vm()?;
    vm.set_tss_address(TSS_ADDRESS)?;
    vm.create_irq_chip()?;
    boot::map_memory(&vm, memory)?;
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

/// The thread that virtio-rng works on.
pub(crate) fn worker() -> io::Result<WorkerThread> {
    WorkerThread::named("virtio-rng")
}

/// Where a guest finds virtio-rng.
pub(crate) const fn virtio_rng_location() -> Result<Location, LocationError> {
    Location::new(VIRTIO_RNG, VIRTIO_GSI)
}

/// Gives virtio-rng its registers and puts it on the bus. Its interrupt leads nowhere yet.
pub(crate) fn insert_virtio_rng<O: RngObserver + 'static>(
    mmio: &MmioBus,
    device: EntropyDevice<Entropy, WorkerThread, O>,
    memory: Arc<Memory>,
) -> Result<Wires, Box<dyn Error>> {
    let irq = Arc::new(IrqLine::default());
    let transport = MmioTransport::new(device, memory, irq.clone())?;
    let mut kicks = Vec::new();
    for (queue, kick) in transport.kicks() {
        kicks.push((queue, kick.try_clone()?));
    }
    let region = Region::new(VIRTIO_RNG, virtio_mmio_transport::REGION_SIZE);
    let transport = Arc::new(Mutex::new(transport));
    mmio.insert_region(transport, region.named("virtio-rng").counted())?;
    Ok(Wires { irq, kicks })
}

/// The ends of virtio-rng that KVM can take.
#[derive(Debug)]
pub(crate) struct Wires {
    irq: Arc<IrqLine>,
    /// With the number of the queue that each is for.
    kicks: Vec<(u16, EventFd)>,
}

impl Wires {
    /// Connects the device with a virtual machine: interrupts go to KVM, and notifications come
    /// from it by ioeventfd, so that neither leaves the kernel. Notifications come until what is
    /// returned is dropped.
    pub(crate) fn connect(&self, vm: &Arc<VmFd>) -> Result<Vec<IoEvent>, Box<dyn Error>> {
        if self.irq.0.set(vm.clone()).is_err() {
            return Err("virtio-rng is connected already".into());
        }
        let mut doorbells = Vec::new();
        for (queue, kick) in &self.kicks {
            let doorbell = Doorbell::U32((*queue).into());
            let kick = kick.try_clone()?;
            doorbells.push(IoEvent::mmio(vm, VIRTIO_RNG, QUEUE_NOTIFY, doorbell, kick)?);
        }
        Ok(doorbells)
    }
}

/// The interrupt line of virtio-rng, edge-triggered, once there is a virtual machine.
///
/// The thread that triggers it tells KVM by itself. With an irqfd it would not have to know of KVM,
/// but KVM has a thread of its own raise the I/O APIC's pins for those, and to wait for that thread
/// costs more than the call.
#[derive(Debug, Default)]
struct IrqLine(OnceLock<Arc<VmFd>>);

impl InterruptLine for IrqLine {
    fn trigger(&self) -> io::Result<()> {
        let vm = self.0.get().ok_or(io::ErrorKind::NotConnected)?;
        vm.set_irq_line(VIRTIO_GSI, true)?;
        Ok(vm.set_irq_line(VIRTIO_GSI, false)?)
    }
}
