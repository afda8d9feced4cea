// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files that the command line names.

use std::fs::File;
use std::path::Path;

use super::loader::Image;

/// Opens the regular file at `path`, and has `load` take what it needs from it.
///
/// # Errors
///
/// One line that names `option` and the file, and says what is wrong with it.
pub(crate) fn load<T>(
    option: &str,
    path: &Path,
    load: impl FnOnce(&mut Image<File>) -> Result<T, String>,
) -> Result<T, String> {
    let loaded = open(path).and_then(|mut image| load(&mut image));
    loaded.map_err(|what| format!("{option}: {}: {what}", path.display()))
}

fn open(path: &Path) -> Result<Image<File>, String> {
    // A look at the kind comes first: to open a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    if !metadata.is_file() {
        return Err("is no regular file".to_owned());
    }
    let image = File::open(path)
        .and_then(Image::new)
        .map_err(|error| error.to_string())?;
    if image.len() == 0 {
        return Err("is empty".to_owned());
    }
    Ok(image)
}
