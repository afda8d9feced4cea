// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as a queue's worker sees it: many requests in flight, by the kernel's `io_uring`.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by its address"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, SubmissionQueue, opcode, squeue};
use rustix::fs::FallocateFlags;
use virtio_device_core::{
    ActiveQueue, Buffers, Context, DeviceFault, Executor, Head, InFlight, Progress, QueueHandler,
    RingFault, Rings, Virtqueue, vmm_sys_util::epoll::EventSet,
};
use vm_memory::GuestAddressSpace;

use crate::backend::FileBackend;
use crate::config::QUEUE_SIZE;
use crate::device::Block;
use crate::observer::Operation;
use crate::request::Request;
use crate::shared::Shared;
use crate::syncs::Syncing;
use crate::worker::Job;

/// The number under which the ring is watched.
const RING: u32 = 0;
/// How long a kernel without memory for requests is left alone, and another queue with its sync.
const SHORTAGE: Duration = Duration::from_millis(1);

/// Where a queue's ring is while the device is not active: it is made before the guest runs.
pub(crate) type Home = Arc<Mutex<Option<IoUring>>>;

/// Takes a ring from its home. There is none while a worker of before, on another thread, has not ended:
/// the next one does without it.
pub(crate) fn take(home: &Home) -> Option<(Home, IoUring)> {
    let ring = lock(home).take()?;
    Some((home.clone(), ring))
}

/// Makes a ring.
fn ring() -> io::Result<IoUring> {
    let refused = |error: io::Error| {
        let why = format!("the kernel refuses io_uring: {error}");
        io::Error::new(error.kind(), why)
    };
    let ring = IoUring::new(QUEUE_SIZE.into()).map_err(refused)?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(refused)?;
    let needed = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    match needed.iter().all(|code| probe.is_supported(*code)) {
        true => Ok(ring),
        false => Err(refused(io::ErrorKind::Unsupported.into())),
    }
}

impl<E: Executor> Block<E> {
    /// Serves requests by `io_uring`, all of a queue at the same time. Makes one ring for each
    /// queue, so set their number before. The executor must be able to watch descriptors, as all
    /// but a [`StepLoop`](virtio_device_core::StepLoop) are, and have a queue's workers one after the
    /// other on one thread: where the last one has not ended yet, the next serves without its ring.
    ///
    /// # Errors
    ///
    /// If [`Backend::as_file`](crate::Backend::as_file) returns nothing, or the kernel refuses the
    /// rings.
    #[cfg_attr(docsrs, doc(cfg(feature = "io-uring")))]
    pub fn with_io_uring(mut self) -> io::Result<Self> {
        if self.shared.backend.as_file().is_none() {
            let why = "io_uring needs a file as the back end";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let rings = self.queue_sizes.iter();
        let rings = rings.map(|_| Ok(Arc::new(Mutex::new(Some(ring()?)))));
        self.rings = rings.collect::<io::Result<_>>()?;
        Ok(self)
    }
}

/// Serves a queue by a ring: a pause completes what is in flight, and a reset stays pending until the
/// kernel is done with it.
pub(crate) struct RingHandler<M: GuestAddressSpace> {
    memory: M,
    shared: Arc<Shared>,
    queue: u16,
    ring: Option<IoUring>,
    home: Home,
    slots: Vec<Slot<M::T>>,
    free: Vec<u16>,
    /// Slots whose sync has succeeded, and is not settled yet.
    synced: Vec<u16>,
}

/// Room for a request in flight.
struct Slot<T> {
    job: Job,
    busy: Option<Busy<T>>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            job: Job::default(),
            busy: None,
        }
    }
}

/// A request in flight. While there is one, the kernel uses the vectors of its job, and the memory.
struct Busy<T> {
    head: Head,
    request: Request,
    stage: Stage,
    memory: T,
    active: ActiveQueue,
    in_flight: InFlight<Virtqueue>,
    /// Its sync, once that has begun.
    sync: Option<Syncing>,
}

/// What the kernel is at work on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// All that there is to be done, except for syncs.
    Whole,
    /// A write without a cache, which a sync follows. Both at once would fail with one error, which does
    /// not say whether anything is lost that was written before.
    Write,
    /// A sync of all of the file.
    Sync,
}

impl<M: GuestAddressSpace> RingHandler<M> {
    pub(crate) fn new(
        memory: M,
        shared: Arc<Shared>,
        queue: u16,
        (home, ring): (Home, IoUring),
    ) -> Self {
        Self {
            memory,
            shared,
            queue,
            ring: Some(ring),
            home,
            slots: (0..QUEUE_SIZE).map(|_| Slot::default()).collect(),
            free: (0..QUEUE_SIZE).rev().collect(),
            synced: Vec::with_capacity(QUEUE_SIZE.into()),
        }
    }

