// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All vCPUs of one machine, running: started together, stopped together, one outcome.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::error::{GroupError, JoinError};
use super::group::{Threads, VcpuGroup};
use super::handle::{Around, DROP_TIMEOUT, VcpuHandle};
use super::member::{Ended, Member};
use super::roster::Roster;
use super::start::{Start, StartFailure};
use crate::run::{
    Control, ControlError, End, ExitObserver, ExitPolicy, Flow, GuestIo, Outcome, Vcpu, VcpuRunner,
};
use crate::sync::{Arc, Deadline, Ordering};

/// The vCPUs of one machine, running.
///
/// When one of them ends, for whatever reason, the others are stopped. Dropping the group stops
/// all and waits at most one second for their threads.
pub struct RunningGroup<
    #[cfg(feature = "kvm-ioctls")] V: Vcpu = crate::KvmVcpu,
    #[cfg(not(feature = "kvm-ioctls"))] V: Vcpu,
    T = Infallible,
> {
    handles: Vec<VcpuHandle<V, T>>,
    /// How those vCPUs ended that have been joined.
    ended: Vec<Option<Ended<T, V::Error>>>,
    roster: Roster,
    /// The group is paused, and so is who joins it.
    paused: AtomicBool,
    threads: Threads<V, T>,
}

impl<V: Vcpu<Error: Send> + Send + 'static, T: Send + 'static> VcpuGroup<V, T> {
    /// Starts a thread for each vCPU. None enters the guest before all threads are ready.
    ///
    /// # Errors
    ///
    /// If not every thread gets ready within `timeout`, all are stopped and the reason is
    /// returned: that of a hook that failed rather than the timeout that came of it, unless
    /// [`VcpuGroup::on_end`] keeps the thread for longer than `timeout` and a second.
    pub fn start(self, timeout: Duration) -> Result<RunningGroup<V, T>, GroupError<V::Error>> {
        if self.members.is_empty() {
            return Err(GroupError::Empty);
        }
        let mut running = RunningGroup {
            handles: Vec::with_capacity(self.members.len()),
            ended: Vec::new(),
            roster: Roster::new(),
            paused: AtomicBool::new(false),
            threads: self.threads,
        };
        running.start(self.members, Deadline::after(timeout))?;
        Ok(running)
    }
}

impl<V: Vcpu<Error: Send> + Send + 'static, T: Send + 'static> RunningGroup<V, T> {
    /// Adds a vCPU and lets it run, unless the group is paused; returns its position.
    ///
    /// # Errors
    ///
    /// [`GroupError::Ended`] if the group runs no longer; otherwise as [`VcpuGroup::start`], and
    /// the vCPUs that run are not concerned.
    pub fn add<I, O, P>(
        &mut self,
        runner: VcpuRunner<V, I, O, P>,
        timeout: Duration,
    ) -> Result<usize, GroupError<V::Error>>
    where
        I: GuestIo<Answer: Flow<End = T>> + Send + 'static,
        O: ExitObserver + Send + 'static,
        P: ExitPolicy<End<I>> + Send + 'static,
    {
        let index = self.handles.len();
        if self.paused.load(Ordering::Relaxed) {
            runner.control().start_paused();
        }
        self.start(vec![Box::new(runner)], Deadline::after(timeout))?;
        Ok(index)
    }

    /// Starts more threads; takes them back if not all get ready.
    fn start(
        &mut self,
        members: Vec<Box<dyn Member<V, T>>>,
        deadline: Deadline,
    ) -> Result<(), GroupError<V::Error>> {
        let (first, count) = (self.handles.len(), members.len());
        // Before there is a thread: it would wait for ever for a start that a name's panic prevents.
        let names: Vec<String> = (first..).take(count).map(&self.threads.name).collect();
        let start = Arc::new(Start::new());
        let mut started = Ok(());
        for ((index, member), name) in (first..).zip(members).zip(names) {
            if !self.roster.add(member.control()) {
                return Err(GroupError::Ended);
            }
            match VcpuHandle::spawn(member, &name, self.around(index, &start)) {
                Ok(handle) => {
                    self.handles.push(handle);
                    self.ended.push(None);
                }
                Err(error) => {
                    started = Err(StartFailure::Spawn { index, error });
                    break;
                }
            }
        }
        let started = started.and_then(|()| start.wait_for(count, deadline));
        let Err(failure) = started else {
            start.open(true);
            return Ok(());
        };
        let mut given_up = self.handles.split_off(first);
        self.ended.truncate(first);
        given_up.iter().for_each(VcpuHandle::stop);
        self.roster.truncate(first);
        start.open(false);
        let grace = Deadline::after(DROP_TIMEOUT);
        let reason = match failure {
            StartFailure::Spawn { index, error } => GroupError::Spawn { index, error },
            StartFailure::Timeout => GroupError::StartTimeout,
            // Only this one is asked: the others may still be in their hooks.
            StartFailure::Ended { index } => {
                // Its `on_end` may be what takes so long, so there is a bound.
                let handle = given_up.get_mut(index - first);
                match handle.map(|it| it.join_until(deadline.max(grace))) {
                    Some(Err(JoinError::Timeout)) | Some(Ok(_)) | None => GroupError::StartTimeout,
                    Some(Err(error)) => GroupError::Vcpu { index, error },
                }
            }
        };
        given_up.iter_mut().for_each(|it| it.finish(grace));
        Err(reason)
    }

