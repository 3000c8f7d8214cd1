//! Reads the YAML files, and the key sets (JSON) that they may name, below a directory. Blocking; bounded in number, size and depth.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files read; past it the directory is something else than configuration.
pub(super) const MAX_FILES: usize = 1024;
/// A hand-written file past this is a mistake.
pub(super) const MAX_FILE: u64 = 1024 * 1024;
/// A set of keys; a longer one is refused whatever it holds.
const MAX_KEY_FILE: u64 = postern_token::key_set::MAX_SET as u64;
/// All files together.
pub(super) const MAX_TOTAL: usize = 64 * 1024 * 1024;
/// Folders inside folders.
pub(super) const MAX_DEPTH: usize = 8;

/// What stands in the directory now.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// By path below the directory.
    pub(crate) files: BTreeMap<Arc<str>, Found>,
    /// Files that documents may name as key sets (`jwksFile`), by path below the directory.
    pub(crate) key_files: BTreeMap<Arc<str>, Found>,
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
    let mut paths = Paths::default();
    list(root, 0, &mut paths, &mut scan);
    // Documents first: no heap of other files keeps one from being read.
    let mut room = MAX_TOTAL;
    scan.files = scan.read_all(root, paths.documents, "YAML", MAX_FILE, &mut room);
    scan.key_files = scan.read_all(root, paths.key_files, "JSON", MAX_KEY_FILE, &mut room);
    scan
}

/// What was listed, by what it is for.
#[derive(Default)]
struct Paths {
    documents: Vec<PathBuf>,
    key_files: Vec<PathBuf>,
}

impl Paths {
    fn push(&mut self, path: PathBuf) {
        let list = match path.extension().and_then(|extension| extension.to_str()) {
            Some("yaml" | "yml") => &mut self.documents,
            Some("json") => &mut self.key_files,
            Some(_) | None => return,
        };
        // One past the bound says that there are more.
        if list.len() <= MAX_FILES {
            list.push(path);
        }
    }
}

impl Scan {
    fn read_all(
        &mut self,
        root: &Path,
        mut paths: Vec<PathBuf>,
        what: &str,
        longest: u64,
        room: &mut usize,
    ) -> BTreeMap<Arc<str>, Found> {
        let mut files = BTreeMap::new();
        paths.sort();
        if paths.len() > MAX_FILES {
            let root = root.display();
            self.errors.push(format!(
                "{root}: more than {MAX_FILES} {what} files; the rest is not read"
            ));
            self.complete = false;
        }
        for path in paths.into_iter().take(MAX_FILES) {
            let name: Arc<str> = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into();
            let found = match read(&path, longest) {
                Ok(None) => continue,
                Ok(Some(text)) => Found::Text(text),
                Err(why) => Found::Unreadable(why),
            };
            if let Found::Text(text) = &found {
                let Some(left) = room.checked_sub(text.len()) else {
                    let root = root.display();
                    self.errors.push(format!(
                        "{root}: more than {MAX_TOTAL} bytes of {what}; the rest is not read"
                    ));
                    self.complete = false;
                    break;
                };
                *room = left;
            }
            files.insert(name, found);
        }
        files
    }
}

fn list(directory: &Path, depth: usize, paths: &mut Paths, scan: &mut Scan) {
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
        } else {
            paths.push(path);
        }
    }
}

/// `None`: it is gone, or a link to nowhere.
fn read(path: &Path, longest: u64) -> Result<Option<String>, String> {
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
    match fs::File::open(path).and_then(|file| file.take(longest + 1).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    }
    if bytes.len() as u64 > longest {
        return Err(format!("is longer than {longest} bytes"));
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
