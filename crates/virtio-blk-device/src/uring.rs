// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as a queue's worker sees it: many requests in flight, by the kernel's `io_uring`.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by its address"
)]

mod syncs;

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
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
use crate::worker::Job;
use syncs::Syncing;
pub(crate) use syncs::Syncs;

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
}

/// What the kernel is at work on. A write and its sync at once would fail with one error, which does not
/// say whether anything is lost that was written before.
enum Stage {
    /// What is asked for, but for a sync.
    Whole,
    /// A sync of all of the file.
    Sync(Syncing),
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
            let request = match slot.job.begin(rings, &self.shared, self.queue, cx) {
                Ok(request) => request,
                refused => {
                    let len = slot.job.serve(&*memory, &self.shared, refused);
                    let finish = |ring: &mut Virtqueue| complete(ring, &*memory, active, head, len);
                    in_flight.with(finish).unwrap_or(Ok(()))?;
                    continue;
                }
            };
            self.free.pop();
            let entry = entry(&mut slot.job, &*memory, &request, &self.shared, index);
            let busy = Busy {
                head,
                request,
                stage: Stage::Whole,
                memory: memory.clone(),
                active: active.clone(),
                in_flight,
            };
            match (entry, &mut self.ring) {
                (Some(entry), Some(ring)) => {
                    slot.busy = Some(busy);
                    // SAFETY: vectors, memory and file stay as they are until the entry is
                    // complete: they are in the slot, which is busy, and in `shared`.
                    unsafe { push(ring, &entry) }?;
                }
                _ => {
                    let done = run_unsynced(&mut slot.job, &busy, &self.shared);
                    self.go_on(index, busy, done)?;
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

    /// Goes on with the requests that the kernel is done with.
    fn reap(&mut self) -> Result<(), DeviceFault> {
        // One at a time: whatever becomes of it, the others are still there.
        while let Some(entry) = (self.ring.as_mut()).and_then(|ring| ring.completion().next()) {
            let index = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                continue;
            };
            let Some(busy) = slot.busy.take() else {
                continue;
            };
            let done = ended(&mut slot.job, &busy, &self.shared, entry.result());
            self.go_on(index, busy, done)?;
        }
        Ok(())
    }

    /// Goes on with a request of which a stage has ended: with its sync, or to its end.
    fn go_on(
        &mut self,
        index: u16,
        mut busy: Busy<M::T>,
        mut done: io::Result<()>,
    ) -> Result<(), DeviceFault> {
        let (ring, slot) = (&mut self.ring, self.slots.get_mut(usize::from(index)));
        let (Some(ring), Some(slot)) = (ring, slot) else {
            return Ok(());
        };
        let wants_sync = matches!(busy.stage, Stage::Whole)
            && done.is_ok()
            && self.shared.wants_sync(&busy.request)
            && !busy.in_flight.is_revoked();
        match wants_sync.then(|| self.shared.backend.as_file()) {
            Some(Some(file)) => {
                busy.stage = Stage::Sync(file.syncs.begin());
                slot.busy = Some(busy);
                let entry = sync(file).user_data(index.into());
                // SAFETY: the file lives in `shared`, and the slot is busy.
                return unsafe { push(ring, &entry) };
            }
            // It is no file any more.
            Some(None) => done = self.shared.backend.flush(),
            None => {}
        }
        match (&mut busy.stage, &done) {
            (Stage::Sync(sync), Ok(())) => {
                sync.end();
                slot.busy = Some(busy);
                self.synced.push(index);
                Ok(())
            }
            _ => {
                self.free.push(index);
                Ok(finish(&slot.job, busy, &self.shared, done)?)
            }
        }
    }

    /// Completes the requests whose syncs have succeeded, as far as that is certain by now.
    fn settle(&mut self) -> Result<(), RingFault> {
        let (slots, free, shared) = (&mut self.slots, &mut self.free, &self.shared);
        let mut finished = Ok(());
        self.synced.retain(|&index| {
            let Some(slot) = slots.get_mut(usize::from(index)) else {
                return false;
            };
            let certain = |busy: &mut Busy<M::T>| match &busy.stage {
                Stage::Sync(sync) => busy.in_flight.is_revoked() || sync.is_settled(),
                Stage::Whole => true,
            };
            let Some(busy) = slot.busy.take_if(certain) else {
                return true;
            };
            free.push(index);
            let now = finish(&slot.job, busy, shared, Ok(()));
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
unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) -> Result<(), DeviceFault> {
    // SAFETY: as the caller says.
    let pushed = unsafe { ring.submission().push(entry) };
    // There are as many entries as there are slots.
    pushed.map_err(|full| DeviceFault::Backend(io::Error::other(full)))
}

/// A sync of all of the file.
fn sync(file: &FileBackend) -> squeue::Entry {
    let sync = opcode::Fsync::new(Fd(file.file().as_raw_fd()));
    sync.flags(FsyncFlags::DATASYNC).build()
}

/// How a stage has ended. What the kernel has done in part, or has no such way for, is done again, and
/// waited for; of a request that nobody wants any more, nothing is.
fn ended<T, G>(job: &mut Job, busy: &Busy<T>, shared: &Shared, result: i32) -> io::Result<()>
where
    T: std::ops::Deref<Target = G>,
    G: vm_memory::GuestMemory,
{
    let is_wanted = !busy.in_flight.is_revoked();
    let is_whole = |count| u64::from(count) == busy.request.moved();
    match (&busy.stage, count(result)) {
        (Stage::Sync(_), Err(error)) if is_wanted && is_for_another_way(&error) => {
            shared.backend.flush()
        }
        (Stage::Whole, Err(error)) if is_wanted && is_for_another_way(&error) => {
            run_unsynced(job, busy, shared)
        }
        (Stage::Whole, Ok(count)) if is_wanted && !is_whole(count) => {
            run_unsynced(job, busy, shared)
        }
        (_, done) => done.map(drop),
    }
}

/// What an entry has ended with.
fn count(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

/// Does what is asked for, but for a sync, and waits for it.
fn run_unsynced<T, G>(job: &mut Job, busy: &Busy<T>, shared: &Shared) -> io::Result<()>
where
    T: std::ops::Deref<Target = G>,
    G: vm_memory::GuestMemory,
{
    let buffers = job.buffers(&*busy.memory, &busy.request);
    let buffers = buffers.map_err(|_| io::ErrorKind::InvalidData)?;
    shared.run_unsynced(&busy.request, &buffers)
}

/// Completes a request.
fn finish<T, G>(
    job: &Job,
    mut busy: Busy<T>,
    shared: &Shared,
    done: io::Result<()>,
) -> Result<(), RingFault>
where
    T: std::ops::Deref<Target = G>,
    G: vm_memory::GuestMemory,
{
    let done = note(job, &mut busy, shared, done);
    if busy.in_flight.is_revoked() {
        return Ok(());
    }
    let outcome = shared.outcome(&busy.request, done);
    let finish = |ring: &mut Virtqueue| {
        let len = job.end(&*busy.memory, shared, Some(busy.request), outcome);
        complete(ring, &*busy.memory, &busy.active, busy.head, len)
    };
    busy.in_flight.with(finish).unwrap_or(Ok(()))
}

/// Takes note of what the kernel has done, also if nobody wants it any more: what it has read, and how a
/// sync has ended, of which it does not tell the next one. Returns how that is told.
fn note<T, G>(
    job: &Job,
    busy: &mut Busy<T>,
    shared: &Shared,
    done: io::Result<()>,
) -> io::Result<()>
where
    T: std::ops::Deref<Target = G>,
    G: vm_memory::GuestMemory,
{
    job.note(&*busy.memory, Some(&busy.request));
    let Stage::Sync(sync) = &mut busy.stage else {
        return done;
    };
    let told = match shared.backend.as_file() {
        Some(file) => file.synced(done),
        None => done,
    };
    sync.end();
    told
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
        Operation::Discard | Operation::WriteZeroes if len != 0 => {
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
                    // Nobody will learn how these syncs end: they count as failed, so that no other queue
                    // waits for them.
                    for slot in &mut self.slots {
                        if let Some(busy) = &mut slot.busy {
                            let unknown = Err(io::ErrorKind::Other.into());
                            let _ = note(&slot.job, busy, &self.shared, unknown);
                        }
                    }
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
                    let done = count(entry.result()).map(drop);
                    let _ = note(&slot.job, &mut busy, &self.shared, done);
                    at_rest.push(busy);
                }
            }
        }
        *lock(&self.home) = Some(ring);
        drop(at_rest);
    }
}
