// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything that needs `unsafe`: the run area, `KVM_RUN`, and the signal of a kick.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::KVM_COALESCED_MMIO_PAGE_OFFSET;
use kvm_ioctls::VcpuFd;

use crate::arch::RUN_LEN;
use crate::coalesced::Coalesced;
use crate::decode::{RECORD_LEN, RECORD_START, Record};

/// `KVM_RUN`: `_IO(0xae, 0x80)`.
const KVM_RUN: libc::Ioctl = 0xae80;

/// Where `immediate_exit` lies in `struct kvm_run`.
const IMMEDIATE_EXIT: usize = 1;

/// Enters the guest until its next exit.
///
/// `Err` is an `errno` value.
#[inline]
pub(crate) fn kvm_run(fd: &mut VcpuFd) -> Result<(), i32> {
    // SAFETY: the file is a vCPU's, for which this request is defined and takes no argument. What
    // the kernel writes is the run area, which nobody looks at during the call because both its
    // owners need the `VcpuFd` or the `RunRecord` for that, and the guest memory that whoever
    // called the unsafe `set_user_memory_region` vouched for.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_RUN, 0) };
    if ret < 0 {
        return Err(errno());
    }
    Ok(())
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A shared mapping of a file, unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread. Whoever hands out access to its bytes
// answers for how the threads share them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &impl AsRawFd, offset: libc::off_t, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            libc::mmap(
                null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { base, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing refers to it any longer: everything
        // that hands out references to its bytes keeps the `Mapping` alive.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len);
        }
    }
}

/// Maps a vCPU's run area a second time, beside the mapping that `VcpuFd` has.
///
/// This is what makes a kick sound: `VcpuFd` hands out exclusive references to the whole of its
/// own mapping, so nothing else may touch a byte of that one.
pub(crate) fn map_run_area(fd: &VcpuFd) -> io::Result<(RunRecord, ImmediateExit)> {
    let mapping = Arc::new(Mapping::new(fd, 0, RUN_LEN)?);
    Ok((RunRecord(Arc::clone(&mapping)), ImmediateExit(mapping)))
}

/// The one owner of the part of a run area in which the kernel describes an exit.
#[derive(Debug)]
pub(crate) struct RunRecord(Arc<Mapping>);

const _: () = assert!(RECORD_START > IMMEDIATE_EXIT && RECORD_START + RECORD_LEN == RUN_LEN);

impl RunRecord {
    #[inline]
    pub(crate) fn get(&mut self) -> &mut Record {
        // SAFETY: the mapping has `RUN_LEN` bytes, and these are its last `RECORD_LEN`; bytes
        // have no alignment and no invalid values. The reference is exclusive: there is one
        // `RunRecord` for a mapping, `ImmediateExit` touches a byte before these only, and the
        // kernel writes only during `kvm_run`, which the reference does not outlive because its
        // user borrows `self` together with the `VcpuFd`.
        unsafe { self.0.base.add(RECORD_START).cast::<Record>().as_mut() }
    }
}

/// `kvm_run.immediate_exit` of one vCPU, for any thread.
#[derive(Clone, Debug)]
pub(crate) struct ImmediateExit(Arc<Mapping>);

impl ImmediateExit {
    /// Sets or clears the flag. Everything done before is visible to a thread that sees it.
    pub(crate) fn set(&self, on: bool) {
        // SAFETY: the byte lies inside of the mapping, which `self` keeps alive, and in this
        // mapping it is only ever accessed here, atomically. The kernel reads it as a single byte.
        let flag = unsafe { AtomicU8::from_ptr(self.0.base.add(IMMEDIATE_EXIT).as_ptr()) };
        // Sequentially consistent: the flag must not overtake the state that it announces.
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}

/// The ring of coalesced writes, as its only consumer sees it: `struct kvm_coalesced_mmio_ring`.
#[derive(Debug)]
pub(crate) struct CoalescedRing(Mapping);

/// The oldest write of a ring; it leaves the ring when this is dropped.
pub(crate) struct Oldest<'a> {
    pub(crate) write: Coalesced,
    ring: &'a CoalescedRing,
    next: u32,
}

impl Drop for Oldest<'_> {
    fn drop(&mut self) {
        // Release: who sees the ring without this write sees what came of it, too.
        self.ring.index(0).store(self.next, Ordering::Release);
    }
}

impl CoalescedRing {
    /// Two indices of 32 bits.
    const HEADER: usize = 8;
    /// `struct kvm_coalesced_mmio`.
    const ENTRY: usize = 24;

    pub(crate) fn map(fd: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the call has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let len = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        let offset = page * libc::c_long::from(KVM_COALESCED_MMIO_PAGE_OFFSET);
        Self::map_at(fd, offset, len)
    }

