//! What the ports of a workload take, on the wire and back. A number that is not understood is an error, never a default; what
//! is left out altogether is an older control's, which knows the workload's mode alone.

use std::collections::BTreeMap;

use postern_policy::peer_authentication::PortModes;
use postern_policy::{Mode, MtlsMode};

use crate::control::v1 as wire;
use crate::policy_wire::WireError;

/// Puts them into a workload's message.
pub fn to_wire(modes: &PortModes, config: &mut wire::WorkloadConfig) {
    config.mtls = mode_to_wire(modes.usual) as i32;
    let port = |(number, mode): (&u16, &MtlsMode)| wire::PortMtls {
        number: (*number).into(),
        mode: mode_to_wire(*mode) as i32,
    };
    config.port_mtls = modes.ports.iter().map(port).collect();
}

/// Takes them out of it. `mode` is the workload's.
pub fn from_wire(config: &wire::WorkloadConfig, mode: Mode) -> Result<PortModes, WireError> {
    let usual = match config.mtls {
        0 if config.port_mtls.is_empty() => MtlsMode::usual(mode),
        _ => mode_from_wire(config.mtls)?,
    };
    let mut ports = BTreeMap::new();
    for port in &config.port_mtls {
        let number = u16::try_from(port.number).ok().filter(|number| *number > 0);
        let number = number.ok_or(WireError { what: "port" })?;
        if ports.insert(number, mode_from_wire(port.mode)?).is_some() {
            return Err(WireError {
                what: "one mode of a port",
            });
        }
    }
    Ok(PortModes { usual, ports })
}

fn mode_to_wire(mode: MtlsMode) -> wire::MtlsMode {
    match mode {
        MtlsMode::Disable => wire::MtlsMode::Disable,
        MtlsMode::Permissive => wire::MtlsMode::Permissive,
        MtlsMode::Strict => wire::MtlsMode::Strict,
    }
}

fn mode_from_wire(mode: i32) -> Result<MtlsMode, WireError> {
    match wire::MtlsMode::try_from(mode) {
        Ok(wire::MtlsMode::Disable) => Ok(MtlsMode::Disable),
        Ok(wire::MtlsMode::Permissive) => Ok(MtlsMode::Permissive),
        Ok(wire::MtlsMode::Strict) => Ok(MtlsMode::Strict),
        Ok(wire::MtlsMode::Unspecified) | Err(_) => Err(WireError { what: "mtls mode" }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_ports_take_comes_back_as_it_was_sent() {
        for usual in [MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict] {
            for ports in [
                BTreeMap::new(),
                BTreeMap::from([(80, MtlsMode::Disable), (65535, MtlsMode::Strict)]),
            ] {
                let modes = PortModes { usual, ports };
                let mut config = wire::WorkloadConfig::default();
                to_wire(&modes, &mut config);
                assert_eq!(from_wire(&config, Mode::Discover), Ok(modes));
            }
        }
    }

    #[test]
    fn of_an_older_control_it_is_as_the_mode_has_it_and_of_a_newer_one_an_error() {
        let config = wire::WorkloadConfig::default();
        assert_eq!(from_wire(&config, Mode::Protect).unwrap().of(80), MtlsMode::Strict);
        assert_eq!(from_wire(&config, Mode::Monitor).unwrap().of(80), MtlsMode::Permissive);
        let port = |number, mode| wire::PortMtls { number, mode };
        for (mtls, ports) in [
            (4, vec![]),
            (-1, vec![]),
            (0, vec![port(80, 1)]),
            (3, vec![port(80, 0)]),
            (3, vec![port(80, 4)]),
            (3, vec![port(0, 1)]),
            (3, vec![port(65536, 1)]),
            (3, vec![port(80, 1), port(80, 3)]),
        ] {
            let config = wire::WorkloadConfig {
                mtls,
                port_mtls: ports,
                ..wire::WorkloadConfig::default()
            };
            assert!(from_wire(&config, Mode::Protect).is_err(), "{config:?}");
        }
    }
}
