// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 8: the configuration is changed by the host before activation, while live, while paused:
//! generation, interrupt, no torn reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use virtio_conformance::reg;
use virtio_device_core::{Activation, ConfigNotifier, DeviceFault, VirtioDevice, WorkerThread};

use crate::several_workers::Letters;
use crate::support::{Guest, Memory, QUEUE_SIZE, Shape, ordeal, thread};

/// Columns and rows, which are always equal.
type Size = Arc<Mutex<[u8; 2]>>;

struct Terminal {
    size: Size,
    config: Arc<Mutex<Option<ConfigNotifier>>>,
    executor: WorkerThread,
}

impl VirtioDevice<Memory> for Terminal {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config_size(&self) -> u32 {
        2
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let size = *self.size.lock().unwrap();
        let fields = size.iter().skip(offset as usize);
        data.iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = *from);
    }

    fn connect(&mut self, config: ConfigNotifier) {
        *self.config.lock().unwrap() = Some(config);
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.serve(&mut self.executor, |memory| Letters::new(memory, b'c'))
    }
}

#[derive(Default)]
struct ConfigurationChangedByTheHost {
    size: Size,
    config: Arc<Mutex<Option<ConfigNotifier>>>,
}

impl ConfigurationChangedByTheHost {
    fn resize(&self, to: u8) {
        let config = self.config.lock().unwrap().clone().unwrap();
        config.update(|| *self.size.lock().unwrap() = [to; 2]);
    }
}

impl Shape for ConfigurationChangedByTheHost {
    type Device = Terminal;

    fn device(&mut self) -> Terminal {
        Terminal {
            size: self.size.clone(),
            config: self.config.clone(),
            executor: thread(),
        }
    }

    fn begin(&mut self, guest: &mut Guest<Terminal>) {
        guest.offer_writable(0, 0, 1);
    }

    fn finish(&mut self, guest: &mut Guest<Terminal>) {
        assert_eq!(guest.used(0, 1), [(0, 1)]);
    }
}

/// Reads both fields as a driver does: again, if the generation has changed meanwhile.
fn read(guest: &mut Guest<Terminal>) -> [u8; 2] {
    use bus::BusDevice;
    loop {
        let before = guest.get(reg::CONFIG_GENERATION);
        let fields = [0x100, 0x101].map(|offset| {
            let mut byte = [0];
            guest.transport.read(offset, &mut byte).unwrap();
            byte[0]
        });
        if guest.get(reg::CONFIG_GENERATION) == before {
            return fields;
        }
    }
}

#[test]
fn configuration_changed_by_the_host() {
    ordeal(ConfigurationChangedByTheHost::default());
}

#[test]
fn a_change_is_seen_in_every_state_and_interrupts_a_live_driver_alone() {
    let mut shape = ConfigurationChangedByTheHost::default();
    let mut guest = Guest::new(shape.device());
    let mut generation = guest.get(reg::CONFIG_GENERATION);
    for (round, live) in [false, true, true, false].into_iter().enumerate() {
        match round {
            1 => guest.start(),
            2 => guest.transport.pause().unwrap(),
            3 => {
                guest.transport.resume();
                guest.reset();
            }
            _ => {}
        }
        let before = guest.interrupts.load(Ordering::SeqCst);
        shape.resize(round as u8 + 1);
        assert_eq!(read(&mut guest), [round as u8 + 1; 2]);
        assert_ne!(
            guest.get(reg::CONFIG_GENERATION),
            generation,
            "round {round}"
        );
        generation = guest.get(reg::CONFIG_GENERATION);
        let causes = guest.get(reg::INTERRUPT_STATUS);
        assert_eq!(causes, if live { 2 } else { 0 }, "round {round}");
        guest.set(reg::INTERRUPT_ACK, causes);
        let raised = guest.interrupts.load(Ordering::SeqCst) - before;
        assert_eq!(raised, u32::from(live), "round {round}");
    }
}

#[test]
fn a_driver_that_looks_at_the_generation_sees_no_torn_configuration() {
    let mut shape = ConfigurationChangedByTheHost::default();
    let mut guest = Guest::new(shape.device());
    guest.start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for to in (0..=255).cycle() {
                shape.resize(to);
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..2000 {
            let [columns, rows] = read(&mut guest);
            assert_eq!(columns, rows);
        }
        stop.store(true, Ordering::SeqCst);
    });
}
