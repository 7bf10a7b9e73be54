//! Addresses as people type them: `192.168.1.7`, `host:7400`, `[fe80::1]:7400`, `/dns4/host/tcp/7400`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// Where a node listens if it was not told otherwise, and where it is looked for if no port is typed.
pub const DEFAULT_PORT: u16 = 7400;
/// Longest address that is looked at, in bytes.
const MAX_ADDRESS_BYTES: usize = 512;

/// Reads an address to dial. Returns it as a TCP multiaddress, perhaps with a `/p2p/...` behind it.
pub(super) fn parse(text: &str) -> Result<Multiaddr, AddressError> {
    let error = |why| AddressError { address: text.chars().take(100).collect(), why };
    let address = parse_any(text, DEFAULT_PORT).map_err(error)?;
    let mut parts = address.iter();
    let dialable = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified(),
        _ => true,
    };
    if !dialable {
        return Err(error("this address means \"all interfaces\" and cannot be dialled"));
    }
    if matches!(parts.next(), Some(Protocol::Tcp(0))) {
        return Err(error("port 0 cannot be dialled"));
    }
    Ok(address)
}

/// Reads an address to listen at: an IP address, with a port or without.
pub(super) fn parse_listen(text: &str) -> Result<(IpAddr, Option<u16>), AddressError> {
    let error = |why| AddressError { address: text.chars().take(100).collect(), why };
    let text = text.trim();
    if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
        return Ok((ip, None));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip(), Some(address.port())));
    }
    let address: Multiaddr =
        text.parse().map_err(|_| error("expected an IP address, with a port or without"))?;
    let parts: Vec<_> = address.iter().collect();
    match parts[..] {
        [Protocol::Ip4(ip)] => Ok((ip.into(), None)),
        [Protocol::Ip6(ip)] => Ok((ip.into(), None)),
        [Protocol::Ip4(ip), Protocol::Tcp(port)] => Ok((ip.into(), Some(port))),
        [Protocol::Ip6(ip), Protocol::Tcp(port)] => Ok((ip.into(), Some(port))),
        _ => Err(error("expected /ip4/.../tcp/... or /ip6/.../tcp/...")),
    }
}

/// The multiaddress of a TCP port.
pub(super) fn tcp(ip: IpAddr, port: u16) -> Multiaddr {
    Multiaddr::from(ip).with(Protocol::Tcp(port))
}

/// The address without what names the peer.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

fn parse_any(text: &str, default_port: u16) -> Result<Multiaddr, &'static str> {
    let text = text.trim();
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > MAX_ADDRESS_BYTES {
        return Err("it is too long");
    }
    if text.starts_with('/') {
        return parse_multiaddr(text);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(tcp(address.ip(), address.port()));
    }
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Ok(tcp(ip.into(), default_port));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<Ipv6Addr>() {
        return Ok(tcp(ip.into(), default_port));
    }
    let (host, port) = match text.rsplit_once(':') {
        None => (text, default_port),
        Some((host, port)) => (host, port.parse().map_err(|_| "the port is not a number up to 65535")?),
    };
    let is_name = !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        && !host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if !is_name {
        return Err("expected host:port, ip:port or a multiaddress such as /ip4/192.168.1.7/tcp/7400");
    }
    Ok(Multiaddr::empty().with(Protocol::Dns(host.into())).with(Protocol::Tcp(port)))
}

fn parse_multiaddr(text: &str) -> Result<Multiaddr, &'static str> {
    let address: Multiaddr = text.parse().map_err(|_| "it is not a multiaddress")?;
    let parts: Vec<_> = address.iter().collect();
    let (transport, peer) = parts.split_at(parts.len().min(2));
    let host_and_port = matches!(
        transport,
        [
            Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_),
            Protocol::Tcp(_)
        ]
    );
    if !host_and_port || !matches!(peer, [] | [Protocol::P2p(_)]) {
        return Err("only TCP is spoken: /ip4/.../tcp/..., /ip6/.../tcp/... or /dns/.../tcp/...");
    }
    Ok(address)
}

/// An address that cannot be dialled or listened at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{address}\" is not an address: {why}")]
pub struct AddressError {
    address: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_type_is_understood() {
        for (typed, meant) in [
            ("192.168.1.7:7401", "/ip4/192.168.1.7/tcp/7401"),
            (" 192.168.1.7 ", "/ip4/192.168.1.7/tcp/7400"),
            ("[::1]:80", "/ip6/::1/tcp/80"),
            ("::1", "/ip6/::1/tcp/7400"),
            ("node-1.example.org:7400", "/dns/node-1.example.org/tcp/7400"),
            ("localhost", "/dns/localhost/tcp/7400"),
            ("/dns4/host/tcp/1", "/dns4/host/tcp/1"),
        ] {
            assert_eq!(parse(typed).unwrap().to_string(), meant);
        }
    }

    #[test]
    fn what_cannot_be_dialled_is_refused() {
        for bad in [
            "",
            "host:port",
            "host:70000",
            "1.2.3",
            "300.1.1.1:80",
            "/ip4/1.2.3.4",
            "/ip4/1.2.3.4/udp/1/quic-v1",
            "/unix/a",
            "0.0.0.0:7400",
            "1.2.3.4:0",
            "a b:1",
            ":7400",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn listen_addresses_have_a_port_or_not() {
        assert_eq!(parse_listen("0.0.0.0").unwrap(), (Ipv4Addr::UNSPECIFIED.into(), None));
        assert_eq!(parse_listen("/ip4/127.0.0.1/tcp/0").unwrap(), (Ipv4Addr::LOCALHOST.into(), Some(0)));
        assert_eq!(parse_listen("[::1]:9").unwrap(), (Ipv6Addr::LOCALHOST.into(), Some(9)));
        assert!(parse_listen("host:1").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = parse(&text);
            let _ = parse_listen(&text);
        }
    }
}
