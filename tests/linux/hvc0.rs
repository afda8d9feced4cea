// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio console and the kernel's own driver of it, `hvc0`, as the user of a guest has them.

use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::common::{Folder, mini_vmm};
use crate::{kit, where_kvm_is};

/// Longer than anything takes that goes well, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// How much is pasted and copied.
const BULK: usize = 10 << 20;

/// Lines that are all different, and no longer than a terminal takes them.
fn bulk() -> Vec<u8> {
    let lines = (0..BULK / 128).map(|number| format!("{number:0127}\n"));
    lines.collect::<String>().into_bytes()
}

/// Its SHA-256, as the tool of that name prints it.
fn hash(bytes: &[u8]) -> String {
    let folder = Folder::new("hash");
    let file = folder.file("bytes", bytes);
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// The program with a virtio console, and a guest that does what `run` says.
fn arguments(run: &str) -> Vec<String> {
    let file = |name| kit().join(name).to_str().unwrap().to_owned();
    let parameters = env::var("KERNEL_PARAMETERS").unwrap_or_default();
    let options = ["--console", "virtio", "--kernel", &file("vmlinux")].map(str::to_owned);
    let more = ["--initrd", &file("initrd"), "--cmdline"].map(str::to_owned);
    let line = format!("quiet panic=-1 {parameters} {run}");
    [&options[..], &more, &[line]].concat()
}

/// The program, and everything that it has said so far. It has no more to say when it is killed.
struct Session<R> {
    child: Child,
    output: R,
    said: Vec<u8>,
    /// What was looked at already.
    seen: usize,
}

impl<R: Read + AsFd> Session<R> {
    fn new(child: Child, output: R) -> Self {
        Self {
            child,
            output,
            said: Vec::new(),
            seen: 0,
        }
    }

    /// Reads a piece; false at the end.
    fn read(&mut self) -> bool {
        let mut fds = [PollFd::new(&self.output, PollFlags::IN)];
        let time = Timespec::try_from(PATIENCE).unwrap();
        let ready = poll(&mut fds, Some(&time)).unwrap();
        assert_eq!(ready, 1, "waited in vain: {}", self.rest());
        let mut piece = vec![0; 64 << 10];
        // A terminal that nobody has open any more ends in an error.
        let count = self.output.read(&mut piece).unwrap_or(0);
        self.said.extend(&piece[..count]);
        count != 0
    }

    /// The last of what was said.
    fn rest(&self) -> String {
        let from = self.said.len().saturating_sub(2000).max(self.seen);
        String::from_utf8_lossy(&self.said[from..]).into_owned()
    }

    /// Waits until this is said, and returns what was said before.
    fn expect(&mut self, wanted: &str) -> Vec<u8> {
        let mut from = self.seen;
        loop {
            let mut places = self.said[from..].windows(wanted.len());
            if let Some(place) = places.position(|some| some == wanted.as_bytes()) {
                let before = self.said[self.seen..from + place].to_vec();
                self.seen = from + place + wanted.len();
                return before;
            }
            from = (self.said.len() + 1).saturating_sub(wanted.len()).max(from);
            assert!(self.read(), "waited for {wanted:?}: {}", self.rest());
        }
    }

    /// Reads on to the end, and returns the exit status.
    fn end(&mut self) -> Option<i32> {
        while self.read() {}
        self.child.wait().unwrap().code()
    }
}

impl<R> Drop for Session<R> {
    fn drop(&mut self) {
        // After a failed test, it may go on for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last number in what a guest has printed.
fn ticks(text: &[u8]) -> u32 {
    let text = String::from_utf8_lossy(text);
    let numbers = text.split_whitespace();
    let mut numbers = numbers.filter_map(|word| word.parse().ok());
    numbers.next_back().unwrap()
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Starts the program on a terminal of its own, as a shell would; returns the user's end, twice.
fn on_terminal(run: &str, before: Winsize) -> (Session<File>, File) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    tcsetwinsize(&user, before).unwrap();
    let path = ptsname(&user, Vec::new()).unwrap();
    let path = path.to_str().unwrap();
    let terminal = File::options().read(true).write(true).open(path).unwrap();
    let fd = || Stdio::from(OwnedFd::from(terminal.try_clone().unwrap()));
    let child = Command::new("setsid")
        .arg("-c")
        .arg(mini_vmm().get_program())
        .args(arguments(run))
        .stdin(fd())
        .stdout(fd())
        .stderr(fd())
        .spawn()
        .unwrap();
    let user = File::from(user);
    (Session::new(child, user.try_clone().unwrap()), user)
}

/// A shell for a person: its window's size, and more than fits anywhere, pasted into it and copied
/// out of it, also when the person looks away for a minute.
#[test]
fn a_user_logs_in_on_hvc0() {
    where_kvm_is("hvc0::a_user_logs_in_on_hvc0", || {
        let run = "console=hvc0 guest.run=login";
        let (mut session, mut user) = on_terminal(run, size(25, 80));
        let mut type_in = {
            let mut user = user.try_clone().unwrap();
            move |line: &str| user.write_all(line.as_bytes()).unwrap()
        };
        session.expect("login: ");
        type_in("root\r");
        session.expect("# ");
        // From here on nothing is echoed, and only one of the two terminals returns the carriage.
        type_in("stty -echo -opost\r");
        session.expect("# ");
        type_in("stty size\r");
        session.expect("25 80\r\n");
        tcsetwinsize(&user, size(50, 132)).unwrap();
        type_in("until stty size | grep '50 132'; do usleep 50000; done\r");
        session.expect("50 132\r\n");

        let bulk = bulk();
        type_in("cat >/tmp/pasted; sha256sum </tmp/pasted\r");
        let began = Instant::now();
        user.write_all(&bulk).unwrap();
        // The end of the input.
        type_in("\x04");
        session.expect(&hash(&bulk));
        println!("pasted in {:?}", began.elapsed());

        // It is copied out, and nobody looks for a minute. The guest goes on all the while, and hears
        // what is typed.
        type_in("echo >/tmp/ticks; while usleep 100000; do echo >>/tmp/ticks; done &\r");
        type_in("wc -l </tmp/ticks; echo begin; cat /tmp/pasted; echo end\r");
        let began = ticks(&session.expect("begin\r\n"));
        type_in("read line; wc -l </tmp/ticks; echo $line\r");
        thread::sleep(Duration::from_secs(60));
        type_in("go on\r");
        let mut copied = session.expect("end\r\n");
        copied.retain(|&byte| byte != b'\r');
        assert!(copied == bulk, "{} bytes differ", copied.len());
        let went_on = ticks(&session.expect("go on")) - began;
        println!("{went_on} ticks while nobody looked");
        assert!(went_on > 100, "the guest stood still: {went_on} ticks");

        type_in("poweroff -f\r");
        assert_eq!(session.end(), Some(0));
    });
}

/// The same bytes over pipes, as a program has them; then the driver comes and goes ten times while
/// both sides go on writing, and all is well afterwards.
#[test]
fn the_driver_of_hvc0_is_bound_ten_times_under_traffic() {
    where_kvm_is(
        "hvc0::the_driver_of_hvc0_is_bound_ten_times_under_traffic",
        || {
            let bytes = format!("guest.bytes={BULK}");
            let run = format!("console=ttyS0 guest.run=console {bytes}");
            let mut child = mini_vmm()
                .args(arguments(&run))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let stdin = File::from(OwnedFd::from(stdin));
            let mut session = Session::new(child, stdout);
            let bulk = bulk();
            let send = |bytes: &[u8]| {
                let (mut stdin, bytes) = (stdin.try_clone().unwrap(), bytes.to_vec());
                thread::spawn(move || stdin.write_all(&bytes).unwrap())
            };

            // The driver throws away what it is given before a program listens.
            session.expect("guest: listens\n");
            let began = Instant::now();
            let sent = send(&bulk);
            session.expect(&format!("{}  -\n", hash(&bulk)));
            sent.join().unwrap();
            println!("in within {:?}", began.elapsed());
            let began = Instant::now();
            let given = session.expect("guest: comes and goes\n");
            assert!(given == bulk, "{} bytes differ", given.len());
            println!("out within {:?}", began.elapsed());

            let over = Arc::new(AtomicBool::new(false));
            let noise = {
                let (mut stdin, over) = (stdin.try_clone().unwrap(), over.clone());
                thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        stdin.write_all(&[b'n'; 64]).unwrap();
                        // Input without a pause made Linux 6.1 fail once while it let go of the console.
                        thread::sleep(Duration::from_millis(20));
                    }
                })
            };
            session.expect("guest: listens again\n");
            over.store(true, Ordering::Relaxed);
            noise.join().unwrap();
            let sent = send(&[b"\nthat is all\n", &bulk[..1 << 20]].concat());
            session.expect("guest: has heard it all\n");
            sent.join().unwrap();
            assert_eq!(session.end(), Some(0), "{}", session.rest());
            assert!(
                session.rest().contains("check console: ok"),
                "{}",
                session.rest()
            );
        },
    );
}