    /// Begins as many requests as there are and may be; says how to go on.
    fn begin(&mut self, cx: &Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(self.queue) else {
            return Ok(Progress::Idle);
        };
        let memory = self.memory.memory();
        let (mut rings, mut budget) = (None, QUEUE_SIZE);
        while let Some(&index) = self.free.last() {
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                break;
            };
            let looked = active.lease.with(|ring| {
                let first = rings.is_none();
                let rings = rings.get_or_insert_with(|| Rings::new(&*memory, ring.layout()));
                if first {
                    ring.disable_notification(rings)?;
                }
                let taken = slot
                    .job
                    .take(ring, rings, active, &self.shared, &mut budget)?;
                Ok::<_, RingFault>(taken.and_then(|head| match active.lease.hold() {
                    Ok(in_flight) => Ok((head, in_flight)),
                    Err(_) => {
                        ring.put_back(head);
                        Err(Progress::Idle)
                    }
                }))
            });
            let (head, in_flight) = match looked {
                Ok(taken) => match taken? {
                    Ok(taken) => taken,
                    Err(progress) => return Ok(progress),
                },
                Err(_) => return Ok(Progress::Idle),
            };
            let Some(rings) = &rings else { break };
            let request = slot.job.begin(rings, &self.shared, self.queue, cx);
            let entry = match &request {
                Ok(request) => entry(&mut slot.job, &*memory, request, &self.shared, index),
                Err(_) => None,
            };
            let memory = memory.clone();
            match (request, entry) {
                (Ok(request), Some(entry)) => {
                    let active = active.clone();
                    let stage = match request.operation {
                        Operation::Flush => Stage::Sync,
                        Operation::Write if !self.shared.writeback() => Stage::Write,
                        _ => Stage::Whole,
                    };
                    let syncs = stage == Stage::Sync;
                    let file = syncs.then(|| self.shared.backend.as_file()).flatten();
                    slot.busy = Some(Busy {
                        head,
                        stage,
                        request,
                        memory,
                        active,
                        in_flight,
                        sync: file.map(FileBackend::begin_sync),
                    });
                    let Some(ring) = &mut self.ring else { break };
                    // SAFETY: vectors, memory and file stay as they are until the entry is
                    // complete: they are in the slot, which is busy, and in `shared`.
                    unsafe { push(&mut ring.submission(), &entry) }?;
                    self.free.pop();
                }
                (request, _) => {
                    let len = slot.job.serve(&*memory, &self.shared, request);
                    let finish = |ring: &mut Virtqueue| complete(ring, &*memory, active, head, len);
                    in_flight.with(finish).unwrap_or(Ok(()))?;
                }
            }
        }
        // A request that is complete makes room.
        Ok(Progress::Idle)
    }

    /// Hands what was begun to the kernel.
    fn submit(&self, progress: Progress) -> Result<Progress, DeviceFault> {
        let Some(ring) = &self.ring else {
            return Ok(progress);
        };
        match ring.submit() {
            Ok(_) => Ok(progress),
            Err(error) if is_passing(&error) => Ok(Progress::After(SHORTAGE)),
            Err(error) => Err(DeviceFault::Backend(error)),
        }
    }

    /// Completes the requests that the kernel is done with.
    fn reap(&mut self) -> Result<(), DeviceFault> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        let (_, mut submission, completion) = ring.split();
        let mut finished = Ok(());
        for entry in completion {
            let index = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                continue;
            };
            let Some(mut busy) = slot.busy.take() else {
                continue;
            };
            let moved = u64::try_from(entry.result()).ok() == Some(busy.request.moved());
            let wants_sync = busy.stage == Stage::Write && moved && !busy.in_flight.is_revoked();
            // Without a file any more, the write is finished as one that was done in part.
            let file = wants_sync.then(|| self.shared.backend.as_file()).flatten();
            if let Some(file) = file {
                busy.stage = Stage::Sync;
                busy.sync = Some(file.begin_sync());
                slot.busy = Some(busy);
                let entry = sync(file).user_data(index.into());
                // At once: whatever becomes of the others, who waits for a sync gets one. It ends only then.
                // SAFETY: the file lives in `shared`, and the slot is busy.
                unsafe { push(&mut submission, &entry) }?;
                continue;
            }
            if let Some(sync) = busy.sync.as_mut().filter(|_| entry.result() >= 0) {
                sync.end();
                slot.busy = Some(busy);
                self.synced.push(index);
                continue;
            }
            self.free.push(index);
            let now = finish(&mut slot.job, busy, &self.shared, entry.result());
            finished = finished.and(now);
        }
        Ok(finished?)
    }

    /// Completes the requests whose syncs have succeeded, as far as that is certain by now.
    fn settle(&mut self) -> Result<(), RingFault> {
        let (slots, free, shared) = (&mut self.slots, &mut self.free, &self.shared);
        let mut finished = Ok(());
        self.synced.retain(|&index| {
            let Some(slot) = slots.get_mut(usize::from(index)) else {
                return false;
            };
            let certain = |busy: &mut Busy<M::T>| {
                busy.in_flight.is_revoked() || busy.sync.as_ref().is_none_or(Syncing::is_settled)
            };
            let Some(busy) = slot.busy.take_if(certain) else {
                return true;
            };
            free.push(index);
            let now = finish(&mut slot.job, busy, shared, 0);
            finished = finished.and(now);
            false
        });
        finished
    }
}

