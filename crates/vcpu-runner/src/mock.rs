// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU that follows a script, for tests without KVM.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::exit::{Exit, RECORD_LEN, Record, UNION, data_offset, decode, number};
use crate::run::{Kick, RunError, Vcpu};

/// Where the elements of port I/O lie in a scripted record.
const PIO_DATA: usize = UNION + 256;

/// One thing that a scripted vCPU does.
///
/// ```
/// use vcpu_runner::{MockStep, MockVcpu};
///
/// // Reads a register, writes a port, and does nothing from then on.
/// let guest = MockVcpu::new([
///     MockStep::mmio_read(0x8000_1000, 4),
///     MockStep::io_out(0x3f8, 1, b"!"),
///     MockStep::Spin,
/// ]);
/// # let _ = guest;
/// ```
#[derive(Clone)]
pub enum MockStep {
    /// The guest exits, and the kernel leaves this record.
    Exit(Box<Record>),
    /// An exit that belongs to the access before it, and comes even if the vCPU is kicked.
    Fragment(Box<Record>),
    /// `KVM_RUN` fails with this `errno`.
    Fail(i32),
    /// The guest runs on until it is kicked, and after that as well.
    Spin,
}

impl MockStep {
    /// An exit of this number with nothing in its record.
    #[must_use]
    pub fn exit(number: u32) -> Self {
        Self::record(number, &[])
    }

    /// An exit of this number with `fields`, each at an offset inside of the union.
    #[must_use]
    pub fn record(number: u32, fields: &[(usize, &[u8])]) -> Self {
        let mut record = Box::new([0; RECORD_LEN]);
        put(&mut record, 0, &number.to_ne_bytes());
        for (at, bytes) in fields {
            put(&mut record, UNION + at, bytes);
        }
        Self::Exit(record)
    }

    /// The guest reads `len` bytes from an address without memory.
    #[must_use]
    pub fn mmio_read(addr: u64, len: u32) -> Self {
        Self::mmio(addr, len, false, &[0xa5; 8])
    }

    /// The guest writes to an address without memory.
    #[must_use]
    pub fn mmio_write(addr: u64, data: &[u8]) -> Self {
        Self::mmio(
            addr,
            u32::try_from(data.len()).unwrap_or(u32::MAX),
            true,
            data,
        )
    }

    fn mmio(addr: u64, len: u32, is_write: bool, data: &[u8]) -> Self {
        let data = data.get(..data.len().min(8)).unwrap_or_default();
        Self::record(
            number::KVM_EXIT_MMIO,
            &[
                (0, &addr.to_ne_bytes()),
                (8, data),
                (16, &len.to_ne_bytes()),
                (20, &[u8::from(is_write)]),
            ],
        )
    }

    /// The guest reads `count` elements of `size` bytes from a port.
    #[must_use]
    pub fn io_in(port: u16, size: u8, count: u32) -> Self {
        Self::io(number::KVM_EXIT_IO_IN, port, size, count, &[0xa5; 64])
    }

    /// The guest writes elements of `size` bytes to a port.
    #[must_use]
    pub fn io_out(port: u16, size: u8, data: &[u8]) -> Self {
        let count = data.len().checked_div(size.into()).unwrap_or(0);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Self::io(number::KVM_EXIT_IO_OUT, port, size, count, data)
    }

    fn io(direction: u32, port: u16, size: u8, count: u32, data: &[u8]) -> Self {
        let offset = data_offset(PIO_DATA);
        Self::record(
            number::KVM_EXIT_IO,
            &[
                (0, &direction.to_ne_bytes()),
                (1, &[size]),
                (2, &port.to_ne_bytes()),
                (4, &count.to_ne_bytes()),
                (8, &offset.to_ne_bytes()),
                (256, data),
            ],
        )
    }

    /// Makes an exit one that belongs to the access before it.
    #[must_use]
    pub fn as_fragment(self) -> Self {
        match self {
            Self::Exit(record) => Self::Fragment(record),
            other => other,
        }
    }
}

impl fmt::Debug for MockStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(record) => write!(f, "Exit({:?})", decode(&mut record.clone()[..])),
            Self::Fragment(record) => write!(f, "Fragment({:?})", decode(&mut record.clone()[..])),
            Self::Fail(errno) => write!(f, "Fail({errno})"),
            Self::Spin => f.write_str("Spin"),
        }
    }
}

/// Writes the part of `bytes` that fits into a record.
fn put(record: &mut Record, at: usize, bytes: &[u8]) {
    for (place, byte) in record.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
}

/// What happened to a scripted vCPU.
///
/// ```
/// use vcpu_runner::{IoAccess, IoFn, MockStep, MockVcpu, VcpuRunner};
///
/// let vcpu = MockVcpu::new([MockStep::io_in(0x60, 1, 1), MockStep::exit(5 /* HLT */)]);
/// let log = vcpu.log();
/// let io = IoFn(|access: IoAccess<'_>| {
///     if let IoAccess::PioRead { data, .. } = access {
///         data.fill(3);
///     }
/// });
/// VcpuRunner::new(vcpu, io).run().unwrap();
/// assert_eq!(log.answers(), [[3]]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct MockLog {
    inner: Arc<Mutex<Log>>,
}

#[derive(Debug, Default)]
struct Log {
    completed: Vec<Record>,
    runs: usize,
    pauses: usize,
    bound: usize,
    aborts: usize,
}

