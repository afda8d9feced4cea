// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! For device authors: a whole block device, as an example.
//!
//! It has what an entropy device lacks: a configuration space, requests with a part to read and a
//! part to write, an answer whose place is at the end, and a queue that can be reset by itself.
//! This very file is what the published `virtio-drivers` crate drives in this family's tests.
//!
//! * Under the lease's lock a device touches guest memory and nothing that could make it wait.
//! * A chain is [checked](crate::Chain::check) as a whole before a byte moves.
//! * Every chain that is taken is given back, also when the request is bad.
//! * One wake-up serves at most one queue-length of requests and interrupts at most once.
//!
#![doc = concat!("```\n", include_str!("ramdisk.rs"), "\n```")]
