// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Uses a network in the Linux guest, and is its other side on the host.
//!
//! * `net serve ADDRESS:PORT` takes bytes and gives bytes, to whoever asks, for ever;
//! * `net send ADDRESS:PORT BYTES` and `net fetch ADDRESS:PORT BYTES` have it do so, and compare the
//!   sums of both sides;
//! * `net flood ADDRESS:PORT` sends and fetches at once until that fails;
//! * `net offloads INTERFACE on|off...` switches the offloads of [`SWITCHES`], in their order;
//! * `net pairs INTERFACE NUMBER` has it use so many pairs of queues;
//! * `net count INTERFACE NAME` tells a statistic of the driver's;
//! * `net tap NAME` makes a tap for several queues that stays.

use std::error::Error;
use std::ffi::c_ulong;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

const CHUNK: usize = 65536;

/// What can be switched of each device: checksums and segmentation of what is sent, then segments
/// that are put together of what is received.
const SWITCHES: [&[&str]; 3] = [
    &["tx-checksum-ip-generic"],
    &["tx-tcp-segmentation", "tx-tcp6-segmentation"],
    &["rx-gro-hw"],
];

/// A long series of bytes, and the sum of what has been made or taken of it.
#[derive(Default)]
struct Series {
    words: u64,
    sum: u64,
}

impl Series {
    fn make(&mut self, chunk: &mut [u8]) {
        for word in chunk.chunks_exact_mut(8) {
            self.words += 1;
            let value = self.words.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&value.to_le_bytes());
        }
        self.add(chunk);
    }

    fn add(&mut self, chunk: &[u8]) {
        for word in chunk.chunks_exact(8) {
            let value = u64::from_le_bytes(word.try_into().unwrap());
            self.sum = self.sum.rotate_left(1) ^ value;
        }
    }
}

/// Gives so many bytes, a multiple of a chunk, and returns their sum.
fn give(stream: &mut TcpStream, bytes: u64) -> io::Result<u64> {
    let (mut series, mut chunk) = (Series::default(), vec![0; CHUNK]);
    for _ in 0..bytes / CHUNK as u64 {
        series.make(&mut chunk);
        stream.write_all(&chunk)?;
    }
    Ok(series.sum)
}

fn take(stream: &mut TcpStream, bytes: u64) -> io::Result<u64> {
    let (mut series, mut chunk) = (Series::default(), vec![0; CHUNK]);
    for _ in 0..bytes / CHUNK as u64 {
        stream.read_exact(&mut chunk)?;
        series.add(&chunk);
    }
    Ok(series.sum)
}

fn number(stream: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A request is whether to give, and how much; the giver's sum goes to the taker, who compares.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let (gives, bytes) = (number(&mut stream)?, number(&mut stream)?);
    let sum = match gives {
        1 => give(&mut stream, bytes)?,
        _ => take(&mut stream, bytes)?,
    };
    stream.write_all(&sum.to_le_bytes())
}

fn serve(address: &str) -> Outcome<()> {
    let listener = TcpListener::bind(address)?;
    for stream in listener.incoming() {
        // Whoever goes away has seen why.
        thread::spawn(|| stream.and_then(answer));
    }
    Ok(())
}

fn ask(address: &str, fetch: bool, bytes: u64) -> Outcome<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&u64::from(fetch).to_le_bytes())?;
    stream.write_all(&bytes.to_le_bytes())?;
    let start = Instant::now();
    let sum = match fetch {
        true => take(&mut stream, bytes)?,
        false => give(&mut stream, bytes)?,
    };
    let theirs = number(&mut stream)?;
    let what = if fetch { "fetched" } else { "sent" };
    if sum != theirs {
        return Err(format!("the sums of {bytes} bytes {what} are {sum:x} and {theirs:x}").into());
    }
    println!("{what}={bytes} ms={}", start.elapsed().as_millis());
    Ok(())
}

fn flood(address: &str) -> Outcome<()> {
    let there = address.to_owned();
    let other = thread::spawn(move || while ask(&there, true, 1 << 20).is_ok() {});
    while ask(address, false, 1 << 20).is_ok() {}
    let _ = other.join();
    Ok(())
}

