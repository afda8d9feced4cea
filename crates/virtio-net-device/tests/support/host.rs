// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that does as it is told, and remembers what was asked of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_device_core::Features;
use virtio_net_device::{Backend, Buffers};

/// The back end of one pair of queues; clones are the same.
#[derive(Clone)]
pub struct Host {
    state: Arc<Mutex<State>>,
    /// Never waited for: a loop that works step by step does not wait.
    fd: Arc<File>,
}

pub struct State {
    /// Packets to come, each with its header.
    pub incoming: VecDeque<Vec<u8>>,
    /// Packets that were sent, each with its header.
    pub sent: Vec<Vec<u8>>,
    /// How many more it takes.
    pub room: usize,
    /// What happens while the next packet comes.
    pub meanwhile: Option<Box<dyn FnOnce() + Send>>,
    /// What it says to everything.
    pub error: Option<i32>,
    /// What it says to the next packet alone.
    pub refuses: bool,
    /// Whether it refuses other offloads.
    pub stubborn: bool,
    pub can: u64,
    /// What `set_offloads` was called with.
    pub offloads: Vec<u64>,
    pub active: bool,
    /// Whether it refuses to take part, or not to.
    pub idle: bool,
    /// What happens when it is next told to take part.
    pub joins: Option<Box<dyn FnOnce() + Send>>,
    /// How long it says the last packet is, whatever it wrote.
    pub lies: Option<usize>,
    /// How often it was asked for a packet, and how often to open again.
    pub asked: usize,
    pub reopened: usize,
}

impl Host {
    pub fn new() -> Self {
        let state = State {
            incoming: VecDeque::new(),
            sent: Vec::new(),
            room: usize::MAX,
            meanwhile: None,
            error: None,
            refuses: false,
            stubborn: false,
            can: u64::MAX,
            offloads: Vec::new(),
            active: false,
            idle: false,
            joins: None,
            lies: None,
            asked: 0,
            reopened: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            fd: Arc::new(File::open("/dev/null").unwrap()),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Has a packet come.
    pub fn give(&self, header: [u8; 12], frame: &[u8]) {
        let packet = super::packet(header, frame);
        self.state().incoming.push_back(packet);
    }

    /// What was sent since this was last called.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.state().sent)
    }
}

impl State {
    fn mood(&self) -> io::Result<()> {
        let error = self.error.map(io::Error::from_raw_os_error);
        error.map_or(Ok(()), Err)
    }
}

impl Backend for Host {
    fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize> {
        let mut state = self.state();
        state.asked += 1;
        state.mood()?;
        assert!(packet.bytes() > 65_565, "room for the longest packet");
        let bytes = state.incoming.pop_front().ok_or(ErrorKind::WouldBlock)?;
        let happens = state.meanwhile.take();
        happens.into_iter().for_each(|happens| happens());
        let len = packet.copy_from(0, &bytes);
        let last = state.incoming.is_empty();
        Ok(state.lies.take_if(|_| last).unwrap_or(len))
    }

    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
        let mut state = self.state();
        state.mood()?;
        if std::mem::take(&mut state.refuses) {
            return Err(ErrorKind::InvalidInput.into());
        }
        state.room = state.room.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
        let mut bytes = vec![0; packet.bytes() as usize];
        packet.copy_to(0, &mut bytes);
        state.sent.push(bytes);
        Ok(())
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn offloads(&self) -> Features {
        Features::from(self.state().can)
    }

    fn set_offloads(&mut self, offloads: Features) -> io::Result<()> {
        let mut state = self.state();
        state.mood()?;
        if state.stubborn {
            return Err(ErrorKind::InvalidInput.into());
        }
        state.offloads.push(offloads.low());
        Ok(())
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if self.state().idle {
            return Err(ErrorKind::PermissionDenied.into());
        }
        let joins = self.state().joins.take_if(|_| active);
        joins.into_iter().for_each(|joins| joins());
        self.state().active = active;
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut state = self.state();
        state.reopened += 1;
        state.mood()
    }
}
