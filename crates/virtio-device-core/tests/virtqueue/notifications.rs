// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who is woken by whom.

use super::*;

#[test]
fn the_driver_can_switch_interrupts_off_by_flag() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    for (flags, wanted) in [(0, true), (1, false), (0xfffe, true), (3, false)] {
        pair.driver.set_avail_flags(flags);
        pair.driver.offer_writable(0, BUFFER, 1);
        let head = pair.take().unwrap().unwrap();
        pair.device.complete(&memory, head, 1).unwrap();
        assert_eq!(pair.device.needs_interrupt(&memory), Ok(wanted), "{flags}");
        // It was asked, and nothing has come back since.
        assert_eq!(pair.device.needs_interrupt(&memory), Ok(false));
    }
}

#[test]
fn event_index_decides_on_the_whole_batch() {
    let memory = memory();
    // (used index the driver waits for, number completed, interrupt wanted)
    for (event, count, wanted) in [
        (0, 1, true),
        (1, 1, false),
        (1, 2, true),
        (2, 4, true),
        (9, 4, false),
    ] {
        let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_EVENT_IDX]));
        pair.driver.set_used_event(event);
        for index in 0..count {
            pair.driver.offer_writable(index, BUFFER, 1);
            let head = pair.take().unwrap().unwrap();
            pair.device.complete(&memory, head, 1).unwrap();
        }
        assert_eq!(
            pair.device.needs_interrupt(&memory),
            Ok(wanted),
            "{event} {count}"
        );
    }
}

#[test]
fn an_event_that_was_passed_before_the_batch_is_over() {
    let memory = memory();
    // (used index the driver waits for, interrupt wanted for the third request alone)
    for (event, wanted) in [(0, false), (1, false), (2, true), (3, false)] {
        let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_EVENT_IDX]));
        for index in 0..3 {
            pair.driver.set_used_event(event);
            pair.driver.offer_writable(index, BUFFER, 1);
            let head = pair.take().unwrap().unwrap();
            pair.device.complete(&memory, head, 1).unwrap();
            if index == 1 {
                pair.device.needs_interrupt(&memory).unwrap();
            }
        }
        let needs = pair.device.needs_interrupt(&memory);
        assert_eq!(needs, Ok(wanted), "{event}");
    }
}

#[test]
fn the_device_can_switch_notifications_off() {
    let memory = memory();
    for (features, off) in [
        (Features::NONE, 1),
        (Features::of(&[VIRTIO_F_EVENT_IDX]), 0),
    ] {
        let mut pair = Pair::new(&memory, features);
        pair.device.disable_notification(&memory).unwrap();
        assert_eq!(pair.driver.used_flags(), off);
        pair.device.enable_notification(&memory).unwrap();
        assert_eq!(pair.driver.used_flags(), 0);
    }
}

#[test]
fn enabling_notifications_sees_what_came_in_between() {
    let memory = memory();
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        let mut pair = Pair::new(&memory, features);
        pair.device.disable_notification(&memory).unwrap();
        assert_eq!(pair.device.enable_notification(&memory), Ok(false));
        pair.device.disable_notification(&memory).unwrap();
        pair.driver.offer_writable(0, BUFFER, 1);
        assert_eq!(pair.device.enable_notification(&memory), Ok(true));
        let _head = pair.take().unwrap().unwrap();
        assert_eq!(pair.device.enable_notification(&memory), Ok(false));
        if features != Features::NONE {
            assert_eq!(pair.driver.avail_event(), 1);
        }
    }
}
