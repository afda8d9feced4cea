// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All vCPUs of one machine: started together, stopped together, one outcome.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::control::Control;
use crate::error::ControlError;
use crate::group_error::GroupError;
use crate::guest_io::GuestIo;
use crate::handle::{DROP_TIMEOUT, Ended, JoinError, VcpuHandle};
use crate::kvm::KvmVcpu;
use crate::observer::ExitObserver;
use crate::outcome::Outcome;
use crate::policy::ExitPolicy;
use crate::runner::VcpuRunner;
use crate::start::{Start, StartFailure};
use crate::sync::{Arc, Deadline};
use crate::vcpu::Vcpu;

/// A function that is called on each new thread.
type Hook = dyn Fn(usize) -> io::Result<()> + Send + Sync;

/// Starts one member: its thread's name, what to call first, what to call last.
type Spawn<V> = Box<
    dyn FnOnce(
        &str,
        Box<dyn FnOnce() -> io::Result<()> + Send>,
        Box<dyn FnOnce(&Ended) + Send>,
    ) -> io::Result<VcpuHandle<V>>,
>;

/// The vCPUs of one machine, before they run.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # #[derive(Clone)] struct Devices;
/// # impl vcpu_runner::GuestIo for Devices {
/// #     fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
/// #     fn mmio_write(&mut self, _: u64, _: &[u8]) {}
/// #     fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
/// #     fn pio_write(&mut self, _: u16, _: &[u8]) {}
/// # }
/// use std::time::Duration;
/// use vcpu_runner::{KvmVcpu, Outcome, VcpuGroup, VcpuRunner};
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// let mut group = VcpuGroup::new();
/// for index in 0..2 {
///     group.add(VcpuRunner::new(KvmVcpu::new(vm.create_vcpu(index)?)?, Devices));
/// }
/// let mut running = group.start(Duration::from_secs(1))?;
/// match running.join(Duration::MAX)? {
///     Outcome::Reset => println!("start the machine again"),
///     other => println!("{other}"),
/// }
/// # Ok(())
/// # }
/// ```
pub struct VcpuGroup<V = KvmVcpu> {
    members: Vec<(Control, Spawn<V>)>,
    name: Box<dyn Fn(usize) -> String>,
    hook: Arc<Hook>,
}

impl<V> Default for VcpuGroup<V> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            name: Box::new(|index| format!("vcpu{index}")),
            hook: Arc::new(|_| Ok(())),
        }
    }
}

impl<V> VcpuGroup<V> {
    /// A group without vCPUs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the threads by the vCPU's position; the default is `vcpu0`, `vcpu1` and so on.
    #[must_use]
    pub fn with_names(mut self, name: impl Fn(usize) -> String + 'static) -> Self {
        self.name = Box::new(name);
        self
    }

