//! The load: wrk for so many seconds over so many connections, with exact counts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use postern_e2e::lab::{APP_UID, Pod};

use crate::Flaw;

/// wrk's own report rounds; this one does not. Only `done` is defined: it runs once, after the load. `slow` names each
/// latency from 1 ms on and how many requests took it.
const SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  local slow = {}
  for i = 1, #latency do
    local took, count = latency(i)
    if took >= 1000 then slow[#slow + 1] = string.format("%d:%d", took, count) end
  end
  io.write(string.format(
    "pair requests=%d microseconds=%d p50=%d p99=%d max=%d connect=%d read=%d write=%d status=%d timeout=%d slow=%s\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    e.connect, e.read, e.write, e.status, e.timeout, table.concat(slow, ",")))
end
"#;
/// One thread drives 64 connections with ease, and the other core is the proxies'.
const THREADS: &str = "1";
/// How much longer than asked for wrk may take before it is taken for stuck.
const GRACE: Duration = Duration::from_secs(20);

/// What wrk counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Counted {
    /// Answers received.
    pub(crate) requests: u64,
    /// How long it really took.
    pub(crate) microseconds: u64,
    /// Median latency in microseconds.
    pub(crate) p50: u64,
    /// 99th percentile in microseconds.
    pub(crate) p99: u64,
    /// The slowest of all, in microseconds.
    pub(crate) max: u64,
    /// Connect, read, write, status and timeout errors together.
    pub(crate) errors: u64,
    /// Latencies from 1 ms on, in microseconds, each with how many requests took it.
    pub(crate) slow: Vec<(u64, u64)>,
}

impl Counted {
    /// Requests that took longer than so many microseconds (1 ms at least).
    pub(crate) fn slower_than(&self, microseconds: u64) -> u64 {
        let slower = self.slow.iter().filter(|(took, _)| *took > microseconds);
        slower.map(|(_, count)| count).sum()
    }
}

/// wrk, ready to run in the client's pod.
pub(crate) struct Wrk {
    script: PathBuf,
}

impl Wrk {
    /// Its script is put into `directory`.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let script = directory.join("pair.lua");
        fs::write(&script, SCRIPT)?;
        Ok(Self { script })
    }

    /// Loads `url`; `halfway` is called in the middle, while all connections are busy.
    pub(crate) fn run(
        &self,
        pod: &Pod,
        url: &str,
        connections: u32,
        time: Duration,
        halfway: impl FnOnce(),
    ) -> Result<Counted, Flaw> {
        let mut command: Command = pod.command(APP_UID, "timeout");
        command
            .arg((time + GRACE).as_secs().to_string())
            .args(["wrk", "-t", THREADS, "-c", &connections.to_string()])
            .args(["-d", &format!("{}s", time.as_secs()), "-s"])
            .arg(&self.script)
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(Flaw::Io)?;
        std::thread::sleep(time / 2);
        halfway();
        let out = child.wait_with_output().map_err(Flaw::Io)?;
        let text = String::from_utf8_lossy(&out.stdout);
        let counted = parse(&text).filter(|_| out.status.success()).ok_or_else(|| {
            let errors = String::from_utf8_lossy(&out.stderr);
            Flaw::Wrk(format!("{}: {text}{errors}", out.status))
        })?;
        // `Non-2xx` is said by wrk beside our line, and means 3xx as well.
        if counted.errors > 0 || counted.requests == 0 || text.contains("Non-2xx") || text.contains("Socket errors") {
            return Err(Flaw::Load(url.to_owned(), text.into_owned()));
        }
        Ok(counted)
    }
}

fn parse(text: &str) -> Option<Counted> {
    let line = text.lines().find_map(|line| line.strip_prefix("pair "))?;
    let figure = |name: &str| -> Option<u64> {
        let field = line.split(' ').find_map(|field| field.strip_prefix(name))?;
        field.strip_prefix('=')?.parse().ok()
    };
    let errors = ["connect", "read", "write", "status", "timeout"];
    Some(Counted {
        requests: figure("requests")?,
        microseconds: figure("microseconds")?,
        p50: figure("p50")?,
        p99: figure("p99")?,
        max: figure("max")?,
        errors: errors.into_iter().map(figure).sum::<Option<u64>>()?,
        slow: slow(line)?,
    })
}

fn slow(line: &str) -> Option<Vec<(u64, u64)>> {
    let list = line.split(' ').find_map(|field| field.strip_prefix("slow="))?;
    let each = list.split(',').filter(|entry| !entry.is_empty());
    each.map(|entry| {
        let (took, count) = entry.split_once(':')?;
        Some((took.parse().ok()?, count.parse().ok()?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 5s test @ http://10.77.0.3:8080/\n  1 threads and 16 connections\nRequests/sec: 1\n\
        pair requests=812345 microseconds=5000123 p50=98 p99=412 max=1999 connect=0 read=0 write=0 status=0 timeout=0 slow=1000:2,1999:1\n";

    #[test]
    fn counts_and_percentiles_are_read() {
        let expected = Counted {
            requests: 812_345,
            microseconds: 5_000_123,
            p50: 98,
            p99: 412,
            max: 1_999,
            errors: 0,
            slow: vec![(1_000, 2), (1_999, 1)],
        };
        assert_eq!(parse(GOOD), Some(expected));
    }

    #[test]
    fn errors_of_every_kind_are_summed() {
        for kind in ["connect", "read", "write", "status", "timeout"] {
            let bad = GOOD.replace(&format!("{kind}=0"), &format!("{kind}=3"));
            assert_eq!(parse(&bad).map(|counted| counted.errors), Some(3), "{kind}");
        }
    }

    #[test]
    fn what_is_cut_or_missing_is_no_result() {
        assert_eq!(parse("unable to connect to 10.0.0.1:80 Connection refused\n"), None);
        assert_eq!(parse(&GOOD.replace(" timeout=0", "")), None);
        assert_eq!(parse(&GOOD.replace("p50=98", "p50=-1")), None);
        assert_eq!(parse(&GOOD.replace(":1\n", ":\n")), None);
        assert!(parse(&GOOD.replace("1000:2,1999:1", "")).is_some_and(|counted| counted.slow.is_empty()));
    }
}
