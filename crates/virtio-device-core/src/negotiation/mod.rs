// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The start-up protocol of driver and device: status and features (VIRTIO 1.3, sections 2.1, 2.2
//! and 3.1).

mod features;
mod status;

pub(crate) use features::MAX_WORDS_BEYOND;
pub use features::{
    Features, Negotiation, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
};
pub use status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, DeviceStatus, FAILED, FEATURES_OK,
};
