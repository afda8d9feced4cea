// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the fuzz targets run: programs of a driver that means harm, and files that are no kernels,
//! and what must be true all the same.

#![forbid(unsafe_code)]

pub mod blk_requests;
pub mod bus_ops;
pub mod console_bytes;
pub mod device_end_to_end;
pub mod kernel;
mod life;
pub mod machine;
#[path = "../../crates/virtio-blk-device/tests/support/memory_disk.rs"]
mod memory_disk;
pub mod model;
pub mod net_bytes;
pub mod registers;
pub mod rings;
mod source;
pub mod state_bytes;
pub mod vcpu_exits;

#[cfg(test)]
mod tests {
    use arbitrary::{Arbitrary, Unstructured};

    /// Runs `run` on programs made of bytes without a pattern, the same ones every time.
    fn on_noise<P: for<'a> Arbitrary<'a>>(run: impl Fn(&P)) {
        on_some_noise(3000, run);
    }

    fn on_some_noise<P: for<'a> Arbitrary<'a>>(count: u32, run: impl Fn(&P)) {
        let mut state = 1_u64;
        for _ in 0..count {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .take(600)
            .collect();
            run(&P::arbitrary(&mut Unstructured::new(&bytes)).unwrap());
        }
    }

    #[test]
    fn disks_of_noise() {
        // Each of them moves many sectors.
        on_some_noise(200, crate::blk_requests::run);
    }

    #[test]
    fn bus_of_noise() {
        let reached = std::cell::Cell::new(0);
        on_noise(|program| reached.set(reached.get() + crate::bus_ops::run(program)));
        assert!(reached.get() > 1000, "{reached:?}");
    }

    #[test]
    fn console_of_noise() {
        let used = std::cell::Cell::new(0);
        on_some_noise(300, |program| {
            used.set(used.get() + crate::console_bytes::run(program));
        });
        assert!(used.get() > 1000, "{used:?}");
    }

    #[test]
    fn net_of_noise() {
        let reached = std::cell::Cell::new((0, 0));
        on_noise(|program| {
            let (back, received) = crate::net_bytes::run(program);
            reached.set((reached.get().0 + back, reached.get().1 + received));
        });
        let (back, received) = reached.get();
        assert!(back > 2000 && received > 300, "{reached:?}");
    }

    #[test]
    fn kernels_of_noise() {
        on_noise(crate::kernel::run);
    }

    #[test]
    fn states_of_noise() {
        let live = std::cell::Cell::new(0);
        on_noise(|program| live.set(live.get() + u32::from(crate::state_bytes::run(program))));
        assert!(live.get() > 10, "{live:?}");
    }

    #[test]
    fn rings_of_noise() {
        on_noise(crate::rings::run);
    }

    #[test]
    fn registers_of_noise() {
        on_noise(crate::registers::run);
    }
    #[test]
    fn exits_of_noise() {
        let kinds = vcpu_runner::ExitKind::ALL;
        let counts = std::cell::RefCell::new(vec![0; kinds.len()]);
        on_noise(|program| {
            let more = crate::vcpu_exits::run(program);
            let mut counts = counts.borrow_mut();
            counts.iter_mut().zip(more).for_each(|(sum, it)| *sum += it);
        });
        // A run that was interrupted leaves no record.
        for (kind, count) in kinds.iter().zip(counts.into_inner()) {
            let is_record = *kind != vcpu_runner::ExitKind::Interrupted;
            assert_eq!(count > 0, is_record, "{kind:?}: {count}");
        }
    }

    #[test]
    fn lives_of_noise() {
        let reached = std::cell::RefCell::new([0; 4]);
        on_some_noise(100, |program| {
            let more = crate::device_end_to_end::run(program);
            let more = [
                more.requests,
                more.breakdowns,
                more.queue_resets,
                more.moves,
            ];
            let mut reached = reached.borrow_mut();
            reached
                .iter_mut()
                .zip(more)
                .for_each(|(sum, it)| *sum += it);
        });
        let reached = reached.into_inner();
        assert!(reached.iter().all(|&count| count > 20), "{reached:?}");
    }
}
