// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a guest's I/O goes.

/// The device side of a VMM, as the run loop sees it.
///
/// A guest's access always completes, and what an access that no device claims does is the
/// implementor's policy. A buffer to be read into arrives filled with ones, which is what an empty
/// bus answers, so doing nothing is a correct answer.
///
/// With the default feature `bus`, [`BusIo`](crate::BusIo) implements this trait for the buses of
/// the `vmm-bus` crate. A VMM with a bus of its own hands in a function, as an
/// [`IoFn`](crate::IoFn), or implements it in a few lines:
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use vcpu_runner::GuestIo;
///
/// # #[derive(Default)] struct OwnBus;
/// # impl OwnBus {
/// #     fn read(&mut self, _: u64, _: &mut [u8]) -> bool { false }
/// #     fn write(&mut self, _: u64, _: &[u8]) -> bool { false }
/// # }
/// struct Devices {
///     mmio: Arc<Mutex<OwnBus>>,
/// }
///
/// impl GuestIo for Devices {
///     type Answer = ();
///     fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
///         self.mmio.lock().unwrap().read(addr, data);
///     }
///     fn mmio_write(&mut self, addr: u64, data: &[u8]) {
///         self.mmio.lock().unwrap().write(addr, data);
///     }
///     fn pio_read(&mut self, _port: u16, _data: &mut [u8]) {}
///     fn pio_write(&mut self, _port: u16, _data: &[u8]) {}
/// }
/// ```
pub trait GuestIo {
    /// What comes of an access for the VMM: `()`, or whether the loop goes on.
    ///
    /// The loop needs one that is a [`Flow`](crate::Flow). When it says to end, the rest of the
    /// instruction is carried out first, so that the vCPU's registers are those between two
    /// instructions; the first end counts.
    type Answer;

    /// Answers a read of `data.len()` bytes, 1 to 8, at guest physical address `addr`.
    ///
    /// Any length from 1 to 8 and any alignment can occur, 3, 5, 6 and 7 included: KVM splits an
    /// access that crosses a page, or that begins in RAM, into parts of odd lengths. Each arrives
    /// here as KVM delivers it, in the order of its addresses. `BusIo` hands it to its bus, which
    /// splits it into naturally aligned accesses of 1, 2, 4 and 8 bytes.
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Self::Answer;

    /// Takes a write of `data.len()` bytes, 1 to 8, to guest physical address `addr`.
    ///
    /// Lengths and order are those of [`GuestIo::mmio_read`].
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Self::Answer;

    /// Answers a read of 1, 2 or 4 bytes from an I/O port.
    ///
    /// A string instruction arrives as one call for each of its elements, all to the same port.
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Self::Answer;

    /// Takes a write of 1, 2 or 4 bytes to an I/O port.
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Self::Answer;

    /// Whether every byte of a read is set here, whatever becomes of the access; the loop does not
    /// fill the buffer first then.
    ///
    /// What is not set is what the vCPU's last access has left there.
    #[inline]
    fn fills_reads(&self) -> bool {
        false
    }

    /// Has `act` see every answer and say what it means.
    ///
    /// It is called when the access has been made and none of the devices' locks is held: here a
    /// VMM moves a region or waits for a barrier, before the guest goes on.
    ///
    /// A write that KVM has [collected](crate::VcpuRunner::with_coalesced_mmio) is in the ring until
    /// `act` returns, and the machine's other vCPUs wait for it at their next exit: what has to wait
    /// for them, such as a pause of the group, is left to another thread then.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use vcpu_runner::GuestIo;
    ///
    /// # struct Devices;
    /// # impl GuestIo for Devices {
    /// #     type Answer = Asks;
    /// #     fn mmio_read(&mut self, _: u64, _: &mut [u8]) -> Asks { Asks::Nothing }
    /// #     fn mmio_write(&mut self, _: u64, _: &[u8]) -> Asks { Asks::Reset }
    /// #     fn pio_read(&mut self, _: u16, _: &mut [u8]) -> Asks { Asks::Nothing }
    /// #     fn pio_write(&mut self, _: u16, _: &[u8]) -> Asks { Asks::Nothing }
    /// # }
    /// # fn remap(_: u64) {}
    /// enum Asks {
    ///     Nothing,
    ///     Remap(u64),
    ///     Reset,
    /// }
    ///
    /// let mut io = Devices.map_answer(|asks| match asks {
    ///     Asks::Nothing => ControlFlow::Continue(()),
    ///     Asks::Remap(base) => {
    ///         remap(base);
    ///         ControlFlow::Continue(())
    ///     }
    ///     Asks::Reset => ControlFlow::Break("reset"),
    /// });
    /// assert_eq!(io.mmio_write(0x1000, &[1]), ControlFlow::Break("reset"));
    /// ```
    fn map_answer<F, A>(self, act: F) -> MapAnswer<Self, F>
    where
        Self: Sized,
        F: FnMut(Self::Answer) -> A,
    {
        MapAnswer { io: self, act }
    }
}

/// Devices whose answers a function of the VMM sees; made by [`GuestIo::map_answer`].
///
/// ```
/// use vcpu_runner::{GuestIo, IoAccess, IoFn, MapAnswer};
///
/// // The devices may fail; the loop goes on all the same, and the VMM counts.
/// let mut failures = 0;
/// let devices = IoFn(|_: IoAccess<'_>| Err::<(), _>("no device"));
/// let mut io: MapAnswer<_, _> = devices.map_answer(|answer| failures += i32::from(answer.is_err()));
/// io.mmio_write(0x1000, &[1]);
/// drop(io);
/// assert_eq!(failures, 1);
/// ```
#[derive(Clone, Debug)]
pub struct MapAnswer<I, F> {
    io: I,
    act: F,
}

impl<I: GuestIo, A, F: FnMut(I::Answer) -> A> GuestIo for MapAnswer<I, F> {
    type Answer = A;

    #[inline]
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> A {
        (self.act)(self.io.mmio_read(addr, data))
    }

    #[inline]
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> A {
        (self.act)(self.io.mmio_write(addr, data))
    }

    #[inline]
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> A {
        (self.act)(self.io.pio_read(port, data))
    }

    #[inline]
    fn pio_write(&mut self, port: u16, data: &[u8]) -> A {
        (self.act)(self.io.pio_write(port, data))
    }

    #[inline]
    fn fills_reads(&self) -> bool {
        self.io.fills_reads()
    }
}

/// Passes accesses on to what a pointer points to.
macro_rules! through {
    ($pointer:ty) => {
        impl<T: GuestIo + ?Sized> GuestIo for $pointer {
            type Answer = T::Answer;

            fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> T::Answer {
                (**self).mmio_read(addr, data)
            }

            fn mmio_write(&mut self, addr: u64, data: &[u8]) -> T::Answer {
                (**self).mmio_write(addr, data)
            }

            fn pio_read(&mut self, port: u16, data: &mut [u8]) -> T::Answer {
                (**self).pio_read(port, data)
            }

            fn pio_write(&mut self, port: u16, data: &[u8]) -> T::Answer {
                (**self).pio_write(port, data)
            }

            fn fills_reads(&self) -> bool {
                (**self).fills_reads()
            }
        }
    };
}

through!(&mut T);
through!(Box<T>);
