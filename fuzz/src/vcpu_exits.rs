// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Records of a vCPU's exits, of any bytes: what the decoder makes of them, and what devices do to
//! them. The layout is written down again, from `linux/kvm.h`.

use std::ops::Range;

use arbitrary::Arbitrary;
use vcpu_runner::{
    Action, DefaultPolicy, Exit, ExitKind, Fault, GuestIo, RECORD_LEN, decode, dispatch,
};

#[derive(Arbitrary, Debug)]
pub struct Program {
    records: Vec<Plan>,
}

#[derive(Arbitrary, Debug)]
struct Plan {
    reason: Reason,
    /// From the start of the union.
    union: [u8; 64],
    fields: Fields,
    /// How much of a record there is, if not all.
    len: Option<u16>,
}

#[derive(Arbitrary, Debug)]
enum Reason {
    Mmio,
    PortIo,
    Known(u8),
    Any(u32),
}

/// What is made plausible, so that not all of it is refused at once.
#[derive(Arbitrary, Debug)]
enum Fields {
    AsTheyAre,
    Mmio {
        len: u8,
        is_write: bool,
    },
    PortIo {
        is_out: bool,
        size: u8,
        count: u16,
        offset: u16,
    },
}

/// Where things are: counted from `exit_reason`, the ninth byte of `struct kvm_run`.
const START: usize = 8;
const UNION: usize = 32 - START;
const UNION_END: usize = UNION + 256;

const PORT_IO: u32 = 2;
const MMIO: u32 = 6;

impl Plan {
    fn record(&self) -> Vec<u8> {
        // A byte that shows where an answer was written to.
        let mut record: Vec<u8> = (0..RECORD_LEN).map(|at| (at % 251) as u8).collect();
        let mut put = |at: usize, bytes: &[u8]| record[at..][..bytes.len()].copy_from_slice(bytes);
        let reason = match self.reason {
            Reason::Mmio => MMIO,
            Reason::PortIo => PORT_IO,
            Reason::Known(number) => u32::from(number % 48),
            Reason::Any(number) => number,
        };
        put(0, &reason.to_ne_bytes());
        put(UNION, &self.union);
        match self.fields {
            Fields::AsTheyAre => {}
            Fields::Mmio { len, is_write } => {
                put(UNION + 16, &u32::from(len % 10).to_ne_bytes());
                put(UNION + 20, &[is_write.into()]);
            }
            Fields::PortIo {
                is_out,
                size,
                count,
                offset,
            } => {
                put(UNION, &[is_out.into(), 1 << (size % 3)]);
                put(UNION + 4, &u32::from(count % 5000).to_ne_bytes());
                let offset = u64::from(offset) % (RECORD_LEN as u64 + 0x40);
                put(UNION + 8, &offset.to_ne_bytes());
            }
        }
        if let Some(len) = self.len {
            record.truncate(len.into());
        }
        record
    }
}

/// An access that a record asks for.
#[derive(Debug, PartialEq)]
struct Access {
    kind: ExitKind,
    addr: u64,
    /// Bytes of one element.
    size: usize,
    /// Where in the record the data is.
    data: Range<usize>,
}

fn number<const N: usize>(record: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    // Nothing is read from what there is not, and nothing by halves.
    if let Some(field) = record.get(at..at + N) {
        bytes[..N].copy_from_slice(field);
    }
    u64::from_le_bytes(bytes)
}

/// The access of a record, if it is one that can be true.
fn expected(record: &[u8]) -> Option<Access> {
    let access = match number::<4>(record, 0) as u32 {
        MMIO => {
            let len = number::<4>(record, UNION + 16) as usize;
            let write = number::<1>(record, UNION + 20) != 0;
            let kinds = [ExitKind::MmioRead, ExitKind::MmioWrite];
            Access {
                kind: kinds[usize::from(write)],
                addr: number::<8>(record, UNION),
                size: Some(len).filter(|len| (1..=8).contains(len))?,
                data: UNION + 8..UNION + 8 + len,
            }
        }
        PORT_IO => {
            let direction = number::<1>(record, UNION) as usize;
            let size = number::<1>(record, UNION + 1) as usize;
            let count = number::<4>(record, UNION + 4) as usize;
            let offset = usize::try_from(number::<8>(record, UNION + 8)).ok()?;
            let at = offset.checked_sub(START).filter(|&at| at >= UNION_END)?;
            Access {
                kind: *[ExitKind::IoIn, ExitKind::IoOut].get(direction)?,
                addr: number::<2>(record, UNION + 2),
                size: Some(size).filter(|size| [1, 2, 4].contains(size))?,
                data: at..at.checked_add(size * count).filter(|&end| end > at)?,
            }
        }
        _ => return None,
    };
    (access.data.end <= record.len()).then_some(access)
}

