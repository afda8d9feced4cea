// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Controlling a vCPU from other threads: kick, pause, resume, stop.
//!
//! A request changes the [`Machine`] under its lock, and then kicks the vCPU. The vCPU's thread
//! clears the kick and then looks at the machine under the same lock. Whichever comes first, the
//! request is seen: either the look comes after the change, or the kick comes after the clearing.
//! Nothing is sent twice, and nothing polls.

use std::fmt;
use std::time::Duration;

use super::error::ControlError;
use super::outcome::Outcome;
use super::vcpu::Kick;
use crate::sync::{Arc, Condvar, Deadline, Mutex, MutexGuard, ThreadId, current, lock, wait};

/// What a vCPU's loop is doing.
///
/// ```
/// # #[cfg(feature = "test-utils")] {
/// use std::time::Duration;
/// use vcpu_runner::{MockVcpu, State, VcpuRunner};
///
/// # let io = vcpu_runner::IoFn(|_: vcpu_runner::IoAccess<'_>| ());
/// // A guest that does nothing, for ever. With KVM it is a `KvmVcpu`.
/// let runner = VcpuRunner::new(MockVcpu::new([]), io);
/// assert_eq!(runner.control().state(), State::Idle);
/// let handle = runner.spawn("vcpu0").unwrap();
/// handle.pause(Duration::from_secs(60)).unwrap();
/// assert_eq!(handle.control().state(), State::Paused);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Not started, or ended.
    Idle,
    /// Started: in the guest, carrying out an exit, or on the way.
    Running,
    /// Out of the guest, with every access completed, waiting to be resumed.
    Paused,
}

/// What controllers want the loop to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Run,
    Pause,
    /// Stands until a loop has ended for it.
    Stop(Outcome),
}

/// What the loop does when it is out of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Enter,
    Park,
    End(Outcome),
}

/// The progress of a request to pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pausing {
    Done,
    Waiting,
    Failed(ControlError),
}

/// The states of one loop, without threads: every transition is a plain function.
#[derive(Clone, Copy, Debug)]
struct Machine {
    state: State,
    request: Request,
    /// The loop that runs is to end, for a reason that does not concern the next one.
    winding_up: bool,
    /// The loop ends because it was asked to stop.
    obeyed: bool,
}

impl Machine {
    const fn ask(&mut self, request: Request) {
        if !matches!(self.request, Request::Stop(_)) {
            self.request = request;
        }
    }

    const fn next(&self) -> Next {
        match self.request {
            Request::Stop(outcome) => Next::End(outcome),
            _ if self.winding_up => Next::End(Outcome::Stopped),
            Request::Run => Next::Enter,
            Request::Pause => Next::Park,
        }
    }

    /// The loop does what is next.
    const fn obey(&mut self) -> Next {
        self.obeyed = matches!(self.request, Request::Stop(_));
        self.next()
    }

    const fn pausing(&self) -> Pausing {
        match (self.state, self.request) {
            (State::Idle, _) => Pausing::Failed(ControlError::NotRunning),
            _ if self.winding_up => Pausing::Failed(ControlError::Superseded),
            (_, Request::Run | Request::Stop(_)) => Pausing::Failed(ControlError::Superseded),
            (State::Paused, Request::Pause) => Pausing::Done,
            (State::Running, Request::Pause) => Pausing::Waiting,
        }
    }

    /// The loop has ended. A stop stays in force if that was for another reason.
    const fn end(&mut self) {
        if self.obeyed || !matches!(self.request, Request::Stop(_)) {
            self.request = Request::Run;
        }
        self.state = State::Idle;
        (self.winding_up, self.obeyed) = (false, false);
    }
}

/// The machine with what only the threads around it need.
struct Guarded {
    machine: Machine,
    /// The thread that runs the loop.
    thread: Option<ThreadId>,
    /// Calls accepted from [`VcpuHandle::with_vcpu`](crate::VcpuHandle::with_vcpu), not yet made.
    calls: usize,
}

/// What a vCPU's thread and its controllers share.
pub(crate) struct Shared {
    guarded: Mutex<Guarded>,
    changed: Condvar,
    kick: Arc<dyn Kick>,
}

