// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings in a loop that is driven by hand: what the kernel has done, and the worker does not know of yet.
#![cfg(feature = "io-uring")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]
#![expect(
    unsafe_code,
    reason = "a file is put in another one's place while it is in use, and a sync is made to fail"
)]

mod support;

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bus::BusDevice;
use support::{Buf, FLUSH, Guest, IN, IOERR, OK, OUT, WRITE_ZEROES, header, memory, pattern, wait};
use virtio_blk_device::{
    Backend, Block, BlockEvent, BlockObserver, Buffers, FileBackend, FileOptions,
};
use virtio_conformance::{CountingLine, MmioPort, reg};
use virtio_device_core::{DeviceFault, Executor, LoopHandle, Worker, WorkerLoop};
use virtio_mmio_transport::MmioTransport;
use vm_memory::bitmap::{AtomicBitmap, Bitmap as _, NewBitmap};
use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap,
    GuestMemoryRegion as _,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(0, 512 * 64), 0).unwrap();
    file
}

/// Another description of `file`, with a lock of its own.
fn open(file: &File) -> FileBackend {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    FileBackend::open(path, FileOptions::default()).unwrap()
}

/// A disk with a ring; none where the kernel refuses it.
fn device(disk: Arc<dyn Backend>, workers: &WorkerLoop) -> Option<Block<LoopHandle>> {
    let device = Block::new(disk, workers.handle()).unwrap().with_io_uring();
    assert!(device.is_ok() || std::env::var_os("REQUIRE_IO_URING").is_none());
    device.ok()
}

/// Guest memory that is mapped from `file`.
fn mapped<B: NewBitmap>(file: &File) -> Arc<GuestMemoryMmap<B>> {
    let len = usize::try_from(support::MEMORY).unwrap();
    let file = Some(FileOffset::new(file.try_clone().unwrap(), 0));
    let ranges = [(GuestAddress(0), len, file)];
    Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap())
}

#[test]
fn what_a_ring_has_read_is_noted_also_if_nobody_wants_it_any_more() {
    const PLACE: u64 = 0x30_0000;
    let (file, shared) = (file(), tempfile::tempfile().unwrap());
    shared.set_len(support::MEMORY).unwrap();
    // Status reset: all ends. Queue reset: the worker goes on.
    for (register, value) in [(reg::STATUS, 0), (reg::QUEUE_RESET, 1)] {
        let mut workers = WorkerLoop::new().unwrap();
        let Some(device) = device(Arc::new(open(&file)), &workers) else {
            return;
        };
        let noted = mapped::<AtomicBitmap>(&shared);
        let transport = MmioTransport::new(device, noted.clone(), CountingLine::default()).unwrap();
        let port = MmioPort::new(
            transport.with_reset_bound(Duration::from_millis(1)),
            |it, offset, data| it.read(offset, data).unwrap(),
            |it, offset, data| it.write(offset, data).unwrap(),
        );
        let mut guest = virtio_conformance::Guest::new(mapped::<()>(&shared), port);
        guest.start(u64::MAX);
        for _ in 0..4 {
            workers.dispatch().unwrap();
        }
        let region = noted.find_region(GuestAddress(PLACE)).unwrap();
        guest
            .memory
            .write_slice(&[0; 512], GuestAddress(PLACE))
            .unwrap();
        let ask = [header(IN, 1), Buf::At(PLACE, 512, true), Buf::W(1)];
        guest.put(0, &ask);
        guest.notify(0);
        // The request is on its way to the kernel, and the worker does not know yet that it is done.
        workers.dispatch().unwrap();
        guest.set(register, value);
        wait("the reset", || {
            workers.dispatch().unwrap();
            guest.get(register) == 0
        });
        let mut data = [0; 512];
        guest
            .memory
            .read_slice(&mut data, GuestAddress(PLACE))
            .unwrap();
        assert!(data[..] == pattern(0, 1024)[512..]);
        let at = usize::try_from(PLACE).unwrap();
        assert!(region.bitmap().dirty_at(at), "{register:#x}");
    }
}

