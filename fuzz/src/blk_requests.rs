// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to a disk as a driver without any sense makes them, against a model of the disk and of
//! guest memory.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary::Arbitrary;
use bus::BusDevice as _;
use virtio_blk_device::{Backend, Block, BlockHandle, Buffers};
use virtio_conformance::{CountingLine, DriverQueue, reg};
use virtio_device_core::{LoopHandle, StepLoop};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory_disk::MemoryDisk;

type Memory = Arc<GuestMemoryMmap<()>>;

/// Two regions side by side: the queue is in the first, and buffers are behind it.
const END: u64 = 0x8000;
const RING: u64 = 0x1000;
const BUFFERS: u64 = 0x2000;
const SIZE: u16 = 16;
const SECTORS: usize = 12;
const SECTOR: u64 = 512;

#[derive(Arbitrary, Debug)]
pub struct Program {
    read_only: bool,
    features: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A request that makes sense as a rule.
    Ask(Ask),
    /// Any chain, whose first 16 bytes are a header as a rule.
    Chain(Header, Vec<Buffer>),
    /// What is written to a place in memory.
    Poke(u16, u8),
    /// What the driver writes to the configuration space, at an offset.
    Config(u8, u8),
    /// The disk has so many sectors from now on, and the driver is told.
    Resize(u8, bool),
}

#[derive(Arbitrary, Debug)]
struct Ask {
    header: Header,
    at: u16,
    sectors: u8,
    odd: u8,
    flags: u8,
    /// Whether the host fails at it.
    fails: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Header {
    kind: u8,
    sector: u8,
    /// Any sector now and then.
    wild: u64,
}

#[derive(Arbitrary, Debug)]
struct Buffer {
    at: u16,
    len: Length,
    write: bool,
}

#[derive(Arbitrary, Debug)]
enum Length {
    Short(u8),
    Sectors(u8),
    Any(u32),
}

impl Header {
    fn kind(self) -> u32 {
        match self.kind % 16 {
            it @ (0 | 1 | 4 | 8 | 11 | 13) => it.into(),
            2 | 3 => 0,
            5 | 6 => 1,
            7 => 11,
            9 => 13,
            _ => (self.wild >> 40) as u32,
        }
    }

    fn bytes(self) -> [u8; 16] {
        let sector = match self.sector {
            200.. => self.wild,
            it => u64::from(it) % (SECTORS as u64 + 2),
        };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.kind().to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }
}

/// A disk whose host fails when it is told to.
struct Moody {
    disk: MemoryDisk,
    read_only: bool,
    fails: AtomicBool,
}

impl Moody {
    fn mood(&self) -> io::Result<()> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}

impl Backend for Moody {
    fn capacity(&self) -> io::Result<u64> {
        self.disk.capacity()
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.mood()?;
        self.disk.read(offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        assert!(!self.read_only);
        self.mood()?;
        self.disk.write(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.mood()
    }

    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        assert!(!self.read_only && !range.is_empty());
        self.mood()?;
        self.disk.write_zeroes(range, unmap)
    }
}

/// A piece of a chain: address, length, whether the device may write it.
type Piece = (u64, u32, bool);

/// What has to come of a request.
struct Model {
    memory: Vec<u8>,
    disk: Vec<u8>,
    read_only: bool,
}

impl Model {
    /// Whether the bytes of a piece are in memory; one without any is nowhere, and that does no harm.
    fn there(piece: &Piece) -> bool {
        let end = piece.0.checked_add(piece.1.into());
        piece.1 == 0 || end.is_some_and(|end| end <= END)
    }

    /// The addresses of the bytes of one direction, in order.
    fn bytes(pieces: &[Piece], write: bool) -> Vec<usize> {
        let mine = pieces.iter().filter(|piece| piece.2 == write);
        mine.flat_map(|piece| piece.0 as usize..piece.0 as usize + piece.1 as usize)
            .collect()
    }

    /// Serves a request, and returns its used length.
    fn serve(&mut self, pieces: &[Piece], fails: bool) -> u32 {
        let mut writable = pieces.iter().filter(|piece| piece.2 && piece.1 != 0);
        let Some(last) = writable.next_back() else {
            return 0;
        };
        // A buffer that goes beyond the last address has no last byte.
        let status = last.0.checked_add(u64::from(last.1) - 1);
        let Some(status) = status.filter(|status| *status < END) else {
            return 0;
        };
        let all: u64 = pieces
            .iter()
            .filter(|it| it.2)
            .map(|it| u64::from(it.1))
            .sum();
        let (code, len) = match self.outcome(pieces, fails) {
            Ok(len) => (0, len as u64),
            Err(code) => (code, 0),
        };
        self.memory[status as usize] = code;
        (len + u64::from(len + 1 == all)) as u32
    }