unsafe extern "C" {
    fn ioctl(fd: i32, request: c_ulong, ...) -> i32;
}

const SIOCETHTOOL: c_ulong = 0x8946;
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETPERSIST: c_ulong = 0x4004_54cb;
/// `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`, `IFF_MULTI_QUEUE`.
const TAP: u16 = 0x0002 | 0x1000 | 0x4000 | 0x0100;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETH_SS_STATS: u32 = 1;
const ETH_SS_FEATURES: u32 = 4;

/// `struct ifreq`, as far as it is needed.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: u64,
    rest: [u64; 2],
}

impl Request {
    fn new(name: &str, value: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Self {
            name: bytes,
            value,
            rest: [0; 2],
        }
    }
}

/// A call of ethtool's, whose argument is made of words; what it returns is what it could not do.
fn ethtool(interface: &str, words: &mut [u32]) -> Outcome<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut request = Request::new(interface, words.as_mut_ptr() as u64);
    // SAFETY: the words are as many as the call reads and writes.
    match unsafe { ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        -1 => Err(io::Error::last_os_error().into()),
        0 => Ok(()),
        left => Err(format!("left undone: {left}").into()),
    }
}

/// The names of a set, in their order.
fn names(interface: &str, set: u32) -> Outcome<Vec<String>> {
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << set, 0, 0];
    ethtool(interface, &mut info)?;
    let count = info[4] as usize;
    let mut strings = vec![0; 3 + 8 * count];
    strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, set, count as u32]);
    ethtool(interface, &mut strings)?;
    let name = |words: &[u32]| {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(strings[3..].chunks(8).map(name).collect())
}

fn offloads(interface: &str, wanted: &[&str]) -> Outcome<()> {
    let names = names(interface, ETH_SS_FEATURES)?;
    let blocks = names.len().div_ceil(32);
    let mut words = vec![0; 2 + 2 * blocks];
    words[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
    for (switch, wanted) in SWITCHES.iter().zip(wanted) {
        for name in *switch {
            let at = names.iter().position(|it| it == name).ok_or(*name)?;
            let (block, bit) = (2 + at / 32 * 2, 1 << (at % 32));
            words[block] |= bit;
            if *wanted == "on" {
                words[block + 1] |= bit;
            }
        }
    }
    ethtool(interface, &mut words)
}

fn pairs(interface: &str, count: u32) -> Outcome<()> {
    let mut words = [ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    ethtool(interface, &mut words)?;
    (words[0], words[8]) = (ETHTOOL_SCHANNELS, count);
    ethtool(interface, &mut words)
}

fn count(interface: &str, name: &str) -> Outcome<()> {
    let names = names(interface, ETH_SS_STATS)?;
    let mut words = vec![0; 2 + 2 * names.len()];
    words[..2].copy_from_slice(&[ETHTOOL_GSTATS, names.len() as u32]);
    ethtool(interface, &mut words)?;
    let at = names.iter().position(|it| it == name).ok_or(name)?;
    println!("{}", words[2 + 2 * at]);
    Ok(())
}

fn tap(name: &str) -> Outcome<()> {
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = Request::new(name, TAP.into());
    // SAFETY: the first call reads and writes the request, the second takes a number.
    let made = unsafe {
        ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) == 0
            && ioctl(tun.as_raw_fd(), TUNSETPERSIST, 1_u64) == 0
    };
    match made {
        true => Ok(()),
        false => Err(io::Error::last_os_error().into()),
    }
}

fn run() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", address] => serve(address),
        ["send", address, bytes] => ask(address, false, bytes.parse()?),
        ["fetch", address, bytes] => ask(address, true, bytes.parse()?),
        ["flood", address] => flood(address),
        ["offloads", interface, wanted @ ..] if wanted.len() == SWITCHES.len() => {
            offloads(interface, wanted)
        }
        ["pairs", interface, number] => pairs(interface, number.parse()?),
        ["count", interface, name] => count(interface, name),
        ["tap", name] => tap(name),
        _ => Err("usage: see the beginning of net.rs".into()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("net: {error}");
            ExitCode::FAILURE
        }
    }
}
