// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs in the Linux guest: draws random bytes from a device, and prints how long that took.
//!
//! `measure hwrng BYTES` reads `/dev/hwrng`, up to 64 KiB at a time as `dd bs=64k` does;
//! `measure rng0 BYTES` reads the register word by word, through `/dev/mem`. busybox has no clock finer
//! than 10 ms, and starting a program for each word would cost more than the word.

use std::error::Error;
use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Where the register `rng0` is, at the start of a page.
const RNG0: c_long = 0x8000_1000;
const PAGE: usize = 4096;

const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;

unsafe extern "C" {
    fn mmap(
        addr: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: c_long,
    ) -> *mut c_void;
}

/// Fills `buffer` from `/dev/hwrng`.
fn hwrng(buffer: &mut [u8]) -> Result<Duration, Box<dyn Error>> {
    let mut file = File::open("/dev/hwrng")?;
    let start = Instant::now();
    for piece in buffer.chunks_mut(64 << 10) {
        file.read_exact(piece)?;
    }
    Ok(start.elapsed())
}

/// Fills `buffer` from the register, 4 bytes a read.
fn rng0(buffer: &mut [u8]) -> Result<Duration, Box<dyn Error>> {
    let memory = File::open("/dev/mem")?;
    // SAFETY: a new mapping, which nothing else in this process can overlap.
    let page = unsafe {
        mmap(
            std::ptr::null_mut(),
            PAGE,
            PROT_READ,
            MAP_SHARED,
            memory.as_raw_fd(),
            RNG0,
        )
    };
    if page.addr() == usize::MAX {
        return Err(std::io::Error::last_os_error().into());
    }
    let register: *const u32 = page.cast();
    let start = Instant::now();
    for word in buffer.chunks_mut(4) {
        // SAFETY: the mapping is readable, aligned and never removed.
        let value = unsafe { register.read_volatile() };
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
    Ok(start.elapsed())
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [device, bytes] = args.as_slice() else {
        return Err("usage: measure hwrng|rng0 BYTES".into());
    };
    // Written to once, so that no page of it is touched first while the clock runs.
    let mut buffer = vec![1; bytes.parse()?];
    let elapsed = match device.as_str() {
        "hwrng" => hwrng(&mut buffer)?,
        "rng0" => rng0(&mut buffer)?,
        _ => return Err(format!("no device {device}").into()),
    };
    println!("{device} bytes={bytes} time={}us", elapsed.as_micros());
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}
