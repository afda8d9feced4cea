// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kicking a vCPU: a flag in its run area, and a signal to its thread.

use std::io;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::run_area::ImmediateExit;
use crate::run::Kick;

/// When to try a signal again that the kernel has no room for.
const RETRY: Duration = Duration::from_millis(1);

/// The signal that interrupts a vCPU's thread.
///
/// The signal gets a handler that does nothing when the first vCPU runs. It must not be used for
/// anything else, which is why only real-time signals can be chosen.
///
/// ```
/// use vcpu_runner::KickSignal;
///
/// // The one after the default, which another library may want.
/// let signal = KickSignal::realtime(1).unwrap();
/// assert_eq!(signal.number(), KickSignal::default().number() + 1);
/// assert!(KickSignal::realtime(200).is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KickSignal(libc::c_int);

impl KickSignal {
    /// The real-time signal `SIGRTMIN + n`, if there is one.
    #[must_use]
    pub fn realtime(n: u8) -> Option<Self> {
        let signals = realtime_signals();
        let signal = signals.start() + libc::c_int::from(n);
        signals.contains(&signal).then_some(Self(signal))
    }

    /// The signal's number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl Default for KickSignal {
    /// `SIGRTMIN`.
    fn default() -> Self {
        Self(*realtime_signals().start())
    }
}

/// Kicks a vCPU by its `immediate_exit` flag and a signal to its thread.
///
/// The flag catches a thread that is about to enter the guest, the signal one that is in it.
pub(super) struct KvmKick {
    immediate_exit: ImmediateExit,
    /// The thread that runs the vCPU. Locked while a signal is sent, so that it cannot end then.
    thread: Mutex<Option<libc::pid_t>>,
    signal: KickSignal,
}

impl KvmKick {
    pub(super) const fn new(immediate_exit: ImmediateExit, signal: KickSignal) -> Self {
        Self {
            immediate_exit,
            thread: Mutex::new(None),
            signal,
        }
    }

    /// The signal that it sends.
    pub(super) const fn signal(&self) -> KickSignal {
        self.signal
    }

    /// Prepares the calling thread, which is going to run the vCPU; returns whether it had the
    /// signal blocked before.
    pub(super) fn bind(&self) -> io::Result<bool> {
        let signal = self.signal.number();
        install_kick_handler(signal)?;
        let was_blocked = block_signal(signal, false)?;
        *self.lock() = Some(thread_id());
        Ok(was_blocked)
    }

    /// The calling thread does not run the vCPU any longer.
    pub(super) fn unbind(&self, was_blocked: bool) {
        *self.lock() = None;
        if was_blocked {
            // The mask was changed before with the same arguments, so this cannot fail.
            let _ = block_signal(self.signal.number(), true);
        }
    }

