// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the fuzz targets run: programs of a driver that means harm, and files that are no kernels,
//! and what must be true all the same.

#![forbid(unsafe_code)]

pub mod bus_ops;
pub mod kernel;
pub mod machine;
pub mod model;
pub mod net_bytes;
pub mod registers;
pub mod rings;
pub mod state_bytes;

#[cfg(test)]
mod tests {
    use arbitrary::{Arbitrary, Unstructured};

    /// Runs `run` on programs made of bytes without a pattern, the same ones every time.
    fn on_noise<P: for<'a> Arbitrary<'a>>(run: impl Fn(&P)) {
        let mut state = 1_u64;
        for _ in 0..3000 {
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
    fn bus_of_noise() {
        let reached = std::cell::Cell::new(0);
        on_noise(|program| reached.set(reached.get() + crate::bus_ops::run(program)));
        assert!(reached.get() > 1000, "{reached:?}");
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
}
