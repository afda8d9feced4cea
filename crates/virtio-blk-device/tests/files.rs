// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files as disks, and hosts that fail.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use support::{
    Buf, DISCARD, Guest, IN, IOERR, Memory, MemoryDisk, OK, OUT, UNSUPP, WRITE_ZEROES, header,
    pattern, segment,
};
use tempfile::NamedTempFile;
use virtio_blk_device::{Backend, BlockEvent, Buffers, FileBackend, FileOptions, Operation};
use virtio_device_core::{DeviceState, Vectors, VirtioDevice};

fn image(len: usize) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&pattern(0, len)).unwrap();
    file
}

fn open(file: &NamedTempFile, options: FileOptions) -> Arc<FileBackend> {
    Arc::new(FileBackend::open(file.path(), options).unwrap())
}

fn bytes(file: &NamedTempFile) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()
}

const RO: FileOptions = FileOptions {
    read_only: true,
    direct: false,
};
const DIRECT: FileOptions = FileOptions {
    read_only: false,
    direct: true,
};

#[test]
fn a_file_is_read_and_written_sector_by_sector() {
    let file = image(64 * 512 + 100);
    let mut guest = Guest::new(open(&file, FileOptions::default()));
    assert_eq!(guest.capacity(), 64);
    assert_eq!(guest.read(5, 3).data(), &bytes(&file)[5 * 512..8 * 512]);
    let data = pattern(77, 1024);
    assert_eq!((guest.write(62, &data), guest.flush()), (OK, OK));
    assert_eq!(bytes(&file)[62 * 512..64 * 512], data);
    assert_eq!(bytes(&file).len(), 64 * 512 + 100);
}

#[test]
fn a_request_of_many_pieces_is_one_transfer() {
    let file = image(512 * 512);
    let mut guest = Guest::new(open(&file, FileOptions::default()));
    for (len, count) in [(512, 250), (1, 0), (1024, 200)] {
        let mut buffers = vec![header(IN, 1)];
        buffers.extend((0..count).map(|_| Buf::W(len)));
        buffers.push(Buf::W(1));
        let answer = guest.ask(&buffers);
        assert_eq!(answer.status(), OK);
        assert_eq!(answer.data(), &bytes(&file)[512..][..answer.data().len()]);
    }
}

/// In a file system that has it.
fn direct(file: &NamedTempFile) -> Option<FileBackend> {
    match FileBackend::open(file.path(), DIRECT) {
        Ok(disk) => Some(disk),
        Err(error) => {
            assert!(error.to_string().contains("direct I/O"), "{error}");
            assert!(std::env::var_os("REQUIRE_DIRECT").is_none(), "{error}");
            None
        }
    }
}

#[test]
fn past_the_page_cache_every_request_is_served_aligned_or_not() {
    let file = image(64 * 4096 + 512);
    let Some(disk) = direct(&file) else { return };
    let mut guest = Guest::new(Arc::new(disk));
    for round in 0..3u8 {
        for (sector, len) in [
            (0, 4096),
            (8, 8192),
            (1, 512),
            (9, 4096),
            (16, 512),
            (512, 512),
        ] {
            let data = pattern(round + 9, len);
            assert_eq!(guest.write(sector, &data), OK);
            let count = u32::try_from(len / 512).unwrap();
            assert_eq!(guest.read(sector, count).data(), data, "{sector}");
            let from = usize::try_from(sector).unwrap() * 512;
            assert_eq!(bytes(&file)[from..from + len], data, "{sector}");
        }
        // In pages of memory, as drivers have them, and at an odd address.
        for addr in [0x30_0000, 0x30_0001, 0x30_0200] {
            let ask = [header(IN, 8), Buf::At(addr, 8192, true), Buf::W(1)];
            assert_eq!(guest.ask(&ask).status(), OK);
            let mut data = vec![0; 8192];
            use vm_memory::Bytes as _;
            guest
                .memory
                .read_slice(&mut data, vm_memory::GuestAddress(addr))
                .unwrap();
            assert_eq!(bytes(&file)[4096..][..8192], data);
        }
        assert_eq!(guest.flush(), OK);
    }
}

