// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All vCPUs of one machine, before they run.

use std::convert::Infallible;
use std::fmt;
use std::io;

use super::member::{Ended, Member, OnEachEnd};
use crate::run::{End, ExitObserver, ExitPolicy, Flow, GuestIo, Vcpu, VcpuRunner};
use crate::sync::Arc;

/// What the threads of a group have in common.
pub(super) struct Threads<V: Vcpu, T> {
    pub(super) name: Box<dyn Fn(usize) -> String + Send + Sync>,
    pub(super) hook: Arc<dyn Fn(usize) -> io::Result<()> + Send + Sync>,
    pub(super) on_end: OnEachEnd<T, V::Error>,
}

/// The vCPUs of one machine, before they run.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # #[derive(Clone)] struct Devices;
/// # impl vcpu_runner::GuestIo for Devices {
/// #     type Answer = ();
/// #     fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
/// #     fn mmio_write(&mut self, _: u64, _: &[u8]) {}
/// #     fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
/// #     fn pio_write(&mut self, _: u16, _: &[u8]) {}
/// # }
/// # #[cfg(feature = "kvm-ioctls")] {
/// use std::time::Duration;
/// use vcpu_runner::{KvmVcpu, Outcome, VcpuGroup, VcpuRunner};
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// let mut group = VcpuGroup::new();
/// for index in 0..2 {
///     group.add(VcpuRunner::new(KvmVcpu::new(vm.create_vcpu(index)?)?, Devices));
/// }
/// loop {
///     let mut running = group.start(Duration::from_secs(1))?;
///     match running.join(Duration::MAX)? {
///         Outcome::Reset => group = running.into_group()?,
///         other => break println!("{other}"),
///     }
///     for vcpu in group.vcpus() {
///         // Registers and, once for all, devices are put into their first state here.
///         vcpu.fd().set_mp_state(Default::default())?;
///     }
/// }
/// # }
/// # Ok(())
/// # }
/// ```
pub struct VcpuGroup<
    #[cfg(feature = "kvm-ioctls")] V: Vcpu = crate::KvmVcpu,
    #[cfg(not(feature = "kvm-ioctls"))] V: Vcpu,
    T = Infallible,
> {
    pub(super) members: Vec<Box<dyn Member<V, T>>>,
    pub(super) threads: Threads<V, T>,
}

impl<V: Vcpu, T> Default for VcpuGroup<V, T> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            threads: Threads {
                name: Box::new(|index| format!("vcpu{index}")),
                hook: Arc::new(|_| Ok(())),
                on_end: Arc::new(|_, _| ()),
            },
        }
    }
}

impl<V: Vcpu, T> VcpuGroup<V, T> {
    /// A group without vCPUs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the threads by the vCPU's position; the default is `vcpu0`, `vcpu1` and so on.
    #[must_use]
    pub fn with_names(mut self, name: impl Fn(usize) -> String + Send + Sync + 'static) -> Self {
        self.threads.name = Box::new(name);
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
        self.threads.hook = Arc::new(hook);
        self
    }

    /// Has each thread call `on_end` with its vCPU's position and how it ended.
    ///
    /// That is the last thing a thread does, after it has stopped the others. A VMM that waits for
    /// other things beside the guest is woken from here.
    #[must_use]
    pub fn on_end(
        mut self,
        on_end: impl Fn(usize, &Ended<T, V::Error>) + Send + Sync + 'static,
    ) -> Self {
        self.threads.on_end = Arc::new(on_end);
        self
    }

    /// Adds a vCPU; its position is the number of those added before.
    pub fn add<I, O, P>(&mut self, runner: VcpuRunner<V, I, O, P>)
    where
        V: Send + 'static,
        I: GuestIo<Answer: Flow<End = T>> + Send + 'static,
        O: ExitObserver + Send + 'static,
        P: ExitPolicy<End<I>> + Send + 'static,
    {
        self.members.push(Box::new(runner));
    }

    /// The vCPUs, in the order in which they were added.
    pub fn vcpus(&self) -> impl Iterator<Item = &V> {
        self.members.iter().map(|member| member.vcpu())
    }
}

impl<V: Vcpu, T> fmt::Debug for VcpuGroup<V, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuGroup")
            .field("vcpus", &self.members.len())
            .finish_non_exhaustive()
    }
}
