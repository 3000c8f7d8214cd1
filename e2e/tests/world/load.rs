//! Steady load by stock h2load, with every request's start and status.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use postern_e2e::lab::Pod;
use postern_e2e::process::{PATIENCE, Process};

use super::World;

/// A running h2load.
pub struct Load {
    process: Process,
    log: PathBuf,
    seconds: u64,
}

/// One request that ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sent {
    /// When it began.
    pub at: SystemTime,
    /// -1: the stream or connection broke.
    pub status: i32,
}

impl World {
    /// `clients` keep-alive connections from `pod` to cart, each `rate` requests a second, for `seconds`; `protocol` is
    /// `--h1` or empty for HTTP/2.
    pub fn load(&self, pod: &Pod, protocol: &str, port: u16, clients: u32, rate: u32, seconds: u64) -> Load {
        let name = format!("h2load-{port}");
        let log = self.lab.directory().join(format!("{}-{name}.tsv", pod.name));
        let process = pod.start_as_root(
            &name,
            &format!(
                "h2load {protocol} -c {clients} --rps {rate} -D {seconds} --log-file {} http://{}:{port}/",
                log.display(),
                self.cart.v4
            ),
        );
        Load { process, log, seconds }
    }
}

impl Load {
    /// Everything that was sent, in the order of its beginning.
    pub fn finish(mut self) -> Vec<Sent> {
        let status = self.process.wait(Duration::from_secs(self.seconds) + PATIENCE);
        assert!(status.success(), "{}", self.process.output());
        self.so_far()
    }

    /// What has ended so far (h2load writes in blocks).
    pub fn so_far(&self) -> Vec<Sent> {
        let mut sent: Vec<Sent> = fs::read_to_string(&self.log)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let mut columns = line.split('\t');
                let at: u64 = columns.next()?.parse().ok()?;
                let status = columns.next()?.parse().ok()?;
                columns.next()?;
                Some(Sent {
                    at: SystemTime::UNIX_EPOCH + Duration::from_micros(at),
                    status,
                })
            })
            .collect();
        sent.sort_by_key(|sent| sent.at);
        sent
    }
}