impl Shared {
    pub(crate) fn new(kick: Arc<dyn Kick>) -> Self {
        let machine = Machine {
            state: State::Idle,
            request: Request::Run,
            winding_up: false,
            obeyed: false,
        };
        Self {
            guarded: Mutex::new(Guarded {
                machine,
                thread: None,
                calls: 0,
            }),
            changed: Condvar::new(),
            kick,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Guarded> {
        lock(&self.guarded)
    }

    /// From now on requests are meant for the loop, even if its thread has not got there yet.
    pub(crate) fn start(&self) {
        self.lock().machine.state = State::Running;
    }

    /// The loop begins on the calling thread.
    pub(crate) fn begin(&self) {
        let mut guarded = self.lock();
        guarded.machine.state = State::Running;
        guarded.thread = Some(current().id());
    }

    /// The loop has ended, or will never begin.
    pub(crate) fn end(&self) {
        let mut guarded = self.lock();
        guarded.machine.end();
        guarded.thread = None;
        drop(guarded);
        self.changed.notify_all();
    }

    /// Clears the kick and says what to do. Called by the loop when it is out of the guest.
    pub(crate) fn next(&self) -> Next {
        self.kick.clear();
        self.lock().machine.obey()
    }

    /// Brings the vCPU back with its pending accesses completed. Called by the loop.
    pub(crate) fn complete(&self) {
        self.kick.kick();
    }

    /// Ends the loop that runs, if one does; the next one is not concerned.
    pub(crate) fn wind_up(&self) {
        let mut guarded = self.lock();
        if guarded.machine.state == State::Idle {
            return;
        }
        guarded.machine.winding_up = true;
        drop(guarded);
        self.changed.notify_all();
        self.kick.kick();
    }

    /// Acknowledges a pause and waits for its end. Makes accepted calls meanwhile.
    pub(crate) fn park(&self, mut call: impl FnMut()) {
        let mut guarded = self.lock();
        guarded.machine.state = State::Paused;
        self.changed.notify_all();
        loop {
            if guarded.calls > 0 {
                guarded.calls -= 1;
                drop(guarded);
                call();
                guarded = self.lock();
            } else if guarded.machine.next() == Next::Park {
                guarded = wait(&self.changed, guarded);
            } else {
                break;
            }
        }
        guarded.machine.state = State::Running;
    }

    /// Runs `accept` and has the paused loop make one call, unless it is not paused.
    pub(crate) fn call(&self, accept: impl FnOnce()) -> Result<(), ControlError> {
        let mut guarded = self.lock();
        if guarded.thread == Some(current().id()) {
            return Err(ControlError::OwnThread);
        }
        match guarded.machine.pausing() {
            Pausing::Done => {}
            Pausing::Failed(ControlError::NotRunning) => return Err(ControlError::NotRunning),
            _ => return Err(ControlError::NotPaused),
        }
        accept();
        guarded.calls += 1;
        drop(guarded);
        self.changed.notify_all();
        Ok(())
    }

    /// Asks without waiting for an answer.
    fn ask(&self, request: Request) {
        self.lock().machine.ask(request);
        self.changed.notify_all();
        self.kick.kick();
    }

    fn ask_pause(&self) -> Result<(), ControlError> {
        let mut guarded = self.lock();
        if guarded.thread == Some(current().id()) {
            return Err(ControlError::OwnThread);
        }
        if guarded.machine.state == State::Idle {
            return Err(ControlError::NotRunning);
        }
        guarded.machine.ask(Request::Pause);
        let pausing = guarded.machine.pausing();
        drop(guarded);
        match pausing {
            Pausing::Done => {}
            Pausing::Waiting => self.kick.kick(),
            Pausing::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn wait_paused(&self, deadline: Deadline) -> Result<(), ControlError> {
        let mut guarded = self.lock();
        loop {
            match guarded.machine.pausing() {
                Pausing::Done => return Ok(()),
                Pausing::Failed(error) => return Err(error),
                Pausing::Waiting => {
                    guarded = deadline
                        .wait(&self.changed, guarded)
                        .ok_or(ControlError::Timeout)?;
                }
            }
        }
    }
}

/// Controls a vCPU's loop from any thread.
///
/// All requests are idempotent, none is lost, whenever it comes, and no lock is held while one
/// waits for its answer. The last request counts, except that a stop is not taken back.
///
/// A device that is called by the loop may use its own vCPU's control: [`Control::stop`] ends the
/// loop before the guest is entered again, with the access completed. Simpler is a device that
/// [answers](crate::GuestIo::Answer) that the loop is to end.
///
/// ```
/// # #[cfg(feature = "test-utils")] {
/// use std::time::Duration;
/// use vcpu_runner::{Control, MockVcpu, Outcome, State, VcpuRunner};
///
/// # let io = vcpu_runner::IoFn(|_: vcpu_runner::IoAccess<'_>| ());
/// // A guest that does nothing, for ever. With KVM it is a `KvmVcpu`.
/// let runner = VcpuRunner::new(MockVcpu::new([]), io);
/// let mut handle = runner.spawn("vcpu0").unwrap();
/// let control: Control = handle.control().clone();
/// control.pause(Duration::from_secs(60)).unwrap();
/// assert_eq!(control.state(), State::Paused);
/// control.stop(); // from any thread, also from a device
/// assert_eq!(handle.join(Duration::from_secs(60)).unwrap(), Outcome::Stopped);
/// # }
/// ```
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Control {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// What the loop is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.lock().machine.state
    }

    /// Brings the vCPU out of the guest once, to look for requests; it goes on by itself.
    pub fn kick(&self) {
        self.shared.kick.kick();
    }

    /// Ends the loop with [`Outcome::Stopped`]. Does not wait.
    ///
    /// One stop ends one loop: the one that runs, or the next one at once if none does, or if the
    /// one that runs ends for another reason just then. After that the vCPU can be run again. Of
    /// several stops the first one's outcome counts.
    pub fn stop(&self) {
        self.stop_with(Outcome::Stopped);
    }

    /// Ends the loop with an outcome of the caller's choice. Does not wait.
    ///
    /// This is how a device lets the guest power off or reset the machine.
    pub fn stop_with(&self, outcome: Outcome) {
        self.shared.ask(Request::Stop(outcome));
    }

    /// Brings the vCPU out of the guest, completes its pending accesses, and keeps it there.
    ///
    /// Returns once that has happened: the vCPU's registers are those between two instructions.
    /// The time it takes is that of the device access in progress. The caller must not hold a
    /// lock that such an access waits for; if it does, the result is a timeout.
    ///
    /// # Errors
    ///
    /// [`ControlError::Timeout`] if the vCPU did not pause in time. The request stands: calling
    /// again waits on, [`Control::resume`] takes it back. [`ControlError::NotRunning`],
    /// [`ControlError::Superseded`] and [`ControlError::OwnThread`] say that the vCPU cannot
    /// pause, or not for this caller.
    pub fn pause(&self, timeout: Duration) -> Result<(), ControlError> {
        let deadline = Deadline::after(timeout);
        self.request_pause()?;
        self.wait_paused(deadline)
    }

    /// Lets a paused vCPU go on, or takes back a request to pause. Does not wait.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotRunning`] if the loop is not running.
    pub fn resume(&self) -> Result<(), ControlError> {
        let mut guarded = self.shared.lock();
        if guarded.machine.state == State::Idle {
            return Err(ControlError::NotRunning);
        }
        guarded.machine.ask(Request::Run);
        drop(guarded);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// The first half of [`Control::pause`].
    pub(crate) fn request_pause(&self) -> Result<(), ControlError> {
        self.shared.ask_pause()
    }

    /// The second half of [`Control::pause`].
    pub(crate) fn wait_paused(&self, deadline: Deadline) -> Result<(), ControlError> {
        self.shared.wait_paused(deadline)
    }

    /// Has a loop that starts later begin with a pause.
    pub(crate) fn start_paused(&self) {
        self.shared.lock().machine.ask(Request::Pause);
    }
}
