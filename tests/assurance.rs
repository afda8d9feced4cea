// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The map in docs/assurance.md: every case is in it, and every test that it names exists.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test stops at the unexpected"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Cases with a number.
const CASES: usize = 162;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The cells of every row of a table in `page` that names tests: those whose last column is called so.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let mut rows = Vec::new();
    let mut in_table = false;
    for line in page.lines() {
        let Some(inner) = line.strip_prefix("| ").and_then(|it| it.strip_suffix(" |")) else {
            in_table &= line.starts_with('|');
            continue;
        };
        let cells: Vec<_> = inner.split(" | ").collect();
        if cells.last() == Some(&"tests") {
            in_table = true;
        } else if in_table {
            rows.push(cells);
        }
    }
    rows
}

/// The files that may hold the tests called `place`: a crate's folder and a file in it, or a file of
/// this package's own.
fn files(place: &str) -> Vec<PathBuf> {
    let own = root().join(format!("{place}.rs"));
    let Some((package, file)) = place.split_once('/') else {
        return vec![own];
    };
    let package = root().join("crates").join(package);
    vec![
        own,
        package.join(format!("{file}.rs")),
        package.join("tests").join(format!("{file}.rs")),
    ]
}

/// Whether `source` has a function of this name with `#[test]` among its attributes.
fn has_test(source: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let mut places = (0..lines.len()).filter(|&place| lines[place].starts_with(&head));
    places.any(|place| {
        let above = lines[..place].iter().rev();
        above
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
            .any(|line| *line == "#[test]")
    })
}

/// Whether there is what the map calls by this name: a test, a fuzz target, or a script.
fn exists(name: &str) -> bool {
    if let Some((place, test)) = name.split_once("::") {
        return files(place)
            .into_iter()
            .filter_map(|file| fs::read_to_string(file).ok())
            .any(|source| has_test(&source, test));
    }
    if let Some(target) = name.strip_prefix("fuzz/") {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        return manifest.contains(&format!("name = \"{target}\""));
    }
    root().join(name).is_file()
}

/// What a row says: names of tests, or why there is none.
fn missing(cell: &str) -> Vec<&str> {
    if cell.starts_with("none: ") {
        return Vec::new();
    }
    let names = cell.split(", ").map(|name| {
        let bare = name.strip_prefix('`').and_then(|it| it.strip_suffix('`'));
        bare.unwrap_or(name)
    });
    names.filter(|name| !exists(name)).collect()
}

#[test]
fn every_test_that_the_map_names_exists() {
    let page = fs::read_to_string(root().join("docs/assurance.md")).unwrap();
    let rows = rows(&page);
    let missing: Vec<_> = rows
        .iter()
        .flat_map(|row| missing(row.last().unwrap()))
        .collect();
    assert!(missing.is_empty(), "not there: {missing:#?}");

    let numbered: Vec<usize> = rows
        .iter()
        .filter_map(|row| row.first()?.parse().ok())
        .collect();
    assert!(numbered.iter().copied().eq(1..=CASES), "{numbered:?}");

    // The page says how many have none, so that nobody adds one unseen.
    let without = rows
        .iter()
        .filter(|row| row.last().unwrap().starts_with("none: "));
    let (without, all) = (without.count(), rows.len());
    let count = format!("{all} rows, {without} without a test");
    assert!(page.contains(&count), "the page should say: {count}");
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let here = "tests/assurance::a_name_that_does_not_exist_is_found";
    assert_eq!(missing(&format!("`{here}`")), Vec::<&str>::new());
    for name in [
        // A function, but no test; a test, but elsewhere; a file, a target and a script that are not.
        "tests/assurance::missing",
        "bus/map::a_name_that_does_not_exist_is_found",
        "bus/nothing::a_name_that_does_not_exist_is_found",
        "fuzz/nothing",
        "assurance/nothing",
    ] {
        assert_eq!(missing(&format!("`{here}`, `{name}`")), [name]);
    }
    assert_eq!(missing("no reason"), ["no reason"]);
    assert_eq!(
        rows("| case | tests |\n|---|---|\n| 1 | `a` |\n\n| 2 | `b` |"),
        [["1", "`a`"]]
    );
}
