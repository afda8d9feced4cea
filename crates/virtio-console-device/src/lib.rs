// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio console device (VIRTIO 1.3, section 5.3).

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod control;
mod device;
mod host;
mod observer;
mod port;
mod shared;
mod state;
mod worker;

pub use device::{
    Console, ConsoleHandle, MAX_PORTS, VIRTIO_CONSOLE_F_EMERG_WRITE, VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_F_SIZE,
};
pub use observer::{ConsoleEvent, ConsoleObserver};
pub use port::{Port, Size};
