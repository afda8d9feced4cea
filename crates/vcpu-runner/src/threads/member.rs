// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A loop whose devices, observer and policy are of no concern to the thread that runs it.

use std::sync::mpsc::Receiver;

use super::error::JoinError;
use crate::run::{
    Call, Control, End, Error, ExitObserver, ExitPolicy, Flow, GuestIo, Outcome, Vcpu, VcpuRunner,
};
use crate::sync::Arc;

/// How a vCPU's thread ended.
pub type Ended<T, E> = Result<Outcome<T>, JoinError<E>>;

/// What a vCPU's thread does last.
pub(super) type OnEnd<T, E> = Box<dyn FnOnce(&Ended<T, E>) + Send>;

/// The same for each vCPU of a group, told its position.
pub(super) type OnEachEnd<T, E> = Arc<dyn Fn(usize, &Ended<T, E>) + Send + Sync>;

/// A loop that a thread can run.
pub(super) trait Member<V: Vcpu, T>: Send {
    fn run(&mut self) -> Result<Outcome<T>, Error<V::Error>>;
    fn vcpu(&self) -> &V;
    fn control(&self) -> Control;
    fn set_calls(&mut self, calls: Receiver<Call<V>>);
}

impl<V, I, O, P> Member<V, End<I>> for VcpuRunner<V, I, O, P>
where
    V: Vcpu + Send,
    I: GuestIo<Answer: Flow> + Send,
    O: ExitObserver + Send,
    P: ExitPolicy<End<I>> + Send,
{
    fn run(&mut self) -> Result<Outcome<End<I>>, Error<V::Error>> {
        VcpuRunner::run(self)
    }

    fn vcpu(&self) -> &V {
        VcpuRunner::vcpu(self)
    }

    fn control(&self) -> Control {
        VcpuRunner::control(self)
    }

    fn set_calls(&mut self, calls: Receiver<Call<V>>) {
        VcpuRunner::set_calls(self, calls);
    }
}
