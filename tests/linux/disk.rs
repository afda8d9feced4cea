// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes to a disk in the Linux guest, and checks on the host what has become of it.
//!
//! * `disk flood DEVICE` writes blocks all over the device for ever, and says each time up to which of
//!   them it has flushed;
//! * `disk check IMAGE NUMBER` looks whether all blocks up to that one are there, whole;
//! * `disk verify DEVICE BYTES` writes that much, flushes, and reads it back from the device;
//! * `disk files FOLDER` writes files for ever, each in the place of an older one, and says each time up to
//!   which of them it has flushed;
//! * `disk check-files FOLDER NUMBER` looks whether all files up to that one are there, whole;
//! * `disk fill FILE BYTES` and `disk same FILE BYTES` write a file and compare it;
//! * `disk read DEVICE BYTES` and `disk jump DEVICE BYTES THREADS` read that much past the guest's cache:
//!   128 KiB after 128 KiB, and 4 KiB here and there by so many threads.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const BLOCK: usize = 4096;
/// Blocks that are written to, on a device of 16 MiB at least.
const PLACES: u64 = 4096;
const O_DIRECT: i32 = 0x4000;

/// Where block `number` goes: each place gets another one now and then.
fn place(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (PLACES - 1)
}

/// What block `number` holds: its number all over.
fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

fn flood(device: &str) -> Result<(), Box<dyn Error>> {
    let file = File::options().write(true).open(device)?;
    for number in 1.. {
        file.write_all_at(&block(number), place(number) * BLOCK as u64)?;
        if number % 8 == 0 {
            file.sync_data()?;
            println!("flushed {number}");
            std::io::stdout().flush()?;
        }
    }
    Ok(())
}

fn check(image: &str, last: u64) -> Result<(), Box<dyn Error>> {
    let file = File::open(image)?;
    let mut expected = vec![0; PLACES as usize];
    for number in 1..=last {
        expected[place(number) as usize] = number;
    }
    let mut found = [0; BLOCK];
    for (at, &expected) in (0..).zip(&expected) {
        file.read_exact_at(&mut found, at * BLOCK as u64)?;
        let number = u64::from_le_bytes(found[..8].try_into()?);
        if number < expected || found[..] != block(number) {
            return Err(format!("place {at}: {number} instead of {expected}").into());
        }
    }
    println!("blocks={last} intact");
    Ok(())
}

/// Names that files have in turn.
const NAMES: u64 = 64;

/// What file `number` holds.
fn content(number: u64) -> Vec<u8> {
    block(number).repeat(1 + (number % 8) as usize)
}

fn files(folder: &str) -> Result<(), Box<dyn Error>> {
    for number in 1.. {
        let new = format!("{folder}/new");
        let mut file = File::create(&new)?;
        file.write_all(&content(number))?;
        file.sync_all()?;
        std::fs::rename(new, format!("{folder}/{}", number % NAMES))?;
        File::open(folder)?.sync_all()?;
        println!("flushed {number}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn check_files(folder: &str, last: u64) -> Result<(), Box<dyn Error>> {
    // A name has its last file, or one of those that were on their way.
    for expected in last.saturating_sub(NAMES - 1).max(1)..=last {
        let found = std::fs::read(format!("{folder}/{}", expected % NAMES))?;
        let number = found.first_chunk().map_or(0, |it| u64::from_le_bytes(*it));
        if number < expected || number % NAMES != expected % NAMES || found != content(number) {
            return Err(format!("file {expected} is {number}").into());
        }
    }
    println!("files={last} intact");
    Ok(())
}

fn fill(path: &str, bytes: u64) -> Result<(), Box<dyn Error>> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for number in 0..bytes / BLOCK as u64 {
        file.write_all(&block(number))?;
    }
    Ok(file.into_inner()?.sync_all()?)
}

fn same(path: &str, bytes: u64) -> Result<(), Box<dyn Error>> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut found = [0; BLOCK];
    for number in 0..bytes / BLOCK as u64 {
        file.read_exact(&mut found)?;
        if found[..] != block(number) {
            return Err(format!("block {number} is another one").into());
        }
    }
    println!("bytes={bytes} are the same");
    Ok(())
}

/// Reads that much past the guest's cache, in pieces, of which the one with this number is at this place.
fn read(
    device: &str,
    bytes: u64,
    piece: usize,
    threads: usize,
    place: impl Fn(u64) -> u64 + Sync,
) -> Result<(), Box<dyn Error>> {
    let mut file = File::options().read(true).custom_flags(O_DIRECT).open(device)?;
    let places = file.seek(SeekFrom::End(0))? / piece as u64;
    let next = AtomicU64::new(0);
    let reader = || -> io::Result<()> {
        let mut room = vec![1; piece + BLOCK];
        let start = room.as_ptr().align_offset(BLOCK);
        let found = &mut room[start..start + piece];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= bytes / piece as u64 {
                return Ok(());
            }
            file.read_exact_at(found, place(number) % places * piece as u64)?;
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(reader)).collect();
        readers.into_iter().try_for_each(|it| it.join().unwrap())
    })?;
    Ok(())
}

fn verify(device: &str, bytes: u64) -> Result<(), Box<dyn Error>> {
    let file = File::options().write(true).open(device)?;
    let blocks = bytes / BLOCK as u64;
    for number in 0..blocks {
        file.write_all_at(&block(number ^ 0x5555), number * BLOCK as u64)?;
    }
    file.sync_all()?;
    // Past the guest's own cache; the buffer begins at a multiple of a block.
    let direct = File::options().read(true).custom_flags(O_DIRECT).open(device)?;
    let mut room = vec![0; 2 * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    let found = &mut room[start..start + BLOCK];
    for number in 0..blocks {
        direct.read_exact_at(found, number * BLOCK as u64)?;
        if found[..] != block(number ^ 0x5555) {
            return Err(format!("block {number} is another one").into());
        }
    }
    println!("bytes={bytes} verified");
    Ok(())
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["flood", device] => flood(device),
        ["check", image, number] => check(image, number.parse()?),
        ["verify", device, bytes] => verify(device, bytes.parse()?),
        ["files", folder] => files(folder),
        ["check-files", folder, number] => check_files(folder, number.parse()?),
        ["fill", file, bytes] => fill(file, bytes.parse()?),
        ["same", file, bytes] => same(file, bytes.parse()?),
        ["read", device, bytes] => read(device, bytes.parse()?, 32 * BLOCK, 1, |number| number),
        ["jump", device, bytes, threads] => {
            let anywhere = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            read(device, bytes.parse()?, BLOCK, threads.parse()?, anywhere)
        }
        _ => Err("usage: see the beginning of disk.rs".into()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("disk: {error}");
            ExitCode::FAILURE
        }
    }
}
