// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signals, as other parts of a program would use them.

#![expect(unsafe_code, reason = "the standard library knows no signals")]

/// The calling thread's number.
pub fn thread_id() -> libc::pid_t {
    // SAFETY: the call has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends a signal to a thread of this process.
pub fn send(thread: libc::pid_t, signal: i32) {
    // SAFETY: the call takes numbers only.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
}

/// Blocks a signal in the calling thread.
pub fn block(signal: i32) {
    // SAFETY: the set is initialised before it is used, and only this thread's mask changes.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Whether a signal is blocked in the calling thread.
pub fn is_blocked(signal: i32) -> bool {
    // SAFETY: the set is written by the first call before the second reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

/// Whether a signal waits for the calling thread to take it.
pub fn is_pending(signal: i32) -> bool {
    // SAFETY: the set is written by the first call before the second reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

/// Gives a signal a handler that is not the library's.
pub fn take(signal: i32) {
    extern "C" fn other(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = other as extern "C" fn(i32) as libc::sighandler_t;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Has the program ignore a signal, as one may be started by another.
pub fn ignore(signal: i32) {
    // SAFETY: the call takes no pointer to be followed.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}