    /// Signals the thread that runs the vCPU, if there is one and it is not the calling one; returns
    /// `false` if that has to be tried again.
    fn signal_bound_thread(&self) -> bool {
        let thread = self.lock();
        // The calling thread itself is in a device's handler, so it is not in the guest.
        let other = thread.filter(|&id| id != thread_id());
        other.is_none_or(|id| signal_thread(id, self.signal.number()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<libc::pid_t>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.immediate_exit.set(true);
        // A flag that has been cleared since was seen: the vCPU has come out by itself.
        while !self.signal_bound_thread() && self.immediate_exit.is_set() {
            // The user's limit of pending signals is reached, perhaps by other programs: a late kick is
            // better than a lost one.
            std::thread::sleep(RETRY);
        }
    }

    fn clear(&self) {
        self.immediate_exit.set(false);
    }
}

/// The signal's handler. Its only purpose is that a system call is interrupted.
extern "C" fn on_kick(_signal: libc::c_int) {}

/// Installs the handler of kicks for `signal`, once for the process.
///
/// A signal that already has another handler is refused.
fn install_kick_handler(signal: libc::c_int) -> io::Result<()> {
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
    // An ignored one is in nobody's use: a program inherits that from whoever starts it.
    if !matches!(old.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
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
fn realtime_signals() -> std::ops::RangeInclusive<libc::c_int> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Changes whether the calling thread takes `signal`; returns whether it was blocked before.
fn block_signal(signal: libc::c_int, block: bool) -> io::Result<bool> {
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
fn thread_id() -> libc::pid_t {
    // SAFETY: the call has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends `signal` to a thread of this process; to one that has ended, it does nothing. Returns `false` if
/// no more real-time signals may wait for programs of this user.
fn signal_thread(thread: libc::pid_t, signal: libc::c_int) -> bool {
    // SAFETY: the call takes numbers only. A number that names no thread of this process is an
    // error that changes nothing.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
    sent == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN)
}

#[cfg(test)]
#[cfg(not(miri))] // Miri has no signals.
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    /// Held by the test that changes the limit of the process.
    static LIMITING: Mutex<()> = Mutex::new(());

    /// How many signals may wait for this user; returns what it was before.
    fn limit(count: libc::rlim_t) -> libc::rlim_t {
        // SAFETY: a limit of zeros is valid, and the pointers are to live limits.
        unsafe {
            let mut limit = std::mem::zeroed::<libc::rlimit>();
            assert_eq!(libc::getrlimit(libc::RLIMIT_SIGPENDING, &raw mut limit), 0);
            let before = std::mem::replace(&mut limit.rlim_cur, count);
            assert_eq!(
                libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit),
                0
            );
            before
        }
    }

    /// Whether the vCPU with this run area leaves the guest as soon as it enters it.
    fn leaves_at_once(run: &File) -> bool {
        let mut header = [0; 8];
        run.read_exact_at(&mut header, 0).unwrap();
        header[1] == 1
    }

    /// A kick of a vCPU whose run area is a file.
    fn kick_of_a_file() -> (File, KvmKick) {
        // SAFETY: the name is a C string, and the file belongs to nobody else.
        let memory = unsafe { File::from_raw_fd(libc::memfd_create(c"run".as_ptr(), 0)) };
        memory.set_len(1 << 16).unwrap();
        let (_record, flag) = super::super::run_area::map(memory.as_raw_fd()).unwrap();
        (memory, KvmKick::new(flag, KickSignal::realtime(7).unwrap()))
    }

    #[test]
    fn a_kick_that_the_vcpu_has_seen_waits_for_no_signal() {
        let _limiting = LIMITING.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, kick) = kick_of_a_file();
        let was_blocked = kick.bind().unwrap();
        let before = limit(0);
        let in_time = std::thread::scope(|scope| {
            let kicker = scope.spawn(|| kick.kick());
            let deadline = Instant::now() + Duration::from_secs(60);
            while !leaves_at_once(&memory) && Instant::now() < deadline {
                std::thread::sleep(RETRY);
            }
            // What a vCPU does that comes out of the guest by itself.
            kick.clear();
            while !kicker.is_finished() && Instant::now() < deadline {
                std::thread::sleep(RETRY);
            }
            let in_time = kicker.is_finished();
            limit(before);
            in_time
        });
        kick.unbind(was_blocked);
        assert!(in_time, "the kick waits for something that is not needed");
    }

    #[test]
    fn a_kick_keeps_the_vcpu_out_of_the_guest_and_waits_until_one_more_signal_may_wait() {
        let _limiting = LIMITING.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, kick) = kick_of_a_file();
        let before = limit(0);
        let (bound, is_bound) = channel();
        std::thread::scope(|scope| {
            let vcpu = scope.spawn(|| {
                let was_blocked = kick.bind().unwrap();
                // Blocked, so that a kick that comes before `sigtimedwait` stays pending.
                block_signal(kick.signal().number(), true).unwrap();
                bound.send(()).unwrap();
                // SAFETY: a signal set of zeros is valid and empty, and the pointers are to live objects.
                let waited = unsafe {
                    let mut set = std::mem::zeroed::<libc::sigset_t>();
                    libc::sigaddset(&raw mut set, kick.signal().number());
                    let minute = libc::timespec {
                        tv_sec: 60,
                        tv_nsec: 0,
                    };
                    libc::sigtimedwait(&raw const set, null_mut(), &raw const minute)
                };
                kick.unbind(was_blocked);
                waited
            });
            is_bound.recv().unwrap();
            let kicker = scope.spawn(|| kick.kick());
            // Before the signal: a vCPU that the signal meets outside of the guest must not enter it.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !leaves_at_once(&memory) && Instant::now() < deadline {
                std::thread::sleep(RETRY);
            }
            let left = leaves_at_once(&memory);
            std::thread::sleep(20 * RETRY);
            let waits = !kicker.is_finished();
            limit(before);
            assert_eq!(vcpu.join().unwrap(), kick.signal().number());
            assert!(left, "the guest is not entered any more");
            assert!(waits, "the signal is still to be sent");
        });
    }
}
