// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::announce::{Exits, Phase};
use super::guest::Device;
use crate::stdio::count;

/// What it took both devices to deliver the same number of bytes.
#[derive(Debug)]
pub(crate) struct Comparison {
    bytes: u64,
    legacy: Phase,
    virtio: Phase,
}

impl Comparison {
    /// Compares a run's phases; `None` unless there is exactly one for each device.
    pub(crate) fn new(bytes: u64, phases: Vec<Phase>) -> Option<Self> {
        let (mut legacy, mut virtio) = (None, None);
        for phase in phases {
            let slot = match phase.device {
                Device::Legacy => &mut legacy,
                Device::Virtio => &mut virtio,
            };
            if slot.replace(phase).is_some() {
                return None;
            }
        }
        Some(Self {
            bytes,
            legacy: legacy?,
            virtio: virtio?,
        })
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The register's phase, then the queue's.
    pub(crate) const fn phases(&self) -> [&Phase; 2] {
        [&self.legacy, &self.virtio]
    }

    /// The faster phase of each device, of this and another run of the same size.
    pub(crate) fn fastest(self, other: Self) -> Self {
        let faster = |a: Phase, b: Phase| if b.elapsed < a.elapsed { b } else { a };
        Self {
            bytes: self.bytes,
            legacy: faster(self.legacy, other.legacy),
            virtio: faster(self.virtio, other.virtio),
        }
    }

    /// How many times longer the register takes.
    fn time_ratio(&self) -> f64 {
        let seconds = |phase: &Phase| phase.elapsed.max(Duration::from_nanos(1)).as_secs_f64();
        seconds(&self.legacy) / seconds(&self.virtio)
    }

    /// Which device is faster.
    fn faster(&self) -> Faster {
        let ratio = self.time_ratio();
        let times = |ratio: f64| match ratio {
            // Three digits are more than the measurement is worth already.
            r if r < 100.0 => format!("{r:.1}"),
            r => format!("{r:.0}"),
        };
        match (times(ratio), times(ratio.recip())) {
            (times, _) if ratio > 1.0 && times != "1.0" => Faster::Queue(times),
            (_, times) if ratio < 1.0 && times != "1.0" => Faster::Register(times),
            _ => Faster::Neither,
        }
    }
}

/// Which device is faster, and by what factor, unless they are too close to tell.
enum Faster {
    Queue(String),
    Register(String),
    Neither,
}

#[derive(Serialize)]
struct Json {
    results: Vec<JsonResult>,
    time_ratio: BTreeMap<u64, f64>,
}

#[derive(Serialize)]
struct JsonResult {
    device: String,
    bytes: u64,
    requests: u32,
    exits: Exits,
    elapsed_ns: u128,
}

/// The results as JSON, on one line.
///
/// # Errors
///
/// If `serde_json` fails, for which these values give no reason.
pub(crate) fn json(comparisons: &[Comparison]) -> serde_json::Result<String> {
    let result = |bytes, phase: &Phase| JsonResult {
        device: phase.device.to_string(),
        bytes,
        requests: phase.requests,
        exits: phase.exits,
        elapsed_ns: phase.elapsed.as_nanos(),
    };
    let both = |c: &Comparison| [result(c.bytes, &c.legacy), result(c.bytes, &c.virtio)];
    let json = Json {
        results: comparisons.iter().flat_map(both).collect(),
        time_ratio: comparisons
            .iter()
            .map(|c| (c.bytes, c.time_ratio()))
            .collect(),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

/// The head of a table of at most 100 columns.
pub(crate) fn head() -> String {
    format!(
        "{:15}{:>9}{:>9}{:>8}{:>10}{:>11}{:>6}{:>7}{:>4}{:>6}{:>9}{:>6}\n",
        "device",
        "bytes",
        "requests",
        "exits",
        "mmio_read",
        "mmio_write",
        "io_in",
        "io_out",
        "hlt",
        "other",
        "time",
        "MB/s",
    )
}

/// The rows of one size.
pub(crate) fn rows(comparison: &Comparison) -> String {
    let mut rows = String::new();
    for phase in [&comparison.legacy, &comparison.virtio] {
        row(&mut rows, comparison.bytes, phase);
    }
    let verdict = match comparison.faster() {
        Faster::Queue(times) => format!("the register takes {times} times as long as the queue"),
        Faster::Register(times) => format!("the queue takes {times} times as long as the register"),
        Faster::Neither => "the register takes as long as the queue".to_owned(),
    };
    // Formatting into a string does not fail.
    let _ = writeln!(rows, "{:17}{verdict}", "");
    rows
}

/// A sentence that sums up the table.
pub(crate) fn summary(comparisons: &[Comparison]) -> String {
    let largest = comparisons.iter().max_by_key(|comparison| comparison.bytes);
    largest
        .map(|largest| format!("\n{}", sentence(largest)))
        .unwrap_or_default()
}

fn row(table: &mut String, bytes: u64, phase: &Phase) {
    let Phase {
        device,
        requests,
        exits,
        elapsed,
    } = phase;
    let Exits {
        total,
        mmio_read,
        mmio_write,
        io_in,
        io_out,
        hlt,
        other,
    } = exits;
    let (time, rate) = (time(*elapsed), rate(bytes, *elapsed));
    // Formatting into a string does not fail.
    let _ = writeln!(
        table,
        "{device:15}{bytes:>9}{requests:>9}{total:>8}{mmio_read:>10}{mmio_write:>11}{io_in:>6}\
         {io_out:>7}{hlt:>4}{other:>6}{time:>9}{rate:>6}",
    );
}

fn sentence(comparison: &Comparison) -> String {
    let Comparison {
        bytes,
        legacy,
        virtio,
    } = comparison;
    let (register, queue) = (count(legacy.exits.total, "exit"), virtio.exits.total);
    let verdict = match comparison.faster() {
        Faster::Queue(times) => format!("the queue is {times} times as fast"),
        Faster::Register(times) => format!("the register is {times} times as fast"),
        Faster::Neither => "both are equally fast".to_owned(),
    };
    format!("For {bytes} bytes the register cost {register}, the queue {queue}; {verdict}.\n")
}

/// A time with three digits that matter, in at most 8 columns.
fn time(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    match seconds {
        // What would round to 1000 is the next unit's.
        s if s < 0.999_95e-3 => format!("{:.1} us", s * 1e6),
        s if s < 0.999_95 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// Megabytes (10^6 bytes) in a second, in at most 5 columns.
fn rate(bytes: u64, elapsed: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "at most 2^24 bytes")]
    let rate = bytes as f64 / elapsed.max(Duration::from_nanos(1)).as_secs_f64() / 1e6;
    if rate < 99.995 {
        format!("{rate:.2}")
    } else {
        format!("{rate:.0}")
    }
}
