// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vCPU of KVM, and what else of KVM the loop needs. All `unsafe` code of the crate is here.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod coalesced;
#[cfg(feature = "kvm-ioctls")]
mod doorbell;
mod ioctl;
#[cfg(feature = "kvm-ioctls")]
mod irq;
mod kick;
mod map;
mod ring;
mod run_area;
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as arch;
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the feature `kvm` knows x86_64 and aarch64 only");
#[cfg(not(target_os = "linux"))]
compile_error!("the feature `kvm` is for Linux only");

pub use coalesced::CoalescedMmio;
#[cfg(feature = "kvm-ioctls")]
pub use doorbell::{Doorbell, IoEvent};
#[cfg(feature = "kvm-ioctls")]
pub use irq::{IrqFd, enable_nisv_exits, spi_line};
pub use kick::KickSignal;
#[cfg(feature = "kvm-ioctls")]
pub use kvm_ioctls::{VcpuFd, VmFd};
pub use vcpu::KvmVcpu;
#[cfg(feature = "kvm-ioctls")]
pub use vmm_sys_util::eventfd::EventFd;
