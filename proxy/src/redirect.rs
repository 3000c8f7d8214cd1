//! `postern-proxy redirect`: transparent capture, written into the kernel's nf_tables in one atomic batch.
//!
//! ```text
//! Args -> Capture (checked) -> rules::program (tables, chains, rules as data) -> netlink::apply (one sendmsg)
//! ```
//!
//! Runs as root or with NET_ADMIN inside the pod's (or a test's) network namespace, before the app starts; or from
//! outside with `--netns`, as a CNI plug-in does, so that the pod needs no NET_ADMIN. The table is replaced whole, so
//! running it again is safe; IPv4 and IPv6 are one `inet` table. No external binary, and no file is written.

mod namespace;
pub mod netlink;
pub mod rules;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

pub use namespace::apply_in;
pub use rules::{Capture, Cidr};

/// The UID that the proxy runs as; its own connections are never captured.
pub const PROXY_UID: u32 = 15_371;
/// Entries of one list of exemptions: each is a rule that every new connection is compared with, and all rules fit into
/// one message to the kernel (a socket takes 208 KiB by default).
pub const MAX_SKIPS: usize = 128;

/// Arguments of `postern-proxy redirect`.
#[derive(Debug, Clone, Parser)]
#[command(about = "Capture this network namespace's TCP traffic (needs NET_ADMIN)")]
pub struct Args {
    /// UID of the proxy; its own connections are never captured.
    #[arg(long, default_value_t = PROXY_UID)]
    pub proxy_uid: u32,
    /// Where the proxy takes captured inbound connections.
    #[arg(long, default_value_t = 15_006, value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// Where the proxy takes captured outbound connections.
    #[arg(long, default_value_t = 15_001, value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// The proxy's metrics and readiness port, which stays reachable without mTLS.
    #[arg(long, default_value_t = 15_020, value_parser = clap::value_parser!(u16).range(1..))]
    pub metrics_port: u16,
    /// Inbound ports that are not captured.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub skip_inbound_ports: Vec<u16>,
    /// Outbound destination ports that are not captured.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub skip_outbound_ports: Vec<u16>,
    /// Outbound destinations that are not captured, such as 169.254.169.254/32.
    #[arg(long, value_delimiter = ',')]
    pub skip_outbound_cidrs: Vec<Cidr>,
    /// Set the rules in the network namespace that is mounted at this path, such as /var/run/netns/NAME or
    /// /proc/PID/ns/net (needs SYS_ADMIN).
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// Remove the capture instead.
    #[arg(long)]
    pub remove: bool,
    /// Print what would be written, in the words of nft, and change nothing.
    #[arg(long)]
    pub print: bool,
}

impl From<&Args> for Capture {
    fn from(args: &Args) -> Self {
        let mut skip_inbound_ports: BTreeSet<u16> = args.skip_inbound_ports.iter().copied().collect();
        skip_inbound_ports.insert(args.metrics_port);
        Self {
            proxy_uid: args.proxy_uid,
            inbound_port: args.inbound_port,
            outbound_port: args.outbound_port,
            skip_inbound_ports,
            skip_outbound_ports: args.skip_outbound_ports.iter().copied().collect(),
            skip_outbound_cidrs: args.skip_outbound_cidrs.clone(),
        }
    }
}

impl Args {
    /// What can only be seen with all arguments at hand.
    fn check(&self) -> Result<(), String> {
        let lists = [
            ("--skip-inbound-ports", self.skip_inbound_ports.len()),
            ("--skip-outbound-ports", self.skip_outbound_ports.len()),
            ("--skip-outbound-cidrs", self.skip_outbound_cidrs.len()),
        ];
        match lists.iter().find(|(_, entries)| *entries > MAX_SKIPS) {
            Some((list, entries)) => Err(format!("{list} has {entries} entries; at most {MAX_SKIPS} are taken")),
            // Root's own connections would be exempt, and many apps run as root.
            None if self.proxy_uid == 0 => Err("--proxy-uid 0 would exempt whatever runs as root".to_owned()),
            None => Ok(()),
        }
    }
}

/// Writes, removes or prints the capture.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    if let Err(error) = args.check() {
        eprintln!("capture not written, nothing has changed: {error}");
        return ExitCode::FAILURE;
    }
    let program = if args.remove {
        Vec::new()
    } else {
        rules::program(&Capture::from(args))
    };
    if args.print {
        print!("{}", rules::as_text(&program));
        return ExitCode::SUCCESS;
    }
    let done = match &args.netns {
        None => netlink::apply(&program).map_err(|error| namespace::explained(&error)),
        Some(path) => namespace::apply_in(path, &program),
    };
    match done {
        Ok(()) => {
            let what = if args.remove { "removed" } else { "in place" };
            eprintln!("capture {what}: table inet {}", rules::TABLE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("capture not written, nothing has changed: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(more: &[&str]) -> Result<Args, String> {
        let args = Args::try_parse_from([&["redirect"], more].concat()).map_err(|error| error.to_string())?;
        args.check().map(|()| args)
    }

    #[test]
    fn lists_are_read_and_the_metrics_port_is_never_captured() {
        let args = parse(&[
            "--skip-inbound-ports",
            "15020,8443",
            "--skip-outbound-ports",
            "25",
            "--skip-outbound-cidrs",
            "169.254.169.254/32,fd00:ec2::254/128",
        ])
        .unwrap();
        let capture = Capture::from(&args);
        assert_eq!(capture.skip_inbound_ports, [8_443, 15_020].into());
        assert_eq!(capture.skip_outbound_ports, [25].into());
        assert_eq!(capture.skip_outbound_cidrs.len(), 2);
        assert_eq!(Capture::from(&parse(&[]).unwrap()).skip_inbound_ports, [15_020].into());
    }

    #[test]
    fn what_would_not_be_a_capture_is_refused() {
        for (bad, says) in [
            (&["--skip-inbound-ports", "0"][..], "0 is not in 1..=65535"),
            (&["--skip-outbound-ports", "80,x"], "invalid"),
            (&["--skip-outbound-cidrs", "10.0.0.1/8"], "did you mean `10.0.0.0/8`"),
            (&["--proxy-uid", "0"], "whatever runs as root"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_list_has_at_most_its_bound_and_all_of_it_fits_into_one_message() {
        let list = |n: u16| (1..=n).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        let ranges = |n: u16| {
            (1..=n)
                .map(|i| format!("fd00:{i:x}::/32"))
                .collect::<Vec<_>>()
                .join(",")
        };
        let most = u16::try_from(MAX_SKIPS).unwrap();
        let args = parse(&[
            "--skip-inbound-ports",
            &list(most),
            "--skip-outbound-ports",
            &list(most),
            "--skip-outbound-cidrs",
            &ranges(most),
        ])
        .unwrap();
        assert!(netlink::size(&rules::program(&Capture::from(&args))) < 200 * 1024);
        let error = parse(&["--skip-outbound-ports", &list(most + 1)]).unwrap_err();
        assert_eq!(error, "--skip-outbound-ports has 129 entries; at most 128 are taken");
    }
}
