//! What the kernel says a process has used: CPU time and resident memory.
//!
//! `schedstat` counts nanoseconds on a CPU, `stat` splits user from system in clock ticks. Softirq work (loopback, veth and
//! netfilter run in it) is charged to whichever thread it interrupts, for every subject alike: the kernels that we measure
//! on have no `CONFIG_IRQ_TIME_ACCOUNTING`.

use std::fs;
use std::io;
use std::ops::{Add, Sub};

/// `USER_HZ`: fixed at 100 in the kernel's interface on every Linux that we run on.
const TICK_NANOSECONDS: u64 = 10_000_000;

/// CPU time of one or several processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cpu {
    /// On a CPU, all threads that live, in nanoseconds.
    pub(crate) nanoseconds: u64,
    /// Of that in user mode, by the clock tick.
    pub(crate) user: u64,
    /// Of that in the kernel, by the clock tick.
    pub(crate) system: u64,
}

/// Resident memory in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    /// `VmRSS`.
    pub(crate) resident: u64,
    /// `RssAnon`: heap and stacks; the rest is file pages, which processes of one binary share.
    pub(crate) anonymous: u64,
}

impl Cpu {
    /// Of a process: its threads are summed, because `/proc/<pid>/schedstat` is the main thread's alone.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut nanoseconds = 0_u64;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end between the listing and the reading.
            if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
                nanoseconds += parse_schedstat(&text).ok_or_else(|| malformed("schedstat", &text))?;
            }
        }
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (user, system) = parse_stat(&text).ok_or_else(|| malformed("stat", &text))?;
        Ok(Self {
            nanoseconds,
            user,
            system,
        })
    }
}

impl Memory {
    /// Of a process, now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        parse_status(&text).ok_or_else(|| malformed("status", &text))
    }
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            nanoseconds: self.nanoseconds + other.nanoseconds,
            user: self.user + other.user,
            system: self.system + other.system,
        }
    }
}

impl Sub for Cpu {
    type Output = Self;

    /// Saturating: a thread that ended takes its nanoseconds along.
    fn sub(self, other: Self) -> Self {
        Self {
            nanoseconds: self.nanoseconds.saturating_sub(other.nanoseconds),
            user: self.user.saturating_sub(other.user),
            system: self.system.saturating_sub(other.system),
        }
    }
}

/// The machine's load over the last minute: figures of a busy machine are to be read with it.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(f64::NAN)
}

/// Time on the CPU, time waiting, slices: the first of three.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// utime and stime, fields 14 and 15. The second field is the program's name in parentheses and may hold anything.
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok()?.checked_mul(TICK_NANOSECONDS);
    Some((ticks()?, ticks()?))
}

fn parse_status(text: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Memory {
        resident: kib("VmRSS")?,
        anonymous: kib("RssAnon")?,
    })
}

fn malformed(file: &str, text: &str) -> io::Error {
    io::Error::other(format!("unexpected /proc/<pid>/{file}: {text:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn schedstat_is_read_for_its_first_figure() {
        assert_eq!(parse_schedstat("4193382591 1032 77\n"), Some(4_193_382_591));
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("x 1 2"), None);
    }

    #[test]
    fn stat_is_read_past_a_name_with_spaces_and_parentheses() {
        let text = "42 (a b) c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0 1 2 3";
        assert_eq!(parse_stat(text), Some((70_000_000, 50_000_000)));
        assert_eq!(parse_stat("42 (a) S 1 2"), None);
        assert_eq!(parse_stat("no name"), None);
    }

    #[test]
    fn status_gives_resident_and_anonymous() {
        let text = "Name:\tx\nVmRSS:\t    9132 kB\nRssAnon:\t    3000 kB\nRssFile:\t 1 kB\n";
        let memory = parse_status(text).unwrap();
        assert_eq!((memory.resident, memory.anonymous), (9_132, 3_000));
        assert_eq!(parse_status("Name:\tkernel thread\n"), None);
    }

    #[test]
    fn a_busy_process_is_seen_to_have_used_its_time() {
        let before = Cpu::of(std::process::id()).unwrap();
        let started = std::time::Instant::now();
        // More than two ticks, so that the coarse figures move as well.
        while started.elapsed() < std::time::Duration::from_millis(100) {
            std::hint::black_box(started);
        }
        let used = Cpu::of(std::process::id()).unwrap() - before;
        assert!(used.nanoseconds > 1_000_000, "{used:?}");
        assert!(Memory::of(std::process::id()).unwrap().resident > 100);
        assert!(load_average() >= 0.0);
    }
}
