// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is reported of a machine: its maps before it runs, its statistics afterwards.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

use bus::{Address, Bus};
use serde::Serialize;
use vcpu_runner::{ExitCounters, ExitKind};

use super::Options;
use super::ending::Ending;
use super::machine::Machine;
use crate::arch::linux::{KVM_MMIO, KVM_PIO};
use crate::layout;

/// The maps of memory and ports, in the form of `/proc/iomem` and `/proc/ioports`.
pub(crate) fn map(machine: &Machine, options: &Options) -> String {
    let ram = layout::ram(options.memory).into_iter();
    let ram = ram.map(|(start, len)| (start, start + len - 1, "RAM".to_owned()));
    let memory = merged(&machine.mmio, KVM_MMIO, ram.collect(), 8);
    let ports = merged(&machine.pio, KVM_PIO, Vec::new(), 4);
    match ports.is_empty() {
        true => format!("memory\n{memory}"),
        false => format!("memory\n{memory}ports\n{ports}"),
    }
}

fn merged<K: Address>(
    bus: &Bus<K>,
    kvm: &[(u64, u64, &str)],
    mut all: Vec<(u64, u64, String)>,
    digits: usize,
) -> String {
    let kvm = kvm
        .iter()
        .map(|&(first, last, name)| (first, last, name.to_owned()));
    all.extend(kvm);
    all.extend(bus.regions().into_iter().map(|region| {
        let range = region.range;
        (
            range.first().into(),
            range.last().into(),
            region.name().to_owned(),
        )
    }));
    all.sort();
    let mut lines = String::new();
    for (first, last, name) in all {
        // Formatting into a string does not fail.
        let _ = writeln!(lines, "  {first:0digits$x}-{last:0digits$x} : {name}");
    }
    lines
}

#[derive(Serialize)]
struct Statistics<'a> {
    outcome: &'a str,
    status: u8,
    /// How often the guest has started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    reboots: Option<u64>,
    elapsed_ns: u128,
    /// Of each vCPU, the exits to user space of each kind that occurred.
    vcpus: Vec<BTreeMap<&'static str, u64>>,
    /// Of each device, its accesses: exits that reached it.
    devices: BTreeMap<String, Accesses>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtio_rng: Option<Served>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtio_net: Option<Lost>,
}

#[derive(Serialize)]
struct Accesses {
    reads: u64,
    writes: u64,
    refused: u64,
}

#[derive(Serialize)]
struct Served {
    requests: u64,
    bytes: u64,
}

/// Packets that the device has dropped.
#[derive(Serialize)]
struct Lost {
    dropped_received: u64,
    dropped_sent: u64,
}

/// The statistics, as one line of JSON.
pub(crate) fn json(
    machine: &Machine,
    ending: &Ending,
    elapsed: Duration,
) -> Result<String, Box<dyn Error>> {
    let mut devices = BTreeMap::new();
    accesses(&machine.mmio, &mut devices);
    accesses(&machine.pio, &mut devices);
    let statistics = Statistics {
        outcome: ending.name,
        status: ending.status,
        reboots: machine.reboots(),
        elapsed_ns: elapsed.as_nanos(),
        vcpus: machine.exits.iter().map(|exits| kinds(exits)).collect(),
        devices,
        virtio_rng: machine.rng.as_ref().map(|rng| Served {
            requests: rng.served(),
            bytes: rng.bytes(),
        }),
        virtio_net: machine.net.as_ref().map(|net| Lost {
            dropped_received: net.drops().received,
            dropped_sent: net.drops().sent,
        }),
    };
    Ok(serde_json::to_string(&statistics)? + "\n")
}

fn kinds(exits: &ExitCounters) -> BTreeMap<&'static str, u64> {
    let mut kinds: BTreeMap<_, _> = exits
        .iter()
        .filter(|&(kind, count)| count > 0 && kind != ExitKind::Interrupted)
        .map(|(kind, count)| (kind.name(), count))
        .collect();
    kinds.insert("total", exits.total());
    kinds
}

fn accesses<K: Address>(bus: &Bus<K>, devices: &mut BTreeMap<String, Accesses>) {
    for region in bus.regions() {
        let counts = region.counts();
        let accesses = Accesses {
            reads: counts.reads,
            writes: counts.writes,
            refused: counts.refused,
        };
        devices.insert(region.name().to_owned(), accesses);
    }
}
