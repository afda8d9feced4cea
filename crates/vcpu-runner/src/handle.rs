// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's loop on a thread of its own.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use crate::control::Control;
use crate::error::{ControlError, Error};
use crate::guest_io::GuestIo;
use crate::kvm::KvmVcpu;
use crate::observer::ExitObserver;
use crate::outcome::Outcome;
use crate::policy::ExitPolicy;
use crate::runner::VcpuRunner;
use crate::sync::{Arc, Builder, Condvar, Deadline, JoinHandle, Mutex, lock};
use crate::vcpu::Vcpu;

/// A call to be made on a paused vCPU's thread.
pub(crate) type Call<V> = Box<dyn FnOnce(&V) + Send>;

/// How long dropping a handle waits for the thread to end.
pub(crate) const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// How a vCPU's thread failed, or why it could not be joined.
#[derive(Debug)]
#[non_exhaustive]
pub enum JoinError {
    /// The thread has not ended in time. It can be joined again.
    Timeout,
    /// The loop ended with an error.
    Vcpu(Error),
    /// A device, the policy or the observer panicked, with this message.
    Panicked(String),
    /// The thread's start-up hook failed, and the vCPU never ran.
    Hook(io::Error),
    /// The thread's result has been taken already.
    AlreadyJoined,
    /// A vCPU's own thread cannot wait for itself.
    OwnThread,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("vCPU thread has not ended in time"),
            Self::Vcpu(error) => error.fmt(f),
            Self::Panicked(message) => write!(f, "vCPU thread panicked: {message}"),
            Self::Hook(error) => write!(f, "vCPU thread's start-up hook failed: {error}"),
            Self::AlreadyJoined => f.write_str("vCPU thread was joined already"),
            Self::OwnThread => f.write_str("a vCPU's thread cannot wait for itself"),
        }
    }
}

impl std::error::Error for JoinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Vcpu(error) => Some(error),
            Self::Hook(error) => Some(error),
            _ => None,
        }
    }
}

/// How a vCPU's thread ended.
pub(crate) type Ended = Result<Outcome, JoinError>;

/// Where a thread leaves how it ended.
#[derive(Debug, Default)]
struct Completion {
    /// `None` until the thread has ended; the inner one is taken by whoever joins.
    ended: Mutex<Option<Option<Ended>>>,
    changed: Condvar,
}

impl Completion {
    fn set(&self, ended: Ended) {
        *lock(&self.ended) = Some(Some(ended));
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        lock(&self.ended).is_some()
    }

    /// Waits for the thread's end, and takes how it ended.
    fn take(&self, deadline: Deadline) -> Ended {
        let mut ended = lock(&self.ended);
        loop {
            match &mut *ended {
                Some(ended) => return ended.take().unwrap_or(Err(JoinError::AlreadyJoined)),
                None => {
                    ended = deadline
                        .wait(&self.changed, ended)
                        .ok_or(JoinError::Timeout)?;
                }
            }
        }
    }
}

/// A vCPU's loop that runs on a thread of its own.
///
/// Dropping the handle stops the loop and waits at most one second for the thread; a device that
/// keeps the thread for longer leaves it to end by itself.
pub struct VcpuHandle<V = KvmVcpu> {
    control: Control,
    completion: Arc<Completion>,
    calls: Sender<Call<V>>,
    thread: Option<JoinHandle<()>>,
}

