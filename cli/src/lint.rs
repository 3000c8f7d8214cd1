//! `postern lint`: what is wrong with policies, and what is hardly meant, before anything runs them.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_control::Mesh;
use postern_control::explain::Offline;
use postern_policy::lint::Level;
use serde_json::{Value, json};

use crate::offline::Output;

/// Warnings, and no errors.
const WARNINGS: u8 = 1;
/// A document is refused, or a file cannot be read.
const ERRORS: u8 = 2;

/// What to look at.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// YAML files, or directories of them; what is no kind of ours is passed over
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    mesh: Mesh,
    /// How to say it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints what is found.
pub(crate) fn run(args: &Args) -> ExitCode {
    let (read, errors) = Offline::read_what_can_be(&args.paths, &args.mesh);
    let findings = read.lint();
    match args.output {
        Output::Text => {
            for error in &errors {
                println!("{error}");
            }
            for finding in &findings {
                println!("{finding}");
            }
        }
        Output::Json => {
            let refused = errors.iter().map(|error| {
                json!({
                    "level": "error",
                    "code": "refused",
                    "place": error.place.to_string(),
                    "policy": null,
                    "says": format!("{}{}", prefix(&error.path), error.what),
                    "nearest": error.nearest,
                })
            });
            let found = findings.iter().map(|finding| {
                json!({
                    "level": finding.level.as_str(),
                    "code": finding.code.as_str(),
                    "place": finding.place.to_string(),
                    "policy": finding.policy,
                    "says": finding.says,
                    "nearest": null,
                })
            });
            println!("{}", Value::Array(refused.chain(found).collect()));
        }
    }
    let warned = findings.iter().any(|finding| finding.level == Level::Warning);
    match (errors.is_empty(), warned) {
        (false, _) => ExitCode::from(ERRORS),
        (true, true) => ExitCode::from(WARNINGS),
        (true, false) => ExitCode::SUCCESS,
    }
}

fn prefix(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("{path}: ")
    }
}
