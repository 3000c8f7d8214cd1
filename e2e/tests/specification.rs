//! SPECIFICATION.md and the tree agree: every promise names tests, and every test that it names is there.
//!
//! A promise is a list item `- **CA-7.** ...` with its indented lines; its tests are the code spans `path/to/file.rs::name`,
//! or, proven on a cluster, `path/to/part.sh::the line that the part prints`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines between a test's attribute and its name: other attributes and comments.
const ABOVE: usize = 6;

#[derive(Debug, PartialEq, Eq)]
struct Promise {
    id: String,
    /// File and function.
    tests: Vec<(String, String)>,
}

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let promises = promises(&fs::read_to_string(root.join("SPECIFICATION.md")).unwrap());
    assert!(
        promises.len() > 50,
        "{} promises: the list was not read",
        promises.len()
    );
    let mut faults = Vec::new();
    let mut ids = BTreeSet::new();
    for promise in &promises {
        if !ids.insert(&promise.id) {
            faults.push(format!("{} is there twice", promise.id));
        }
        if promise.tests.is_empty() {
            faults.push(format!("{} names no test", promise.id));
        }
        for (file, name) in &promise.tests {
            let path: PathBuf = root.join(file);
            match fs::read_to_string(&path) {
                Err(error) => faults.push(format!("{}: {file}: {error}", promise.id)),
                Ok(source) if !is_proof(file, &source, name) => {
                    faults.push(format!("{}: no test `{name}` in {file}", promise.id));
                }
                Ok(_) => {}
            }
        }
    }
    assert!(faults.is_empty(), "SPECIFICATION.md:\n{}", faults.join("\n"));
}

fn promises(text: &str) -> Vec<Promise> {
    let mut promises: Vec<Promise> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(id) = line.strip_prefix("- **").and_then(|rest| rest.split_once(".**")) {
            promises.push(Promise {
                id: id.0.to_owned(),
                tests: Vec::new(),
            });
            open = true;
        } else if !line.starts_with("  ") {
            open = false;
        }
        if let Some(promise) = promises.last_mut().filter(|_| open) {
            // Code spans are the odd pieces between backticks.
            let spans = line.split('`').skip(1).step_by(2);
            let named = spans.filter_map(|span| span.split_once("::"));
            let named = named.filter(|(file, _)| file.ends_with(".rs") || file.ends_with(".sh"));
            promise
                .tests
                .extend(named.map(|(file, name)| (file.to_owned(), name.to_owned())));
        }
    }
    promises
}

/// A script's line is what it says in quotes.
fn is_proof(file: &str, source: &str, name: &str) -> bool {
    if file.ends_with(".sh") {
        return source.contains(&format!("\"{name}\""));
    }
    is_test(source, name)
}

/// Is there a function of this name with a test's attribute?
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let head = format!("fn {name}(");
    lines.iter().enumerate().any(|(at, line)| {
        let above = &lines[at.saturating_sub(ABOVE)..at];
        let attributes = above.iter().rev().take_while(|line| line.starts_with(['#', '/']));
        line.trim_start_matches("async ").starts_with(&head)
            && attributes
                .into_iter()
                .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}

#[test]
fn a_promise_ends_where_its_item_ends_and_only_marked_functions_are_tests() {
    let text = "- **A-1.** One `x::y`.\n  `a/b.rs::c`, `a/b.rs::d`\n\n- plain `a/b.rs::e`\n- **A-2.** Two.\n";
    let [first, second] = promises(text).try_into().unwrap();
    let named = |name: &str| ("a/b.rs".to_owned(), name.to_owned());
    assert_eq!(first.tests, [named("c"), named("d")]);
    assert_eq!((second.id.as_str(), second.tests.len()), ("A-2", 0));

    let source = "    #[tokio::test(start_paused = true)]\n    // Why.\n    async fn it_is() {}\n\nfn helper() {}\n";
    assert!(is_test(source, "it_is") && !is_test(source, "helper") && !is_test(source, "it"));
    let part = "holds \"all is well\" check_all\n";
    assert!(is_proof("a.sh", part, "all is well") && !is_proof("a.sh", part, "all is"));
}