#[test]
fn a_second_writer_is_refused_and_readers_share() {
    let file = image(4096);
    let first = open(&file, FileOptions::default());
    for options in [FileOptions::default(), RO, DIRECT] {
        let error = FileBackend::open(file.path(), options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy, "{error}");
    }
    // The lock is of the whole file, however long it becomes.
    first.write_zeroes(0..512, false).unwrap();
    File::options()
        .write(true)
        .open(file.path())
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    FileBackend::open(file.path(), RO).unwrap_err();
    drop(first);
    let readers = [open(&file, RO), open(&file, RO)];
    FileBackend::open(file.path(), FileOptions::default()).unwrap_err();
    drop(readers);
    open(&file, FileOptions::default());
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["/dev/null", "/dev/zero", folder.path().to_str().unwrap()] {
        FileBackend::open(path, RO).unwrap_err();
    }
    FileBackend::open(folder.path().join("missing"), RO).unwrap_err();
    let file = image(512);
    let read = File::open(file.path()).unwrap();
    let error = FileBackend::new(read, FileOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let read = File::open(file.path()).unwrap();
    FileBackend::new(read, RO).unwrap();
}

#[test]
fn what_is_discarded_takes_no_room_and_reads_as_zeroes() {
    let file = image(1 << 20);
    let mut guest = Guest::new(open(&file, FileOptions::default()));
    file.as_file().sync_all().unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    for (kind, sector, flags) in [
        (DISCARD, 0, 0),
        (WRITE_ZEROES, 1024, 1),
        (WRITE_ZEROES, 512, 0),
    ] {
        let ask = [header(kind, 0), segment(sector, 512, flags), Buf::W(1)];
        let status = guest.ask(&ask).status();
        assert!(matches!(status, OK | UNSUPP), "{status}");
        if status == OK {
            let from = usize::try_from(sector * 512).unwrap();
            assert!(
                bytes(&file)[from..from + 512 * 512]
                    .iter()
                    .all(|byte| *byte == 0)
            );
        }
    }
    file.as_file().sync_all().unwrap();
    let after = file.as_file().metadata().unwrap();
    assert!(
        after.blocks() <= before - 1024,
        "{} of {before} blocks are left",
        after.blocks()
    );
    assert_eq!(after.len(), 1 << 20);
    assert_eq!(
        bytes(&file)[1536 * 512..],
        pattern(0, 1 << 20)[1536 * 512..]
    );
}

/// What a VMM is told.
type Log = Arc<Mutex<Vec<(Operation, io::Error)>>>;

struct Observer(Log);

impl virtio_blk_device::BlockObserver for Observer {
    fn event(&self, event: &BlockEvent<'_>) {
        let BlockEvent::Failed(operation, _, error) = event else {
            return;
        };
        let error = match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => error.kind().into(),
        };
        self.0.lock().unwrap().push((*operation, error));
    }
}

fn observed(backend: impl Backend) -> (Guest, Log) {
    let log = Log::default();
    let observer = Observer(log.clone());
    let guest = Guest::of(Arc::new(backend), |device| device.with_observer(observer));
    (guest, log)
}

#[test]
fn a_file_that_shrinks_fails_at_what_is_gone() {
    let file = image(64 * 512);
    let (mut guest, log) =
        observed(FileBackend::open(file.path(), FileOptions::default()).unwrap());
    file.as_file().set_len(10 * 512 + 100).unwrap();
    for (sector, count, status) in [(0, 10, OK), (9, 1, OK), (9, 2, IOERR), (63, 1, IOERR)] {
        let answer = guest.read(sector, count);
        assert_eq!(answer.status(), status, "{sector}");
        if status == IOERR {
            assert_eq!(answer.len, 0);
        }
    }
    assert!(log.lock().unwrap().iter().all(|(operation, error)| {
        *operation == Operation::Read && error.kind() == ErrorKind::UnexpectedEof
    }));
    assert_eq!(log.lock().unwrap().len(), 2);
    assert_eq!((guest.write(0, &pattern(1, 512)), guest.status()), (OK, 15));
}

/// Whatever changes the sectors from `sector` on.
fn changes(sector: u64) -> [[Buf; 3]; 4] {
    [
        [header(OUT, sector), Buf::R(pattern(1, 1024)), Buf::W(1)],
        [header(DISCARD, 0), segment(sector, 2, 0), Buf::W(1)],
        [header(WRITE_ZEROES, 0), segment(sector, 2, 0), Buf::W(1)],
        [header(WRITE_ZEROES, 0), segment(sector, 2, 1), Buf::W(1)],
    ]
}

#[test]
fn a_file_that_shrank_unannounced_is_not_made_longer_again() {
    let file = image(64 * 512);
    let (mut guest, log) =
        observed(FileBackend::open(file.path(), FileOptions::default()).unwrap());
    let len = 10 * 512 + 100;
    file.as_file().set_len(len).unwrap();
    for sector in [9, 10, 62] {
        for ask in changes(sector) {
            let answer = guest.ask(&ask);
            assert_eq!((answer.status(), answer.len), (IOERR, 1), "{ask:?}");
            assert_eq!(file.as_file().metadata().unwrap().len(), len, "{ask:?}");
        }
    }
    assert_eq!(bytes(&file), pattern(0, usize::try_from(len).unwrap()));
    let seen = log.lock().unwrap().len();
    assert_eq!((seen, guest.write(8, &pattern(1, 1024))), (12, OK));
}

