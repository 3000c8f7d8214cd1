//! One process of the demo: this program, started again as a component, ended with us.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a component may take until it is ready; a debug build on a loaded machine takes a tenth.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(10);
/// As much of a dead component's log as an error shows.
const LAST_WORDS: u64 = 2_048;

/// Why a component does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChildError {
    #[error("cannot start {name}")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name} ended ({status}); its last words, from {log}:\n{last_words}")]
    Ended {
        name: String,
        status: ExitStatus,
        log: String,
        last_words: String,
    },
    #[error("{name} is not ready after {PATIENCE:?}; its log is {log}")]
    NotReady { name: String, log: String },
    #[error("{name} wrote a ready file that cannot be read: {what}")]
    ReadyFile { name: String, what: String },
}

/// A running component; killed when dropped.
#[derive(Debug)]
pub(super) struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
}

/// This program as `arguments`, tied to us.
pub(super) fn command(arguments: &[String]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--tether")
        .arg(std::process::id().to_string())
        .args(arguments)
        // A Ctrl-C at the terminal is ours to act on; without this every component would get it as well.
        .process_group(0)
        .stdin(Stdio::null());
    Ok(command)
}

impl Child {
    /// Starts `postern <arguments>`; its output is appended to `<directory>/<name>.log`. Call it from a thread that
    /// lives as long as the demo does: the kernel ends a tethered child with the thread that started it.
    pub(super) fn start(directory: &Path, name: &str, arguments: &[String]) -> Result<Self, ChildError> {
        let log = directory.join(format!("{name}.log"));
        let start = || {
            let output = File::options().create(true).append(true).open(&log)?;
            command(arguments)?.stdout(output.try_clone()?).stderr(output).spawn()
        };
        let process = start().map_err(|source| ChildError::Start {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            process,
            log,
        })
    }

    /// Fails once the process has ended: none of ours ends by itself.
    pub(super) fn check(&mut self) -> Result<(), ChildError> {
        match self.process.try_wait() {
            Ok(Some(status)) => Err(ChildError::Ended {
                name: self.name.clone(),
                status,
                log: self.log.display().to_string(),
                last_words: last_words(&self.log),
            }),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Waits until `state` gives something.
    pub(super) async fn until<T>(&mut self, mut state: impl FnMut() -> Option<T>) -> Result<T, ChildError> {
        let started = Instant::now();
        loop {
            if let Some(found) = state() {
                return Ok(found);
            }
            self.check()?;
            if started.elapsed() > PATIENCE {
                return Err(ChildError::NotReady {
                    name: self.name.clone(),
                    log: self.log.display().to_string(),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for the JSON that a component writes when it is ready.
    pub(super) async fn ready(&mut self, file: &Path) -> Result<serde_json::Value, ChildError> {
        let text = self.until(|| fs::read_to_string(file).ok()).await?;
        serde_json::from_str(&text).map_err(|error| ChildError::ReadyFile {
            name: self.name.clone(),
            what: error.to_string(),
        })
    }

    /// Ends it at once, as an outage would.
    pub(super) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn last_words(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}
