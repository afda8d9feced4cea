// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio-mmio transport: any [`VirtioDevice`] behind the registers of VIRTIO 1.3, section 4.2.
//!
//! ```console
//! cargo add virtio-mmio-transport
//! # Which the first example uses as well:
//! cargo add vmm-bus virtio-device-core virtio-conformance
//! cargo add vm-memory --features backend-mmap
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # A first example
//!
//! A [`MmioTransport`] is a device on a bus. A VMM gives it a page of guest address space, connects
//! its interrupt line and its queues' event fds, and tells the guest where to find it:
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use bus::MmioBus;
//! use virtio_conformance::ramdisk::RamDisk; // or any other `VirtioDevice`
//! use virtio_device_core::{WorkerThread, vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd}};
//! use virtio_mmio_transport::{MmioTransport, QUEUE_NOTIFY, REGION_SIZE};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! const BASE: u64 = 0x8000_2000;
//!
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
//! let disk = RamDisk::new(Arc::new(Mutex::new(vec![0; 4096])), WorkerThread::named("disk")?);
//!
//! // Register this as an irqfd with the hypervisor ...
//! let irq = Arc::new(EventFd::new(EFD_NONBLOCK)?);
//! let transport = MmioTransport::new(disk, Arc::new(memory), irq)?;
//! for (queue, kick) in transport.kicks() {
//!     // ... and each of these as an ioeventfd.
//!     println!("{kick:?} is for a write of {queue} to {:#x}", BASE + QUEUE_NOTIFY);
//! }
//! let bus = MmioBus::new();
//! bus.insert(Arc::new(Mutex::new(transport)), BASE, REGION_SIZE)?;
//!
//! // What a driver reads first: "virt", and which device this is.
//! let (mut vcpu, mut word) = (bus.view(), [0; 4]);
//! vcpu.read(BASE, &mut word)?;
//! assert_eq!(&word, b"virt");
//! vcpu.read(BASE + 8, &mut word)?;
//! assert_eq!(u32::from_le_bytes(word), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/rng.rs` of the package does it on a machine that runs.
//!
//! What a driver does wrong changes nothing: a status, feature or queue write that section 3.1.1
//! does not allow is ignored, `FEATURES_OK` does not stick for features that were not offered, and
//! `QueueReady` does not stick for a queue that is not well-formed. Writing 0 to the status works
//! from every state. A VMM can have itself told of all that by [`MmioTransport::with_observer`].
//!
//! A live device is paused by [`MmioTransport::pause`], whatever its driver and its backend do, and
//! moved by [`MmioTransport::save`] and [`MmioTransport::restore`]. [`Location`] tells a guest where
//! the registers are.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `acpi` | `Location::acpi_device`: an `LNRO0005` device for `acpi_tables`, which needs Rust 1.87 |
//! | `fdt` | `Location::write_fdt`: a `virtio,mmio` node for `vm-fdt` |
//! | `serde` | the saved state can be serialised |
//!
//! `Location::kernel_argument`, for the command line, needs none.
//!
//! # Limits
//!
//! * Version 2 only: there is no register of the legacy interface.
//! * One interrupt line for all queues, as section 4.2 has it. A transport with a vector for each queue
//!   finds all but its registers in [virtio-device-core](https://docs.rs/virtio-device-core).
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85; 1.87 for the feature `acpi` |
//! | [VIRTIO](https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html) | 1.3 |
//! | vm-memory | 0.18, re-exported by virtio-device-core |
//! | vmm-sys-util | 0.15, re-exported by virtio-device-core |
//! | `acpi_tables`, vm-fdt | 0.2 and 0.3, with the features `acpi` and `fdt` |
//! | kvm-ioctls | not needed; 0.25 in this family, whose versions agree |
//!
//! # Threat model
//!
//! | the driver | what happens |
//! |---|---|
//! | accesses a control register by anything but an aligned word | reads zeros, writes nothing |
//! | selects queue 65,536 | there is no such queue: selectors are not cut to 16 bits |
//! | takes the steps of the start-up protocol out of order | the write is ignored |
//! | accepts features that were not offered, or not `VIRTIO_F_VERSION_1` | `FEATURES_OK` stays clear |
//! | enables a queue that is not well-formed | `QueueReady` stays 0 |
//! | changes a queue after enabling it, or after `DRIVER_OK` | the write is ignored |
//! | resets one queue | it is out of the device's reach when the write returns, and its set-up is gone |
//! | reads fields while they change | the generation differs, and it reads them again |
//! | resets, in whatever state | all queues are out of the device's reach when the write returns |
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [virtio-device-core](https://docs.rs/virtio-device-core) | life cycle, features, queues, chains and workers of any virtio device |
//! | [vmm-bus](https://docs.rs/vmm-bus) | finds the device that owns an address, and calls it |
//! | [virtio-conformance](https://docs.rs/virtio-conformance) | a suite for any virtio device behind any transport |
//! | [virtio-rng-device](https://docs.rs/virtio-rng-device) | a virtio entropy device |
//! | [virtio-console-device](https://docs.rs/virtio-console-device) | a virtio console with several ports |
//! | [virtio-net-device](https://docs.rs/virtio-net-device) | a virtio network device |
//! | [virtio-blk-device](https://docs.rs/virtio-blk-device) | a virtio block device |
//! | [vcpu-runner](https://docs.rs/vcpu-runner) | runs a vCPU, and hands its exits to devices |

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
