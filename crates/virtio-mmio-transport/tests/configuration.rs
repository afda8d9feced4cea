// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's configuration space, read and written by a driver, changed by the host.

mod support;

use bus::BusDevice;
use support::{CONFIG, Fixture, Probe};
use virtio_conformance::reg;
use virtio_device_core::DeviceState;
use virtio_mmio_transport::INT_CONFIG;

#[test]
fn configuration_space_takes_every_width_inside_its_bounds() {
    let mut fixture = Fixture::new();
    for width in 1..=8usize {
        for offset in 0..=8usize {
            let mut data = vec![0xa5; width];
            fixture
                .transport
                .read(reg::CONFIG + offset as u64, &mut data)
                .unwrap();
            let inside = CONFIG.get(offset..offset + width);
            assert_eq!(
                data,
                inside.map_or_else(|| vec![0; width], <[u8]>::to_vec),
                "{offset} {width}"
            );
        }
    }
    let mut data = [0xa5; 8];
    for offset in [reg::CONFIG + 6, reg::CONFIG + (1 << 32), u64::MAX] {
        fixture.transport.read(offset, &mut data).unwrap();
        assert_eq!(data, [0; 8]);
        fixture.transport.write(offset, &data).unwrap();
    }
}

#[test]
fn configuration_space_is_written_after_agreement_only() {
    let mut fixture = Fixture::new();
    fixture.set(reg::STATUS, 3);
    fixture.transport.write(reg::CONFIG, &[9]).unwrap();
    assert_eq!(fixture.get(reg::CONFIG), u32::from_le_bytes([1, 2, 3, 4]));
    fixture.negotiate();
    fixture.transport.write(reg::CONFIG + 1, &[7, 8]).unwrap();
    assert_eq!(fixture.get(reg::CONFIG), u32::from_le_bytes([1, 7, 8, 4]));
    fixture
        .transport
        .write(reg::CONFIG + 4, &[7, 8, 9])
        .unwrap();
    assert_eq!(
        fixture.get(reg::CONFIG + 2),
        u32::from_le_bytes([8, 4, 5, 6])
    );
}

#[test]
fn fields_that_change_while_they_are_read_are_read_again() {
    let mut fixture = Fixture::live();
    // As section 2.5.1 tells a driver to do it, with a change in every possible place.
    let read = |fixture: &mut Fixture, change_before: u32| {
        let mut step = 0;
        loop {
            let mut turn = |fixture: &mut Fixture| {
                if step == change_before {
                    fixture.transport.update_config(|device| {
                        device.config.iter_mut().for_each(|byte| *byte += 10);
                    });
                }
                step += 1;
            };
            turn(fixture);
            let before = fixture.get(reg::CONFIG_GENERATION);
            turn(fixture);
            let mut fields = [0; 6];
            fixture
                .transport
                .read(reg::CONFIG, &mut fields[..4])
                .unwrap();
            turn(fixture);
            fixture
                .transport
                .read(reg::CONFIG + 4, &mut fields[4..])
                .unwrap();
            turn(fixture);
            if fixture.get(reg::CONFIG_GENERATION) == before {
                return fields;
            }
        }
    };
    for change_before in 0..4 {
        let fields = read(&mut fixture, change_before);
        assert!(
            fields.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{fields:?}"
        );
        assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_CONFIG);
        fixture.set(reg::INTERRUPT_ACK, INT_CONFIG);
    }
}

#[test]
fn the_configuration_changes_without_an_interrupt_before_the_driver_is_ready() {
    let mut fixture = Fixture::new();
    let generation = fixture.get(reg::CONFIG_GENERATION);
    fixture
        .transport
        .update_config(|device| device.config[0] = 9);
    assert_ne!(fixture.get(reg::CONFIG_GENERATION), generation);
    assert_eq!(
        (fixture.get(reg::INTERRUPT_STATUS), fixture.raised()),
        (0, 0)
    );
    // Nor does a reset set it back, nor giving up hide a change.
    fixture.negotiate();
    fixture.set(reg::STATUS, 15);
    fixture.set(reg::STATUS, 15 | 128);
    let generation = fixture.get(reg::CONFIG_GENERATION);
    fixture
        .transport
        .update_config(|device| device.config[0] = 8);
    let changed = fixture.get(reg::CONFIG_GENERATION);
    assert_ne!(changed, generation);
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.get(reg::CONFIG_GENERATION), changed);
    assert_eq!(
        (fixture.get(reg::INTERRUPT_STATUS), fixture.raised()),
        (0, 0)
    );
}

#[test]
fn a_change_while_a_state_is_put_back_changes_the_generation() {
    let mut here = Fixture::live();
    here.transport.pause().unwrap();
    let state = here.transport.save().unwrap();
    let mut there = Fixture::in_memory(Probe::default(), here.memory.clone());
    let notifier = there.notifier();
    let change = move || notifier.update(|| ());
    *there.probe.restoring.lock().unwrap() = Some(Box::new(change));
    there.transport.restore(&state).unwrap();
    assert_eq!(there.get(reg::INTERRUPT_STATUS) & INT_CONFIG, INT_CONFIG);
    // The driver may have read half of the fields before it was saved.
    assert_ne!(there.get(reg::CONFIG_GENERATION), state.config_generation);
}

#[test]
fn a_state_that_the_device_refuses_leaves_the_generation_alone() {
    let mut here = Fixture::live();
    here.transport.update_config(|_| ());
    here.transport.pause().unwrap();
    let mut state = here.transport.save().unwrap();
    state.device = DeviceState::new(2, Vec::new()).unwrap();
    let mut there = Fixture::in_memory(Probe::default(), here.memory.clone());
    there.transport.restore(&state).unwrap_err();
    assert_eq!(there.get(reg::CONFIG_GENERATION), 0);
}
