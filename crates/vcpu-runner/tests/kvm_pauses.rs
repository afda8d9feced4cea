// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Very many pauses, on real KVM. By itself in a file, so that no other test runs beside it.
//!
//! Each guest gets 10,000 pause/resume pairs, or as many as fit into 20 seconds when the machine
//! is busy with other things. `PAUSES` sets a number that is carried out whatever it takes.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Guest, Nothing, SOON, rounds, signal, wait_until};
use vcpu_runner::{ExitCounters, ExitKind, Outcome, State, VcpuRunner};

/// How long a pause may take, not counting how long its threads wait for a processor.
///
/// An outlier is no fault: the machine may itself be virtual and get no processor for a while, which
/// nothing here shows.
const LIMIT: Duration = Duration::from_secs(1);
/// How long all but two in a hundred may take.
const USUAL: Duration = Duration::from_millis(10);

/// How long these threads have been ready to run without a processor to run on.
fn queued(threads: &[libc::pid_t]) -> Duration {
    threads
        .iter()
        .filter_map(|thread| fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok())
        .filter_map(|stat| stat.split_whitespace().nth(1)?.parse().ok())
        .map(Duration::from_nanos)
        .sum()
}

#[test]
fn ten_thousand_pauses() {
    let Some(mut kvm) = common::kvm() else { return };
    let asked_for: Option<u32> = std::env::var("PAUSES").ok().map(|n| n.parse().unwrap());
    let (most, budget) = match asked_for {
        Some(pairs) => {
            kvm.lift_limit();
            (pairs, Duration::MAX)
        }
        None => (10_000, Duration::from_secs(20)),
    };
    for guest in [Guest::Spins, Guest::Floods, Guest::Halts] {
        let machine = guest.machine(&kvm);
        let counters = Arc::new(ExitCounters::default());
        let mut handle = VcpuRunner::new(machine.vcpu(0), Nothing)
            .with_observer(Arc::clone(&counters))
            .spawn("pauses")
            .unwrap();
        let (mut slowest, mut times) = (Duration::ZERO, Vec::new());
        handle.pause(SOON).unwrap();
        let vcpu = handle.with_vcpu(SOON, |_| signal::thread_id()).unwrap();
        handle.resume().unwrap();
        let threads = [signal::thread_id(), vcpu];
        let started = Instant::now();
        let mut pairs = 0;
        for pair in 0..most {
            if started.elapsed() > budget {
                break;
            }
            pairs += 1;
            // Most pauses are for a vCPU that runs, and find it at every point of its way in; the
            // rest comes while it is still parked.
            if pair % 8 != 0 {
                while handle.control().state() != State::Running {
                    thread::yield_now();
                }
                for _ in 0..(pair % 64) * 32 {
                    std::hint::spin_loop();
                }
            }
            let queued_before = queued(&threads);
            let asked = Instant::now();
            handle.pause(SOON).unwrap();
            let mut took = asked.elapsed();
            slowest = slowest.max(took);
            if took > USUAL {
                took = took.saturating_sub(queued(&threads) - queued_before);
            }
            assert!(took <= LIMIT, "{guest:?}: a pause took {took:?}");
            times.push(took);
            handle.resume().unwrap();
        }
        times.sort();
        let (median, usual) = (times[times.len() / 2], times[times.len() * 98 / 100]);
        println!(
            "{guest:?}: {pairs} pauses, median {median:?}, 98 of 100 within {usual:?}, \
             slowest {slowest:?}"
        );
        assert!(usual <= USUAL, "{guest:?}: {usual:?}");
        assert!(pairs >= most.min(500), "only {pairs} pairs in {budget:?}");
        let interrupted = counters.get(ExitKind::Interrupted);
        println!("{guest:?}: {interrupted} interruptions");
        assert!(
            interrupted > u64::from(pairs) / 2,
            "the vCPU was in the guest"
        );
        assert!(
            interrupted <= u64::from(pairs) * 2,
            "at most one spurious exit each"
        );
        // The last resume is not lost.
        if guest != Guest::Halts {
            let before = rounds(&machine);
            wait_until("the guest goes on", || rounds(&machine) != before);
        }
        handle.stop();
        assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    }
}
