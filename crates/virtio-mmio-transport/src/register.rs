// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register map of virtio-mmio, version 2 (VIRTIO 1.3, section 4.2.2).

/// Value of `MagicValue`: "virt" in little-endian order.
pub(crate) const MAGIC: u32 = 0x7472_6976;
/// Value of Version: the register layout of VIRTIO 1.0 and later.
pub(crate) const VERSION: u32 = 2;

/// Offset of `QueueNotify`, where a VMM registers ioeventfds.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// Offset of the device's configuration space.
pub const CONFIG: u64 = 0x100;
/// Length of the region that a transport takes on the bus: one page.
pub const REGION_SIZE: u64 = 0x1000;

/// `InterruptStatus`: the device has used a buffer.
pub const INT_VRING: u32 = 1;
/// `InterruptStatus`: the configuration space or the status has changed.
pub const INT_CONFIG: u32 = 2;

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $offset:literal,)*) => {
        /// A control register, by its name in the specification.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Register {
            $($(#[$doc])* $name,)*
        }

        impl Register {
            /// The register at `offset`, if there is one.
            pub(crate) const fn at(offset: u64) -> Option<Self> {
                match offset {
                    $($offset => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Where the register is.
            pub(crate) const fn offset(self) -> u64 {
                match self {
                    $(Self::$name => $offset,)*
                }
            }
        }
    };
}

registers! {
    /// Read: [`MAGIC`].
    MagicValue = 0x000,
    /// Read: [`VERSION`].
    Version = 0x004,
    /// Read: the device type, 0 for none.
    DeviceId = 0x008,
    /// Read: who made the device.
    VendorId = 0x00c,
    /// Read: the selected word of the offered features.
    DeviceFeatures = 0x010,
    /// Write: selects a word of the offered features.
    DeviceFeaturesSel = 0x014,
    /// Write: the selected word of the accepted features.
    DriverFeatures = 0x020,
    /// Write: selects a word of the accepted features.
    DriverFeaturesSel = 0x024,
    /// Write: selects the queue that the queue registers are about.
    QueueSel = 0x030,
    /// Read: largest size of the selected queue, 0 if there is no such queue.
    QueueSizeMax = 0x034,
    /// Write: size of the selected queue.
    QueueSize = 0x038,
    /// Read and write: whether the selected queue is enabled.
    QueueReady = 0x044,
    /// Write: index of a queue that has new buffers.
    QueueNotify = 0x050,
    /// Read: why the interrupt was raised.
    InterruptStatus = 0x060,
    /// Write: the causes that the driver has handled.
    InterruptAck = 0x064,
    /// Read and write: the device status; 0 resets.
    Status = 0x070,
    /// Write: descriptor table, low half.
    QueueDescLow = 0x080,
    /// Write: descriptor table, high half.
    QueueDescHigh = 0x084,
    /// Write: available ring, low half.
    QueueDriverLow = 0x090,
    /// Write: available ring, high half.
    QueueDriverHigh = 0x094,
    /// Write: used ring, low half.
    QueueDeviceLow = 0x0a0,
    /// Write: used ring, high half.
    QueueDeviceHigh = 0x0a4,
    /// Write: selects a shared memory region.
    ShmSel = 0x0ac,
    /// Read: length of the shared memory region, low half; all ones if there is none.
    ShmLenLow = 0x0b0,
    /// Read: length of the shared memory region, high half.
    ShmLenHigh = 0x0b4,
    /// Read: address of the shared memory region, low half.
    ShmBaseLow = 0x0b8,
    /// Read: address of the shared memory region, high half.
    ShmBaseHigh = 0x0bc,
    /// Read and write: resets the selected queue, with `VIRTIO_F_RING_RESET`.
    QueueReset = 0x0c0,
    /// Read: changes whenever the configuration space does.
    ConfigGeneration = 0x0fc,
}
