// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio console device (VIRTIO 1.3, section 5.3).
//!
//! [`Console`] is the device; it knows no transport and no hypervisor. Behind each of its [`Port`]s
//! is any pair of descriptors of the host: a terminal, pipes, a socket, the master of a pseudo
//! terminal, files.
//!
//! ```console
//! cargo add virtio-console-device
//! # Which the first example uses as well:
//! cargo add virtio-device-core
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # A first example
//!
//! ```
//! use std::os::fd::AsFd;
//! use virtio_console_device::{Console, Port, Size};
//! use virtio_device_core::WorkerThread;
//!
//! // The VMM's own terminal, which the shell that started it goes on using afterwards.
//! let input = std::io::stdin().as_fd().try_clone_to_owned()?;
//! let output = std::io::stdout().as_fd().try_clone_to_owned()?;
//! let port = Port::new(input, output)?.with_size(Size { cols: 80, rows: 25 });
//! let console = Console::new(port, WorkerThread::named("console")?)?;
//! // For when the terminal has another size: SIGWINCH, say.
//! let handle = console.handle();
//! handle.resize(0, Size { cols: 132, rows: 50 });
//! // Now put `console` behind a transport.
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # What holds
//!
//! * **Back-pressure in both directions.** Nothing is read from the host before the guest has room for
//!   it, so input waits where it is; output that the host does not take stays in the guest's queue.
//!   Neither holds a vCPU, and nobody polls meanwhile: the worker sleeps.
//! * **No byte is lost or doubled** by a pause, by saving and restoring, or by a reset of the other
//!   queue. A byte is moved under the same lock under which its request is completed. Of a request
//!   that the host has taken in part, the device's saved state says how much.
//! * **A host that hangs up** does not end the device. Input ends there; output is discarded from then
//!   on. A terminal is looked at again every half second, because somebody else may open it.
//! * **A host that is short of something**, memory or room on a disk, is asked again until it has it.
//! * **`O_NONBLOCK` is never set** on a description that others share; see [`Port::new`].
//!
//! A write to a pipe whose reader has gone raises `SIGPIPE`, which Rust programs ignore unless they
//! were told otherwise. A VMM that is not one must ignore it.
//!
//! # Features
//!
//! | feature | what there is |
//! |---|---|
//! | `VIRTIO_CONSOLE_F_SIZE` | [`Port::with_size`], [`ConsoleHandle::resize`] at any time; 0 by 0 while it is not known |
//! | `VIRTIO_CONSOLE_F_EMERG_WRITE` | goes straight to the first port's output; lost if the host does not take it at once |
//! | `VIRTIO_CONSOLE_F_MULTIPORT` | with [`Console::with_ports`]: consoles and named channels, told to the driver by control messages |
//!
//! At run time a port can be [taken away](ConsoleHandle::unplug) and [put back](ConsoleHandle::plug):
//! say all the ports that there will ever be when you make the device, and unplug those that come later.
//!
//! # Limits
//!
//! * A port is served by one worker. All ports that there will ever be are named when the device is made.
//! * What Linux' driver does with them is in the README: it throws away input that comes before a program
//!   has the port open.
//! * A kernel of a guest (6.1) failed once when its device was taken away while input came in.
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85 |
//! | [VIRTIO](https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html) | 1.3 |
//! | vm-memory | 0.18, re-exported by virtio-device-core |
//! | vmm-sys-util | 0.15, re-exported by virtio-device-core |
//! | kvm-ioctls | not needed; 0.25 in this family, whose versions agree |
//!
//! # System calls
//!
//! On the worker's thread, beside those of its loop (see `WorkerThread`):
//!
//! | descriptor | read | write |
//! |---|---|---|
//! | socket | `recvfrom` | `sendto` |
//! | terminal, pipe, file | `read` | `write` |
//! | one that blocks and cannot be opened again | `poll`, `read` | `poll`, `write` |
//!
//! `Port::new` calls `fstat`, `ioctl`, `fcntl`, `getsockopt` and `openat`. On a vCPU's thread an emergency write makes one
//! call of the middle or right column; activation writes one event fd.
//!
//! # Threat model
//!
//! | the driver | what happens |
//! |---|---|
//! | names buffers outside of memory, of the wrong direction or without a byte | the request goes back with length 0, and no byte moves |
//! | writes without end, or a chain of terabytes | at most 256 KiB in a row, then everybody else gets a turn |
//! | floods the control queue, names ports that do not exist | ignored, and told to the observer; one pending message of each kind for each port |
//! | gives buffers that are too small for a control message | they go back empty; the message waits for a larger one |
//! | breaks a ring | `DEVICE_NEEDS_RESET`, once; nothing is served until reset |
//!
//! | the host | what happens |
//! |---|---|
//! | gives nothing, takes nothing | the guest's requests wait, and nobody else does |
//! | hangs up | input ends, output is discarded: neither a spinning worker nor a broken device |
//! | a saved state from elsewhere | refused unless every bit of it means something; a count of sent bytes beyond the chain ends the chain |
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [virtio-device-core](https://docs.rs/virtio-device-core) | life cycle, features, queues, chains and workers of any virtio device |
//! | [virtio-mmio-transport](https://docs.rs/virtio-mmio-transport) | the registers of VIRTIO 1.3, section 4.2 |
//! | [virtio-conformance](https://docs.rs/virtio-conformance) | a suite for any virtio device behind any transport |

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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
