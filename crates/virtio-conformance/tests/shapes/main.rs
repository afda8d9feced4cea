// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The shapes that a virtio device can have, each as a small device that goes through the same
//! ordeal: `docs/device-shapes.md` shows the lines that matter.
#![cfg(not(miri))] // Miri has no level-triggered epoll.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test stops at the unexpected"
)]

mod support;

mod activation_that_fails;
mod configuration_changed_by_the_host;
mod handler_that_is_not_send;
mod host_input;
mod host_output_with_back_pressure;
mod in_flight_out_of_order;
mod io_straight_into_guest_memory;
mod memory_outside_of_queues;
mod one_of_several_queues_reset;
mod page;
mod queue_t_unchanged;
mod rings_served_by_somebody_else;
mod several_workers;
mod state_of_its_own;
mod two_queues_together;
mod used_elements_as_a_group;
mod worker_in_the_vmms_loop;