impl MockLog {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The records of the exits so far, as they were when the vCPU was entered again.
    #[must_use]
    pub fn completed(&self) -> Vec<Record> {
        self.lock().completed.clone()
    }

    /// What the guest got from its MMIO and port reads so far, in order.
    #[must_use]
    pub fn answers(&self) -> Vec<Vec<u8>> {
        self.completed()
            .iter_mut()
            .filter_map(|record| match decode(record) {
                Exit::MmioRead { data, .. } | Exit::IoIn { data, .. } => Some(data.to_vec()),
                _ => None,
            })
            .collect()
    }

    /// How many times the vCPU was entered.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.lock().runs
    }

    /// How many times the vCPU was told that it had been paused.
    #[must_use]
    pub fn pauses(&self) -> usize {
        self.lock().pauses
    }

    /// How many aborts were injected into the guest.
    #[must_use]
    pub fn aborts(&self) -> usize {
        self.lock().aborts
    }

    /// How many threads run the vCPU: 0 or 1.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.lock().bound
    }
}

/// A vCPU that follows a script and treats kicks as KVM does.
///
/// When the script has ended, the guest spins.
///
/// ```
/// use vcpu_runner::{GuestIo, MockStep, MockVcpu, Outcome, VcpuRunner};
///
/// struct Answer;
/// impl GuestIo for Answer {
///     type Answer = ();
///     fn mmio_read(&mut self, _: u64, data: &mut [u8]) { data.fill(7) }
///     fn mmio_write(&mut self, _: u64, _: &[u8]) {}
///     fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
///     fn pio_write(&mut self, _: u16, _: &[u8]) {}
/// }
///
/// let vcpu = MockVcpu::new([
///     MockStep::mmio_read(0x8000_1000, 4),
///     MockStep::exit(kvm_bindings::KVM_EXIT_HLT),
/// ]);
/// let log = vcpu.log();
/// assert_eq!(VcpuRunner::new(vcpu, Answer).run().unwrap(), Outcome::Halted);
/// assert_eq!(log.answers(), [[7; 4]]);
/// ```
pub struct MockVcpu {
    script: VecDeque<MockStep>,
    repeat: bool,
    current: Box<Record>,
    pending: bool,
    log: MockLog,
    kick: Arc<MockKick>,
}

impl MockVcpu {
    /// A vCPU with this script.
    pub fn new(script: impl IntoIterator<Item = MockStep>) -> Self {
        Self {
            script: script.into_iter().collect(),
            repeat: false,
            current: Box::new([0; RECORD_LEN]),
            pending: false,
            log: MockLog::default(),
            kick: Arc::new(MockKick::default()),
        }
    }

    /// Starts the script again when it has ended. What was completed is not kept then.
    #[must_use]
    pub fn repeated(mut self) -> Self {
        self.repeat = true;
        self
    }

    /// What happens to this vCPU, for a look from outside.
    #[must_use]
    pub fn log(&self) -> MockLog {
        self.log.clone()
    }

    /// The next step, unless the vCPU is kicked before it.
    fn step(&mut self) -> Option<MockStep> {
        let is_fragment = matches!(self.script.front(), Some(MockStep::Fragment(_)));
        if !is_fragment && *self.kick.lock() {
            return None;
        }
        let step = self.script.pop_front().unwrap_or(MockStep::Spin);
        if self.repeat && !matches!(step, MockStep::Spin) {
            self.script.push_back(step.clone());
        }
        Some(step)
    }
}

impl fmt::Debug for MockVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockVcpu")
            .field("script", &self.script)
            .field("repeat", &self.repeat)
            .finish_non_exhaustive()
    }
}

impl Vcpu for MockVcpu {
    type Error = Infallible;

    fn run(&mut self) -> Result<Exit<'_>, RunError> {
        {
            let mut log = self.log.lock();
            log.runs += 1;
            if self.pending && !self.repeat {
                log.completed.push(*self.current);
            }
            self.pending = false;
        }
        match self.step() {
            None => Err(RunError::Interrupted),
            Some(MockStep::Exit(record) | MockStep::Fragment(record)) => {
                self.current = record;
                self.pending = true;
                Ok(decode(self.current.as_mut_slice()))
            }
            Some(MockStep::Fail(errno)) => Err(RunError::from(errno)),
            Some(MockStep::Spin) => {
                self.script.push_front(MockStep::Spin);
                self.kick.wait();
                Err(RunError::Interrupted)
            }
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn bind_thread(&mut self) -> io::Result<()> {
        self.log.lock().bound += 1;
        Ok(())
    }

    fn unbind_thread(&mut self) {
        self.log.lock().bound -= 1;
    }

    fn notify_paused(&mut self) {
        self.log.lock().pauses += 1;
    }

    fn inject_abort(&mut self) -> io::Result<()> {
        self.log.lock().aborts += 1;
        Ok(())
    }

    fn program_counter(&self) -> Option<u64> {
        Some(0xfff0)
    }
}

#[derive(Debug, Default)]
struct MockKick {
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl MockKick {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.kicked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut kicked = self.lock();
        while !*kicked {
            kicked = self
                .changed
                .wait(kicked)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Kick for MockKick {
    fn kick(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    fn clear(&self) {
        *self.lock() = false;
    }
}
