// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device bus for virtual machine monitors.
//!
//! When a guest touches an address that is not memory, its vCPU exits, and the VMM has to find the
//! device at that address, call it and hand the answer back. A [`Bus`] does that: devices are
//! inserted at ranges of addresses, each vCPU accesses them through a [`BusView`] of its own.
//!
//! ```console
//! cargo add vmm-bus
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # Putting a device on a bus
//!
//! A device is a type that implements [`BusDevice`]. It gets offsets from its own base, because it
//! does not know where it lives, and data of 1, 2, 4 or 8 bytes in the guest's order.
//!
//! ```
//! use bus::{AccessError, BusDevice, MmioBus, Region, Width};
//! use std::sync::{Arc, Mutex};
//!
//! /// A counter with two registers of 32 bits: the value at offset 0, the step at offset 4.
//! struct Counter {
//!     value: u32,
//!     step: u32,
//! }
//!
//! impl BusDevice for Counter {
//!     fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
//!         let register = match offset {
//!             0 => {
//!                 self.value = self.value.wrapping_add(self.step);
//!                 self.value
//!             }
//!             4 => self.step,
//!             _ => return Err(AccessError::Offset),
//!         };
//!         data.copy_from_slice(&register.to_le_bytes());
//!         Ok(())
//!     }
//!
//!     fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
//!         match offset {
//!             0 => Err(AccessError::ReadOnly),
//!             4 => {
//!                 let bytes = data.try_into().map_err(|_| AccessError::Width)?;
//!                 self.step = u32::from_le_bytes(bytes);
//!                 Ok(())
//!             }
//!             _ => Err(AccessError::Offset),
//!         }
//!     }
//! }
//!
//! // The VMM puts the device on its bus. Only accesses of four bytes are let through.
//! let bus = MmioBus::new();
//! let counter = Arc::new(Mutex::new(Counter { value: 0, step: 1 }));
//! let region = Region::new(0xd000_0000, 8).named("counter").widths(&[Width::U32]);
//! let id = bus.insert_region(counter, region)?;
//! println!("{bus}"); // d0000000-d0000007 : counter
//!
//! // Each vCPU makes a view, and passes its exits to it.
//! let mut view = bus.view();
//! view.write(0xd000_0004, &5_u32.to_le_bytes())?;
//! let mut data = [0; 4];
//! view.read(0xd000_0000, &mut data)?;
//! assert_eq!(u32::from_le_bytes(data), 5);
//!
//! // An error is no reason to stop: the buffer holds what the guest is to see.
//! assert_eq!(view.read(0xd000_0002, &mut data[..1]), Err(AccessError::Width));
//! assert_eq!(view.read(0xe000_0000, &mut data), Err(AccessError::Unclaimed));
//! assert_eq!(data, [0xff; 4]);
//!
//! // Devices come and go while vCPUs run.
//! bus.remove(id)?;
//! assert_eq!(view.read(0xd000_0000, &mut data), Err(AccessError::Unclaimed));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # For authors of devices
//!
//! * [`BusDevice`] has `&mut self` and goes onto the bus in an `Arc<Mutex<_>>`. [`BusDeviceSync`]
//!   has `&self`, is called from several vCPUs at once and does its own locking; it goes onto the
//!   bus in an `Arc`.
//! * The buffer of a read arrives filled with the bus's fill value. Who answers only some of the
//!   bytes leaves the others defined; who returns an error answers none.
//! * A handler may call the bus, and reach any other device. If that leads back to a locked device
//!   of its own thread, the access returns [`AccessError::Reentrant`]; if two locked devices access
//!   each other from two vCPUs at once, one of the accesses returns [`AccessError::Deadlock`]. A
//!   device that holds its own bus keeps both for ever; let it hold a `Weak<MmioBus>`.
//! * A handler may insert, move and remove regions, but not remove its own device, nor wait for
//!   those that wait for it: that returns [`BusError::InsideDevice`].
//! * A handler that panics is the end of its device and of nothing else: this access and each later
//!   one, through whatever bus and also after the device has been inserted again, returns
//!   [`AccessError::Panicked`]. (With `panic = "abort"` it is the end of the process.)
//! * A device that is not the same to all vCPUs implements [`BusDevice::read_by`].
//!
//! # For authors of VMMs
//!
//! * [`MmioBus`] and [`PioBus`] are the same bus with other addresses. Give each vCPU thread a
//!   [view](Bus::view) of both. A handler that accesses other devices can make one each time.
//! * [`Bus::remove`] returns when no thread is in the region, and none will be. Views may hold the
//!   last reference to its device until their next access; [`BusView::refresh`] lets go at once.
//! * A [`Transaction`] makes several changes at once, such as the regions of a PCI function.
//! * Pass each element of a string instruction on its own.
//! * [`Bus::builder`] sets what unclaimed reads give, and an observer of accesses;
//!   [`Region`] has names, widths, alignment and counters. What is not asked for costs nothing.
//! * A seccomp filter should allow `membarrier(2)` to threads that remove devices, or be told to
//!   the bus: [`BusBuilder::fenced`].
//!
//! # Lengths
//!
//! A bus serves accesses of 1 to 8 bytes. Those of 1, 2, 4 and 8 bytes reach the device as they
//! are, aligned or not. KVM also delivers 3, 5, 6 and 7 bytes: it cuts an access in two where it
//! crosses a page. These reach the device as naturally aligned pieces of 4, 2 and 1 bytes, in the
//! order of their offsets.
//!
//! An access is checked as a whole: if it leaves the region, or the region does not take one of the
//! pieces, no piece reaches the device. The first piece that fails ends the access; the buffer of a
//! read is then filled as a whole. The answer to the last piece is the answer to the access; those to
//! the pieces before are dropped, so a device that has something to say to the VMM in an access of a
//! length that is split says it, or says it again, in the last. An observer and the counters of a
//! region see one access.
//!
//! # Answers to the VMM
//!
//! A device cannot reset the machine, move itself on the bus or wait for a barrier while it is being
//! called, so it asks the VMM to do that afterwards. What it says is of a type that the VMM chooses:
//! `Bus<u64, R>`, whose devices are `BusDevice<R>`, and whose views give each access's `R` back when
//! the access is complete and no lock is held. `R` is `()` unless chosen otherwise, and then costs
//! nothing. With an `R` that says so, a device can also answer that it will complete a read later,
//! which the VMM then does. [`DefaultAnswer`] puts a device that answers `()` on a bus with any `R: Default`.
//!
//! ```
//! use bus::{AccessError, BusDevice, PioBus};
//! use std::ops::ControlFlow::{self, Break, Continue};
//! use std::sync::{Arc, Mutex};
//!
//! /// Resets the machine when a guest writes 1.
//! struct ResetPort;
//! impl BusDevice<ControlFlow<&'static str>> for ResetPort {
//!     fn write(
//!         &mut self,
//!         _offset: u64,
//!         data: &[u8],
//!     ) -> Result<ControlFlow<&'static str>, AccessError> {
//!         Ok(if data == [1] { Break("reset") } else { Continue(()) })
//!     }
//! }
//!
//! let bus = PioBus::<ControlFlow<&'static str>>::default();
//! bus.insert(Arc::new(Mutex::new(ResetPort)), 0x604, 1)?;
//! let mut view = bus.view();
//! assert_eq!(view.write(0x604, &[0]), Ok(Continue(())));
//! assert_eq!(view.write(0x604, &[1]), Ok(Break("reset")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it is fast
//!
//! The map of a bus is a sorted table that never changes. A view keeps a reference to it, and the
//! region and width that it was asked for twice in a row. Such an access takes the fast path: it
//! compares address and width, says in a cache line of the view's own where it goes, looks there
//! whether the view is stale, and calls the device. Whoever changes the bus replaces the map, and
//! marks all views stale. To remove a device, the remover then makes all threads of the process
//! execute a memory barrier, with `membarrier(2)`, and waits until no view is in the region: so all
//! the cost of hot-plug is on its side. Where that system call is missing, views execute a fence for
//! each access.
//!
//! Accesses to regions with alignment or counters, and all on a bus with an observer or without
//! `membarrier(2)`, take the slow path: a guess where the region is, then a binary search, and no
//! lock either.
//!
//! # Features
//!
//! * `vm-device`: newtypes, in the module `vm_device`, that fit devices of vm-device 0.1 into this
//!   bus, and devices of this bus into its `IoManager`. Off by default.
//!
//! # Limits
//!
//! * A handler that never returns keeps its vCPU, and its removal, waiting.
//! * Locks of a device that its handler takes itself are not seen by the detection of deadlocks.
//! * With `panic = "abort"` a handler that panics ends the process.
//! * A region lies in one address space and has one owner: there are no priorities and no overlaps.
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85 |
//! | vm-device | 0.1, with the feature of that name |
//! | vm-memory, kvm-ioctls | not needed |
//!
//! # Threat model
//!
//! The guest is hostile. It chooses address, width, data and timing of every access, from all vCPUs at once. Devices are trusted not to be malicious, but not to be free of faults. The VMM, which inserts and removes devices, is trusted.
//!
//! | threat | answer | test |
//! | --- | --- | --- |
//! | address of no device; last addresses of the space; access that wraps | typed error, all ones in the buffer, nothing called | `dispatch.rs`, `model.rs` |
//! | access across the end of a region | refused before the device sees it | `dispatch.rs`, `model.rs` |
//! | width of 0, 9, 64 bytes | refused before the device sees it | `lengths.rs` |
//! | width of 3, 5, 6, 7 bytes | naturally aligned pieces, checked as a whole | `lengths.rs`, `model.rs` |
//! | bytes of an earlier exit in the buffer of a read | overwritten before the device is called, and again if it fails | `dispatch.rs` |
//! | access that makes a device panic | contained; that device is not called again by any bus, all others go on | `faults.rs`, `panics.rs` |
//! | removed device that panics when a vCPU's view drops it | contained | `panics.rs` |
//! | access that makes a device access itself through the bus | typed error instead of a deadlock or a stack overflow | `faults.rs` |
//! | access during removal | `remove` waits for it; none afterwards reaches the device | `concurrency.rs`, `loom.rs` |
//! | millions of refused accesses | no allocation, no logging | `allocation.rs` |
//! | two handlers that wait for each other to be removed or to release a lock, or one for itself | one of them gets a typed error | `faults.rs`, `waits.rs` |
//!
//! Not covered: a handler that never returns (its vCPU hangs, and so does its removal); locks of a device that its handler takes itself; `panic = "abort"`.
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [vcpu-runner](https://docs.rs/vcpu-runner) | runs a vCPU, and hands its exits to devices |
//! | [virtio-mmio-transport](https://docs.rs/virtio-mmio-transport) | the registers of VIRTIO 1.3, section 4.2 |
//! | [mmio-rng-legacy](https://docs.rs/mmio-rng-legacy) | a random number generator with one register, to compare with |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod access;
mod access_error;
mod bus;
mod data;
mod device;
mod error;
mod map;
mod range;
mod region;
mod registry;
mod shared;
mod sync;
mod thread;
mod transaction;
mod view;
#[cfg(feature = "vm-device")]
pub mod vm_device;
mod width;

pub use access::Access;
pub use access_error::AccessError;
pub use bus::{Bus, BusBuilder, MmioBus, PioBus};
pub use device::{BusDevice, BusDeviceSync, DefaultAnswer, OnRemoval};
pub use error::BusError;
pub use range::{Address, BusRange, InvalidRange};
pub use region::{Counts, Region, RegionId, RegionInfo};
pub use transaction::Transaction;
pub use view::{BusView, MmioView, PioView};
pub use width::Width;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
