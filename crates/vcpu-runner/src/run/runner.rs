// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The run loop.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;

use super::coalesced::{CoalescedWrite, CoalescedWrites};
use super::control::{Control, Next, Shared};
use super::dispatch::{carry_out, keep_first};
use super::error::{Error, Fault, RunError};
use super::flow::{End, Flow};
use super::guest_io::GuestIo;
use super::observer::ExitObserver;
use super::outcome::Outcome;
use super::policy::{Action, DefaultPolicy, ExitPolicy};
use super::vcpu::Vcpu;
use crate::exit::ExitKind;
use crate::sync::Arc;

/// A call to be made on a paused vCPU's thread.
pub(crate) type Call<V> = Box<dyn FnOnce(&V) + Send>;

/// Runs one vCPU: enters the guest, carries out its exits, enters it again.
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
/// use vcpu_runner::{KvmVcpu, Outcome, VcpuRunner};
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// // Guest memory and registers are set up here.
/// let vcpu = KvmVcpu::new(vm.create_vcpu(0)?)?;
/// match VcpuRunner::new(vcpu, Devices).run()? {
///     Outcome::Halted => println!("the guest is done"),
///     other => println!("{other}"),
/// }
/// # }
/// # Ok(())
/// # }
/// ```
pub struct VcpuRunner<V, I, O = (), P = DefaultPolicy> {
    vcpu: V,
    io: I,
    observer: O,
    policy: P,
    shared: Arc<Shared>,
    coalesced: Option<Arc<dyn CoalescedWrites>>,
    /// Calls to be made while paused, when there is a handle to make them.
    calls: Option<Receiver<Call<V>>>,
}

impl<V: Vcpu, I: GuestIo<Answer: Flow>> VcpuRunner<V, I> {
    /// A loop for a vCPU whose accesses go to `io`, unobserved and with the default policy.
    pub fn new(vcpu: V, io: I) -> Self {
        let shared = Arc::new(Shared::new(vcpu.kicker()));
        Self {
            vcpu,
            io,
            observer: (),
            policy: DefaultPolicy,
            shared,
            coalesced: None,
            calls: None,
        }
    }
}

impl<V, I, O, P> VcpuRunner<V, I, O, P>
where
    V: Vcpu,
    I: GuestIo<Answer: Flow>,
    O: ExitObserver,
    P: ExitPolicy<End<I>>,
{
    /// Has `observer` see every exit.
    pub fn with_observer<O2: ExitObserver>(self, observer: O2) -> VcpuRunner<V, I, O2, P> {
        VcpuRunner {
            vcpu: self.vcpu,
            io: self.io,
            observer,
            policy: self.policy,
            shared: self.shared,
            coalesced: self.coalesced,
            calls: self.calls,
        }
    }

    /// Has `policy` decide about exits that are not device accesses.
    pub fn with_policy<P2: ExitPolicy<End<I>>>(self, policy: P2) -> VcpuRunner<V, I, O, P2> {
        VcpuRunner {
            vcpu: self.vcpu,
            io: self.io,
            observer: self.observer,
            policy,
            shared: self.shared,
            coalesced: self.coalesced,
            calls: self.calls,
        }
    }

    /// Has the loop carry out the writes that KVM collects, before each exit and each pause.
    ///
    /// They keep their order across vCPUs. So while a device takes one of them, the machine's other
    /// vCPUs wait at their next exit or kick: a device that hangs in such a write keeps all of them
    /// from being paused and stopped.
    #[must_use]
    pub fn with_coalesced_mmio(mut self, ring: impl CoalescedWrites + 'static) -> Self {
        self.coalesced = Some(Arc::new(ring));
        self
    }

    /// Has the loop begin with a pause, to be ended by [`Control::resume`].
    #[must_use]
    pub fn paused(self) -> Self {
        self.control().start_paused();
        self
    }

    /// What controls this loop from other threads, and from devices.
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.shared))
    }

    /// The vCPU, while the loop does not run.
    ///
    /// Not exclusive, because that would allow to exchange the vCPU that [`Control`] kicks.
    pub const fn vcpu(&self) -> &V {
        &self.vcpu
    }

    /// Runs the loop in the calling thread until it ends.
    ///
    /// It can be run again afterwards: after [`Outcome::Debug`], say, or to reboot in place, when
    /// the VMM has put registers and devices into their first state.
    ///
    /// # Errors
    ///
    /// [`Error::Vcpu`] if the vCPU cannot go on, [`Error::Vmm`] if the VMM's own vCPU says why,
    /// [`Error::Thread`] if the thread cannot be prepared for being kicked.
    pub fn run(&mut self) -> Result<Outcome<End<I>>, Error<V::Error>> {
        let mut session = Session::begin(self).map_err(Error::Thread)?;
        session.run().map_err(|failure| match failure {
            Failure::Vmm(error) => Error::Vmm(error),
            Failure::Fault(fault) => Error::Vcpu {
                fault,
                pc: session.0.vcpu.program_counter(),
            },
        })
    }

    /// Gives the loop calls to make while paused.
    pub(crate) fn set_calls(&mut self, calls: Receiver<Call<V>>) {
        self.calls = Some(calls);
    }
}