/// Hands an entry to the ring.
///
/// # Safety
///
/// What it names must stay as it is until the entry is complete.
unsafe fn push(
    submission: &mut SubmissionQueue<'_>,
    entry: &squeue::Entry,
) -> Result<(), DeviceFault> {
    // SAFETY: as the caller says.
    let pushed = unsafe { submission.push(entry) };
    // There are as many entries as there are slots.
    pushed.map_err(|full| DeviceFault::Backend(io::Error::other(full)))
}

/// A sync of all of the file.
fn sync(file: &FileBackend) -> squeue::Entry {
    let sync = opcode::Fsync::new(Fd(file.file().as_raw_fd()));
    sync.flags(FsyncFlags::DATASYNC).build()
}

/// Completes a request that the kernel is done with.
fn finish<T, G>(job: &mut Job, busy: Busy<T>, shared: &Shared, result: i32) -> Result<(), RingFault>
where
    T: std::ops::Deref<Target = G>,
    G: vm_memory::GuestMemory,
{
    // Of a request that nobody wants any more, nothing is left to be done.
    if busy.in_flight.is_revoked() {
        note(job, &busy, shared, result);
        return Ok(());
    }
    let Busy {
        head,
        request,
        stage,
        memory,
        active,
        in_flight,
        // Until it is noted how that has ended.
        sync: _sync,
    } = busy;
    let error = failure(result);
    let moved = u64::try_from(result).unwrap_or(0);
    let outcome = match (stage, error) {
        (Stage::Sync, Some(error)) if is_for_another_way(&error) => {
            shared.outcome(&request, shared.backend.flush())
        }
        (Stage::Sync, error) => {
            let synced = error.map_or(Ok(()), Err);
            let synced = match shared.backend.as_file() {
                Some(file) => file.synced(synced),
                None => synced,
            };
            shared.outcome(&request, synced)
        }
        (_, Some(error)) if !is_for_another_way(&error) => shared.outcome(&request, Err(error)),
        (Stage::Whole, None) if moved == request.moved() => shared.outcome(&request, Ok(())),
        // It was done in part, or the kernel has no such way: it is done again, and waited for.
        _ => (job.buffers(&*memory, &request)).and_then(|data| shared.run(&request, &data)),
    };
    job.note(&*memory, Some(&request));
    let finish = |ring: &mut Virtqueue| {
        let len = job.end(&*memory, shared, Some(request), outcome);
        complete(ring, &*memory, &active, head, len)
    };
    in_flight.with(finish).unwrap_or(Ok(()))
}

/// Takes note of what the kernel has done for nobody: what it has read, and that a sync has failed, which
/// it does not tell the next one.
fn note<T, G>(job: &Job, busy: &Busy<T>, shared: &Shared, result: i32)
where
    T: std::ops::Deref<Target = G>,
    G: vm_memory::GuestMemory,
{
    job.note(&*busy.memory, Some(&busy.request));
    let error = failure(result).filter(|error| !is_for_another_way(error));
    let error = error.filter(|_| busy.stage == Stage::Sync);
    if let Some((error, file)) = error.zip(shared.backend.as_file()) {
        let _ = file.synced(Err(error));
    }
}

/// The error that an entry has ended with, if it has.
fn failure(result: i32) -> Option<io::Error> {
    let failed = u32::try_from(result).is_err();
    failed.then(|| io::Error::from_raw_os_error(result.wrapping_neg()))
}

/// Gives a request back.
fn complete(
    ring: &mut Virtqueue,
    memory: &impl vm_memory::GuestMemory,
    active: &ActiveQueue,
    head: Head,
    len: u32,
) -> Result<(), RingFault> {
    ring.complete(memory, head, len)?;
    if ring.needs_interrupt(memory)? {
        active.signal_used();
    }
    Ok(())
}