/// A file whose `fdatasync` fails: each thread has one of its own, as back ends lock theirs.
fn unsyncable() -> File {
    let mut options = File::options();
    let options = options.read(true).write(true);
    options.open("/proc/thread-self/oom_score_adj").unwrap()
}

/// A disk on this file, and its descriptor, to put another file in its place.
fn replaceable(file: &File) -> (FileBackend, ManuallyDrop<OwnedFd>) {
    let disk = file.try_clone().unwrap();
    // SAFETY: the back end keeps it open for as long as it lives, and this never closes it.
    let place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(disk.as_raw_fd()) });
    let disk = FileBackend::new(disk, FileOptions::default()).unwrap();
    (disk, place)
}

/// Waits until the kernel is done with a request, of which the worker does not know yet.
fn wait_for_kernel(workers: &WorkerLoop) {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    let add = ControlOperation::Add;
    epoll.ctl(add, workers.as_raw_fd(), event).unwrap();
    assert_eq!(epoll.wait(60_000, &mut [event]).unwrap(), 1);
}

#[test]
fn a_flush_that_has_failed_is_remembered_also_if_nobody_wants_it_any_more() {
    // Status reset: all ends. Queue reset: the worker goes on.
    for (register, value) in [(reg::STATUS, 0), (reg::QUEUE_RESET, 1)] {
        let file = file();
        let (disk, mut place) = replaceable(&file);
        let mut workers = WorkerLoop::new().unwrap();
        let Some(device) = device(Arc::new(disk), &workers) else {
            return;
        };
        let mut guest = Guest::in_memory(memory(), device);
        guest.start(u64::MAX);
        for _ in 0..4 {
            workers.dispatch().unwrap();
        }
        rustix::io::dup2(unsyncable(), &mut place).unwrap();
        guest.put(0, &[header(FLUSH, 0), Buf::W(1)]);
        guest.notify(0);
        workers.dispatch().unwrap();
        wait_for_kernel(&workers);
        rustix::io::dup2(&file, &mut place).unwrap();
        guest.set(register, value);
        wait("the reset", || {
            workers.dispatch().unwrap();
            guest.get(register) == 0
        });
        guest.set(reg::STATUS, 0);
        guest.start(u64::MAX);
        let offered = guest.put(0, &[header(FLUSH, 0), Buf::W(1)]);
        guest.notify(0);
        wait("the next flush", || {
            workers.dispatch().unwrap();
            !guest.queues[0].take_used().is_empty()
        });
        assert_eq!(guest.answer(&offered, 1).status(), IOERR, "{register:#x}");
    }
}

/// Makes this request, which the kernel serves in so many steps, while another queue has a flush that has
/// failed, of which its worker does not know.
fn fails_beside_a_flush(ask: &[Buf], steps: usize, cache: u8) {
    let file = file();
    let (disk, mut place) = replaceable(&file);
    let mut workers = [WorkerLoop::new().unwrap(), WorkerLoop::new().unwrap()];
    let executor = workers.iter().map(WorkerLoop::handle).collect::<Vec<_>>();
    let device = Block::new(Arc::new(disk), executor).unwrap().with_queues(2);
    let Ok(device) = device.with_io_uring() else {
        return;
    };
    let mut guest = Guest::in_memory(memory(), device);
    guest.start(u64::MAX);
    guest.set_config(0x20, &[cache]);
    for _ in 0..4 {
        workers.iter_mut().for_each(|it| it.dispatch().unwrap());
    }
    let [first, second] = &mut workers;
    let mut begin = |queue: usize, ask: &[Buf], workers: &mut WorkerLoop| {
        let offered = guest.put(queue, ask);
        guest.notify(queue);
        workers.dispatch().unwrap();
        wait_for_kernel(workers);
        offered
    };
    // The kernel tells the first one alone of what it could not write.
    rustix::io::dup2(unsyncable(), &mut place).unwrap();
    let failed = begin(0, &[header(FLUSH, 0), Buf::W(1)], first);
    rustix::io::dup2(&file, &mut place).unwrap();
    let succeeded = begin(1, ask, second);
    for _ in 1..steps {
        second.dispatch().unwrap();
        wait_for_kernel(second);
    }
    for _ in 0..4 {
        second.dispatch().unwrap();
    }
    assert!(guest.queues[1].take_used().is_empty());
    for (queue, offered) in [(0, failed), (1, succeeded)] {
        wait("the request", || {
            workers.iter_mut().for_each(|it| it.dispatch().unwrap());
            !guest.queues[queue].take_used().is_empty()
        });
        assert_eq!(guest.answer(&offered, 1).status(), IOERR, "{queue}");
    }
}

