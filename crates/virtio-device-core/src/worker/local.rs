// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The workers of a loop, which a reset on the loop's own thread can reach.
//!
//! A handler lets go of what it holds when it is dropped, by its loop. If the thread that resets the
//! device is the one that runs the loop, nobody else would do that while it waits.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::Epoll;

use crate::worker::Worker;
use crate::worker::event_loop::{Mailbox, take_ended};
use crate::worker::running::{Life, Running};
use crate::worker::sources::Poller;

thread_local! {
    static LOOPS: RefCell<Vec<Weak<Workers>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) struct Workers {
    /// None in a loop that does not wait.
    epoll: Option<Rc<Epoll>>,
    mailbox: Arc<Mailbox>,
    /// Those that were taken from the mailbox, and start when the others have come round.
    new: RefCell<Vec<Worker>>,
    /// The place of one that is being called is empty meanwhile, as is that of one that was let go.
    list: RefCell<Vec<Option<Box<Running>>>>,
}

impl Workers {
    pub(crate) fn new(epoll: Option<Rc<Epoll>>, mailbox: Arc<Mailbox>) -> Rc<Self> {
        let workers = Rc::new(Self {
            epoll,
            mailbox,
            new: RefCell::default(),
            list: RefCell::default(),
        });
        // Fails only while the thread ends, when it resets no device any more.
        let _ = LOOPS.try_with(|loops| {
            let mut loops = loops.borrow_mut();
            loops.retain(|known| known.strong_count() != 0);
            loops.push(Rc::downgrade(&workers));
        });
        workers
    }

    pub(crate) fn take_new(&self) {
        self.new.borrow_mut().extend(self.mailbox.take_new());
    }

    /// The next one that is to start.
    pub(crate) fn next_new(&self) -> Option<Worker> {
        let mut new = self.new.borrow_mut();
        (!new.is_empty()).then(|| new.remove(0))
    }

    pub(crate) fn add(&self, worker: Running) {
        self.list.borrow_mut().push(Some(Box::new(worker)));
    }

    pub(crate) fn len(&self) -> usize {
        self.list.borrow().iter().flatten().count()
    }

    /// Whether a condition holds for any worker.
    pub(crate) fn any(&self, condition: impl Fn(&Running) -> bool) -> bool {
        let list = self.list.borrow();
        list.iter().flatten().any(|worker| condition(worker))
    }

    /// The first moment that any worker waits for.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let list = self.list.borrow();
        let deadlines = list.iter().flatten();
        deadlines.filter_map(|worker| worker.deadline()).min()
    }

    pub(crate) fn poller(&self, key: u32, round: u64) -> Poller<'_> {
        Poller {
            epoll: self.epoll.as_deref(),
            key,
            round,
        }
    }

    /// Calls every worker, and has those leave that have ended. No list is borrowed meanwhile: a handler
    /// may do anything when it is called, or dropped, also [let others go](let_go).
    pub(crate) fn for_each(
        &self,
        round: u64,
        mut call: impl FnMut(&mut Running, &Poller<'_>) -> Life,
    ) {
        let (mut place, mut left) = (0, false);
        while let Some(slot) = self.exchange(place, None) {
            if let Some(mut worker) = slot {
                let poller = self.poller(worker.key(), round);
                match call(&mut worker, &poller) {
                    Life::GoesOn => {
                        self.exchange(place, Some(worker));
                    }
                    Life::Ended => {
                        // At once: whoever is called next may wait for what it holds.
                        worker.end(&poller);
                        left = true;
                    }
                }
            } else {
                left = true;
            }
            place += 1;
        }
        if left {
            self.list.borrow_mut().retain(Option::is_some);
        }
    }

    /// Puts a worker into a place; returns what was there, if there is such a place.
    #[inline]
    fn exchange(&self, place: usize, worker: Option<Box<Running>>) -> Option<Option<Box<Running>>> {
        let mut list = self.list.borrow_mut();
        list.get_mut(place)
            .map(|slot| std::mem::replace(slot, worker))
    }

    /// Has the workers leave whose activation has ended, but for the one that is being called.
    fn let_go(&self) {
        let mut waiting = self.mailbox.take_ended();
        waiting.extend(take_ended(&mut self.new.borrow_mut()));
        waiting.into_iter().for_each(Worker::discard);
        let mut list = self.list.borrow_mut();
        let has_ended = |worker: &mut Box<Running>| worker.has_ended();
        let ended = list.iter_mut().filter_map(|slot| slot.take_if(has_ended));
        let ended = ended.collect::<Vec<_>>();
        drop(list);
        for worker in ended {
            let poller = self.poller(worker.key(), 0);
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
