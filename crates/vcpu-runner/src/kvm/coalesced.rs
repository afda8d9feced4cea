// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes that KVM collects instead of exiting for each.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::ring::CoalescedRing;
use super::vcpu::KvmVcpu;
use crate::run::{CoalescedWrite, CoalescedWrites};

/// The ring in which KVM collects a machine's coalesced writes (`KVM_CAP_COALESCED_MMIO`).
///
/// The addresses are registered with `VmFd::register_coalesced_mmio`. The ring belongs to the
/// machine, so that one object is shared by all its vCPUs: each hands it to
/// [`VcpuRunner::with_coalesced_mmio`](crate::VcpuRunner::with_coalesced_mmio). The loop then
/// carries the collected writes out before each exit and before each pause.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # struct Devices;
/// # impl vcpu_runner::GuestIo for Devices {
/// #     type Answer = ();
/// #     fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
/// #     fn mmio_write(&mut self, _: u64, _: &[u8]) {}
/// #     fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
/// #     fn pio_write(&mut self, _: u16, _: &[u8]) {}
/// # }
/// # #[cfg(feature = "kvm-ioctls")] {
/// use kvm_ioctls::{IoEventAddress, Kvm};
/// use vcpu_runner::{CoalescedMmio, KvmVcpu, VcpuRunner};
///
/// let vm = Kvm::new()?.create_vm()?;
/// let vcpu = KvmVcpu::new(vm.create_vcpu(0)?)?;
/// let ring = CoalescedMmio::new(&vcpu)?;
/// vm.register_coalesced_mmio(IoEventAddress::Mmio(0x8000_0000), 0x100)?;
/// let runner = VcpuRunner::new(vcpu, Devices).with_coalesced_mmio(ring.clone());
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CoalescedMmio {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: CoalescedRing,
    /// Held by the vCPU that carries writes out.
    taking: Mutex<()>,
}

impl CoalescedMmio {
    /// The ring of the machine that this vCPU belongs to.
    ///
    /// A machine has one ring, whichever vCPU it is reached by, and the ring one of these.
    ///
    /// # Errors
    ///
    /// The ring cannot be mapped; `AddrInUse` if it has been made already, for this vCPU or
    /// another one of the machine, and is still in use: clone that one.
    pub fn new<F>(vcpu: &KvmVcpu<F>) -> io::Result<Self> {
        Ok(Self::from_ring(CoalescedRing::map(vcpu.raw())?))
    }

    fn from_ring(ring: CoalescedRing) -> Self {
        Self {
            shared: Arc::new(Shared {
                ring,
                taking: Mutex::new(()),
            }),
        }
    }
}

/// A write stays in the ring until it has been carried out. An empty ring therefore means that none
/// is in flight, whichever vCPU took it.
impl CoalescedWrites for CoalescedMmio {
    #[inline]
    fn is_empty(&self) -> bool {
        self.shared.ring.is_empty()
    }