#[test]
fn a_flush_does_not_succeed_before_another_one_has_told_that_it_has_failed() {
    fails_beside_a_flush(&[header(FLUSH, 0), Buf::W(1)], 1, 1);
}

#[test]
fn zeroes_are_not_stable_before_a_flush_has_told_that_it_has_failed() {
    let zeroes = [&[0; 8][..], &1_u32.to_le_bytes(), &[0; 4]].concat();
    let ask = [header(WRITE_ZEROES, 0), Buf::R(zeroes), Buf::W(1)];
    fails_beside_a_flush(&ask, 2, 0);
}

/// From now on syncs that this thread waits for end when the test says so. None where the kernel refuses.
fn hold_syncs() -> Option<OwnedFd> {
    let number = u32::try_from(libc::SYS_fdatasync).unwrap();
    let (load, compare) = (libc::BPF_LD | libc::BPF_W, libc::BPF_JMP | libc::BPF_JEQ);
    let step = |code: u32, k, jf| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    };
    let mut steps = [
        step(load | libc::BPF_ABS, 0, 0),
        step(compare, number, 1),
        step(libc::BPF_RET, libc::SECCOMP_RET_USER_NOTIF, 0),
        step(libc::BPF_RET, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: steps.as_mut_ptr(),
    };
    let (mode, flags) = (
        libc::SECCOMP_SET_MODE_FILTER,
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    );
    // SAFETY: the program is there until the call returns, and the descriptor is nobody else's.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let fd = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()))
    }
}

