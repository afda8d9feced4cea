// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The published `virtio-drivers` crate as the driver of our devices, over reads and writes of an MMIO
//! bus. No KVM, and nothing of ours on the driver's side but the plumbing.

use bus::{BusView, MmioBus};
use virtio_conformance::MmioPort;
use virtio_conformance::virtio_drivers::RegisterTransport;

/// A bus, and where on it a device's registers start.
type OnBus = (BusView<u64>, u64);

/// The device on a bus, as `virtio-drivers` sees it.
pub(crate) type BusTransport = RegisterTransport<OnBus>;

/// The device whose registers start at `base`.
pub(crate) fn at(bus: &MmioBus, base: u64) -> BusTransport {
    RegisterTransport::new(MmioPort::new(
        (bus.view(), base),
        |(bus, base), offset, data| bus.read(*base + offset, data).expect("it is on the bus"),
        |(bus, base), offset, data| bus.write(*base + offset, data).expect("it is on the bus"),
    ))
}
