// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest announces: the phases it measures, and its end.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use bus::{AccessError, BusDevice};
use vcpu_runner::{ExitCounters, ExitKind};

use super::guest::Device;
use crate::arch::case_study::ANNOUNCEMENT;

/// The register that a phase's start is announced in: 4 bytes, the number of the device.
pub(crate) const START: u64 = 0;
/// The register that a phase's end is announced in: 4 bytes, the number of requests made.
pub(crate) const END: u64 = 4;
/// The register that the guest's end is announced in: 4 bytes, the number of a failed check or 0.
pub(crate) const CHECK: u64 = 8;
/// Length of the registers.
pub(crate) const ANNOUNCEMENTS_SIZE: u64 = 12;

/// What the thread that watches over a run is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A phase is over.
    Phase(Phase),
    /// The guest is done: 0, or the number of the check that failed.
    Done(u32),
    /// Not the guest's: its interrupt cannot be raised, for this reason.
    LineFailed(String),
}

/// What one device took to deliver the bytes.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) device: Device,
    pub(crate) requests: u32,
    pub(crate) exits: Exits,
    pub(crate) elapsed: Duration,
}

/// Exits to user space by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Exits {
    pub(crate) total: u64,
    pub(crate) mmio_read: u64,
    pub(crate) mmio_write: u64,
    pub(crate) io_in: u64,
    pub(crate) io_out: u64,
    pub(crate) hlt: u64,
    pub(crate) other: u64,
}

impl Exits {
    fn now(counters: &ExitCounters) -> Self {
        let total = counters.total();
        let [mmio_read, mmio_write, io_in, io_out, hlt] = [
            ExitKind::MmioRead,
            ExitKind::MmioWrite,
            ExitKind::IoIn,
            ExitKind::IoOut,
            ExitKind::Hlt,
        ]
        .map(|kind| counters.get(kind));
        let other = total - mmio_read - mmio_write - io_in - io_out - hlt;
        Self {
            total,
            mmio_read,
            mmio_write,
            io_in,
            io_out,
            hlt,
            other,
        }
    }

    /// The exits of a phase that was announced at `start`; this is the announcement of its end.
    fn since(self, start: Self) -> Self {
        // The announcement is an exit itself, and not one of the phase.
        let [io_out, mmio_write] =
            [ExitKind::IoOut, ExitKind::MmioWrite].map(|kind| u64::from(kind == ANNOUNCEMENT));
        Self {
            total: self.total - start.total - 1,
            io_out: self.io_out - start.io_out - io_out,
            mmio_read: self.mmio_read - start.mmio_read,
            mmio_write: self.mmio_write - start.mmio_write - mmio_write,
            io_in: self.io_in - start.io_in,
            hlt: self.hlt - start.hlt,
            other: self.other - start.other,
        }
    }
}

/// The three registers that the guest announces things in.
pub(crate) struct Announcements {
    counters: Arc<ExitCounters>,
    messages: Sender<Message>,
    phase: Option<(Device, Exits, Instant)>,
}

impl Announcements {
    /// Measures by `counters`, which count the exits of the vCPU that announces.
    pub(crate) const fn new(counters: Arc<ExitCounters>, messages: Sender<Message>) -> Self {
        Self {
            counters,
            messages,
            phase: None,
        }
    }

    fn send(&self, message: Message) -> Result<(), AccessError> {
        self.messages.send(message).map_err(|_| AccessError::Failed)
    }
}

impl BusDevice for Announcements {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let now = Instant::now();
        let value = u32::from_le_bytes(data.try_into().map_err(|_| AccessError::Width)?);
        match offset {
            START => {
                let device = Device::from_number(value).ok_or(AccessError::Refused)?;
                self.phase = Some((device, Exits::now(&self.counters), Instant::now()));
                Ok(())
            }
            END => {
                let (device, start, began) = self.phase.take().ok_or(AccessError::Refused)?;
                let exits = Exits::now(&self.counters).since(start);
                let elapsed = now.duration_since(began);
                self.send(Message::Phase(Phase {
                    device,
                    requests: value,
                    exits,
                    elapsed,
                }))
            }
            CHECK => self.send(Message::Done(value)),
            _ => Err(AccessError::Offset),
        }
    }
}