    /// Has each thread call `hook` with its vCPU's position, before any vCPU enters the guest.
    ///
    /// This is the place to set affinity and scheduling and to install a seccomp filter. If a
    /// hook fails, the group does not start.
    #[must_use]
    pub fn with_hook(
        mut self,
        hook: impl Fn(usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.hook = Arc::new(hook);
        self
    }

    /// Adds a vCPU; its position is the number of those added before.
    pub fn add<I, O, P>(&mut self, runner: VcpuRunner<V, I, O, P>)
    where
        V: Vcpu + Send + 'static,
        I: GuestIo + Send + 'static,
        O: ExitObserver + Send + 'static,
        P: ExitPolicy + Send + 'static,
    {
        let control = runner.control();
        self.members.push((
            control,
            Box::new(|name, hook, ended| VcpuHandle::spawn(runner, name, hook, ended)),
        ));
    }

    /// Starts a thread for each vCPU. None enters the guest before all threads are ready.
    ///
    /// # Errors
    ///
    /// If not every thread gets ready within `timeout`, all are stopped and the reason is
    /// returned.
    pub fn start(self, timeout: Duration) -> Result<RunningGroup<V>, GroupError> {
        if self.members.is_empty() {
            return Err(GroupError::Empty);
        }
        let deadline = Deadline::after(timeout);
        let start = Arc::new(Start::new());
        let controls: Arc<[Control]> = self
            .members
            .iter()
            .map(|(control, _)| control.clone())
            .collect();
        let count = controls.len();

        let mut running = RunningGroup {
            handles: Vec::with_capacity(count),
            ended: (0..count).map(|_| None).collect(),
        };
        let mut failure = None;
        for (index, (_, spawn)) in self.members.into_iter().enumerate() {
            let hook = Box::new({
                let (hook, start) = (Arc::clone(&self.hook), Arc::clone(&start));
                move || {
                    hook(index)?;
                    start.pass();
                    Ok(())
                }
            });
            let ended = Box::new({
                let (controls, start) = (Arc::clone(&controls), Arc::clone(&start));
                move |_: &Ended| {
                    for control in controls.iter() {
                        control.stop();
                    }
                    start.change(|progress| progress.ended = progress.ended.or(Some(index)));
                }
            });
            match spawn(&(self.name)(index), hook, ended) {
                Ok(handle) => running.handles.push(handle),
                Err(error) => {
                    failure = Some(StartFailure::Spawn { index, error });
                    break;
                }
            }
        }
        let started = match failure {
            None => start.wait_for(count, deadline),
            Some(failure) => Err(failure),
        };
        if started.is_err() {
            running.stop();
        }
        start.change(|progress| progress.open = true);
        match started {
            Ok(()) => Ok(running),
            Err(StartFailure::Spawn { index, error }) => Err(GroupError::Spawn { index, error }),
            Err(StartFailure::Timeout) => Err(GroupError::StartTimeout),
            // Only this one is asked: the others may still be in their hooks.
            Err(StartFailure::Ended { index }) => Err(running.reason(index)),
        }
    }
}

impl<V> fmt::Debug for VcpuGroup<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuGroup")
            .field("vcpus", &self.members.len())
            .finish_non_exhaustive()
    }
}

/// The vCPUs of one machine, running.
///
/// When one of them ends, for whatever reason, the others are stopped. Dropping the group stops
/// all and waits at most one second for their threads.
pub struct RunningGroup<V = KvmVcpu> {
    handles: Vec<VcpuHandle<V>>,
    /// How those vCPUs ended that have been joined.
    ended: Vec<Option<Ended>>,
}

impl<V> RunningGroup<V> {
    /// The vCPUs, in the order in which they were added.
    #[must_use]
    pub fn vcpus(&self) -> &[VcpuHandle<V>] {
        &self.handles
    }

    /// Ends all loops; see [`Control::stop`].
    pub fn stop(&self) {
        for handle in &self.handles {
            handle.stop();
        }
    }

    /// Pauses all vCPUs; see [`Control::pause`]. All are asked first and then waited for.
    ///
    /// # Errors
    ///
    /// [`GroupError::Control`] for the first vCPU that is not paused within `timeout`. The others
    /// stay paused, or as asked to; [`RunningGroup::resume`] takes it back.
    pub fn pause(&self, timeout: Duration) -> Result<(), GroupError> {
        let deadline = Deadline::after(timeout);
        let asked = self.each(Control::request_pause);
        let paused = self.each(|control| control.wait_paused(deadline));
        asked.and(paused)
    }

    /// Resumes all vCPUs; see [`Control::resume`].
    ///
    /// # Errors
    ///
    /// [`GroupError::Control`] for the first vCPU that is not running. The others are resumed.
    pub fn resume(&self) -> Result<(), GroupError> {
        self.each(Control::resume)
    }

    /// Why a vCPU ended that has never run.
    fn reason(&mut self, index: usize) -> GroupError {
        let never = Deadline::after(Duration::MAX);
        match self.handles.get_mut(index).map(|it| it.join_until(never)) {
            Some(Err(error)) => GroupError::Vcpu { index, error },
            _ => GroupError::StartTimeout,
        }
    }

    /// Does something with every vCPU; the first error counts.
    fn each(
        &self,
        mut request: impl FnMut(&Control) -> Result<(), ControlError>,
    ) -> Result<(), GroupError> {
        let mut result = Ok(());
        for (index, handle) in self.handles.iter().enumerate() {
            if let Err(error) = request(handle.control()) {
                result = result.and(Err(GroupError::Control { index, error }));
            }
        }
        result
    }