#[test]
fn a_flush_does_not_succeed_before_one_without_a_ring_has_told_that_it_has_failed() {
    let disk = Arc::new(open(&file()));
    let mut workers = WorkerLoop::new().unwrap();
    let Some(device) = device(disk.clone(), &workers) else {
        return;
    };
    let mut guest = Guest::in_memory(memory(), device);
    guest.start(u64::MAX);
    for _ in 0..4 {
        workers.dispatch().unwrap();
    }
    let (sends, held) = mpsc::channel();
    let other = std::thread::spawn(move || {
        let syncs = hold_syncs();
        let is_held = syncs.is_some();
        sends.send(syncs).unwrap();
        is_held.then(|| disk.flush().unwrap_err().raw_os_error())
    });
    let Some(syncs) = held.recv().unwrap() else {
        return;
    };
    // SAFETY: structures of integers, which the kernel wants to be 0 and writes, or reads.
    let (mut sync, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { std::mem::zeroed() };
    let receive = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: as above.
    let begun = unsafe { libc::ioctl(syncs.as_raw_fd(), receive, &raw mut sync) };
    assert_eq!(begun, 0);
    let offered = guest.put(0, &[header(FLUSH, 0), Buf::W(1)]);
    guest.notify(0);
    workers.dispatch().unwrap();
    wait_for_kernel(&workers);
    for _ in 0..4 {
        workers.dispatch().unwrap();
    }
    let early = guest.queues[0].take_used();
    // The kernel tells the other one alone of what it could not write.
    (answer.id, answer.error) = (sync.id, -libc::EIO);
    let send = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: as above.
    let ended = unsafe { libc::ioctl(syncs.as_raw_fd(), send, &raw mut answer) };
    assert_eq!((ended, early), (0, vec![]));
    assert_eq!(other.join().unwrap(), Some(Some(libc::EIO)));
    wait("the flush", || {
        workers.dispatch().unwrap();
        !guest.queues[0].take_used().is_empty()
    });
    assert_eq!(guest.answer(&offered, 1).status(), IOERR);
}

/// A file, for as long as the test likes.
struct Fickle {
    disk: FileBackend,
    is_file: AtomicBool,
    flushes: AtomicUsize,
}

impl Backend for Fickle {
    fn capacity(&self) -> io::Result<u64> {
        self.disk.capacity()
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.disk.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.disk.write(offset, buffers)
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.disk.flush()
    }
    fn write_zeroes(&self, range: std::ops::Range<u64>, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(range, unmap)
    }
    fn as_file(&self) -> Option<&FileBackend> {
        (self.is_file.load(Ordering::SeqCst)).then_some(&self.disk)
    }
}

#[test]
fn a_back_end_that_is_no_file_any_more_ends_what_is_in_flight() {
    let file = file();
    let disk = Arc::new(Fickle {
        disk: open(&file),
        is_file: AtomicBool::new(true),
        flushes: AtomicUsize::new(0),
    });
    let mut workers = WorkerLoop::new().unwrap();
    let Some(device) = device(disk.clone(), &workers) else {
        return;
    };
    let mut guest = Guest::in_memory(memory(), device);
    guest.start(u64::MAX);
    guest.set_config(0x20, &[0]);
    for _ in 0..4 {
        workers.dispatch().unwrap();
    }
    let write = [header(OUT, 3), Buf::R(pattern(9, 512)), Buf::W(1)];
    let flush = [header(FLUSH, 0), Buf::W(1)];
    for (ask, flushes) in [(&write[..], 1), (&flush, 2), (&write, 3)] {
        let offered = guest.put(0, ask);
        guest.notify(0);
        workers.dispatch().unwrap();
        disk.is_file.store(false, Ordering::SeqCst);
        wait("the request", || {
            workers.dispatch().unwrap();
            !guest.queues[0].take_used().is_empty()
        });
        assert_eq!(guest.answer(&offered, 1).status(), OK);
        assert_eq!(disk.flushes.load(Ordering::SeqCst), flushes);
    }
}

/// Panics when it hears of a failure.
struct Shaky;

impl BlockObserver for Shaky {
    #[expect(clippy::panic, reason = "what is tested is what follows from a panic")]
    fn event(&self, event: &BlockEvent<'_>) {
        panic!("a bug in the VMM: {event:?}");
    }
}

/// Gives a good file, but the third time that it is asked for one.
struct Turning {
    good: FileBackend,
    bad: FileBackend,
    asked: AtomicUsize,
}

impl Backend for Turning {
    fn capacity(&self) -> io::Result<u64> {
        self.good.capacity()
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.good.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.good.write(offset, buffers)
    }
    fn flush(&self) -> io::Result<()> {
        self.good.flush()
    }
    fn write_zeroes(&self, range: std::ops::Range<u64>, unmap: bool) -> io::Result<()> {
        self.good.write_zeroes(range, unmap)
    }
    fn as_file(&self) -> Option<&FileBackend> {
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            2 => Some(&self.bad),
            _ => Some(&self.good),
        }
    }
}