    fn drain(&self, carry_out: &mut dyn FnMut(CoalescedWrite<'_>)) {
        let mut taking = self
            .shared
            .taking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // At most one ring's worth of writes, because other vCPUs may keep adding some.
        for _ in 0..self.shared.ring.capacity() {
            let Some(oldest) = self.shared.ring.oldest(&mut taking) else {
                break;
            };
            let write = &oldest.write;
            let Some(data) = write.data.get(..write.len as usize) else {
                continue;
            };
            if data.is_empty() {
                continue;
            }
            if !write.is_pio {
                carry_out(CoalescedWrite::Mmio {
                    addr: write.addr,
                    data,
                });
            } else if let Ok(port) = u16::try_from(write.addr) {
                carry_out(CoalescedWrite::Pio { port, data });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;
    use vmm_sys_util::tempfile::TempFile;

    /// Longer than anything takes that is not stuck.
    const SOON: Duration = Duration::from_secs(10);

    #[derive(Default)]
    struct Log(Vec<(u64, Vec<u8>)>);

    impl Log {
        fn drain(&mut self, ring: &CoalescedMmio) {
            ring.drain(&mut |write| match write {
                CoalescedWrite::Mmio { addr, data } => self.0.push((addr, data.to_vec())),
                CoalescedWrite::Pio { port, data } => {
                    self.0.push((u64::from(port) | 1 << 63, data.to_vec()));
                }
            });
        }
    }

    /// A ring as the kernel would have left it.
    fn ring(first: u32, last: u32, entries: &[(u64, u32, u32, u64)]) -> (TempFile, CoalescedMmio) {
        let file = TempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let mut bytes = [first.to_ne_bytes(), last.to_ne_bytes()].concat();
        for (addr, len, pio, data) in entries {
            bytes.extend(addr.to_ne_bytes());
            bytes.extend(len.to_ne_bytes());
            bytes.extend(pio.to_ne_bytes());
            bytes.extend(data.to_ne_bytes());
        }
        file.as_file().write_all_at(&bytes, 0).unwrap();
        let ring = CoalescedRing::map_at(file.as_file().as_raw_fd(), 0, 4096).unwrap();
        (file, CoalescedMmio::from_ring(ring))
    }

    #[test]
    fn writes_come_out_in_order_and_once() {
        let entries = [
            (0x1000, 4, 0, 0x0403_0201),
            (0x2000, 1, 0, 5),
            (0x70, 2, 1, 0x0706),
        ];
        let (_file, ring) = ring(0, 3, &entries);
        let mut log = Log::default();
        log.drain(&ring);
        assert_eq!(
            log.0,
            [
                (0x1000, vec![1, 2, 3, 4]),
                (0x2000, vec![5]),
                (0x70 | 1 << 63, vec![6, 7]),
            ]
        );
        log.drain(&ring);
        assert_eq!(log.0.len(), 3);
    }

    #[test]
    fn a_record_that_cannot_be_true_reaches_no_device() {
        let entries = [
            (0x1000, 0, 0, 1),
            (0x1000, 9, 0, 1),
            (0x1000, u32::MAX, 0, 1),
            (0x1_0000, 1, 1, 1),
        ];
        let (_file, bad) = ring(0, 4, &entries);
        let mut log = Log::default();
        log.drain(&bad);
        assert!(log.0.is_empty());

        // Indices outside of the ring end the draining at once.
        for (first, last) in [(0, u32::MAX), (u32::MAX, 0), (170, 0), (0, 170)] {
            let (_file, bad) = ring(first, last, &[]);
            log.drain(&bad);
            assert!(log.0.is_empty(), "{first} {last}");
        }
    }

    #[test]
    fn a_ring_has_one_drain_at_a_time() {
        let (file, ring) = ring(0, 0, &[]);
        let again = || CoalescedRing::map_at(file.as_file().as_raw_fd(), 0, 4096).map(drop);
        assert_eq!(again().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(ring.clone());
        assert_eq!(again().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(ring);
        again().unwrap();
        again().unwrap();
    }

    #[test]
    fn a_drain_waits_for_the_write_that_another_vcpu_has_taken() {
        let (_file, ring) = ring(0, 1, &[(0x1000, 1, 0, 1)]);
        let (begun, has_begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let first = thread::spawn({
            let (ring, done) = (ring.clone(), Arc::clone(&done));
            move || {
                ring.drain(&mut |_| {
                    begun.send(()).unwrap();
                    let _ = may_go.recv_timeout(SOON);
                    done.store(true, Ordering::Relaxed);
                });
            }
        });
        has_begun.recv_timeout(SOON).expect("the write is taken");
        let (drained, is_drained) = mpsc::channel();
        let second = thread::spawn(move || {
            let mut log = Log::default();
            log.drain(&ring);
            drained.send((done.load(Ordering::Relaxed), log.0)).unwrap();
        });
        // If the second drain did not wait for the first, it would have ended by now.
        let early = is_drained.recv_timeout(Duration::from_millis(50));
        assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
        go.send(()).unwrap();
        let later = is_drained.recv_timeout(SOON).expect("the drain to end");
        assert_eq!(later, (true, vec![]), "carried out once, and by then");
        first.join().unwrap();
        second.join().unwrap();
    }

    #[test]
    fn a_device_that_panics_gets_its_write_once() {
        let (_file, ring) = ring(0, 2, &[(0x1000, 1, 0, 1), (0x2000, 1, 0, 2)]);
        let other = ring.clone();
        let panics = move || other.drain(&mut |_| std::panic::resume_unwind(Box::new("broken")));
        assert!(thread::spawn(panics).join().is_err());
        let mut log = Log::default();
        log.drain(&ring);
        assert_eq!(log.0, [(0x2000, vec![2])]);
    }

    #[test]
    fn the_ring_wraps_around() {
        let (file, ring) = ring(169, 1, &[(0x3000, 1, 0, 2)]);
        let entry = [
            0x2000u64.to_ne_bytes(),
            1u64.to_ne_bytes(),
            1u64.to_ne_bytes(),
        ]
        .concat();
        file.as_file().write_all_at(&entry, 8 + 169 * 24).unwrap();
        let mut log = Log::default();
        log.drain(&ring);
        assert_eq!(log.0, [(0x2000, vec![1]), (0x3000, vec![2])]);
    }
}
