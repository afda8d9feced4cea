// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Input that cannot be right: one line that says why, status 2, and nothing started.

use std::process::Command;

use crate::common::{Folder, mini_vmm};
use crate::kernels::{Code, bzimage, elf, elf_pvh};
use crate::{empty_archive, text};

/// Runs the program, which must complain about `about` and do nothing else.
fn complains(args: &[&str], about: &str) {
    let output = mini_vmm().args(args).output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {complaint}");
    assert_eq!(complaint.lines().count(), 1, "{args:?}: {complaint}");
    assert!(complaint.contains(about), "{args:?}: {complaint}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

/// Complains about the last argument, which names a file, and names it and its option.
fn complains_about_file(args: &[&str], about: &str) {
    complains(args, about);
    let [.., option, file] = args else {
        panic!("{args:?}");
    };
    complains(args, &format!("{option}: {file}: "));
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    let folder = Folder::new("kernels");
    let pipe = folder.0.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let code = Code::new().power_off();
    let (vmlinux, image) = (elf(&code), bzimage(&code));
    let changed = |image: &[u8], at: usize, bytes: &[u8]| {
        let mut image = image.to_vec();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let zeros = |image: &[u8]| changed(image, image.len() - 16, &[0; 16]);
    let mut cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "empty"),
        ("short", vec![b'x'; 3], "truncated"),
        ("text", vec![b'x'; 2000], "neither a bzImage nor an ELF"),
        ("elf-header", vmlinux[..60].to_vec(), "truncated"),
        ("elf-table", vmlinux[..100].to_vec(), "truncated"),
        (
            "elf-code",
            vmlinux[..vmlinux.len() - 1].to_vec(),
            "truncated",
        ),
        ("elf-32-bit", changed(&vmlinux, 4, &[1]), "no x86-64 kernel"),
        ("elf-arm", changed(&vmlinux, 18, &[183]), "no x86-64 kernel"),
        (
            "elf-no-table",
            changed(&vmlinux, 56, &[0]),
            "program headers",
        ),
        (
            "elf-low",
            changed(&vmlinux, 64 + 24, &[0; 8]),
            "impossible segment",
        ),
        (
            "elf-wraps",
            changed(&vmlinux, 64 + 24, &[0xff; 8]),
            "address space",
        ),
        (
            "elf-high",
            changed(&vmlinux, 64 + 24, &[0, 0, 0, 0, 8]),
            "2048 MiB",
        ),
        ("elf-entry", changed(&vmlinux, 24, &[0; 8]), "entry"),
        (
            "elf-program",
            changed(&vmlinux, 64 + 16, &[0; 8]),
            "no kernel",
        ),
        ("bz-code", image[..image.len() - 17].to_vec(), "truncated"),
        ("bz-setup", image[..0x230].to_vec(), "truncated"),
        ("bz-old", changed(&image, 0x206, &[0, 2]), "64-bit entry"),
        ("bz-32-bit", changed(&image, 0x236, &[0]), "64-bit entry"),
        ("bz-zimage", changed(&image, 0x211, &[0]), "zImage"),
        (
            "bz-no-code",
            changed(&image[..1024], 0x1f4, &[0; 4]),
            "no code",
        ),
        (
            "bz-no-entry",
            changed(&image[..1024 + 512], 0x1f4, &[32, 0]),
            "no code",
        ),
        (
            "bz-wraps",
            changed(&image, 0x258, &[0xff; 12]),
            "below 2048 MiB",
        ),
        ("bz-zeros", zeros(&image), "no code"),
        (
            "elf-zeros",
            [&vmlinux[..0x1000], &vec![0; vmlinux.len() - 0x1000]].concat(),
            "no code",
        ),
        (
            "elf-no-code",
            changed(&vmlinux, 64 + 32, &[0; 8]),
            "no code",
        ),
        ("elf-bss", changed(&vmlinux, 24, &[0xff]), "no code"),
        (
            "elf-note-wraps",
            changed(&elf_pvh(&code), 64 + 56 + 8, &[0xff; 8]),
            "segment",
        ),
        ("elf-many", changed(&vmlinux, 56, &[65]), "program headers"),
        ("bz-low", changed(&image, 0x214, &[0; 4]), "below 1 MiB"),
        (
            "bz-large",
            changed(&image, 0x260, &[0, 0, 0, 8]),
            "more memory",
        ),
    ];
    for (name, content, about) in cases.drain(..) {
        let path = folder.file(name, &content);
        complains_about_file(&["--memory", "64", "--kernel", text(&path)], about);
    }
    complains_about_file(&["--kernel", "/nonexistent"], "No such file");
    complains_about_file(&["--kernel", text(&folder.0)], "directory");
    complains_about_file(&["--kernel", text(&pipe)], "no regular file");
    complains_about_file(&["--kernel", "/dev/zero"], "no regular file");
    complains(&["--kernel", ""], "path is empty");
}

#[test]
fn files_that_are_no_initramfs_are_refused() {
    let folder = Folder::new("initrds");
    let kernel = folder.file("kernel", &elf(&Code::new().power_off()));
    let archive = empty_archive();
    let twice = [archive.clone(), vec![0; 512], archive.clone()].concat();
    for (name, content, about) in [
        ("empty", Vec::new(), "empty"),
        ("text", vec![b'x'; 2000], "no initramfs"),
        ("zeros", vec![0; 2000], "no initramfs"),
        ("header", archive[..100].to_vec(), "truncated"),
        ("name", archive[..115].to_vec(), "truncated"),
        ("second", twice[..twice.len() - 20].to_vec(), "truncated"),
        (
            "tail",
            [archive.clone(), b"tail".to_vec()].concat(),
            "behind its archive",
        ),
        (
            "digits",
            [b"070701", [b'g'; 200].as_slice()].concat(),
            "header at byte 0",
        ),
        (
            "large",
            [b"\x1f\x8b", vec![0; 64 << 20].as_slice()].concat(),
            "too large",
        ),
    ] {
        let path = folder.file(name, &content);
        let kernel = ["--memory", "64", "--kernel", text(&kernel)];
        complains_about_file(&[&kernel[..], &["--initrd", text(&path)]].concat(), about);
    }
    complains_about_file(
        &["--kernel", text(&kernel), "--initrd", "/nonexistent"],
        "No such file",
    );
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let folder = Folder::new("options");
    let kernel = folder.file("kernel", &bzimage(&Code::new().power_off()));
    let long = "x".repeat(256);
    let entropy = folder.file("entropy", b"");
    for (args, about) in [
        (["--cmdline", long.as_str()], "256 characters"),
        (["--cmdline", "two\nlines"], "no ASCII text"),
        (["--memory", "63"], "64 to 1048576"),
        (["--memory", "1048577"], "64 to 1048576"),
        (["--memory", "18446744073709551680"], "64 to 1048576"),
        (["--memory", "many"], "'many'"),
        (["--cpus", "0"], "1 to 8"),
        (["--cpus", "9"], "1 to 8"),
        (["--cpus", "-1"], "1 to 8"),
        (["--rate-limit", "0"], "1 or more"),
        (["--legacy-rng", "maybe"], "neither 'on' nor 'off'"),
        (["--console", "pretty"], "neither 'serial' nor 'virtio'"),
        (["--virtio-rng", ""], "neither 'on' nor 'off'"),
        (["--trace=0", "--json"], "1 to"),
        (["--entropy", text(&entropy)], "run out"),
        (["--entropy", "/nonexistent"], "No such file"),
        (["--bytes", "64"], "without --kernel"),
        (["--dump", "/tmp"], "without --kernel"),
        (["--frob", "1"], "--frob"),
        (["--acpi=off", "--cpus=2"], "without ACPI"),
        (["--virtio-rng=off", "--rate-limit=1"], "no sense"),
        (["--disk", ""], "the path is empty"),
        (["--net", "socket="], "the path is empty"),
        (
            ["--disk", "/nonexistent"],
            "--disk /nonexistent: No such file",
        ),
        (["--disk", "/dev/null"], "neither a regular file nor"),
        (["--disk", "/x,rw"], "'rw' is none of ro,"),
        (["--disk", "/x,engine=fast"], "'engine=fast' is none of ro,"),
        (
            [
                "--disk=/proc/self/exe,ro,id=of-21-characters-long",
                "--json",
            ],
            "up to 20 characters",
        ),
        (
            ["--disk=/proc/self/exe", "--json"],
            "--disk /proc/self/exe: ",
        ),
    ] {
        complains(&["--kernel", text(&kernel), args[0], args[1]], about);
    }
    for option in ["--initrd", "--cmdline", "--memory", "--cpus", "--trace"] {
        let value = format!("{option}=64");
        let value = value.replace("--cpus=64", "--cpus=4");
        complains(&[&value], "with --kernel");
    }
    complains(&["--kernel"], "missing argument");
    for (args, about) in [
        (
            vec!["--map", "--bytes", "64"],
            "--bytes only makes sense without --map",
        ),
        (
            vec!["--map", "--dump", "/tmp"],
            "--dump only makes sense without --map",
        ),
        (
            vec!["--map", "--initrd", "x"],
            "--initrd only makes sense with --kernel",
        ),
        (
            vec!["--map", "--json"],
            "--json only makes sense with --kernel",
        ),
        (
            vec!["--map", "--trace"],
            "--trace only makes sense with --kernel",
        ),
        (
            vec![
                "--map",
                "--entropy=x",
                "--legacy-rng=off",
                "--virtio-rng=off",
            ],
            "--entropy makes no sense",
        ),
        (
            vec!["--acpi=off", "--map", "--cpus=2"],
            "--cpus 2 makes no sense with --acpi off",
        ),
        (vec!["--map", "--map"], "--map is given twice"),
        (
            vec!["--memory=64", "--memory=128"],
            "--memory is given twice",
        ),
        (vec!["--trace=1", "--trace"], "--trace is given twice"),
        (vec!["--kernel=a", "--kernel=b"], "--kernel is given twice"),
    ] {
        complains(&args, about);
    }
}

#[test]
fn the_map_shows_what_is_where() {
    let output = mini_vmm()
        .args(["--map", "--memory", "3072"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let map = String::from_utf8(output.stdout).unwrap();
    for line in [
        "  00000000-7fffffff : RAM",
        "  80001000-80001003 : mmio-rng-legacy",
        "  80002000-80002fff : virtio-rng",
        "  100000000-13fffffff : RAM",
        "  03f8-03ff : serial",
        "  0600-0601 : acpi-sleep",
    ] {
        assert!(map.lines().any(|found| found == line), "{line}: {map}");
    }
    let output = mini_vmm()
        .args(["--map", "--legacy-rng", "off", "--virtio-rng", "off"])
        .output()
        .unwrap();
    let map = String::from_utf8(output.stdout).unwrap();
    assert!(!map.contains("rng"), "{map}");
    assert!(!map.contains("console"), "{map}");
    let output = mini_vmm()
        .args(["--map", "--console", "virtio"])
        .output()
        .unwrap();
    let map = String::from_utf8(output.stdout).unwrap();
    assert!(
        map.contains("  80003000-80003fff : virtio-console\n"),
        "{map}"
    );
    // Any number of disks share an image that none of them can write.
    let disks = ["--disk=/proc/self/exe,ro"; 8];
    let output = mini_vmm().arg("--map").args(disks).output().unwrap();
    let map = String::from_utf8(output.stdout).unwrap();
    for (number, name) in (4..12).zip(0..) {
        let line = format!("  8000{number:x}000-8000{number:x}fff : virtio-blk{name}\n");
        assert!(map.contains(&line), "{map}");
    }
    let nine = ["--disk=/proc/self/exe,ro"; 9];
    complains(&[&["--map"], &nine[..]].concat(), "8 disks are the most");
}

#[test]
fn guest_memory_takes_little_more_address_space_than_its_size() {
    // A size that huge pages do not divide, whose mapping the kernel puts anywhere.
    for spare in [64, 256] {
        let output = Command::new("sh")
            .args(["-c", "ulimit -v \"$1\"; shift; exec \"$@\"", "sh"])
            .arg(((301 + spare) << 10).to_string())
            .arg(mini_vmm().get_program())
            .args(["--map", "--memory", "301"])
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{spare} MiB to spare: {complaint}");
    }
}

#[test]
fn a_descriptor_that_is_not_open_is_none_of_the_programs_own() {
    let closed = "exec 3>&- 4>&- 5>&- 6>&-; exec \"$@\"";
    for fd in 3..7 {
        let net = format!("fd={fd}");
        let output = Command::new("sh")
            .args(["-c", closed, "sh"])
            .arg(mini_vmm().get_program())
            .args(["--map", "--disk=/proc/self/exe,ro", "--net", &net])
            .output()
            .unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        let wanted = format!("mini-vmm: --net {net}: Bad file descriptor (os error 9)\n");
        assert_eq!(complaint, wanted);
        assert_eq!(output.status.code(), Some(2));
    }
}
