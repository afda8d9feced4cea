// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who is in a running group, so that one's end is the end of all.

use crate::run::Control;
use crate::sync::{Arc, Mutex, lock};

/// The members of a running group; clones are the same roster.
#[derive(Clone)]
pub(super) struct Roster(Arc<Mutex<Inner>>);

struct Inner {
    controls: Vec<Control>,
    ended: bool,
}

impl Roster {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            controls: Vec::new(),
            ended: false,
        })))
    }

    /// Adds a member, unless the group has ended.
    pub(super) fn add(&self, control: Control) -> bool {
        let mut inner = lock(&self.0);
        if !inner.ended {
            inner.controls.push(control);
        }
        !inner.ended
    }

    /// Takes the member that was added last out again.
    pub(super) fn remove_last(&self) {
        lock(&self.0).controls.pop();
    }

    /// Ends all loops. Does not wait.
    pub(super) fn end(&self) {
        let mut inner = lock(&self.0);
        inner.ended = true;
        for control in &inner.controls {
            control.shared().wind_up();
        }
    }
}