/// Answers each read with bytes of its own, and checks each access.
struct Devices<'a> {
    access: Option<&'a Access>,
    /// The record after all that was answered.
    after: Vec<u8>,
    at: usize,
}

impl Devices<'_> {
    fn check(&mut self, kind: ExitKind, addr: u64, len: usize) -> Range<usize> {
        let access = self.access.expect("an access that the record asks for");
        assert_eq!((kind, addr, len), (access.kind, access.addr, access.size));
        let element = access.data.start + self.at..access.data.start + self.at + len;
        assert!(element.end <= access.data.end, "more than was asked for");
        self.at += len;
        element
    }

    fn read(&mut self, kind: ExitKind, addr: u64, data: &mut [u8]) {
        assert!(data.iter().all(|&byte| byte == 0xff), "old bytes");
        let element = self.check(kind, addr, data.len());
        for (at, byte) in element.clone().zip(data.iter_mut()) {
            *byte = (at * 7 + 1) as u8;
        }
        self.after[element].copy_from_slice(data);
    }

    fn write(&mut self, kind: ExitKind, addr: u64, data: &[u8]) {
        let element = self.check(kind, addr, data.len());
        assert_eq!(self.after[element], *data);
    }
}

impl GuestIo for Devices<'_> {
    type Answer = ();

    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.read(ExitKind::MmioRead, addr, data);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.write(ExitKind::MmioWrite, addr, data);
    }

    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        self.read(ExitKind::IoIn, port.into(), data);
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) {
        self.write(ExitKind::IoOut, port.into(), data);
    }
}

/// The bytes of a decoded access, by length and where they begin.
fn place(exit: &Exit<'_>, base: usize) -> Option<(usize, usize)> {
    let data = match exit {
        Exit::MmioRead { data, .. } | Exit::IoIn { data, .. } => &**data,
        Exit::MmioWrite { data, .. } | Exit::IoOut { data, .. } => data,
        _ => return None,
    };
    Some((data.as_ptr().addr() - base, data.len()))
}

/// Runs one record, and returns of which kind it is.
fn run_record(mut record: Vec<u8>) -> ExitKind {
    let before = record.clone();
    let access = expected(&record);

    let base = record.as_ptr().addr();
    let exit = decode(&mut record);
    let kind = exit.kind();
    let is_at = access.as_ref().map(|it| (it.data.start, it.data.len()));
    assert_eq!(place(&exit, base), is_at, "{exit:?}");
    assert_eq!(access.as_ref().map_or(kind, |it| it.kind), kind);
    assert!(record == before, "decoding writes nothing");

    let mut devices = Devices {
        access: access.as_ref(),
        after: before.clone(),
        at: 0,
    };
    let action = dispatch(decode(&mut record), &mut devices, &mut DefaultPolicy);
    let Devices { mut after, at, .. } = devices;
    match kind {
        ExitKind::MmioRead | ExitKind::MmioWrite | ExitKind::IoIn | ExitKind::IoOut => {
            assert_eq!(action, Action::Resume);
            assert_eq!(Some(at), access.map(|it| it.data.len()), "each element");
        }
        // The answers of the default policy: an error, and where it is said.
        ExitKind::Hypercall => {
            let answer = 1000_u64.wrapping_neg().to_ne_bytes();
            after[UNION + 56..][..8].copy_from_slice(&answer);
        }
        ExitKind::RdMsr => {
            after[UNION] = 1;
            after[UNION + 16..][..8].fill(0);
        }
        ExitKind::WrMsr => after[UNION] = 1,
        ExitKind::Malformed => {
            let number = number::<4>(&before, 0) as u32;
            assert_eq!(action, Action::Fail(Fault::MalformedExit { number }));
            // A record of full length is malformed only if the lengths in it are out of range.
            let refused = [MMIO, PORT_IO].contains(&number);
            assert!(refused || before.len() < RECORD_LEN, "{number}");
        }
        _ => {}
    }
    assert!(record == after, "{kind:?} wrote elsewhere");
    kind
}

/// Runs a program, and returns how many records there were of each kind, in the order of
/// [`ExitKind::ALL`].
pub fn run(program: &Program) -> Vec<u32> {
    let mut counts = vec![0; ExitKind::ALL.len()];
    for plan in &program.records {
        counts[run_record(plan.record()).index()] += 1;
    }
    counts
}
