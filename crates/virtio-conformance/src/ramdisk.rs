// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A whole block device (VIRTIO 1.3, section 5.2), as an example for device authors: read its source.
//!
//! It has what an entropy device lacks: a configuration space, requests with a part to read and a
//! part to write, and an answer whose place is at the end. It passes the suite, and the published
//! `virtio-drivers` crate drives it in this family's tests.
//!
//! * Under the lease's lock a device touches guest memory and nothing that could make it wait.
//! * A chain is [checked](Chain::check) as a whole before a byte moves.
//! * Every chain that is taken is given back, also when the request is bad.
//! * One wake-up serves at most one queue-length of requests and interrupts at most once.

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_device_core::{
    Activation, ActiveQueue, BadRequest, Chain, Context, DeviceFault, Executor, Progress,
    QueueHandler, RingFault, VirtioDevice, Virtqueue,
};
use vm_memory::{GuestAddressSpace, GuestMemory};

const BLOCK_DEVICE: u32 = 2;
const QUEUE_SIZE: u16 = 128;
const SECTOR: usize = 512;

/// Types of requests (`VIRTIO_BLK_T_IN` and so on).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

/// Status values (`VIRTIO_BLK_S_OK` and so on), in the last byte that the driver lets the device
/// write.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// The sectors, shared with whoever made the disk.
type Disk = Arc<Mutex<Vec<u8>>>;

/// A block device whose sectors are in host memory: the half that vCPUs talk to.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use virtio_conformance::ramdisk::RamDisk;
/// use virtio_device_core::{VirtioDevice, WorkerThread};
/// use vm_memory::GuestMemoryMmap;
///
/// let sectors = Arc::new(Mutex::new(vec![0; 8 * 512]));
/// let disk = RamDisk::new(sectors.clone(), WorkerThread::named("disk")?);
/// let disk: Box<dyn VirtioDevice<Arc<GuestMemoryMmap>>> = Box::new(disk);
/// assert_eq!(disk.device_type(), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct RamDisk<E> {
    disk: Disk,
    executor: E,
}

impl<E: Executor> RamDisk<E> {
    /// Makes a disk of the whole sectors of `disk`.
    pub const fn new(disk: Disk, executor: E) -> Self {
        Self { disk, executor }
    }
}

impl<M, E: Executor> VirtioDevice<M> for RamDisk<E>
where
    M: GuestAddressSpace + Clone + Send + 'static,
{
    fn device_type(&self) -> u32 {
        BLOCK_DEVICE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// The configuration space has one field: the number of sectors.
    fn config_size(&self) -> u32 {
        8
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity = (disk.len() / SECTOR) as u64;
        let fields = capacity.to_le_bytes().into_iter().skip(offset as usize);
        data.iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
        activation.queue(0)?;
        activation.serve(&mut self.executor, |memory| Requests {
            memory,
            disk: self.disk.clone(),
            chain: Chain::with_capacity(QUEUE_SIZE),
        })
    }
}

/// Says nothing of what is on the disk.
impl<E> fmt::Debug for RamDisk<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamDisk").finish_non_exhaustive()
    }
}

/// The half of the device that serves the queue.
struct Requests<M> {
    memory: M,
    disk: Disk,
    chain: Chain,
}

impl<M: GuestAddressSpace + Send> QueueHandler for Requests<M> {
    /// Memory is as quick as it gets, so requests are served under the queue's lock. A device that
    /// has to wait for a backend does that between two looks at the queue.
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = self.memory.memory();
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let served = active
            .lease
            .with(|queue| self.batch(queue, &*memory, active, cx));
        // While the device is paused, and once the queue has been taken back, there is nothing to do.
        Ok(served.unwrap_or(Ok(Progress::Idle))?)
    }
}

impl<M> Requests<M> {
    fn batch(
        &mut self,
        queue: &mut Virtqueue,
        memory: &impl GuestMemory,
        active: &ActiveQueue,
        cx: &Context<'_>,
    ) -> Result<Progress, RingFault> {
        let mut progress = Progress::More;
        queue.disable_notification(memory)?;
        for _ in 0..QUEUE_SIZE {
            if let Some(head) = queue.take(memory, &mut self.chain)? {
                let len = self.serve(memory).unwrap_or_else(|error| {
                    cx.interrupt().bad_request(active.index, error);
                    0
                });
                queue.complete(memory, head, len)?;
            } else if !queue.enable_notification(memory)? {
                progress = Progress::Idle;
                break;
            }
        }
        if queue.needs_interrupt(memory)? {
            active.signal_used();
        }
        Ok(progress)
    }

    /// Serves one request, and returns how many bytes were written from the first writable one on.
    fn serve(&self, memory: &impl GuestMemory) -> Result<u32, BadRequest> {
        // All of it is in guest memory, or none of it is touched.
        self.chain.check(memory)?;
        let mut reader = self.chain.reader(memory);
        let header: [u8; 16] = reader.read_array()?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);

        // The answer is the last writable byte, and the data is what is before it.
        let room = self.chain.writable_len().checked_sub(1);
        let room = room.ok_or(BadRequest::Layout)?;
        let mut writer = self.chain.writer(memory);
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match u32::from_le_bytes([a, b, c, d]) {
            IN => match sectors(&mut disk, sector, room) {
                Some(data) => writer.write_all(data).map_or(IO_ERROR, |()| OK),
                None => IO_ERROR,
            },
            OUT => match sectors(&mut disk, sector, reader.remaining()) {
                Some(data) => reader.read_exact(data).map_or(IO_ERROR, |()| OK),
                None => IO_ERROR,
            },
            FLUSH => OK,
            _ => UNSUPPORTED,
        };
        // If the data was not written, the length ends before the gap.
        let mut len = writer.written();
        writer.skip(room - u64::from(len));
        if writer.write_all(&[answer]).is_ok() && u64::from(len) == room {
            len += 1;
        }
        Ok(len)
    }
}

/// The `len` bytes from `sector` on, if they are whole sectors of the disk.
fn sectors(disk: &mut [u8], sector: u64, len: u64) -> Option<&mut [u8]> {
    let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
    let len = usize::try_from(len).ok().filter(|len| len % SECTOR == 0)?;
    disk.get_mut(start..start.checked_add(len)?)
}