impl<V> VcpuHandle<V> {
    /// Starts a thread that calls `hook`, runs the loop, and hands how that ended to `ended`.
    pub(crate) fn spawn<I, O, P>(
        runner: VcpuRunner<V, I, O, P>,
        name: &str,
        hook: impl FnOnce() -> io::Result<()> + Send + 'static,
        ended: impl FnOnce(&Ended) + Send + 'static,
    ) -> io::Result<Self>
    where
        V: Vcpu + Send + 'static,
        I: GuestIo + Send + 'static,
        O: ExitObserver + Send + 'static,
        P: ExitPolicy + Send + 'static,
    {
        if name.contains('\0') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "thread name contains a zero byte",
            ));
        }
        let (calls, receiver) = mpsc::channel();
        let mut runner = runner.with_calls(receiver);
        let control = runner.control();
        let completion = Arc::new(Completion::default());

        control.shared().start();
        let thread = Builder::new().name(name.to_owned()).spawn({
            let control = control.clone();
            let completion = Arc::clone(&completion);
            move || {
                let result = caught(move || {
                    hook().map_err(JoinError::Hook)?;
                    runner.run().map_err(JoinError::Vcpu)
                });
                // The runner is dropped by now: when the end is announced, the devices are free.
                control.shared().end();
                ended(&result);
                completion.set(result);
            }
        });
        match thread {
            Ok(thread) => Ok(Self {
                control,
                completion,
                calls,
                thread: Some(thread),
            }),
            Err(error) => {
                control.shared().end();
                Err(error)
            }
        }
    }

    /// What controls the loop; it can be cloned and outlives the handle.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// Ends the loop; see [`Control::stop`].
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Pauses the loop; see [`Control::pause`].
    ///
    /// # Errors
    ///
    /// As [`Control::pause`].
    pub fn pause(&self, timeout: Duration) -> Result<(), ControlError> {
        self.control.pause(timeout)
    }

    /// Resumes the loop; see [`Control::resume`].
    ///
    /// # Errors
    ///
    /// As [`Control::resume`].
    pub fn resume(&self) -> Result<(), ControlError> {
        self.control.resume()
    }

    /// Whether the thread has ended, so that [`VcpuHandle::join`] does not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.completion.is_set()
    }

    /// Calls `f` with the paused vCPU on its own thread, to save or change its state.
    ///
    /// KVM wants a vCPU's state to be accessed by the thread that runs it. The reference is not
    /// exclusive, so that the vCPU cannot be exchanged for another one.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotPaused`] and [`ControlError::NotRunning`] if there is no paused vCPU;
    /// `f` is not called then. [`ControlError::Timeout`] if `f` has not returned in time; it may
    /// still be called, or still be running. [`ControlError::OwnThread`] from the vCPU's thread.
    pub fn with_vcpu<R, F>(&self, timeout: Duration, f: F) -> Result<R, ControlError>
    where
        V: 'static,
        R: Send + 'static,
        F: FnOnce(&V) -> R + Send + 'static,
    {
        let (answer, answered) = mpsc::sync_channel(1);
        let call: Call<V> = Box::new(move |vcpu| {
            // Whoever asked may have given up waiting.
            let _ = answer.send(f(vcpu));
        });
        self.control.shared().call(|| {
            let _ = self.calls.send(call);
        })?;
        answered.recv_timeout(timeout).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => ControlError::Timeout,
            mpsc::RecvTimeoutError::Disconnected => ControlError::NotRunning,
        })
    }

    /// Waits for the thread to end, and says how it did. `Duration::MAX` waits as long as it takes.
    ///
    /// # Errors
    ///
    /// [`JoinError::Timeout`] if the thread is still running then; everything else is how it
    /// failed.
    pub fn join(&mut self, timeout: Duration) -> Result<Outcome, JoinError> {
        self.join_until(Deadline::after(timeout))
    }

    pub(crate) fn join_until(&mut self, deadline: Deadline) -> Ended {
        if self.control.shared().is_own_thread() {
            return Err(JoinError::OwnThread);
        }
        let ended = self.completion.take(deadline);
        if self.completion.is_set() {
            // All that is left for the thread to do is to exit.
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
        ended
    }

    /// Waits for the thread to end, and gives it up if it does not.
    pub(crate) fn finish(&mut self, deadline: Deadline) {
        if self.thread.is_some() {
            self.control.stop();
            let _ = self.join_until(deadline);
            self.thread = None;
        }
    }
}

impl<V> Drop for VcpuHandle<V> {
    fn drop(&mut self) {
        self.finish(Deadline::after(DROP_TIMEOUT));
    }
}

impl<V> fmt::Debug for VcpuHandle<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuHandle")
            .field("control", &self.control)
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Runs `body`, and makes an error of a panic.
fn caught(body: impl FnOnce() -> Ended) -> Ended {
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(JoinError::Panicked(message(panic.as_ref()))))
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