#[test]
fn a_restored_capacity_does_not_make_a_file_longer() {
    let file = image(8 * 512);
    let mut state = (1_u64 << 30).to_le_bytes().to_vec();
    state.push(1);
    let state = DeviceState::new(1, state).unwrap();
    let backend = FileBackend::open(file.path(), FileOptions::default()).unwrap();
    let mut guest = Guest::of(Arc::new(backend), |mut device| {
        VirtioDevice::<Memory>::restore(&mut device, &state).unwrap();
        device
    });
    assert_eq!(guest.capacity(), 1 << 21);
    assert_eq!(guest.write(8, &pattern(1, 512)), IOERR);
    assert_eq!(guest.write(7, &pattern(1, 512)), OK);
    assert_eq!(file.as_file().metadata().unwrap().len(), 8 * 512);
}

#[test]
fn a_full_host_fails_a_write_and_goes_on() {
    let file = image(8 * 512);
    let (mut guest, log) = observed(Full(open(&file, FileOptions::default())));
    assert_eq!(guest.write(1, &pattern(1, 512)), IOERR);
    assert_eq!(guest.read(0, 8).data(), pattern(0, 8 * 512));
    let ask = [header(WRITE_ZEROES, 0), segment(0, 1, 0), Buf::W(1)];
    assert_eq!((guest.ask(&ask).status(), guest.flush()), (IOERR, OK));
    let log: Vec<_> = log.lock().unwrap().drain(..).collect();
    let said: Vec<_> = log
        .iter()
        .map(|(it, error)| (*it, error.raw_os_error()))
        .collect();
    assert_eq!(
        said,
        [
            (Operation::Write, Some(28)),
            (Operation::WriteZeroes, Some(28))
        ]
    );
    assert_eq!(guest.status(), 15);
}

/// Has no room for anything.
struct Full(Arc<FileBackend>);

impl Backend for Full {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.0.read(offset, buffers)
    }
    fn write(&self, _: u64, _: &Buffers<'_>) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(28))
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
    fn write_zeroes(&self, _: std::ops::Range<u64>, _: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(28))
    }
}

/// Fails like this, every other time.
struct Errors(MemoryDisk, i32, AtomicU32);

impl Errors {
    fn mood(&self) -> io::Result<()> {
        match self.2.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Err(io::Error::from_raw_os_error(self.1)),
            _ => Ok(()),
        }
    }
}

impl Backend for Errors {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.mood()?;
        self.0.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.mood()?;
        self.0.write(offset, buffers)
    }
    fn flush(&self) -> io::Result<()> {
        self.mood()
    }
    fn write_zeroes(&self, range: std::ops::Range<u64>, unmap: bool) -> io::Result<()> {
        self.mood()?;
        self.0.write_zeroes(range, unmap)
    }
}

/// EINTR, EIO, EAGAIN, ENOMEM, EINVAL, ENOSPC, EDQUOT, and one that does not exist.
#[test]
fn whatever_a_host_fails_with_only_that_request_fails() {
    for code in [4, 5, 11, 12, 22, 28, 122, 4095] {
        let (mut guest, log) = observed(Errors(MemoryDisk::new(vec![0; 4096]), code, 0.into()));
        assert_eq!(
            (guest.read(0, 1).status(), guest.read(0, 1).status()),
            (IOERR, OK)
        );
        let data = pattern(1, 512);
        assert_eq!((guest.write(0, &data), guest.write(0, &data)), (IOERR, OK));
        assert_eq!((guest.flush(), guest.flush()), (IOERR, OK));
        let ask = [header(DISCARD, 0), segment(0, 1, 0), Buf::W(1)];
        assert_eq!(
            (guest.ask(&ask).status(), guest.ask(&ask).status()),
            (IOERR, OK)
        );
        assert_eq!((log.lock().unwrap().len(), guest.status()), (4, 15));
    }
    // What the host does not have is told as such, for these only.
    let mut guest = Guest::new(Arc::new(Errors(
        MemoryDisk::new(vec![0; 4096]),
        95,
        0.into(),
    )));
    let ask = [header(DISCARD, 0), segment(0, 1, 0), Buf::W(1)];
    assert_eq!(
        (guest.ask(&ask).status(), guest.ask(&ask).status()),
        (UNSUPP, OK)
    );
    let ask = [header(OUT, 0), Buf::R(pattern(0, 512)), Buf::W(1)];
    assert_eq!(
        (guest.ask(&ask).status(), guest.ask(&ask).status()),
        (IOERR, OK)
    );
}

#[test]
fn a_place_beyond_every_file_is_refused() {
    let file = image(64 * 512);
    let disk = open(&file, FileOptions::default());
    let (mut vectors, mut data) = (Vectors::default(), [7; 512]);
    let mut buffers = vectors.begin();
    buffers.add_own(&mut data);
    for offset in [u64::MAX, u64::MAX - 511, 1 << 63] {
        disk.write(offset, &buffers).unwrap_err();
        disk.read(offset, &buffers).unwrap_err();
    }
    // From its end to its start.
    let (start, end) = (1024, 512);
    disk.discard(start..end).unwrap_err();
    disk.write_zeroes(start..end, false).unwrap_err();
    assert_eq!(bytes(&file), pattern(0, 64 * 512));
}
