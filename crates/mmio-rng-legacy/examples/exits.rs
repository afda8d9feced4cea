// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it costs a guest to fetch bytes from a register: `cargo run -p mmio-rng-legacy --example exits`

use std::fs::File;
use std::sync::{Arc, Mutex};

use bus::MmioBus;
use mmio_rng_legacy::{AccessCounters, REGION_SIZE, Rngboi1337};

const BASE: u64 = 0x8000_1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let counters = Arc::new(AccessCounters::default());
    let device = Rngboi1337::with_observer(File::open("/dev/urandom")?, counters.clone());
    let bus = MmioBus::new();
    bus.insert(Arc::new(Mutex::new(device)), BASE, REGION_SIZE)?;

    // What a vCPU's loop does at each exit of a guest that fills 64 bytes.
    let mut vcpu = bus.view();
    let mut buffer = [0; 64];
    for word in buffer.chunks_mut(4) {
        vcpu.read(BASE, word)?;
    }

    println!("{buffer:02x?}");
    println!("{} bytes, {} exits", counters.bytes(), counters.reads());
    Ok(())
}
