// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an entropy device does with its queue, written from VIRTIO 1.3, sections 2.7 and 5.4, and
//! from what the device's documentation says where the specification leaves it open. It shares no
//! code with the device.

use virtio_device_core::transport::QueueSetup;

use crate::machine::{REGIONS, Stream};

const MOST: u64 = 65_536;
const LOOKS: u32 = 256;

/// A breach of the ring's rules: the device stops.
struct Fault;

pub struct Model {
    pub memory: Vec<u8>,
    pub stream: Stream,
    setup: QueueSetup,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    next_used: u16,
    /// Requests given back since the driver's wish was looked at.
    added: u16,
    /// DEVICE_NEEDS_RESET.
    pub broken: bool,
    pub causes: u32,
    pub raised: u32,
}

impl Model {
    pub fn new(memory: Vec<u8>, stream: Stream, setup: QueueSetup, features: u64) -> Self {
        Self {
            memory,
            stream,
            setup,
            event_idx: features & 1 << 29 != 0,
            indirect: features & 1 << 28 != 0,
            next_avail: 0,
            next_used: 0,
            added: 0,
            broken: false,
            causes: 0,
            raised: 0,
        }
    }

    fn size(&self) -> u64 {
        self.setup.size.into()
    }

    fn number<const N: usize>(&self, addr: u64) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.memory[addr as usize..][..N]);
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) {
        self.memory[addr as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// One wake-up. Returns whether the device wants another one.
    pub fn wake(&mut self) -> bool {
        if self.broken {
            return false;
        }
        match self.serve() {
            Ok((more, interrupts)) => {
                if interrupts {
                    self.raise(1);
                }
                if self.broken {
                    self.raise(2);
                }
                more
            }
            Err(Fault) => {
                self.broken = true;
                self.raise(2);
                false
            }
        }
    }

    fn raise(&mut self, cause: u32) {
        self.causes |= cause;
        self.raised += 1;
    }

    /// Returns whether there is more to do, and whether the driver is to be interrupted.
    fn serve(&mut self) -> Result<(bool, bool), Fault> {
        let mut more = true;
        self.want_notifications(false);
        for _ in 0..LOOKS {
            let Some(head) = self.take()? else {
                self.want_notifications(true);
                let index = self.number::<2>(self.setup.avail_ring + 2);
                if index == u64::from(self.next_avail) {
                    more = false;
                    break;
                }
                self.want_notifications(false);
                continue;
            };
            let chain = self.chain(head)?;
            let wanted = self.wanted(&chain);
            let bytes = if wanted == 0 {
                Vec::new()
            } else {
                let bytes = self.stream.take(wanted);
                if bytes.is_empty() {
                    // The source is at its end, and the request stays where it is.
                    self.broken = true;
                    more = false;
                    break;
                }
                bytes
            };
            self.fill(&chain, &bytes);
            self.give_back(head, bytes.len());
        }
        Ok((more, self.wants_interrupt()))
    }

    fn want_notifications(&mut self, wanted: bool) {
        if !self.event_idx {
            self.write(self.setup.used_ring, &[u8::from(!wanted), 0]);
        } else if wanted {
            let event = self.setup.used_ring + 4 + 8 * self.size();
            self.write(event, &self.next_avail.to_le_bytes());
        }
    }

    fn take(&mut self) -> Result<Option<u16>, Fault> {
        let index = self.number::<2>(self.setup.avail_ring + 2) as u16;
        let ahead = u64::from(index.wrapping_sub(self.next_avail));
        if ahead == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_avail) % self.size();
        let head = self.number::<2>(self.setup.avail_ring + 4 + 2 * slot);
        if ahead > self.size() || head >= self.size() {
            return Err(Fault);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head as u16))
    }

    /// The buffers of a chain: address, length, whether it is for the device to write.
    fn chain(&self, head: u16) -> Result<Vec<(u64, u64, bool)>, Fault> {
        let mut chain = Vec::new();
        let (mut table, mut entries, mut direct) = (self.setup.desc_table, self.size(), true);
        let mut index = u64::from(head);
        loop {
            if index >= entries {
                return Err(Fault);
            }
            let at = table + 16 * index;
            let (addr, len) = (self.number::<8>(at), self.number::<4>(at + 8));
            let (flags, next) = (self.number::<2>(at + 12), self.number::<2>(at + 14));
            if flags & 4 != 0 {
                let sound = self.indirect && direct && flags & 1 == 0 && len % 16 == 0;
                if !sound || len == 0 || !exists(addr, len) {
                    return Err(Fault);
                }
                (table, entries, direct, index) = (addr, len / 16, false, 0);
                continue;
            }
            if chain.len() as u64 == self.size() {
                return Err(Fault);
            }
            chain.push((addr, len, flags & 2 != 0));
            if flags & 1 == 0 {
                return Ok(chain);
            }
            index = next;
        }
    }

    /// How many bytes a request is to be given; 0 if it cannot be served.
    fn wanted(&self, chain: &[(u64, u64, bool)]) -> usize {
        if !chain.iter().all(|&(addr, len, _)| exists(addr, len)) {
            return 0;
        }
        let writable = chain.iter().filter(|(.., write)| *write);
        writable.map(|(_, len, _)| len).sum::<u64>().min(MOST) as usize
    }

    fn fill(&mut self, chain: &[(u64, u64, bool)], mut bytes: &[u8]) {
        for &(addr, len, write) in chain {
            if write && len != 0 {
                let (now, later) = bytes.split_at(bytes.len().min(len as usize));
                if !now.is_empty() {
                    self.write(addr, now);
                }
                bytes = later;
            }
        }
    }

    fn give_back(&mut self, head: u16, len: usize) {
        let element = self.setup.used_ring + 4 + 8 * (u64::from(self.next_used) % self.size());
        self.write(element, &u32::from(head).to_le_bytes());
        self.write(element + 4, &(len as u32).to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
        self.added += 1;
        self.write(self.setup.used_ring + 2, &self.next_used.to_le_bytes());
    }

    /// Section 2.7.7.2, in the words of the specification's own `vring_need_event`.
    fn wants_interrupt(&mut self) -> bool {
        let old = self.next_used.wrapping_sub(self.added);
        if std::mem::take(&mut self.added) == 0 {
            return false;
        }
        if !self.event_idx {
            return self.number::<2>(self.setup.avail_ring) & 1 == 0;
        }
        let event = self.number::<2>(self.setup.avail_ring + 4 + 2 * self.size()) as u16;
        let new = self.next_used;
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

/// Whether all of a range is in memory; nothing is, anywhere.
fn exists(addr: u64, len: u64) -> bool {
    // The first two regions are side by side.
    let blocks = [REGIONS[0].start..REGIONS[1].end, REGIONS[2].clone()];
    let end = u128::from(addr) + u128::from(len);
    let inside = |block: &std::ops::Range<u64>| addr >= block.start && end <= block.end.into();
    len == 0 || blocks.iter().any(inside)
}