/// What a request is to the kernel; `None` for one that is not worth it, or takes several steps.
fn entry(
    job: &mut Job,
    memory: &impl vm_memory::GuestMemory,
    request: &Request,
    shared: &Shared,
    slot: u16,
) -> Option<squeue::Entry> {
    let file = shared.backend.as_file()?;
    if !matches!(request.operation, Operation::Read | Operation::Flush) {
        file.check_end(&request.range).ok()?;
    }
    let (start, len) = (request.range.start, request.range.end - request.range.start);
    let whole = Fd(file.file().as_raw_fd());
    let entry = match request.operation {
        Operation::Read | Operation::Write => {
            let buffers = job.buffers(memory, request).ok()?;
            let fd = Fd(file.descriptor(start, &buffers).as_raw_fd());
            let vectors = buffers.vectors();
            let count = u32::try_from(vectors.len()).ok();
            let count = count.filter(|_| (1..=Buffers::MAX_PIECES).contains(&vectors.len()))?;
            if request.operation == Operation::Read {
                opcode::Readv::new(fd, vectors.as_ptr(), count)
                    .offset(start)
                    .build()
            } else {
                opcode::Writev::new(fd, vectors.as_ptr(), count)
                    .offset(start)
                    .build()
            }
        }
        Operation::Flush if !shared.backend.is_read_only() => sync(file),
        Operation::Discard | Operation::WriteZeroes if len != 0 && shared.writeback() => {
            let zero = request.operation == Operation::WriteZeroes && !request.unmap;
            let way = match zero {
                true => FallocateFlags::ZERO_RANGE,
                false => FallocateFlags::PUNCH_HOLE,
            };
            let mode = (way | FallocateFlags::KEEP_SIZE).bits();
            let entry = opcode::Fallocate::new(whole, len).offset(start);
            entry.mode(i32::try_from(mode).unwrap_or(0)).build()
        }
        _ => return None,
    };
    Some(entry.user_data(slot.into()))
}

/// Whether the kernel may say something else next time.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

/// Whether a request may be served although the kernel has failed at it like this.
fn is_for_another_way(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EOPNOTSUPP)
    )
}

fn lock(home: &Home) -> std::sync::MutexGuard<'_, Option<IoUring>> {
    home.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: GuestAddressSpace> QueueHandler for RingHandler<M> {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let Some(ring) = &self.ring else {
            return Ok(());
        };
        // SAFETY: the ring lives longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let watched = cx.watch_in_flight(RING, fd);
        watched.map_err(DeviceFault::Backend)
    }

    fn process(&mut self, _queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        self.settle()?;
        let progress = self.begin(cx);
        // What was begun before a fault is on its way as well.
        match self.submit(progress?)? {
            Progress::More => Ok(Progress::More),
            _ if !self.synced.is_empty() => Ok(Progress::After(SHORTAGE)),
            progress => Ok(progress),
        }
    }

    fn ready(
        &mut self,
        _source: u32,
        _readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        self.reap()?;
        self.process(self.queue, cx)
    }
}

impl<M: GuestAddressSpace> Drop for RingHandler<M> {
    /// Waits until the kernel is done with guest memory, however long that takes: nobody is told before
    /// that it is at rest.
    fn drop(&mut self) {
        let Some(mut ring) = self.ring.take() else {
            return;
        };
        // The ring must be back when the last of them says that memory is at rest.
        let mut at_rest = Vec::new();
        for index in self.synced.drain(..) {
            let slot = self.slots.get_mut(usize::from(index));
            at_rest.extend(slot.and_then(|slot| slot.busy.take()));
        }
        while self.slots.iter().any(|slot| slot.busy.is_some()) {
            match ring.submit_and_wait(1) {
                Err(error) if !is_passing(&error) => {
                    // It cannot be known how a sync ends; other queues do not wait for that.
                    let busy = self.slots.iter_mut().filter_map(|slot| slot.busy.as_mut());
                    let syncs: Vec<_> = busy.filter_map(|busy| busy.sync.take()).collect();
                    let file = self.shared.backend.as_file();
                    if let Some(file) = file.filter(|_| !syncs.is_empty()) {
                        let _ = file.synced(Err(error));
                    }
                    drop(syncs);
                    // It cannot be known when memory is at rest: that is never told, then.
                    std::mem::forget(std::mem::take(&mut self.slots));
                    std::mem::forget(ring);
                    return;
                }
                _ => {}
            }
            for entry in ring.completion() {
                let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                let Some(slot) = self.slots.get_mut(index) else {
                    continue;
                };
                if let Some(mut busy) = slot.busy.take() {
                    note(&slot.job, &busy, &self.shared, entry.result());
                    drop(busy.sync.take());
                    at_rest.push(busy);
                }
            }
        }
        *lock(&self.home) = Some(ring);
        drop(at_rest);
    }
}
