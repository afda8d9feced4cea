// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The workers of a loop, which a reset on the loop's own thread can reach.
//!
//! A handler lets go of what it holds when it is dropped, by its loop. If the thread that resets the
//! device is the one that runs the loop, nobody else would do that while it waits.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use vmm_sys_util::epoll::Epoll;

use crate::worker::running::Running;
use crate::worker::sources::Poller;

thread_local! {
    static LOOPS: RefCell<Vec<Weak<Workers>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) struct Workers {
    /// None in a loop that does not wait.
    epoll: Option<Rc<Epoll>>,
    list: RefCell<Vec<Running>>,
}

impl Workers {
    pub(crate) fn new(epoll: Option<Rc<Epoll>>) -> Rc<Self> {
        let workers = Rc::new(Self {
            epoll,
            list: RefCell::default(),
        });
        // A thread that is about to end has no list any more, and no device to reset.
        let _ = LOOPS.try_with(|loops| {
            let mut loops = loops.borrow_mut();
            loops.retain(|known| known.strong_count() != 0);
            loops.push(Rc::downgrade(&workers));
        });
        workers
    }

    pub(crate) fn list(&self) -> std::cell::RefMut<'_, Vec<Running>> {
        self.list.borrow_mut()
    }

    pub(crate) fn len(&self) -> usize {
        // While a handler is being called, by itself, nobody asks.
        self.list.try_borrow().map_or(0, |list| list.len())
    }

    pub(crate) fn poller(&self, key: u32) -> Poller<'_> {
        Poller {
            epoll: self.epoll.as_deref(),
            key,
        }
    }

    /// Has the workers leave whose activation has ended, unless one is being called just now.
    fn let_go(&self) {
        let Ok(mut list) = self.list.try_borrow_mut() else {
            return;
        };
        let mut ended = Vec::new();
        while let Some(place) = list.iter().position(Running::has_ended) {
            ended.push(list.swap_remove(place));
        }
        // A handler may do anything when it is dropped.
        drop(list);
        for worker in ended {
            let poller = self.poller(worker.key());
            worker.end(&poller);
        }
    }
}

/// Drops the handlers of this thread's loops whose activation has ended.
pub(crate) fn let_go() {
    let loops = LOOPS.try_with(|loops| loops.try_borrow().map(|loops| loops.clone()));
    let Ok(Ok(loops)) = loops else { return };
    for workers in loops.iter().filter_map(Weak::upgrade) {
        workers.let_go();
    }
}