    /// Waits until all vCPUs have ended, and says how the machine did.
    ///
    /// The result does not depend on the order in which they ended: an error or a panic counts
    /// before every outcome; among outcomes crash, triple fault, reset, shutdown, system event,
    /// debug, halt and stop count in this order; among equals the lowest position counts.
    ///
    /// # Errors
    ///
    /// [`GroupError::Vcpu`] with [`JoinError::Timeout`] if one has not ended in time, and then it
    /// can be called again; otherwise with how a vCPU failed.
    pub fn join(&mut self, timeout: Duration) -> Result<Outcome, GroupError> {
        let deadline = Deadline::after(timeout);
        for (index, (handle, ended)) in self.handles.iter_mut().zip(&mut self.ended).enumerate() {
            if ended.is_some() {
                continue;
            }
            match handle.join_until(deadline) {
                Err(error @ (JoinError::Timeout | JoinError::OwnThread)) => {
                    return Err(GroupError::Vcpu { index, error });
                }
                end => *ended = Some(end),
            }
        }
        let all: Vec<Ended> = std::mem::take(&mut self.ended)
            .into_iter()
            .flatten()
            .collect();
        verdict(all)
    }
}

/// The one end that speaks for all.
fn verdict(all: Vec<Ended>) -> Result<Outcome, GroupError> {
    let weight = |ended: &Ended| match ended {
        Ok(outcome) => outcome.weight(),
        Err(_) => u8::MAX,
    };
    // The first of the heaviest: `max_by_key` would take the last.
    let heaviest = all
        .into_iter()
        .enumerate()
        .rev()
        .max_by_key(|(_, ended)| weight(ended));
    match heaviest {
        None => Err(GroupError::AlreadyJoined),
        Some((_, Ok(outcome))) => Ok(outcome),
        Some((index, Err(error))) => Err(GroupError::Vcpu { index, error }),
    }
}

impl<V> Drop for RunningGroup<V> {
    fn drop(&mut self) {
        self.stop();
        let deadline = Deadline::after(DROP_TIMEOUT);
        for handle in &mut self.handles {
            handle.finish(deadline);
        }
    }
}

impl<V> fmt::Debug for RunningGroup<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.handles).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> Vec<fn() -> Ended> {
        vec![
            || Ok(Outcome::Shutdown),
            || Ok(Outcome::Reset),
            || Ok(Outcome::Stopped),
            || Ok(Outcome::TripleFault),
            || Err(JoinError::Panicked("a".to_owned())),
            || Ok(Outcome::Halted),
        ]
    }

    #[test]
    fn the_verdict_is_that_of_the_heaviest_end_in_any_order() {
        assert_eq!(
            verdict(vec![Ok(Outcome::Reset), Ok(Outcome::Shutdown)]).unwrap(),
            Outcome::Reset
        );
        assert_eq!(
            verdict(vec![Ok(Outcome::Shutdown), Ok(Outcome::Reset)]).unwrap(),
            Outcome::Reset
        );
        let ends = ends();
        for turn in 0..ends.len() {
            let turned = (0..ends.len()).map(|n| ends[(n + turn) % ends.len()]());
            let Err(GroupError::Vcpu { index, error }) = verdict(turned.collect()) else {
                panic!("an error counts before every outcome");
            };
            assert_eq!((index + turn) % ends.len(), 4);
            assert!(matches!(error, JoinError::Panicked(_)));
        }
    }

    #[test]
    fn among_equals_the_lowest_position_counts() {
        let ends = vec![
            Ok(Outcome::Stopped),
            Err(JoinError::Panicked("first".to_owned())),
            Err(JoinError::Panicked("second".to_owned())),
        ];
        let Err(GroupError::Vcpu { index: 1, error }) = verdict(ends) else {
            panic!("the first error counts");
        };
        assert_eq!(error.to_string(), "vCPU thread panicked: first");
    }

    #[test]
    fn nothing_to_judge_is_an_error() {
        assert!(matches!(verdict(vec![]), Err(GroupError::AlreadyJoined)));
    }
}
