// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Syncs of one file at the same time. The kernel tells one of them alone of what it could not write, so one
//! that has succeeded says nothing before it is known how those have ended that went on meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The syncs of a file. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Syncs(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// How many have begun: the number of the next one.
    begun: u64,
    /// Those of which it is not noted yet how they have ended.
    open: Vec<u64>,
}

/// One of them. When this is dropped at the latest it is noted how it has ended.
#[derive(Debug)]
pub(crate) struct Syncing {
    all: Syncs,
    number: u64,
    /// How many had begun when this one ended.
    ended: Option<u64>,
}

impl Syncs {
    /// A sync begins. What this returns is dropped when it is noted in the file how that has ended.
    pub(crate) fn begin(&self) -> Syncing {
        let mut inner = self.lock();
        let number = inner.begun;
        inner.begun += 1;
        inner.open.push(number);
        Syncing {
            all: self.clone(),
            number,
            ended: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Syncing {
    /// It has succeeded, or it is noted that it has failed.
    pub(super) fn end(&mut self) {
        let mut inner = self.all.lock();
        inner.open.retain(|open| *open != self.number);
        self.ended.get_or_insert(inner.begun);
    }

    /// Whether it has ended, and it is noted how all have that went on at the same time.
    pub(super) fn is_settled(&self) -> bool {
        let open = &self.all.lock().open;
        (self.ended).is_some_and(|ended| open.iter().all(|open| *open >= ended))
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_waits_for_those_that_went_on_meanwhile_and_for_no_later_one() {
        let syncs = Syncs::default();
        let earlier = syncs.begin();
        let mut this = syncs.begin();
        let mut during = syncs.begin();
        assert!(!this.is_settled());
        this.end();
        let later = syncs.begin();
        assert!(!this.is_settled());
        drop(earlier);
        assert!(!this.is_settled());
        during.end();
        assert!(this.is_settled());
        assert!(!during.is_settled(), "the later one is not noted");
        drop(later);
        assert!(during.is_settled());
    }
}
