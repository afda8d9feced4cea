// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first serial port: what the guest writes goes to standard output, and what is typed is kept
//! until the guest takes it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};

use bus::{AccessError, BusDeviceSync};
use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use crate::stdio::complaint;

/// The port as the bus and the user's side share it.
///
/// The lock is held for one register access at a time, and never while something blocks.
#[derive(Clone)]
pub(crate) struct SerialPort(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The guest has looked at the port, and may have taken input.
    taken: Condvar,
    output: Output,
}

struct State {
    port: Serial<Line, NoEvents, Output>,
    /// Typed, but not in the port's FIFO yet.
    input: VecDeque<u8>,
}

/// The interrupt line.
#[derive(Clone)]
struct Line {
    event: Arc<EventFd>,
    told: Arc<Once>,
    errors: Output,
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.event.write(1).inspect_err(|error| {
            // A full event fd means that an interrupt is pending.
            if error.kind() != io::ErrorKind::WouldBlock {
                let message = format!("the serial port: its interrupt line failed: {error}");
                self.told
                    .call_once(|| self.errors.push(complaint(&message).as_bytes()));
            }
        })
    }
}

impl SerialPort {
    /// A port that interrupts through `event` and writes to `output`; if interrupts fail, a line in
    /// `errors` says so.
    pub(crate) fn new(event: Arc<EventFd>, output: Output, errors: Output) -> Self {
        let line = Line {
            event,
            told: Arc::new(Once::new()),
            errors,
        };
        let state = State {
            port: Serial::new(line, output.clone()),
            input: VecDeque::new(),
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            taken: Condvar::new(),
            output,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the registers into their first state. Input that the guest has not taken stays.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        for &byte in state.port.state().in_buffer.iter().rev() {
            state.input.push_front(byte);
        }
        let line = state.port.interrupt_evt().clone();
        state.port = Serial::new(line, self.0.output.clone());
    }

    /// Takes input, without waiting.
    pub(crate) fn type_in(&self, input: &[u8]) {
        let mut state = self.state();
        state.input.extend(input);
        self.hand_on(&mut state);
    }

    /// Waits until at most `left` bytes of input are still to be taken by the guest.
    pub(crate) fn wait_until_left(&self, left: usize) {
        let more = |state: &mut State| state.input.len() > left;
        let state = self.0.taken.wait_while(self.state(), more);
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    /// Fills the FIFO from what was typed. In loopback mode the port takes nothing; the guest leaves
    /// that by an access, after which this is called.
    fn hand_on(&self, state: &mut State) {
        while !state.input.is_empty() {
            let (first, _) = state.input.as_slices();
            let len = first.len().min(state.port.fifo_capacity());
            let taken = match state.port.enqueue_raw_bytes(first) {
                Ok(taken) => taken,
                // The bytes are there; an interrupt that cannot be raised is pending.
                Err(Error::Trigger(_)) => len,
                Err(_) => 0,
            };
            if taken == 0 {
                break;
            }
            state.input.drain(..taken);
        }
        self.0.taken.notify_all();
    }
}

impl BusDeviceSync for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let [byte] = data else {
            return Err(AccessError::Width);
        };
        let offset = u8::try_from(offset).map_err(|_| AccessError::Offset)?;
        let mut state = self.state();
        *byte = state.port.read(offset);
        self.hand_on(&mut state);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let &[byte] = data else {
            return Err(AccessError::Width);
        };
        let offset = u8::try_from(offset).map_err(|_| AccessError::Offset)?;
        let mut state = self.state();
        let written = state.port.write(offset, byte);
        self.hand_on(&mut state);
        drop(state);
        self.0.output.wait_for_room();
        match written {
            // A line that failed has been told of, and output does not fail here.
            Ok(()) | Err(Error::Trigger(_) | Error::IOError(_)) => Ok(()),
            Err(Error::FullFifo) => Err(AccessError::Failed),
        }
    }
}
