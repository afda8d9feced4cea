// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio-mmio transport: any [`VirtioDevice`] behind the registers of VIRTIO 1.3, section 4.2.
//!
//! A [`MmioTransport`] is a device on a bus. A VMM gives it a page of guest address space, connects
//! its interrupt line and its queues' event fds, and tells the guest where to find it:
//!
//! ```no_run
//! # use std::sync::{Arc, Mutex};
//! # use virtio_mmio_transport::{MmioTransport, QUEUE_NOTIFY, VirtioDevice};
//! # use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
//! # fn wire<M, D>(device: D, memory: M) -> Result<(), Box<dyn std::error::Error>>
//! # where M: vm_memory::GuestAddressSpace + Send + 'static, D: VirtioDevice<M> + 'static {
//! const BASE: u64 = 0x8000_2000;
//!
//! let irq = Arc::new(EventFd::new(EFD_NONBLOCK)?); // registered as irqfd with the hypervisor
//! let transport = MmioTransport::new(device, memory, irq)?;
//! for (queue, kick) in transport.kicks() {
//!     // register_ioevent(kick, BASE + QUEUE_NOTIFY, queue)
//!     # let _ = (queue, kick, BASE + QUEUE_NOTIFY);
//! }
//! let on_the_bus: Arc<Mutex<dyn bus::BusDevice>> = Arc::new(Mutex::new(transport));
//! # Ok(())
//! # }
//! ```
//!
//! What a driver does wrong changes nothing: a status, feature or queue write that section 3.1.1
//! does not allow is ignored, `FEATURES_OK` does not stick for features that were not offered, and
//! `QueueReady` does not stick for a queue that is not well-formed. Writing 0 to the status works
//! from every state. A VMM can have itself told of all that by [`MmioTransport::with_observer`].
//!
//! A live device is paused by [`MmioTransport::pause`], whatever its driver and its backend do, and
//! moved by [`MmioTransport::save`] and [`MmioTransport::restore`]. [`Location`] tells a guest where
//! the registers are.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod discovery;
mod interrupt;
mod lifecycle;
mod register;
mod registers;
mod state;
mod sync;
mod transport;

#[cfg(feature = "acpi")]
pub use discovery::AcpiDevice;
#[cfg(feature = "fdt")]
pub use discovery::Trigger;
pub use discovery::{Location, LocationError};
pub use lifecycle::StillBusy;
pub use register::{CONFIG, INT_CONFIG, INT_VRING, QUEUE_NOTIFY, REGION_SIZE};
pub use state::{QueueState, RestoreError, STATE_VERSION, SaveError, TransportState};
pub use transport::MmioTransport;
pub use virtio_device_core::VirtioDevice;
