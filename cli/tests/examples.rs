//! The commands that `examples/policies` shows say what it says they do.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies")
}

fn examples() -> Vec<(String, String)> {
    let mut examples: Vec<_> = std::fs::read_dir(policies())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    examples.sort();
    examples
}

/// Each command with the lines that are said to follow.
fn shown(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut shown: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines().map_while(|line| line.strip_prefix('#')) {
        if let Some(command) = line.strip_prefix("   $ postern explain ") {
            shown.push((command, Vec::new()));
        } else if let (Some(said), Some((_, lines))) = (line.strip_prefix("   "), shown.last_mut()) {
            lines.push(said);
        }
    }
    shown
}

fn postern(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(arguments)
        .current_dir(policies())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

#[test]
fn each_example_policy_allows_and_denies_what_it_says() {
    let examples = examples();
    assert!(examples.len() >= 10, "{}", examples.len());
    for (name, text) in &examples {
        let (mut allowed, mut denied) = (0, 0);
        let mut wrong = Vec::new();
        for (command, lines) in shown(text) {
            assert!(command.contains(name), "{name}: {command}");
            let arguments: Vec<&str> = std::iter::once("explain").chain(command.split(' ')).collect();
            let (code, said) = postern(&arguments);
            match code {
                Some(0) => allowed += 1,
                Some(1) => denied += 1,
                // What cannot be told, or what every proxy refuses.
                Some(2) => {}
                _ => panic!("{name}: {command}\n{said}"),
            }
            if said.lines().ne(lines.iter().copied()) {
                wrong.push(format!(
                    "{command}\nsays:\n{said}and the example:\n{}",
                    lines.join("\n")
                ));
            }
        }
        assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));
        assert!(allowed > 0 && denied > 0, "{name}: {allowed} allowed, {denied} denied");
    }
}

#[test]
fn lint_has_nothing_to_say_against_the_examples() {
    for (name, _) in examples() {
        let (code, said) = postern(&["lint", &name]);
        assert_eq!(code, Some(0), "{name}: {said}");
    }
}
