// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's command line.

use linux_loader::loader::Cmdline;

use super::loader::Kernel;
use crate::arch::linux::{COMMAND_LINE_SIZE, OPTIONAL};
use crate::stdio::count;

/// Checks the user's command line, and adds to it what the machine needs, and what the user says
/// nothing else about.
///
/// # Errors
///
/// One line that says what is wrong with it.
pub(crate) fn complete(text: &str, needed: &[String], kernel: &Kernel) -> Result<Cmdline, String> {
    let wrong = |what: &str| format!("--cmdline: {what}");
    if let Some(odd) = text.chars().find(|c| !matches!(c, ' '..='~')) {
        return Err(wrong(&format!("contains {odd:?}, which is no ASCII text")));
    }
    let most = kernel.command_line_max.min(COMMAND_LINE_SIZE - 1);
    let too_long = |len: usize, with: &str| {
        let len = count(len as u64, "character");
        wrong(&format!("{len}{with}, and the kernel takes {most} at most"))
    };
    if text.len() > most {
        return Err(too_long(text.len(), ""));
    }
    let mut whole = text.to_owned();
    for addition in needed {
        whole = with(&whole, addition);
    }
    if whole.len() > most {
        let needed = format!(" with '{}'", needed.join(" "));
        return Err(too_long(whole.len(), &needed));
    }
    // Of use, but nothing to refuse a command line for.
    for (parameter, addition) in OPTIONAL {
        let longer = with(&whole, addition);
        if !names(text, parameter) && longer.len() <= most {
            whole = longer;
        }
    }
    let mut line = Cmdline::new(COMMAND_LINE_SIZE).map_err(|error| wrong(&error.to_string()))?;
    if !whole.is_empty() {
        line.insert_str(&whole)
            .map_err(|error| wrong(&error.to_string()))?;
    }
    Ok(line)
}

/// Whether a command line gives this parameter a value.
pub(crate) fn names(line: &str, parameter: &str) -> bool {
    let value = |word: &str| word.strip_prefix(parameter)?.strip_prefix('=').map(drop);
    words(line).any(|(_, word)| value(word).is_some())
}

/// The command line with one more parameter, in front of what is not for the kernel.
fn with(line: &str, addition: &str) -> String {
    let end = words(line).last().map_or(0, |(at, word)| at + word.len());
    let end = line
        .get(..end)
        .map_or(line.len(), |used| used.trim_end().len());
    let (before, behind) = line.split_at(end);
    let parts = [before, addition, behind.trim_start()];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// The kernel's own parameters, with the place of each: words, in which a quoted space is no end, up
/// to a `--`, behind which are those of the first process.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut quoted = false;
    let mut at = 0;
    let words = line.split(move |c: char| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    });
    words
        .map(move |word| {
            let start = at;
            at += word.len() + 1;
            (start, word)
        })
        .filter(|(_, word)| !word.is_empty())
        .take_while(|(_, word)| *word != "--")
}