    /// The number of data bytes written, or the status of a failure.
    fn outcome(&mut self, pieces: &[Piece], fails: bool) -> Result<usize, u8> {
        let ordered = pieces.windows(2).all(|pair| !pair[0].2 || pair[1].2);
        if !ordered || !pieces.iter().all(Self::there) {
            return Err(1);
        }
        let readable = Self::bytes(pieces, false);
        let writable = Self::bytes(pieces, true);
        let room = writable.len() - 1;
        let input: Vec<u8> = readable.iter().map(|&at| self.memory[at]).collect();
        let (header, data) = input.split_at_checked(16).ok_or(1)?;
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let capacity = self.disk.len() / 512 * 512;
        let range = |sector: u64, len: usize| {
            let start = sector.checked_mul(SECTOR).ok_or(1)?;
            let end = start.checked_add(len as u64).ok_or(1)?;
            if len % 512 != 0 || end > capacity as u64 {
                return Err(1);
            }
            Ok(start as usize..end as usize)
        };
        let host = |needed: bool| if fails && needed { Err(1) } else { Ok(()) };
        match kind {
            0 => {
                let range = range(sector, room)?;
                host(true)?;
                // One byte after the other: pieces may lie on top of each other.
                for (at, byte) in writable.iter().zip(&self.disk[range]) {
                    self.memory[*at] = *byte;
                }
                Ok(room)
            }
            1 if self.read_only => Err(1),
            1 => {
                let range = range(sector, data.len())?;
                host(true)?;
                self.disk[range].copy_from_slice(data);
                Ok(0)
            }
            4 => host(!self.read_only).map(|()| 0),
            8 if room < 20 => Err(1),
            8 => {
                for (at, byte) in writable
                    .iter()
                    .zip(*b"fuzz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
                {
                    self.memory[*at] = byte;
                }
                Ok(20)
            }
            11 | 13 => {
                if self.read_only || data.len() != 16 {
                    return Err(1);
                }
                let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
                let (count, flags) = (word(8), word(12));
                let (known, most) = if kind == 11 {
                    (0, 2 << 20)
                } else {
                    (1, 64 << 10)
                };
                if flags & !known != 0 {
                    return Err(2);
                }
                if count > most {
                    return Err(1);
                }
                let sector = u64::from_le_bytes(data[..8].try_into().unwrap());
                let range = range(sector, count as usize * 512)?;
                host(!range.is_empty())?;
                self.disk[range].fill(0);
                Ok(0)
            }
            _ => Err(2),
        }
    }
}

struct Rig<'m> {
    memory: &'m Memory,
    /// Without the conformance suite's port in between, which tries every width of every register.
    transport: MmioTransport<Memory, Block<LoopHandle>>,
    workers: StepLoop,
    queue: DriverQueue<'m, GuestMemoryMmap<()>>,
    disk: Arc<Moody>,
    handle: BlockHandle,
    model: Model,
}

impl Rig<'_> {
    fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    /// Starts the driver, with one queue.
    fn start(&mut self, features: u32) {
        for status in [0, 1, 3] {
            self.set(reg::STATUS, status);
        }
        for (word, bits) in [(0, features), (1, 1)] {
            self.set(reg::DRIVER_FEATURES_SEL, word);
            self.set(reg::DRIVER_FEATURES, bits);
        }
        self.set(reg::STATUS, 11);
        let setup = *self.queue.setup();
        self.set(reg::QUEUE_SIZE, setup.size);
        let parts = [setup.desc_table, setup.avail_ring, setup.used_ring];
        for (offset, address) in (reg::QUEUE_DESC_LOW..).step_by(16).zip(parts) {
            self.set(offset, address as u32);
        }
        self.set(reg::QUEUE_READY, 1);
        assert_eq!(self.get(reg::QUEUE_READY), 1);
        self.set(reg::STATUS, 15);
        assert_eq!(self.get(reg::STATUS), 15);
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        self.model.memory[addr as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn chain(&mut self, pieces: &[Piece], fails: bool) {
        self.disk.fails.store(fails, Ordering::SeqCst);
        for (index, &(addr, len, write)) in (0..).zip(pieces) {
            let more = u16::from(usize::from(index) + 1 < pieces.len());
            let flags = more | if write { 2 } else { 0 };
            self.queue.descriptor(index, addr, len, flags, index + 1);
        }
        self.queue.offer(0);
        self.set(reg::QUEUE_NOTIFY, 0);
        let _ = (0..4).all(|_| self.workers.step());
        let expected = self.model.serve(pieces, fails);
        assert_eq!(self.queue.take_used(), [(0, expected)], "{pieces:x?}");
        assert_eq!(self.get(reg::STATUS), 15);
        let mut memory = vec![0; (END - BUFFERS) as usize];
        self.memory
            .read_slice(&mut memory, GuestAddress(BUFFERS))
            .unwrap();
        assert!(
            memory == self.model.memory[BUFFERS as usize..],
            "{pieces:x?}"
        );
        assert!(*self.disk.disk.bytes() == self.model.disk, "{pieces:x?}");
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Ask(ask) => {
                let header = ask.header.bytes();
                let at = BUFFERS + u64::from(ask.at) % 0x1000;
                self.write(at, &header);
                let odd = if ask.odd > 230 { u32::from(ask.odd) } else { 0 };
                let len = u32::from(ask.sectors % 8) * 512 + odd;
                let (data, status) = (at + 0x100, at + 0x100 + u64::from(len));
                let mut pieces = vec![(at, 16, false)];
                match ask.header.kind() {
                    0 => pieces.push((data, len, true)),
                    8 => pieces.push((data, 20, true)),
                    11 | 13 => {
                        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
                        let flags = if ask.flags > 200 {
                            ask.flags
                        } else {
                            ask.flags % 2
                        };
                        let words = [u32::from(ask.sectors % 8), flags.into()];
                        self.write(data, &sector.to_le_bytes());
                        self.write(data + 8, words.map(u32::to_le_bytes).as_flattened());
                        pieces.push((data, 16, false));
                    }
                    _ => pieces.push((data, len, false)),
                }
                let status = if ask.header.kind() == 8 {
                    data + 20
                } else {
                    status
                };
                pieces.push((status, 1, true));
                self.chain(&pieces, ask.fails > 200);
            }
            Step::Chain(header, buffers) => {
                let at = BUFFERS + u64::from(header.sector) * 16;
                self.write(at, &header.bytes());
                let mut pieces = vec![(at, 16, false)];
                pieces.extend(buffers.iter().take(usize::from(SIZE) - 1).map(|buffer| {
                    let len = match buffer.len {
                        Length::Short(len) => len.into(),
                        Length::Sectors(sectors) => u32::from(sectors % 8) * 512,
                        Length::Any(len) => len,
                    };
                    let at = match buffer.at {
                        0xff00.. => u64::MAX - u64::from(buffer.at & 0xff),
                        at => BUFFERS + u64::from(at) % (END - BUFFERS + 0x20),
                    };
                    (at, len, buffer.write)
                }));
                if header.wild & 15 == 0 {
                    pieces.remove(0);
                }
                if !pieces.is_empty() {
                    self.chain(&pieces, header.wild & 0x70 == 0);
                }
            }
            Step::Poke(at, byte) => {
                let at = BUFFERS + u64::from(*at) % (END - BUFFERS);
                self.write(at, &[*byte]);
            }
            Step::Config(offset, byte) => {
                let offset = 0x100 + u64::from(*offset & !3);
                self.set(offset, (*byte).into());
            }
            Step::Resize(sectors, odd) => {
                let len = usize::from(sectors % 20) * 512 + usize::from(*odd) * 100;
                self.disk.disk.bytes_mut().resize(len, 7);
                self.model.disk.resize(len, 7);
                let capacity = len as u64 / SECTOR * SECTOR;
                assert_eq!(self.handle.refresh().unwrap(), capacity);
                let (low, high) = (self.get(reg::CONFIG), self.get(reg::CONFIG + 4));
                assert_eq!(u64::from(low) | u64::from(high) << 32, capacity / SECTOR);
            }
        }
    }
}

thread_local! {
    /// Mapped once, and cleared for each program.
    static MEMORY: Memory = {
        let half = (END / 2) as usize;
        let ranges = [(GuestAddress(0), half), (GuestAddress(END / 2), half)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    };
}

pub fn run(program: &Program) {
    let memory = MEMORY.with(Clone::clone);
    memory
        .write_slice(&[0; END as usize], GuestAddress(0))
        .unwrap();
    let workers = StepLoop::new().unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(SECTORS * 512).collect();
    let disk = Arc::new(Moody {
        disk: MemoryDisk::new(bytes.clone()),
        read_only: program.read_only,
        fails: AtomicBool::new(false),
    });
    let device = Block::new(disk.clone(), workers.handle()).unwrap();
    let device = device.with_id("fuzz").unwrap();
    let handle = device.handle();
    let transport = MmioTransport::new(device, memory.clone(), CountingLine::default()).unwrap();
    let queue = DriverQueue::new(&*memory, RING, SIZE);
    // Any of those that change what becomes of a write: flush and the cache's switch.
    let features =
        u32::from(program.features & 1) << 9 | u32::from(program.features >> 1 & 1) << 11;
    let model = Model {
        memory: vec![0; END as usize],
        disk: bytes,
        read_only: program.read_only,
    };
    let mut rig = Rig {
        memory: &memory,
        transport,
        workers,
        queue,
        disk,
        handle,
        model,
    };
    rig.start(features);
    program.steps.iter().for_each(|step| rig.step(step));
}