/// Why a vCPU cannot go on.
enum Failure<E> {
    Fault(Fault),
    Vmm(E),
}

/// A loop that is running on this thread. Ends it also when a device panics.
struct Session<'a, V: Vcpu, I, O, P>(&'a mut VcpuRunner<V, I, O, P>);

impl<V: Vcpu, I, O, P> Drop for Session<'_, V, I, O, P> {
    fn drop(&mut self) {
        self.0.vcpu.unbind_thread();
        self.0.shared.end();
    }
}

impl<'a, V, I, O, P> Session<'a, V, I, O, P>
where
    V: Vcpu,
    I: GuestIo<Answer: Flow>,
    O: ExitObserver,
    P: ExitPolicy<End<I>>,
{
    fn begin(runner: &'a mut VcpuRunner<V, I, O, P>) -> io::Result<Self> {
        if let Err(error) = runner.vcpu.bind_thread() {
            runner.shared.end();
            return Err(error);
        }
        runner.shared.begin();
        Ok(Self(runner))
    }

    fn run(&mut self) -> Result<Outcome<End<I>>, Failure<V::Error>> {
        loop {
            if let Some(outcome) = self.obey() {
                return Ok(outcome.widen());
            }
            if let Some(outcome) = self.run_guest()? {
                return Ok(outcome);
            }
        }
    }

    /// Carries out exits until the vCPU is interrupted (`None`) or cannot or shall not go on.
    ///
    /// Requests need no look here: they kick the vCPU, and a kicked vCPU completes what is
    /// pending, runs no guest code, and is interrupted.
    #[inline]
    fn run_guest(&mut self) -> Result<Option<Outcome<End<I>>>, Failure<V::Error>> {
        let VcpuRunner {
            vcpu,
            io,
            observer,
            policy,
            shared,
            coalesced,
            ..
        } = &mut *self.0;
        // The outcome that a device asked for; the loop ends with it once the access is complete.
        let mut ending = None;
        loop {
            let mut exit = vcpu.run();
            // The guest made these writes before it came to this exit.
            if let Some(end) = coalesced.as_deref().and_then(|ring| drain(ring, io)) {
                ending.get_or_insert(Outcome::Vmm(end));
                shared.complete();
            }
            match exit {
                Ok(ref mut exit) => {
                    let kind = exit.kind();
                    observer.exit(kind);
                    let action = carry_out(exit, io, policy);
                    observer.handled(kind);
                    match action {
                        Action::Resume => {}
                        Action::Stop(outcome) => {
                            if !kind.is_access() {
                                return Ok(Some(ending.unwrap_or(outcome)));
                            }
                            ending.get_or_insert(outcome);
                            shared.complete();
                        }
                        Action::InjectAbort => vcpu
                            .inject_abort()
                            .map_err(|_| Failure::Fault(Fault::Abort))?,
                        Action::Fail(fault) => return Err(Failure::Fault(fault)),
                    }
                }
                Err(RunError::Again) => {}
                Err(RunError::Interrupted) => {
                    observer.exit(ExitKind::Interrupted);
                    return Ok(ending);
                }
                Err(error) => {
                    return Err(error
                        .kvm()
                        .map_or_else(Failure::Vmm, |error| Failure::Fault(Fault::Run(error))));
                }
            }
        }
    }

    /// Does what controllers ask for, now that the vCPU is out of the guest with nothing pending.
    fn obey(&mut self) -> Option<Outcome> {
        let VcpuRunner {
            vcpu,
            shared,
            calls,
            ..
        } = &mut *self.0;
        loop {
            match shared.next() {
                Next::Enter => return None,
                Next::End(outcome) => return Some(outcome),
                Next::Park => {
                    shared.park(|| {
                        if let Some(call) = calls.as_ref().and_then(|calls| calls.try_recv().ok()) {
                            call(vcpu);
                        }
                    });
                    // After the pause: a vCPU whose state is restored during it has no clock before.
                    vcpu.notify_paused();
                }
            }
        }
    }
}

/// Carries out collected writes; says what one of them ends the loop with.
fn drain<I: GuestIo<Answer: Flow>>(ring: &dyn CoalescedWrites, io: &mut I) -> Option<End<I>> {
    if ring.is_empty() {
        return None;
    }
    let mut flow = ControlFlow::Continue(());
    ring.drain(&mut |write| {
        let answer = match write {
            CoalescedWrite::Mmio { addr, data } => io.mmio_write(addr, data),
            CoalescedWrite::Pio { port, data } => io.pio_write(port, data),
        };
        keep_first(&mut flow, answer);
    });
    flow.break_value()
}

impl<V: std::fmt::Debug, I, O, P> std::fmt::Debug for VcpuRunner<V, I, O, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuRunner")
            .field("vcpu", &self.vcpu)
            .finish_non_exhaustive()
    }
}
