// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that refuses system calls: chosen ones fail, by a filter, on one thread and on all that it
//! starts, threads as well as programs.

use std::io::{Error, Result};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// A system call that fails, always or if an argument is as said.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    call: i64,
    error: i32,
    only_if: Vec<SeccompCondition>,
}

impl Refused {
    /// Every use of `call` fails with `error`.
    pub(crate) fn always(call: i64, error: i32) -> Vec<Self> {
        let only_if = Vec::new();
        vec![Self {
            call,
            error,
            only_if,
        }]
    }

    /// `call` fails with `error` if the bits in `mask` of argument number `argument` are `bits`.
    pub(crate) fn only_if(call: i64, error: i32, argument: u8, mask: u64, bits: u64) -> Vec<Self> {
        let operator = SeccompCmpOp::MaskedEq(mask);
        let condition =
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, bits).unwrap();
        let only_if = vec![condition];
        vec![Self {
            call,
            error,
            only_if,
        }]
    }

    /// No thread can be made, though processes can.
    pub(crate) fn threads() -> Vec<Self> {
        let thread = u64::try_from(libc::CLONE_THREAD).unwrap();
        // Flags that lie in memory are not seen by a filter, so that who makes a thread must use the
        // other call.
        [
            Self::always(libc::SYS_clone3, libc::ENOSYS),
            Self::only_if(libc::SYS_clone, libc::EAGAIN, 0, thread, thread),
        ]
        .concat()
    }

    fn install(&self) {
        let rules = match self.only_if.as_slice() {
            [] => Vec::new(),
            conditions => vec![SeccompRule::new(conditions.to_vec()).unwrap()],
        };
        let filter = SeccompFilter::new(
            [(self.call, rules)].into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(self.error.unsigned_abs()),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }
}

/// Has the calling thread be refused these calls from now on: the hook of a worker's thread.
pub(crate) fn refuse(refused: &[Refused]) -> Result<()> {
    refused.iter().for_each(Refused::install);
    Ok(())
}

/// Does `work` on a thread that is refused these calls.
pub(crate) fn refused<R: Send>(refused: &[Refused], work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse(refused)?;
            Ok::<_, Error>(work())
        });
        thread.join().unwrap().unwrap()
    })
}
