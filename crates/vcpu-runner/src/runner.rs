// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The run loop.

use std::io;
use std::sync::mpsc::Receiver;

use crate::coalesced::CoalescedMmio;
use crate::control::{Control, Next, Shared};
use crate::dispatch::dispatch;
use crate::error::{Error, Fault, RunError};
use crate::guest_io::GuestIo;
use crate::handle::{Call, VcpuHandle};
use crate::kind::ExitKind;
use crate::observer::ExitObserver;
use crate::outcome::Outcome;
use crate::policy::{Action, DefaultPolicy, ExitPolicy};
use crate::sync::Arc;
use crate::vcpu::Vcpu;

/// Runs one vCPU: enters the guest, carries out its exits, enters it again.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # struct Devices;
/// # impl vcpu_runner::GuestIo for Devices {
/// #     fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
/// #     fn mmio_write(&mut self, _: u64, _: &[u8]) {}
/// #     fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
/// #     fn pio_write(&mut self, _: u16, _: &[u8]) {}
/// # }
/// use vcpu_runner::{KvmVcpu, Outcome, VcpuRunner};
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// // Guest memory and registers are set up here.
/// let vcpu = KvmVcpu::new(vm.create_vcpu(0)?)?;
/// match VcpuRunner::new(vcpu, Devices).run()? {
///     Outcome::Halted => println!("the guest is done"),
///     other => println!("{other}"),
/// }
/// # Ok(())
/// # }
/// ```
pub struct VcpuRunner<V, I, O = (), P = DefaultPolicy> {
    vcpu: V,
    io: I,
    observer: O,
    policy: P,
    shared: Arc<Shared>,
    coalesced: Option<CoalescedMmio>,
    /// Calls to be made while paused, when there is a handle to make them.
    calls: Option<Receiver<Call<V>>>,
}

impl<V: Vcpu, I: GuestIo> VcpuRunner<V, I> {
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

impl<V: Vcpu, I: GuestIo, O: ExitObserver, P: ExitPolicy> VcpuRunner<V, I, O, P> {
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
    pub fn with_policy<P2: ExitPolicy>(self, policy: P2) -> VcpuRunner<V, I, O, P2> {
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
    #[must_use]
    pub fn with_coalesced_mmio(mut self, ring: CoalescedMmio) -> Self {
        self.coalesced = Some(ring);
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
    /// It can be run again afterwards, for example after [`Outcome::Debug`], unless it was
    /// stopped: a stop is final.
    ///
    /// # Errors
    ///
    /// [`Error::Vcpu`] if the vCPU cannot go on, [`Error::Thread`] if the thread cannot be
    /// prepared for being kicked.
    pub fn run(&mut self) -> Result<Outcome, Error> {
        let mut session = Session::begin(self).map_err(Error::Thread)?;
        session.run().map_err(|fault| Error::Vcpu {
            fault,
            pc: session.0.vcpu.program_counter(),
        })
    }

    /// Runs the loop on a new thread of this name.
    ///
    /// # Errors
    ///
    /// The thread could not be created.
    pub fn spawn(self, name: &str) -> io::Result<VcpuHandle<V>>
    where
        V: Send + 'static,
        I: Send + 'static,
        O: Send + 'static,
        P: Send + 'static,
    {
        VcpuHandle::spawn(self, name, || Ok(()), |_| ())
    }

    /// Gives the loop calls to make while paused.
    pub(crate) fn with_calls(mut self, calls: Receiver<Call<V>>) -> Self {
        self.calls = Some(calls);
        self
    }
}

/// A loop that is running on this thread. Ends it also when a device panics.
struct Session<'a, V: Vcpu, I, O, P>(&'a mut VcpuRunner<V, I, O, P>);

impl<V: Vcpu, I, O, P> Drop for Session<'_, V, I, O, P> {
    fn drop(&mut self) {
        self.0.vcpu.unbind_thread();
        self.0.shared.end();
    }
}

impl<'a, V: Vcpu, I: GuestIo, O: ExitObserver, P: ExitPolicy> Session<'a, V, I, O, P> {
    fn begin(runner: &'a mut VcpuRunner<V, I, O, P>) -> io::Result<Self> {
        if let Err(error) = runner.vcpu.bind_thread() {
            runner.shared.end();
            return Err(error);
        }
        runner.shared.begin();
        Ok(Self(runner))
    }

    fn run(&mut self) -> Result<Outcome, Fault> {
        loop {
            if let Some(outcome) = self.obey() {
                return Ok(outcome);
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
    fn run_guest(&mut self) -> Result<Option<Outcome>, Fault> {
        let VcpuRunner {
            vcpu,
            io,
            observer,
            policy,
            coalesced,
            ..
        } = &mut *self.0;
        loop {
            let exit = vcpu.run();
            // The guest made these writes before it came to this exit.
            if let Some(ring) = coalesced {
                ring.drain(io);
            }
            match exit {
                Ok(exit) => {
                    let kind = exit.kind();
                    observer.exit(kind);
                    let action = dispatch(exit, io, policy);
                    observer.handled(kind);
                    match action {
                        Action::Resume => {}
                        Action::Stop(outcome) => return Ok(Some(outcome)),
                        Action::Fail(fault) => return Err(fault),
                    }
                }
                Err(RunError::Again) => {}
                Err(RunError::Interrupted) => {
                    observer.exit(ExitKind::Interrupted);
                    return Ok(None);
                }
                Err(error) => return Err(Fault::Run(error)),
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
                    // Not sooner: a vCPU that is restored during the pause has no clock before.
                    vcpu.notify_paused();
                }
            }
        }
    }
}

impl<V: std::fmt::Debug, I, O, P> std::fmt::Debug for VcpuRunner<V, I, O, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuRunner")
            .field("vcpu", &self.vcpu)
            .finish_non_exhaustive()
    }
}
