//! Reads the YAML files below a directory. Blocking; bounded in number, size and depth.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files read; past it the directory is something else than configuration.
pub(super) const MAX_FILES: usize = 1024;
/// A hand-written file past this is a mistake.
pub(super) const MAX_FILE: u64 = 1024 * 1024;
/// All files together.
pub(super) const MAX_TOTAL: usize = 64 * 1024 * 1024;
/// Folders inside folders.
pub(super) const MAX_DEPTH: usize = 8;

/// What stands in the directory now.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// By path below the directory.
    pub(crate) files: BTreeMap<Arc<str>, Found>,
    /// Faults of the directory itself.
    pub(crate) errors: Vec<String>,
    /// False if something could not be listed: a file that is not in `files` may still be there.
    pub(crate) complete: bool,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Text(String),
    Unreadable(String),
}

/// Reads `root`; never fails: faults are part of the answer.
pub(crate) fn scan(root: &Path) -> Scan {
    let mut scan = Scan {
        complete: true,
        ..Scan::default()
    };
    let mut paths = Vec::new();
    list(root, 0, &mut paths, &mut scan);
    paths.sort();
    if paths.len() > MAX_FILES {
        scan.errors.push(format!(
            "{}: more than {MAX_FILES} YAML files; the rest is not read",
            root.display()
        ));
        scan.complete = false;
    }
    let mut total = 0;
    for path in paths.into_iter().take(MAX_FILES) {
        let name: Arc<str> = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into();
        let found = match read(&path) {
            Ok(None) => continue,
            Ok(Some(text)) => Found::Text(text),
            Err(why) => Found::Unreadable(why),
        };
        if let Found::Text(text) = &found {
            total += text.len();
        }
        if total > MAX_TOTAL {
            scan.errors.push(format!(
                "{}: more than {MAX_TOTAL} bytes of YAML; the rest is not read",
                root.display()
            ));
            scan.complete = false;
            break;
        }
        scan.files.insert(name, found);
    }
    scan
}

fn list(directory: &Path, depth: usize, paths: &mut Vec<PathBuf>, scan: &mut Scan) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // A folder that went away between listing and reading is an ordinary deletion.
        Err(error) if depth > 0 && error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            scan.errors
                .push(format!("cannot list {}: {error}", directory.display()));
            scan.complete = false;
            return;
        }
    };
    for entry in entries {
        let Ok(entry) = entry else {
            scan.complete = false;
            continue;
        };
        let path = entry.path();
        // Hidden: editors' swap files, and the `..data` of mounted ConfigMaps, whose files are linked from here.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if depth == MAX_DEPTH {
                scan.errors
                    .push(format!("{}: folders are read {MAX_DEPTH} deep", path.display()));
            } else {
                list(&path, depth + 1, paths, scan);
            }
        } else if path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
            && paths.len() <= MAX_FILES
        {
            paths.push(path);
        }
    }
}

/// `None`: it is gone, or a link to nowhere.
fn read(path: &Path) -> Result<Option<String>, String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    // Opening a pipe would wait for a writer.
    if !metadata.is_file() {
        return Err("is no ordinary file".to_owned());
    }
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    }
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("is longer than {MAX_FILE} bytes"));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        format!("line {line} is not UTF-8")
    })
}
