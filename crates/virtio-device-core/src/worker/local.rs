// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The workers of a loop, which a reset on the loop's own thread can reach.
//!
//! A handler lets go of what it holds when it is dropped, by its loop. If the thread that resets the
//! device is the one that runs the loop, nobody else would do that while it waits.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use vmm_sys_util::epoll::Epoll;

use crate::worker::Worker;
use crate::worker::event_loop::Mailbox;
use crate::worker::running::{Life, Running};
use crate::worker::sources::Poller;

thread_local! {
    static LOOPS: RefCell<Vec<Weak<Workers>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) struct Workers {
    /// None in a loop that does not wait.
    epoll: Option<Rc<Epoll>>,
    /// Those that have not started yet.
    mailbox: Arc<Mailbox>,
    list: RefCell<Vec<Running>>,
}

impl Workers {
    pub(crate) fn new(epoll: Option<Rc<Epoll>>, mailbox: Arc<Mailbox>) -> Rc<Self> {
        let workers = Rc::new(Self {
            epoll,
            mailbox,
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

    pub(crate) fn poller(&self, key: u32, round: u64) -> Poller<'_> {
        Poller {
            epoll: self.epoll.as_deref(),
            key,
            round,
        }
    }

    /// Calls every worker, and has those leave that have ended, after all were called: a handler may do
    /// anything when it is dropped, also [let workers go](let_go).
    pub(crate) fn for_each(
        &self,
        round: u64,
        mut call: impl FnMut(&mut Running, &Poller<'_>) -> Life,
    ) {
        let (mut list, mut ended, mut place) = (self.list(), Vec::new(), 0);
        while let Some(worker) = list.get_mut(place) {
            let poller = self.poller(worker.key(), round);
            match call(worker, &poller) {
                Life::GoesOn => place += 1,
                Life::Ended => ended.push(list.swap_remove(place)),
            }
        }
        drop(list);
        self.end(ended);
    }

    fn end(&self, ended: Vec<Running>) {
        for worker in ended {
            let poller = self.poller(worker.key(), 0);
            worker.end(&poller);
        }
    }

    /// Has the workers leave whose activation has ended, unless one is being called just now.
    fn let_go(&self) {
        let waiting = self.mailbox.take_ended();
        waiting.into_iter().for_each(Worker::discard);
        let Ok(mut list) = self.list.try_borrow_mut() else {
            return;
        };
        let mut ended = Vec::new();
        while let Some(place) = list.iter().position(Running::has_ended) {
            ended.push(list.swap_remove(place));
        }
        drop(list);
        self.end(ended);
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