    pub(crate) fn map_at(file: &impl AsRawFd, offset: libc::off_t, len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(file, offset, len)?;
        if Self::owned(&mapping).swap(1, Ordering::Acquire) != 0 {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "the machine's coalesced writes are taken already",
            ));
        }
        Ok(Self(mapping))
    }

    /// Whether the ring has a consumer: 1 if it has, 0 if not.
    ///
    /// The mark is in the ring's own page, which all vCPUs of a machine have in common: in its
    /// last byte, which no entry reaches because a page is no multiple of their size.
    fn owned(mapping: &Mapping) -> &AtomicU8 {
        debug_assert!((mapping.len - Self::HEADER) % Self::ENTRY != 0);
        // SAFETY: the byte lies inside of the mapping, which lives as long as the reference. It is
        // only ever accessed here, atomically; the kernel leaves it zero.
        unsafe { AtomicU8::from_ptr(mapping.base.add(mapping.len - 1).as_ptr()) }
    }

    /// How many entries the kernel keeps.
    pub(crate) fn capacity(&self) -> u32 {
        u32::try_from((self.0.len - Self::HEADER) / Self::ENTRY).unwrap_or(u32::MAX)
    }

    /// Index 0 is the consumer's, index 1 the kernel's.
    fn index(&self, which: usize) -> &AtomicU32 {
        debug_assert!(which < 2);
        // SAFETY: the header lies inside of the mapping, which starts at a page and lives as long
        // as `self`. Both sides access the indices atomically only.
        unsafe { AtomicU32::from_ptr(self.0.base.as_ptr().cast::<u32>().add(which)) }
    }

    /// Whether every write of the ring has been carried out.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.index(0).load(Ordering::Acquire) == self.index(1).load(Ordering::Relaxed)
    }

    /// The oldest write. The guard stands for being the only one who takes writes.
    pub(crate) fn oldest<'a>(&'a self, _taking: &'a mut MutexGuard<'_, ()>) -> Option<Oldest<'a>> {
        let first = self.index(0).load(Ordering::Relaxed);
        let last = self.index(1).load(Ordering::Acquire);
        let capacity = self.capacity();
        if first == last || first >= capacity || last >= capacity {
            return None;
        }
        let at = Self::HEADER + first as usize * Self::ENTRY;
        // SAFETY: `first` is below the capacity, so the entry lies inside of the mapping. The
        // kernel writes only entries outside of `first..last`, and nobody else moves `first`
        // meanwhile. Bytes have no invalid values.
        let entry = unsafe { self.0.base.add(at).cast::<[u8; Self::ENTRY]>().read() };

        let word = |n: usize| {
            let bytes = entry.get(4 * n..).and_then(|rest| rest.first_chunk());
            u32::from_ne_bytes(bytes.copied().unwrap_or_default())
        };
        let double = |n: usize| {
            let bytes = entry.get(8 * n..).and_then(|rest| rest.first_chunk());
            bytes.copied().unwrap_or_default()
        };
        Some(Oldest {
            write: Coalesced {
                addr: u64::from_ne_bytes(double(0)),
                len: word(2),
                is_pio: word(3) != 0,
                data: double(2),
            },
            ring: self,
            next: (first + 1) % capacity,
        })
    }
}

impl Drop for CoalescedRing {
    fn drop(&mut self) {
        Self::owned(&self.0).store(0, Ordering::Release);
    }
}

/// The signal's handler. Its only purpose is that a system call is interrupted.
extern "C" fn on_kick(_signal: libc::c_int) {}

/// Installs the handler of kicks for `signal`, once for the process.
///
/// A signal that already has another handler is refused.
pub(crate) fn install_kick_handler(signal: libc::c_int) -> io::Result<()> {
    /// Looking and installing must not be torn apart by another vCPU's thread.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);

    // SAFETY: a `sigaction` of zeros is valid: no handler, no flags, an empty mask.
    let (mut old, mut new) = unsafe {
        (
            std::mem::zeroed::<libc::sigaction>(),
            std::mem::zeroed::<libc::sigaction>(),
        )
    };
    // SAFETY: both pointers are to live objects of the right type, or null.
    if unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut old) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let ours = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
    if old.sa_sigaction == ours {
        return Ok(());
    }
    if old.sa_sigaction != libc::SIG_DFL {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("signal {signal} already has a handler"),
        ));
    }
    // No SA_RESTART: the signal exists to make a system call return.
    new.sa_sigaction = ours;
    // SAFETY: the handler does nothing, so it is safe to run at any point of any thread.
    if unsafe { libc::sigaction(signal, &raw const new, null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The first and the last real-time signal that programs may use.
pub(crate) fn realtime_signals() -> std::ops::RangeInclusive<libc::c_int> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Changes whether the calling thread takes `signal`; returns whether it was blocked before.
pub(crate) fn block_signal(signal: libc::c_int, block: bool) -> io::Result<bool> {
    let how = if block {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a signal set of zeros is valid, and `sigemptyset` makes it an empty one.
    let (mut set, mut old) = unsafe {
        (
            std::mem::zeroed::<libc::sigset_t>(),
            std::mem::zeroed::<libc::sigset_t>(),
        )
    };
    // SAFETY: the pointers are to live signal sets, and changing the mask of the calling thread
    // is harmless to memory.
    unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        match libc::pthread_sigmask(how, &raw const set, &raw mut old) {
            0 => Ok(libc::sigismember(&raw const old, signal) == 1),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// The calling thread's number.
pub(crate) fn thread_id() -> libc::pid_t {
    // SAFETY: the call has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends `signal` to a thread of this process; to one that has ended, it does nothing.
pub(crate) fn signal_thread(thread: libc::pid_t, signal: libc::c_int) {
    // SAFETY: the call takes numbers only. A number that names no thread of this process is an
    // error that changes nothing.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal);
    }
}
