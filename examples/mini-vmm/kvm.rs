// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way to KVM, and what to say when one of its calls fails.

use std::io;

use kvm_ioctls::Kvm;

use crate::arch::vm::KVM_REMEDY;

/// Opens KVM, and checks that it is one.
pub(crate) fn open() -> Result<Kvm, String> {
    let kvm = Kvm::new().map_err(|error| {
        let error = io::Error::from(error);
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => format!("there is no KVM on this machine; {KVM_REMEDY}"),
            io::ErrorKind::PermissionDenied => {
                "you may not use KVM; join the group that owns the device, often kvm".to_owned()
            }
            _ => "KVM does not work on this machine".to_owned(),
        };
        format!("/dev/kvm: {error}: {remedy}")
    })?;
    match kvm.get_api_version() {
        12 => {}
        ..0 => return Err(call("KVM_GET_API_VERSION")(io::Error::last_os_error())),
        other => {
            return Err(format!(
                "/dev/kvm: API version {other} where 12 is needed; is this KVM?"
            ));
        }
    }
    // KVM_CREATE_VM asks for it, too, and could not say that it was this that failed.
    kvm.get_vcpu_mmap_size()
        .map_err(call("KVM_GET_VCPU_MMAP_SIZE"))?;
    Ok(kvm)
}

/// Names the call of KVM, or of the system, that failed: for `map_err`.
pub(crate) fn call<E: Into<io::Error>>(name: &str) -> impl Fn(E) -> String {
    move |error| format!("{name}: {}", error.into())
}
