// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rngboi1337, a random number generator with one register.
//!
//! This is how a device looks when nobody thinks of virtual machines: a register that returns a
//! random number when it is read. A driver could not be simpler, and in a virtual machine nothing
//! is slower, because each read leaves the guest: N bytes cost N/4 exits, one after the other, with
//! the vCPU waiting. `virtio-rng-device` does the same work for one request.
//!
//! | offset | width | name | access |
//! |---|---|---|---|
//! | 0 | 4 | `rng0` | read: fresh random bytes |
//!
//! ```
//! use bus::BusDevice;
//! use mmio_rng_legacy::Rngboi1337;
//!
//! let mut device = Rngboi1337::new(std::io::repeat(0x2a));
//! let mut rng0 = [0; 4];
//! device.read(0, &mut rng0)?;
//! assert_eq!(rng0, [0x2a; 4]);
//! # Ok::<(), bus::AccessError>(())
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

use std::fmt;
use std::io::{ErrorKind, Read};

use bus::{AccessError, BusDevice};

/// Offset of the only register, `rng0`.
pub const RNG0: u64 = 0;
/// Length of the device's region on the bus.
pub const REGION_SIZE: u64 = 4;

/// How often one access goes back to a source that was interrupted or gave part of the bytes.
const MAX_READS: u32 = 16;

/// The device. `S` is where its randomness comes from.
///
/// # What a read returns
///
/// | access | answer |
/// |---|---|
/// | 1, 2 or 4 bytes at offset 0 | that many fresh bytes of the source, in its order |
/// | any other width at offset 0 | [`AccessError::Width`]; the source is not asked |
/// | any other offset | [`AccessError::Offset`]; the source is not asked |
/// | the source fails or ends | [`AccessError::Failed`] |
///
/// On an error the guest reads what its bus fills in, all ones as a rule, and never bytes of an
/// earlier access. Writes are refused and change nothing.
///
/// The source is asked on the thread of the vCPU that reads, so one that blocks keeps this vCPU
/// waiting, and the system calls it makes must be allowed there.
pub struct Rngboi1337<S> {
    source: S,
}

impl<S: Read + Send> Rngboi1337<S> {
    /// Makes a device that takes its randomness from `source`.
    #[must_use]
    pub const fn new(source: S) -> Self {
        Self { source }
    }

    /// Fills `data` from the source, or fails; it is never left half-filled.
    fn draw(&mut self, data: &mut [u8]) -> Result<(), AccessError> {
        let mut filled = 0;
        for _ in 0..MAX_READS {
            let rest = data.get_mut(filled..).unwrap_or_default();
            match self.source.read(rest) {
                // The end of the source, or a source that claims more than it was given room for.
                Ok(count) if count == 0 || count > rest.len() => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
            if filled == data.len() {
                return Ok(());
            }
        }
        data.fill(0);
        Err(AccessError::Failed)
    }
}

impl<S: Read + Send> BusDevice for Rngboi1337<S> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match (offset, data.len()) {
            (RNG0, 1 | 2 | 4) => self.draw(data),
            (RNG0, _) => Err(AccessError::Width),
            _ => Err(AccessError::Offset),
        }
    }

    fn write(&mut self, offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Err(if offset == RNG0 {
            AccessError::ReadOnly
        } else {
            AccessError::Offset
        })
    }
}

/// Says nothing of the source, whose state may be worth guarding.
impl<S> fmt::Debug for Rngboi1337<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rngboi1337").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::io;

    /// Answers each read with the next step of a script.
    struct Script(VecDeque<io::Result<usize>>);

    impl Read for Script {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            let count = self
                .0
                .pop_front()
                .expect("the source was asked too often")?;
            let len = count.min(data.len());
            data[..len].fill(0x77);
            Ok(count)
        }
    }

    fn device(steps: impl IntoIterator<Item = io::Result<usize>>) -> Rngboi1337<Script> {
        Rngboi1337::new(Script(steps.into_iter().collect()))
    }

    fn interrupted() -> io::Result<usize> {
        Err(ErrorKind::Interrupted.into())
    }

    #[test]
    fn bytes_come_in_the_order_of_the_source() {
        let mut device = Rngboi1337::new(&b"0123456789"[..]);
        let mut data = [0; 4];
        device.read(0, &mut data).unwrap();
        assert_eq!(&data, b"0123");
        device.read(0, &mut data[..2]).unwrap();
        assert_eq!(&data, b"4523");
        device.read(0, &mut data[..1]).unwrap();
        assert_eq!(&data, b"6523");
        // Three bytes are left: not a register's worth.
        assert_eq!(device.read(0, &mut data), Err(AccessError::Failed));
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn other_widths_and_offsets_draw_nothing() {
        let mut device = device([]);
        for width in (0..=64).filter(|width| ![1, 2, 4].contains(width)) {
            let mut data = vec![0; width];
            assert_eq!(device.read(0, &mut data), Err(AccessError::Width));
        }
        for offset in [1, 2, 3, 4, 5, 0x1000, u64::MAX] {
            for width in 0..=8 {
                let mut data = vec![0; width];
                assert_eq!(device.read(offset, &mut data), Err(AccessError::Offset));
            }
        }
    }

    #[test]
    fn writes_are_refused_and_draw_nothing() {
        let mut device = device([]);
        for width in 0..=8 {
            assert_eq!(device.write(0, &vec![1; width]), Err(AccessError::ReadOnly));
            assert_eq!(device.write(4, &vec![1; width]), Err(AccessError::Offset));
        }
    }

    #[test]
    fn short_and_interrupted_reads_are_completed() {
        let mut device = device([Ok(1), interrupted(), Ok(2), interrupted(), Ok(1)]);
        let mut data = [0; 4];
        device.read(0, &mut data).unwrap();
        assert_eq!(data, [0x77; 4]);
    }

    #[test]
    fn a_failing_source_leaves_no_bytes_behind() {
        for steps in [
            vec![Ok(0)],
            vec![Ok(3), Err(ErrorKind::Other.into())],
            vec![Ok(5)],
        ] {
            let mut device = device(steps);
            let mut data = [0xa5; 4];
            assert_eq!(device.read(0, &mut data), Err(AccessError::Failed));
            assert_eq!(data, [0; 4]);
        }
    }

    #[test]
    fn a_source_that_is_interrupted_for_ever_is_given_up() {
        let mut device = device((0..MAX_READS).map(|_| interrupted()));
        assert_eq!(device.read(0, &mut [0; 4]), Err(AccessError::Failed));
    }

    #[test]
    fn debug_output_says_nothing_of_the_source() {
        assert_eq!(
            format!("{:?}", Rngboi1337::new(&b"secret"[..])),
            "Rngboi1337 { .. }"
        );
    }
}
