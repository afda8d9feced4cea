// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's loop on a thread of its own.

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use super::error::JoinError;
use super::member::{Ended, Member, OnEnd};
use crate::run::{
    Call, Control, ControlError, End, ExitObserver, ExitPolicy, Flow, GuestIo, Outcome, Vcpu,
    VcpuRunner,
};
use crate::sync::{Arc, Builder, Condvar, Deadline, JoinHandle, Mutex, current, lock};

/// How long dropping a handle waits for the thread to end.
pub(super) const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a thread leaves how it ended.
struct Completion<V: Vcpu, T> {
    state: Mutex<Completed<V, T>>,
    changed: Condvar,
}

struct Completed<V: Vcpu, T> {
    has_ended: bool,
    /// Taken by the thread that joins.
    ended: Option<Ended<T, V::Error>>,
    /// The loop, if it is to be kept and there was no panic.
    member: Option<Box<dyn Member<V, T>>>,
}

impl<V: Vcpu, T> Completion<V, T> {
    fn new() -> Self {
        Self {
            state: Mutex::new(Completed {
                has_ended: false,
                ended: None,
                member: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn set(&self, ended: Ended<T, V::Error>, member: Option<Box<dyn Member<V, T>>>) {
        *lock(&self.state) = Completed {
            has_ended: true,
            ended: Some(ended),
            member,
        };
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        lock(&self.state).has_ended
    }

    /// Waits for the thread's end, and takes how it ended.
    fn take(&self, deadline: Deadline) -> Ended<T, V::Error> {
        let mut state = lock(&self.state);
        while !state.has_ended {
            state = deadline
                .wait(&self.changed, state)
                .ok_or(JoinError::Timeout)?;
        }
        state.ended.take().unwrap_or(Err(JoinError::AlreadyJoined))
    }
}

/// What happens on a vCPU's thread besides the loop.
pub(super) struct Around<T, E> {
    /// Called first; an error is the thread's end.
    pub(super) hook: Box<dyn FnOnce() -> io::Result<()> + Send>,
    /// Called last, with how the thread ended.
    pub(super) on_end: OnEnd<T, E>,
    /// Whether the loop can be taken back when it has ended.
    pub(super) keep: bool,
}

/// A vCPU's loop that runs on a thread of its own.
///
/// Dropping the handle stops the loop and waits at most one second for the thread; a device that
/// keeps the thread for longer leaves it to end by itself.
///
/// ```
/// # #[cfg(feature = "test-utils")] {
/// use std::time::Duration;
/// use vcpu_runner::{MockVcpu, Outcome, VcpuRunner};
///
/// # let io = vcpu_runner::IoFn(|_: vcpu_runner::IoAccess<'_>| ());
/// // A guest that does nothing, for ever. With KVM it is a `KvmVcpu`.
/// let runner = VcpuRunner::new(MockVcpu::new([]), io);
/// let mut handle = runner.spawn("vcpu0").unwrap();
/// handle.pause(Duration::from_secs(60)).unwrap();
/// // The registers are those between two instructions here: `handle.with_vcpu(..)`.
/// handle.resume().unwrap();
/// handle.stop();
/// assert_eq!(handle.join(Duration::from_secs(60)).unwrap(), Outcome::Stopped);
/// # }
/// ```
pub struct VcpuHandle<
    #[cfg(feature = "kvm-ioctls")] V: Vcpu = crate::KvmVcpu,
    #[cfg(not(feature = "kvm-ioctls"))] V: Vcpu,
    T = Infallible,
> {
    control: Control,
    completion: Arc<Completion<V, T>>,
    calls: Sender<Call<V>>,
    thread: Option<JoinHandle<()>>,
}

impl<V, I, O, P> VcpuRunner<V, I, O, P>
where
    V: Vcpu<Error: Send> + Send + 'static,
    I: GuestIo<Answer: Flow<End: Send>> + Send + 'static,
    O: ExitObserver + Send + 'static,
    P: ExitPolicy<End<I>> + Send + 'static,
{
    /// Runs the loop on a new thread of this name.
    ///
    /// # Errors
    ///
    /// The thread could not be created.
    pub fn spawn(self, name: &str) -> io::Result<VcpuHandle<V, End<I>>> {
        self.spawn_then(name, |_| ())
    }

    /// Runs the loop on a new thread of this name, which calls `on_end` with how it ended.
    ///
    /// That is the last thing the thread does: devices, observer and policy have been dropped.
    ///
    /// # Errors
    ///
    /// The thread could not be created; `on_end` is not called then.
    pub fn spawn_then(
        self,
        name: &str,
        on_end: impl FnOnce(&Ended<End<I>, V::Error>) + Send + 'static,
    ) -> io::Result<VcpuHandle<V, End<I>>> {
        let around = Around {
            hook: Box::new(|| Ok(())),
            on_end: Box::new(on_end),
            keep: false,
        };
        VcpuHandle::spawn(Box::new(self), name, around)
    }
}

impl<V: Vcpu<Error: Send> + 'static, T: Send + 'static> VcpuHandle<V, T> {
    /// Starts a thread that runs the loop, with other things around it.
    pub(super) fn spawn(
        mut member: Box<dyn Member<V, T>>,
        name: &str,
        around: Around<T, V::Error>,
    ) -> io::Result<Self> {
        let control = member.control();
        if name.contains('\0') {
            control.shared().end();
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "thread name contains a zero byte",
            ));
        }
        let (calls, receiver) = mpsc::channel();
        member.set_calls(receiver);
        let completion = Arc::new(Completion::new());

        control.shared().start();
        let thread = Builder::new().name(name.to_owned()).spawn({
            let control = control.clone();
            let completion = Arc::clone(&completion);
            let Around { hook, on_end, keep } = around;
            move || {
                let ran = caught(move || {
                    let ended = match hook() {
                        Ok(()) => member.run().map_err(JoinError::Vcpu),
                        Err(error) => Err(JoinError::Hook(error)),
                    };
                    // Unless it is kept, it is dropped before the end is announced: devices are free by then.
                    (ended, keep.then_some(member))
                });
                let (mut ended, member) = ran.unwrap_or_else(|panic| (Err(panic), None));
                control.shared().end();
                if let Err(panic) = caught(|| on_end(&ended)) {
                    ended = ended.and(Err(panic));
                }
                completion.set(ended, member);
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
}

impl<V: Vcpu, T> VcpuHandle<V, T> {
    /// What controls the loop; it can be cloned and outlives the handle.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// Ends the loop with [`Outcome::Stopped`]. Does not wait.
    pub fn stop(&self) {
        self.control.shared().wind_up();
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
    pub fn join(&mut self, timeout: Duration) -> Result<Outcome<T>, JoinError<V::Error>> {
        self.join_until(Deadline::after(timeout))
    }

    pub(super) fn join_until(&mut self, deadline: Deadline) -> Ended<T, V::Error> {
        let thread = self.thread.as_ref();
        if thread.is_some_and(|thread| thread.thread().id() == current().id()) {
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

    /// The loop, when it has ended and was kept.
    pub(super) fn take_member(&self) -> Option<Box<dyn Member<V, T>>> {
        lock(&self.completion.state).member.take()
    }

    /// Waits for the thread to end, and gives it up if it does not.
    pub(super) fn finish(&mut self, deadline: Deadline) {
        if self.thread.is_some() {
            self.stop();
            let _ = self.join_until(deadline);
            self.thread = None;
        }
    }
}

impl<V: Vcpu, T> Drop for VcpuHandle<V, T> {
    fn drop(&mut self) {
        self.finish(Deadline::after(DROP_TIMEOUT));
    }
}

impl<V: Vcpu, T> fmt::Debug for VcpuHandle<V, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuHandle")
            .field("control", &self.control)
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Runs `body`, and makes an error of a panic.
fn caught<R, E>(body: impl FnOnce() -> R) -> Result<R, JoinError<E>> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let message = message(panic.as_ref());
        // What was thrown may panic when it is dropped, and what that throws as well.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(panic)));
        std::mem::forget(dropped.err());
        JoinError::Panicked(message)
    })
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
