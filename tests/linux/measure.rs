// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs in the Linux guest.
//!
//! `measure draw BYTES` reads `/dev/hwrng`, up to 64 KiB at a time as `dd bs=64k` does, and prints how
//! long that took: busybox has no clock finer than 10 ms.
//!
//! `measure order PIECE FILE` says where in the entropy file of the tests the bytes of `FILE` are from.
//! They must be pieces of it in order, each of `PIECE` bytes, as the kernel's driver refills its buffer.
//! The kernel has a thread that draws such pieces for its own pool whenever it likes, and nothing keeps
//! it from doing so: only such pieces may be missing.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;

fn draw(bytes: usize) -> Result<(), Box<dyn Error>> {
    let generator = fs::read_to_string("/sys/class/misc/hw_random/rng_current")?;
    // Written to once, so that no page of it is touched first while the clock runs.
    let mut buffer = vec![1; bytes];
    let mut file = File::open("/dev/hwrng")?;
    let start = Instant::now();
    for piece in buffer.chunks_mut(64 << 10) {
        file.read_exact(piece)?;
    }
    let elapsed = start.elapsed().as_micros();
    println!("{} bytes={bytes} time={elapsed}us", generator.trim_end());
    Ok(())
}

/// Number of the entropy file's first line; each line is its own number, of 7 digits.
const FIRST: usize = 1_000_000;
const LINE: usize = 8;

/// The bytes of the entropy file from `start` on.
fn original(start: usize, len: usize) -> Vec<u8> {
    let first = start / LINE;
    let lines = (first..=(start + len) / LINE).flat_map(|line| format!("{}\n", FIRST + line).into_bytes());
    lines.skip(start % LINE).take(len).collect()
}

/// Where a piece of the entropy file begins, by the first whole line in it.
fn place(piece: &[u8]) -> Option<usize> {
    let line_start = piece.iter().position(|byte| *byte == b'\n')? + 1;
    let line = piece.get(line_start..line_start + LINE - 1)?;
    let number: usize = std::str::from_utf8(line).ok()?.parse().ok()?;
    let start = (number.checked_sub(FIRST)? * LINE).checked_sub(line_start)?;
    (original(start, piece.len()) == piece).then_some(start)
}

fn order(piece_len: usize, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let (mut from, mut end, mut gaps, mut missing) = (None, 0, 0, 0);
    for (number, piece) in bytes.chunks(piece_len).enumerate() {
        let start = place(piece).ok_or(format!("piece {number} is none of the entropy file"))?;
        if *from.get_or_insert(start) != start {
            let gap = start.checked_sub(end).ok_or(format!("piece {number} is from {start}, before {end}"))?;
            if gap % piece_len != 0 {
                return Err(format!("{gap} bytes are missing before piece {number}").into());
            }
            gaps += usize::from(gap > 0);
            missing += gap;
        }
        end = start + piece.len();
    }
    let from = from.ok_or("no bytes")?;
    println!("from={from} end={end} gaps={gaps} missing={missing}");
    Ok(())
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["draw", bytes] => draw(bytes.parse()?),
        ["order", piece, file] => order(piece.parse()?, &fs::read(file)?),
        _ => Err("usage: measure draw BYTES | measure order PIECE FILE".into()),
    }
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