    /// What the thread of a member does besides its loop.
    fn around(&self, index: usize, start: &Arc<Start>) -> Around<T, V::Error> {
        let hook = {
            let (hook, start) = (Arc::clone(&self.threads.hook), Arc::clone(start));
            move || {
                hook(index)?;
                start.pass();
                Ok(())
            }
        };
        let on_end = {
            let (roster, start) = (self.roster.clone(), Arc::clone(start));
            let on_end = Arc::clone(&self.threads.on_end);
            move |ended: &Ended<T, V::Error>| {
                if start.ended(index) {
                    roster.end();
                }
                on_end(index, ended);
            }
        };
        Around {
            hook: Box::new(hook),
            on_end: Box::new(on_end),
            keep: true,
        }
    }
}

impl<V: Vcpu, T> RunningGroup<V, T> {
    /// The vCPUs, in the order in which they were added.
    #[must_use]
    pub fn vcpus(&self) -> &[VcpuHandle<V, T>] {
        &self.handles
    }

    /// Ends all loops with [`Outcome::Stopped`]. Does not wait.
    pub fn stop(&self) {
        self.roster.end();
    }

    /// Pauses all vCPUs; see [`Control::pause`]. All are asked first and then waited for.
    ///
    /// # Errors
    ///
    /// [`GroupError::Control`] for the first vCPU that is not paused within `timeout`. The others
    /// stay paused, or as asked to; [`RunningGroup::resume`] takes it back.
    pub fn pause(&self, timeout: Duration) -> Result<(), GroupError<V::Error>> {
        let deadline = Deadline::after(timeout);
        self.paused.store(true, Ordering::Relaxed);
        let asked = self.each(Control::request_pause);
        let paused = self.each(|control| control.wait_paused(deadline));
        asked.and(paused)
    }

    /// Resumes all vCPUs; see [`Control::resume`].
    ///
    /// # Errors
    ///
    /// [`GroupError::Control`] for the first vCPU that is not running. The others are resumed.
    pub fn resume(&self) -> Result<(), GroupError<V::Error>> {
        self.paused.store(false, Ordering::Relaxed);
        self.each(Control::resume)
    }

    /// Does something with every vCPU; the first error counts.
    fn each(
        &self,
        mut request: impl FnMut(&Control) -> Result<(), ControlError>,
    ) -> Result<(), GroupError<V::Error>> {
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
    /// before every outcome; among outcomes the VMM's own, crash, triple fault, reset, shutdown,
    /// system event, debug, halt and stop count in this order; among equals the lowest position
    /// counts.
    ///
    /// # Errors
    ///
    /// [`GroupError::Vcpu`] with [`JoinError::Timeout`] if one has not ended in time, and then it
    /// can be called again; otherwise with how a vCPU failed.
    pub fn join(&mut self, timeout: Duration) -> Result<Outcome<T>, GroupError<V::Error>> {
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
        verdict(
            std::mem::take(&mut self.ended)
                .into_iter()
                .flatten()
                .collect(),
        )
    }

    /// The vCPUs when all have ended, ready to start again: this is how a machine reboots in place.
    ///
    /// Devices, policies and observers are as they were left, and so are the vCPUs' registers;
    /// [`VcpuGroup::vcpus`] gives access to these. Call [`RunningGroup::join`] first.
    ///
    /// # Errors
    ///
    /// [`GroupError::Vcpu`] with [`JoinError::Timeout`] if a vCPU still runs, and then all are
    /// stopped; [`GroupError::Lost`] for one that panicked.
    pub fn into_group(mut self) -> Result<VcpuGroup<V, T>, GroupError<V::Error>> {
        let mut group = VcpuGroup::new();
        for (index, handle) in self.handles.iter().enumerate() {
            if !handle.is_finished() {
                let error = JoinError::Timeout;
                return Err(GroupError::Vcpu { index, error });
            }
            let member = handle.take_member();
            group
                .members
                .push(member.ok_or(GroupError::Lost { index })?);
        }
        std::mem::swap(&mut group.threads, &mut self.threads);
        Ok(group)
    }
}

/// The one end that speaks for all.
fn verdict<T, E>(all: Vec<Ended<T, E>>) -> Result<Outcome<T>, GroupError<E>> {
    let weight = |ended: &Ended<T, E>| match ended {
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

impl<V: Vcpu, T> Drop for RunningGroup<V, T> {
    fn drop(&mut self) {
        self.stop();
        let deadline = Deadline::after(DROP_TIMEOUT);
        for handle in &mut self.handles {
            handle.finish(deadline);
        }
    }
}

impl<V: Vcpu, T> fmt::Debug for RunningGroup<V, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.handles).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    type End = Ended<Infallible, Infallible>;

    fn ends() -> Vec<fn() -> End> {
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
            verdict::<Infallible, Infallible>(vec![Ok(Outcome::Reset), Ok(Outcome::Shutdown)])
                .unwrap(),
            Outcome::Reset
        );
        assert_eq!(
            verdict::<Infallible, Infallible>(vec![Ok(Outcome::Shutdown), Ok(Outcome::Reset)])
                .unwrap(),
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
        let ends: Vec<End> = vec![
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
        assert!(matches!(
            verdict::<Infallible, Infallible>(vec![]),
            Err(GroupError::AlreadyJoined)
        ));
    }
}
