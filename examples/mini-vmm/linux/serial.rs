// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first serial port: what the guest writes goes to standard output.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{AccessError, BusDevice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stdout;
use vm_superio::Trigger;
use vm_superio::serial::{Error, Serial, SerialEvents};
use vmm_sys_util::eventfd::EventFd;

use super::bell::{Bell, End};

/// The port as the bus and the console share it.
#[derive(Clone)]
pub(crate) struct SerialPort(Arc<Mutex<Port>>);

type Port = Serial<Line, Events, Output>;

/// The interrupt line.
#[derive(Debug)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Wakes the console when the guest has read all that was typed.
struct Events(Bell);

impl SerialEvents for Events {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.ring();
    }
}

/// Standard output. When it fails, nobody can follow what the guest does, so the machine ends.
struct Output {
    bell: Bell,
    line_open: bool,
}

impl Output {
    /// Waits until somebody reads standard output, unless the machine comes to its end meanwhile.
    fn wait(&self) -> io::Result<()> {
        const GLANCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        let stdout = stdout();
        loop {
            let mut fds = [PollFd::new(&stdout, PollFlags::OUT)];
            match poll(&mut fds, Some(&GLANCE)) {
                Ok(0) | Err(Errno::INTR) if self.bell.reason().is_some() => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut out = io::stdout();
        let written = self
            .wait()
            .and_then(|()| out.write_all(data))
            .and_then(|()| out.flush());
        if let Err(error) = &written {
            let message = format!("standard output: {error}");
            self.bell.end(End::Console(message));
        }
        if let Some(last) = data.last() {
            self.line_open = *last != b'\n';
        }
        written.map(|()| data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SerialPort {
    /// A port that interrupts through `line`, and rings when it can take more input, and when
    /// output fails.
    pub(crate) fn new(line: Arc<EventFd>, bell: &Bell) -> Self {
        let output = Output {
            bell: bell.clone(),
            line_open: false,
        };
        let port = Serial::with_events(Line(line), Events(bell.clone()), output);
        Self(Arc::new(Mutex::new(port)))
    }

    fn port(&self) -> MutexGuard<'_, Port> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of input the port can take now.
    pub(crate) fn room(&self) -> usize {
        self.port().fifo_capacity()
    }

    /// Takes input, and returns how much of it.
    pub(crate) fn type_in(&self, input: &[u8]) -> usize {
        match self.port().enqueue_raw_bytes(input) {
            Ok(taken) => taken,
            // The bytes are there; an interrupt that cannot be raised is pending.
            Err(Error::Trigger(_)) => input.len(),
            Err(_) => 0,
        }
    }

    /// Whether the guest's last line of output has no end yet.
    ///
    /// Does not wait for a vCPU that is held up by standard output.
    pub(crate) fn line_is_open(&self) -> bool {
        self.0.try_lock().is_ok_and(|port| port.writer().line_open)
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let [byte] = data else {
            return Err(AccessError::Width);
        };
        let offset = u8::try_from(offset).map_err(|_| AccessError::Offset)?;
        *byte = self.port().read(offset);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let &[byte] = data else {
            return Err(AccessError::Width);
        };
        let offset = u8::try_from(offset).map_err(|_| AccessError::Offset)?;
        match self.port().write(offset, byte) {
            // A full event fd means that an interrupt is pending, and output has its own end.
            Ok(()) | Err(Error::Trigger(_) | Error::IOError(_)) => Ok(()),
            Err(Error::FullFifo) => Err(AccessError::Failed),
        }
    }
}