/// A write without a cache, and a flush that fails, are done by the time that the worker looks.
fn fail_beside_a_write() {
    let disk = Arc::new(Turning {
        good: open(&file()),
        bad: FileBackend::new(unsyncable(), FileOptions::default()).unwrap(),
        asked: AtomicUsize::new(3),
    });
    let mut workers = WorkerLoop::new().unwrap();
    let Some(device) = device(disk.clone(), &workers) else {
        return;
    };
    let mut guest = Guest::in_memory(memory(), device.with_observer(Shaky));
    guest.start(u64::MAX);
    guest.set_config(0x20, &[0]);
    for _ in 0..4 {
        workers.dispatch().unwrap();
    }
    guest.put(0, &[header(OUT, 3), Buf::R(pattern(9, 512)), Buf::W(1)]);
    guest.put(0, &[header(FLUSH, 0), Buf::W(1)]);
    disk.asked.store(0, Ordering::SeqCst);
    guest.notify(0);
    workers.dispatch().unwrap();
    wait_for_kernel(&workers);
    std::thread::sleep(Duration::from_millis(20));
    wait("the failure", || {
        workers.dispatch().unwrap();
        guest.status() == 15 | 64
    });
    guest.set(reg::STATUS, 0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_write_has_succeeded_when_its_sync_has_unless_there_is_a_cache() {
    for (cache, status) in [(1, OK), (0, IOERR)] {
        let disk = Arc::new(Turning {
            good: open(&file()),
            bad: FileBackend::new(unsyncable(), FileOptions::default()).unwrap(),
            asked: AtomicUsize::new(3),
        });
        let mut workers = WorkerLoop::new().unwrap();
        let Some(device) = device(disk.clone(), &workers) else {
            return;
        };
        let mut guest = Guest::in_memory(memory(), device);
        guest.start(u64::MAX);
        guest.set_config(0x20, &[cache]);
        // The first time for the write, the second one for its sync.
        disk.asked.store(1, Ordering::SeqCst);
        let write = guest.put(0, &[header(OUT, 3), Buf::R(pattern(9, 512)), Buf::W(1)]);
        guest.notify(0);
        wait("the write", || {
            workers.dispatch().unwrap();
            !guest.queues[0].take_used().is_empty()
        });
        assert_eq!(guest.answer(&write, 1).status(), status, "{cache}");
    }
}

#[test]
fn an_observer_that_panics_leaves_no_write_that_waits_for_its_sync() {
    // The kernel may be done with either first.
    for _ in 0..20 {
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            fail_beside_a_write();
            done.send(()).unwrap();
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(()));
    }
}

/// Takes one loop for the first worker, and the other for those that follow.
struct OneThenOther([LoopHandle; 2], bool);

impl Executor for OneThenOther {
    fn start(&mut self, worker: Worker) -> Result<(), DeviceFault> {
        let [one, other] = &mut self.0;
        let place = if self.1 { other } else { one };
        self.1 = true;
        place.start(worker)
    }
}

/// A loop on a thread of its own.
fn spawned() -> LoopHandle {
    let (handle, handles) = mpsc::channel();
    std::thread::spawn(move || {
        let mut workers = WorkerLoop::new().unwrap();
        handle.send(workers.handle()).unwrap();
        workers.run().unwrap();
    });
    handles.recv().unwrap()
}

#[test]
fn a_driver_is_served_though_the_ring_is_not_back_yet() {
    let file = file();
    let loops = [spawned(), spawned()];
    let executor = OneThenOther(loops.clone(), false);
    let device = Block::new(Arc::new(open(&file)), executor).unwrap();
    let Ok(device) = device.with_io_uring() else {
        return;
    };
    let mut guest = Guest::in_memory(memory(), device);
    guest.start(u64::MAX);
    assert_eq!(guest.read(1, 1).status(), OK);
    // The first thread is busy with something else when the device is reset.
    let (busy, done) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let stuck = Stuck(Mutex::new((begun, done)));
    let other = Block::new(Arc::new(stuck), loops[0].clone()).unwrap();
    let mut other = Guest::in_memory(memory(), other);
    other.start(u64::MAX);
    other.put(0, &[header(IN, 0), Buf::W(512), Buf::W(1)]);
    other.notify(0);
    // Dropped first, whatever fails here.
    let release = Some(busy);
    begins.recv().unwrap();
    guest.set(reg::STATUS, 0);
    assert_eq!(guest.status(), 0);
    guest.start(u64::MAX);
    assert_eq!(guest.read(1, 1).data(), &pattern(0, 1024)[512..]);
    assert_eq!(guest.status(), 15);
    drop(release);
    loops.iter().for_each(LoopHandle::stop);
}

/// A disk whose reads end when the test says so.
struct Stuck(Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>);

impl Backend for Stuck {
    fn capacity(&self) -> io::Result<u64> {
        Ok(512)
    }
    fn read(&self, _offset: u64, _buffers: &Buffers<'_>) -> io::Result<()> {
        let wait = self.0.lock().unwrap();
        wait.0.send(()).unwrap();
        let _ = wait.1.recv();
        Ok(())
    }
    fn write(&self, _offset: u64, _buffers: &Buffers<'_>) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _range: std::ops::Range<u64>, _unmap: bool) -> io::Result<()> {
        Ok(())
    }
}
