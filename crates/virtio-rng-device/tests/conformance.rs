// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite: on a thread of the device's own, and step by step on the test's.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::io::{self, Read};

use bus::BusDevice;
use virtio_conformance::{HeapGrowth, Memory, MmioPort, Parts, Request, Suite};
use virtio_device_core::{Executor, WorkerThread};
use virtio_mmio_transport::MmioTransport;
use virtio_rng_device::EntropyDevice;

const SECRET: &[u8] = b"what only the host may know";

type Port<E> = MmioPort<MmioTransport<Memory, EntropyDevice<Source, E>>>;

/// Gives 48 bytes at most, and spoils the rest of the buffer.
struct Source;

impl Read for Source {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let secret = SECRET.iter().cycle();
        data.iter_mut()
            .zip(secret)
            .for_each(|(to, from)| *to = *from);
        let count = data.len().min(48);
        data.iter_mut().take(count).for_each(|byte| *byte = 0x5a);
        Ok(count)
    }
}

fn rng<E: Executor + 'static>(executor: E, parts: Parts) -> Port<E> {
    let device = EntropyDevice::new(Source, executor);
    let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
    .showing(|transport| {
        let state = transport.save();
        format!("{transport:?} {transport:#?} {state:?}")
    })
}

fn suite() -> Suite {
    let request = Request::new(|bytes| bytes == [0x5a; 48]).writable(64);
    Suite::new(request.at_most(64 << 10)).with_secret(SECRET)
}

/// Sees the thread that it is called on.
fn heap(work: &mut dyn FnMut()) -> HeapGrowth {
    let measured = allocation_counter::measure(work);
    HeapGrowth {
        peak: measured.bytes_max,
        left: measured.bytes_current,
    }
}

#[test]
#[cfg_attr(miri, ignore = "it takes too long")]
fn virtio_rng_conforms() {
    let suite = suite().with_heap(heap);
    suite.check(|parts| rng(parts.executor.clone(), parts));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn virtio_rng_conforms_on_a_thread_of_its_own() {
    suite().check(|parts| rng(WorkerThread::named("rng").unwrap(), parts));
}
