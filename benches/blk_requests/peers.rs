// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stand-ins for the block devices of other monitors.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by its address"
)]

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use virtio_device_core::transport::QueueLayout;
use virtio_device_core::vmm_sys_util::epoll::EventSet;
use virtio_device_core::{Context, DeviceFault, Progress, QueueHandler};
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Address as _, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend as _, GuestMemoryMmap,
    Permissions, ReadVolatile as _, WriteVolatile as _,
};

type Memory = Arc<GuestMemoryMmap<()>>;

fn queue(layout: &QueueLayout) -> Queue {
    let mut queue = Queue::new(layout.size()).unwrap();
    queue.set_size(layout.size());
    let low = |addr: GuestAddress| Some(addr.raw_value() as u32);
    queue.set_desc_table_address(low(layout.desc_table()), None);
    queue.set_avail_ring_address(low(layout.avail_ring()), None);
    queue.set_used_ring_address(low(layout.used_ring()), None);
    queue.set_ready(true);
    queue
}

/// A request as its three descriptors say it.
struct Request {
    head: u16,
    write: bool,
    offset: u64,
    data: GuestAddress,
    len: u32,
    status: GuestAddress,
}

fn next(queue: &mut Queue, memory: &GuestMemoryMmap<()>) -> Option<Request> {
    let mut chain = queue.pop_descriptor_chain(memory)?;
    let head = chain.head_index();
    let header = chain.next()?;
    let kind: u32 = memory.read_obj(header.addr()).ok()?;
    let sector: u64 = memory.read_obj(header.addr().unchecked_add(8)).ok()?;
    let (data, status) = (chain.next()?, chain.next()?);
    Some(Request {
        head,
        write: kind == 1,
        offset: 512 * sector,
        data: data.addr(),
        len: data.len(),
        status: status.addr(),
    })
}

fn complete(queue: &mut Queue, memory: &GuestMemoryMmap<()>, request: &Request) {
    memory.write_obj(0_u8, request.status).unwrap();
    let len = if request.write { 1 } else { request.len + 1 };
    queue.add_used(memory, request.head, len).unwrap();
}

fn vector(memory: &GuestMemoryMmap<()>, request: &Request) -> libc::iovec {
    let base = memory.get_host_address(request.data).unwrap();
    libc::iovec {
        iov_base: base.cast(),
        iov_len: request.len as usize,
    }
}

/// How a synchronous peer moves data.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// Sets the file's position, then reads or writes each descriptor.
    EachDescriptor,
    /// One vectored call with an offset.
    Vectored,
}

/// Waits for one request after the other.
pub(crate) struct Sync {
    memory: Memory,
    queue: Queue,
    file: File,
    way: Way,
}

impl Sync {
    pub(crate) fn new(memory: Memory, layout: &QueueLayout, file: File, way: Way) -> Self {
        let queue = queue(layout);
        Self {
            memory,
            queue,
            file,
            way,
        }
    }

    fn move_data(&mut self, request: &Request) {
        match self.way {
            Way::EachDescriptor => {
                self.file.seek(SeekFrom::Start(request.offset)).unwrap();
                let len = request.len as usize;
                let all = Permissions::ReadWrite;
                let slices = GuestMemory::get_slices(&*self.memory, request.data, len, all);
                for slice in slices.unwrap() {
                    let mut slice = slice.unwrap();
                    match request.write {
                        true => self.file.write_all_volatile(&slice).unwrap(),
                        false => self.file.read_exact_volatile(&mut slice).unwrap(),
                    }
                }
            }
            Way::Vectored => {
                let (fd, vector) = (self.file.as_raw_fd(), vector(&self.memory, request));
                let call = if request.write {
                    libc::pwritev
                } else {
                    libc::preadv
                };
                let offset = request.offset as i64;
                // SAFETY: the vector is guest memory, which lives as long as this.
                let moved = unsafe { call(fd, &raw const vector, 1, offset) };
                assert_eq!(moved, request.len as isize);
            }
        }
    }
}

impl QueueHandler for Sync {
    fn process(&mut self, _: u16, _: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = self.memory.clone();
        while let Some(request) = next(&mut self.queue, &memory) {
            self.move_data(&request);
            complete(&mut self.queue, &memory, &request);
        }
        Ok(Progress::Idle)
    }
}

/// Has the kernel work on all requests at once; submits what one notification brings together.
pub(crate) struct Uring {
    memory: Memory,
    queue: Queue,
    file: File,
    ring: IoUring,
    /// By their heads: what the kernel is at work on.
    requests: Vec<Option<(Request, Box<libc::iovec>)>>,
}

// SAFETY: the vectors are guest memory, which is everybody's.
unsafe impl Send for Uring {}

impl Uring {
    pub(crate) fn new(memory: Memory, layout: &QueueLayout, file: File) -> Self {
        Self {
            memory,
            queue: queue(layout),
            file,
            ring: IoUring::new(layout.size().into()).unwrap(),
            requests: (0..layout.size()).map(|_| None).collect(),
        }
    }
}

impl QueueHandler for Uring {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        // SAFETY: the ring lives longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        cx.watch_in_flight(0, fd).map_err(DeviceFault::Backend)
    }

    fn process(&mut self, _: u16, _: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = self.memory.clone();
        while let Some(request) = next(&mut self.queue, &memory) {
            let vector = Box::new(vector(&memory, &request));
            let fd = types::Fd(self.file.as_raw_fd());
            let (place, head) = (&raw const *vector, request.head);
            let entry = match request.write {
                true => opcode::Writev::new(fd, place, 1)
                    .offset(request.offset)
                    .build(),
                false => opcode::Readv::new(fd, place, 1)
                    .offset(request.offset)
                    .build(),
            };
            self.requests[usize::from(head)] = Some((request, vector));
            // SAFETY: the vector is kept until the entry is complete, and guest memory for longer.
            unsafe { self.ring.submission().push(&entry.user_data(head.into())) }.unwrap();
        }
        self.ring.submit().unwrap();
        Ok(Progress::Idle)
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        for entry in self.ring.completion() {
            let (request, _) = self.requests[entry.user_data() as usize].take().unwrap();
            assert_eq!(entry.result(), request.len as i32);
            complete(&mut self.queue, &self.memory, &request);
        }
        Ok(Progress::Idle)
    }
}
