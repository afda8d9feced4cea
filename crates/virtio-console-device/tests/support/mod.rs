// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that drives a console through the core alone, step by step, and the host's other end.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "each test uses a part of it, and stops at the unexpected"
)]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_console_device::{Console, ConsoleEvent, ConsoleObserver, Port};
use virtio_device_core::{
    Activation, ConfigNotifier, DeviceState, Event, Features, LoopHandle, VIRTIO_F_EVENT_IDX,
    VirtioDevice, Virtqueue, WorkerLoop,
    transport::{Interrupt, QueueProgress, Session},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub type Memory = &'static GuestMemoryMmap<()>;
pub type Device = Console<LoopHandle>;

/// Far beyond what a healthy device takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);
/// Descriptors of each queue.
pub const SIZE: u16 = 16;
/// Room for each descriptor's buffer.
pub const ROOM: usize = 0x1000;

pub const RX: usize = 0;
pub const TX: usize = 1;
pub const CONTROL_RX: usize = 2;
pub const CONTROL_TX: usize = 3;

/// What the driver and the VMM have been told.
#[derive(Default)]
pub struct Told {
    pub used: AtomicU32,
    pub config: AtomicU32,
    pub generation: AtomicU32,
    pub events: Mutex<Vec<String>>,
    /// What happens when the next configuration interrupt is raised.
    pub on_config: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// What happens when a queue's interrupt is raised next.
    pub on_used: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Told {
    pub fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }
}

impl Interrupt for Told {
    fn used_buffers(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
        let happens = self.on_used.lock().unwrap().take();
        happens.into_iter().for_each(|happens| happens());
    }

    fn config_changing(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn config_settled(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn config_interrupt(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
        let happens = self.on_config.lock().unwrap().take();
        happens.into_iter().for_each(|happens| happens());
    }

    fn observe(&self, event: &Event<'_>) {
        self.events.lock().unwrap().push(format!("{event:?}"));
    }
}

impl ConsoleObserver for Told {
    fn event(&self, event: &ConsoleEvent<'_>) {
        self.events.lock().unwrap().push(format!("{event:?}"));
    }
}

/// A queue as the driver has it: which chains are with the device, and which descriptors are free.
pub struct Queue {
    pub ring: DriverQueue<'static, GuestMemoryMmap<()>>,
    memory: Memory,
    index: usize,
    free: Vec<u16>,
    /// The available index up to which the device was notified.
    notified: u16,
    /// In the order in which they were offered: descriptors and lengths.
    pub offered: VecDeque<Vec<(u16, usize)>>,
}

impl Queue {
    fn new(memory: Memory, index: usize) -> Self {
        Self {
            ring: DriverQueue::new(memory, 0x1000 * (index as u64 + 1), SIZE),
            memory,
            index,
            free: (0..SIZE).rev().collect(),
            notified: 0,
            offered: VecDeque::new(),
        }
    }

    /// Whether the device wants to be notified of what is new since it was last time.
    fn wants_kick(&mut self, event_idx: bool) -> bool {
        let new = self.ring.avail_index();
        let old = std::mem::replace(&mut self.notified, new);
        if event_idx {
            let passed = new.wrapping_sub(self.ring.avail_event()).wrapping_sub(1);
            passed < new.wrapping_sub(old)
        } else {
            self.ring.used_flags() & 1 == 0
        }
    }

    pub fn addr(&self, descriptor: u16) -> GuestAddress {
        let buffer = self.index * usize::from(SIZE) + usize::from(descriptor);
        GuestAddress((0x10_0000 + buffer * ROOM) as u64)
    }

    /// Offers a chain of buffers of these lengths; says whether there were enough descriptors.
    fn offer(&mut self, lens: &[usize], flags: u16, fill: impl Fn(usize, GuestAddress)) -> bool {
        if self.free.len() < lens.len() || lens.is_empty() {
            return false;
        }
        let chain: Vec<_> = (lens.iter())
            .map(|&len| (self.free.pop().unwrap(), len))
            .collect();
        for (place, &(descriptor, len)) in chain.iter().enumerate() {
            let addr = self.addr(descriptor);
            fill(place, addr);
            let next = chain.get(place + 1).map(|next| next.0);
            let more = next.map_or(0, |_| VIRTQ_DESC_F_NEXT);
            let next = next.unwrap_or(0);
            self.ring
                .descriptor(descriptor, addr.0, len as u32, flags | more, next);
        }
        self.ring.offer(chain[0].0);
        self.offered.push_back(chain);
        true
    }

    /// Offers a chain to write to.
    pub fn offer_room(&mut self, lens: &[usize]) -> bool {
        self.offer(lens, VIRTQ_DESC_F_WRITE, |_, _| {})
    }

    /// Offers a chain of these bytes to read.
    pub fn offer_bytes(&mut self, pieces: &[&[u8]]) -> bool {
        let lens: Vec<_> = pieces.iter().map(|piece| piece.len()).collect();
        let memory = self.memory;
        self.offer(&lens, 0, |place, addr| {
            memory.write_slice(pieces[place], addr).unwrap();
        })
    }

    /// What came back since last time: for each chain, what was written to it, or the number of its
    /// bytes that were the device's to read.
    pub fn take(&mut self) -> Vec<(Vec<u8>, usize)> {
        let used = self.ring.take_used();
        let take = |(head, len): (u32, u32)| {
            let chain = self.offered.pop_front().unwrap();
            assert_eq!(u32::from(chain[0].0), head, "out of order");
            let mut bytes = Vec::new();
            let mut left = len as usize;
            for &(descriptor, len) in &chain {
                let mut part = vec![0; len.min(left)];
                left -= part.len();
                self.memory
                    .read_slice(&mut part, self.addr(descriptor))
                    .unwrap();
                bytes.extend(part);
                self.free.push(descriptor);
            }
            assert_eq!(left, 0, "more was used than was offered");
            (bytes, chain.iter().map(|part| part.1).sum())
        };
        used.into_iter().map(take).collect()
    }
}

/// What moves from one machine to another.
pub struct Saved {
    pub state: DeviceState,
    progress: Vec<Option<QueueProgress>>,
    paused: bool,
}

/// A machine with one console.
pub struct Guest {
    pub memory: Memory,
    pub device: Device,
    pub workers: WorkerLoop,
    pub told: Arc<Told>,
    pub session: Option<Session>,
    pub queues: Vec<Queue>,
    config: ConfigNotifier,
    kicks: Vec<Arc<EventFd>>,
    features: Features,
    paused: bool,
}

impl Guest {
    /// A machine whose driver accepts `features`, not yet started.
    pub fn new(ports: Vec<Port>, features: Features) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap();
        Self::with_memory(Box::leak(Box::new(memory)), ports, features)
    }

    fn with_memory(memory: Memory, mut ports: Vec<Port>, features: Features) -> Self {
        let workers = WorkerLoop::new().unwrap();
        let executor = workers.handle();
        let told = Arc::new(Told::default());
        let device = if ports.len() == 1 {
            Console::new(ports.remove(0), executor).unwrap()
        } else {
            Console::with_ports(ports, executor).unwrap()
        };
        let mut device = device.with_observer(told.clone());
        let config = ConfigNotifier::new(told.clone());
        VirtioDevice::<Memory>::connect(&mut device, config.clone());
        let count = VirtioDevice::<Memory>::queue_max_sizes(&device).len();
        let kick = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self {
            memory,
            device,
            workers,
            told,
            session: None,
            queues: (0..count).map(|index| Queue::new(memory, index)).collect(),
            config,
            kicks: std::iter::repeat_with(kick).take(count).collect(),
            features,
            paused: false,
        }
    }

    fn activate(&mut self, queues: Vec<Option<Virtqueue>>) {
        let queues = (0..).zip(queues).map(|(index, queue)| {
            let kick = self.kicks[usize::from(index)].clone();
            (index, kick, queue)
        });
        let (session, activation): (_, Activation<Memory>) = Session::new(
            &self.config,
            self.memory,
            self.features,
            queues,
            self.paused,
        );
        self.device.activate(activation).unwrap();
        session.activated();
        session.kick_all();
        self.session = Some(session);
    }

    fn fresh_queue(&self, index: usize) -> Virtqueue {
        Virtqueue::new(self.queues[index].ring.layout(), self.features)
    }

    /// Makes the device live with all of its queues.
    pub fn start(mut self) -> Self {
        let queues = 0..self.queues.len();
        self.activate(queues.map(|index| Some(self.fresh_queue(index))).collect());
        self.settle();
        self
    }

    /// Resets the device and starts it again with empty queues.
    pub fn restart(&mut self) {
        let session = self.session.take().unwrap();
        session.revoke();
        VirtioDevice::<Memory>::reset(&mut self.device);
        assert!(session.wait_idle(Some(SOON)));
        for index in 0..self.queues.len() {
            self.queues[index] = Queue::new(self.memory, index);
        }
        let queues = 0..self.queues.len();
        self.activate(queues.map(|index| Some(self.fresh_queue(index))).collect());
    }

    pub fn session(&self) -> &Session {
        self.session.as_ref().unwrap()
    }

    /// Takes one queue back. What it has used by now can still be taken.
    pub fn stop_queue(&mut self, index: usize) {
        self.session().revoke_queue(index as u16);
        assert!(self.session().wait_queue_idle(index as u16, Some(SOON)));
    }

    /// Enables one queue again, empty.
    pub fn restart_queue(&mut self, index: usize) {
        self.queues[index] = Queue::new(self.memory, index);
        let queue = self.fresh_queue(index);
        let session = self.session.as_mut().unwrap();
        assert!(session.restart_queue(index as u16, queue));
    }

    pub fn pause(&mut self) {
        self.session().pause();
        assert!(self.session().wait_idle(Some(SOON)));
        self.paused = true;
    }

    pub fn resume(&mut self) {
        self.paused = false;
        self.session().resume();
    }

    pub fn save(&self) -> Saved {
        let progress = |index| self.session().inspect(index, Virtqueue::progress);
        Saved {
            state: VirtioDevice::<Memory>::save(&self.device),
            progress: (0..self.queues.len() as u16).map(progress).collect(),
            paused: self.paused,
        }
    }

    /// Goes on in another machine, with the same memory and other descriptors of the host.
    pub fn move_to(mut self, ports: Vec<Port>, saved: &Saved) -> Self {
        self.session.take().unwrap().revoke();
        let mut moved = Self::with_memory_kept(self, ports);
        VirtioDevice::<Memory>::restore(&mut moved.device, &saved.state).unwrap();
        let again: DeviceState = VirtioDevice::<Memory>::save(&moved.device);
        assert_eq!(again, saved.state, "saved again");
        moved.paused = saved.paused;
        let queue = |(queue, progress): (&Queue, &Option<QueueProgress>)| {
            let (layout, progress) = (queue.ring.layout(), progress.as_ref()?);
            Some(Virtqueue::resume(layout, moved.features, progress).unwrap())
        };
        let queues = moved.queues.iter().zip(&saved.progress).map(queue);
        let queues = queues.collect();
        moved.activate(queues);
        moved
    }

    fn with_memory_kept(self, ports: Vec<Port>) -> Self {
        let Self {
            memory,
            queues,
            features,
            ..
        } = self;
        // Making the new machine's queues clears their rings, so that comes before they are kept.
        let mut rings = vec![0; 0x1000 * (queues.len() + 1)];
        memory.read_slice(&mut rings, GuestAddress(0)).unwrap();
        let mut moved = Self::with_memory(memory, ports, features);
        memory.write_slice(&rings, GuestAddress(0)).unwrap();
        moved.queues = queues;
        moved
    }

    /// Notifies the device, if it wants to be.
    pub fn kick(&mut self, index: usize) {
        if self.queues[index].wants_kick(self.features.has(VIRTIO_F_EVENT_IDX)) {
            self.kicks[index].write(1).unwrap();
        }
    }

    /// Has the device do what it can do without waiting.
    pub fn settle(&mut self) {
        for _ in 0..8 {
            self.workers.dispatch().unwrap();
        }
    }

    /// Runs the device until `done`.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not in time");
            self.workers.dispatch().unwrap();
        }
    }

    /// How many times the loop has something to do in a while: one that spins has it always.
    pub fn wakeups(&mut self, time: Duration) -> usize {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        let fd = self.workers.as_raw_fd();
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        let deadline = Instant::now() + time;
        let mut count = 0;
        while Instant::now() < deadline {
            if epoll.wait(5, &mut [event]).unwrap() != 0 {
                count += 1;
                self.workers.dispatch().unwrap();
            }
        }
        count
    }

    /// Sends as much as the host lets the device take; returns how many bytes that was.
    pub fn fill(&mut self, index: usize) -> usize {
        let mut offered = 0;
        while self.queues[index].offer_bytes(&[&pattern(offered, 4096)]) {
            self.kick(index);
            self.settle();
            self.queues[index].take();
            offered += 4096;
        }
        offered
    }

    /// Runs the device until it has none of a queue's chains.
    pub fn until_all_are_back(&mut self, index: usize) {
        self.until("nobody waits", |guest| {
            guest.queues[index].take();
            guest.queues[index].offered.is_empty()
        });
    }

    /// Sends bytes to the device's queue `index` and notifies it.
    pub fn say(&mut self, index: usize, bytes: &[u8]) {
        assert!(self.queues[index].offer_bytes(&[bytes]));
        self.kick(index);
    }

    /// Sends a control message.
    pub fn control(&mut self, port: u32, event: u16, value: u16) {
        let message = [
            &port.to_le_bytes()[..],
            &event.to_le_bytes(),
            &value.to_le_bytes(),
        ];
        self.say(CONTROL_TX, &message.concat());
        self.settle();
    }

    /// The control messages that have come.
    pub fn news(&mut self) -> Vec<Vec<u8>> {
        let news = self.queues[CONTROL_RX].take();
        news.into_iter().map(|(bytes, _)| bytes).collect()
    }

    /// Everything that the guest has read from queue `index` since last time.
    pub fn read(&mut self, index: usize) -> Vec<u8> {
        let chains = self.queues[index].take();
        chains.into_iter().flat_map(|(bytes, _)| bytes).collect()
    }
}

/// A console over a socket, and the host's other end, which does not wait.
pub fn socket() -> (Port, UnixStream, UnixStream) {
    let (host, device) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    // As little room as there can be, so that chains are sent in parts.
    rustix::net::sockopt::set_socket_send_buffer_size(&device, 1).unwrap();
    (port(&device), host, device)
}

/// A port over both directions of `device`, which stays with the caller.
pub fn port(device: &UnixStream) -> Port {
    let clone = || device.try_clone().unwrap();
    Port::new(clone(), clone()).unwrap()
}

/// What can be read now.
pub fn available(host: &mut impl Read, most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() < most {
        let room = piece.len().min(most - bytes.len());
        match host.read(&mut piece[..room]) {
            Ok(0) => break,
            Ok(count) => bytes.extend(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => unreachable!("{error}"),
        }
    }
    bytes
}

/// Bytes that tell where they are.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|place| (place % 251) as u8)
        .collect()
}
