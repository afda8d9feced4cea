// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The members of a running group: when one ends, all are stopped.

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

    /// Adds a member that is about to start, unless the group has ended.
    pub(super) fn add(&self, control: Control) -> bool {
        let mut inner = lock(&self.0);
        if !inner.ended {
            // From here on the end of the group ends this member too, even before its thread exists.
            control.shared().start();
            inner.controls.push(control);
        }
        !inner.ended
    }

    /// Takes all but the first `count` members out again.
    pub(super) fn truncate(&self, count: usize) {
        lock(&self.0).controls.truncate(count);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::run::{Kick, Next, Outcome, Shared};

    struct Nobody;

    impl Kick for Nobody {
        fn kick(&self) {}
        fn clear(&self) {}
    }

    #[test]
    fn the_end_of_a_group_is_that_of_a_member_whose_thread_has_yet_to_begin() {
        let roster = Roster::new();
        let control = Control::new(Arc::new(Shared::new(Arc::new(Nobody))));
        assert!(roster.add(control.clone()));
        roster.end();
        // What the member's thread does when it starts.
        control.shared().start();
        control.shared().begin();
        assert_eq!(control.shared().next(), Next::End(Outcome::Stopped));
    }
}
