// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two vCPUs read from a device that is unplugged, moved and plugged in again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bus::{AccessError, BusDevice, MmioBus, Region, Width};

/// Counts how often it was read.
#[derive(Default)]
struct Counter {
    reads: u32,
}

impl BusDevice for Counter {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if offset != 0 {
            return Err(AccessError::Offset);
        }
        self.reads = self.reads.wrapping_add(1);
        data.copy_from_slice(&self.reads.to_le_bytes());
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const BASE: u64 = 0xd000_0000;
    let bus = MmioBus::new();
    let counter = Arc::new(Mutex::new(Counter::default()));
    let region = || Region::new(BASE, 4).named("counter").widths(&[Width::U32]);
    let id = bus.insert_region(counter.clone(), region())?;
    print!("{bus}");

    let running = AtomicBool::new(true);
    let (answered, unclaimed) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut view = bus.view();
                while running.load(Ordering::Relaxed) {
                    let mut data = [0; 4];
                    let outcome = match view.read(BASE, &mut data) {
                        Ok(()) => &answered,
                        Err(_) => &unclaimed,
                    };
                    outcome.fetch_add(1, Ordering::Relaxed);
                }
            });
        }

        let pause = || thread::sleep(Duration::from_millis(20));
        let change = || -> Result<(), Box<dyn std::error::Error>> {
            pause();
            bus.remove(id)?;
            // Nobody is inside, and nobody will be.
            let reads = || counter.lock().map(|counter| counter.reads);
            let before = reads().map_err(|_| "the counter panicked")?;
            pause();
            assert_eq!(reads().map_err(|_| "the counter panicked")?, before);
            println!("unplugged after {before} reads");

            let id = bus.insert_region(counter.clone(), region())?;
            pause();
            bus.relocate(id, BASE + 0x1000)?;
            print!("{bus}");
            pause();
            Ok(())
        };
        let changed = change();
        running.store(false, Ordering::Relaxed);
        changed
    })?;
    println!("{answered:?} reads were answered, {unclaimed:?} found no device");
    Ok(())
}
