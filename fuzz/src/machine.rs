// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device behind its registers, on a worker without a thread.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bus::BusDevice as _;
use virtio_conformance::{CountingLine, MmioPort, Port as _, reg};
use virtio_device_core::{Features, LoopHandle, StepLoop, transport::QueueSetup};
use virtio_mmio_transport::MmioTransport;
use virtio_rng_device::{EntropyDevice, SourcePolicy};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub type Memory = Arc<GuestMemoryMmap<()>>;
pub type Transport<S> = MmioTransport<Memory, EntropyDevice<S, LoopHandle>>;

/// Two regions side by side, then a hole, then a third: small, because all of it is compared often.
pub const REGIONS: [Range<u64>; 3] = [0..0x3000, 0x3000..0x6000, 0x7000..0x7800];
/// Where all of memory ends.
pub const END: usize = 0x7800;

/// What both the source and its model give next.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    next: u8,
    /// Each byte is this many times the last one, and 3.
    factor: u8,
    /// Most that one read gives.
    limit: usize,
    /// Reads until the source ends.
    left: u32,
}

impl Stream {
    pub fn new(limit: usize, left: u32) -> Self {
        Self {
            next: 0,
            factor: 5,
            limit,
            left,
        }
    }

    /// Endless, and the same byte over and over.
    pub fn constant() -> Self {
        Self {
            next: 3,
            factor: 0,
            limit: usize::MAX,
            left: u32::MAX,
        }
    }

    /// Up to `len` bytes; none at the end.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        if self.left == 0 {
            return Vec::new();
        }
        self.left -= 1;
        let count = len.min(self.limit);
        let step = |_| {
            self.next = self.next.wrapping_mul(self.factor).wrapping_add(3);
            self.next
        };
        (0..count).map(step).collect()
    }
}

pub struct Source(Stream);

impl Read for Source {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.take(data.len());
        data[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// The machine, with a source of bytes.
pub struct Machine<S: Read + Send + 'static = Source> {
    pub memory: Memory,
    pub port: MmioPort<Transport<S>>,
    pub workers: StepLoop,
    pub line: CountingLine,
}

/// Memory as it is after power-on.
pub fn new_memory() -> Memory {
    let ranges = REGIONS.map(|it| (GuestAddress(it.start), (it.end - it.start) as usize));
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

impl Machine {
    /// A machine with memory of its own.
    pub fn new(stream: Stream, prompt: bool) -> Self {
        Self::with_memory(new_memory(), stream, prompt)
    }

    pub fn with_memory(memory: Memory, stream: Stream, prompt: bool) -> Self {
        Self::with_source(memory, Source(stream), prompt)
    }
}

impl<S: Read + Send + 'static> Machine<S> {
    pub fn with_source(memory: Memory, source: S, prompt: bool) -> Self {
        let (workers, line) = (StepLoop::new().unwrap(), CountingLine::default());
        // No clock decides what comes next.
        let policy = SourcePolicy::default().with_waits(Duration::ZERO, Duration::ZERO);
        let mut device = EntropyDevice::new(source, workers.handle()).with_source_policy(policy);
        if prompt {
            device = device.with_prompt_source();
        }
        let transport = MmioTransport::new(device, memory.clone(), line.clone()).unwrap();
        Self {
            memory,
            port: MmioPort::new(
                transport,
                |it, offset, data| it.read(offset, data).unwrap(),
                |it, offset, data| it.write(offset, data).unwrap(),
            ),
            workers,
            line,
        }
    }

    /// Resets the device and agrees on `features`.
    pub fn negotiate(&mut self, features: u64) {
        let words = [features as u32, (features >> 32) as u32, 0, 0];
        assert!(self.port.negotiate(Features::from_words(words)));
    }

    /// Starts the device, which must take `setup`.
    pub fn start(&mut self, features: u64, setup: &QueueSetup) {
        self.negotiate(features);
        assert!(self.port.enable(0, setup), "{setup:x?}");
        assert_eq!(self.port.set_driver_ok(), 15);
    }

    /// All of memory; zeros where there is none.
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; END];
        for range in REGIONS {
            let part = &mut image[range.start as usize..range.end as usize];
            let base = GuestAddress(range.start);
            self.memory.read_slice(part, base).unwrap();
        }
        image
    }

    /// Whatever has happened: after a reset the device serves a request, if its source can.
    pub fn reset_and_serve(&mut self, stream: &mut Stream) {
        const SETUP: QueueSetup = QueueSetup::new(4)
            .with_desc_table(0x100)
            .with_avail_ring(0x200)
            .with_used_ring(0x300);
        let write = |addr, bytes: &[u8]| self.memory.write_slice(bytes, GuestAddress(addr));
        write(0, &[0xc5; 0x1000]).unwrap();
        write(0x200, &[0; 0x200]).unwrap();
        // One buffer of 3 bytes for the device to write.
        write(0x100, &0x800_u64.to_le_bytes()).unwrap();
        write(0x108, &[3, 0, 0, 0, 2, 0, 0, 0]).unwrap();
        self.start(0, &SETUP);
        self.memory
            .write_slice(&[0, 0, 1, 0], GuestAddress(0x200))
            .unwrap();
        let raised = self.line.raised();
        self.port.notify(0);
        while self.workers.step() {}
        let given = stream.take(3);
        let image = self.image();
        if given.is_empty() {
            assert_eq!(self.port.get(reg::STATUS), 15 | 64);
            assert_eq!(image[0x302], 0);
            return;
        }
        assert_eq!(self.port.get(reg::STATUS), 15);
        assert_eq!(self.line.raised(), raised + 1);
        assert_eq!(self.port.get(reg::INTERRUPT_STATUS), 1);
        assert_eq!(image[0x800..][..given.len()], given);
        assert_eq!(image[0x800 + given.len()], 0xc5);
        let len = given.len() as u8;
        assert_eq!(image[0x302..0x30c], [1, 0, 0, 0, 0, 0, len, 0, 0, 0]);
    }
}
