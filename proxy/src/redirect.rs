//! `postern-proxy redirect`: transparent capture, written into the kernel's nf_tables in one atomic batch.
//!
//! ```text
//! Args -> Capture (checked) -> rules::program (tables, chains, rules as data) -> netlink::apply (one sendmsg)
//! ```
//!
//! Runs as root or with NET_ADMIN inside the pod's (or a test's) network namespace, before the app starts. The table is
//! replaced whole, so running it again is safe; IPv4 and IPv6 are one `inet` table. No external binary.

pub mod netlink;
pub mod rules;

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Parser;

pub use rules::{Capture, Cidr};

/// The UID that the proxy runs as; its own connections are never captured.
pub const PROXY_UID: u32 = 15_371;

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

/// Writes, removes or prints the capture.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let program = if args.remove {
        Vec::new()
    } else {
        rules::program(&Capture::from(args))
    };
    if args.print {
        print!("{}", rules::as_text(&program));
        return ExitCode::SUCCESS;
    }
    match netlink::apply(&program) {
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
