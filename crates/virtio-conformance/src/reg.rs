// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Offsets of the registers of virtio-mmio, by their names in VIRTIO 1.3, section 4.2.2.
//!
//! ```
//! use virtio_conformance::{MmioPort, reg};
//!
//! # let mut port = MmioPort::new(
//! #     [0; 0x200],
//! #     |it: &mut [u8; 0x200], offset, data| data.copy_from_slice(&it[offset as usize..][..data.len()]),
//! #     |it, offset, data| it[offset as usize..][..data.len()].copy_from_slice(data),
//! # );
//! port.set(reg::QUEUE_SEL, 1);
//! port.set(reg::QUEUE_SIZE, 64);
//! ```

macro_rules! registers {
    ($($name:ident = $offset:literal, $register:literal;)*) => {
        $(
            #[doc = concat!("`", $register, "`")]
            pub const $name: u64 = $offset;
        )*
    };
}

registers! {
    MAGIC_VALUE = 0x000, "MagicValue";
    VERSION = 0x004, "Version";
    DEVICE_ID = 0x008, "DeviceID";
    VENDOR_ID = 0x00c, "VendorID";
    DEVICE_FEATURES = 0x010, "DeviceFeatures";
    DEVICE_FEATURES_SEL = 0x014, "DeviceFeaturesSel";
    DRIVER_FEATURES = 0x020, "DriverFeatures";
    DRIVER_FEATURES_SEL = 0x024, "DriverFeaturesSel";
    QUEUE_SEL = 0x030, "QueueSel";
    QUEUE_SIZE_MAX = 0x034, "QueueSizeMax";
    QUEUE_SIZE = 0x038, "QueueSize";
    QUEUE_READY = 0x044, "QueueReady";
    QUEUE_NOTIFY = 0x050, "QueueNotify";
    INTERRUPT_STATUS = 0x060, "InterruptStatus";
    INTERRUPT_ACK = 0x064, "InterruptACK";
    STATUS = 0x070, "Status";
    QUEUE_DESC_LOW = 0x080, "QueueDescLow";
    QUEUE_DESC_HIGH = 0x084, "QueueDescHigh";
    QUEUE_DRIVER_LOW = 0x090, "QueueDriverLow";
    QUEUE_DRIVER_HIGH = 0x094, "QueueDriverHigh";
    QUEUE_DEVICE_LOW = 0x0a0, "QueueDeviceLow";
    QUEUE_DEVICE_HIGH = 0x0a4, "QueueDeviceHigh";
    SHM_SEL = 0x0ac, "SHMSel";
    SHM_LEN_LOW = 0x0b0, "SHMLenLow";
    SHM_LEN_HIGH = 0x0b4, "SHMLenHigh";
    SHM_BASE_LOW = 0x0b8, "SHMBaseLow";
    SHM_BASE_HIGH = 0x0bc, "SHMBaseHigh";
    QUEUE_RESET = 0x0c0, "QueueReset";
    CONFIG_GENERATION = 0x0fc, "ConfigGeneration";
    CONFIG = 0x100, "Config";
}
